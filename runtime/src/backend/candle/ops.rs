//! Row-wise operations that candle's core does not have.

use super::super::RopePairs;
use super::Turns;
use super::softmax::exp;
use super::vectors::widest;
use crate::model::ModelError;
use candle_core::{CpuStorage, Device, InplaceOp1, InplaceOp2, Layout, Storage, Tensor};
use rayon::prelude::*;

/// Lends the values of a contiguous f32 tensor.
pub(super) fn with_values<R>(x: &Tensor, use_values: impl FnOnce(&[f32]) -> R) -> Result<R, ModelError> {
    let (storage, layout) = x.storage_and_layout();
    let Some((start, end)) = layout.contiguous_offsets() else {
        return Err(ModelError::Tensor("a buffer is not contiguous".to_owned()));
    };
    match &*storage {
        Storage::Cpu(storage) => Ok(use_values(&storage.as_slice::<f32>()?[start..end])),
        Storage::Cuda(_) | Storage::Metal(_) => Err(ModelError::Tensor("a buffer is not on the processor".to_owned())),
    }
}

pub(super) fn buffer(values: Vec<f32>, width: usize) -> Result<Tensor, ModelError> {
    let rows = values.len() / width;
    Ok(Tensor::from_vec(values, (rows, width), &Device::Cpu)?)
}

pub(super) fn rms_norm(x: &Tensor, weight: &[f32], epsilon: f32) -> Result<Tensor, ModelError> {
    let width = weight.len();
    let values = with_values(x, |values| {
        let mut out = Vec::with_capacity(values.len());
        for row in values.chunks_exact(width) {
            let scale = 1.0 / (mean_square(row) + epsilon).sqrt();
            out.extend(row.iter().zip(weight).map(|(value, weight)| value * scale * weight));
        }
        out
    })?;
    buffer(values, width)
}

/// Sums in f64: a row's squares span several orders of magnitude.
#[expect(clippy::cast_possible_truncation, reason = "a mean of f32 squares fits f32")]
#[expect(clippy::cast_precision_loss, reason = "widths are far below 2^52")]
fn mean_square(row: &[f32]) -> f32 {
    let sum: f64 = row.iter().map(|&value| f64::from(value) * f64::from(value)).sum();
    (sum / row.len() as f64) as f32
}

pub(super) fn select(x: &Tensor, rows: &[usize]) -> Result<Tensor, ModelError> {
    let width = x.dim(1)?;
    let values = with_values(x, |values| {
        let rows = rows.iter().map(|row| &values[row * width..(row + 1) * width]);
        rows.flatten().copied().collect::<Vec<_>>()
    })?;
    buffer(values, width)
}

struct AddBias<'a>(&'a [f32]);

impl InplaceOp1 for AddBias<'_> {
    fn name(&self) -> &'static str {
        "add-bias"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        for row in values_mut(storage, layout)?.chunks_exact_mut(self.0.len()) {
            for (value, bias) in row.iter_mut().zip(self.0) {
                *value += bias;
            }
        }
        Ok(())
    }
}

pub(super) fn add_bias(x: Tensor, bias: &[f32]) -> Result<Tensor, ModelError> {
    x.inplace_op1(&AddBias(bias))?;
    Ok(x)
}

#[expect(clippy::inline_always, reason = "it must be built for the processor's vector width")]
#[inline(always)]
pub(super) fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// `x / 2 * (1 + tanh(y))` is `x / (1 + exp(-2 y))`.
#[inline(always)]
pub(super) fn gelu_tanh(x: f32) -> f32 {
    /// The square root of 2 / pi.
    const SLOPE: f32 = 0.797_884_6;
    x / (1.0 + exp(-2.0 * SLOPE * (x + 0.044_715 * x * x * x)))
}

/// Values that a thread computes at a time.
const GRAIN: usize = 4096;

struct GateTimes<F>(F);

impl<F: Fn(f32) -> f32 + Sync> InplaceOp2 for GateTimes<F> {
    fn name(&self) -> &'static str {
        "gate-times"
    }

    fn cpu_fwd(
        &self,
        gate: &mut CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> candle_core::Result<()> {
        let up = values(up, up_layout)?.par_chunks(GRAIN);
        let gate = values_mut(gate, gate_layout)?.par_chunks_mut(GRAIN);
        gate.zip(up).for_each(|(gate, up)| {
            widest(
                #[inline(always)]
                || {
                    for (gate, up) in gate.iter_mut().zip(up) {
                        *gate = (self.0)(*gate) * up;
                    }
                },
            );
        });
        Ok(())
    }
}

