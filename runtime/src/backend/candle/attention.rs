//! Causal attention over the blocks of each sequence. The work of a step is cut into parts of about the same size, which
//! the threads compute beside each other: some queries of a sequence, with those of their heads that share a head of keys,
//! and some of the keys that they see. A part goes through its keys by tiles, and copies nothing but a block at a time.

use super::super::{AttentionShape, SpanLayout};
use super::cache::{Cache, Side};
use super::ops::{self, with_values};
use super::product::AddProduct;
use super::softmax::Softmax;
use crate::kv::{BLOCK_TOKENS, BlockId};
use crate::model::ModelError;
use candle_core::Tensor;
use rayon::prelude::*;
use std::ops::Range;

/// Scores of a tile, 192 KiB: they stay in a core's own cache.
const TILE_SCORES: usize = 48 * 1024;
/// Queries in one part at most: more gain nothing, and compute more scores that are masked.
const MAX_QUERIES: usize = 128;
/// Keys are not cut into fewer than this: to put results together costs something too.
const FEWEST_KEYS: usize = 8 * BLOCK_TOKENS;
/// Parts for each thread: whoever is disturbed gets fewer of them.
const PARTS_PER_THREAD: usize = 4;

pub(super) fn attend(
    query: &Tensor,
    shape: AttentionShape,
    layer: usize,
    spans: &[SpanLayout],
    cache: &Cache,
) -> Result<Tensor, ModelError> {
    let (rows, width) = query.dims2()?;
    let (keys, values) = cache.sides(layer)?;
    let scores = |span: &SpanLayout| span.rows.len() * seen(span.start, span.rows.len(), shape).len();
    let work: usize = spans.iter().map(scores).sum();
    let even = (work * shape.kv_heads).div_ceil(PARTS_PER_THREAD * rayon::current_num_threads());
    let parts: Vec<Part<'_>> = spans.iter().flat_map(|span| Part::of(span, shape, even)).collect();
    let mixed: Vec<Mix> = with_values(query, |query| {
        let parts = parts.par_iter().with_max_len(1);
        parts.map(|part| part.attend(query, shape, (keys, values))).collect()
    })?;
    let mut out = vec![0.0; rows * width];
    let mut mixed = parts.iter().zip(mixed).peekable();
    while let Some((part, mut mix)) = mixed.next() {
        while let Some((_, other)) = mixed.next_if(|(next, _)| next.has_queries_of(part)) {
            mix.join(&other);
        }
        part.scatter(&mix.finish(), shape, &mut out);
    }
    ops::buffer(out, width)
}

/// The keys that rows from position `start` on see, from the start of a block.
fn seen(start: usize, rows: usize, shape: AttentionShape) -> Range<usize> {
    shape.hidden_keys(start) / BLOCK_TOKENS * BLOCK_TOKENS..start + rows
}

/// Some queries of one sequence, for those of their heads that share a head of keys, and some of its keys.
struct Part<'a> {
    blocks: &'a [BlockId],
    /// The head of keys.
    head: usize,
    /// The first row in the buffers.
    first: usize,
    /// How many rows.
    count: usize,
    /// The position of the first row in its sequence.
    position: usize,
    /// Positions of keys, from the start of a block.
    keys: Range<usize>,
}

impl<'a> Part<'a> {
    /// Cuts a span into parts of about `even` scores of one head. Parts of the same queries follow each other.
    fn of(span: &'a SpanLayout, shape: AttentionShape, even: usize) -> Vec<Self> {
        let mut parts = Vec::new();
        for first in span.rows.clone().step_by(MAX_QUERIES) {
            let count = MAX_QUERIES.min(span.rows.end - first);
            let position = span.start + first - span.rows.start;
            let seen = seen(position, count, shape);
            let pieces = (count * seen.len()).div_ceil(even.max(1));
            let keys = seen
                .len()
                .div_ceil(pieces)
                .next_multiple_of(BLOCK_TOKENS)
                .max(FEWEST_KEYS);
            for head in 0..shape.kv_heads {
                parts.extend(seen.clone().step_by(keys).map(|start| Self {
                    blocks: &span.blocks,
                    head,
                    first,
                    count,
                    position,
                    keys: start..seen.end.min(start + keys),
                }));
            }
        }
        parts
    }

