//! Matrices: quantised blocks straight from the file's bytes, or dense f32.

use super::super::{MatrixUse, Precision, StoredMatrix};
use super::blocks;
use super::ops;
use super::parallel::{by_outputs, in_parts};
use super::rows::{self, Rows};
use crate::model::ModelError;
use candle_core::quantized::QTensor;
use candle_core::{Device, Tensor};
use escadre_verify::structure::gguf::TensorType;
use std::borrow::Cow;

/// A packed matrix, `[outputs, inputs]`.
#[derive(Debug)]
pub struct Matrix(Held);

#[derive(Debug)]
enum Held {
    /// Blocks of 32 values, computed here.
    Rows(Rows),
    /// Other blocks, as in the file.
    Blocks(Parts),
    /// f32 values.
    Dense(Tensor),
}

/// Whether a matrix becomes dense: floats that are multiplied, and everything when widening was asked for.
fn is_dense(kind: TensorType, usage: MatrixUse, precision: Precision) -> bool {
    let is_float = matches!(kind, TensorType::F32 | TensorType::F16 | TensorType::Bf16);
    precision == Precision::Widened || (is_float && usage == MatrixUse::Linear)
}

/// Bytes of a packed copy that candle makes beside the blocks at the first product, per 256 values: a tile has a
/// scale (and a minimum) in f32 per group and its values with 4 or 8 bits.
fn tile_bytes(kind: TensorType) -> u64 {
    match kind {
        TensorType::Q4K => 128 + 2 * 8 * 4,
        TensorType::Q6K => 256 + 16 * 4,
        _ => 0,
    }
}

pub(super) fn resident_bytes(kind: TensorType, elements: u64, usage: MatrixUse, precision: Precision) -> u64 {
    if is_dense(kind, usage, precision) {
        return elements.saturating_mul(4);
    }
    if rows::is_supported(kind) {
        return rows::resident_bytes(kind, elements);
    }
    let blocks = elements / kind.block_elements() as u64 * kind.block_bytes() as u64;
    match usage {
        MatrixUse::Table => blocks,
        MatrixUse::Linear => blocks.saturating_add(elements.div_ceil(256).saturating_mul(tile_bytes(kind))),
    }
}

impl Matrix {
    pub(super) fn new(stored: &StoredMatrix<'_>, usage: MatrixUse, precision: Precision) -> Result<Self, ModelError> {
        let (kind, columns) = (stored.kind, stored.columns);
        if rows::is_supported(kind) && precision == Precision::AsStored {
            blocks::check(stored)?;
            return Ok(Self(Held::Rows(Rows::new(kind, stored.rows, columns, &stored.bytes))));
        }
        if blocks::is_odd(kind, columns) || is_dense(kind, usage, precision) {
            let blocks = blocks::pack(stored, &Device::Cpu)?;
            return Ok(Self(Held::Dense(blocks.dequantize(&Device::Cpu)?)));
        }
        Ok(Self(Held::Blocks(Parts::new(stored)?)))
    }

    pub(super) fn rows_of(&self, tokens: &[u32]) -> Result<Tensor, ModelError> {
        Ok(match &self.0 {
            Held::Rows(rows) => ops::buffer(rows.rows_of(tokens)?, rows.inputs())?,
            Held::Blocks(parts) => parts.rows_of(tokens)?,
            Held::Dense(values) => {
                let ids = Tensor::from_slice(tokens, tokens.len(), &Device::Cpu)?;
                values.index_select(&ids, 0)?
            }
        })
    }

    pub(super) fn multiply(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        Ok(match &self.0 {
            Held::Rows(rows) => ops::buffer(ops::with_values(x, |x| rows.multiply(x))??, rows.outputs())?,
            Held::Blocks(parts) => parts.multiply(x)?,
            Held::Dense(values) => multiply_dense(values, x)?,
        })
    }
}

/// A matrix of blocks, cut by its outputs so that each part can be computed by another thread.
#[derive(Debug)]
struct Parts {
    tensors: Vec<QTensor>,
    /// Outputs of all of them but the last.
    each: usize,
    outputs: usize,
}

impl Parts {
    /// More parts would quantise the activations more often than it gains.
    const MOST: usize = 32;
    /// Outputs that candle packs together.
    const TOGETHER: usize = 64;

