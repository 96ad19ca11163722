//! What a model is, in numbers: from GGUF metadata or from `config.json`, with every bound checked before anything
//! is allocated by them. Pure.

mod config;
mod gguf;
mod rope;

pub use rope::{RopeScaling, RopeSpec};

use super::LoadError;
use crate::backend::AttentionShape;
use escadre_verify::{Reason, Refusal};
use serde_json::Value as Json;

/// Architectures that have a graph here, as GGUF names them and as `config.json` names them.
pub const SUPPORTED: [(&str, &str); 1] = [("llama", "LlamaForCausalLM")];

/// Bounds that no published model comes near, and within which no product overflows.
const MAX_LAYERS: u64 = 4096;
const MAX_WIDTH: u64 = 1 << 20;
const MAX_HEADS: u64 = 4096;
const MAX_HEAD_SIZE: u64 = 4096;
const MAX_VOCABULARY: u64 = 1 << 22;
const MAX_CONTEXT: u64 = 1 << 28;

/// The sizes and constants of a decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    /// As the file names it.
    pub architecture: String,
    /// Layers.
    pub layers: usize,
    /// Width of the stream.
    pub hidden: usize,
    /// Width inside a feed-forward block.
    pub feed_forward: usize,
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Values per head.
    pub head_size: usize,
    /// Tokens that have an embedding.
    pub vocabulary: usize,
    /// Tokens that the model was made for; after loading, those that this process allows.
    pub context: usize,
    /// Keeps norms finite.
    pub norm_epsilon: f32,
    /// Rotary position embedding.
    pub rope: RopeSpec,
}

impl ModelSpec {
    /// Reads the metadata of a GGUF file. `vocabulary` is the number of rows of its embedding.
    pub fn from_gguf(
        file: &str,
        gguf: &escadre_verify::structure::gguf::Gguf,
        vocabulary: usize,
    ) -> Result<Self, LoadError> {
        gguf::read(file, gguf, vocabulary)
    }

    /// Reads a `config.json`.
    pub fn from_config(file: &str, config: &Json) -> Result<Self, LoadError> {
        config::read(file, config)
    }

    /// Bytes of keys and values per token when each value takes `value_bytes`.
    pub fn kv_bytes_per_token(&self, value_bytes: u64) -> u64 {
        2 * (self.layers * self.kv_heads * self.head_size) as u64 * value_bytes
    }

    /// The heads of every attention layer.
    pub fn attention_shape(&self) -> AttentionShape {
        #[expect(clippy::cast_precision_loss, reason = "head sizes are small")]
        let scale = 1.0 / (self.head_size as f32).sqrt();
        AttentionShape {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_size: self.head_size,
            scale,
        }
    }
}

/// The architecture's error, listing what there is in the naming of the file.
fn unsupported(architecture: &str, supported: impl Iterator<Item = &'static str>) -> LoadError {
    LoadError::ArchitectureUnsupported {
        architecture: architecture.to_owned(),
        supported: supported.collect::<Vec<_>>().join(", "),
    }
}

/// Collects values by name from either source and says what is wrong with them in one way.
struct Fields<'a> {
    file: &'a str,
    number: &'a dyn Fn(&str) -> Option<Result<u64, String>>,
    float: &'a dyn Fn(&str) -> Option<Result<f64, String>>,
}

impl Fields<'_> {
    fn refuse(&self, message: impl Into<String>) -> Refusal {
        Refusal::new(Reason::ConfigInvalid, message).in_file(self.file)
    }

    fn optional(&self, name: &str, limit: u64) -> Result<Option<usize>, Refusal> {
        let Some(value) = (self.number)(name) else {
            return Ok(None);
        };
        let value = value.map_err(|got| {
            self.refuse(format!("{name:?} is no whole number"))
                .values("a number", got)
        })?;
        if value == 0 || value > limit {
            return Err(self
                .refuse(format!("{name:?} is out of bounds"))
                .values(format!("1 to {limit}"), value));
        }
        Ok(usize::try_from(value).ok())
    }

    fn required(&self, name: &str, limit: u64) -> Result<usize, Refusal> {
        self.optional(name, limit)?
            .ok_or_else(|| self.refuse(format!("{name:?} is missing")))
    }

    /// A finite float in `(above, limit]`.
    fn float(&self, name: &str, above: f64, limit: f64) -> Result<Option<f64>, Refusal> {
        let Some(value) = (self.float)(name) else {
            return Ok(None);
        };
        let value = value.map_err(|got| self.refuse(format!("{name:?} is no number")).values("a number", got))?;
        if !(value.is_finite() && value > above && value <= limit) {
            return Err(self
                .refuse(format!("{name:?} is out of bounds"))
                .values(format!("above {above}, at most {limit}"), value));
        }
        Ok(Some(value))
    }

    /// Relations between sizes that the graph relies on.
    fn check(&self, spec: ModelSpec) -> Result<ModelSpec, Refusal> {
        if !spec.heads.is_multiple_of(spec.kv_heads) {
            return Err(self
                .refuse("the heads of queries are no multiple of the heads of keys and values")
                .values(format!("a multiple of {}", spec.kv_heads), spec.heads));
        }
        if !spec.rope.dimensions.is_multiple_of(2) || spec.rope.dimensions > spec.head_size {
            return Err(self
                .refuse("the rotated part of a head is odd or larger than the head")
                .values(format!("an even number up to {}", spec.head_size), spec.rope.dimensions));
        }
        Ok(spec)
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the value was checked to be in the range of f32"
)]
fn narrow(value: f64) -> f32 {
    value as f32
}

#[cfg(test)]
mod tests;
