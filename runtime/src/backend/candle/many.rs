//! The product of several rows of activations with packed weights, some of which are widened at a time and used for all
//! rows. In vectors of the processor by name, since the compiler finds none here by itself.
//!
//! Most rows lie in panels of two vectors: input by input, the numbers of as many rows. What is left is multiplied by two or
//! three rows at a time. Both have as many sums under way as the processor can, and use what they read more than once.

use super::rows::{BLOCK, Rows};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;

/// Rows of weights that are widened together: what both kernels below take at a time goes into it.
pub(super) const WEIGHTS: usize = 12;
/// Rows of weights, and vectors of rows of activations, that are multiplied at a time.
const BY_PANEL: usize = 6;
const VECTORS: usize = 2;
/// Rows of weights that are multiplied at a time with two or three rows of activations.
const BY_ROW: usize = 4;
/// Inputs at a time: those of the weights that are used together stay in a core's own cache.
const DEPTH: usize = 32 * BLOCK;

/// Rows of activations.
pub(super) struct Activations<'a> {
    x: &'a [f32],
    rows: usize,
    inputs: usize,
    /// Rows of a panel.
    width: usize,
    /// Panels of the first rows, `[inputs, width]` each.
    panels: Vec<f32>,
}

impl<'a> Activations<'a> {
    /// `x` is `[rows, inputs]`.
    pub(super) fn new(x: &'a [f32], rows: usize, inputs: usize) -> Self {
        let width = VECTORS * Arch::new().dispatch(Lanes);
        let mut panels = vec![0.0; rows / width * width * inputs];
        let packed = panels.par_chunks_exact_mut(width * inputs);
        packed.zip(x.par_chunks_exact(width * inputs)).for_each(|(panel, x)| {
            for (row, x) in x.chunks_exact(inputs).enumerate() {
                for (numbers, x) in panel.chunks_exact_mut(width).zip(x) {
                    numbers[row] = *x;
                }
            }
        });
        Self {
            x,
            rows,
            inputs,
            width,
            panels,
        }
    }

    /// The products with some outputs of a matrix, `[rows, outputs]`.
    pub(super) fn times(&self, matrix: &Rows, outputs: Range<usize>) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * outputs.len()];
        Arch::new().dispatch(Times {
            x: self,
            matrix,
            outputs,
            out: &mut out,
        });
        out
    }

    fn whole_panels(&self) -> usize {
        self.rows / self.width
    }
}

/// How many numbers a vector has.
struct Lanes;

impl WithSimd for Lanes {
    type Output = usize;

    fn with_simd<S: Simd>(self, _: S) -> usize {
        S::F32_LANES
    }
}

struct Times<'a> {
    x: &'a Activations<'a>,
    matrix: &'a Rows,
    outputs: Range<usize>,
    /// `[rows, outputs]`.
    out: &'a mut [f32],
}

// What follows must become part of its caller, which is built for the processor's vector width.

impl WithSimd for Times<'_> {
    type Output = ();

    #[expect(clippy::inline_always, reason = "see above")]
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self {
            x,
            matrix,
            outputs,
            out,
        } = self;
        let mut weights = vec![0.0; WEIGHTS * DEPTH.min(x.inputs)];
        for input in (0..x.inputs).step_by(DEPTH) {
            let depth = DEPTH.min(x.inputs - input);
            for first in outputs.clone().step_by(WEIGHTS) {
                // The last may be fewer; what is left of earlier ones is computed, and not used.
                let count = WEIGHTS.min(outputs.end - first);
                for (output, weights) in weights.chunks_exact_mut(depth).take(count).enumerate() {
                    matrix.widen_from(first + output, input, weights);
                }
                let mut tile = Tile {
                    weights: &weights[..WEIGHTS * depth],
                    depth,
                    out: &mut *out,
                    stride: outputs.len(),
                    first: first - outputs.start,
                    count,
                };
                for panel in 0..x.whole_panels() {
                    let numbers = &x.panels[(panel * x.inputs + input) * x.width..][..depth * x.width];
                    tile.add_panel(simd, numbers, panel * x.width);
                }
                let mut row = x.whole_panels() * x.width;
                while row < x.rows {
                    let rows = &x.x[row * x.inputs + input..];
                    row += match x.rows - row {
                        1 => tile.add_rows::<S, 1>(simd, rows, x.inputs, row),
                        // One that is left alone would keep the processor waiting.
                        2 | 4 => tile.add_rows::<S, 2>(simd, rows, x.inputs, row),
                        _ => tile.add_rows::<S, 3>(simd, rows, x.inputs, row),
                    };
                }
            }
        }
    }
}

