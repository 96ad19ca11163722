//! Matrices of 32-value blocks (`Q4_0`, `Q4_1`, `Q8_0`) that are multiplied with activations in f32.
//!
//! candle has no vector code for `Q4_1`, and its barrier between threads costs milliseconds when other processes want
//! the same cores. Here rows of outputs are shared out by a pool that sleeps. A product of one row streams the packed
//! weights once; one of several rows, a step of as many answers, widens each row of weights and uses it for all; one of
//! many rows widens a tile of weights for the matrix library. Activations stay f32, so the only rounding is that of the
//! weights themselves.

use crate::model::ModelError;
use candle_core::{Device, Tensor};
use escadre_verify::structure::gguf::TensorType;
use half::f16;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Values per block.
const BLOCK: usize = 32;
/// From this many rows on, widening a tile of weights pays.
const TILED_ROWS: usize = 48;
/// Values of a widened tile, 4 MiB.
const TILE: usize = 1 << 20;
/// Outputs that a thread computes at a time.
const GRAIN: usize = 32;

/// A matrix `[outputs, inputs]`.
#[derive(Debug)]
pub(super) struct Rows {
    outputs: usize,
    inputs: usize,
    /// Scale and offset of every block.
    scales: Vec<[f32; 2]>,
    values: Values,
    arch: Arch,
}

/// The integers that a block's scale multiplies.
#[derive(Debug)]
enum Values {
    /// Byte `i` has value `i` in its low half and value `i + 16` in its high half.
    Halves(Vec<[u8; BLOCK / 2]>),
    Bytes(Vec<[i8; BLOCK]>),
}

/// Whether a type is held in this form.
pub(super) fn is_supported(kind: TensorType) -> bool {
    matches!(kind, TensorType::Q4_0 | TensorType::Q4_1 | TensorType::Q8_0)
}

/// Bytes in memory.
pub(super) fn resident_bytes(kind: TensorType, elements: u64) -> u64 {
    let block = if kind == TensorType::Q8_0 { BLOCK } else { BLOCK / 2 };
    elements / BLOCK as u64 * (block + size_of::<[f32; 2]>()) as u64
}

impl Rows {
    /// Takes blocks as a file has them; the length was checked.
    pub(super) fn new(kind: TensorType, outputs: usize, inputs: usize, bytes: &[u8]) -> Self {
        let blocks = bytes.chunks_exact(kind.block_bytes());
        let float = |bytes: &[u8]| f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
        let (scales, values) = match kind {
            TensorType::Q4_0 => {
                // Values are stored with 8 added.
                let scales = blocks
                    .clone()
                    .map(|block| [float(block), -8.0 * float(block)])
                    .collect();
                (scales, Values::Halves(blocks.map(|block| copy(&block[2..])).collect()))
            }
            TensorType::Q4_1 => {
                let scales = blocks.clone().map(|block| [float(block), float(&block[2..])]).collect();
                (scales, Values::Halves(blocks.map(|block| copy(&block[4..])).collect()))
            }
            _ => {
                let scales = blocks.clone().map(|block| [float(block), 0.0]).collect();
                let signed = |block: &[u8]| copy::<BLOCK>(&block[2..]).map(u8::cast_signed);
                (scales, Values::Bytes(blocks.map(signed).collect()))
            }
        };
        Self {
            outputs,
            inputs,
            scales,
            values,
            arch: Arch::new(),
        }
    }

    pub(super) fn outputs(&self) -> usize {
        self.outputs
    }

    pub(super) fn inputs(&self) -> usize {
        self.inputs
    }

    /// Rows of the matrix, widened.
    pub(super) fn rows_of(&self, tokens: &[u32]) -> Result<Vec<f32>, ModelError> {
        let mut out = vec![0.0; tokens.len() * self.inputs];
        for (row, &token) in out.chunks_exact_mut(self.inputs).zip(tokens) {
            if token as usize >= self.outputs {
                return Err(ModelError::Batch(format!("token {token} has no embedding")));
            }
            self.widen(token as usize, row);
        }
        Ok(out)
    }

    /// `x` has rows of `inputs` values; gives rows of `outputs` values.
    pub(super) fn multiply(&self, x: &[f32]) -> Result<Vec<f32>, ModelError> {
        let rows = x.len() / self.inputs;
        let mut out = vec![0.0; rows * self.outputs];
        match rows {
            1 => self.multiply_one(x, &mut out),
            ..TILED_ROWS => self.multiply_few(x, rows, &mut out),
            _ => self.multiply_tiled(x, rows, &mut out)?,
        }
        Ok(out)
    }

    fn multiply_one(&self, x: &[f32], out: &mut [f32]) {
        let x = x.as_chunks::<BLOCK>().0;
        let sums: Vec<f32> = x.iter().map(|block| block.iter().sum()).collect();
        let blocks = self.inputs / BLOCK;
        out.par_chunks_mut(GRAIN).enumerate().for_each(|(part, out)| {
            self.arch.dispatch(
                #[inline(always)]
                || {
                    for (index, out) in out.iter_mut().enumerate() {
                        let first = (part * GRAIN + index) * blocks;
                        let scales = &self.scales[first..first + blocks];
                        *out = match &self.values {
                            Values::Halves(values) => dot_halves(scales, &values[first..first + blocks], x, &sums),
                            Values::Bytes(values) => dot_bytes(scales, &values[first..first + blocks], x),
                        };
                    }
                },
            );
        });
    }

