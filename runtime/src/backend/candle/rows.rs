//! Matrices of 32-value blocks (`Q4_0`, `Q4_1`, `Q8_0`) that are multiplied with activations in f32.
//!
//! candle has no vector code for `Q4_1`, and its barrier between threads costs milliseconds when other processes want
//! the same cores. Here rows of outputs are shared out by a pool that sleeps. A product of one row streams the packed
//! weights once; one of several rows, a step of as many answers, widens each row of weights and uses it for all; one of
//! many rows widens a tile of weights for the matrix library. Activations stay f32, so the only rounding is that of the
//! weights themselves.

use super::parallel::by_outputs;
use super::vectors::widest;
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
/// Values of a widened tile, 512 KiB: it stays in a core's own cache.
const TILE: usize = 1 << 17;
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
        if rows >= TILED_ROWS {
            return self.multiply_tiled(x, rows);
        }
        let mut out = vec![0.0; rows * self.outputs];
        match rows {
            1 => self.multiply_one(x, &mut out),
            _ => self.multiply_few(x, rows, &mut out),
        }
        Ok(out)
    }

    fn multiply_one(&self, x: &[f32], out: &mut [f32]) {
        let x = x.as_chunks::<BLOCK>().0;
        let sums: Vec<f32> = x.iter().map(|block| block.iter().sum()).collect();
        let blocks = self.inputs / BLOCK;
        out.par_chunks_mut(GRAIN).enumerate().for_each(|(part, out)| {
            widest(
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
                Arch::new().dispatch(FewRows {
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

    fn multiply_tiled(&self, x: &[f32], rows: usize) -> Result<Vec<f32>, ModelError> {
        let x = Tensor::from_slice(x, (rows, self.inputs), &Device::Cpu)?;
        let most = (TILE / self.inputs).max(WEIGHTS_AT_ONCE);
        by_outputs((rows, self.outputs), most, |outputs| {
            let mut tile = vec![0.0; outputs.len() * self.inputs];
            for (output, row) in outputs.clone().zip(tile.chunks_exact_mut(self.inputs)) {
                self.widen(output, row);
            }
            let tile = Tensor::from_vec(tile, (outputs.len(), self.inputs), &Device::Cpu)?;
            Ok(x.matmul(&tile.t()?)?.flatten_all()?.to_vec1()?)
        })
    }

    fn widen(&self, row: usize, out: &mut [f32]) {
        widest(
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

/// Some outputs for some rows: rows of weights are widened once, and used for all rows of activations. In vectors of the
/// processor by name, since the compiler finds none here by itself.
struct FewRows<'a> {
    matrix: &'a Rows,
    /// The first output.
    first: usize,
    x: &'a [f32],
    rows: usize,
    /// `[outputs, rows]`.
    product: &'a mut [f32],
}

/// Rows of weights that are multiplied at a time, with two or three rows of activations: each vector that is read is used
/// more than once, and there are as many sums as the processor can have under way.
const WEIGHTS_AT_ONCE: usize = 4;

impl WithSimd for FewRows<'_> {
    type Output = ();

    #[expect(clippy::inline_always, reason = "see below")]
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let inputs = self.matrix.inputs;
        let mut weights = vec![0.0; WEIGHTS_AT_ONCE * inputs];
        let mut first = self.first;
        for product in self.product.chunks_mut(WEIGHTS_AT_ONCE * self.rows) {
            // The last outputs may be fewer; what is left of earlier ones is computed, and not used.
            let outputs = product.len() / self.rows;
            for (output, weights) in weights.chunks_exact_mut(inputs).take(outputs).enumerate() {
                self.matrix.widen_inline(first + output, weights);
            }
            first += outputs;
            let mut row = 0;
            while row < self.rows {
                let (left, x, product) = (self.rows - row, &self.x[row * inputs..], &mut product[row..]);
                row += match left {
                    1 => products::<S, 1>(simd, &weights, &x[..inputs], product, self.rows),
                    // One that is left alone would keep the processor waiting.
                    3 => products::<S, 3>(simd, &weights, &x[..3 * inputs], product, self.rows),
                    _ => products::<S, 2>(simd, &weights, &x[..2 * inputs], product, self.rows),
                };
            }
        }
    }
}

/// The products of some rows of weights with `N` rows of activations, whose widths are whole vectors; those of one row of
/// weights lie `stride` after those of the one before. Gives `N`.
#[expect(clippy::inline_always, reason = "see below")]
#[inline(always)]
fn products<S: Simd, const N: usize>(simd: S, weights: &[f32], x: &[f32], product: &mut [f32], stride: usize) -> usize {
    let weights: [&[S::f32s]; WEIGHTS_AT_ONCE] = vectors::<S, _>(weights);
    let rows: [&[S::f32s]; N] = vectors::<S, _>(x);
    let count = rows[0].len();
    let weights = weights.map(|weights| &weights[..count]);
    let rows = rows.map(|row| &row[..count]);
    let mut sums = [[simd.splat_f32s(0.0); N]; WEIGHTS_AT_ONCE];
    for at in 0..count {
        for (sums, weights) in sums.iter_mut().zip(weights) {
            for (sum, row) in sums.iter_mut().zip(rows) {
                *sum = simd.mul_add_e_f32s(weights[at], row[at], *sum);
            }
        }
    }
    // By loops: a `map` of vectors may become a function of its own, which is built for narrow ones.
    for (product, sums) in product.chunks_mut(stride).zip(sums) {
        for (product, sum) in product.iter_mut().zip(sums) {
            *product = simd.reduce_sum_f32s(sum);
        }
    }
    N
}

/// `N` rows of the same width, as vectors.
#[expect(clippy::inline_always, reason = "see below")]
#[inline(always)]
fn vectors<S: Simd, const N: usize>(values: &[f32]) -> [&[S::f32s]; N] {
    let width = values.len() / N;
    std::array::from_fn(|row| S::as_simd_f32s(&values[row * width..(row + 1) * width]).0)
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

/// Opaque, so that the compiler computes the values of one block beside each other and not those of several.
#[expect(clippy::inline_always, reason = "see above")]
#[inline(always)]
fn alone<T>(block: &T) -> &T {
    std::hint::black_box(block)
}

#[expect(clippy::inline_always, reason = "see above")]
#[inline(always)]
fn widen_halves(scales: &[[f32; 2]], values: &[[u8; 16]], out: &mut [[f32; BLOCK]]) {
    for ((scale, values), out) in scales.iter().zip(values).zip(out) {
        let values = alone(values);
        let low: [f32; BLOCK / 2] = values.map(|value| f32::from(value & 15) * scale[0] + scale[1]);
        let high: [f32; BLOCK / 2] = values.map(|value| f32::from(value >> 4) * scale[0] + scale[1]);
        out[..BLOCK / 2].copy_from_slice(&low);
        out[BLOCK / 2..].copy_from_slice(&high);
    }
}

#[expect(clippy::inline_always, reason = "see above")]
#[inline(always)]
fn widen_bytes(scales: &[[f32; 2]], values: &[[i8; BLOCK]], out: &mut [[f32; BLOCK]]) {
    for ((scale, values), out) in scales.iter().zip(values).zip(out) {
        for (out, value) in out.iter_mut().zip(alone(values)) {
            *out = f32::from(*value) * scale[0];
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
