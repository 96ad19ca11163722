//! Causal attention over the blocks of each sequence. Prompts: two matrix products per tile of keys, for some of the
//! queries and those of their heads that share a head of keys. Sequences that get a token or a few: products of vectors,
//! straight from the blocks. Parts of the queries, heads and sequences are computed beside each other.

use super::super::{AttentionShape, SpanLayout};
use super::cache::{Cache, Side};
use super::ops::{self, values_mut, with_values};
use crate::kv::{BLOCK_TOKENS, BlockId};
use crate::model::ModelError;
use candle_core::{CpuStorage, InplaceOp1, Layout, Tensor};
use pulp::Arch;
use rayon::prelude::*;
use std::cell::RefCell;
use std::ops::Range;

/// Keys of a tile; with the scores of the queries they stay in a core's own cache. Whole blocks.
const TILE_KEYS: usize = 16 * BLOCK_TOKENS;
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
    let parts: Vec<Part<'_>> = many.into_iter().flat_map(|span| Part::of(span, shape)).collect();
    let mixed = with_values(query, |query| {
        let mixed = parts.par_iter().map(|part| part.attend(query, shape, (keys, values)));
        mixed.collect::<Result<Vec<_>, ModelError>>()
    })??;
    for (part, mixed) in parts.iter().zip(mixed) {
        part.scatter(&mixed, shape, &mut out);
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
    let mut out = vec![0.0; queries.len() * size];
    let blocks = || {
        (0..seen)
            .step_by(BLOCK_TOKENS)
            .zip(&span.blocks[first / BLOCK_TOKENS..])
    };
    // For the processor's vector width.
    let arch = Arch::new();
    for (at, id) in blocks() {
        let rows = &mut block[..BLOCK_TOKENS.min(seen - at) * size];
        keys.rows(*id, head, rows);
        arch.dispatch(
            #[inline(always)]
            || {
                for (query, scores) in queries.iter().zip(scores.chunks_exact_mut(seen)) {
                    for (score, key) in scores[at..].iter_mut().zip(rows.chunks_exact(size)) {
                        *score = ops::dot(query, key);
                    }
                }
            },
        );
    }
    for (index, scores) in scores.chunks_exact_mut(seen).enumerate() {
        weigh(scores, first, span.start + index / group, shape);
    }
    for (at, id) in blocks() {
        let rows = &mut block[..BLOCK_TOKENS.min(seen - at) * size];
        values.rows(*id, head, rows);
        arch.dispatch(
            #[inline(always)]
            || {
                for (out, scores) in out.chunks_exact_mut(size).zip(scores.chunks_exact(seen)) {
                    for (weight, value) in scores[at..].iter().zip(rows.chunks_exact(size)) {
                        for (out, value) in out.iter_mut().zip(value) {
                            *out += weight * value;
                        }
                    }
                }
            },
        );
    }
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
}

impl<'a> Part<'a> {
    /// Cuts a span so that all threads have something to do.
    fn of(span: &'a SpanLayout, shape: AttentionShape) -> Vec<Self> {
        let even = (span.rows.len() * shape.kv_heads).div_ceil(2 * rayon::current_num_threads());
        let rows = even.clamp(FEWEST_QUERIES, MAX_QUERIES);
        let firsts = span.rows.clone().step_by(rows);
        let parts = firsts.flat_map(|first| {
            (0..shape.kv_heads).map(move |head| Self {
                blocks: &span.blocks,
                head,
                first,
                count: rows.min(span.rows.end - first),
                position: span.start + first - span.rows.start,
            })
        });
        parts.collect()
    }

    /// Gives `[group * count, head_size]`. Keys and values are taken tile by tile, so that no copy of all of them is
    /// made; what was mixed so far is scaled down whenever a larger score is met (the online softmax of Milakov and
    /// Gimelshein, arXiv:1805.02867). Keys that no query of the part sees are left out.
    fn attend(
        &self,
        query: &[f32],
        shape: AttentionShape,
        (keys, values): (Side<'_>, Side<'_>),
    ) -> Result<Vec<f32>, ModelError> {
        let size = shape.head_size;
        let query = self.gather(query, shape);
        let mut mix = Mix::new(query.len() / size, size);
        let query = ops::buffer(query, size)?;
        let end = self.position + self.count;
        let tile_of = |side: Side<'_>, tile| ops::buffer(side.of_head(self.blocks, self.head, tile), size);
        let hidden = shape.hidden_keys(self.position) / BLOCK_TOKENS * BLOCK_TOKENS;
        for first in (hidden..end).step_by(TILE_KEYS) {
            let tile = first..end.min(first + TILE_KEYS);
            let scores = query.matmul(&tile_of(keys, tile.clone())?.t()?)?;
            scores.inplace_op1(&Weigh {
                part: self,
                shape,
                tile: tile.clone(),
                rows: RefCell::new(&mut mix.rows),
            })?;
            let mixed = scores.matmul(&tile_of(values, tile)?)?;
            with_values(&mixed, |mixed| mix.add(mixed))?;
        }
        Ok(mix.finish())
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

/// Turns the scores of a tile into weights.
struct Weigh<'a> {
    part: &'a Part<'a>,
    shape: AttentionShape,
    tile: Range<usize>,
    rows: RefCell<&'a mut [MixedRow]>,
}

impl InplaceOp1 for Weigh<'_> {
    fn name(&self) -> &'static str {
        "weigh"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let mut rows = self.rows.borrow_mut();
        let scores = values_mut(storage, layout)?.chunks_exact_mut(self.tile.len());
        for (index, (scores, row)) in scores.zip(rows.iter_mut()).enumerate() {
            let position = self.part.position + index % self.part.count;
            row.weigh(scores, self.tile.start, position, self.shape);
        }
        Ok(())
    }
}

