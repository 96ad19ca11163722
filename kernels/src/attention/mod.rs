//! Causal attention of a step's rows over the keys and values of their sequences.
//!
//! The keys of a sequence are gone through in spans of [`SPAN`], which begin at fixed positions. Within one the largest
//! score is known before the exponentials are computed; what spans give is put together in their order, by the rule of
//! the online softmax (Milakov and Gimelshein, arXiv:1805.02867). So a row's result depends on its sequence alone: it
//! does not matter which rows are computed with it, nor whether one thread takes all spans or several take some each.

mod softmax;
mod span;

use crate::cache::{Cache, CacheShape, Element, Sides, Span, Spans};
use crate::disjoint::Disjoint;
use crate::instructions::{Vectors, Work};
use crate::{BLOCK_KEYS, Cores};
use softmax::Softmax;
use span::{Queries, Tile};
use std::cell::RefCell;
use std::ops::Range;

/// Keys of a span.
pub(crate) const SPAN: usize = 8 * BLOCK_KEYS;
/// Rows that are computed together: their queries share what is read of keys and values.
const ROWS: usize = 32;
/// Units of work for each thread below which the keys of a sequence are shared out too.
const UNITS_PER_THREAD: usize = 2;

/// What attention is computed of.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// `[rows, heads * head_size]`.
    pub query: &'a [f32],
    /// Heads of queries; a multiple of those of keys.
    pub heads: usize,
    /// What scores are multiplied with.
    pub scale: f32,
    /// Scaled scores become `cap * tanh(score / cap)`.
    pub soft_cap: Option<f32>,
    /// How many tokens a row sees, itself included; all before it when absent.
    pub window: Option<usize>,
    /// Whose rows they are. Their keys and values are in the cache.
    pub spans: &'a Spans,
    /// Keys and values.
    pub cache: &'a Cache,
}

/// Memory for what several threads compute of one row, which is used again.
#[derive(Debug, Default)]
pub struct Partial {
    states: Vec<Softmax>,
    mixed: Vec<f32>,
}

/// Computes attention, `[rows, heads * head_size]`.
///
/// # Panics
/// When the sizes do not fit together, or a block does not exist.
pub fn attention(cores: &Cores, attention: &Attention<'_>, partial: &mut Partial, out: &mut [f32]) {
    let shape = attention.cache.shape();
    assert!(attention.heads.is_multiple_of(shape.kv_heads), "whole groups of heads");
    let width = attention.heads * shape.head_size;
    let length = attention.spans.rows() * width;
    assert_eq!([attention.query.len(), out.len()], [length; 2], "a row for each token");
    let out = Disjoint::new(out);
    let units: usize = attention.spans.iter().map(|span| units_of(&span, shape)).sum();
    let longest = attention
        .spans
        .iter()
        .map(|span| attention.key_spans(&span).len())
        .max();
    if units < cores.threads() * UNITS_PER_THREAD && cores.threads() > 1 && longest > Some(1) {
        return by_key_spans(cores, attention, partial, &out);
    }
    cores.run(units, |unit| {
        // Later rows see more keys: they come first.
        let (span, unit) = find(
            attention.spans.iter().map(|span| (units_of(&span, shape), span)),
            units - 1 - unit,
        );
        let (rows, head) = unit_of(&span, shape, unit);
        let work = Compute {
            attention,
            span: &span,
            rows,
            head,
            keys: attention.key_spans(&span),
            sink: Sink::Whole(&out),
        };
        work.compute(cores);
    });
}

fn units_of(span: &Span<'_>, shape: CacheShape) -> usize {
    span.rows.len().div_ceil(ROWS) * shape.kv_heads
}

/// The rows of a unit, and its head of keys.
fn unit_of(span: &Span<'_>, shape: CacheShape, unit: usize) -> (Range<usize>, usize) {
    let first = span.rows.start + unit / shape.kv_heads * ROWS;
    (first..span.rows.end.min(first + ROWS), unit % shape.kv_heads)
}

