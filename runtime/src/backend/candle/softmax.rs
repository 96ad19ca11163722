//! The exponentials of attention: a running softmax over scores that come in tiles.
//!
//! The functions are written so that the compiler makes vectors of them: several sums beside each other, no branches.

use super::super::AttentionShape;
use super::vectors::widest;

const LANES: usize = 16;

/// The softmax of one query, whose scores come tile by tile: what was mixed so far is scaled down whenever a larger score
/// is met (the online softmax of Milakov and Gimelshein, arXiv:1805.02867).
#[derive(Debug, Clone, Copy)]
pub(super) struct Softmax {
    /// The largest score.
    largest: f32,
    /// The sum of all weights, relative to that score.
    sum: f32,
}

impl Softmax {
    /// Before the first score.
    pub(super) const NOTHING: Self = Self {
        largest: f32::NEG_INFINITY,
        sum: 0.0,
    };

    /// Turns the scores of a tile, whose first key is at `first`, into weights for the query at `position`; keys that it
    /// does not see get 0. Returns what the values that were mixed before are to be multiplied with.
    pub(super) fn weigh(&mut self, scores: &mut [f32], first: usize, position: usize, shape: AttentionShape) -> f32 {
        let seen_to = (position + 1).saturating_sub(first).min(scores.len());
        let seen_from = shape.hidden_keys(position).saturating_sub(first).min(seen_to);
        scores[..seen_from].fill(0.0);
        scores[seen_to..].fill(0.0);
        let seen = &mut scores[seen_from..seen_to];
        if seen.is_empty() {
            return 1.0;
        }
        widest(
            #[inline(always)]
            || self.weigh_seen(seen, shape),
        )
    }

    #[expect(clippy::inline_always, reason = "it must be built for the processor's vector width")]
    #[inline(always)]
    fn weigh_seen(&mut self, scores: &mut [f32], shape: AttentionShape) -> f32 {
        for score in scores.iter_mut() {
            *score *= shape.scale;
        }
        if let Some(cap) = shape.soft_cap {
            for score in scores.iter_mut() {
                *score = cap * (*score / cap).tanh();
            }
        }
        let largest = largest(scores).max(self.largest);
        let shrink = if self.largest < largest {
            exp(self.largest - largest)
        } else {
            1.0
        };
        self.largest = largest;
        self.sum = self.sum * shrink + exponentials(scores, largest);
        shrink
    }

    /// Takes the softmax of the same query over other keys in. Returns what the values that were mixed by each of them
    /// are to be multiplied with.
    pub(super) fn join(&mut self, other: Self) -> (f32, f32) {
        let largest = self.largest.max(other.largest);
        let factor = |one: Self| {
            if one.sum == 0.0 {
                0.0
            } else {
                exp(one.largest - largest)
            }
        };
        let factors = (factor(*self), factor(other));
        self.sum = self.sum * factors.0 + other.sum * factors.1;
        self.largest = largest;
        factors
    }

    /// What was mixed is to be multiplied with this in the end.
    pub(super) fn share(self) -> f32 {
        1.0 / self.sum
    }
}

#[expect(clippy::inline_always, reason = "it must be built for the processor's vector width")]
#[inline(always)]
fn largest(values: &[f32]) -> f32 {
    let larger = |one: f32, other: f32| if other > one { other } else { one };
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, *value);
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, larger)
}

/// Turns values into `exp(value - largest)`. Returns their sum.
#[expect(clippy::inline_always, reason = "it must be built for the processor's vector width")]
#[inline(always)]
fn exponentials(values: &mut [f32], largest: f32) -> f32 {
    let (chunks, rest) = values.as_chunks_mut::<LANES>();
    let mut sums = [0.0; LANES];
    for chunk in chunks {
        for (value, sum) in chunk.iter_mut().zip(&mut sums) {
            *value = exp(*value - largest);
            *sum += *value;
        }
    }
    for value in rest.iter_mut() {
        *value = exp(*value - largest);
    }
    sums.iter().chain(&*rest).sum()
}

/// The exponential, to within 2 units of the last place: 2^n times a polynomial of what is left after whole multiples of
/// ln 2 (the constants are those of `expf` of the Cephes library). Values that f32 cannot hold become the nearest that it
/// can; what is not a number stays so.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    const LEAST: f32 = -87.0;
    const MOST: f32 = 88.0;
    /// Added and subtracted, it rounds to a whole number: 1.5 * 2^23.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = if x < LEAST { LEAST } else { x };
    let x = if x > MOST { MOST } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let whole = shifted - ROUND;
    let r = x - whole * LN_2_HIGH - whole * LN_2_LOW;
    let mut p = 1.987_569_1e-4;
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
        p = p * r + c;
    }
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    (p * r * r + r + 1.0) * power
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
        assert!(exp(-1e30) < 1e-37 && exp(f32::NEG_INFINITY) < 1e-37);
        assert!(exp(1e30) > 1e38 && exp(1e30).is_finite());
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(exp(0.0).to_bits(), 1.0_f32.to_bits());
    }

    #[test]
    fn tiles_weigh_as_the_whole() {
        let shape = AttentionShape {
            heads: 1,
            kv_heads: 1,
            head_size: 1,
            scale: 0.5,
            soft_cap: None,
            window: None,
            rope: None,
        };
        let scores: Vec<f32> = (0..50_u16).map(|at| f32::from(at * 7 % 31) - 20.0).collect();
        let mut mixed = 0.0;
        let mut softmax = Softmax::NOTHING;
        let mut values = (0_u16..).map(f32::from);
        for (first, tile) in (0..).step_by(17).zip(scores.chunks(17)) {
            let mut weights = tile.to_vec();
            let shrink = softmax.weigh(&mut weights, first, 44, shape);
            let tile: f32 = weights
                .iter()
                .zip(&mut values)
                .map(|(weight, value)| weight * value)
                .sum();
            mixed = mixed * shrink + tile;
        }
        let seen = || scores[..45].iter().map(|score| (score * 0.5).exp()).zip(0_u16..);
        let sum: f32 = seen().map(|(weight, _)| weight).sum();
        let expected: f32 = seen().map(|(weight, at)| weight / sum * f32::from(at)).sum();
        assert!((mixed * softmax.share() - expected).abs() < 1e-4);
    }

    #[test]
    fn score_that_is_no_number_is_not_hidden() {
        let mut values = [f32::NAN, 1.0, 2.0];
        assert!(exponentials(&mut values, 2.0).is_nan());
    }
}
