//! What is done with the rows of a buffer one by one.

use crate::instructions::{Vectors, Work};
use crate::math::across;
use crate::{Cores, TILE};

/// Values that one thread takes together at least.
const TOGETHER: usize = 8192;

/// Scales every row of `x`, as long as `weight`, to a root mean square of 1, and then by `weight` (Zhang and Sennrich,
/// arXiv:1910.07467).
///
/// # Panics
/// When `x` is not whole rows, or `out` has another length.
pub fn rms_norm(cores: &Cores, x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "as many values out as in");
    assert!(x.len().is_multiple_of(weight.len()), "whole rows of {}", weight.len());
    let each = each(weight.len());
    cores.chunks(out, each, |index, out| {
        out.copy_from_slice(&x[index * each..][..out.len()]);
        cores.level().run(Norm {
            x: out,
            weight,
            epsilon,
        });
    });
}

/// The same in place.
///
/// # Panics
/// When `x` is not whole rows.
pub fn rms_norm_in_place(cores: &Cores, x: &mut [f32], weight: &[f32], epsilon: f32) {
    assert!(x.len().is_multiple_of(weight.len()), "whole rows of {}", weight.len());
    cores.chunks(x, each(weight.len()), |_, x| {
        cores.level().run(Norm { x, weight, epsilon });
    });
}

/// Multiplies all values with `factor`.
pub fn scale(cores: &Cores, x: &mut [f32], factor: f32) {
    cores.chunks(x, TOGETHER, |_, x| {
        for value in x {
            *value *= factor;
        }
    });
}

/// Adds `others` to `x`.
///
/// # Panics
/// When they have different lengths.
pub fn add(cores: &Cores, x: &mut [f32], others: &[f32]) {
    assert_eq!(x.len(), others.len(), "as many values as others");
    cores.chunks(x, TOGETHER, |index, x| {
        for (value, other) in x.iter_mut().zip(&others[index * TOGETHER..]) {
            *value += other;
        }
    });
}

/// How far the pairs of values of each row are turned: a rotary position embedding.
#[derive(Debug, Default)]
pub struct Turns {
    /// `[rows, pairs]`.
    pub cosines: Vec<f32>,
    /// `[rows, pairs]`.
    pub sines: Vec<f32>,
    /// Pairs of a head; values of a head beyond them are not turned.
    pub pairs: usize,
    /// Whether a pair are values `2i` and `2i + 1` of a head, or else `i` and `i + pairs`.
    pub are_adjacent: bool,
}

/// Turns every head of every row of `x`, which is as many rows as `turns` has and `width` wide.
///
/// # Panics
/// When the sizes do not fit together.
pub fn rotate(cores: &Cores, x: &mut [f32], width: usize, head_size: usize, turns: &Turns) {
    assert!(
        2 * turns.pairs <= head_size && width.is_multiple_of(head_size),
        "pairs are within heads"
    );
    let each = each(width);
    cores.chunks(x, each, |index, x| {
        let first = index * each / width;
        cores.level().run(Rotate {
            x,
            width,
            head_size,
            turns,
            first,
        });
    });
}

/// Values of so many whole rows that it is worth a thread's while.
fn each(width: usize) -> usize {
    (TOGETHER / width).max(1) * width
}

struct Norm<'a> {
    x: &'a mut [f32],
    weight: &'a [f32],
    epsilon: f32,
}

impl Work for Norm<'_> {
    type Output = ();

    #[inline(always)]
    #[expect(clippy::cast_precision_loss, reason = "rows have less than 2^24 values")]
    fn run<V: Vectors>(self, _: V) {
        let width = self.weight.len();
        for row in self.x.chunks_exact_mut(width) {
            let mut lanes = [0.0; TILE];
            let (chunks, rest) = row.as_chunks::<TILE>();
            for chunk in chunks {
                for (lane, value) in lanes.iter_mut().zip(chunk) {
                    *lane += value * value;
                }
            }
            for (lane, value) in lanes.iter_mut().zip(rest) {
                *lane += value * value;
            }
            let scale = 1.0 / (across(lanes) / width as f32 + self.epsilon).sqrt();
            for (value, weight) in row.iter_mut().zip(self.weight) {
                *value = *value * scale * weight;
            }
        }
    }
}

struct Rotate<'a> {
    x: &'a mut [f32],
    width: usize,
    head_size: usize,
    turns: &'a Turns,
    /// The first row.
    first: usize,
}

