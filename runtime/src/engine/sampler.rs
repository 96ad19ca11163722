//! From logits to a token. Pure: the same logits, parameters, seed and position give the same token.
//!
//! Order: bias → grammar → penalties → temperature → top-k → min-p → top-p → draw. The vocabulary is never sorted as a whole.

use crate::grammar::Mask;
use rand::Rng as _;
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::collections::HashMap;

/// What a request asks of the sampler.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0 is greedy: the likeliest token, and the lowest one of equals.
    pub temperature: f32,
    /// Draw from this many of the likeliest tokens; 0 is all.
    pub top_k: usize,
    /// Draw from the likeliest tokens that have this probability together; 1 is all.
    pub top_p: f32,
    /// Draw from tokens with at least this part of the likeliest one's probability; 0 is all.
    pub min_p: f32,
    /// Taken from the logit of a token once per time that it was generated.
    pub frequency_penalty: f32,
    /// Taken from the logit of a token that was generated.
    pub presence_penalty: f32,
    /// Divides positive and multiplies negative logits of tokens in prompt and answer; 1 is none.
    pub repetition_penalty: f32,
    /// Which stream of random numbers is used.
    pub seed: u64,
    /// Added to the logits of tokens; one that is not in the vocabulary has no effect.
    pub bias: Vec<(u32, f32)>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
            bias: Vec::new(),
        }
    }
}

/// A token and its logit; ordered by logit, and by the lower id among equals, so that every order is total.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Candidate {
    token: u32,
    logit: f32,
}

impl Eq for Candidate {}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.logit.total_cmp(&other.logit).then(other.token.cmp(&self.token))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Draws the tokens of one request.
#[derive(Debug, Clone)]
pub struct Sampler {
    parameters: Sampling,
    /// How often each token was generated; empty unless a penalty needs it.
    generated: HashMap<u32, u32>,
    /// Tokens of the prompt, for the repetition penalty; empty unless it needs them.
    prompt: Vec<u32>,
    drawn: u64,
}

impl Sampler {
    /// A sampler for a request with this prompt.
    pub fn new(parameters: Sampling, prompt: &[u32]) -> Self {
        let mut prompt = if is_neutral(parameters.repetition_penalty, 1.0) {
            Vec::new()
        } else {
            prompt.to_vec()
        };
        prompt.sort_unstable();
        prompt.dedup();
        Self {
            parameters,
            generated: HashMap::new(),
            prompt,
            drawn: 0,
        }
    }

    /// The same, with the seed that many after this one's. To be used before anything is drawn.
    #[must_use]
    pub fn with_seed_after(&self, number: u64) -> Self {
        let mut other = self.clone();
        other.parameters.seed = other.parameters.seed.wrapping_add(number);
        other
    }

    /// The next token, of those that a mask allows. `None` when a logit is not a number or all that are allowed are -∞,
    /// which no sound model gives.
    pub fn sample(&mut self, logits: &[f32], mask: Option<&Mask>) -> Option<u32> {
        let mut candidates = Vec::with_capacity(logits.len());
        for (token, &logit) in (0_u32..).zip(logits) {
            if logit.is_nan() || logit == f32::INFINITY {
                return None;
            }
            candidates.push(Candidate { token, logit });
        }
        for &(token, bias) in &self.parameters.bias {
            if let Some(candidate) = candidates.get_mut(token as usize) {
                candidate.logit += bias;
            }
        }
        if let Some(mask) = mask {
            for candidate in candidates.iter_mut().filter(|candidate| !mask.allows(candidate.token)) {
                candidate.logit = f32::NEG_INFINITY;
            }
        }
        self.penalise(&mut candidates);
        let token = if self.parameters.temperature <= 0.0 {
            candidates.iter().max().filter(|best| best.logit.is_finite())?.token
        } else {
            self.draw(candidates)?
        };
        self.drawn += 1;
        if self.has_penalty() {
            *self.generated.entry(token).or_default() += 1;
        }
        Some(token)
    }

    fn has_penalty(&self) -> bool {
        let Sampling {
            frequency_penalty,
            presence_penalty,
            repetition_penalty,
            ..
        } = self.parameters;
        !is_neutral(frequency_penalty, 0.0)
            || !is_neutral(presence_penalty, 0.0)
            || !is_neutral(repetition_penalty, 1.0)
    }