/// Finds what has thing `index` when each has as many as it says, and which one of its own that is.
fn find<T>(counts: impl Iterator<Item = (usize, T)>, mut index: usize) -> (T, usize) {
    for (count, of) in counts {
        if index < count {
            return (of, index);
        }
        index -= count;
    }
    unreachable!("as many as were counted")
}

impl Attention<'_> {
    /// The spans of keys that the rows of a sequence see.
    fn key_spans(&self, span: &Span<'_>) -> Range<usize> {
        self.hidden(span.start) / SPAN..(span.start + span.rows.len()).div_ceil(SPAN)
    }

    /// How many keys from the beginning are outside the window of the row at `position`.
    fn hidden(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }
}

/// Where results go.
#[derive(Clone, Copy)]
enum Sink<'a> {
    /// Rows are finished.
    Whole(&'a Disjoint<'a, f32>),
    /// What one span gives is kept: of row and head, for the first of the key spans of the sequence.
    Parts {
        states: &'a Disjoint<'a, Softmax>,
        mixed: &'a Disjoint<'a, f32>,
        /// Where those of this sequence begin.
        base: usize,
        /// Key spans of the sequence.
        key_spans: &'a Range<usize>,
    },
}

/// Each thread takes some spans of a sequence; then their results are put together.
fn by_key_spans(cores: &Cores, attention: &Attention<'_>, partial: &mut Partial, out: &Disjoint<'_, f32>) {
    let shape = attention.cache.shape();
    let padded = shape.padded();
    let records = |span: &Span<'_>| span.rows.len() * attention.heads * attention.key_spans(span).len();
    let count: usize = attention.spans.iter().map(|span| records(&span)).sum();
    partial.states.clear();
    partial.states.resize(count, Softmax::NOTHING);
    partial.mixed.resize(count * padded, 0.0);
    let (states, mixed) = (Disjoint::new(&mut partial.states), Disjoint::new(&mut partial.mixed));
    let of = |span: &Span<'_>| units_of(span, shape) * attention.key_spans(span).len();
    let parts: usize = attention.spans.iter().map(|span| of(&span)).sum();
    cores.run(parts, |part| {
        let mut base = 0;
        let counted = attention.spans.iter().map(|span| {
            let at = base;
            base += records(&span);
            (of(&span), (span, at))
        });
        let ((span, base), unit) = find(counted, part);
        let key_spans = attention.key_spans(&span);
        let (unit, keys) = (unit / key_spans.len(), key_spans.start + unit % key_spans.len());
        let (rows, head) = unit_of(&span, shape, unit);
        let sink = Sink::Parts {
            states: &states,
            mixed: &mixed,
            base,
            key_spans: &key_spans,
        };
        let work = Compute {
            attention,
            span: &span,
            rows,
            head,
            keys: keys..keys + 1,
            sink,
        };
        work.compute(cores);
    });
    let mut base = 0;
    for span in attention.spans.iter() {
        let key_spans = attention.key_spans(&span).len();
        cores.ranges(span.rows.len() * attention.heads, 8, |range| {
            for index in range {
                let first = base + index * key_spans;
                // SAFETY: a row's head is in one range, and records and rows do not overlap.
                let (states, mixed, out) = unsafe {
                    let at = (span.rows.start * attention.heads + index) * shape.head_size;
                    (
                        states.slice(first..first + key_spans),
                        mixed.slice(first * padded..(first + key_spans) * padded),
                        out.slice(at..at + shape.head_size),
                    )
                };
                cores.level().run(Join { states, mixed, out });
            }
        });
        base += records(&span);
    }
}

/// Puts together what the spans of one row and head gave.
struct Join<'a> {
    states: &'a mut [Softmax],
    mixed: &'a mut [f32],
    out: &'a mut [f32],
}

impl Work for Join<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vectors>(self, vectors: V) {
        let padded = self.mixed.len() / self.states.len();
        let (total, others) = self.mixed.split_at_mut(padded);
        let (mut state, states) = (self.states[0], &self.states[1..]);
        for (other, mixed) in states.iter().zip(others.chunks_exact(padded)) {
            state.join(vectors, total, *other, mixed);
        }
        state.finish(total, self.out);
    }
}