impl Work for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vectors>(self, _: V) {
        let Turns {
            cosines,
            sines,
            pairs,
            are_adjacent,
        } = self.turns;
        for (row, x) in (self.first..).zip(self.x.chunks_exact_mut(self.width)) {
            let cosines = &cosines[row * pairs..(row + 1) * pairs];
            let sines = &sines[row * pairs..(row + 1) * pairs];
            for head in x.chunks_exact_mut(self.head_size) {
                if *are_adjacent {
                    let turns = cosines.iter().zip(sines);
                    for ([one, other], (cosine, sine)) in head.as_chunks_mut().0.iter_mut().zip(turns) {
                        (*one, *other) = (*one * cosine - *other * sine, *one * sine + *other * cosine);
                    }
                } else {
                    let (ones, others) = head.split_at_mut(*pairs);
                    for (((one, other), cosine), sine) in ones.iter_mut().zip(others).zip(cosines).zip(sines) {
                        (*one, *other) = (*one * cosine - *other * sine, *one * sine + *other * cosine);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Level;
    use std::num::NonZeroUsize;

    fn values(count: usize) -> Vec<f32> {
        (0..count)
            .map(|at| f32::from(u8::try_from(at * 37 % 101).unwrap()) / 50.0 - 1.0)
            .collect()
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|value| value.to_bits()).collect()
    }

    /// The same for every level and number of threads.
    fn of_all(work: impl Fn(&Cores) -> Vec<f32>) -> Vec<f32> {
        let alone = Cores::alone(Level::PORTABLE);
        let expected = work(&alone);
        for level in Level::available() {
            for threads in [1, 3] {
                let cores = Cores::start(NonZeroUsize::new(threads).unwrap(), level).unwrap();
                assert_eq!(bits(&work(&cores)), bits(&expected), "{cores:?}");
            }
        }
        expected
    }

    #[test]
    fn norm_is_that_of_its_definition() {
        for width in [3, 16, 70, 576] {
            let (x, weight) = (values(60 * width), values(width));
            let normed = of_all(|cores| {
                let mut out = vec![0.0; x.len()];
                rms_norm(cores, &x, &weight, 1e-5, &mut out);
                let mut in_place = x.clone();
                rms_norm_in_place(cores, &mut in_place, &weight, 1e-5);
                assert_eq!(bits(&out), bits(&in_place));
                out
            });
            for (x, out) in x.chunks_exact(width).zip(normed.chunks_exact(width)) {
                let square = x.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>();
                let root = (square / f64::from(u16::try_from(width).unwrap()) + 1e-5).sqrt();
                for ((x, weight), out) in x.iter().zip(&weight).zip(out) {
                    let expected = f64::from(*x) / root * f64::from(*weight);
                    assert!((f64::from(*out) - expected).abs() < 1e-6, "{width}: {out} {expected}");
                }
            }
        }
    }

    #[test]
    fn pairs_are_turned_and_the_rest_of_a_head_is_not() {
        let (rows, width, head_size, pairs) = (200, 48, 24, 8);
        let x = values(rows * width);
        let angles: Vec<f32> = values(rows * pairs);
        for are_adjacent in [false, true] {
            let turns = Turns {
                cosines: angles.iter().map(|angle| angle.cos()).collect(),
                sines: angles.iter().map(|angle| angle.sin()).collect(),
                pairs,
                are_adjacent,
            };
            let turned = of_all(|cores| {
                let mut x = x.clone();
                rotate(cores, &mut x, width, head_size, &turns);
                x
            });
            for (at, value) in turned.iter().enumerate() {
                let (row, number) = (at / width, at % head_size);
                let (pair, is_second) = if are_adjacent {
                    (number / 2, number % 2 == 1)
                } else {
                    (number % pairs, number >= pairs)
                };
                let expected = if number >= 2 * pairs {
                    x[at]
                } else {
                    let distance = if are_adjacent { 1 } else { pairs };
                    let (sine, cosine) = angles[row * pairs + pair].sin_cos();
                    if is_second {
                        x[at - distance] * sine + x[at] * cosine
                    } else {
                        x[at] * cosine - x[at + distance] * sine
                    }
                };
                assert!((value - expected).abs() < 1e-6, "{are_adjacent} {at}");
            }
        }
    }

    #[test]
    fn sums_and_multiples_are_of_every_value() {
        let x = values(3 * TOGETHER + 5);
        let doubled = of_all(|cores| {
            let mut sum = x.clone();
            add(cores, &mut sum, &x);
            sum
        });
        let scaled = of_all(|cores| {
            let mut x = x.clone();
            scale(cores, &mut x, 2.0);
            x
        });
        assert_eq!(bits(&doubled), bits(&scaled));
        assert!(
            x.iter()
                .zip(&scaled)
                .all(|(x, scaled)| (2.0 * x).to_bits() == scaled.to_bits())
        );
    }
}
