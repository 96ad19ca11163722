//! Keys and values in f32: per sequence and layer one tensor `[kv_heads, capacity, head_size]`, grown in chunks.

use super::super::{CacheShape, SpanLayout};
use super::ops::{self, with_values};
use crate::model::{ModelError, SequenceId};
use candle_core::{DType, Device, Tensor};
use std::collections::HashMap;

/// The smallest growth in tokens. A sequence doubles until `LARGEST_GROWTH`, so that copying stays rare without
/// holding much more than is used.
const SMALLEST_GROWTH: usize = 64;
const LARGEST_GROWTH: usize = 1024;

/// Keys and values of all sequences.
#[derive(Debug)]
pub struct Cache {
    shape: CacheShape,
    sequences: HashMap<SequenceId, Sequence>,
}

#[derive(Debug, Default)]
struct Sequence {
    capacity: usize,
    layers: Vec<Layer>,
}

#[derive(Debug)]
struct Layer {
    keys: Tensor,
    values: Tensor,
}

impl Cache {
    pub(super) fn new(shape: CacheShape) -> Self {
        Self {
            shape,
            sequences: HashMap::new(),
        }
    }

    pub(super) fn open(&mut self, sequence: SequenceId) {
        self.sequences.insert(sequence, Sequence::default());
    }

    pub(super) fn close(&mut self, sequence: SequenceId) {
        self.sequences.remove(&sequence);
    }

    /// Bytes that are allocated.
    pub(super) fn bytes(&self) -> u64 {
        let tokens: usize = self.sequences.values().map(|sequence| sequence.capacity).sum();
        let CacheShape {
            layers,
            kv_heads,
            head_size,
        } = self.shape;
        (tokens * layers * kv_heads * head_size * 2 * size_of::<f32>()) as u64
    }

    /// Makes room for `tokens` tokens in all.
    pub(super) fn reserve(&mut self, sequence: SequenceId, tokens: usize) -> Result<(), ModelError> {
        let shape = self.shape;
        let sequence = self.sequences.get_mut(&sequence).ok_or_else(|| unknown(sequence))?;
        if tokens <= sequence.capacity {
            return Ok(());
        }
        let growth = sequence.capacity.clamp(SMALLEST_GROWTH, LARGEST_GROWTH);
        let capacity = tokens.max(sequence.capacity + growth).next_multiple_of(SMALLEST_GROWTH);
        let empty = || Tensor::zeros((shape.kv_heads, capacity, shape.head_size), DType::F32, &Device::Cpu);
        let mut layers = Vec::with_capacity(shape.layers);
        for index in 0..shape.layers {
            let layer = Layer {
                keys: empty()?,
                values: empty()?,
            };
            if let Some(old) = sequence.layers.get(index) {
                layer.keys.slice_set(&old.keys, 1, 0)?;
                layer.values.slice_set(&old.values, 1, 0)?;
            }
            layers.push(layer);
        }
        *sequence = Sequence { capacity, layers };
        Ok(())
    }

    /// Writes the keys and values of a span behind those that are there; room was reserved.
    pub(super) fn append(
        &self,
        layer: usize,
        span: &SpanLayout,
        key: &Tensor,
        value: &Tensor,
    ) -> Result<(), ModelError> {
        let layer = self.layer(layer, span.sequence)?;
        layer.keys.slice_set(&self.by_head(key, span)?, 1, span.start)?;
        layer.values.slice_set(&self.by_head(value, span)?, 1, span.start)?;
        Ok(())
    }

    /// The rows of a span as `[kv_heads, rows, head_size]`.
    fn by_head(&self, x: &Tensor, span: &SpanLayout) -> Result<Tensor, ModelError> {
        let CacheShape {
            kv_heads, head_size, ..
        } = self.shape;
        let width = kv_heads * head_size;
        let values = with_values(x, |values| {
            let mut out = Vec::with_capacity(span.rows.len() * width);
            for head in 0..kv_heads {
                for row in span.rows.clone() {
                    let start = row * width + head * head_size;
                    out.extend_from_slice(&values[start..start + head_size]);
                }
            }
            out
        })?;
        Ok(ops::buffer(values, head_size)?.reshape((kv_heads, span.rows.len(), head_size))?)
    }

    /// Views of the first `tokens` keys and values, `[kv_heads, tokens, head_size]`.
    pub(super) fn view(
        &self,
        layer: usize,
        sequence: SequenceId,
        tokens: usize,
    ) -> Result<(Tensor, Tensor), ModelError> {
        let layer = self.layer(layer, sequence)?;
        Ok((layer.keys.narrow(1, 0, tokens)?, layer.values.narrow(1, 0, tokens)?))
    }

    fn layer(&self, layer: usize, sequence: SequenceId) -> Result<&Layer, ModelError> {
        let held = self.sequences.get(&sequence).ok_or_else(|| unknown(sequence))?;
        held.layers.get(layer).ok_or_else(|| unknown(sequence))
    }
}

fn unknown(sequence: SequenceId) -> ModelError {
    ModelError::Batch(format!("{sequence:?} has no cache"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growing_keeps_what_was_appended() {
        let shape = CacheShape {
            layers: 2,
            kv_heads: 2,
            head_size: 3,
        };
        let mut cache = Cache::new(shape);
        let sequence = SequenceId(4);
        cache.open(sequence);
        for position in 0..200_u16 {
            let row: Vec<f32> = (0..6_u16)
                .map(|column| f32::from(position) + f32::from(column) * 1000.0)
                .collect();
            let x = ops::buffer(row, 6).unwrap();
            let start = usize::from(position);
            let span = SpanLayout {
                sequence,
                rows: 0..1,
                start,
            };
            cache.reserve(sequence, start + 1).unwrap();
            cache.append(1, &span, &x, &x).unwrap();
        }
        let (keys, _) = cache.view(1, sequence, 200).unwrap();
        let keys = keys.to_vec3::<f32>().unwrap();
        assert_eq!(keys[1][123], [3123.0, 4123.0, 5123.0]);
        assert!(cache.bytes() >= 200 * 2 * 2 * 3 * 2 * 4);
        cache.close(sequence);
        assert_eq!(cache.bytes(), 0);
    }
}