/// Memory of a thread, which is used again.
#[derive(Default)]
struct Scratch {
    /// Scaled queries, `[queries, head_size]`.
    queries: Vec<f32>,
    /// For each query what it has mixed so far, `[queries, padded]`.
    mixed: Vec<f32>,
    states: Vec<Softmax>,
    span: span::Scratch,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Some rows of a sequence for the heads that share a head of keys, over some spans of keys.
struct Compute<'a> {
    attention: &'a Attention<'a>,
    span: &'a Span<'a>,
    rows: Range<usize>,
    head: usize,
    keys: Range<usize>,
    sink: Sink<'a>,
}

impl Compute<'_> {
    fn compute(self, cores: &Cores) {
        SCRATCH.with_borrow_mut(|scratch| cores.level().run(InScratch(self, scratch)));
    }
}

struct InScratch<'a>(Compute<'a>, &'a mut Scratch);

impl Work for InScratch<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vectors>(self, vectors: V) {
        let Self(work, scratch) = self;
        match work.attention.cache.sides() {
            Sides::F16(sides) => work.over(vectors, sides, scratch),
            Sides::F32(sides) => work.over(vectors, sides, scratch),
        }
    }
}

impl Compute<'_> {
    #[inline(always)]
    fn over<V: Vectors, E: Element>(self, vectors: V, sides: [&[E]; 2], scratch: &mut Scratch) {
        let shape = self.attention.cache.shape();
        let (size, padded) = (shape.head_size, shape.padded());
        let group = self.attention.heads / shape.kv_heads;
        let queries = self.rows.len() * group;
        let Scratch {
            queries: scaled,
            mixed,
            states,
            span,
        } = scratch;
        scaled.clear();
        for row in self.rows.clone() {
            let at = (row * self.attention.heads + self.head * group) * size;
            let of_row = &self.attention.query[at..at + group * size];
            scaled.extend(of_row.iter().map(|value| value * self.attention.scale));
        }
        states.clear();
        states.resize(queries, Softmax::NOTHING);
        mixed.clear();
        mixed.resize(queries * padded, 0.0);
        let position = self.span.start + self.rows.start - self.span.rows.start;
        for keys in self.keys {
            let tile = Tile {
                attention: self.attention,
                blocks: self.span.blocks,
                head: self.head,
                group,
                position,
                first: keys * SPAN,
                sides,
            };
            let all = Queries {
                first: 0,
                scaled,
                states,
                mixed,
            };
            tile.compute(vectors, all, span);
            if let Sink::Parts {
                states: all,
                mixed: all_mixed,
                base,
                key_spans,
            } = self.sink
            {
                for (index, (state, mixed)) in states.iter_mut().zip(mixed.chunks_exact_mut(padded)).enumerate() {
                    let row = self.rows.start + index / group - self.span.rows.start;
                    let head = self.head * group + index % group;
                    let record = (row * self.attention.heads + head) * key_spans.len() + keys - key_spans.start;
                    let record = base + record;
                    // SAFETY: a record belongs to one row, head and span of keys, which one thread computes.
                    unsafe {
                        all.slice(record..record + 1)[0] = *state;
                        all_mixed
                            .slice(record * padded..(record + 1) * padded)
                            .copy_from_slice(mixed);
                    }
                    *state = Softmax::NOTHING;
                    mixed.fill(0.0);
                }
            }
        }
        if let Sink::Whole(out) = self.sink {
            for (index, (state, mixed)) in states.iter().zip(mixed.chunks_exact_mut(padded)).enumerate() {
                let row = self.rows.start + index / group;
                let at = (row * self.attention.heads + self.head * group + index % group) * size;
                // SAFETY: a row's head is computed by one thread, and rows and heads do not overlap.
                state.finish(mixed, unsafe { out.slice(at..at + size) });
            }
        }
    }
}

#[cfg(test)]
mod tests;
