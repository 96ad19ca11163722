//! [`Backend`] on the processor with arithmetic of our own ([`escadre_kernels`]).
//!
//! # Guarantees
//! At one instruction level the logits of a token depend on the tokens before it and on nothing else, to the last bit:
//! neither on what else is in the step, nor on how a prompt was cut, nor on the number of threads.
//!
//! Buffers of a step are given back when they are dropped, and used again: once steps have had a size, steps of that size
//! allocate nothing here.

mod matrix;
mod profile;
mod spare;

pub use matrix::Matrix;
pub use profile::{Operation, Profile};
pub use spare::Buffer;

use super::{
    Activation, AttentionShape, Backend, CacheShape, KvType, Precision, Projection, Projections, Rope, RopePairs,
    SpanLayout, StoredMatrix,
};
use crate::kv::{BLOCK_TOKENS, BlockId};
use crate::model::ModelError;
use escadre_kernels::rows::{self, Turns};
use escadre_kernels::{Activations, Attention, Cores, Gate, Memory, Numbers, Partial, Product, Spans};
use escadre_verify::structure::gguf::TensorType;
use spare::Spare;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The backend: what computes, how weights are packed, and memory that steps use again.
#[derive(Debug)]
pub struct Kernels {
    cores: Arc<Cores>,
    precision: Precision,
    memory: Memory,
    profile: Option<Arc<Profile>>,
    spare: Arc<Spare>,
    scratch: Mutex<Scratch>,
}

/// What one operation at a time computes in.
#[derive(Debug)]
struct Scratch {
    activations: Activations,
    partial: Partial,
}

/// Keys and values of all layers.
#[derive(Debug)]
pub struct Cache {
    layers: Vec<escadre_kernels::Cache>,
}

/// Where rows belong, and how far they are turned.
#[derive(Debug, Default)]
pub struct Step {
    spans: Spans,
    turns: Vec<Turns>,
}

impl Kernels {
    /// A backend on some threads.
    pub fn new(cores: Arc<Cores>, precision: Precision) -> Self {
        Self {
            precision,
            memory: Memory::default(),
            profile: None,
            spare: Arc::default(),
            scratch: Mutex::new(Scratch {
                activations: Activations::new(cores.level()),
                partial: Partial::default(),
            }),
            cores,
        }
    }

    /// The same, measured.
    #[must_use]
    pub fn with_profile(self, profile: Option<Arc<Profile>>) -> Self {
        Self { profile, ..self }
    }

    fn time<R>(&self, operation: Operation, work: impl FnOnce() -> R) -> R {
        match &self.profile {
            None => work(),
            Some(profile) => profile.time(operation, work),
        }
    }

    fn scratch(&self) -> MutexGuard<'_, Scratch> {
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn buffer(&self, rows: usize, width: usize) -> Buffer {
        Buffer::take(&self.spare, rows, width)
    }

    /// Several products of the same activations.
    fn products<const N: usize>(&self, x: &Buffer, projections: [&Projection<Self>; N]) -> [Buffer; N] {
        let mut out = projections.map(|projection| self.buffer(x.rows(), projection.weight.outputs()));
        {
            let mut buffers = out.each_mut().into_iter();
            let products = projections.map(|projection| Product {
                projection: matrix::projection(projection),
                // There are as many of them.
                out: buffers.next().map(|buffer| &mut **buffer).unwrap_or_default(),
                adds: false,
            });
            escadre_kernels::linear(&self.cores, &mut self.scratch().activations, x, products);
        }
        out
    }
}

fn layer_of(layers: &mut [escadre_kernels::Cache], layer: usize) -> Result<&mut escadre_kernels::Cache, ModelError> {
    layers.get_mut(layer).ok_or_else(|| no_layer(layer))
}

fn no_layer(layer: usize) -> ModelError {
    ModelError::Tensor(format!("layer {layer} has no cache"))
}

impl Backend for Kernels {
    type Buffer = Buffer;
    type Matrix = Matrix;
    type Vector = Vec<f32>;
    type Cache = Cache;
    type Step = Step;

    fn free_memory(&self) -> Option<u64> {
        None
    }

