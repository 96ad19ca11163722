//! Matrices of 32-value blocks (`Q4_0`, `Q4_1`, `Q8_0`) that are multiplied with activations in f32.
//!
//! candle has no vector code for `Q4_1`, and its barrier between threads costs milliseconds when other processes want
//! the same cores. Here rows of outputs are shared out by a pool that sleeps. A product of one row streams the packed
//! weights once; one of several widens some rows of weights and uses them for all (see `many`). Activations stay f32, so
//! the only rounding is that of the weights themselves.

use super::many;
use super::parallel::in_parts;
use super::vectors::widest;
use crate::model::ModelError;
use escadre_verify::structure::gguf::TensorType;
use half::f16;
use rayon::prelude::*;

/// Values per block.
pub(super) const BLOCK: usize = 32;
/// Outputs that a thread computes at a time.
const GRAIN: usize = 4 * many::WEIGHTS;

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
        if rows == 1 {
            let mut out = vec![0.0; self.outputs];
            self.multiply_one(x, &mut out);
            return Ok(out);
        }
        let x = many::Activations::new(x, rows, self.inputs);
        in_parts((rows, self.outputs), GRAIN, |first| {
            Ok(x.times(self, first..self.outputs.min(first + GRAIN)))
        })
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

    fn widen(&self, row: usize, out: &mut [f32]) {
        widest(
            #[inline(always)]
            || self.widen_from(row, 0, out),
        );
    }

    /// Widens as many values of a row as `out` has room for, from one on; both are whole blocks.
    #[expect(clippy::inline_always, reason = "see the functions below")]
    #[inline(always)]
    pub(super) fn widen_from(&self, row: usize, input: usize, out: &mut [f32]) {
        let first = (row * self.inputs + input) / BLOCK;
        let range = first..first + out.len() / BLOCK;
        let scales = &self.scales[range.clone()];
        let out = out.as_chunks_mut::<BLOCK>().0;
        match &self.values {
            Values::Halves(values) => widen_halves(scales, &values[range], out),
            Values::Bytes(values) => widen_bytes(scales, &values[range], out),
        }
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
        // By halves of a block: the compiler makes no vectors of a whole one.
        let halves = alone(values).as_chunks::<{ BLOCK / 2 }>().0;
        for (out, values) in out.as_chunks_mut().0.iter_mut().zip(halves) {
            *out = values.map(|value| f32::from(value) * scale[0]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::blocks::block_type;
    use super::*;
    use candle_core::Device;
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
            for count in [1, 2, 3, 4, 7, 16, 33, 48, 50] {
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