    fn has_queries_of(&self, other: &Self) -> bool {
        (self.first, self.head) == (other.first, other.head)
    }

    fn attend(&self, query: &[f32], shape: AttentionShape, (keys, values): (Side<'_>, Side<'_>)) -> Mix {
        let size = shape.head_size;
        let query = self.gather(query, shape);
        let queries = query.len() / size;
        let mut mix = Mix::new(queries, size);
        let width = (TILE_SCORES / queries / BLOCK_TOKENS).max(1) * BLOCK_TOKENS;
        let mut scores = vec![0.0; queries * width.min(self.keys.len().next_multiple_of(BLOCK_TOKENS))];
        let mut block = vec![0.0; BLOCK_TOKENS * size];
        for first in self.keys.clone().step_by(width) {
            let tile = first..self.keys.end.min(first + width);
            let stride = tile.len().next_multiple_of(BLOCK_TOKENS);
            let scores = &mut scores[..queries * stride];
            scores.fill(0.0);
            let blocks = || {
                (0..stride)
                    .step_by(BLOCK_TOKENS)
                    .zip(&self.blocks[first / BLOCK_TOKENS..])
            };
            for (at, id) in blocks() {
                keys.read(*id, self.head, &mut block);
                AddProduct {
                    rows: &query,
                    stride: size,
                    matrix: &block,
                    width: BLOCK_TOKENS,
                    out: &mut scores[at..],
                    out_stride: stride,
                }
                .run();
            }
            for (index, scores) in scores.chunks_exact_mut(stride).enumerate() {
                mix.weigh(index, scores, first, self.position + index % self.count, shape);
            }
            for (at, id) in blocks() {
                // What is behind the last key was never written, or belongs to nobody.
                let block = &mut block[..BLOCK_TOKENS.min(tile.len() - at) * size];
                values.read(*id, self.head, block);
                AddProduct {
                    rows: &scores[at..],
                    stride,
                    matrix: block,
                    width: size,
                    out: &mut mix.values,
                    out_stride: size,
                }
                .run();
            }
        }
        mix
    }

