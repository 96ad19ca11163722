//! A model of the Llama architecture with random weights that are always the same. Every feature is on: shared heads of
//! keys, heads whose size does not follow from the width, stretched positions, norms that are not constant.

use super::{Stored, TOKENS, Tensor, safetensors, tokenizer};
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

pub(crate) const LAYERS: usize = 2;
pub(crate) const HIDDEN: usize = 32;
pub(crate) const INNER: usize = 48;
pub(crate) const HEADS: usize = 4;
pub(crate) const KV_HEADS: usize = 2;
pub(crate) const HEAD: usize = 16;
pub(crate) const BASE: f64 = 10_000.0;

pub(crate) type Weights = BTreeMap<String, Tensor>;

/// By the names that Hugging Face's libraries give them.
pub(crate) fn weights() -> Weights {
    let mut state = 11_u64;
    let mut random = move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        f32::from(u16::try_from(state >> 48).unwrap()) / 32_768.0 - 1.0
    };
    let mut weights = Weights::new();
    let mut add = |name: String, shape: &[usize], scale: f32, offset: f32| {
        let values = (0..shape.iter().product()).map(|_| random() * scale + offset).collect();
        let shape = shape.to_vec();
        weights.insert(name, Tensor { shape, values });
    };
    add("model.embed_tokens.weight".into(), &[TOKENS.len(), HIDDEN], 1.0, 0.0);
    add("lm_head.weight".into(), &[TOKENS.len(), HIDDEN], 0.8, 0.0);
    add("model.norm.weight".into(), &[HIDDEN], 0.3, 1.0);
    for layer in 0..LAYERS {
        let mut part = |name: &str, shape: &[usize], scale, offset| {
            add(format!("model.layers.{layer}.{name}.weight"), shape, scale, offset);
        };
        part("input_layernorm", &[HIDDEN], 0.3, 1.0);
        part("post_attention_layernorm", &[HIDDEN], 0.3, 1.0);
        part("self_attn.q_proj", &[HEADS * HEAD, HIDDEN], 0.5, 0.0);
        part("self_attn.k_proj", &[KV_HEADS * HEAD, HIDDEN], 0.5, 0.0);
        part("self_attn.v_proj", &[KV_HEADS * HEAD, HIDDEN], 0.4, 0.0);
        part("self_attn.o_proj", &[HIDDEN, HEADS * HEAD], 0.3, 0.0);
        part("mlp.gate_proj", &[INNER, HIDDEN], 0.4, 0.0);
        part("mlp.up_proj", &[INNER, HIDDEN], 0.4, 0.0);
        part("mlp.down_proj", &[HIDDEN, INNER], 0.3, 0.0);
    }
    weights
}

/// Its `config.json`, for a context of so many tokens.
pub(crate) fn config(context: usize) -> Json {
    json!({
        "architectures": ["LlamaForCausalLM"], "num_hidden_layers": LAYERS, "hidden_size": HIDDEN,
        "intermediate_size": INNER, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD,
        "vocab_size": TOKENS.len(), "max_position_embeddings": context, "rms_norm_eps": 1e-5, "rope_theta": BASE,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32
        },
        "tie_word_embeddings": false, "eos_token_id": 3,
    })
}

/// Writes it as safetensors, with all numbers as f32.
pub(crate) fn write_folder(folder: &Path, weights: &Weights, context: usize) {
    let tensors: Vec<_> = weights
        .iter()
        .map(|(name, tensor)| (name.clone(), Stored::wide(tensor)))
        .collect();
    fs::write(folder.join("config.json"), config(context).to_string()).unwrap();
    fs::write(folder.join("tokenizer.json"), tokenizer().to_string()).unwrap();
    fs::write(folder.join("model.safetensors"), safetensors(&tensors)).unwrap();
}
