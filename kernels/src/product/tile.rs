//! One tile of outputs times all rows.

use super::formats::{Format, Scales};
use super::vectors::Vectors;
use crate::activations::{Activations, SCALE, SCALED, SUMS, WORDS};
use crate::line::Line;
use crate::pack::Tile;
use crate::{BLOCK, GROUPS, TILE};
use std::marker::PhantomData;
use std::ops::Range;

/// Rows from which on weights are unpacked once for all of them.
const MANY: usize = 9;
/// Blocks that are unpacked together: with their scales 33 KiB, which a core's nearest cache holds.
const UNPACKED: usize = 48;

/// Sums of a tile, and what they are computed in; used for one tile after the other.
pub(super) struct Scratch<F> {
    sums: Vec<[f32; TILE]>,
    unpacked: Option<Unpacked<F>>,
}

impl<F: Format> Scratch<F> {
    pub(super) fn new(x: &Activations) -> Self {
        Self {
            sums: vec![[0.0; TILE]; x.rows()],
            unpacked: (x.rows() >= MANY).then(Unpacked::new),
        }
    }

    /// Every row's sums for a tile.
    #[inline(always)]
    pub(super) fn multiply<V: Vectors>(&mut self, vectors: V, tile: Tile<'_>, x: &Activations) -> &[[f32; TILE]] {
        let blocks = x.inputs() / BLOCK;
        let packed = PackedBlocks::<F>(tile, PhantomData);
        self.sums.fill([0.0; TILE]);
        match &mut self.unpacked {
            None => {
                for (first, rows, words) in x.panels() {
                    by_rows(vectors, packed, (rows, words), &mut self.sums[first..]);
                }
            }
            Some(unpacked) => {
                for start in (0..blocks).step_by(UNPACKED) {
                    let part = start..blocks.min(start + UNPACKED);
                    unpacked.fill(vectors, packed, part.clone());
                    for (first, rows, words) in x.panels() {
                        let words = &words[part.start * WORDS * rows..part.end * WORDS * rows];
                        by_rows(vectors, &*unpacked, (rows, words), &mut self.sums[first..]);
                    }
                }
            }
        }
        &self.sums
    }
}

/// Where the integers and scales of blocks come from.
trait Blocks: Copy {
    /// What they mean.
    type Format: Format;

    fn block<V: Vectors>(self, vectors: V, index: usize) -> ([V::Bytes; GROUPS], Scales<V>);
}

/// A tile as it is packed.
struct PackedBlocks<'a, F>(Tile<'a>, PhantomData<F>);

impl<F> Clone for PackedBlocks<'_, F> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<F> Copy for PackedBlocks<'_, F> {}

impl<F: Format> Blocks for PackedBlocks<'_, F> {
    type Format = F;

    #[inline(always)]
    fn block<V: Vectors>(self, vectors: V, index: usize) -> ([V::Bytes; GROUPS], Scales<V>) {
        let lines = &self.0.lines[index * F::LINES..(index + 1) * F::LINES];
        let shared = index / F::BLOCKS;
        let scales = &self.0.scales[shared * F::SCALE_BYTES..(shared + 1) * F::SCALE_BYTES];
        (
            F::weights(vectors, lines),
            F::scales(vectors, scales, index % F::BLOCKS),
        )
    }
}

/// Some blocks of a tile with a byte for each integer.
struct Unpacked<F> {
    lines: Vec<[Line; GROUPS]>,
    halves: Vec<[[f32; TILE]; 2]>,
    least: Vec<[f32; TILE]>,
    format: PhantomData<F>,
}

impl<F: Format> Unpacked<F> {
    fn new() -> Self {
        Self {
            lines: vec![[Line::ZERO; GROUPS]; UNPACKED],
            halves: vec![[[0.0; TILE]; 2]; UNPACKED],
            least: vec![[0.0; TILE]; UNPACKED],
            format: PhantomData,
        }
    }

    #[inline(always)]
    fn fill<V: Vectors>(&mut self, vectors: V, packed: PackedBlocks<'_, F>, part: Range<usize>) {
        for (at, index) in part.enumerate() {
            let (weights, scales) = packed.block(vectors, index);
            for (weights, line) in weights.iter().zip(&mut self.lines[at]) {
                vectors.store(*weights, line);
            }
            vectors.write(scales.halves[0], &mut self.halves[at][0]);
            vectors.write(scales.halves[1], &mut self.halves[at][1]);
            vectors.write(scales.least, &mut self.least[at]);
        }
    }
}

impl<F: Format> Blocks for &Unpacked<F> {
    type Format = F;

