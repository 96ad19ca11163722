//! Before the first request: measures the speeds of one stream, and checks that the model gives numbers.

use super::{Sequences, StepModel};
use crate::model::{Logits, LogitsWanted, ModelError};
use crate::status::Performance;
use std::time::{Duration, Instant};

/// Tokens of the measured prompt.
const PREFILL: usize = 32;
/// Tokens that are generated.
const DECODE: usize = 8;

/// Why a model that was loaded cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum WarmUpError {
    /// A step failed.
    #[error("the self-test failed: {0}")]
    Model(#[from] ModelError),
    /// The output is not finite.
    #[error("the self-test failed: the model's output has values that are not finite; the weights are damaged")]
    NotFinite,
}

/// Runs a short prompt through the model, twice: the first pass prepares what is prepared lazily, the second is
/// measured. `prompt` is repeated as needed; `context` bounds all of it.
pub fn warm_up(model: &mut impl StepModel, prompt: &[u32], context: usize) -> Result<Performance, WarmUpError> {
    let decode = DECODE.min(context / 2);
    let prefill = PREFILL.min(context - decode).max(1);
    let tokens: Vec<u32> = prompt.iter().copied().cycle().take(prefill).collect();
    pass(model, &tokens[..prefill.min(8)], decode.min(1))?;
    let (prefill_time, decode_time) = pass(model, &tokens, decode)?;
    Ok(Performance {
        prefill_tokens_per_second: rate(tokens.len(), prefill_time),
        decode_tokens_per_second: rate(decode, decode_time),
    })
}

/// Computes `prompt` and then `count` tokens greedily. Returns how long either took.
fn pass(model: &mut impl StepModel, prompt: &[u32], count: usize) -> Result<(Duration, Duration), WarmUpError> {
    let mut sequences = Sequences::new(model);
    let sequence = sequences.add();
    let began = Instant::now();
    let mut next = greedy(&sequences.forward(&[(sequence, prompt, LogitsWanted::Last)])?)?;
    let prefill = began.elapsed();
    let began = Instant::now();
    for _ in 0..count {
        next = greedy(&sequences.forward(&[(sequence, &[next], LogitsWanted::Last)])?)?;
    }
    Ok((prefill, began.elapsed()))
}

fn greedy(logits: &Logits) -> Result<u32, WarmUpError> {
    let row = logits.row(0);
    if row.iter().any(|logit| !logit.is_finite()) {
        return Err(WarmUpError::NotFinite);
    }
    let best = (0_u32..).zip(row).max_by(|(_, one), (_, other)| one.total_cmp(other));
    best.map(|(token, _)| token).ok_or(WarmUpError::NotFinite)
}

fn rate(tokens: usize, time: Duration) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
    let tokens = tokens as f64;
    (tokens / time.as_secs_f64().max(1e-9) * 10.0).round() / 10.0
}