    fn new(stored: &StoredMatrix<'_>) -> Result<Self, ModelError> {
        blocks::check(stored)?;
        let outputs = stored.rows;
        let each = outputs.div_ceil(Self::MOST).next_multiple_of(Self::TOGETHER);
        let row_bytes = stored.bytes.len() / outputs.max(1);
        let parts = stored.bytes.chunks(each * row_bytes).map(|bytes| {
            let part = StoredMatrix {
                rows: bytes.len() / row_bytes,
                bytes: Cow::Borrowed(bytes),
                ..*stored
            };
            blocks::pack(&part, &Device::Cpu)
        });
        Ok(Self {
            tensors: parts.collect::<Result<_, _>>()?,
            each,
            outputs,
        })
    }

    fn rows_of(&self, tokens: &[u32]) -> Result<Tensor, ModelError> {
        let row = |&token: &u32| {
            let (part, row) = (token as usize / self.each, token as usize % self.each);
            let part = self.tensors.get(part).filter(|_| (token as usize) < self.outputs);
            let part = part.ok_or_else(|| ModelError::Batch(format!("token {token} has no embedding")))?;
            let row = u32::try_from(row).map_err(|_| ModelError::Batch(format!("token {token} has no embedding")))?;
            Ok::<_, ModelError>(part.embedding(&Tensor::new(&[row], &Device::Cpu)?)?)
        };
        Ok(Tensor::cat(&tokens.iter().map(row).collect::<Result<Vec<_>, _>>()?, 0)?)
    }

    fn multiply(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let product = in_parts((x.dim(0)?, self.outputs), self.each, |first| {
            let product = x.apply_op1_no_bwd(&self.tensors[first / self.each])?;
            Ok(product.flatten_all()?.to_vec1()?)
        })?;
        ops::buffer(product, self.outputs)
    }
}

fn multiply_dense(values: &Tensor, x: &Tensor) -> Result<Tensor, ModelError> {
    let outputs = values.dim(0)?;
    let product = by_outputs((x.dim(0)?, outputs), outputs, |part| {
        let part = values.narrow(0, part.start, part.len())?;
        Ok(x.matmul(&part.t()?)?.flatten_all()?.to_vec1()?)
    })?;
    ops::buffer(product, outputs)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Random blocks with scales of a moderate size, wherever a type has them.
    fn random_bytes(kind: TensorType, elements: usize) -> Vec<u8> {
        let mut state = 9_u32;
        let mut next = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            u8::try_from(state >> 24).unwrap()
        };
        let mut bytes: Vec<u8> = (0..elements / kind.block_elements() * kind.block_bytes())
            .map(|_| next())
            .collect();
        let scales: &[usize] = match kind {
            TensorType::Q4_1 | TensorType::Q5_1 | TensorType::Q4K | TensorType::Q5K => &[0, 2],
            TensorType::Q2K => &[80, 82],
            TensorType::Q3K => &[108],
            TensorType::Q6K => &[208],
            _ => &[0],
        };
        for block in bytes.chunks_exact_mut(kind.block_bytes()) {
            for &at in scales {
                block[at..at + 2].copy_from_slice(&half::f16::from_f32(0.01).to_le_bytes());
            }
        }
        bytes
    }

    #[test]
    fn products_of_every_block_type_are_near_those_of_widened_weights() {
        let quantised = TensorType::ALL
            .iter()
            .filter(|&&kind| blocks::block_type(kind).is_some() && kind.block_elements() > 1);
        for &kind in quantised {
            let (rows, columns) = (48, if kind.block_elements() == 32 { 96 } else { 512 });
            let bytes = random_bytes(kind, rows * columns);
            let matrix = |precision| {
                let stored = StoredMatrix {
                    kind,
                    rows,
                    columns,
                    bytes: Cow::Borrowed(&bytes),
                };
                Matrix::new(&stored, MatrixUse::Linear, precision).unwrap()
            };
            let (packed, wide) = (matrix(Precision::AsStored), matrix(Precision::Widened));
            for count in [1, 3, 9] {
                let values = (0..count * columns).map(|index| u8::try_from(index * 37 % 101).unwrap());
                let x = values.map(|value| (f32::from(value) - 50.0) / 50.0).collect();
                let x = ops::buffer(x, columns).unwrap();
                let flat = |matrix: &Matrix| matrix.multiply(&x).unwrap().flatten_all().unwrap().to_vec1().unwrap();
                let (got, expected): (Vec<f32>, Vec<f32>) = (flat(&packed), flat(&wide));
                let largest = expected.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
                for (got, expected) in got.iter().zip(&expected) {
                    assert!(
                        (got - expected).abs() < 0.03 * largest,
                        "{kind} {count}: {got} {expected}"
                    );
                }
            }
        }
    }
}
