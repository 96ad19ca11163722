//! From verified bytes to a model that computes: specification, weights, tokenizer, chat template.
//!
//! [`load()`] is the door. Its only source of bytes is [`escadre_verify::VerifiedModel`]; nothing here opens a path. The decoder and
//! the loader know the `Backend` trait and no tensor library.

mod batch;
mod decoder;
mod error;
pub(crate) mod load;
mod pooling;
pub mod spec;
mod template;
mod tokenizer;

pub use crate::backend::KvType;
pub use batch::{AdapterId, Logits, LogitsWanted, Span, StatesWanted, StepBatch};
pub use decoder::Decoder;
pub use error::{LoadError, ModelError};
pub use load::{Quantize, load, load_exact, load_on, load_with};
pub(crate) use pooling::Pool;
pub use pooling::Pooling;
pub use template::{ChatInput, ChatTemplate, TemplateError};
pub use tokenizer::{SpecialTokens, StreamDecoder, Tokenizer, TokenizerError};

use crate::backend::kernels::Profile;
use crate::requirements::Requirements;
use escadre_kernels::Cores;
use std::sync::Arc;

/// What the loader may use and must reach.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// Tokens per sequence, prompt and answer together. Absent: the model's own context.
    pub max_context: Option<usize>,
    /// Bytes that this process may use, from its cgroup. Absent: not checked.
    pub memory_limit: Option<u64>,
    /// How the weights must be stored. Absent: in any way that can be loaded.
    pub format: Option<Format>,
    /// How keys and values will be held.
    pub kv_type: KvType,
    /// What matrices of numbers are made into. Absent: they stay numbers.
    pub quantize: Option<Quantize>,
    /// What packs weights and computes where there is no other device: the calling thread alone unless said otherwise.
    pub cores: Arc<Cores>,
    /// Where the time of its steps is added up.
    pub profile: Option<Arc<Profile>>,
    /// What the model must keep to beside its digest.
    pub requirements: Arc<Requirements>,
}

/// Everything that serving needs from a model.
#[derive(Debug)]
pub struct Loaded {
    /// Facts for status and logs.
    pub description: ModelDescription,
    /// Text to tokens and back.
    pub tokenizer: Tokenizer,
    /// Absent when the model has none: chat is then refused, completion works.
    pub template: Option<ChatTemplate>,
    /// The weights and the graph. Its cache is not allocated yet.
    pub decoder: Decoder,
    /// What the model's authors suggest.
    pub generation: GenerationDefaults,
    /// How the vectors of texts are made, if the files say so.
    pub pooling: Option<Pooling>,
}

/// The container format of the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::Display)]
pub enum Format {
    /// One file with weights, vocabulary and template.
    #[strum(serialize = "GGUF")]
    Gguf,
    /// A folder with `config.json`, `tokenizer.json` and shards.
    Safetensors,
}

/// Facts about a loaded model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelDescription {
    /// The container format.
    pub format: Format,
    /// As the file names it, such as `llama`.
    pub architecture: String,
    /// How many numbers the model's weights are.
    pub parameters: u64,
    /// The type that most weights have, such as `Q4_1` or `BF16`.
    pub quantization: String,
    /// Tokens per sequence that this process allows.
    pub context_length: usize,
    /// Bytes of weights as they are held in memory.
    pub weights_bytes: u64,
    /// Bytes of keys and values per token, as [`LoadOptions::kv_type`] holds them.
    pub kv_bytes_per_token: u64,
    /// SHA-256 of the chat template's text.
    pub template_digest: Option<String>,
    /// The licence that the model's files name, as an SPDX expression, when they agree on one.
    pub license: Option<String>,
}

/// What the model's files say about sampling and stopping.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GenerationDefaults {
    /// Tokens that end an answer.
    pub end_tokens: Vec<u32>,
    /// Temperature, 0 for greedy.
    pub temperature: Option<f32>,
    /// Nucleus sampling bound.
    pub top_p: Option<f32>,
    /// How many of the likeliest tokens are drawn from.
    pub top_k: Option<usize>,
    /// Penalty on tokens that occurred already; 1 is none.
    pub repetition_penalty: Option<f32>,
}
