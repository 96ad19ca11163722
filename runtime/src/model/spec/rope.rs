//! Rotary position embeddings and the ways in which models stretch them.

use crate::backend::{Rope, RopePairs};
use std::f64::consts::TAU;

/// A rotary position embedding as a model's files describe it.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeSpec {
    /// The base of the frequencies.
    pub base: f64,
    /// How many values of a head are turned; even.
    pub dimensions: usize,
    /// Which values form pairs.
    pub pairs: RopePairs,
    /// How positions beyond the original context are reached.
    pub scaling: RopeScaling,
}

/// How frequencies are changed for a longer context.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All frequencies are divided by a factor.
    Linear(f64),
    /// Llama 3: low frequencies are divided, high ones kept, those between interpolated.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `original_context / low` are low frequencies.
        low: f64,
        /// Wavelengths below `original_context / high` are high frequencies.
        high: f64,
        /// The context before stretching.
        original_context: f64,
    },
    /// A divisor for every pair, as GGUF files carry it (`rope_freqs.weight`).
    Divisors(Vec<f32>),
}

impl RopeSpec {
    /// The frequency of every pair.
    pub fn table(&self) -> Rope {
        let pairs = self.dimensions / 2;
        let frequencies = (0..pairs).map(|pair| self.frequency(pair)).collect();
        Rope {
            frequencies,
            pairs: self.pairs,
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "sizes of a head are small")]
    fn frequency(&self, pair: usize) -> f64 {
        let exponent = -2.0 * pair as f64 / self.dimensions as f64;
        let frequency = self.base.powf(exponent);
        match &self.scaling {
            RopeScaling::None => frequency,
            RopeScaling::Linear(factor) => frequency / factor,
            RopeScaling::Divisors(divisors) => frequency / f64::from(divisors[pair]),
            &RopeScaling::Llama3 {
                factor,
                low,
                high,
                original_context,
            } => {
                let turns = original_context * frequency / TAU;
                let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                frequency * (kept + (1.0 - kept) / factor)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(scaling: RopeScaling) -> RopeSpec {
        RopeSpec {
            base: 500_000.0,
            dimensions: 128,
            pairs: RopePairs::Halves,
            scaling,
        }
    }

    #[test]
    fn llama3_keeps_high_and_divides_low_frequencies() {
        let plain = spec(RopeScaling::None).table().frequencies;
        let stretched = spec(RopeScaling::Llama3 {
            factor: 8.0,
            low: 1.0,
            high: 4.0,
            original_context: 8192.0,
        })
        .table()
        .frequencies;
        let ratio = |pair: usize| plain[pair] / stretched[pair];
        assert!((ratio(0) - 1.0).abs() < 1e-12);
        assert!((ratio(63) - 8.0).abs() < 1e-12);
        // The first divisors that are neither 1 nor 8 in the published `rope_freqs.weight` of Llama 3.1.
        let between: Vec<f64> = (0..64)
            .map(ratio)
            .filter(|&ratio| ratio > 1.0 && ratio < 8.0 - 1e-9)
            .collect();
        assert!(between.windows(2).all(|pair| pair[0] < pair[1]), "{between:?}");
        assert!((5..=8).contains(&between.len()), "{between:?}");
    }

    #[test]
    fn divisors_do_the_same_as_the_rule_they_were_made_by() {
        let rule = RopeScaling::Llama3 {
            factor: 32.0,
            low: 1.0,
            high: 4.0,
            original_context: 8192.0,
        };
        let plain = spec(RopeScaling::None).table().frequencies;
        let stretched = spec(rule).table().frequencies;
        #[expect(clippy::cast_possible_truncation, reason = "test data")]
        let divisors = plain
            .iter()
            .zip(&stretched)
            .map(|(plain, other)| (plain / other) as f32)
            .collect();
        let again = spec(RopeScaling::Divisors(divisors)).table().frequencies;
        for (expected, got) in stretched.iter().zip(&again) {
            assert!((expected / got - 1.0).abs() < 1e-6);
        }
    }
}
