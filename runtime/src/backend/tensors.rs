//! [`Backend`] on any device that candle knows, by candle's own operations alone. It is how graphics processors compute;
//! on the processor it is slower than [`Kernels`](super::kernels::Kernels), and there tests hold both to the same values.
//!
//! Activations are f32. Quantised weights stay as they are in the file; weights of 16 bits stay so on a graphics
//! processor, and are widened on the processor.

use super::{
    Activation, AttentionShape, Backend, CacheShape, KvType, Precision, Projection, Projections, Rope, RopePairs,
    SpanLayout, StoredMatrix, blocks,
};
use crate::kv::{BLOCK_TOKENS, BlockId};
use crate::model::ModelError;
use candle_core::quantized::QTensor;
use candle_core::{D, DType, Device, Tensor};
use escadre_verify::structure::gguf::TensorType;
use std::cell::RefCell;
use std::collections::HashMap;

/// Scores held at a time, in values. Bounds scratch memory to 128 MiB for prompts of any length.
const MAX_SCORES: usize = 32 << 20;

/// The backend: where it computes, and how weights are packed.
#[derive(Debug, Clone)]
pub struct Tensors {
    device: Device,
    precision: Precision,
}

impl Tensors {
    /// A backend on a device.
    pub fn new(device: Device, precision: Precision) -> Self {
        Self { device, precision }
    }

    /// Whether a matrix is held as numbers, and of which type. Absent: as blocks.
    fn dense(&self, kind: TensorType) -> Option<DType> {
        let stored = match kind {
            TensorType::F32 => DType::F32,
            TensorType::F16 => DType::F16,
            TensorType::Bf16 => DType::BF16,
            _ => return (self.precision == Precision::Widened).then_some(DType::F32),
        };
        let is_wide = self.precision == Precision::Widened || self.device.is_cpu();
        Some(if is_wide { DType::F32 } else { stored })
    }

    fn indices(&self, values: impl IntoIterator<Item = usize>) -> Result<Tensor, ModelError> {
        let values: Vec<u32> = values
            .into_iter()
            .map(|value| u32::try_from(value).map_err(|_| ModelError::Tensor(format!("{value} is no index"))))
            .collect::<Result<_, _>>()?;
        Ok(Tensor::from_slice(&values, values.len(), &self.device)?)
    }
}

/// A packed matrix, `[outputs, inputs]`.
#[derive(Debug)]
pub enum Matrix {
    /// Blocks as in the file.
    Blocks(QTensor),
    /// Numbers.
    Dense(Tensor),
}

impl Matrix {
    fn multiply(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        Ok(match self {
            Self::Blocks(blocks) => x.contiguous()?.apply_op1_no_bwd(blocks)?,
            Self::Dense(values) => x.to_dtype(values.dtype())?.matmul(&values.t()?)?.to_dtype(DType::F32)?,
        })
    }
}

/// Keys and values of all sequences: per layer and side `[blocks * BLOCK_TOKENS, kv_heads * head_size]`.
#[derive(Debug)]
pub struct Cache {
    layers: Vec<[Tensor; 2]>,
}

/// What a step's layers share.
#[derive(Debug)]
pub struct Step {
    spans: Vec<SpanLayout>,
    /// Where the keys and values of each row go, `[rows]`.
    places: Tensor,
    /// Where those of all tokens of each span are, `[tokens]`.
    known: Vec<Tensor>,
    /// Cosine and sine of every row and pair for each rotation, `[rows, 1, pairs]`.
    turns: Vec<Turns>,
    /// What is added to the scores of some rows of a span, by span, first row, rows and window.
    masks: RefCell<HashMap<Masked, Tensor>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Masked {
    /// The position of the first query.
    position: usize,
    queries: usize,
    /// The position of the first key.
    first: usize,
    window: Option<usize>,
}

#[derive(Debug)]
struct Turns {
    cosines: Tensor,
    sines: Tensor,
    pairs: usize,
    layout: RopePairs,
}

/// Where a token of a sequence is in the cache.
fn place(span: &SpanLayout, position: usize) -> usize {
    span.blocks[position / BLOCK_TOKENS].0 as usize * BLOCK_TOKENS + position % BLOCK_TOKENS
}

impl From<candle_core::Error> for ModelError {
    fn from(error: candle_core::Error) -> Self {
        Self::Tensor(error.to_string())
    }
}

impl Turns {
    fn new(spans: &[SpanLayout], rope: &Rope, device: &Device) -> Result<Self, ModelError> {
        let pairs = rope.frequencies.len();
        let (mut cosines, mut sines) = (Vec::new(), Vec::new());
        super::turns(spans, rope, &mut cosines, &mut sines);
        let shape = (cosines.len() / pairs.max(1), 1, pairs);
        Ok(Self {
            cosines: Tensor::from_vec(cosines, shape, device)?,
            sines: Tensor::from_vec(sines, shape, device)?,
            pairs,
            layout: rope.pairs,
        })
    }

