//! Kinds of content that are never loaded, whatever the file is called: a pickle runs code when it is read.

use crate::{Reason, Refusal};

/// What the first bytes of a file say that it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::Display)]
pub enum Kind {
    /// A GGUF container.
    #[strum(serialize = "GGUF")]
    Gguf,
    /// A safetensors container.
    #[strum(serialize = "safetensors")]
    Safetensors,
    /// A Python pickle.
    #[strum(serialize = "a Python pickle")]
    Pickle,
    /// A zip archive, in which `torch` wraps its pickles.
    #[strum(serialize = "a zip archive, as PyTorch writes it")]
    Zip,
    /// Anything else.
    #[strum(serialize = "an unknown format")]
    Unknown,
}

/// Guesses the kind from the first bytes. Never looks at a name.
pub fn detect(bytes: &[u8]) -> Kind {
    if bytes.starts_with(b"GGUF") {
        Kind::Gguf
    } else if bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"PK\x05\x06") {
        Kind::Zip
    } else if is_pickle(bytes) {
        Kind::Pickle
    } else if bytes.get(8) == Some(&b'{') {
        Kind::Safetensors
    } else {
        Kind::Unknown
    }
}

/// Refuses content that would run code when it is read, or that is no model weights at all.
pub fn require_weights(file: &str, bytes: &[u8]) -> Result<Kind, Refusal> {
    let kind = detect(bytes);
    match kind {
        Kind::Gguf | Kind::Safetensors => Ok(kind),
        Kind::Pickle | Kind::Zip => Err(Refusal::new(
            Reason::FormatRefused,
            format!(
                "the content is {kind}, which can run code when it is read; convert the model to safetensors or GGUF"
            ),
        )
        .in_file(file)),
        Kind::Unknown => Err(Refusal::new(
            Reason::FormatRefused,
            "the content is neither GGUF nor safetensors; give a .gguf file or a folder with safetensors files",
        )
        .in_file(file)
        .values("GGUF or safetensors", first_bytes(bytes))),
    }
}

/// Protocol 2 to 5 starts with an opcode and the number; protocol 0 and 1 are told by their usual first opcode
/// together with the final one.
fn is_pickle(bytes: &[u8]) -> bool {
    match bytes {
        [0x80, 2..=5, ..] => true,
        [b'(' | b'c' | b']' | b'}', .., b'.'] => bytes.len() > 2,
        _ => false,
    }
}

/// The start of a file for an error text.
pub(crate) fn first_bytes(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    if bytes.is_empty() {
        return "an empty file".to_owned();
    }
    let mut text = String::from("bytes");
    for byte in bytes.iter().take(4) {
        let _ = write!(text, " {byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_told_by_content() {
        assert_eq!(detect(b"GGUF\x03\0\0\0"), Kind::Gguf);
        assert_eq!(detect(b"PK\x03\x04rest"), Kind::Zip);
        assert_eq!(detect(b"\x80\x02}q\x00."), Kind::Pickle);
        assert_eq!(detect(b"\x80\x05\x95"), Kind::Pickle);
        assert_eq!(detect(b"(dp0\nS'a'\np1\nI1\ns."), Kind::Pickle);
        assert_eq!(detect(b"\x10\0\0\0\0\0\0\0{\"a\":1}       "), Kind::Safetensors);
        assert_eq!(detect(b"#!/bin/sh"), Kind::Unknown);
        assert_eq!(detect(b""), Kind::Unknown);
    }

    #[test]
    fn pickles_are_refused_whatever_their_name() {
        for bytes in [b"\x80\x04\x95abc".as_slice(), b"PK\x03\x04abc", b"<html>", b""] {
            let refusal = require_weights("model.safetensors", bytes).unwrap_err();
            assert_eq!(refusal.reason, Reason::FormatRefused);
            assert_eq!(refusal.file.as_deref(), Some("model.safetensors"));
        }
    }
}
