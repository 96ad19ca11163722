//! Keys and values of one layer in a pool of blocks: per head and block values `[BLOCK_KEYS, head_size]` (rows padded to
//! whole vectors), keys `[head_size, BLOCK_KEYS]`, so that one vector has the same number of several keys: what a query
//! has in common with them is computed without a sum across a vector.
//!
//! The pool is allocated as zeros, so that the system gives memory to a block when it is first written.

use crate::disjoint::Disjoint;
use crate::instructions::{Vectors, Work};
use crate::{Cores, TILE};
use std::ops::Range;

/// Keys and values of a block.
pub const BLOCK_KEYS: usize = 32;
/// Rows from which on heads are written by several threads.
const MANY_ROWS: usize = 32;

/// How a cache holds numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Numbers {
    /// 16 bits; what is larger than such a number can be becomes the largest.
    F16,
    /// 32 bits.
    F32,
}

/// The sizes of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheShape {
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Values per head.
    pub head_size: usize,
    /// Blocks of [`BLOCK_KEYS`] tokens.
    pub blocks: usize,
    /// How numbers are held.
    pub numbers: Numbers,
}

impl CacheShape {
    /// Numbers of a value's row, padded to whole vectors.
    pub(crate) fn padded(&self) -> usize {
        self.head_size.next_multiple_of(TILE)
    }

    /// Numbers of a head's keys in a block.
    fn of_keys(&self) -> usize {
        self.head_size * BLOCK_KEYS
    }

    /// Numbers of a head's values in a block.
    fn of_values(&self) -> usize {
        self.padded() * BLOCK_KEYS
    }

    /// The pools' lengths; absent when no memory holds them.
    fn lengths(&self) -> Option<(usize, usize)> {
        let heads = self.kv_heads.checked_mul(self.blocks)?;
        let bytes = heads.checked_mul(self.of_values())?.checked_mul(size_of::<f32>())?;
        isize::try_from(bytes).ok()?;
        Some((heads * self.of_keys(), heads * self.of_values()))
    }
}

/// Sequences that some rows of a step belong to.
#[derive(Debug, Default, Clone)]
pub struct Spans {
    blocks: Vec<u32>,
    spans: Vec<Layout>,
}

#[derive(Debug, Clone)]
struct Layout {
    blocks: Range<usize>,
    rows: Range<usize>,
    start: usize,
}

/// The rows of one sequence.
#[derive(Debug, Clone)]
pub(crate) struct Span<'a> {
    /// Where its keys and values are.
    pub(crate) blocks: &'a [u32],
    /// The rows in every buffer.
    pub(crate) rows: Range<usize>,
    /// The position of the first row in its sequence.
    pub(crate) start: usize,
}

impl Spans {
    /// Forgets all of them, and keeps the memory.
    pub fn clear(&mut self) {
        self.blocks.clear();
        self.spans.clear();
    }

    /// Rows `rows` of every buffer are the tokens of a sequence from position `start` on, whose keys and values are, or
    /// will be, in `blocks`.
    ///
    /// # Panics
    /// When there is no room for them in the blocks.
    pub fn push(&mut self, blocks: impl Iterator<Item = u32>, rows: Range<usize>, start: usize) {
        let first = self.blocks.len();
        self.blocks.extend(blocks);
        let blocks = first..self.blocks.len();
        assert!(
            start + rows.len() <= blocks.len() * BLOCK_KEYS,
            "blocks for every token"
        );
        self.spans.push(Layout { blocks, rows, start });
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Span<'_>> {
        self.spans.iter().map(|layout| Span {
            blocks: &self.blocks[layout.blocks.clone()],
            rows: layout.rows.clone(),
            start: layout.start,
        })
    }

    /// How many rows they have together.
    pub(crate) fn rows(&self) -> usize {
        self.spans.iter().map(|layout| layout.rows.len()).sum()
    }
}

/// Keys and values of all sequences in one layer.
#[derive(Debug)]
pub struct Cache {
    shape: CacheShape,
    pools: Pools,
}

/// By head, then by block.
#[derive(Debug)]
enum Pools {
    /// Bits of numbers of 16 bits.
    F16([Vec<u16>; 2]),
    F32([Vec<f32>; 2]),
}

