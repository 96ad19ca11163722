//! Causal attention, one sequence after the other, as two matrix products per block of queries.

use super::super::{AttentionShape, SpanLayout};
use super::cache::Cache;
use super::ops::{self, values_mut, with_values};
use crate::model::ModelError;
use candle_core::{CpuStorage, InplaceOp1, Layout, Tensor};

/// Scores held at a time, in values. Bounds scratch memory to 32 MiB for prompts of any length.
const MAX_SCORES: usize = 8 << 20;
/// Queries in one block at most: more gain nothing in the products, and compute more scores that are masked.
const MAX_QUERIES: usize = 128;

pub(super) fn attend(
    query: &Tensor,
    shape: AttentionShape,
    layer: usize,
    spans: &[SpanLayout],
    cache: &Cache,
) -> Result<Tensor, ModelError> {
    let (rows, width) = query.dims2()?;
    let mut out = vec![0.0; rows * width];
    for span in spans {
        let longest = span.start + span.rows.len();
        let block = (MAX_SCORES / (shape.heads * longest)).clamp(1, MAX_QUERIES);
        for first in span.rows.clone().step_by(block) {
            let block = Block {
                first,
                count: block.min(span.rows.end - first),
                position: span.start + first - span.rows.start,
            };
            let (keys, values) = cache.view(layer, span.sequence, block.position + block.count)?;
            // Keys that no query of the block sees are left out.
            let hidden = hidden_keys(shape, block.position);
            let seen = block.position + block.count - hidden;
            let (keys, values) = (keys.narrow(1, hidden, seen)?, values.narrow(1, hidden, seen)?);
            let mixed = block.attend(query, shape, &keys, &values)?;
            with_values(&mixed, |mixed| block.scatter(mixed, shape, &mut out))?;
        }
    }
    ops::buffer(out, width)
}

/// How many keys from the beginning are outside the window of the query at `position`.
fn hidden_keys(shape: AttentionShape, position: usize) -> usize {
    shape.window.map_or(0, |window| (position + 1).saturating_sub(window))
}

/// Some queries of one sequence.
struct Block {
    /// The first row in the buffers.
    first: usize,
    /// How many rows.
    count: usize,
    /// The position of the first row in its sequence.
    position: usize,
}

impl Block {
    /// Gives `[kv_heads, group * count, head_size]`.
    fn attend(
        &self,
        query: &Tensor,
        shape: AttentionShape,
        keys: &Tensor,
        values: &Tensor,
    ) -> Result<Tensor, ModelError> {
        let query = with_values(query, |query| self.gather(query, shape))?;
        let group = shape.heads / shape.kv_heads;
        let query =
            ops::buffer(query, shape.head_size)?.reshape((shape.kv_heads, group * self.count, shape.head_size))?;
        let scores = query.matmul(&keys.transpose(1, 2)?)?;
        scores.inplace_op1(&CausalSoftmax { block: self, shape })?;
        Ok(scores.matmul(values)?)
    }

    /// Rows by head: all queries that share a head of keys lie together.
    fn gather(&self, query: &[f32], shape: AttentionShape) -> Vec<f32> {
        let width = shape.heads * shape.head_size;
        let mut out = Vec::with_capacity(self.count * width);
        for head in 0..shape.heads {
            for row in self.first..self.first + self.count {
                let start = row * width + head * shape.head_size;
                out.extend_from_slice(&query[start..start + shape.head_size]);
            }
        }
        out
    }

    fn scatter(&self, mixed: &[f32], shape: AttentionShape, out: &mut [f32]) {
        let width = shape.heads * shape.head_size;
        for (index, vector) in mixed.chunks_exact(shape.head_size).enumerate() {
            let (head, row) = (index / self.count, index % self.count);
            let start = (self.first + row) * width + head * shape.head_size;
            out[start..start + shape.head_size].copy_from_slice(vector);
        }
    }
}

/// Softmax over the keys that a query may see; the weights of the others become 0.
struct CausalSoftmax<'a> {
    block: &'a Block,
    shape: AttentionShape,
}

impl InplaceOp1 for CausalSoftmax<'_> {
    fn name(&self) -> &'static str {
        "causal-softmax"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let first = hidden_keys(self.shape, self.block.position);
        let keys = self.block.position + self.block.count - first;
        for (index, row) in values_mut(storage, layout)?.chunks_exact_mut(keys).enumerate() {
            let position = self.block.position + index % self.block.count;
            let (row, later) = row.split_at_mut(position + 1 - first);
            let (earlier, seen) = row.split_at_mut(hidden_keys(self.shape, position) - first);
            match self.shape.soft_cap {
                None => softmax(seen, self.shape.scale),
                Some(cap) => {
                    for score in seen.iter_mut() {
                        *score = (*score * self.shape.scale / cap).tanh();
                    }
                    softmax(seen, cap);
                }
            }
            earlier.fill(0.0);
            later.fill(0.0);
        }
        Ok(())
    }
}

fn softmax(row: &mut [f32], scale: f32) {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for value in row.iter_mut() {
        *value = ((*value - largest) * scale).exp();
        sum += *value;
    }
    for value in row {
        *value /= sum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn softmax_is_scaled_and_sums_to_one() {
        let mut row = [1.0, 3.0];
        softmax(&mut row, 0.5);
        let expected = 1.0 / (1.0 + 1_f32.exp());
        assert!((row[0] - expected).abs() < 1e-6);
        assert!((row[0] + row[1] - 1.0).abs() < 1e-6);
    }
}
