//! Files of tiny models in both formats.

#![allow(dead_code, clippy::allow_attributes, reason = "each test program uses a part of it")]

use serde_json::{Value as Json, json};

pub(crate) mod gguf;
pub(crate) mod llama;

pub(crate) const TOKENS: [&str; 6] = ["a", "b", "ab", "<end>", "Ġ", "c"];

/// A tensor by the name that Hugging Face's libraries give it.
#[derive(Clone)]
pub(crate) struct Tensor {
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Vec<f32>,
}

/// A `tokenizer.json` with [`TOKENS`].
pub(crate) fn tokenizer() -> Json {
    let vocabulary: serde_json::Map<_, _> = TOKENS
        .iter()
        .enumerate()
        .filter(|(_, text)| **text != "<end>")
        .map(|(id, text)| ((*text).to_owned(), json!(id)))
        .collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0", "normalizer": null, "pre_tokenizer": byte_level, "decoder": byte_level,
        "added_tokens": [{
            "id": 3, "content": "<end>", "special": true, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false
        }],
        "model": {"type": "BPE", "vocab": vocabulary, "merges": ["a b"]},
    })
}

/// A tensor as safetensors files hold it.
pub(crate) struct Stored {
    pub(crate) kind: &'static str,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

impl Stored {
    /// All numbers as f32.
    pub(crate) fn wide(tensor: &Tensor) -> Self {
        Self {
            kind: "F32",
            shape: tensor.shape.clone(),
            bytes: tensor.values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        }
    }
}

pub(crate) fn safetensors(tensors: &[(String, Stored)]) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, tensor) in tensors {
        let start = data.len();
        data.extend(&tensor.bytes);
        header.insert(
            name.clone(),
            json!({"dtype": tensor.kind, "shape": tensor.shape, "data_offsets": [start, data.len()]}),
        );
    }
    let header = Json::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()
}