    fn penalise(&self, candidates: &mut [Candidate]) {
        let parameters = &self.parameters;
        let repeated = self.prompt.iter().filter(|token| !self.generated.contains_key(token));
        for &token in repeated.chain(self.generated.keys()) {
            let Some(candidate) = candidates.get_mut(token as usize) else {
                continue;
            };
            candidate.logit = if candidate.logit > 0.0 {
                candidate.logit / parameters.repetition_penalty
            } else {
                candidate.logit * parameters.repetition_penalty
            };
        }
        for (&token, &count) in &self.generated {
            #[expect(clippy::cast_precision_loss, reason = "no answer has 2^24 tokens")]
            let count = count as f32;
            if let Some(candidate) = candidates.get_mut(token as usize) {
                candidate.logit -= parameters.presence_penalty + count * parameters.frequency_penalty;
            }
        }
    }

    fn draw(&self, mut candidates: Vec<Candidate>) -> Option<u32> {
        let Sampling {
            temperature,
            top_k,
            top_p,
            min_p,
            ..
        } = self.parameters;
        if top_k > 0 && top_k < candidates.len() {
            candidates.select_nth_unstable_by(top_k - 1, |one, other| other.cmp(one));
            candidates.truncate(top_k);
        }
        let best = candidates.iter().max().copied().filter(|best| best.logit.is_finite())?;
        let weight = |candidate: &Candidate| {
            ((f64::from(candidate.logit) - f64::from(best.logit)) / f64::from(temperature)).exp()
        };
        if min_p > 0.0 {
            candidates.retain(|candidate| weight(candidate) >= f64::from(min_p));
        }
        if top_p < 1.0 {
            candidates = nucleus(candidates, f64::from(top_p), &weight);
        } else {
            // One order of summation, whatever the selection above did to it.
            candidates.sort_unstable_by_key(|candidate| candidate.token);
        }
        let total: f64 = candidates.iter().map(&weight).sum();
        let mut left = self.random() * total;
        for candidate in &candidates {
            left -= weight(candidate);
            if left < 0.0 {
                return Some(candidate.token);
            }
        }
        // Rounding may leave a trace of mass behind the last one.
        Some(best.token)
    }

    /// A number in 0..1 that depends on the seed and on how many tokens were drawn before, and on nothing else.
    fn random(&self) -> f64 {
        /// Words of 32 bits that one draw uses.
        const WORDS: u128 = 2;
        let mut generator = ChaCha8Rng::seed_from_u64(self.parameters.seed);
        generator.set_word_pos(u128::from(self.drawn) * WORDS);
        #[expect(clippy::cast_precision_loss, reason = "53 bits and a power of two fit exactly")]
        let (numerator, denominator) = ((generator.next_u64() >> 11) as f64, (1_u64 << 53) as f64);
        numerator / denominator
    }
}

/// Whether a parameter has the value with which it does nothing. It was parsed from text, so equality is exact.
fn is_neutral(value: f32, neutral: f32) -> bool {
    (value - neutral).abs() < f32::EPSILON
}

