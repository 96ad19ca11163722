//! Text to tokens and back.
//!
//! Vocabularies come from GGUF metadata (byte-level BPE, and the merging by scores of SentencePiece) or from a
//! `tokenizer.json`. Special tokens are split off first, in the same way for all of them; the models below never see
//! their text, so text that a client wrote cannot become a control token unless the caller says so.

mod alphabet;
mod bpe;
mod gguf;
mod json;
mod special;
mod spm;
mod stream;
mod vocabulary;

pub use stream::StreamDecoder;

use special::{Fragment, Specials};
use std::fmt;
use std::sync::Arc;
use vocabulary::Vocabulary;

/// How text that looks like a special token is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecialTokens {
    /// It becomes the token: for text that our own template rendered.
    Parse,
    /// It stays text: for what a client wrote.
    AsText,
}

/// Why text could not be encoded.
#[derive(Debug, thiserror::Error)]
#[error("could not tokenize: {0}")]
pub struct TokenizerError(String);

/// A model's vocabulary with the rules that cut text into it.
pub struct Tokenizer {
    vocabulary: Arc<Vocabulary>,
    specials: Specials,
    cutter: Cutter,
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    begin: Option<u32>,
    end: Option<u32>,
}

/// The algorithm for text between special tokens.
enum Cutter {
    Bpe(Box<bpe::Bpe>),
    Spm(Box<spm::Spm>),
    Json(Box<json::Json>),
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cutter = match self.cutter {
            Cutter::Bpe(_) => "byte-level BPE",
            Cutter::Spm(_) => "SentencePiece",
            Cutter::Json(_) => "tokenizer.json",
        };
        formatter
            .debug_struct("Tokenizer")
            .field("cutter", &cutter)
            .field("vocabulary", &self.vocabulary.len())
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Token ids of a text, without [`Tokenizer::prefix`].
    pub fn encode(&self, text: &str, special: SpecialTokens) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = Vec::new();
        let mut after_special = true;
        for fragment in self.specials.split(text, special) {
            match fragment {
                Fragment::Token(id) => ids.push(id),
                Fragment::Text(text) => match &self.cutter {
                    Cutter::Bpe(bpe) => bpe.encode(text, &mut ids),
                    Cutter::Spm(spm) => spm.encode(text, after_special, &mut ids)?,
                    Cutter::Json(json) => json.encode(text, &mut ids)?,
                },
            }
            after_special = matches!(fragment, Fragment::Token(_));
        }
        Ok(ids)
    }

    /// What the model wants before every text: its begin token, or nothing.
    pub fn prefix(&self) -> &[u32] {
        &self.prefix
    }

    /// What the model wants behind a text of which a vector is made: its end token, or nothing.
    pub fn suffix(&self) -> &[u32] {
        &self.suffix
    }

    /// The bytes that a token stands for; absent for ids outside the vocabulary. Not always whole characters.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.vocabulary.bytes(id)
    }

    /// Whether a token is a control token, which never appears in an answer's text.
    pub fn is_control(&self, id: u32) -> bool {
        self.vocabulary.is_control(id)
    }

    /// A decoder for one stream of tokens, in whose text these control tokens are seen.
    pub fn decoder(&self, shown: &[u32]) -> StreamDecoder {
        StreamDecoder::new(Arc::clone(&self.vocabulary), shown)
    }

    /// How many tokens there are: one more than the largest id.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary.len()
    }

    /// The control token with this text.
    pub(crate) fn control_token(&self, text: &str) -> Option<u32> {
        self.specials.find(text).filter(|&id| self.is_control(id))
    }

    /// The text of the begin token, for templates; empty when there is none.
    pub(crate) fn begin_text(&self) -> String {
        self.text(self.begin)
    }

    /// The text of the end token, for templates; empty when there is none.
    pub(crate) fn end_text(&self) -> String {
        self.text(self.end)
    }

    fn text(&self, id: Option<u32>) -> String {
        let bytes = id.and_then(|id| self.token_bytes(id)).unwrap_or_default();
        String::from_utf8_lossy(bytes).into_owned()
    }
}