    fn supports(&self, kind: TensorType) -> bool {
        matrix::kind(kind).is_some()
    }

    fn resident_bytes(&self, kind: TensorType, elements: u64) -> u64 {
        matrix::resident_bytes(kind, elements, self.precision)
    }

    fn matrix(&self, stored: StoredMatrix<'_>) -> Result<Matrix, ModelError> {
        Matrix::new(&self.cores, &self.memory, &stored, self.precision)
    }

    fn vector(&self, values: Vec<f32>) -> Result<Vec<f32>, ModelError> {
        Ok(values)
    }

    fn self_test(&self, matrix: &Matrix) -> Result<(), ModelError> {
        if matrix.agrees(&self.cores) {
            return Ok(());
        }
        let level = self.cores.level();
        let message =
            format!("products with {level:?} are not those of plain loops; the memory or the processor is faulty");
        Err(ModelError::Tensor(message))
    }

    fn cache(&self, shape: CacheShape) -> Result<Cache, ModelError> {
        let of_layer = escadre_kernels::CacheShape {
            kv_heads: shape.kv_heads,
            head_size: shape.head_size,
            blocks: shape.blocks,
            numbers: match shape.kind {
                KvType::F16 => Numbers::F16,
                KvType::F32 => Numbers::F32,
            },
        };
        const { assert!(BLOCK_TOKENS == escadre_kernels::BLOCK_KEYS) };
        let too_large = || ModelError::Tensor(format!("a cache of {} blocks is larger than any memory", shape.blocks));
        let layers = (0..shape.layers).map(|_| escadre_kernels::Cache::new(of_layer).ok_or_else(too_large));
        Ok(Cache {
            layers: layers.collect::<Result<_, _>>()?,
        })
    }

    fn copy_block(&self, cache: &mut Cache, from: BlockId, to: BlockId) -> Result<(), ModelError> {
        for layer in &mut cache.layers {
            layer.copy_block(from.0, to.0);
        }
        Ok(())
    }

    fn begin(&self, spans: &[SpanLayout], ropes: &[Rope]) -> Result<Step, ModelError> {
        let mut step = Step::default();
        for span in spans {
            step.spans
                .push(span.blocks.iter().map(|block| block.0), span.rows.clone(), span.start);
        }
        step.turns.extend(ropes.iter().map(|rope| {
            let mut turns = Turns {
                pairs: rope.frequencies.len(),
                are_adjacent: rope.pairs == RopePairs::Adjacent,
                ..Turns::default()
            };
            super::turns(spans, rope, &mut turns.cosines, &mut turns.sines);
            turns
        }));
        Ok(step)
    }

    fn embed(&self, table: &Matrix, tokens: &[u32]) -> Result<Buffer, ModelError> {
        if let Some(token) = tokens.iter().find(|token| **token as usize >= table.outputs()) {
            return Err(ModelError::Batch(format!("token {token} has no embedding")));
        }
        let mut out = self.buffer(tokens.len(), table.inputs());
        self.time(Operation::Embedding, || {
            self.cores.chunks(&mut out, table.inputs(), |row, out| {
                table.look_up(&self.cores, tokens[row] as usize, out);
            });
        });
        Ok(out)
    }

    fn rms_norm(&self, x: &Buffer, weight: &Vec<f32>, epsilon: f32) -> Result<Buffer, ModelError> {
        let mut out = self.buffer(x.rows(), x.width());
        self.time(Operation::Norm, || {
            rows::rms_norm(&self.cores, x, weight, epsilon, &mut out);
        });
        Ok(out)
    }

    fn head_norm(&self, mut x: Buffer, weight: &Vec<f32>, epsilon: f32) -> Result<Buffer, ModelError> {
        self.time(Operation::Norm, || {
            rows::rms_norm_in_place(&self.cores, &mut x, weight, epsilon);
        });
        Ok(x)
    }

    fn scale(&self, mut x: Buffer, factor: f32) -> Result<Buffer, ModelError> {
        rows::scale(&self.cores, &mut x, factor);
        Ok(x)
    }

    fn linear(&self, x: &Buffer, projection: &Projection<Self>) -> Result<Buffer, ModelError> {
        let [out] = self.time(Operation::Linear, || self.products(x, [projection]));
        Ok(out)
    }