    /// Turns every head of `x`, `[rows, heads, head_size]`.
    fn turn(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let (rows, heads, size) = x.dims3()?;
        let turned = 2 * self.pairs;
        let (one, other) = match self.layout {
            RopePairs::Halves => (x.narrow(2, 0, self.pairs)?, x.narrow(2, self.pairs, self.pairs)?),
            RopePairs::Adjacent => {
                let pairs = x.narrow(2, 0, turned)?.reshape((rows, heads, self.pairs, 2))?;
                (pairs.narrow(3, 0, 1)?.squeeze(3)?, pairs.narrow(3, 1, 1)?.squeeze(3)?)
            }
        };
        let part = |x: &Tensor, by: &Tensor| x.broadcast_mul(by);
        let first = (part(&one, &self.cosines)? - part(&other, &self.sines)?)?;
        let second = (part(&one, &self.sines)? + part(&other, &self.cosines)?)?;
        let values = match self.layout {
            RopePairs::Halves => Tensor::cat(&[first, second], 2)?,
            RopePairs::Adjacent => Tensor::stack(&[first, second], 3)?.reshape((rows, heads, turned))?,
        };
        if turned == size {
            return Ok(values);
        }
        Ok(Tensor::cat(&[values, x.narrow(2, turned, size - turned)?], 2)?)
    }
}

impl Step {
    fn mask(&self, masked: Masked, shape: AttentionShape, keys: usize, device: &Device) -> Result<Tensor, ModelError> {
        if let Some(mask) = self.masks.borrow().get(&masked) {
            return Ok(mask.clone());
        }
        let mut values = vec![f32::NEG_INFINITY; masked.queries * keys];
        for (query, row) in values.chunks_exact_mut(keys).enumerate() {
            let position = masked.position + query;
            row[shape.hidden_keys(position).max(masked.first) - masked.first..=position - masked.first].fill(0.0);
        }
        let mask = Tensor::from_vec(values, (1, masked.queries, keys), device)?;
        self.masks.borrow_mut().insert(masked, mask.clone());
        Ok(mask)
    }
}

fn rms_norm(x: &Tensor, weight: &Tensor, epsilon: f32) -> Result<Tensor, ModelError> {
    let mean = (x.sqr()?.mean_keepdim(D::Minus1)? + f64::from(epsilon))?;
    Ok(x.broadcast_div(&mean.sqrt()?)?.broadcast_mul(weight)?)
}

fn softmax(scores: &Tensor) -> Result<Tensor, ModelError> {
    let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    Ok(weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?)
}

/// Rows of queries of one span against its keys and values, `[kv_heads, keys, head_size]`. Gives `[queries, width]`.
fn attend(
    query: &Tensor,
    (keys, values): (&Tensor, &Tensor),
    mask: Option<&Tensor>,
    shape: AttentionShape,
) -> Result<Tensor, ModelError> {
    let AttentionShape {
        heads,
        kv_heads,
        head_size: size,
        ..
    } = shape;
    let (queries, group) = (query.dim(0)?, heads / kv_heads);
    let query = query.reshape((queries, kv_heads, group, size))?.permute((1, 2, 0, 3))?;
    let query = query.contiguous()?.reshape((kv_heads, group * queries, size))?;
    let mut scores = (query.matmul(&keys.t()?)? * f64::from(shape.scale))?;
    if let Some(cap) = shape.soft_cap {
        scores = ((scores / f64::from(cap))?.tanh()? * f64::from(cap))?;
    }
    if let Some(mask) = mask {
        let by_head = scores.reshape((heads, queries, ()))?;
        scores = by_head.broadcast_add(mask)?.reshape((kv_heads, group * queries, ()))?;
    }
    let mixed = softmax(&scores)?.matmul(values)?;
    let mixed = mixed.reshape((kv_heads, group, queries, size))?.permute((2, 0, 1, 3))?;
    Ok(mixed.contiguous()?.reshape((queries, heads * size))?)
}

impl Backend for Tensors {
    type Buffer = Tensor;
    type Matrix = Matrix;
    type Vector = Tensor;
    type Cache = Cache;
    type Step = Step;