/// What the queries of a part have mixed of the values so far.
struct Mix {
    rows: Vec<MixedRow>,
    /// `[rows, size]`.
    values: Vec<f32>,
    size: usize,
}

/// The state of one query.
#[derive(Clone, Copy)]
struct MixedRow {
    /// The largest score.
    largest: f32,
    /// The sum of all weights, relative to that score.
    sum: f32,
    /// What was mixed before the last tile is to be multiplied with this.
    shrink: f32,
}

impl MixedRow {
    /// Turns the scores of a tile, whose first key is at `first`, into weights for the query at `position`.
    fn weigh(&mut self, scores: &mut [f32], first: usize, position: usize, shape: AttentionShape) {
        self.shrink = 1.0;
        let seen_to = (position + 1).saturating_sub(first).min(scores.len());
        let seen_from = shape.hidden_keys(position).saturating_sub(first).min(seen_to);
        scores[..seen_from].fill(0.0);
        scores[seen_to..].fill(0.0);
        let seen = &mut scores[seen_from..seen_to];
        if seen.is_empty() {
            return;
        }
        for score in seen.iter_mut() {
            *score *= shape.scale;
        }
        if let Some(cap) = shape.soft_cap {
            for score in seen.iter_mut() {
                *score = cap * (*score / cap).tanh();
            }
        }
        let largest = seen.iter().copied().fold(self.largest, f32::max);
        self.shrink = (self.largest - largest).exp();
        self.largest = largest;
        let mut sum = 0.0;
        for score in seen {
            *score = (*score - largest).exp();
            sum += *score;
        }
        self.sum = self.sum * self.shrink + sum;
    }
}

impl Mix {
    fn new(rows: usize, size: usize) -> Self {
        let nothing = MixedRow {
            largest: f32::NEG_INFINITY,
            sum: 0.0,
            shrink: 1.0,
        };
        Self {
            rows: vec![nothing; rows],
            values: vec![0.0; rows * size],
            size,
        }
    }

    /// Takes the mixed values of a tile.
    fn add(&mut self, mixed: &[f32]) {
        let rows = self.values.chunks_exact_mut(self.size);
        for ((values, mixed), row) in rows.zip(mixed.chunks_exact(self.size)).zip(&self.rows) {
            for (value, mixed) in values.iter_mut().zip(mixed) {
                *value = *value * row.shrink + mixed;
            }
        }
    }

    fn finish(mut self) -> Vec<f32> {
        for (values, row) in self.values.chunks_exact_mut(self.size).zip(&self.rows) {
            for value in values {
                *value /= row.sum;
            }
        }
        self.values
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
    use super::super::super::{CacheShape, KvType};
    use super::*;

    #[test]
    fn softmax_is_scaled_and_sums_to_one() {
        let mut row = [1.0, 3.0];
        softmax(&mut row, 0.5);
        let expected = 1.0 / (1.0 + 1_f32.exp());
        assert!((row[0] - expected).abs() < 1e-6);
        assert!((row[0] + row[1] - 1.0).abs() < 1e-6);
    }
    /// Numbers of -1 to 1 that look random.
    fn numbers(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f32::from(u16::try_from(state >> 16).unwrap()) / 32_768.0 - 1.0
        };
        (0..count).map(|_| next()).collect()
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
            let alone = flat(&(0..rows).map(|row| span(row..row + 1)).collect::<Vec<_>>());
            for (index, (one, other)) in together.iter().zip(&alone).enumerate() {
                assert!((one - other).abs() < 1e-5, "{window:?} {index}: {one} {other}");
            }
        }
    }
}
