//! What a model is, in numbers: from GGUF metadata or from `config.json`, with every bound checked before anything
//! is allocated by them. Pure.
//!
//! A decoder sees no family and no format, only the values here. Models of other kinds get their place like this:
//! experts as another form of a layer's feed-forward block ([`LayerSpec`]), latent keys and values as another
//! [`KvShape`], recurrent models as a graph of their own beside the decoder.

mod config;
mod family;
mod gguf;
mod rope;

pub use gguf::RopeFactors;
pub use rope::{Long, RopeScaling, RopeSpec, Yarn};

use super::LoadError;
use crate::backend::{Activation, AttentionShape, Rope};
use escadre_verify::{Reason, Refusal};
use family::Family;
use serde_json::Value as Json;

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
    /// What differs between layers.
    pub layers: Vec<LayerSpec>,
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
    /// Numbers of the graph that are no sizes.
    pub constants: Constants,
    /// Which norms there are.
    pub norms: Norms,
    /// Which biases there are.
    pub biases: Biases,
    /// Rotary position embeddings; layers refer to them by their index.
    pub ropes: Vec<RopeSpec>,
    /// The embedding is the head too.
    pub tied: bool,
}

/// What differs between the layers of one model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LayerSpec {
    /// How many tokens a query sees, itself included; all before it when absent.
    pub window: Option<usize>,
    /// Which of [`ModelSpec::ropes`] turns queries and keys; none when absent.
    pub rope: Option<usize>,
}

/// Numbers of the graph that are no sizes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Constants {
    /// Keeps norms finite.
    pub norm_epsilon: f32,
    /// The gate of feed-forward blocks.
    pub activation: Activation,
    /// What embeddings are multiplied with.
    pub embedding_scale: Option<f32>,
    /// What scores of attention are multiplied with.
    pub attention_scale: f32,
    /// Bounds scaled scores: `cap * tanh(score / cap)`.
    pub attention_soft_cap: Option<f32>,
    /// Bounds logits in the same way.
    pub logit_soft_cap: Option<f32>,
}

/// The norms beside the two that every layer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Norms {
    /// Files store weights less 1.
    pub less_one: bool,
    /// Every head of queries and of keys is normalised before it is turned.
    pub heads: bool,
    /// What attention and feed-forward add to the stream is normalised.
    pub post: bool,
}

/// Which projections have a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Biases {
    /// Queries, keys and values.
    pub query_key_value: Presence,
    /// The output of attention.
    pub output: Presence,
    /// All three of a feed-forward block.
    pub feed_forward: Presence,
}

/// Whether a weight exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Presence {
    /// It must not exist: the graph would leave out what it does.
    #[default]
    Absent,
    /// It must exist.
    Present,
    /// The configuration does not say; it exists in all layers or in none.
    AsStored,
}

/// What is cached for every token and layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvShape {
    /// A key and a value per head.
    Heads {
        /// Heads of keys and values.
        heads: usize,
        /// Values per head.
        size: usize,
    },
    /// One vector from which the keys and values of all heads are computed, and the turned part of a key that all
    /// heads share.
    Latent {
        /// Values of the vector.
        rank: usize,
        /// Values of the turned part.
        rotated: usize,
    },
}

impl KvShape {
    /// Bytes per token when each value takes `value_bytes`.
    pub fn bytes_per_token(self, layers: usize, value_bytes: u64) -> u64 {
        let values = match self {
            Self::Heads { heads, size } => 2 * heads * size,
            Self::Latent { rank, rotated } => rank + rotated,
        };
        (layers * values) as u64 * value_bytes
    }
}

impl ModelSpec {
    /// Reads the metadata of a GGUF file. `vocabulary` is the number of rows of its embedding, `factors` what its
    /// tensors say about positions.
    pub fn from_gguf(
        file: &str,
        gguf: &escadre_verify::structure::gguf::Gguf,
        vocabulary: usize,
        factors: RopeFactors,
    ) -> Result<Self, LoadError> {
        gguf::read(file, gguf, vocabulary, factors)
    }

    /// Reads a `config.json`.
    pub fn from_config(file: &str, config: &Json) -> Result<Self, LoadError> {
        config::read(file, config)
    }

    /// What is cached for every token and layer.
    pub fn kv_shape(&self) -> KvShape {
        KvShape::Heads {
            heads: self.kv_heads,
            size: self.head_size,
        }
    }

    /// Bytes of keys and values per token when each value takes `value_bytes`.
    pub fn kv_bytes_per_token(&self, value_bytes: u64) -> u64 {
        self.kv_shape().bytes_per_token(self.layers.len(), value_bytes)
    }

    /// The attention of a layer.
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn attention_shape(&self, layer: usize) -> AttentionShape {
        let LayerSpec { window, rope } = self.layers[layer];
        AttentionShape {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_size: self.head_size,
            scale: self.constants.attention_scale,
            soft_cap: self.constants.attention_soft_cap,
            window,
            rope,
        }
    }

    /// The rotations, for the context that is allowed.
    pub fn rope_tables(&self) -> Vec<Rope> {
        self.ropes.iter().map(|rope| rope.table(self.context)).collect()
    }
}

/// Whether an architecture of a GGUF file has a graph here.
pub(crate) fn is_supported_gguf(architecture: &str) -> bool {
    Family::from_gguf(architecture).is_some()
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
        for rope in &spec.ropes {
            if !rope.dimensions.is_multiple_of(2) || !(1..=spec.head_size).contains(&rope.dimensions) {
                return Err(self
                    .refuse("the rotated part of a head is odd, empty or larger than the head")
                    .values(format!("an even number up to {}", spec.head_size), rope.dimensions));
            }
            if !rope.has_valid_divisors() {
                return Err(self
                    .refuse("the divisors of the position embedding are malformed")
                    .values(format!("{} finite values above 0", rope.dimensions / 2), "others"));
            }
        }
        Ok(spec)
    }
}

/// What scores are multiplied with when nothing else is said: the inverse root of a size.
fn inverse_root(size: f64) -> f32 {
    narrow(1.0 / size.sqrt())
}

#[expect(clippy::cast_precision_loss, reason = "sizes were checked to be far below 2^52")]
fn float(size: usize) -> f64 {
    size as f64
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
