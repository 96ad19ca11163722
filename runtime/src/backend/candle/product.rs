//! The product of attention: few rows by a small matrix that lies in a core's own cache.

use pulp::{Arch, Simd, WithSimd};

/// Rows at a time, and vectors of each: as many sums as the processor can have under way, for fewer reads.
const ROWS: usize = 6;
const VECTORS: usize = 2;

/// Adds `rows * matrix` to `out`.
pub(super) struct AddProduct<'a> {
    /// `[any, stride]`; of each row as many numbers count as the matrix has rows.
    pub(super) rows: &'a [f32],
    pub(super) stride: usize,
    /// `[any, width]`.
    pub(super) matrix: &'a [f32],
    pub(super) width: usize,
    /// `[rows, out_stride]`, of which the first `width` numbers of each row are added to.
    pub(super) out: &'a mut [f32],
    pub(super) out_stride: usize,
}

impl AddProduct<'_> {
    pub(super) fn run(self) {
        Arch::new().dispatch(self);
    }
}

impl WithSimd for AddProduct<'_> {
    type Output = ();

    #[expect(clippy::inline_always, reason = "it must be built for the processor's vector width")]
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (stride, out_stride) = (self.stride, self.out_stride);
        let rows = self.rows.chunks(ROWS * stride);
        for (rows, out) in rows.zip(self.out.chunks_mut(ROWS * out_stride)) {
            let few = Few {
                rows,
                stride,
                matrix: self.matrix,
                width: self.width,
            };
            match rows.len().div_ceil(stride).min(out.len().div_ceil(out_stride)) {
                1 => few.add::<S, 1>(simd, out, out_stride),
                2 => few.add::<S, 2>(simd, out, out_stride),
                3 => few.add::<S, 3>(simd, out, out_stride),
                4 => few.add::<S, 4>(simd, out, out_stride),
                5 => few.add::<S, 5>(simd, out, out_stride),
                _ => few.add::<S, ROWS>(simd, out, out_stride),
            }
        }
    }
}

/// As many rows as are computed at a time, or fewer.
struct Few<'a> {
    rows: &'a [f32],
    stride: usize,
    matrix: &'a [f32],
    width: usize,
}

impl Few<'_> {
    #[expect(clippy::inline_always, reason = "it must be built for the processor's vector width")]
    #[inline(always)]
    fn add<S: Simd, const N: usize>(self, simd: S, out: &mut [f32], out_stride: usize) {
        let (matrix, width) = (self.matrix, self.width);
        let length = matrix.len() / width;
        let rows = std::array::from_fn::<_, N, _>(|row| &self.rows[row * self.stride..][..length]);
        let at_once = VECTORS * S::F32_LANES;
        let whole = width / at_once * at_once;
        for column in (0..whole).step_by(at_once) {
            let mut sums = [[simd.splat_f32s(0.0); VECTORS]; N];
            for (index, numbers) in matrix.chunks_exact(width).enumerate() {
                let vectors = S::as_simd_f32s(&numbers[column..column + at_once]).0;
                for (sums, row) in sums.iter_mut().zip(&rows) {
                    let factor = simd.splat_f32s(row[index]);
                    for (sum, vector) in sums.iter_mut().zip(vectors) {
                        *sum = simd.mul_add_e_f32s(factor, *vector, *sum);
                    }
                }
            }
            for (row, sums) in sums.iter().enumerate() {
                let out = S::as_mut_simd_f32s(&mut out[row * out_stride + column..][..at_once]).0;
                for (out, sum) in out.iter_mut().zip(sums) {
                    *out = simd.add_f32s(*out, *sum);
                }
            }
        }
        if whole == width {
            return;
        }
        for (index, numbers) in matrix.chunks_exact(width).enumerate() {
            for (row, factors) in rows.iter().enumerate() {
                let out = &mut out[row * out_stride + whole..][..width - whole];
                for (out, number) in out.iter_mut().zip(&numbers[whole..]) {
                    *out += factors[index] * number;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn product_is_added_for_any_shape() {
        let number = |index: usize| f32::from(u8::try_from(index * 7 % 13).unwrap()) - 6.0;
        for (count, length, width) in [(1, 1, 1), (4, 3, 32), (5, 32, 64), (9, 17, 80), (2, 5, 24), (6, 64, 7)] {
            let (stride, out_stride) = (length + 2, width + 3);
            let rows: Vec<f32> = (0..count * stride).map(number).collect();
            let matrix: Vec<f32> = (0..length * width).map(number).collect();
            let mut out = vec![1.0; count * out_stride];
            AddProduct {
                rows: &rows,
                stride,
                matrix: &matrix,
                width,
                out: &mut out,
                out_stride,
            }
            .run();
            for (row, out) in out.chunks(out_stride).enumerate() {
                for (column, value) in out[..width].iter().enumerate() {
                    let products = (0..length).map(|at| rows[row * stride + at] * matrix[at * width + column]);
                    let expected = 1.0 + products.sum::<f32>();
                    assert!(
                        (value - expected).abs() < 1e-3,
                        "{count} {length} {width}: {value} {expected}"
                    );
                }
                assert!(out[width..].iter().all(|value| value.to_bits() == 1.0_f32.to_bits()));
            }
        }
    }
}
