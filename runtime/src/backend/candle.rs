//! [`Backend`] on candle: quantised blocks or f32 matrices; an allocation per operation.
//!
//! # Guarantees
//! Results do not depend on how tokens are cut into steps beyond rounding; there is no promise of equal bits.
//! Scratch memory of attention is bounded, whatever the length of a prompt.

mod attention;
pub(super) mod blocks;
mod cache;
mod many;
mod ops;
mod parallel;
mod product;
mod rows;
mod softmax;
mod vectors;
mod weights;

pub use cache::Cache;
pub use weights::Matrix;

use super::{
    Activation, AttentionShape, Backend, CacheShape, MatrixUse, Precision, Projections, Rope, RopePairs, SpanLayout,
    StoredMatrix,
};
use crate::kv::BlockId;
use crate::model::ModelError;
use candle_core::Tensor;
use escadre_verify::structure::gguf::TensorType;

impl From<candle_core::Error> for ModelError {
    fn from(error: candle_core::Error) -> Self {
        Self::Tensor(error.to_string())
    }
}

/// The backend; it holds no state but how weights are packed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Candle {
    precision: Precision,
}

impl Candle {
    /// A backend on the processor.
    pub fn new(precision: Precision) -> Self {
        Self { precision }
    }
}

/// Where rows belong, and how far they are turned.
#[derive(Debug)]
pub struct Step {
    spans: Vec<SpanLayout>,
    turns: Vec<Turns>,
}

/// Cosine and sine of every row and pair for one rotation.
#[derive(Debug)]
struct Turns {
    cosines: Vec<f32>,
    sines: Vec<f32>,
    pairs: usize,
    layout: RopePairs,
}

impl Step {
    fn new(spans: &[SpanLayout], ropes: &[Rope]) -> Self {
        Self {
            spans: spans.to_vec(),
            turns: ropes.iter().map(|rope| Turns::new(spans, rope)).collect(),
        }
    }
}

impl Turns {
    fn new(spans: &[SpanLayout], rope: &Rope) -> Self {
        let (cosines, sines) = super::turns(spans, rope);
        Self {
            cosines,
            sines,
            pairs: rope.frequencies.len(),
            layout: rope.pairs,
        }
    }
}

impl Backend for Candle {
    type Buffer = Tensor;
    type Matrix = Matrix;
    type Vector = Vec<f32>;
    type Cache = Cache;
    type Step = Step;

    fn free_memory(&self) -> Option<u64> {
        None
    }

    fn supports(&self, kind: TensorType) -> bool {
        blocks::block_type(kind).is_some()
    }

    fn resident_bytes(&self, kind: TensorType, elements: u64, usage: MatrixUse) -> u64 {
        weights::resident_bytes(kind, elements, usage, self.precision)
    }

    fn matrix(&self, stored: StoredMatrix<'_>, usage: MatrixUse) -> Result<Matrix, ModelError> {
        Matrix::new(&stored, usage, self.precision)
    }

    fn vector(&self, values: Vec<f32>) -> Result<Vec<f32>, ModelError> {
        Ok(values)
    }

    fn cache(&self, shape: CacheShape) -> Result<Cache, ModelError> {
        Cache::new(shape)
    }

    fn copy_block(&self, cache: &mut Cache, from: BlockId, to: BlockId) -> Result<(), ModelError> {
        cache.copy_block(from, to);
        Ok(())
    }

    fn begin(&self, spans: &[SpanLayout], ropes: &[Rope]) -> Result<Step, ModelError> {
        Ok(Step::new(spans, ropes))
    }

    fn embed(&self, table: &Matrix, tokens: &[u32]) -> Result<Tensor, ModelError> {
        table.rows_of(tokens)
    }

    fn rms_norm(&self, x: &Tensor, weight: &Vec<f32>, epsilon: f32) -> Result<Tensor, ModelError> {
        ops::rms_norm(x, weight, epsilon)
    }

    fn head_norm(&self, x: Tensor, weight: &Vec<f32>, epsilon: f32) -> Result<Tensor, ModelError> {
        let width = x.dim(1)?;
        Ok(ops::rms_norm(&x, weight, epsilon)?.reshape(((), width))?)
    }

    fn scale(&self, x: Tensor, factor: f32) -> Result<Tensor, ModelError> {
        Ok((x * f64::from(factor))?)
    }

    fn linear(&self, x: &Tensor, weight: &Matrix, bias: Option<&Vec<f32>>) -> Result<Tensor, ModelError> {
        let product = weight.multiply(x)?;
        match bias {
            None => Ok(product),
            Some(bias) => ops::add_bias(product, bias),
        }
    }

    fn rope_append(
        &self,
        projections: Projections<Tensor>,
        shape: AttentionShape,
        layer: usize,
        step: &Step,
        cache: &mut Cache,
    ) -> Result<Tensor, ModelError> {
        let Projections { query, key, value } = projections;
        if let Some(rope) = shape.rope {
            ops::rotate(&query, shape.head_size, &step.turns[rope])?;
            ops::rotate(&key, shape.head_size, &step.turns[rope])?;
        }
        ops::with_values(&key, |key| {
            ops::with_values(&value, |value| cache.append(layer, &step.spans, key, value))
        })???;
        Ok(query)
    }

    fn attention(
        &self,
        query: Tensor,
        shape: AttentionShape,
        layer: usize,
        step: &Step,
        cache: &Cache,
    ) -> Result<Tensor, ModelError> {
        attention::attend(&query, shape, layer, &step.spans, cache)
    }

    fn gate(&self, gate: Tensor, up: Tensor, activation: Activation) -> Result<Tensor, ModelError> {
        match activation {
            Activation::Silu => ops::gate_times(&gate, &up, ops::silu),
            Activation::GeluTanh => ops::gate_times(&gate, &up, ops::gelu_tanh),
        }
    }

    fn add(&self, x: Tensor, y: Tensor) -> Result<Tensor, ModelError> {
        Ok((x + y)?)
    }

    fn select(&self, x: &Tensor, rows: &[usize]) -> Result<Tensor, ModelError> {
        ops::select(x, rows)
    }

    fn read(&self, x: &Tensor, out: &mut Vec<f32>) -> Result<(), ModelError> {
        ops::with_values(x, |values| out.extend_from_slice(values))
    }

    fn lm_head(&self, x: &Tensor, head: &Matrix, out: &mut Vec<f32>) -> Result<(), ModelError> {
        let logits = head.multiply(x)?;
        ops::with_values(&logits, |values| out.extend_from_slice(values))
    }
}