    fn free_memory(&self) -> Option<u64> {
        super::device::free_memory(&self.device)
    }

    fn supports(&self, kind: TensorType) -> bool {
        blocks::block_type(kind).is_some()
    }

    fn resident_bytes(&self, kind: TensorType, elements: u64) -> u64 {
        match self.dense(kind) {
            Some(dtype) => elements.saturating_mul(dtype.size_in_bytes() as u64),
            None => elements / kind.block_elements() as u64 * kind.block_bytes() as u64,
        }
    }

    fn matrix(&self, stored: StoredMatrix<'_>) -> Result<Matrix, ModelError> {
        let (kind, columns) = (stored.kind, stored.columns);
        let packed = blocks::pack(&stored, &self.device)?;
        let dense = self.dense(kind).or_else(|| {
            let is_odd = self.device.is_cpu() && blocks::is_odd(kind, columns);
            is_odd.then_some(DType::F32)
        });
        Ok(match dense {
            None => Matrix::Blocks(packed),
            Some(dtype) => Matrix::Dense(packed.dequantize(&self.device)?.to_dtype(dtype)?),
        })
    }

    fn vector(&self, values: Vec<f32>) -> Result<Tensor, ModelError> {
        let length = values.len();
        Ok(Tensor::from_vec(values, length, &self.device)?)
    }

    fn cache(&self, shape: CacheShape) -> Result<Cache, ModelError> {
        let kind = match shape.kind {
            KvType::F16 => DType::F16,
            KvType::F32 => DType::F32,
        };
        let side = || {
            let places = shape.blocks.saturating_mul(BLOCK_TOKENS);
            Tensor::zeros((places, shape.kv_heads * shape.head_size), kind, &self.device)
        };
        let layers = (0..shape.layers).map(|_| Ok([side()?, side()?]));
        Ok(Cache {
            layers: layers.collect::<Result<_, ModelError>>()?,
        })
    }

    fn copy_block(&self, cache: &mut Cache, from: BlockId, to: BlockId) -> Result<(), ModelError> {
        for side in cache.layers.iter().flatten() {
            let block = side.narrow(0, from.0 as usize * BLOCK_TOKENS, BLOCK_TOKENS)?.copy()?;
            side.slice_set(&block, 0, to.0 as usize * BLOCK_TOKENS)?;
        }
        Ok(())
    }

    fn begin(&self, spans: &[SpanLayout], ropes: &[Rope]) -> Result<Step, ModelError> {
        let rows = spans.iter().flat_map(|span| {
            let positions = span.start..span.start + span.rows.len();
            positions.map(|position| place(span, position))
        });
        let known = spans.iter().map(|span| {
            let tokens = span.start + span.rows.len();
            self.indices((0..tokens).map(|position| place(span, position)))
        });
        let turns = ropes.iter().map(|rope| Turns::new(spans, rope, &self.device));
        Ok(Step {
            places: self.indices(rows)?,
            known: known.collect::<Result<_, _>>()?,
            turns: turns.collect::<Result<_, _>>()?,
            spans: spans.to_vec(),
            masks: RefCell::default(),
        })
    }

    fn embed(&self, table: &Matrix, tokens: &[u32]) -> Result<Tensor, ModelError> {
        let vocabulary = match table {
            Matrix::Blocks(blocks) => blocks.shape().dims2()?.0,
            Matrix::Dense(values) => values.dim(0)?,
        };
        // A graphics processor would read whatever lies there.
        if let Some(token) = tokens.iter().find(|token| **token as usize >= vocabulary) {
            return Err(ModelError::Batch(format!("token {token} has no embedding")));
        }
        let ids = Tensor::from_slice(tokens, tokens.len(), &self.device)?;
        Ok(match table {
            Matrix::Blocks(blocks) => blocks.embedding(&ids)?,
            Matrix::Dense(values) => values.index_select(&ids, 0)?.to_dtype(DType::F32)?,
        })
    }

    fn rms_norm(&self, x: &Tensor, weight: &Tensor, epsilon: f32) -> Result<Tensor, ModelError> {
        rms_norm(x, weight, epsilon)
    }

