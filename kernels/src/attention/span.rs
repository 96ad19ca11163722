//! One span of keys and values, for the queries of some rows.

use super::softmax::Softmax;
use super::{Attention, SPAN};
use crate::activations::panel;
use crate::cache::{CacheShape, Element, keys_of, values_of};
use crate::instructions::Vectors;
use crate::{BLOCK_KEYS, TILE};
use std::ops::Range;

/// Queries that are computed together at most.
const QUERIES: usize = 8;

/// A span of a sequence's keys, for one head of them.
#[derive(Clone, Copy)]
pub(super) struct Tile<'a, E> {
    pub(super) attention: &'a Attention<'a>,
    /// The blocks of the whole sequence.
    pub(super) blocks: &'a [u32],
    /// The head of keys and values.
    pub(super) head: usize,
    /// Heads of queries that share it.
    pub(super) group: usize,
    /// The position of the first row.
    pub(super) position: usize,
    /// The position of the first key.
    pub(super) first: usize,
    pub(super) sides: [&'a [E]; 2],
}

/// Some queries, `[rows, group]`.
pub(super) struct Queries<'a> {
    /// The number of the first of them.
    pub(super) first: usize,
    /// Each times the scale, `[queries, head_size]`.
    pub(super) scaled: &'a [f32],
    pub(super) states: &'a mut [Softmax],
    /// What they mixed so far, `[queries, padded]`.
    pub(super) mixed: &'a mut [f32],
}

impl Queries<'_> {
    /// So many of them, and the rest.
    #[inline(always)]
    fn split_at(self, count: usize, shape: CacheShape) -> (Self, Self) {
        let scaled = self.scaled.split_at(count * shape.head_size);
        let states = self.states.split_at_mut(count);
        let mixed = self.mixed.split_at_mut(count * shape.padded());
        let now = Self {
            first: self.first,
            scaled: scaled.0,
            states: states.0,
            mixed: mixed.0,
        };
        let later = Self {
            first: self.first + count,
            scaled: scaled.1,
            states: states.1,
            mixed: mixed.1,
        };
        (now, later)
    }
}

/// Memory that is used again.
pub(super) struct Scratch {
    scores: [[f32; SPAN]; QUERIES],
    mixed: Vec<f32>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self {
            scores: [[0.0; SPAN]; QUERIES],
            mixed: Vec::new(),
        }
    }
}

