//! GGUF files: keys as bytes, and the whole.

use super::{TOKENS, Tensor};

/// GGUF keeps the two values of a pair together; Hugging Face keeps the first values of all pairs, then the second.
pub(crate) fn adjacent_pairs(tensor: &Tensor, head: usize) -> Vec<f32> {
    let columns: usize = tensor.shape[1..].iter().product();
    let heads = tensor.values.chunks_exact(head * columns);
    let rows = heads.flat_map(|values| {
        let order = (0..head / 2).flat_map(|pair| [pair, pair + head / 2]);
        order.flat_map(move |row| values[row * columns..(row + 1) * columns].to_vec())
    });
    rows.collect()
}

/// The keys of the vocabulary.
pub(crate) fn vocabulary() -> Vec<Vec<u8>> {
    let texts = |texts: &[&str]| texts.iter().flat_map(|value| text(value)).collect::<Vec<_>>();
    let kinds: Vec<u8> = [1_i32, 1, 1, 3, 1, 1]
        .iter()
        .flat_map(|kind| kind.to_le_bytes())
        .collect();
    vec![
        string("tokenizer.ggml.model", "gpt2"),
        string("tokenizer.ggml.pre", "gpt-2"),
        array("tokenizer.ggml.tokens", 8, TOKENS.len(), &texts(&TOKENS)),
        array("tokenizer.ggml.merges", 8, 1, &texts(&["a b"])),
        array("tokenizer.ggml.token_type", 5, TOKENS.len(), &kinds),
        unsigned("tokenizer.ggml.eos_token_id", 3),
    ]
}

fn text(value: &str) -> Vec<u8> {
    [&(value.len() as u64).to_le_bytes()[..], value.as_bytes()].concat()
}

fn entry(name: &str, code: u32, value: &[u8]) -> Vec<u8> {
    [&text(name)[..], &code.to_le_bytes(), value].concat()
}

pub(crate) fn unsigned(name: &str, value: usize) -> Vec<u8> {
    entry(name, 4, &u32::try_from(value).unwrap().to_le_bytes())
}

pub(crate) fn unsigned16(name: &str, value: usize) -> Vec<u8> {
    entry(name, 2, &u16::try_from(value).unwrap().to_le_bytes())
}

#[expect(clippy::cast_possible_truncation, reason = "the format has f32")]
pub(crate) fn float(name: &str, value: f64) -> Vec<u8> {
    entry(name, 6, &(value as f32).to_le_bytes())
}

pub(crate) fn string(name: &str, value: &str) -> Vec<u8> {
    entry(name, 8, &text(value))
}

pub(crate) fn array(name: &str, code: u32, count: usize, values: &[u8]) -> Vec<u8> {
    let head = [&code.to_le_bytes()[..], &(count as u64).to_le_bytes()].concat();
    entry(name, 9, &[&head, values].concat())
}

/// A file with these keys and tensors in f32.
pub(crate) fn file(keys: &[Vec<u8>], tensors: &[(String, Tensor)]) -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend((keys.len() as u64).to_le_bytes());
    bytes.extend(keys.concat());
    let mut data: Vec<u8> = Vec::new();
    for (name, tensor) in tensors {
        bytes.extend(text(name));
        bytes.extend(u32::try_from(tensor.shape.len()).unwrap().to_le_bytes());
        for &size in tensor.shape.iter().rev() {
            bytes.extend((size as u64).to_le_bytes());
        }
        bytes.extend(0_u32.to_le_bytes());
        bytes.extend((data.len() as u64).to_le_bytes());
        data.extend(tensor.values.iter().flat_map(|value| value.to_le_bytes()));
        data.resize(data.len().next_multiple_of(32), 0);
    }
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    [bytes, data].concat()
}
