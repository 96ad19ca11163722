//! Keys and values in a pool of blocks: per layer and side `[blocks, kv_heads, BLOCK_TOKENS, head_size]`.
//!
//! The pool is allocated as zeros, so that the system gives memory to a block when it is first written.

use super::super::{CacheShape, KvType, SpanLayout};
use crate::kv::{BLOCK_TOKENS, BlockId};
use crate::model::ModelError;
use half::slice::{HalfBitsSliceExt as _, HalfFloatSliceExt as _};
use std::ops::Range;

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

    /// Reads as many numbers as `out` has.
    pub(super) fn read(&self, at: usize, out: &mut [f32]) {
        match self {
            Self::F16(pool) => pool[at..at + out.len()]
                .reinterpret_cast::<half::f16>()
                .convert_to_f32_slice(out),
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

/// One side of one layer, as attention reads it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Side<'a> {
    pool: &'a Pool,
    shape: CacheShape,
}

impl Side<'_> {
    /// The rows of one head in a block: as many as `out` has room for.
    pub(super) fn rows(&self, block: BlockId, head: usize, out: &mut [f32]) {
        self.pool.read(place(self.shape, block, head, 0), out);
    }

    /// Some rows of one head of a sequence that has these blocks, `[positions, head_size]`. The first one is the first of
    /// a block.
    pub(super) fn of_head(&self, blocks: &[BlockId], head: usize, positions: Range<usize>) -> Vec<f32> {
        let size = self.shape.head_size;
        let mut out = vec![0.0; positions.len() * size];
        let blocks = &blocks[positions.start / BLOCK_TOKENS..];
        for (rows, block) in out.chunks_mut(BLOCK_TOKENS * size).zip(blocks) {
            self.rows(*block, head, rows);
        }
        out
    }
}

/// Where a row is in a pool.
fn place(shape: CacheShape, block: BlockId, head: usize, row: usize) -> usize {
    ((block.0 as usize * shape.kv_heads + head) * BLOCK_TOKENS + row) * shape.head_size
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
        let (from, to) = (place(self.shape, from, 0, 0), place(self.shape, to, 0, 0));
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
                for head in 0..shape.kv_heads {
                    let at = place(shape, block, head, position % BLOCK_TOKENS);
                    let from = row * width + head * shape.head_size;
                    layer.keys.write(at, &keys[from..from + shape.head_size]);
                    layer.values.write(at, &values[from..from + shape.head_size]);
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
            let keys = keys.of_head(&[BlockId(4), BlockId(3), BlockId(2)], 1, 0..70);
            let values = values.of_head(&blocks, 1, 32..70);
            for (position, expected) in [(0, 300.0), (33, 333.0), (69, 369.0_f32)] {
                assert!((keys[position * 3] - expected).abs() <= tolerance);
                if position >= 32 {
                    assert!((values[(position - 32) * 3] + expected).abs() <= tolerance);
                }
            }
        }
    }
}
