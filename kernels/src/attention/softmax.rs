//! The exponentials of attention.

use crate::TILE;
use crate::instructions::Vectors;
use crate::math::{across, exp, tanh};
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
    pub(super) fn weigh<V: Vectors>(vectors: V, scores: &mut [f32], seen: Range<usize>, soft_cap: Option<f32>) -> Self {
        if let Some(cap) = soft_cap {
            for chunk in scores.as_chunks_mut().0 {
                let share = vectors.divide(vectors.read(chunk), vectors.splat(cap));
                vectors.write(vectors.multiply(tanh(vectors, share), vectors.splat(cap)), chunk);
            }
        }
        for score in &mut scores[..seen.start] {
            *score = f32::NEG_INFINITY;
        }
        for score in &mut scores[seen.end..] {
            *score = f32::NEG_INFINITY;
        }
        let chunks = scores.as_chunks_mut::<TILE>().0;
        let mut largest = vectors.splat(f32::NEG_INFINITY);
        for chunk in &*chunks {
            // What is not a number is not larger than another.
            largest = vectors.larger(vectors.read(chunk), largest);
        }
        let largest = vectors.largest(largest);
        let mut sums = vectors.splat(0.0);
        for chunk in chunks {
            let weight = exp(vectors, vectors.subtract(vectors.read(chunk), vectors.splat(largest)));
            sums = vectors.add(sums, weight);
            vectors.write(weight, chunk);
        }
        let mut lanes = [0.0; TILE];
        vectors.write(sums, &mut lanes);
        Self {
            largest,
            sum: across(lanes),
        }
    }

    /// Takes in what another span gave, and what was mixed by its weights.
    #[inline(always)]
    pub(super) fn join<V: Vectors>(&mut self, vectors: V, mixed: &mut [f32], other: Self, of_other: &[f32]) {
        if other.is_nothing() {
            return;
        }
        if self.is_nothing() {
            *self = other;
            mixed.copy_from_slice(of_other);
            return;
        }
        let largest = if other.largest > self.largest {
            other.largest
        } else {
            self.largest
        };
        let mut factors = [0.0; TILE];
        (factors[0], factors[1]) = (self.largest - largest, other.largest - largest);
        vectors.write(exp(vectors, vectors.read(&factors)), &mut factors);
        for (value, other) in mixed.iter_mut().zip(of_other) {
            *value = *value * factors[0] + other * factors[1];
        }
        self.sum = self.sum * factors[0] + other.sum * factors[1];
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
    use crate::Level;
    use crate::instructions::Work;

    struct Weigh<'a>(&'a mut [f32], Range<usize>, Option<f32>);

    impl Work for Weigh<'_> {
        type Output = Softmax;

        #[inline(always)]
        fn run<V: Vectors>(self, vectors: V) -> Softmax {
            Softmax::weigh(vectors, self.0, self.1, self.2)
        }
    }

    #[test]
    fn score_that_is_no_number_is_not_hidden() {
        for level in Level::available() {
            let mut scores = [1.0; 32];
            scores[3] = f32::NAN;
            assert!(level.run(Weigh(&mut scores, 0..32, None)).sum.is_nan());
        }
    }

    #[test]
    fn keys_that_are_not_seen_have_no_weight_whatever_their_score() {
        for level in Level::available() {
            let mut scores = [1.0; 32];
            scores[0] = f32::NAN;
            scores[31] = 1e30;
            let softmax = level.run(Weigh(&mut scores, 1..31, Some(5.0)));
            assert_eq!(softmax.sum.to_bits(), 30.0_f32.to_bits());
            assert_eq!([scores[0], scores[31]].map(f32::to_bits), [0, 0]);
        }
    }
}
