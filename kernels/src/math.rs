//! Functions of sixteen numbers at a time, with the same bits at every level.

use crate::TILE;
use crate::instructions::Vectors;

/// The exponential, to within 2 units of the last place: 2^n times a polynomial of what is left after whole multiples of
/// ln 2 (the constants are those of `expf` of the Cephes library). Below -87 it is 0, above 88 as if it were 88; what is
/// not a number stays so.
#[inline(always)]
pub(crate) fn exp<V: Vectors>(vectors: V, x: V::Floats) -> V::Floats {
    const LEAST: f32 = -87.0;
    const MOST: f32 = 88.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // In this order what is not a number stays.
    let held = vectors.smaller(vectors.splat(MOST), vectors.larger(vectors.splat(LEAST), x));
    let whole = vectors.round(vectors.multiply(held, vectors.splat(std::f32::consts::LOG2_E)));
    let steps = vectors.to_floats(whole);
    let r = vectors.multiply_add(steps, vectors.splat(-LN_2_HIGH), held);
    let r = vectors.multiply_add(steps, vectors.splat(-LN_2_LOW), r);
    let mut p = vectors.splat(1.987_569_1e-4);
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
        p = vectors.multiply_add(p, r, vectors.splat(c));
    }
    let rest = vectors.add(vectors.multiply_add(p, vectors.multiply(r, r), r), vectors.splat(1.0));
    vectors.unless_below(x, LEAST, vectors.multiply(rest, vectors.power_of_two(whole)))
}

/// The hyperbolic tangent, to within 2e-7.
#[inline(always)]
pub(crate) fn tanh<V: Vectors>(vectors: V, x: V::Floats) -> V::Floats {
    let one = vectors.splat(1.0);
    let power = exp(vectors, vectors.add(x, x));
    vectors.subtract(one, vectors.divide(vectors.splat(2.0), vectors.add(power, one)))
}

/// The sum of sixteen numbers, in one order.
#[inline(always)]
pub(crate) fn across(mut lanes: [f32; TILE]) -> f32 {
    let mut width = TILE / 2;
    while width > 0 {
        for at in 0..width {
            lanes[at] += lanes[at + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Level;
    use crate::instructions::Work;

    struct All<'a>(&'a mut [f32], bool);

    impl Work for All<'_> {
        type Output = ();

        #[inline(always)]
        fn run<V: Vectors>(self, vectors: V) {
            for values in self.0.as_chunks_mut().0 {
                let x = vectors.read(values);
                let y = if self.1 { exp(vectors, x) } else { tanh(vectors, x) };
                vectors.write(y, values);
            }
        }
    }

    /// The same bits at every level.
    fn of(is_exp: bool, x: &[f32]) -> Vec<f32> {
        let mut expected = x.to_vec();
        Level::PORTABLE.run(All(&mut expected, is_exp));
        for level in Level::available() {
            let mut y = x.to_vec();
            level.run(All(&mut y, is_exp));
            for ((x, y), expected) in x.iter().zip(&y).zip(&expected) {
                let are_same = y.to_bits() == expected.to_bits() || (y.is_nan() && expected.is_nan());
                assert!(are_same, "{level:?} {x}: {y} {expected}");
            }
        }
        expected
    }

    #[expect(clippy::cast_possible_truncation, reason = "wanted")]
    fn steps(from: i32, to: i32) -> Vec<f32> {
        (from..to).map(|step| (f64::from(step) / 10_000.0) as f32).collect()
    }

    #[test]
    fn exponential_is_that_of_the_library() {
        let x = steps(-870_000, 880_000);
        let errors = of(true, &x)
            .into_iter()
            .zip(&x)
            .map(|(y, x)| f64::from(y) / f64::from(*x).exp() - 1.0);
        let worst = errors.fold(0.0_f64, |worst, error| worst.max(error.abs()));
        assert!(worst < 2.0 * f64::from(f32::EPSILON), "{worst}");
        let mut x = [0.0; TILE];
        (x[1], x[2], x[3], x[4]) = (-1e30, f32::NEG_INFINITY, 1e30, f32::NAN);
        let y = of(true, &x);
        assert_eq!([y[0], y[1], y[2]].map(f32::to_bits), [1.0_f32.to_bits(), 0, 0]);
        assert!(y[3] > 1e38 && y[3].is_finite() && y[4].is_nan());
    }

    #[test]
    fn tangent_is_that_of_the_library() {
        let mut x = steps(-200_000, 200_000);
        (x[0], x[1]) = (1e9, -1e9);
        for (x, y) in x.iter().zip(of(false, &x)) {
            assert!((f64::from(y) - f64::from(*x).tanh()).abs() < 2e-7, "{x}");
        }
    }
}
