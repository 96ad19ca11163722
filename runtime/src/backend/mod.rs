//! The seam between graphs and arithmetic: what a decoder asks for, on buffers and matrices that it cannot look into.
//!
//! A decoder is written against [`Backend`] and nothing else. `kernels` implements it for the processor with arithmetic of
//! our own, in memory that is used again; `tensors` for every device that candle knows, and is what `kernels` is compared
//! with. Calls say what belongs together, so that a backend may compute it at once; buffers are moved into the last call
//! that needs them, the layout of a step is told once ([`Backend::begin`]), and keys and values are only reached through
//! the cache.

mod blocks;
pub mod device;
pub mod kernels;
pub mod tensors;

use crate::kv::BlockId;
use crate::model::ModelError;
use escadre_verify::structure::gguf::TensorType;
use std::borrow::Cow;
use std::ops::Range;

/// How a backend may change weights while it packs them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// Quantised weights stay as they are in the file and are multiplied with quantised activations.
    #[default]
    AsStored,
    /// Every weight is widened to f32, so that products are exact to f32: for tests and audits.
    Widened,
}

/// The weights of one matrix as a file stores them.
#[derive(Debug, Clone)]
pub struct StoredMatrix<'a> {
    /// How values are packed.
    pub kind: TensorType,
    /// Outputs.
    pub rows: usize,
    /// Inputs, contiguous.
    pub columns: usize,
    /// Exactly the packed values.
    pub bytes: Cow<'a, [u8]>,
}

/// How the cache holds a number of a key or a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, strum::Display, strum::EnumString, clap::ValueEnum)]
#[strum(serialize_all = "lowercase")]
pub enum KvType {
    /// Numbers of 16 bits.
    #[default]
    F16,
    /// Numbers of 32 bits.
    F32,
}

impl KvType {
    /// Bytes of a number.
    pub fn bytes(self) -> u64 {
        match self {
            Self::F16 => 2,
            Self::F32 => 4,
        }
    }
}

/// The sizes of a key and value cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheShape {
    /// Layers with attention.
    pub layers: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Values per head.
    pub head_size: usize,
    /// Blocks of [`BLOCK_TOKENS`](crate::kv::BLOCK_TOKENS) tokens, for all sequences together.
    pub blocks: usize,
    /// How numbers are held.
    pub kind: KvType,
}

/// How the pairs that a rotary embedding turns lie in a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopePairs {
    /// Values `2i` and `2i + 1`: GGUF files of the `llama` architecture.
    Adjacent,
    /// Values `i` and `i + n/2`: files that follow the layout of Hugging Face.
    Halves,
}

/// A rotary position embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Radians per position for each pair; values of a head beyond the pairs are not turned.
    pub frequencies: Vec<f64>,
    /// Where the pairs are.
    pub pairs: RopePairs,
    /// What turned pairs are multiplied with; 1 in most models.
    pub magnitude: f64,
}

/// The rows of one sequence in a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpanLayout {
    /// Where its keys and values are, with room for those of the rows.
    pub blocks: Vec<BlockId>,
    /// The rows in every buffer of the step.
    pub rows: Range<usize>,
    /// The position of the first row: how many tokens of the sequence are cached.
    pub start: usize,
}

/// What attention does in a layer; layers of one model may differ in their window and rotation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionShape {
    /// Heads of queries; a multiple of `kv_heads`.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Values per head.
    pub head_size: usize,
    /// What scores are multiplied with.
    pub scale: f32,
    /// Scaled scores become `cap * tanh(score / cap)`.
    pub soft_cap: Option<f32>,
    /// How many tokens a query sees, itself included; all before it when absent.
    pub window: Option<usize>,
    /// Which of the step's rotations turns queries and keys; none when absent.
    pub rope: Option<usize>,
}

/// Queries, keys and values of one layer before their rotation.
#[derive(Debug)]
pub struct Projections<B> {
    /// `heads * head_size` wide.
    pub query: B,
    /// `kv_heads * head_size` wide.
    pub key: B,
    /// `kv_heads * head_size` wide.
    pub value: B,
}

/// A matrix and its bias.
pub struct Projection<B: Backend + ?Sized> {
    /// The weights.
    pub weight: B::Matrix,
    /// Added to every row of products.
    pub bias: Option<B::Vector>,
}

/// The gate of a feed-forward block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// The Gaussian error linear unit in its approximation by the hyperbolic tangent.
    GeluTanh,
}

/// Arithmetic on activations. Buffers are `[rows, width]` of f32, one row per token of the step.
pub trait Backend: Send {
    /// Activations of a step.
    type Buffer;
    /// Weights, packed as the backend likes them.
    type Matrix: Send;
    /// A norm's weight or a bias.
    type Vector: Send;
    /// Keys and values of all layers and sequences.
    type Cache: Send;
    /// What a step's layers share: where rows belong, how far they are turned.
    type Step;

