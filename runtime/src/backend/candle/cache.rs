//! Keys and values in a pool of blocks: per layer values `[blocks, kv_heads, BLOCK_TOKENS, head_size]`, keys
//! `[blocks, kv_heads, head_size, BLOCK_TOKENS]`, so that one vector has the same number of several keys: what a query
//! has in common with them is computed without a sum across a vector.
//!
//! The pool is allocated as zeros, so that the system gives memory to a block when it is first written.

use super::super::{CacheShape, KvType, SpanLayout};
use super::vectors::widest;
use crate::kv::{BLOCK_TOKENS, BlockId};
use crate::model::ModelError;
use half::slice::{HalfBitsSliceExt as _, HalfFloatSliceExt as _};

/// Keys and values of all sequences.
#[derive(Debug)]
pub struct Cache {
    shape: CacheShape,
    layers: Vec<Layer>,
}

#[derive(Debug)]
struct Layer {
    keys: Pool,
    values: Pool,
}

/// The numbers of one side of a layer.
#[derive(Debug)]
pub(super) enum Pool {
    /// Bits of f16, which the system can give as zeros.
    F16(Vec<u16>),
    F32(Vec<f32>),
}

impl Pool {
    fn new(kind: KvType, length: usize) -> Result<Self, ModelError> {
        // vec! asks the system for zeros, which no fallible call does; a length that no memory holds ends here.
        isize::try_from(length.saturating_mul(size_of::<f32>())).map_err(|_| {
            ModelError::Tensor(format!(
                "a cache of {length} numbers per layer is larger than any memory"
            ))
        })?;
        Ok(match kind {
            KvType::F16 => Self::F16(vec![0; length]),
            KvType::F32 => Self::F32(vec![0.0; length]),
        })
    }

    fn write(&mut self, at: usize, numbers: &[f32]) {
        match self {
            Self::F16(pool) => {
                let place: &mut [half::f16] = pool[at..at + numbers.len()].reinterpret_cast_mut();
                place.convert_from_f32_slice(numbers);
            }
            Self::F32(pool) => pool[at..at + numbers.len()].copy_from_slice(numbers),
        }
    }

    /// Writes one number every [`BLOCK_TOKENS`].
    fn write_column(&mut self, at: usize, numbers: &[f32]) {
        match self {
            Self::F16(pool) => {
                let places = pool[at..].iter_mut().step_by(BLOCK_TOKENS);
                for (place, number) in places.zip(numbers) {
                    *place = half::f16::from_f32(*number).to_bits();
                }
            }
            Self::F32(pool) => {
                let places = pool[at..].iter_mut().step_by(BLOCK_TOKENS);
                for (place, number) in places.zip(numbers) {
                    *place = *number;
                }
            }
        }
    }

    /// Reads as many numbers as `out` has.
    fn read(&self, at: usize, out: &mut [f32]) {
        match self {
            Self::F16(pool) => {
                let bits = &pool[at..at + out.len()];
                widest(
                    #[inline(always)]
                    || {
                        for (out, bits) in out.iter_mut().zip(bits) {
                            *out = widen(*bits);
                        }
                    },
                );
            }
            Self::F32(pool) => out.copy_from_slice(&pool[at..at + out.len()]),
        }
    }

    fn copy(&mut self, from: usize, to: usize, length: usize) {
        match self {
            Self::F16(pool) => pool.copy_within(from..from + length, to),
            Self::F32(pool) => pool.copy_within(from..from + length, to),
        }
    }
}

/// A number of 16 bits (IEEE 754 binary16) as one of 32, without a branch: the compiler makes vectors of it.
#[inline(always)]
fn widen(bits: u16) -> f32 {
    /// What the exponents of the two formats differ by: 2^(127 - 15).
    const EXPONENTS: f32 = f32::from_bits((127 + 112) << 23);
    /// What an infinity becomes by them.
    const INFINITE: f32 = 65_536.0;
    // With the sign in its place, thrice, and the two lower ones taken away.
    let bits = ((i32::from(bits.cast_signed()) << 13) & !0x7000_0000).cast_unsigned();
    let finite = f32::from_bits(bits) * EXPONENTS;
    if finite.abs() < INFINITE {
        finite
    } else {
        f32::from_bits(bits | 0x7f80_0000)
    }
}

/// One side of one layer, as attention reads it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Side<'a> {
    pool: &'a Pool,
    shape: CacheShape,
}

impl Side<'_> {
    /// What one head has in a block: as much as `out` has room for.
    pub(super) fn read(&self, block: BlockId, head: usize, out: &mut [f32]) {
        self.pool.read(place(self.shape, block, head), out);
    }
}

/// Where what a head has in a block begins.
fn place(shape: CacheShape, block: BlockId, head: usize) -> usize {
    (block.0 as usize * shape.kv_heads + head) * BLOCK_TOKENS * shape.head_size
}

