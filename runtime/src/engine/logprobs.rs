//! How likely tokens were. Pure.

/// A token and the logarithm of its probability.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScoredToken {
    /// The token.
    pub token: u32,
    /// The natural logarithm of its probability by the model: before bias, penalties, temperature and any cut.
    pub logprob: f32,
}

/// A token of an answer, and what else the model held likely in its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Logprobs {
    /// The token of the answer.
    pub drawn: ScoredToken,
    /// The likeliest tokens, the likeliest first; as many as were asked for. The one of the answer need not be among them.
    pub likeliest: Vec<ScoredToken>,
}

impl Logprobs {
    /// Of a token that was drawn from these logits, with as many of the likeliest ones.
    pub fn new(logits: &[f32], drawn: u32, likeliest: usize) -> Self {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mass: f64 = logits.iter().map(|logit| f64::from(logit - largest).exp()).sum();
        let log_mass = f64::from(largest) + mass.ln();
        #[expect(clippy::cast_possible_truncation, reason = "was computed from f32")]
        let scored = |token: u32| ScoredToken {
            token,
            logprob: logits
                .get(token as usize)
                .map_or(f32::NEG_INFINITY, |logit| (f64::from(*logit) - log_mass) as f32),
        };
        Self {
            drawn: scored(drawn),
            likeliest: most(logits, likeliest).into_iter().map(scored).collect(),
        }
    }
}

/// The tokens with the largest logits, the largest first and the lowest of equals first.
fn most(logits: &[f32], count: usize) -> Vec<u32> {
    let mut tokens: Vec<u32> = (0..).zip(logits).map(|(token, _)| token).collect();
    let count = count.min(tokens.len());
    let order = |one: &u32, other: &u32| {
        logits[*other as usize]
            .total_cmp(&logits[*one as usize])
            .then(one.cmp(other))
    };
    if count > 0 && count < tokens.len() {
        tokens.select_nth_unstable_by(count - 1, order);
    }
    tokens.truncate(count);
    tokens.sort_unstable_by(order);
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_are_those_of_the_logits() {
        // 1/2, 1/4, 1/8, 1/8.
        let logits = [4.0_f32.ln(), 2.0_f32.ln(), 0.0, 0.0].map(|logit| logit + 50.0);
        let got = Logprobs::new(&logits, 2, 3);
        let near = |scored: ScoredToken, token: u32, probability: f32| {
            assert_eq!(scored.token, token);
            assert!((scored.logprob.exp() - probability).abs() < 1e-4, "{scored:?}");
        };
        near(got.drawn, 2, 0.125);
        assert_eq!(got.likeliest.len(), 3);
        for (scored, (token, probability)) in got.likeliest.into_iter().zip([(0, 0.5), (1, 0.25), (2, 0.125)]) {
            near(scored, token, probability);
        }
        assert_eq!(Logprobs::new(&logits, 0, 0).likeliest, []);
        assert_eq!(Logprobs::new(&logits, 0, 20).likeliest.len(), 4);
    }

    #[test]
    fn what_cannot_be_drawn_has_no_probability() {
        let got = Logprobs::new(&[0.0, f32::NEG_INFINITY], 0, 2);
        assert!(got.drawn.logprob.abs() < 1e-6);
        assert!(got.likeliest[1].logprob.is_infinite());
    }
}