/// Widened weights, and what they add to.
struct Tile<'a> {
    /// `[WEIGHTS, depth]`.
    weights: &'a [f32],
    depth: usize,
    /// `[rows, stride]`.
    out: &'a mut [f32],
    stride: usize,
    /// The column of `out` that belongs to the first weights.
    first: usize,
    /// How many of the weights count.
    count: usize,
}

impl Tile<'_> {
    /// Adds the products with a panel, `[depth, panel width]`, of rows from `row` on.
    #[expect(clippy::inline_always, reason = "see above")]
    #[inline(always)]
    fn add_panel<S: Simd>(&mut self, simd: S, panel: &[f32], row: usize) {
        let width = VECTORS * S::F32_LANES;
        let groups = self
            .weights
            .chunks_exact(BY_PANEL * self.depth)
            .take(self.count.div_ceil(BY_PANEL));
        for (group, weights) in groups.enumerate() {
            let weights: [&[f32]; BY_PANEL] = rows_of(weights, self.depth, self.depth);
            let mut sums = [[simd.splat_f32s(0.0); VECTORS]; BY_PANEL];
            for (at, numbers) in panel.chunks_exact(width).enumerate() {
                let numbers = S::as_simd_f32s(numbers).0;
                for (sums, weights) in sums.iter_mut().zip(&weights) {
                    let weight = simd.splat_f32s(weights[at]);
                    for (sum, numbers) in sums.iter_mut().zip(numbers) {
                        *sum = simd.mul_add_e_f32s(weight, *numbers, *sum);
                    }
                }
            }
            for (output, sums) in sums.iter().enumerate().take(self.count - group * BY_PANEL) {
                let column = self.first + group * BY_PANEL + output;
                let sums = pulp::bytemuck::cast_slice::<_, f32>(sums);
                for (out, sum) in self.out[row * self.stride..].chunks_mut(self.stride).zip(sums) {
                    out[column] += sum;
                }
            }
        }
    }

    /// Adds the products with `N` rows from `row` on; each begins `inputs` numbers after the one before. Gives `N`.
    #[expect(clippy::inline_always, reason = "see above")]
    #[inline(always)]
    fn add_rows<S: Simd, const N: usize>(&mut self, simd: S, rows: &[f32], inputs: usize, row: usize) -> usize {
        let rows: [&[f32]; N] = rows_of(rows, inputs, self.depth);
        let rows = rows.map(|row| S::as_simd_f32s(row).0);
        let length = rows[0].len();
        let rows = rows.map(|row| &row[..length]);
        let groups = self
            .weights
            .chunks_exact(BY_ROW * self.depth)
            .take(self.count.div_ceil(BY_ROW));
        for (group, weights) in groups.enumerate() {
            let weights: [&[f32]; BY_ROW] = rows_of(weights, self.depth, self.depth);
            let weights = weights.map(|weights| &S::as_simd_f32s(weights).0[..length]);
            let mut sums = [[simd.splat_f32s(0.0); N]; BY_ROW];
            for at in 0..length {
                for (sums, weights) in sums.iter_mut().zip(weights) {
                    for (sum, row) in sums.iter_mut().zip(rows) {
                        *sum = simd.mul_add_e_f32s(weights[at], row[at], *sum);
                    }
                }
            }
            // By loops: a `map` of vectors may become a function of its own, which is built for narrow ones.
            for (output, sums) in sums.iter().enumerate().take(self.count - group * BY_ROW) {
                let column = self.first + group * BY_ROW + output;
                for (out, sum) in self.out[row * self.stride..].chunks_mut(self.stride).zip(sums) {
                    out[column] += simd.reduce_sum_f32s(*sum);
                }
            }
        }
        N
    }
}

/// `N` rows of `length` numbers, each `stride` after the one before.
#[expect(clippy::inline_always, reason = "see above")]
#[inline(always)]
fn rows_of<const N: usize>(numbers: &[f32], stride: usize, length: usize) -> [&[f32]; N] {
    std::array::from_fn(|row| &numbers[row * stride..][..length])
}