    fn multiply_few(&self, x: &[f32], rows: usize, out: &mut [f32]) {
        // By outputs first, so that each thread writes a part of its own.
        let mut product = vec![0.0; out.len()];
        product
            .par_chunks_mut(GRAIN * rows)
            .enumerate()
            .for_each(|(part, product)| {
                self.arch.dispatch(FewRows {
                    matrix: self,
                    first: part * GRAIN,
                    x,
                    rows,
                    product,
                });
            });
        for (output, product) in product.chunks_exact(rows).enumerate() {
            for (row, value) in product.iter().enumerate() {
                out[row * self.outputs + output] = *value;
            }
        }
    }

    fn multiply_tiled(&self, x: &[f32], rows: usize, out: &mut [f32]) -> Result<(), ModelError> {
        let x = Tensor::from_slice(x, (rows, self.inputs), &Device::Cpu)?;
        let height = (TILE / self.inputs).clamp(1, self.outputs);
        for first in (0..self.outputs).step_by(height) {
            let height = height.min(self.outputs - first);
            let mut tile = vec![0.0; height * self.inputs];
            tile.par_chunks_mut(self.inputs)
                .enumerate()
                .for_each(|(index, row)| self.widen(first + index, row));
            let tile = Tensor::from_vec(tile, (height, self.inputs), &Device::Cpu)?;
            let product = x.matmul(&tile.t()?)?;
            super::ops::with_values(&product, |product| {
                for (row, values) in product.chunks_exact(height).enumerate() {
                    let start = row * self.outputs + first;
                    out[start..start + height].copy_from_slice(values);
                }
            })?;
        }
        Ok(())
    }

    fn widen(&self, row: usize, out: &mut [f32]) {
        self.arch.dispatch(
            #[inline(always)]
            || self.widen_inline(row, out),
        );
    }

    #[expect(clippy::inline_always, reason = "see the functions below")]
    #[inline(always)]
    fn widen_inline(&self, row: usize, out: &mut [f32]) {
        let blocks = self.inputs / BLOCK;
        let range = row * blocks..(row + 1) * blocks;
        let scales = &self.scales[range.clone()];
        let out = out.as_chunks_mut::<BLOCK>().0;
        match &self.values {
            Values::Halves(values) => widen_halves(scales, &values[range], out),
            Values::Bytes(values) => widen_bytes(scales, &values[range], out),
        }
    }
}

/// Some outputs for some rows: each row of weights is widened once, and what is read of it is used for several rows. In
/// vectors of the processor by name, since the compiler finds none here by itself.
struct FewRows<'a> {
    matrix: &'a Rows,
    /// The first output.
    first: usize,
    x: &'a [f32],
    rows: usize,
    /// `[outputs, rows]`.
    product: &'a mut [f32],
}

impl WithSimd for FewRows<'_> {
    type Output = ();

    #[expect(clippy::inline_always, reason = "see below")]
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let inputs = self.matrix.inputs;
        let mut weights = vec![0.0; inputs];
        for (index, product) in self.product.chunks_exact_mut(self.rows).enumerate() {
            self.matrix.widen_inline(self.first + index, &mut weights);
            let weights = S::as_simd_f32s(&weights).0;
            let mut out = product.chunks_exact_mut(AT_ONCE);
            let mut x = self.x.chunks_exact(AT_ONCE * inputs);
            for (out, x) in out.by_ref().zip(x.by_ref()) {
                products::<S, AT_ONCE>(simd, weights, x, out);
            }
            for (out, x) in out.into_remainder().iter_mut().zip(x.remainder().chunks_exact(inputs)) {
                products::<S, 1>(simd, weights, x, std::slice::from_mut(out));
            }
        }
    }
}

/// Rows that a vector of weights is used for while it is in a register.
const AT_ONCE: usize = 4;

/// The products of one row of weights with `N` rows; widths are whole vectors.
#[expect(clippy::inline_always, reason = "see below")]
#[inline(always)]
fn products<S: Simd, const N: usize>(simd: S, weights: &[S::f32s], x: &[f32], out: &mut [f32]) {
    let mut rows = x.chunks_exact(x.len() / N);
    let rows: [&[S::f32s]; N] = std::array::from_fn(|_| rows.next().map_or(&[][..], |row| S::as_simd_f32s(row).0));
    let mut sums = [simd.splat_f32s(0.0); N];
    for (at, weights) in weights.iter().enumerate() {
        for (sum, row) in sums.iter_mut().zip(rows) {
            *sum = simd.mul_add_e_f32s(*weights, row[at], *sum);
        }
    }
    for (out, sum) in out.iter_mut().zip(sums) {
        *out = simd.reduce_sum_f32s(sum);
    }
}