    #[inline(always)]
    fn block<V: Vectors>(self, vectors: V, index: usize) -> ([V::Bytes; GROUPS], Scales<V>) {
        let lines = &self.lines[index];
        let mut weights = [vectors.load(&lines[0]); GROUPS];
        for (weights, line) in weights.iter_mut().zip(lines) {
            *weights = vectors.load(line);
        }
        let scales = Scales {
            halves: [
                vectors.read(&self.halves[index][0]),
                vectors.read(&self.halves[index][1]),
            ],
            least: vectors.read(&self.least[index]),
        };
        (weights, scales)
    }
}

/// Adds the products with a panel to the sums of its rows; the first block of `blocks` is that of the first words.
#[inline(always)]
fn by_rows<V: Vectors, B: Blocks>(vectors: V, blocks: B, panel: (usize, &[u32]), sums: &mut [[f32; TILE]]) {
    let (rows, words) = panel;
    match rows {
        1 => add::<V, B, 1>(vectors, blocks, words, sums),
        2 if V::ROWS >= 2 => add::<V, B, 2>(vectors, blocks, words, sums),
        3 if V::ROWS >= 3 => add::<V, B, 3>(vectors, blocks, words, sums),
        4 if V::ROWS >= 4 => add::<V, B, 4>(vectors, blocks, words, sums),
        5 if V::ROWS >= 5 => add::<V, B, 5>(vectors, blocks, words, sums),
        6 if V::ROWS >= 6 => add::<V, B, 6>(vectors, blocks, words, sums),
        7 if V::ROWS >= 7 => add::<V, B, 7>(vectors, blocks, words, sums),
        8 if V::ROWS >= 8 => add::<V, B, 8>(vectors, blocks, words, sums),
        _ => unreachable!("a panel has 1 to {} rows, not {rows}", V::ROWS),
    }
}

#[inline(always)]
fn add<V: Vectors, B: Blocks, const R: usize>(vectors: V, blocks: B, words: &[u32], sums: &mut [[f32; TILE]]) {
    let sums: &mut [[f32; TILE]; R] = sums[..R].as_mut_array().expect("a slice of that length");
    let mut totals = [vectors.splat(0.0); R];
    for (total, sums) in totals.iter_mut().zip(&*sums) {
        *total = vectors.read(sums);
    }
    for (index, words) in words.as_chunks::<R>().0.as_chunks::<WORDS>().0.iter().enumerate() {
        let (weights, scales) = blocks.block(vectors, index);
        if B::Format::HALVES {
            for half in 0..2 {
                let groups = half * 4..half * 4 + 4;
                let products = Products {
                    weights: &weights[groups.clone()],
                    inputs: &words[groups],
                    sums: &words[SUMS + 1 + half],
                    scale: scales.halves[half],
                };
                products.add::<B::Format>(vectors, &words[SCALE], &mut totals);
            }
        } else {
            let products = Products {
                weights: &weights,
                inputs: &words[..GROUPS],
                sums: &words[SUMS],
                scale: scales.halves[0],
            };
            products.add::<B::Format>(vectors, &words[SCALE], &mut totals);
        }
        if B::Format::LEAST {
            for (total, scaled) in totals.iter_mut().zip(words[SCALED]) {
                *total = vectors.multiply_add(scales.least, vectors.splat(f32::from_bits(scaled)), *total);
            }
        }
    }
    for (total, sums) in totals.iter().zip(sums) {
        vectors.write(*total, sums);
    }
}

/// Groups that share a scale, and the inputs of all rows.
struct Products<'a, V: Vectors, const R: usize> {
    weights: &'a [V::Bytes],
    inputs: &'a [[u32; R]],
    /// Negative sums of the inputs.
    sums: &'a [u32; R],
    scale: V::Floats,
}

impl<V: Vectors, const R: usize> Products<'_, V, R> {
    #[inline(always)]
    fn add<F: Format>(&self, vectors: V, scales: &[u32; R], totals: &mut [V::Floats; R]) {
        let mut products = [vectors.start(0, 0); R];
        if let Some(zero) = F::ZERO {
            for (product, sum) in products.iter_mut().zip(self.sums) {
                *product = vectors.start(*sum, zero);
            }
        }
        for (weights, inputs) in self.weights.iter().zip(self.inputs) {
            for (product, inputs) in products.iter_mut().zip(inputs) {
                *product = if F::WHOLE {
                    vectors.dot_whole(*product, *weights, *inputs)
                } else {
                    vectors.dot(*product, *weights, *inputs)
                };
            }
        }
        for ((total, product), scale) in totals.iter_mut().zip(products).zip(scales) {
            let scale = vectors.multiply(self.scale, vectors.splat(f32::from_bits(*scale)));
            *total = vectors.multiply_add(vectors.to_floats(product), scale, *total);
        }
    }
}