    /// Bytes that are free in the device's own memory. Absent when everything is in the memory of the process.
    fn free_memory(&self) -> Option<u64>;
    /// Whether matrices of this type can be packed.
    fn supports(&self, kind: TensorType) -> bool;
    /// Bytes that a packed matrix holds in memory, rounded up where it is not known exactly.
    fn resident_bytes(&self, kind: TensorType, elements: u64) -> u64;
    /// Packs a matrix.
    fn matrix(&self, stored: StoredMatrix<'_>) -> Result<Self::Matrix, ModelError>;
    /// Takes over a vector.
    fn vector(&self, values: Vec<f32>) -> Result<Self::Vector, ModelError>;

    /// Compares what the device makes of a part of a matrix with a slow computation of the same, if it has one.
    ///
    /// # Errors
    /// When the two are not the same.
    fn self_test(&self, _matrix: &Self::Matrix) -> Result<(), ModelError> {
        Ok(())
    }

    /// A cache with room for so many blocks.
    fn cache(&self, shape: CacheShape) -> Result<Self::Cache, ModelError>;
    /// Copies a block's keys and values in all layers.
    fn copy_block(&self, cache: &mut Self::Cache, from: BlockId, to: BlockId) -> Result<(), ModelError>;

    /// Starts a step: prepares the rotations of its rows. A layer chooses one by its index.
    fn begin(&self, spans: &[SpanLayout], ropes: &[Rope]) -> Result<Self::Step, ModelError>;
    /// The rows of `table` for the tokens.
    fn embed(&self, table: &Self::Matrix, tokens: &[u32]) -> Result<Self::Buffer, ModelError>;
    /// Scales every row to a root mean square of 1, then by `weight`.
    fn rms_norm(&self, x: &Self::Buffer, weight: &Self::Vector, epsilon: f32) -> Result<Self::Buffer, ModelError>;
    /// Does to every head what [`rms_norm`](Self::rms_norm) does to a row; `weight` has the size of a head.
    fn head_norm(&self, x: Self::Buffer, weight: &Self::Vector, epsilon: f32) -> Result<Self::Buffer, ModelError>;
    /// `x * factor`.
    fn scale(&self, x: Self::Buffer, factor: f32) -> Result<Self::Buffer, ModelError>;
    /// `x` times the transposed matrix, plus the bias.
    fn linear(&self, x: &Self::Buffer, projection: &Projection<Self>) -> Result<Self::Buffer, ModelError>;
    /// `stream` plus what [`linear`](Self::linear) gives.
    fn add_linear(
        &self,
        stream: Self::Buffer,
        x: &Self::Buffer,
        projection: &Projection<Self>,
    ) -> Result<Self::Buffer, ModelError> {
        self.add(stream, self.linear(x, projection)?)
    }
    /// Queries, keys and values of the same rows.
    fn project(
        &self,
        x: &Self::Buffer,
        [query, key, value]: [&Projection<Self>; 3],
    ) -> Result<Projections<Self::Buffer>, ModelError> {
        Ok(Projections {
            query: self.linear(x, query)?,
            key: self.linear(x, key)?,
            value: self.linear(x, value)?,
        })
    }
    /// `activation(gate(x)) * up(x)`.
    fn gated(
        &self,
        x: &Self::Buffer,
        gate: &Projection<Self>,
        up: &Projection<Self>,
        activation: Activation,
    ) -> Result<Self::Buffer, ModelError>;
    /// Turns queries and keys by the rotation that `shape` names, appends keys and values to the cache of `layer`, gives the queries back.
    fn rope_append(
        &self,
        projections: Projections<Self::Buffer>,
        shape: AttentionShape,
        layer: usize,
        step: &Self::Step,
        cache: &mut Self::Cache,
    ) -> Result<Self::Buffer, ModelError>;
    /// Causal attention of every row over its own sequence, the step's rows included, within the window of `shape`.
    fn attention(
        &self,
        query: Self::Buffer,
        shape: AttentionShape,
        layer: usize,
        step: &Self::Step,
        cache: &Self::Cache,
    ) -> Result<Self::Buffer, ModelError>;
    /// `x + y`.
    fn add(&self, x: Self::Buffer, y: Self::Buffer) -> Result<Self::Buffer, ModelError>;
    /// Some of the rows, in the given order.
    fn select(&self, x: &Self::Buffer, rows: &[usize]) -> Result<Self::Buffer, ModelError>;
    /// The values of every row, appended to `out`.
    fn read(&self, x: &Self::Buffer, out: &mut Vec<f32>) -> Result<(), ModelError>;
    /// Logits of every row, appended to `out`.
    fn lm_head(&self, x: &Self::Buffer, head: &Self::Matrix, out: &mut Vec<f32>) -> Result<(), ModelError>;
}

impl AttentionShape {
    /// How many keys from the beginning are outside the window of the query at `position`.
    fn hidden_keys(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }
}

/// Cosine and sine of every row of a step and pair, times the magnitude, appended to `cosines` and `sines`.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "positions are far below 2^52, and rounding a value of about 1 is what is wanted"
)]
fn turns(spans: &[SpanLayout], rope: &Rope, cosines: &mut Vec<f32>, sines: &mut Vec<f32>) {
    for position in spans.iter().flat_map(|span| span.start..span.start + span.rows.len()) {
        for frequency in &rope.frequencies {
            let (sine, cosine) = (position as f64 * frequency).sin_cos();
            cosines.push((cosine * rope.magnitude) as f32);
            sines.push((sine * rope.magnitude) as f32);
        }
    }
}