/// Overwrites `gate`, which nothing else refers to, with `activation(gate) * up`.
pub(super) fn gate_times(
    gate: &Tensor,
    up: &Tensor,
    activation: impl Fn(f32) -> f32 + Sync,
) -> Result<Tensor, ModelError> {
    gate.inplace_op2(up, &GateTimes(activation))?;
    Ok(gate.clone())
}

struct Rotate<'a> {
    turns: &'a Turns,
    head_size: usize,
    width: usize,
}

impl InplaceOp1 for Rotate<'_> {
    fn name(&self) -> &'static str {
        "rotate"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let turns = self.turns;
        let rows = values_mut(storage, layout)?.chunks_exact_mut(self.width);
        for (index, row) in rows.enumerate() {
            let turn = index * turns.pairs..(index + 1) * turns.pairs;
            let (cosines, sines) = (&turns.cosines[turn.clone()], &turns.sines[turn]);
            for head in row.chunks_exact_mut(self.head_size) {
                match turns.layout {
                    RopePairs::Adjacent => rotate_adjacent(head, cosines, sines),
                    RopePairs::Halves => rotate_halves(head, cosines, sines),
                }
            }
        }
        Ok(())
    }
}

fn rotate_adjacent(head: &mut [f32], cosines: &[f32], sines: &[f32]) {
    for ((pair, cosine), sine) in head.chunks_exact_mut(2).zip(cosines).zip(sines) {
        let (x, y) = (pair[0], pair[1]);
        pair[0] = x * cosine - y * sine;
        pair[1] = x * sine + y * cosine;
    }
}

fn rotate_halves(head: &mut [f32], cosines: &[f32], sines: &[f32]) {
    let (first, second) = head.split_at_mut(cosines.len());
    let pairs = first.iter_mut().zip(second).zip(cosines.iter().zip(sines));
    for ((x, y), (cosine, sine)) in pairs {
        (*x, *y) = (*x * cosine - *y * sine, *x * sine + *y * cosine);
    }
}

/// Turns every head of every row by its position, in place.
pub(super) fn rotate(x: &Tensor, head_size: usize, turns: &Turns) -> Result<(), ModelError> {
    let width = x.dim(1)?;
    Ok(x.inplace_op1(&Rotate {
        turns,
        head_size,
        width,
    })?)
}

fn range(layout: &Layout) -> candle_core::Result<(usize, usize)> {
    layout
        .contiguous_offsets()
        .ok_or_else(|| candle_core::Error::Msg("a buffer is not contiguous".to_owned()))
}

fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [f32]> {
    let (start, end) = range(layout)?;
    Ok(&storage.as_slice::<f32>()?[start..end])
}

pub(super) fn values_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> candle_core::Result<&'a mut [f32]> {
    let (start, end) = range(layout)?;
    match storage {
        CpuStorage::F32(values) => Ok(&mut values[start..end]),
        _ => Err(candle_core::Error::Msg("a buffer is not f32".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_pair_layouts_turn_the_same_values() {
        let (cosines, sines) = ([0.6, 0.8], [0.8, 0.6]);
        let mut adjacent = [1.0, 2.0, 3.0, 4.0, 9.0];
        rotate_adjacent(&mut adjacent, &cosines, &sines);
        let mut halves = [1.0, 3.0, 2.0, 4.0, 9.0];
        rotate_halves(&mut halves, &cosines, &sines);
        let expected = [halves[0], halves[2], halves[1], halves[3], 9.0];
        assert!(adjacent.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6));
    }

    #[test]
    fn gates_have_the_published_values() {
        let table = [
            (0.0, 0.0, 0.0),
            (1.0, 0.731_058_6, 0.841_192),
            (-2.0, -0.238_405_8, -0.045_402_3),
        ];
        for (x, with_silu, with_gelu) in table {
            assert!((silu(x) - with_silu).abs() < 1e-6, "{x}: {}", silu(x));
            assert!((gelu_tanh(x) - with_gelu).abs() < 1e-6, "{x}: {}", gelu_tanh(x));
        }
    }

    #[test]
    fn rms_norm_gives_rows_of_unit_size() {
        let x = buffer(vec![3.0, 4.0, 0.0, 0.0], 4).unwrap();
        let y = rms_norm(&x, &[1.0, 2.0, 1.0, 1.0], 0.0).unwrap();
        let y = y.to_vec2::<f32>().unwrap();
        assert!((y[0][0] - 1.2).abs() < 1e-6 && (y[0][1] - 3.2).abs() < 1e-6);
    }
}
