//! The exponentials of attention.

use crate::math::{LANES, across, exp, tanh};
use std::ops::Range;

/// What a query's weights have in common, for the keys that it has seen so far.
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

    /// Turns the scores of a span into weights; keys that are not `seen`, of which there is one at least, get 0.
    #[inline(always)]
    pub(super) fn weigh(scores: &mut [f32], seen: Range<usize>, soft_cap: Option<f32>) -> Self {
        if let Some(cap) = soft_cap {
            for score in scores.iter_mut() {
                *score = cap * tanh(*score / cap);
            }
        }
        for score in &mut scores[..seen.start] {
            *score = f32::NEG_INFINITY;
        }
        for score in &mut scores[seen.end..] {
            *score = f32::NEG_INFINITY;
        }
        let chunks = scores.as_chunks_mut::<LANES>().0;
        let mut lanes = [f32::NEG_INFINITY; LANES];
        for chunk in &*chunks {
            for (lane, score) in lanes.iter_mut().zip(chunk) {
                *lane = if *score > *lane { *score } else { *lane };
            }
        }
        let mut width = LANES / 2;
        while width > 0 {
            for at in 0..width {
                let (one, other) = (lanes[at], lanes[at + width]);
                lanes[at] = if other > one { other } else { one };
            }
            width /= 2;
        }
        let largest = lanes[0];
        let mut sums = [0.0; LANES];
        for chunk in chunks {
            for (score, sum) in chunk.iter_mut().zip(&mut sums) {
                *score = exp(*score - largest);
                *sum += *score;
            }
        }
        Self {
            largest,
            sum: across(sums),
        }
    }

    /// Takes in what another span gave, and what was mixed by its weights.
    #[inline(always)]
    pub(super) fn join(&mut self, mixed: &mut [f32], other: Self, of_other: &[f32]) {
        if other.is_nothing() {
            return;
        }
        if self.is_nothing() {
            *self = other;
            mixed.copy_from_slice(of_other);
            return;
        }
        let largest = if other.largest > self.largest { other.largest } else { self.largest };
        let (factor, factor_of_other) = (exp(self.largest - largest), exp(other.largest - largest));
        for (value, other) in mixed.iter_mut().zip(of_other) {
            *value = *value * factor + other * factor_of_other;
        }
        self.sum = self.sum * factor + other.sum * factor_of_other;
        self.largest = largest;
    }

    fn is_nothing(self) -> bool {
        self.sum.to_bits() == 0
    }

    /// What was mixed, divided by the sum of the weights.
    #[inline(always)]
    pub(super) fn finish(self, mixed: &[f32], out: &mut [f32]) {
        let share = 1.0 / self.sum;
        for (out, value) in out.iter_mut().zip(mixed) {
            *out = value * share;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn score_that_is_no_number_is_not_hidden() {
        let mut scores = [1.0; 32];
        scores[3] = f32::NAN;
        assert!(Softmax::weigh(&mut scores, 0..32, None).sum.is_nan());
    }

    #[test]
    fn keys_that_are_not_seen_have_no_weight_whatever_their_score() {
        let mut scores = [1.0; 32];
        scores[0] = f32::NAN;
        scores[31] = 1e30;
        let softmax = Softmax::weigh(&mut scores, 1..31, Some(5.0));
        assert_eq!(softmax.sum.to_bits(), 30.0_f32.to_bits());
        assert_eq!([scores[0], scores[31]].map(f32::to_bits), [0, 0]);
    }
}