/// The likeliest candidates that have the part `top_p` of all mass together; at least one. Descending.
fn nucleus(candidates: Vec<Candidate>, top_p: f64, weight: &dyn Fn(&Candidate) -> f64) -> Vec<Candidate> {
    let mut heap = BinaryHeap::from(candidates);
    let mut in_order = heap.as_slice().to_vec();
    in_order.sort_unstable_by_key(|candidate| candidate.token);
    let wanted = top_p * in_order.iter().map(weight).sum::<f64>();
    let mut kept = Vec::new();
    let mut mass = 0.0;
    while let Some(candidate) = heap.pop() {
        mass += weight(&candidate);
        kept.push(candidate);
        if mass >= wanted {
            break;
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampling() -> Sampling {
        Sampling {
            seed: 7,
            ..Sampling::default()
        }
    }

    fn tokens(parameters: &Sampling, logits: &[f32], count: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(parameters.clone(), &[]);
        (0..count).map(|_| sampler.sample(logits, None).unwrap()).collect()
    }

    #[test]
    fn greedy_takes_the_likeliest_and_the_lowest_of_equals() {
        let greedy = Sampling {
            temperature: 0.0,
            ..sampling()
        };
        assert_eq!(tokens(&greedy, &[0.1, 3.0, -1.0, 3.0], 2), [1, 1]);
    }

    #[test]
    fn same_seed_gives_the_same_tokens_and_another_seed_others() {
        let logits: Vec<f32> = (0..50_u8).map(|token| f32::from(token % 7) * 0.3).collect();
        let again = tokens(&sampling(), &logits, 40);
        assert_eq!(tokens(&sampling(), &logits, 40), again);
        let other = Sampling { seed: 8, ..sampling() };
        assert_ne!(tokens(&other, &logits, 40), again);
    }

    #[test]
    fn draw_depends_on_the_position_and_not_on_what_was_drawn_before() {
        let logits = [0.0; 100];
        let mut one = Sampler::new(sampling(), &[]);
        let mut other = Sampler::new(sampling(), &[]);
        one.sample(&logits, None).unwrap();
        let mut peaked = [0.0; 100];
        peaked[3] = 1000.0;
        other.sample(&peaked, None).unwrap();
        assert_eq!(one.sample(&logits, None), other.sample(&logits, None));
    }

    #[test]
    fn frequencies_follow_the_probabilities() {
        let logits = [0.0_f32, 3.0_f32.ln(), f32::NEG_INFINITY];
        let drawn = tokens(&sampling(), &logits, 4000);
        let ones = drawn.iter().filter(|token| **token == 1).count();
        assert!((2850..3150).contains(&ones), "{ones} of 4000, expected 3000");
        assert!(!drawn.contains(&2));
    }

    #[test]
    fn top_k_top_p_and_min_p_keep_what_they_say() {
        // Probabilities 1/2, 1/4, 1/8, 1/8.
        let logits = [4.0_f32.ln(), 2.0_f32.ln(), 0.0, 0.0];
        let kept = |parameters: Sampling| {
            let mut kept = tokens(&parameters, &logits, 300);
            kept.sort_unstable();
            kept.dedup();
            kept
        };
        assert_eq!(kept(Sampling { top_k: 2, ..sampling() }), [0, 1]);
        assert_eq!(kept(Sampling { top_k: 3, ..sampling() }), [0, 1, 2]);
        assert_eq!(
            kept(Sampling {
                top_p: 0.5,
                ..sampling()
            }),
            [0]
        );
        assert_eq!(
            kept(Sampling {
                top_p: 0.6,
                ..sampling()
            }),
            [0, 1]
        );
        assert_eq!(
            kept(Sampling {
                top_p: 0.0,
                ..sampling()
            }),
            [0]
        );
        assert_eq!(
            kept(Sampling {
                min_p: 0.4,
                ..sampling()
            }),
            [0, 1]
        );
        assert_eq!(
            kept(Sampling {
                min_p: 1.0,
                ..sampling()
            }),
            [0]
        );
        assert_eq!(kept(sampling()), [0, 1, 2, 3]);
    }

    #[test]
    fn bias_moves_tokens_up_and_down() {
        let greedy = |bias: &[(u32, f32)]| {
            let parameters = Sampling {
                temperature: 0.0,
                bias: bias.to_vec(),
                ..sampling()
            };
            tokens(&parameters, &[1.0, 0.9, -5.0], 1)[0]
        };
        assert_eq!(greedy(&[]), 0);
        assert_eq!(greedy(&[(0, -100.0)]), 1);
        assert_eq!(greedy(&[(2, 7.0), (999, 100.0)]), 2);
    }

    #[test]
    fn penalties_move_away_from_what_was_said() {
        let logits = [1.0, 0.9, -5.0];
        let greedy = |parameters: Sampling| {
            let greedy = Sampling {
                temperature: 0.0,
                ..parameters
            };
            tokens(&greedy, &logits, 3)
        };
        let presence = Sampling {
            presence_penalty: 0.5,
            ..sampling()
        };
        assert_eq!(greedy(presence), [0, 1, 0]);
        let frequency = Sampling {
            frequency_penalty: 0.3,
            ..sampling()
        };
        assert_eq!(greedy(frequency), [0, 1, 0]);
        let mut repetition = Sampler::new(
            Sampling {
                temperature: 0.0,
                repetition_penalty: 2.0,
                ..sampling()
            },
            &[0],
        );
        assert_eq!(repetition.sample(&logits, None), Some(1));
    }

    #[test]
    fn logits_that_are_no_numbers_give_no_token() {
        for bad in [f32::NAN, f32::INFINITY] {
            assert_eq!(Sampler::new(sampling(), &[]).sample(&[0.0, bad], None), None);
        }
        assert_eq!(
            Sampler::new(sampling(), &[]).sample(&[f32::NEG_INFINITY; 3], None),
            None
        );
        assert_eq!(Sampler::new(sampling(), &[]).sample(&[], None), None);
    }
}
