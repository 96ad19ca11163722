//! Functions that the compiler makes vectors of: no branches, and the same bits at every width.

/// Numbers whose sums are kept apart, so that they can be computed beside each other.
pub(crate) const LANES: usize = 16;

/// The exponential, to within 2 units of the last place: 2^n times a polynomial of what is left after whole multiples of
/// ln 2 (the constants are those of `expf` of the Cephes library). Below -87 it is 0, above 88 as if it were 88; what is
/// not a number stays so.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const LEAST: f32 = -87.0;
    const MOST: f32 = 88.0;
    /// Added and subtracted, it rounds to a whole number: 1.5 * 2^23.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let held = if x < LEAST { LEAST } else { x };
    let held = if held > MOST { MOST } else { held };
    let shifted = held * std::f32::consts::LOG2_E + ROUND;
    let whole = shifted - ROUND;
    let r = held - whole * LN_2_HIGH - whole * LN_2_LOW;
    let mut p = 1.987_569_1e-4;
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
        p = p * r + c;
    }
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    let value = (p * r * r + r + 1.0) * power;
    if x < LEAST { 0.0 } else { value }
}

/// The hyperbolic tangent, to within 2e-7.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (exp(2.0 * x) + 1.0)
}

/// The sum of what [`LANES`] lanes have, in one order.
#[inline(always)]
pub(crate) fn across(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
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

    #[test]
    fn exponential_is_that_of_the_library() {
        let mut worst = 0.0_f64;
        for step in -870_000..=880_000_i32 {
            let x = f64::from(step) / 10_000.0;
            #[expect(clippy::cast_possible_truncation, reason = "wanted")]
            let x = x as f32;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) / exact - 1.0).abs());
        }
        assert!(worst < 2.0 * f64::from(f32::EPSILON), "{worst}");
        assert_eq!([exp(-1e30), exp(f32::NEG_INFINITY)].map(f32::to_bits), [0, 0]);
        assert!(exp(1e30) > 1e38 && exp(1e30).is_finite());
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(exp(0.0).to_bits(), 1.0_f32.to_bits());
    }

    #[test]
    fn tangent_is_that_of_the_library() {
        for step in -200_000..=200_000_i32 {
            #[expect(clippy::cast_possible_truncation, reason = "wanted")]
            let x = (f64::from(step) / 10_000.0) as f32;
            assert!((f64::from(tanh(x)) - f64::from(x).tanh()).abs() < 2e-7, "{x}");
        }
        assert_eq!([tanh(1e9), tanh(-1e9)].map(f32::to_bits), [1.0, -1.0_f32].map(f32::to_bits));
    }
}