    /// The heads of queries that share the head of keys.
    fn heads(&self, shape: AttentionShape) -> Range<usize> {
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

/// What the queries of a part have mixed of the values so far.
struct Mix {
    rows: Vec<Softmax>,
    /// `[rows, size]`.
    values: Vec<f32>,
    size: usize,
}

impl Mix {
    fn new(rows: usize, size: usize) -> Self {
        Self {
            rows: vec![Softmax::NOTHING; rows],
            values: vec![0.0; rows * size],
            size,
        }
    }

    /// Turns the scores of a tile into the weights of query `index`.
    fn weigh(&mut self, index: usize, scores: &mut [f32], first: usize, position: usize, shape: AttentionShape) {
        let shrink = self.rows[index].weigh(scores, first, position, shape);
        if shrink < 1.0 {
            scale(&mut self.values[index * self.size..][..self.size], shrink);
        }
    }

    /// Takes in what the same queries mixed of other keys.
    fn join(&mut self, other: &Self) {
        let values = self.values.chunks_exact_mut(self.size);
        let values = values.zip(other.values.chunks_exact(self.size));
        for ((values, others), (row, other)) in values.zip(self.rows.iter_mut().zip(&other.rows)) {
            let (factor, of_other) = row.join(*other);
            for (value, other) in values.iter_mut().zip(others) {
                *value = *value * factor + other * of_other;
            }
        }
    }

    fn finish(mut self) -> Vec<f32> {
        for (values, row) in self.values.chunks_exact_mut(self.size).zip(&self.rows) {
            scale(values, row.share());
        }
        self.values
    }
}

fn scale(values: &mut [f32], factor: f32) {
    for value in values {
        *value *= factor;
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::{CacheShape, KvType};
    use super::*;

    /// Numbers of -1 to 1 that look random.
    fn numbers(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f32::from(u16::try_from(state >> 16).unwrap()) / 32_768.0 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    /// Attention of the query at `position`, one number after the other; 32 numbers of keys and of values per position.
    fn by_definition(
        query: &[f32],
        position: usize,
        shape: AttentionShape,
        (keys, values): (&[f32], &[f32]),
    ) -> Vec<f64> {
        let size = shape.head_size;
        let mut out = Vec::new();
        for head in 0..shape.heads {
            let of_head = head * shape.kv_heads / shape.heads * size;
            let at = |side: &[f32], position: usize, number: usize| f64::from(side[position * 32 + of_head + number]);
            let weights = (shape.hidden_keys(position)..=position).map(|key| {
                let products = (0..size).map(|number| f64::from(query[head * size + number]) * at(keys, key, number));
                let score = products.sum::<f64>() * f64::from(shape.scale);
                let cap = shape.soft_cap.map(f64::from);
                (key, cap.map_or(score, |cap| cap * (score / cap).tanh()).exp())
            });
            let weights: Vec<(usize, f64)> = weights.collect();
            let sum: f64 = weights.iter().map(|(_, weight)| weight).sum();
            out.extend((0..size).map(|number| {
                let mixed = weights
                    .iter()
                    .map(|(key, weight)| weight / sum * at(values, *key, number));
                mixed.sum::<f64>()
            }));
        }
        out
    }

    #[test]
    fn queries_of_a_prompt_get_what_each_of_them_gets_alone() {
        let cached = CacheShape {
            layers: 1,
            kv_heads: 2,
            head_size: 16,
            blocks: 29,
            kind: KvType::F32,
        };
        let (tokens, start) = (900, 700);
        let blocks: Vec<BlockId> = (0..29).map(|block| BlockId(block * 5 % 29)).collect();
        let mut cache = Cache::new(cached).unwrap();
        let all = SpanLayout {
            blocks: blocks.clone(),
            rows: 0..tokens,
            start: 0,
        };
        let (keys, values) = (numbers(tokens * 32, 1), numbers(tokens * 32, 2));
        cache.append(0, &[all], &keys, &values).unwrap();
        let query = ops::buffer(numbers((tokens - start) * 64, 3), 64).unwrap();
        for (window, soft_cap) in [(None, None), (Some(300), None), (Some(5), Some(2.0))] {
            let shape = AttentionShape {
                heads: 4,
                kv_heads: 2,
                head_size: 16,
                scale: 1.5,
                soft_cap,
                window,
                rope: None,
            };
            let rows = tokens - start;
            let flat = |spans: &[SpanLayout]| {
                let mixed = attend(&query, shape, 0, spans, &cache).unwrap();
                mixed.flatten_all().unwrap().to_vec1::<f32>().unwrap()
            };
            let span = |rows: Range<usize>| SpanLayout {
                blocks: blocks.clone(),
                start: start + rows.start,
                rows,
            };
            let together = flat(&[span(0..rows)]);
            for row in [0, 31, rows - 1] {
                let expected = by_definition(&numbers(rows * 64, 3)[row * 64..], start + row, shape, (&keys, &values));
                for (one, other) in together[row * 64..(row + 1) * 64].iter().zip(expected) {
                    assert!(
                        (f64::from(*one) - other).abs() < 1e-5,
                        "{window:?} {row}: {one} {other}"
                    );
                }
            }
            let alone = flat(&(0..rows).map(|row| span(row..row + 1)).collect::<Vec<_>>());
            for (index, (one, other)) in together.iter().zip(&alone).enumerate() {
                assert!((one - other).abs() < 1e-5, "{window:?} {index}: {one} {other}");
            }
        }
    }
}
