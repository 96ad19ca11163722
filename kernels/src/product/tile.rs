//! One tile of quantised outputs times all rows.

use super::formats::{Format, Scales};
use crate::activations::{Activations, SCALE, SCALED, SUMS, WORDS};
use crate::instructions::Vectors;
use crate::line::Line;
use crate::pack::Tile;
use crate::{BLOCK, GROUPS, TILE};
use std::marker::PhantomData;
use std::ops::Range;

/// Rows from which on weights are unpacked once for all of them.
const MANY: usize = 9;
/// Blocks that are unpacked together: with their scales 36 KiB, which a core's nearest cache holds.
const UNPACKED: usize = 48;

/// How many lines ahead weights are asked for: what memory gives while it answers.
const AHEAD: usize = 48;

/// Adds every row's products with a tile to `sums`.
#[inline(always)]
pub(super) fn multiply<V: Vectors, F: Format>(
    vectors: V,
    tile: Tile<'_>,
    x: &Activations,
    unpacked: &mut Unpacked,
    sums: &mut [[f32; TILE]],
) {
    let blocks = x.inputs() / BLOCK;
    let packed = PackedBlocks::<F>(tile, PhantomData);
    if x.rows() < MANY {
        for (first, rows, words) in x.panels() {
            by_rows(vectors, packed, (rows, words), &mut sums[first..]);
        }
        return;
    }
    for start in (0..blocks).step_by(UNPACKED) {
        let part = start..blocks.min(start + UNPACKED);
        unpacked.fill(vectors, packed, part.clone());
        for (first, rows, words) in x.panels() {
            let words = &words[part.start * WORDS * rows..part.end * WORDS * rows];
            by_rows(
                vectors,
                UnpackedBlocks::<F>(unpacked, PhantomData),
                (rows, words),
                &mut sums[first..],
            );
        }
    }
}

/// The weights of one output.
#[inline(always)]
pub(super) fn look_up<V: Vectors, F: Format>(vectors: V, tile: Tile<'_>, output: usize, out: &mut [f32]) {
    let packed = PackedBlocks::<F>(tile, PhantomData);
    let zero = F::ZERO.map_or(0.0, |zero| f32::from(1_u8 << zero));
    let mut lines = [Line::ZERO; GROUPS];
    for (index, out) in out.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
        let (weights, scales) = packed.block(vectors, index);
        for (weights, line) in weights.iter().zip(&mut lines) {
            vectors.store(*weights, line);
        }
        for (half, out) in out.as_chunks_mut::<{ BLOCK / 2 }>().0.iter_mut().enumerate() {
            let (mut scale, mut least) = ([0.0; TILE], [0.0; TILE]);
            vectors.write(scales.halves[half], &mut scale);
            vectors.write(scales.leasts[half], &mut least);
            let lines = &lines[half * GROUPS / 2..];
            for (out, line) in out.as_chunks_mut::<4>().0.iter_mut().zip(lines) {
                for (out, weight) in out.iter_mut().zip(&line.0[4 * output..]) {
                    *out = (f32::from(*weight) - zero) * scale[output] + least[output];
                }
            }
        }
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
        for line in lines {
            vectors.prefetch(line, AHEAD);
        }
        (
            F::weights(vectors, lines),
            F::scales(vectors, scales, index % F::BLOCKS),
        )
    }
}

/// Some blocks of a tile with a byte for each integer.
pub(super) struct Unpacked {
    lines: Vec<[Line; GROUPS]>,
    halves: Vec<[[f32; TILE]; 2]>,
    leasts: Vec<[[f32; TILE]; 2]>,
}

impl Unpacked {
    pub(super) fn new() -> Self {
        Self {
            lines: vec![[Line::ZERO; GROUPS]; UNPACKED],
            halves: vec![[[0.0; TILE]; 2]; UNPACKED],
            leasts: vec![[[0.0; TILE]; 2]; UNPACKED],
        }
    }

    #[inline(always)]
    fn fill<V: Vectors, F: Format>(&mut self, vectors: V, packed: PackedBlocks<'_, F>, part: Range<usize>) {
        for (at, index) in part.enumerate() {
            let (weights, scales) = packed.block(vectors, index);
            for (weights, line) in weights.iter().zip(&mut self.lines[at]) {
                vectors.store(*weights, line);
            }
            for half in 0..2 {
                vectors.write(scales.halves[half], &mut self.halves[at][half]);
                vectors.write(scales.leasts[half], &mut self.leasts[at][half]);
            }
        }
    }
}

/// Blocks that were unpacked, of a format.
struct UnpackedBlocks<'a, F>(&'a Unpacked, PhantomData<F>);

impl<F> Clone for UnpackedBlocks<'_, F> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<F> Copy for UnpackedBlocks<'_, F> {}

impl<F: Format> Blocks for UnpackedBlocks<'_, F> {
    type Format = F;

    #[inline(always)]
    fn block<V: Vectors>(self, vectors: V, index: usize) -> ([V::Bytes; GROUPS], Scales<V>) {
        let lines = &self.0.lines[index];
        let mut weights = [vectors.load(&lines[0]); GROUPS];
        for (weights, line) in weights.iter_mut().zip(lines) {
            *weights = vectors.load(line);
        }
        let (halves, leasts) = (&self.0.halves[index], &self.0.leasts[index]);
        let scales = Scales {
            halves: [vectors.read(&halves[0]), vectors.read(&halves[1])],
            leasts: [vectors.read(&leasts[0]), vectors.read(&leasts[1])],
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
        8 if V::ROWS >= 8 => add::<V, B, 8>(vectors, blocks, words, sums),
        _ => unreachable!("no panel has {rows} rows"),
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
                if B::Format::LEAST {
                    let least = scales.leasts[half];
                    for ((total, sum), scale) in totals.iter_mut().zip(words[SUMS + 1 + half]).zip(words[SCALE]) {
                        let sum = vectors.to_floats(vectors.start(sum, 0));
                        let product = vectors.multiply(sum, vectors.splat(-f32::from_bits(scale)));
                        *total = vectors.multiply_add(least, product, *total);
                    }
                }
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
        if B::Format::LEAST && !B::Format::HALVES {
            for (total, scaled) in totals.iter_mut().zip(words[SCALED]) {
                *total = vectors.multiply_add(scales.leasts[0], vectors.splat(f32::from_bits(scaled)), *total);
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
