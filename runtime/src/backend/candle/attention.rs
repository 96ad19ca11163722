//! Causal attention over the blocks of each sequence. Prompts: two matrix products per part of the queries and head of keys. Sequences that
//! get a token or a few: products of vectors, straight from the blocks, heads and sequences beside each other.

use super::super::{AttentionShape, SpanLayout};
use super::cache::{Cache, Side};
use super::ops::{self, values_mut, with_values};
use crate::kv::BLOCK_TOKENS;
use crate::model::ModelError;
use candle_core::{CpuStorage, InplaceOp1, Layout, Tensor};
use rayon::prelude::*;

/// Scores held at a time, in values. Bounds scratch memory to 32 MiB for prompts of any length.
const MAX_SCORES: usize = 8 << 20;
/// Queries in one part at most: more gain nothing in the products, and compute more scores that are masked.
const MAX_QUERIES: usize = 128;
/// Fewer cost more than they gain.
const FEWEST_QUERIES: usize = 16;
/// Up to so many rows a span is computed straight from the blocks: copying them together costs more than it gains.
const FEW_ROWS: usize = 4;

pub(super) fn attend(
    query: &Tensor,
    shape: AttentionShape,
    layer: usize,
    spans: &[SpanLayout],
    cache: &Cache,
) -> Result<Tensor, ModelError> {
    let (rows, width) = query.dims2()?;
    let (keys, values) = cache.sides(layer)?;
    let mut out = vec![0.0; rows * width];
    let (few, many): (Vec<&SpanLayout>, Vec<&SpanLayout>) = spans.iter().partition(|span| span.rows.len() <= FEW_ROWS);
    with_values(query, |query| few_rows(query, shape, &few, (keys, values), &mut out))?;
    for span in many {
        let longest = span.start + span.rows.len();
        let gathered = |side: Side<'_>| {
            let rows = side.gather(&span.blocks, longest);
            let rows = ops::buffer(rows, shape.head_size)?;
            Ok::<_, ModelError>(rows.reshape((shape.kv_heads, longest, shape.head_size))?)
        };
        let (keys, values) = (gathered(keys)?, gathered(values)?);
        let parts = Part::of(span, shape);
        let mixed = with_values(query, |query| {
            let mixed = parts.par_iter().map(|part| part.attend(query, shape, &keys, &values));
            mixed.collect::<Result<Vec<_>, ModelError>>()
        })??;
        for (part, mixed) in parts.iter().zip(mixed) {
            part.scatter(&mixed, shape, &mut out);
        }
    }
    ops::buffer(out, width)
}

/// Spans of a few rows, each with each head of keys by itself.
fn few_rows(
    query: &[f32],
    shape: AttentionShape,
    spans: &[&SpanLayout],
    (keys, values): (Side<'_>, Side<'_>),
    out: &mut [f32],
) {
    let parts = spans
        .iter()
        .flat_map(|span| (0..shape.kv_heads).map(move |head| (*span, head)));
    let parts: Vec<(&SpanLayout, usize)> = parts.collect();
    let mixed: Vec<Vec<f32>> = parts
        .clone()
        .into_par_iter()
        .map(|(span, head)| one_head(query, shape, span, head, (keys, values)))
        .collect();
    let size = shape.head_size;
    let group = shape.heads / shape.kv_heads;
    for ((span, head), mixed) in parts.into_iter().zip(mixed) {
        for (row, mixed) in span.rows.clone().zip(mixed.chunks_exact(group * size)) {
            let start = (row * shape.heads + head * group) * size;
            out[start..start + group * size].copy_from_slice(mixed);
        }
    }
}

/// All queries of a span that share a head of keys, as `[rows, group, head_size]`.
fn one_head(
    query: &[f32],
    shape: AttentionShape,
    span: &SpanLayout,
    head: usize,
    (keys, values): (Side<'_>, Side<'_>),
) -> Vec<f32> {
    let size = shape.head_size;
    let group = shape.heads / shape.kv_heads;
    let tokens = span.start + span.rows.len();
    let queries = span.rows.clone().flat_map(|row| {
        let start = (row * shape.heads + head * group) * size;
        query[start..start + group * size].chunks_exact(size)
    });
    let queries: Vec<&[f32]> = queries.collect();
    // What no query sees is left out, by whole blocks.
    let first = shape.hidden_keys(span.start) / BLOCK_TOKENS * BLOCK_TOKENS;
    let seen = tokens - first;
    let mut scores = vec![0.0; queries.len() * seen];
    let mut block = vec![0.0; BLOCK_TOKENS * size];
    let of_blocks = |side: Side<'_>, block: &mut [f32], each: &mut dyn FnMut(usize, &[f32])| {
        for (at, id) in (0..seen)
            .step_by(BLOCK_TOKENS)
            .zip(&span.blocks[first / BLOCK_TOKENS..])
        {
            let rows = &mut block[..BLOCK_TOKENS.min(seen - at) * size];
            side.rows(*id, head, rows);
            for (at, row) in (at..).zip(rows.chunks_exact(size)) {
                each(at, row);
            }
        }
    };
    of_blocks(keys, &mut block, &mut |at, key| {
        for (index, query) in queries.iter().enumerate() {
            scores[index * seen + at] = ops::dot(query, key);
        }
    });
    for (index, scores) in scores.chunks_exact_mut(seen).enumerate() {
        weigh(scores, first, span.start + index / group, shape);
    }
    let mut out = vec![0.0; queries.len() * size];
    of_blocks(values, &mut block, &mut |at, value| {
        for (index, out) in out.chunks_exact_mut(size).enumerate() {
            let weight = scores[index * seen + at];
            for (out, value) in out.iter_mut().zip(value) {
                *out += weight * value;
            }
        }
    });
    out
}