/// The pools of a cache, keys first.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Sides<'a> {
    F16([&'a [u16]; 2]),
    F32([&'a [f32]; 2]),
}

/// A number of a cache.
pub(crate) trait Element: Copy + Send + Sync {
    fn load<V: Vectors>(vectors: V, from: &[Self; TILE]) -> V::Floats;
    fn store<V: Vectors>(vectors: V, floats: V::Floats, to: &mut [Self; TILE]);
    const ZERO: Self;
}

impl Element for u16 {
    const ZERO: Self = 0;

    #[inline(always)]
    fn load<V: Vectors>(vectors: V, from: &[Self; TILE]) -> V::Floats {
        vectors.widen(from)
    }

    #[inline(always)]
    fn store<V: Vectors>(vectors: V, floats: V::Floats, to: &mut [Self; TILE]) {
        vectors.narrow(floats, to);
    }
}

impl Element for f32 {
    const ZERO: Self = 0.0;

    #[inline(always)]
    fn load<V: Vectors>(vectors: V, from: &[Self; TILE]) -> V::Floats {
        vectors.read(from)
    }

    #[inline(always)]
    fn store<V: Vectors>(vectors: V, floats: V::Floats, to: &mut [Self; TILE]) {
        vectors.write(floats, to);
    }
}

impl Cache {
    /// An empty cache. Absent when it is larger than any memory.
    pub fn new(shape: CacheShape) -> Option<Self> {
        let (keys, values) = shape.lengths()?;
        let pools = match shape.numbers {
            Numbers::F16 => Pools::F16([vec![0; keys], vec![0; values]]),
            Numbers::F32 => Pools::F32([vec![0.0; keys], vec![0.0; values]]),
        };
        Some(Self { shape, pools })
    }

    /// Its sizes.
    pub fn shape(&self) -> CacheShape {
        self.shape
    }

    pub(crate) fn sides(&self) -> Sides<'_> {
        match &self.pools {
            Pools::F16([keys, values]) => Sides::F16([keys, values]),
            Pools::F32([keys, values]) => Sides::F32([keys, values]),
        }
    }

    /// Copies a block's keys and values.
    ///
    /// # Panics
    /// When one of the blocks does not exist.
    pub fn copy_block(&mut self, from: u32, to: u32) {
        let (from, to) = (from as usize, to as usize);
        let blocks = self.shape.blocks;
        assert!(from < blocks && to < blocks, "blocks of {blocks}");
        let lengths = [self.shape.of_keys(), self.shape.of_values()];
        match &mut self.pools {
            Pools::F16(pools) => copy(pools, lengths, blocks, from, to),
            Pools::F32(pools) => copy(pools, lengths, blocks, from, to),
        }
    }

    /// Writes keys and values of a step's rows, `[rows, kv_heads * head_size]` each, behind what their sequences have.
    ///
    /// # Panics
    /// When the sizes do not fit together, or a block does not exist.
    pub fn append(&mut self, cores: &Cores, spans: &Spans, keys: &[f32], values: &[f32]) {
        let shape = self.shape;
        let width = shape.kv_heads * shape.head_size;
        assert_eq!(
            [keys.len(), values.len()],
            [spans.rows() * width; 2],
            "a row for each token"
        );
        match &mut self.pools {
            Pools::F16(pools) => append(cores, pools, shape, spans, [keys, values]),
            Pools::F32(pools) => append(cores, pools, shape, spans, [keys, values]),
        }
    }
}

fn copy<E: Element>(pools: &mut [Vec<E>; 2], lengths: [usize; 2], blocks: usize, from: usize, to: usize) {
    for (pool, length) in pools.iter_mut().zip(lengths) {
        for head in pool.chunks_exact_mut(blocks * length) {
            head.copy_within(from * length..(from + 1) * length, to * length);
        }
    }
}

fn append<E: Element>(cores: &Cores, pools: &mut [Vec<E>; 2], shape: CacheShape, spans: &Spans, rows: [&[f32]; 2]) {
    let lengths = [shape.blocks * shape.of_keys(), shape.blocks * shape.of_values()];
    let [keys, values] = pools;
    let pools = [Disjoint::new(keys), Disjoint::new(values)];
    let heads = |heads: Range<usize>| {
        for head in heads {
            let [keys, values] = [0, 1].map(|side: usize| {
                let length = lengths[side];
                // SAFETY: every head is written by one thread, and heads do not overlap.
                unsafe { pools[side].slice(head * length..(head + 1) * length) }
            });
            cores.level().run(Append {
                keys,
                values,
                head,
                shape,
                spans,
                rows,
            });
        }
    };
    if spans.rows() < MANY_ROWS {
        heads(0..shape.kv_heads);
    } else {
        cores.ranges(shape.kv_heads, 1, heads);
    }
}

/// Writes the rows of one head.
struct Append<'a, E> {
    keys: &'a mut [E],
    values: &'a mut [E],
    head: usize,
    shape: CacheShape,
    spans: &'a Spans,
    rows: [&'a [f32]; 2],
}

impl<E: Element> Work for Append<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vectors>(self, vectors: V) {
        let size = self.shape.head_size;
        let (of_keys, of_values, padded) = (self.shape.of_keys(), self.shape.of_values(), self.shape.padded());
        for span in self.spans.iter() {
            for (position, row) in (span.start..).zip(span.rows) {
                let (block, at) = (span.blocks[position / BLOCK_KEYS] as usize, position % BLOCK_KEYS);
                let from = (row * self.shape.kv_heads + self.head) * size;
                let [key, value] = self.rows.map(|rows| &rows[from..from + size]);
                let keys = &mut self.keys[block * of_keys..(block + 1) * of_keys];
                let values = &mut self.values[block * of_values..(block + 1) * of_values];
                for (part, key) in keys.chunks_mut(TILE * BLOCK_KEYS).zip(key.chunks(TILE)) {
                    let numbers = held::<V, E>(vectors, key);
                    for (line, number) in part.chunks_exact_mut(BLOCK_KEYS).zip(numbers) {
                        line[at] = number;
                    }
                }
                let to = values[at * padded..(at + 1) * padded].as_chunks_mut::<TILE>().0;
                for (to, value) in to.iter_mut().zip(value.chunks(TILE)) {
                    *to = held::<V, E>(vectors, value);
                }
            }
        }
    }
}

/// Up to [`TILE`] numbers as the cache holds them, the rest zeros.
#[inline(always)]
fn held<V: Vectors, E: Element>(vectors: V, numbers: &[f32]) -> [E; TILE] {
    /// The largest number of 16 bits.
    const MOST: f32 = 65_504.0;
    let mut padded = [0.0; TILE];
    padded[..numbers.len()].copy_from_slice(numbers);
    let mut held = [E::ZERO; TILE];
    if size_of::<E>() == size_of::<u16>() {
        for number in &mut padded {
            *number = if *number > MOST { MOST } else { *number };
            *number = if *number < -MOST { -MOST } else { *number };
        }
    }
    E::store(vectors, vectors.read(&padded), &mut held);
    held
}

/// A head's keys in a block.
#[inline(always)]
pub(crate) fn keys_of<E>(pool: &[E], shape: CacheShape, head: usize, block: u32) -> &[E] {
    let length = shape.of_keys();
    let at = (head * shape.blocks + block as usize) * length;
    &pool[at..at + length]
}

/// A head's values in a block.
#[inline(always)]
pub(crate) fn values_of<E>(pool: &[E], shape: CacheShape, head: usize, block: u32) -> &[E] {
    let length = shape.of_values();
    let at = (head * shape.blocks + block as usize) * length;
    &pool[at..at + length]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Level;
    use std::num::NonZeroUsize;

    #[test]
    fn what_was_appended_is_where_its_head_and_block_are() {
        let cores = Cores::start(NonZeroUsize::new(2).unwrap(), Level::detect()).unwrap();
        for numbers in [Numbers::F16, Numbers::F32] {
            let shape = CacheShape {
                kv_heads: 2,
                head_size: 19,
                blocks: 5,
                numbers,
            };
            let mut cache = Cache::new(shape).unwrap();
            let row = |position: u16| (0..38_u16).map(move |column| f32::from(position) + f32::from(column) * 8.0);
            let keys: Vec<f32> = (0..70).flat_map(row).collect();
            let values: Vec<f32> = keys.iter().map(|key| -key).collect();
            for part in [0..40, 40..41, 41..70] {
                let mut spans = Spans::default();
                spans.push([4, 0, 2].into_iter(), 0..part.len(), part.start);
                let of = |rows: &[f32]| rows[part.start * 38..part.end * 38].to_vec();
                cache.append(&cores, &spans, &of(&keys), &of(&values));
            }
            cache.copy_block(0, 3);
            for (position, block) in [(0, 4), (31, 4), (33, 0), (33, 3), (69, 2)] {
                for (head, number) in [(0, 0), (0, 18), (1, 7), (1, 18)] {
                    let at = position % BLOCK_KEYS;
                    let expected = keys[position * 38 + head * 19 + number];
                    let places = (number * BLOCK_KEYS + at, at * 32 + number);
                    let widen = |bits: u16| half::f16::from_bits(bits).to_f32();
                    let (key, value) = match cache.sides() {
                        Sides::F16([keys, values]) => (
                            widen(keys_of(keys, shape, head, block)[places.0]),
                            widen(values_of(values, shape, head, block)[places.1]),
                        ),
                        Sides::F32([keys, values]) => (
                            keys_of(keys, shape, head, block)[places.0],
                            values_of(values, shape, head, block)[places.1],
                        ),
                    };
                    assert_eq!([key, value].map(f32::to_bits), [expected, -expected].map(f32::to_bits));
                }
            }
        }
    }

    #[test]
    fn number_that_16_bits_do_not_hold_becomes_the_largest() {
        let cores = Cores::default();
        let shape = CacheShape {
            kv_heads: 1,
            head_size: 2,
            blocks: 1,
            numbers: Numbers::F16,
        };
        let mut cache = Cache::new(shape).unwrap();
        let mut spans = Spans::default();
        spans.push(std::iter::once(0), 0..1, 0);
        cache.append(&cores, &spans, &[1e9, -1e9], &[1.0, f32::NEG_INFINITY]);
        let Sides::F16([keys, values]) = cache.sides() else {
            unreachable!()
        };
        let widen = |bits: u16| half::f16::from_bits(bits).to_f32().to_bits();
        assert_eq!([keys[0], keys[32]].map(widen), [65_504.0, -65_504.0].map(f32::to_bits));
        assert_eq!([values[0], values[1]].map(widen), [1.0, -65_504.0].map(f32::to_bits));
    }

    #[test]
    fn cache_beyond_any_memory_is_none() {
        let shape = CacheShape {
            kv_heads: 8,
            head_size: 128,
            blocks: usize::MAX / 100,
            numbers: Numbers::F16,
        };
        assert!(Cache::new(shape).is_none());
    }
}