fn copy<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut copy = [0; N];
    copy.copy_from_slice(&bytes[..N]);
    copy
}

// The functions below must become part of their caller, which the compiler builds for the processor's vector width.

#[expect(clippy::inline_always, reason = "see above")]
#[inline(always)]
fn dot_halves(scales: &[[f32; 2]], values: &[[u8; 16]], x: &[[f32; BLOCK]], sums: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; 16];
    let mut offset = 0.0;
    for (((scale, values), x), sum) in scales.iter().zip(values).zip(x).zip(sums) {
        for lane in 0..16 {
            let (low, high) = (values[lane] & 15, values[lane] >> 4);
            lanes[lane] += scale[0] * (f32::from(low) * x[lane] + f32::from(high) * x[lane + 16]);
        }
        offset += scale[1] * sum;
    }
    lanes.iter().sum::<f32>() + offset
}

#[expect(clippy::inline_always, reason = "see above")]
#[inline(always)]
fn dot_bytes(scales: &[[f32; 2]], values: &[[i8; BLOCK]], x: &[[f32; BLOCK]]) -> f32 {
    let mut lanes = [0.0_f32; 16];
    for ((scale, values), x) in scales.iter().zip(values).zip(x) {
        for lane in 0..16 {
            let pair = f32::from(values[lane]) * x[lane] + f32::from(values[lane + 16]) * x[lane + 16];
            lanes[lane] += scale[0] * pair;
        }
    }
    lanes.iter().sum()
}

#[expect(clippy::inline_always, reason = "see above")]
#[inline(always)]
fn widen_halves(scales: &[[f32; 2]], values: &[[u8; 16]], out: &mut [[f32; BLOCK]]) {
    for ((scale, values), out) in scales.iter().zip(values).zip(out) {
        for lane in 0..16 {
            out[lane] = f32::from(values[lane] & 15) * scale[0] + scale[1];
            out[lane + 16] = f32::from(values[lane] >> 4) * scale[0] + scale[1];
        }
    }
}

#[expect(clippy::inline_always, reason = "see above")]
#[inline(always)]
fn widen_bytes(scales: &[[f32; 2]], values: &[[i8; BLOCK]], out: &mut [[f32; BLOCK]]) {
    for ((scale, values), out) in scales.iter().zip(values).zip(out) {
        for lane in 0..BLOCK {
            out[lane] = f32::from(values[lane]) * scale[0];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::blocks::block_type;
    use super::*;
    use candle_core::quantized::{QStorage, QTensor};
    use std::borrow::Cow;

    fn bytes(count: usize) -> Vec<u8> {
        let mut state = 5_u32;
        let mut next = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            u8::try_from(state >> 24).unwrap()
        };
        (0..count).map(|_| next()).collect()
    }

    /// Random blocks whose scales are small numbers.
    fn blocks(kind: TensorType, outputs: usize, inputs: usize) -> Vec<u8> {
        let mut bytes = bytes(outputs * inputs / BLOCK * kind.block_bytes());
        for block in bytes.chunks_exact_mut(kind.block_bytes()) {
            let scale = f16::from_f32(f32::from(block[5]) / 4096.0);
            block[..2].copy_from_slice(&scale.to_le_bytes());
            if kind == TensorType::Q4_1 {
                block[2..4].copy_from_slice(&f16::from_f32(-0.25).to_le_bytes());
            }
        }
        bytes
    }

    #[test]
    fn products_are_those_of_widened_weights() {
        let (outputs, inputs) = (70, 96);
        for kind in [TensorType::Q4_0, TensorType::Q4_1, TensorType::Q8_0] {
            let bytes = blocks(kind, outputs, inputs);
            let rows = Rows::new(kind, outputs, inputs, &bytes);
            let storage = QStorage::from_data(Cow::Borrowed(&bytes), &Device::Cpu, block_type(kind).unwrap()).unwrap();
            let reference = QTensor::new(storage, (outputs, inputs))
                .unwrap()
                .dequantize(&Device::Cpu)
                .unwrap();
            let reference = reference.to_vec2::<f32>().unwrap();
            assert_eq!(
                rows.rows_of(&[69, 0]).unwrap(),
                [&reference[69][..], &reference[0]].concat()
            );
            assert!(rows.rows_of(&[70]).is_err());
            for count in [1, 2, 3, 4, 7, 33, 47, 48, 50] {
                let values = (0..count * inputs).map(|index| u8::try_from(index * 37 % 101).unwrap());
                let x: Vec<f32> = values.map(|value| (f32::from(value) - 50.0) / 50.0).collect();
                let got = rows.multiply(&x).unwrap();
                for (x, got) in x.chunks_exact(inputs).zip(got.chunks_exact(outputs)) {
                    for (weights, got) in reference.iter().zip(got) {
                        let expected: f32 = weights.iter().zip(x).map(|(weight, x)| weight * x).sum();
                        assert!((expected - got).abs() < 1e-3, "{kind} {count}: {expected} {got}");
                    }
                }
            }
        }
    }
}
