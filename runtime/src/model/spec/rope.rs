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
    /// `YaRN`: as Llama 3, with bounds in turns over the original context, interpolated by the number of the pair.
    Yarn(Yarn),
    /// `LongRoPE`: one of two lists of divisors. Which one depends on the context that this process allows and on
    /// nothing else: a list that changed while a sequence grows would not fit the keys that are cached already.
    Long(Long),
}

/// The constants of `YaRN`.
#[derive(Debug, Clone, PartialEq)]
pub struct Yarn {
    /// The divisor of low frequencies.
    pub factor: f64,
    /// The context before stretching.
    pub original_context: f64,
    /// Pairs with more turns than this keep their frequency.
    pub fast: f64,
    /// Pairs with fewer turns than this are divided.
    pub slow: f64,
    /// Whether the bounds are rounded to whole pairs.
    pub truncate: bool,
    /// What turned pairs are multiplied with.
    pub magnitude: f64,
}

/// The constants of `LongRoPE`.
#[derive(Debug, Clone, PartialEq)]
pub struct Long {
    /// Divisors for contexts up to `original_context`.
    pub short: Vec<f32>,
    /// Divisors for longer contexts.
    pub long: Vec<f32>,
    /// The context before stretching.
    pub original_context: usize,
    /// What turned pairs are multiplied with, in either case.
    pub magnitude: f64,
}

impl Yarn {
    /// The magnitude when a file does not say it.
    pub fn default_magnitude(factor: f64) -> f64 {
        if factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 }
    }

    /// The number of the pair that turns `turns` times over the original context.
    fn pair_of(&self, turns: f64, rope: &RopeSpec) -> f64 {
        size(rope.dimensions) * (self.original_context / (turns * TAU)).ln() / (2.0 * rope.base.ln())
    }

    fn frequency(&self, pair: usize, frequency: f64, rope: &RopeSpec) -> f64 {
        let (low, high) = (self.pair_of(self.fast, rope), self.pair_of(self.slow, rope));
        let (low, high) = if self.truncate {
            (low.floor(), high.ceil())
        } else {
            (low, high)
        };
        let (low, high) = (low.max(0.0), high.min(size(rope.dimensions) - 1.0));
        let width = if high > low { high - low } else { 0.001 };
        let divided = ((size(pair) - low) / width).clamp(0.0, 1.0);
        frequency * (1.0 - divided + divided / self.factor)
    }
}

impl Long {
    /// The magnitude when a file does not say it, for a context that is `factor` times the original one.
    pub fn default_magnitude(factor: f64, original_context: usize) -> f64 {
        if factor > 1.0 {
            (1.0 + factor.ln() / size(original_context).ln()).sqrt()
        } else {
            1.0
        }
    }

    fn divisors(&self, context: usize) -> &[f32] {
        if context > self.original_context {
            &self.long
        } else {
            &self.short
        }
    }
}

impl RopeSpec {
    /// The frequency of every pair, for sequences of up to `context` tokens.
    pub fn table(&self, context: usize) -> Rope {
        let frequencies = (0..self.dimensions / 2).map(|pair| self.frequency(pair, context));
        let magnitude = match &self.scaling {
            RopeScaling::None | RopeScaling::Linear(_) | RopeScaling::Llama3 { .. } | RopeScaling::Divisors(_) => 1.0,
            RopeScaling::Yarn(yarn) => yarn.magnitude,
            RopeScaling::Long(long) => long.magnitude,
        };
        Rope {
            frequencies: frequencies.collect(),
            pairs: self.pairs,
            magnitude,
        }
    }

    fn frequency(&self, pair: usize, context: usize) -> f64 {
        let exponent = -2.0 * size(pair) / size(self.dimensions);
        let frequency = self.base.powf(exponent);
        match &self.scaling {
            RopeScaling::None => frequency,
            RopeScaling::Linear(factor) => frequency / factor,
            RopeScaling::Divisors(divisors) => frequency / f64::from(divisors[pair]),
            RopeScaling::Long(long) => frequency / f64::from(long.divisors(context)[pair]),
            RopeScaling::Yarn(yarn) => yarn.frequency(pair, frequency, self),
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

    /// Whether every list of divisors has a value above 0 for every pair.
    pub(super) fn has_valid_divisors(&self) -> bool {
        let is_valid = |divisors: &[f32]| {
            divisors.len() == self.dimensions / 2 && divisors.iter().all(|value| value.is_finite() && *value > 0.0)
        };
        match &self.scaling {
            RopeScaling::None | RopeScaling::Linear(_) | RopeScaling::Llama3 { .. } | RopeScaling::Yarn(_) => true,
            RopeScaling::Divisors(divisors) => is_valid(divisors),
            RopeScaling::Long(long) => is_valid(&long.short) && is_valid(&long.long),
        }
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "contexts and sizes of a head are far below 2^52"
)]
fn size(value: usize) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frequencies(scaling: RopeScaling, context: usize) -> Vec<f64> {
        let spec = RopeSpec {
            base: 500_000.0,
            dimensions: 128,
            pairs: RopePairs::Halves,
            scaling,
        };
        spec.table(context).frequencies
    }

    #[test]
    fn llama3_keeps_high_and_divides_low_frequencies() {
        let plain = frequencies(RopeScaling::None, 1);
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low: 1.0,
            high: 4.0,
            original_context: 8192.0,
        };
        let stretched = frequencies(scaling, 1);
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
        let plain = frequencies(RopeScaling::None, 1);
        let stretched = frequencies(rule, 1);
        #[expect(clippy::cast_possible_truncation, reason = "test data")]
        let divisors = plain
            .iter()
            .zip(&stretched)
            .map(|(plain, other)| (plain / other) as f32)
            .collect();
        let again = frequencies(RopeScaling::Divisors(divisors), 1);
        for (expected, got) in stretched.iter().zip(&again) {
            assert!((expected / got - 1.0).abs() < 1e-6);
        }
    }

    #[test]
    fn the_allowed_context_chooses_the_list_of_divisors() {
        let scaling = || {
            RopeScaling::Long(Long {
                short: vec![1.0; 64],
                long: vec![4.0; 64],
                original_context: 4096,
                magnitude: 1.19,
            })
        };
        let (short, long) = (frequencies(scaling(), 4096), frequencies(scaling(), 4097));
        assert!(
            short
                .iter()
                .zip(&long)
                .all(|(short, long)| (short / long - 4.0).abs() < 1e-12)
        );
        let magnitude = Long::default_magnitude(32.0, 4096);
        assert!((magnitude - 1.190_238).abs() < 1e-6, "{magnitude}");
    }

    #[test]
    fn yarn_keeps_fast_and_divides_slow_pairs() {
        let yarn = Yarn {
            factor: 4.0,
            original_context: 32_768.0,
            fast: 32.0,
            slow: 1.0,
            truncate: true,
            magnitude: Yarn::default_magnitude(4.0),
        };
        assert!((yarn.magnitude - 1.138_629).abs() < 1e-6);
        let plain = frequencies(RopeScaling::None, 1);
        let stretched = frequencies(RopeScaling::Yarn(yarn), 1);
        let ratios: Vec<f64> = plain
            .iter()
            .zip(&stretched)
            .map(|(plain, other)| plain / other)
            .collect();
        assert!((ratios[0] - 1.0).abs() < 1e-12 && (ratios[63] - 4.0).abs() < 1e-12);
        assert!(ratios.windows(2).all(|pair| pair[0] <= pair[1]));
        assert!(ratios.iter().any(|&ratio| ratio > 1.5 && ratio < 3.5));
    }
}