    fn add_linear(&self, mut stream: Buffer, x: &Buffer, projection: &Projection<Self>) -> Result<Buffer, ModelError> {
        let product = Product {
            projection: matrix::projection(projection),
            out: &mut stream,
            adds: true,
        };
        self.time(Operation::Linear, || {
            escadre_kernels::linear(&self.cores, &mut self.scratch().activations, x, [product]);
        });
        Ok(stream)
    }

    fn project(&self, x: &Buffer, projections: [&Projection<Self>; 3]) -> Result<Projections<Buffer>, ModelError> {
        let [query, key, value] = self.time(Operation::Project, || self.products(x, projections));
        Ok(Projections { query, key, value })
    }

    fn gated(
        &self,
        x: &Buffer,
        gate: &Projection<Self>,
        up: &Projection<Self>,
        activation: Activation,
    ) -> Result<Buffer, ModelError> {
        let mut out = self.buffer(x.rows(), gate.weight.outputs());
        let kind = match activation {
            Activation::Silu => Gate::Silu,
            Activation::GeluTanh => Gate::GeluTanh,
        };
        let projections = [gate, up].map(matrix::projection);
        self.time(Operation::Gated, || {
            let scratch = &mut self.scratch().activations;
            escadre_kernels::gated(&self.cores, scratch, x, projections, kind, &mut out);
        });
        Ok(out)
    }

    fn rope_append(
        &self,
        projections: Projections<Buffer>,
        shape: AttentionShape,
        layer: usize,
        step: &Step,
        cache: &mut Cache,
    ) -> Result<Buffer, ModelError> {
        let Projections {
            mut query,
            mut key,
            value,
        } = projections;
        let cache = layer_of(&mut cache.layers, layer)?;
        self.time(Operation::RopeAppend, || {
            if let Some(rope) = shape.rope {
                for x in [&mut query, &mut key] {
                    let width = x.width();
                    rows::rotate(&self.cores, x, width, shape.head_size, &step.turns[rope]);
                }
            }
            cache.append(&self.cores, &step.spans, &key, &value);
        });
        Ok(query)
    }

    fn attention(
        &self,
        query: Buffer,
        shape: AttentionShape,
        layer: usize,
        step: &Step,
        cache: &Cache,
    ) -> Result<Buffer, ModelError> {
        let mut out = self.buffer(query.rows(), query.width());
        let attention = Attention {
            query: &query,
            heads: shape.heads,
            scale: shape.scale,
            soft_cap: shape.soft_cap,
            window: shape.window,
            spans: &step.spans,
            cache: cache.layers.get(layer).ok_or_else(|| no_layer(layer))?,
        };
        self.time(Operation::Attention, || {
            escadre_kernels::attention(&self.cores, &attention, &mut self.scratch().partial, &mut out);
        });
        Ok(out)
    }

    fn add(&self, mut x: Buffer, y: Buffer) -> Result<Buffer, ModelError> {
        rows::add(&self.cores, &mut x, &y);
        Ok(x)
    }

    fn select(&self, x: &Buffer, rows: &[usize]) -> Result<Buffer, ModelError> {
        let width = x.width();
        let mut out = self.buffer(rows.len(), width);
        for (out, row) in out.chunks_exact_mut(width).zip(rows) {
            out.copy_from_slice(&x[row * width..(row + 1) * width]);
        }
        Ok(out)
    }

    fn read(&self, x: &Buffer, out: &mut Vec<f32>) -> Result<(), ModelError> {
        out.extend_from_slice(x);
        Ok(())
    }

    fn lm_head(&self, x: &Buffer, head: &Matrix, out: &mut Vec<f32>) -> Result<(), ModelError> {
        let first = out.len();
        out.resize(first + x.rows() * head.outputs(), 0.0);
        let product = Product {
            projection: head.alone(),
            out: &mut out[first..],
            adds: false,
        };
        self.time(Operation::Head, || {
            escadre_kernels::linear(&self.cores, &mut self.scratch().activations, x, [product]);
        });
        Ok(())
    }
}
