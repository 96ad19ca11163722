//! What the fuzz targets share: which panics count, and small vocabularies of every kind.

use escadre_runtime::model::Tokenizer;
use escadre_verify::structure::gguf::{Array, Gguf, Value as Metadata};
use serde_json::{Map, Value, json};
use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

/// Lets a panic in a foreign crate be what our code makes of it, as when it serves: where it is caught, it is an error.
/// A panic in our own code, or one that nobody catches, ends the run. Each foreign place is told once.
pub fn count_our_panics() {
    let ends_the_run = std::panic::take_hook();
    let told = Mutex::new(HashSet::new());
    std::panic::set_hook(Box::new(move |panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        if !place.contains("/registry/src/") {
            ends_the_run(panic);
        }
        let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.insert(place) {
            eprintln!("a foreign panic: {panic}");
        }
    }));
}

/// Between the parts of an input.
pub const SEPARATOR: &str = "\n--------\n";

/// The token that ends an answer in the vocabularies here.
pub const END: &str = "<end>";
/// Tokens of several bytes.
const LONG: [&str; 16] = [
    "\": ", ", ", "{\"", "\"}", "true", "null", " the", "ing", "aa", "aaaa", "12", "  ", "\n\n", "é", "日本", "😀",
];
/// Control tokens besides.
const CONTROLS: [&str; 6] = ["<begin>", END, "<think>", "</think>", "<tool_call>", "</tool_call>"];
/// A token that is recognised in any text.
const ALWAYS: &str = "<file>";

/// The letters with which byte-level vocabularies write bytes.
fn letters() -> Vec<char> {
    let mut next = 0x100;
    let letter = |byte: u8| {
        if matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..) {
            return char::from(byte);
        }
        next += 1;
        char::from_u32(next - 1).expect("there are characters there")
    };
    (0..=255_u8).map(letter).collect()
}

/// A byte-level vocabulary: all bytes, longer tokens, and the merges that lead to them.
struct ByteLevel {
    tokens: Vec<String>,
    merges: Vec<(String, String)>,
}

impl ByteLevel {
    fn new() -> Self {
        let letters = letters();
        let mut tokens: Vec<String> = letters.iter().map(char::to_string).collect();
        let mut merges = Vec::new();
        for text in LONG {
            let mut merged = String::new();
            for letter in text.bytes().map(|byte| letters[usize::from(byte)].to_string()) {
                if merged.is_empty() {
                    merged = letter;
                    continue;
                }
                let whole = format!("{merged}{letter}");
                if !tokens.contains(&whole) {
                    tokens.push(whole.clone());
                    merges.push((merged, letter));
                }
                merged = whole;
            }
        }
        Self { tokens, merges }
    }
}

fn texts(texts: impl IntoIterator<Item = String>) -> Metadata {
    Metadata::Array(Array::String(texts.into_iter().collect()))
}

fn from_gguf<const N: usize>(entries: [(&str, Metadata); N]) -> Tokenizer {
    let metadata = entries.map(|(key, value)| (format!("tokenizer.ggml.{key}"), value));
    let gguf = Gguf {
        metadata: metadata.into_iter().collect(),
        tensors: vec![],
    };
    Tokenizer::from_gguf("fuzz.gguf", &gguf).expect("the vocabulary is well-formed")
}

fn number(count: usize) -> Metadata {
    Metadata::U32(u32::try_from(count).expect("the vocabulary is small"))
}

/// The GGUF kind `gpt2` with one of its ways to cut text into words.
pub fn gpt2(splitting: &str) -> Tokenizer {
    let ByteLevel { tokens, merges } = ByteLevel::new();
    let begin = tokens.len();
    let kinds = [vec![1; begin], vec![3; CONTROLS.len()], vec![4]].concat();
    let special = CONTROLS.iter().chain([&ALWAYS]).map(|&text| text.to_owned());
    from_gguf([
        ("model", Metadata::String("gpt2".to_owned())),
        ("pre", Metadata::String(splitting.to_owned())),
        ("tokens", texts(tokens.into_iter().chain(special))),
        ("token_type", Metadata::Array(Array::Signed(kinds))),
        (
            "merges",
            texts(merges.into_iter().map(|(left, right)| format!("{left} {right}"))),
        ),
        ("bos_token_id", number(begin)),
        ("eos_token_id", number(begin + 1)),
    ])
}

/// The GGUF kind `llama`.
pub fn llama() -> Tokenizer {
    let bytes = (0..=255_u8).map(|byte| format!("<0x{byte:02X}>"));
    let characters = (' '..='~').chain("éß日本語😀\u{301}".chars()).map(String::from);
    let mut pieces: Vec<String> = characters.chain(LONG.map(str::to_owned)).collect();
    for text in LONG.iter().filter(|text| text.is_ascii()) {
        let ends = (2..text.len()).map(|end| text[..end].to_owned());
        pieces.extend(ends);
    }
    let mut seen = HashSet::new();
    pieces.retain(|piece| seen.insert(piece.clone()));
    let pieces: Vec<String> = pieces.iter().map(|piece| piece.replace(' ', "\u{2581}")).collect();
    let (bytes, count): (Vec<String>, usize) = (bytes.collect(), pieces.len());
    let begin = bytes.len() + count;
    let kinds = [vec![6; bytes.len()], vec![1; count], vec![3; CONTROLS.len()], vec![4]].concat();
    let tokens = bytes.into_iter().chain(pieces).chain(CONTROLS.map(str::to_owned));
    let tokens: Vec<String> = tokens.chain([ALWAYS.to_owned()]).collect();
    let scores = tokens.iter().map(|token| token.chars().count() as f64 - 100.0);
    from_gguf([
        ("model", Metadata::String("llama".to_owned())),
        ("scores", Metadata::Array(Array::Float(scores.collect()))),
        ("token_type", Metadata::Array(Array::Signed(kinds))),
        ("tokens", texts(tokens)),
        ("bos_token_id", number(begin)),
        ("eos_token_id", number(begin + 1)),
    ])
}

/// A byte-level `tokenizer.json`.
pub fn tokenizer_json() -> Tokenizer {
    let ByteLevel { tokens, merges } = ByteLevel::new();
    let special = |(id, content): (usize, &&str)| {
        json!({
            "id": id, "content": content, "special": *content != ALWAYS, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false
        })
    };
    let added = CONTROLS.iter().chain([&ALWAYS]);
    let added: Vec<Value> = (tokens.len()..).zip(added).map(special).collect();
    let vocabulary: Map<String, Value> = (0..).zip(&tokens).map(|(id, text)| (text.clone(), json!(id))).collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let file = json!({
        "version": "1.0", "normalizer": null, "pre_tokenizer": byte_level, "decoder": byte_level, "added_tokens": added,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
    });
    let config = json!({"bos_token": "<begin>", "eos_token": END});
    Tokenizer::from_json("tokenizer.json", file.to_string().as_bytes(), &config).expect("the file is well-formed")
}

/// The id of a control token.
pub fn control(tokenizer: &Tokenizer, text: &str) -> Option<u32> {
    let count = u32::try_from(tokenizer.vocabulary()).ok()?;
    let is_it = |id: &u32| tokenizer.is_control(*id) && tokenizer.token_bytes(*id) == Some(text.as_bytes());
    (0..count).find(is_it)
}
