//! What a model's files suggest for generation.

use crate::model::GenerationDefaults;
use crate::model::tokenizer::Tokenizer;
use escadre_verify::structure::gguf::Gguf;
use serde_json::Value;

/// Texts of control tokens that end a turn in the models that have them. Files often name only one of their end
/// tokens; a model that was trained on chat then runs on behind its answer.
const END_OF_TURN: [&str; 8] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
];

pub(super) fn from_gguf(gguf: &Gguf, tokenizer: &Tokenizer) -> GenerationDefaults {
    let keys = ["eos_token_id", "eot_token_id", "eom_token_id"];
    let named = keys
        .iter()
        .filter_map(|key| gguf.get(&format!("tokenizer.ggml.{key}"))?.as_u64());
    GenerationDefaults {
        end_tokens: end_tokens(named, tokenizer),
        ..GenerationDefaults::default()
    }
}

pub(super) fn from_config(config: &Value, generation: &Value, tokenizer: &Tokenizer) -> GenerationDefaults {
    let ids = |source: &Value| match &source["eos_token_id"] {
        Value::Array(ids) => ids.iter().filter_map(Value::as_u64).collect(),
        id => id.as_u64().into_iter().collect::<Vec<_>>(),
    };
    let named = ids(config).into_iter().chain(ids(generation));
    let samples = generation["do_sample"].as_bool().unwrap_or(true);
    let float = |name: &str| {
        generation[name]
            .as_f64()
            .filter(|value| value.is_finite() && *value >= 0.0)
            .map(narrow)
    };
    GenerationDefaults {
        end_tokens: end_tokens(named, tokenizer),
        temperature: if samples { float("temperature") } else { Some(0.0) },
        top_p: float("top_p"),
        top_k: generation["top_k"].as_u64().and_then(|k| usize::try_from(k).ok()),
        repetition_penalty: float("repetition_penalty"),
    }
}

fn end_tokens(named: impl Iterator<Item = u64>, tokenizer: &Tokenizer) -> Vec<u32> {
    let known = END_OF_TURN.iter().filter_map(|text| tokenizer.control_token(text));
    let named = named.filter_map(|id| u32::try_from(id).ok());
    let mut ids: Vec<_> = named
        .chain(known)
        .filter(|&id| tokenizer.token_bytes(id).is_some())
        .collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "sampling parameters need no more than f32 has"
)]
fn narrow(value: f64) -> f32 {
    value as f32
}