    fn head_norm(&self, x: Tensor, weight: &Tensor, epsilon: f32) -> Result<Tensor, ModelError> {
        let (rows, width) = x.dims2()?;
        let heads = x.reshape((rows, (), weight.dim(0)?))?;
        Ok(rms_norm(&heads, weight, epsilon)?.reshape((rows, width))?)
    }

    fn scale(&self, x: Tensor, factor: f32) -> Result<Tensor, ModelError> {
        Ok((x * f64::from(factor))?)
    }

    fn linear(&self, x: &Tensor, projection: &Projection<Self>) -> Result<Tensor, ModelError> {
        let product = projection.weight.multiply(x)?;
        Ok(match &projection.bias {
            None => product,
            Some(bias) => product.broadcast_add(bias)?,
        })
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
        let (rows, width) = key.dims2()?;
        let (query, key) = match shape.rope {
            None => (query, key),
            Some(rope) => {
                let turned = |x: &Tensor, heads: usize| {
                    let by_head = x.reshape((rows, heads, shape.head_size))?;
                    Ok::<_, ModelError>(
                        step.turns[rope]
                            .turn(&by_head)?
                            .reshape((rows, heads * shape.head_size))?,
                    )
                };
                (turned(&query, shape.heads)?, turned(&key, shape.kv_heads)?)
            }
        };
        let places = step.places.unsqueeze(1)?.broadcast_as((rows, width))?.contiguous()?;
        for (side, new) in cache.layers[layer].iter().zip([key, value]) {
            side.scatter_set(&places, &new.to_dtype(side.dtype())?.contiguous()?, 0)?;
        }
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
        let mut mixed = Vec::new();
        for (span, known) in step.spans.iter().zip(&step.known) {
            let tokens = span.start + span.rows.len();
            // What no query of the span sees is left out.
            let first = shape.hidden_keys(span.start);
            let seen = known.narrow(0, first, tokens - first)?;
            let side = |side: &Tensor| {
                let rows = side.index_select(&seen, 0)?.to_dtype(DType::F32)?;
                let by_head = rows.reshape(((), shape.kv_heads, shape.head_size))?;
                Ok::<_, ModelError>(by_head.transpose(0, 1)?.contiguous()?)
            };
            let [keys, values] = &cache.layers[layer];
            let (keys, values) = (side(keys)?, side(values)?);
            let most = (MAX_SCORES / (shape.heads * (tokens - first))).max(1);
            for row in span.rows.clone().step_by(most) {
                let queries = most.min(span.rows.end - row);
                let position = span.start + row - span.rows.start;
                let last = position + queries;
                let (keys, values) = (keys.narrow(1, 0, last - first)?, values.narrow(1, 0, last - first)?);
                let masked = Masked {
                    position,
                    queries,
                    first,
                    window: shape.window,
                };
                let is_masked = queries > 1 || shape.hidden_keys(position) > first;
                let mask = is_masked
                    .then(|| step.mask(masked, shape, last - first, &self.device))
                    .transpose()?;
                let query = query.narrow(0, row, queries)?;
                mixed.push(attend(&query, (&keys, &values), mask.as_ref(), shape)?);
            }
        }
        Ok(Tensor::cat(&mixed, 0)?)
    }

    fn gated(
        &self,
        x: &Tensor,
        gate: &Projection<Self>,
        up: &Projection<Self>,
        activation: Activation,
    ) -> Result<Tensor, ModelError> {
        let (gate, up) = (self.linear(x, gate)?, self.linear(x, up)?);
        let gate = match activation {
            Activation::Silu => gate.silu()?,
            Activation::GeluTanh => gate.gelu()?,
        };
        Ok((gate * up)?)
    }

    fn add(&self, x: Tensor, y: Tensor) -> Result<Tensor, ModelError> {
        Ok((x + y)?)
    }

    fn select(&self, x: &Tensor, rows: &[usize]) -> Result<Tensor, ModelError> {
        Ok(x.index_select(&self.indices(rows.iter().copied())?, 0)?)
    }

    fn read(&self, x: &Tensor, out: &mut Vec<f32>) -> Result<(), ModelError> {
        out.extend(x.flatten_all()?.to_vec1::<f32>()?);
        Ok(())
    }

    fn lm_head(&self, x: &Tensor, head: &Matrix, out: &mut Vec<f32>) -> Result<(), ModelError> {
        out.extend(head.multiply(x)?.flatten_all()?.to_vec1::<f32>()?);
        Ok(())
    }
}