impl<E: Element> Tile<'_, E> {
    /// Takes the span into the states of queries.
    #[inline(always)]
    pub(super) fn compute<V: Vectors>(&self, vectors: V, all: Queries<'_>, scratch: &mut Scratch) {
        let shape = self.attention.cache.shape();
        let mut left = all;
        while !left.states.is_empty() {
            let count = panel(V::ROWS, left.states.len());
            let (now, later) = left.split_at(count, shape);
            match count {
                8 if V::ROWS >= 8 => self.of_some::<V, 8>(vectors, now, scratch),
                4 if V::ROWS >= 4 => self.of_some::<V, 4>(vectors, now, scratch),
                3 if V::ROWS >= 3 => self.of_some::<V, 3>(vectors, now, scratch),
                2 if V::ROWS >= 2 => self.of_some::<V, 2>(vectors, now, scratch),
                _ => self.of_some::<V, 1>(vectors, now, scratch),
            }
            left = later;
        }
    }

    /// The keys of the span that a query sees.
    #[inline(always)]
    fn seen(&self, query: usize) -> Range<usize> {
        let position = self.position + query / self.group;
        let within = |key: usize| key.saturating_sub(self.first).min(SPAN);
        let end = within(position + 1);
        within(self.attention.hidden(position)).min(end)..end
    }

    #[inline(always)]
    fn of_some<V: Vectors, const R: usize>(&self, vectors: V, queries: Queries<'_>, scratch: &mut Scratch) {
        let Queries {
            first: at,
            scaled,
            states,
            mixed,
        } = queries;
        let shape = self.attention.cache.shape();
        let padded = shape.padded();
        let (mut from, mut to) = (SPAN, 0);
        for query in at..at + R {
            let seen = self.seen(query);
            if !seen.is_empty() {
                from = from.min(seen.start);
                to = to.max(seen.end);
            }
        }
        if from >= to {
            return;
        }
        let blocks = from / BLOCK_KEYS..to.div_ceil(BLOCK_KEYS);
        let Scratch { scores, mixed: of_span } = scratch;
        for block in blocks.clone() {
            let id = self.blocks[self.first / BLOCK_KEYS + block];
            let keys = keys_of(self.sides[0], shape, self.head, id);
            let products = products::<V, E, R>(vectors, scaled, keys);
            for (scores, products) in scores.iter_mut().zip(&products) {
                scores[block * BLOCK_KEYS..(block + 1) * BLOCK_KEYS].copy_from_slice(products.as_flattened());
            }
        }
        let known = blocks.start * BLOCK_KEYS..blocks.end * BLOCK_KEYS;
        let mut weighed = [Softmax::NOTHING; R];
        for (index, (weighed, scores)) in weighed.iter_mut().zip(&mut *scores).enumerate() {
            let seen = self.seen(at + index);
            let scores = &mut scores[known.clone()];
            if seen.is_empty() {
                scores.fill(0.0);
            } else {
                let seen = seen.start - known.start..seen.end - known.start;
                *weighed = Softmax::weigh(vectors, scores, seen, self.attention.soft_cap);
            }
        }
        of_span.clear();
        of_span.resize(R * padded, 0.0);
        // What is behind the last key was never written, or belongs to nobody.
        let keys = known.start..to;
        let mut column = 0;
        while column < padded {
            if column + 2 * TILE <= padded {
                self.mix::<V, R, 2>(vectors, scores, keys.clone(), column, of_span);
                column += 2 * TILE;
            } else {
                self.mix::<V, R, 1>(vectors, scores, keys.clone(), column, of_span);
                column += TILE;
            }
        }
        let results = mixed.chunks_exact_mut(padded).zip(of_span.chunks_exact(padded));
        for ((state, weighed), (mixed, of_span)) in states.iter_mut().zip(weighed).zip(results) {
            state.join(vectors, mixed, weighed, of_span);
        }
    }

    /// Some columns of the values, mixed by the weights of each query, in the order of the keys.
    #[inline(always)]
    fn mix<V: Vectors, const R: usize, const W: usize>(
        &self,
        vectors: V,
        weights: &[[f32; SPAN]; QUERIES],
        keys: Range<usize>,
        column: usize,
        out: &mut [f32],
    ) {
        let shape = self.attention.cache.shape();
        let padded = shape.padded();
        let mut sums = [[vectors.splat(0.0); W]; R];
        for start in keys.clone().step_by(BLOCK_KEYS) {
            let id = self.blocks[(self.first + start) / BLOCK_KEYS];
            let values = values_of(self.sides[1], shape, self.head, id);
            let keys = start..keys.end.min(start + BLOCK_KEYS);
            for (key, values) in keys.zip(values.chunks_exact(padded)) {
                let values = values[column..column + W * TILE].as_chunks::<TILE>().0;
                let mut parts = [vectors.splat(0.0); W];
                for (part, values) in parts.iter_mut().zip(values) {
                    *part = E::load(vectors, values);
                }
                for (sums, weights) in sums.iter_mut().zip(weights) {
                    let weight = vectors.splat(weights[key]);
                    for (sum, part) in sums.iter_mut().zip(parts) {
                        *sum = vectors.multiply_add(part, weight, *sum);
                    }
                }
            }
        }
        for (sums, out) in sums.iter().zip(out.chunks_exact_mut(padded)) {
            let out = out[column..column + W * TILE].as_chunks_mut::<TILE>().0;
            for (sum, out) in sums.iter().zip(out) {
                vectors.write(*sum, out);
            }
        }
    }
}

/// The products of queries, `[R, head_size]`, with the keys of a block, in the order of the numbers of a head.
#[inline(always)]
fn products<V: Vectors, E: Element, const R: usize>(vectors: V, queries: &[f32], keys: &[E]) -> [[[f32; TILE]; 2]; R] {
    let size = queries.len() / R;
    let mut rows = [queries; R];
    for (row, query) in rows.iter_mut().zip(queries.chunks_exact(size)) {
        *row = query;
    }
    let mut sums = [[vectors.splat(0.0); 2]; R];
    for (number, keys) in keys.as_chunks::<BLOCK_KEYS>().0.iter().enumerate() {
        let halves = keys.as_chunks::<TILE>().0;
        let (low, high) = (E::load(vectors, &halves[0]), E::load(vectors, &halves[1]));
        for (sums, row) in sums.iter_mut().zip(rows) {
            let query = vectors.splat(row[number]);
            sums[0] = vectors.multiply_add(low, query, sums[0]);
            sums[1] = vectors.multiply_add(high, query, sums[1]);
        }
    }
    let mut products = [[[0.0; TILE]; 2]; R];
    for (sums, products) in sums.iter().zip(&mut products) {
        vectors.write(sums[0], &mut products[0]);
        vectors.write(sums[1], &mut products[1]);
    }
    products
}
