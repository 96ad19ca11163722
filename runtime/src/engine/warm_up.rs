//! Before the first request: measures the speeds of one stream, and checks that the model gives numbers.

use super::StepModel;
use crate::model::{Logits, LogitsWanted, ModelError, SequenceId, Span, StepBatch};
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
    let sequence = model.add_sequence();
    let result = (|| {
        let began = Instant::now();
        let mut next = greedy(&forward(model, sequence, prompt, 0)?)?;
        let prefill = began.elapsed();
        let began = Instant::now();
        for step in 0..count {
            next = greedy(&forward(model, sequence, &[next], prompt.len() + step)?)?;
        }
        Ok((prefill, began.elapsed()))
    })();
    model.remove_sequence(sequence);
    result
}

fn forward(
    model: &mut impl StepModel,
    sequence: SequenceId,
    tokens: &[u32],
    start: usize,
) -> Result<Logits, ModelError> {
    model.forward(&StepBatch {
        spans: vec![Span {
            sequence,
            tokens: tokens.to_vec(),
            start,
            logits: LogitsWanted::Last,
        }],
    })
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