impl Cache {
    pub(super) fn new(shape: CacheShape) -> Result<Self, ModelError> {
        let length = shape
            .blocks
            .saturating_mul(shape.kv_heads * BLOCK_TOKENS * shape.head_size);
        let layers = (0..shape.layers).map(|_| {
            Ok(Layer {
                keys: Pool::new(shape.kind, length)?,
                values: Pool::new(shape.kind, length)?,
            })
        });
        Ok(Self {
            shape,
            layers: layers.collect::<Result<_, ModelError>>()?,
        })
    }

    pub(super) fn copy_block(&mut self, from: BlockId, to: BlockId) {
        let length = self.shape.kv_heads * BLOCK_TOKENS * self.shape.head_size;
        let (from, to) = (place(self.shape, from, 0), place(self.shape, to, 0));
        for layer in &mut self.layers {
            layer.keys.copy(from, to, length);
            layer.values.copy(from, to, length);
        }
    }

    /// Writes the rows of a step, `[rows, kv_heads * head_size]` each, behind what their sequences have.
    pub(super) fn append(
        &mut self,
        layer: usize,
        spans: &[SpanLayout],
        keys: &[f32],
        values: &[f32],
    ) -> Result<(), ModelError> {
        let shape = self.shape;
        let width = shape.kv_heads * shape.head_size;
        let layer = self.layers.get_mut(layer).ok_or_else(|| unknown(layer))?;
        for span in spans {
            for (position, row) in (span.start..).zip(span.rows.clone()) {
                let block = span.blocks[position / BLOCK_TOKENS];
                let at = position % BLOCK_TOKENS;
                for head in 0..shape.kv_heads {
                    let place = place(shape, block, head);
                    let from = row * width + head * shape.head_size;
                    layer.keys.write_column(place + at, &keys[from..from + shape.head_size]);
                    let values = &values[from..from + shape.head_size];
                    layer.values.write(place + at * shape.head_size, values);
                }
            }
        }
        Ok(())
    }

    /// Keys and values of a layer.
    pub(super) fn sides(&self, layer: usize) -> Result<(Side<'_>, Side<'_>), ModelError> {
        let layer = self.layers.get(layer).ok_or_else(|| unknown(layer))?;
        let side = |pool| Side {
            pool,
            shape: self.shape,
        };
        Ok((side(&layer.keys), side(&layer.values)))
    }
}

fn unknown(layer: usize) -> ModelError {
    ModelError::Tensor(format!("layer {layer} has no cache"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_of_16_bits_is_widened() {
        for bits in 0..=u16::MAX {
            let expected = half::f16::from_bits(bits).to_f32();
            let wide = widen(bits);
            assert!(
                wide.to_bits() == expected.to_bits() || (wide.is_nan() && expected.is_nan()),
                "{bits:#x}: {wide} {expected}"
            );
        }
    }

    #[test]
    fn what_was_appended_is_read_in_order_through_any_blocks() {
        for (kind, tolerance) in [(KvType::F32, 0.0), (KvType::F16, 1.0)] {
            let shape = CacheShape {
                layers: 2,
                kv_heads: 2,
                head_size: 3,
                blocks: 5,
                kind,
            };
            let mut cache = Cache::new(shape).unwrap();
            let blocks = vec![BlockId(4), BlockId(0), BlockId(2)];
            for position in 0..70_u16 {
                let row: Vec<f32> = (0..6_u16)
                    .map(|column| f32::from(position) + f32::from(column) * 100.0)
                    .collect();
                let negative: Vec<f32> = row.iter().map(|value| -value).collect();
                let span = SpanLayout {
                    blocks: blocks.clone(),
                    rows: 0..1,
                    start: usize::from(position),
                };
                cache.append(1, &[span], &row, &negative).unwrap();
            }
            cache.copy_block(BlockId(0), BlockId(3));
            let (keys, values) = cache.sides(1).unwrap();
            let copied = [BlockId(4), BlockId(3), BlockId(2)];
            let mut block = [0.0; 3 * BLOCK_TOKENS];
            for (position, expected) in [(0, 300.0), (33, 333.0), (69, 369.0_f32)] {
                let (index, at) = (position / BLOCK_TOKENS, position % BLOCK_TOKENS);
                keys.read(copied[index], 1, &mut block);
                for number in [0.0, 1.0, 2.0_f32] {
                    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 2")]
                    let key = block[number as usize * BLOCK_TOKENS + at];
                    assert!((key - expected - 100.0 * number).abs() <= tolerance);
                }
                values.read(blocks[index], 1, &mut block);
                assert!((block[at * 3] + expected).abs() <= tolerance);
            }
        }
    }
}