/// Turns the scores of the query at `position` into weights: softmax over the keys that it may see, 0 for the others.
/// The first score is that of the key at `first`.
fn weigh(scores: &mut [f32], first: usize, position: usize, shape: AttentionShape) {
    let (row, later) = scores.split_at_mut(position + 1 - first);
    let (earlier, seen) = row.split_at_mut(shape.hidden_keys(position).saturating_sub(first));
    match shape.soft_cap {
        None => softmax(seen, shape.scale),
        Some(cap) => {
            for score in seen.iter_mut() {
                *score = (*score * shape.scale / cap).tanh();
            }
            softmax(seen, cap);
        }
    }
    earlier.fill(0.0);
    later.fill(0.0);
}

/// Some queries of one sequence, for those of their heads that share a head of keys.
struct Part {
    /// The head of keys.
    head: usize,
    /// The first row in the buffers.
    first: usize,
    /// How many rows.
    count: usize,
    /// The position of the first row in its sequence.
    position: usize,
}

impl Part {
    /// Cuts a span so that all threads have something to do.
    fn of(span: &SpanLayout, shape: AttentionShape) -> Vec<Self> {
        let threads = rayon::current_num_threads();
        let longest = span.start + span.rows.len();
        let even = (span.rows.len() * shape.kv_heads).div_ceil(2 * threads);
        let bounded = MAX_SCORES / (shape.heads / shape.kv_heads * longest * threads);
        let rows = even.clamp(FEWEST_QUERIES, MAX_QUERIES).min(bounded).max(1);
        let firsts = span.rows.clone().step_by(rows);
        let parts = firsts.flat_map(|first| {
            (0..shape.kv_heads).map(move |head| Self {
                head,
                first,
                count: rows.min(span.rows.end - first),
                position: span.start + first - span.rows.start,
            })
        });
        parts.collect()
    }

    /// Gives `[group * count, head_size]`. Keys that no query of the part sees are left out.
    fn attend(
        &self,
        query: &[f32],
        shape: AttentionShape,
        keys: &Tensor,
        values: &Tensor,
    ) -> Result<Vec<f32>, ModelError> {
        let hidden = shape.hidden_keys(self.position);
        let seen = self.position + self.count - hidden;
        let side = |side: &Tensor| side.narrow(0, self.head, 1)?.narrow(1, hidden, seen)?.squeeze(0);
        let query = ops::buffer(self.gather(query, shape), shape.head_size)?;
        let scores = query.matmul(&side(keys)?.t()?)?;
        scores.inplace_op1(&CausalSoftmax { part: self, shape })?;
        Ok(scores.matmul(&side(values)?)?.flatten_all()?.to_vec1()?)
    }

    /// The heads of queries that share the head of keys.
    fn heads(&self, shape: AttentionShape) -> std::ops::Range<usize> {
        let group = shape.heads / shape.kv_heads;
        self.head * group..(self.head + 1) * group
    }

    /// Rows by head.
    fn gather(&self, query: &[f32], shape: AttentionShape) -> Vec<f32> {
        let mut out = Vec::with_capacity(self.count * self.heads(shape).len() * shape.head_size);
        for head in self.heads(shape) {
            for row in self.first..self.first + self.count {
                let start = (row * shape.heads + head) * shape.head_size;
                out.extend_from_slice(&query[start..start + shape.head_size]);
            }
        }
        out
    }

    fn scatter(&self, mixed: &[f32], shape: AttentionShape, out: &mut [f32]) {
        let mut vectors = mixed.chunks_exact(shape.head_size);
        for head in self.heads(shape) {
            for (row, vector) in (self.first..self.first + self.count).zip(vectors.by_ref()) {
                let start = (row * shape.heads + head) * shape.head_size;
                out[start..start + shape.head_size].copy_from_slice(vector);
            }
        }
    }
}

/// Softmax over the keys that a query may see; the weights of the others become 0.
struct CausalSoftmax<'a> {
    part: &'a Part,
    shape: AttentionShape,
}

impl InplaceOp1 for CausalSoftmax<'_> {
    fn name(&self) -> &'static str {
        "causal-softmax"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let Part { position, count, .. } = *self.part;
        let first = self.shape.hidden_keys(position);
        let keys = position + count - first;
        for (index, row) in values_mut(storage, layout)?.chunks_exact_mut(keys).enumerate() {
            weigh(row, first, position + index % count, self.shape);
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
