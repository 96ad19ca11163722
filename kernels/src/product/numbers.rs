//! One tile of outputs whose weights are numbers times all rows: for each value a single chain of products, in the order
//! of the inputs.

use crate::TILE;
use crate::activations::panel;
use crate::instructions::Vectors;
use crate::line::Line;

/// How numbers are held.
pub(super) trait Numbers {
    /// Bytes of a number.
    const BYTES: usize;

    /// One number from its bytes.
    fn number(bytes: &[u8]) -> f32;
    /// Those of all outputs for one input.
    fn weights<V: Vectors>(vectors: V, lines: &[Line], input: usize) -> V::Floats;
}

/// 32 bits.
pub(super) struct Wide;

/// 16 bits.
pub(super) struct Halves;

/// Upper halves of 32 bits.
pub(super) struct Uppers;

impl Numbers for Wide {
    const BYTES: usize = 4;

    #[inline(always)]
    fn number(bytes: &[u8]) -> f32 {
        f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    #[inline(always)]
    fn weights<V: Vectors>(vectors: V, lines: &[Line], input: usize) -> V::Floats {
        let mut numbers = [0.0; TILE];
        for (number, bytes) in numbers.iter_mut().zip(lines[input].0.as_chunks().0) {
            *number = f32::from_le_bytes(*bytes);
        }
        vectors.read(&numbers)
    }
}

impl Numbers for Halves {
    const BYTES: usize = 2;

    #[inline(always)]
    fn number(bytes: &[u8]) -> f32 {
        half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
    }

    #[inline(always)]
    fn weights<V: Vectors>(vectors: V, lines: &[Line], input: usize) -> V::Floats {
        vectors.halves(&half_of_line(lines, input))
    }
}

impl Numbers for Uppers {
    const BYTES: usize = 2;

    #[inline(always)]
    fn number(bytes: &[u8]) -> f32 {
        f32::from_le_bytes([0, 0, bytes[0], bytes[1]])
    }

    #[inline(always)]
    fn weights<V: Vectors>(vectors: V, lines: &[Line], input: usize) -> V::Floats {
        vectors.uppers(&half_of_line(lines, input))
    }
}

#[inline(always)]
fn half_of_line(lines: &[Line], input: usize) -> [u8; 2 * TILE] {
    lines[input / 2].0.as_chunks().0[input % 2]
}

/// Adds every row's products with a tile to `sums`; `x` is `[rows, inputs]`.
#[inline(always)]
pub(super) fn multiply<V: Vectors, N: Numbers>(
    vectors: V,
    lines: &[Line],
    x: &[f32],
    inputs: usize,
    sums: &mut [[f32; TILE]],
) {
    let (mut x, mut sums) = (x, sums);
    while !sums.is_empty() {
        let rows = panel(V::ROWS, sums.len());
        let (now, later) = std::mem::take(&mut sums).split_at_mut(rows);
        match rows {
            1 => add::<V, N, 1>(vectors, lines, x, inputs, now),
            2 if V::ROWS >= 2 => add::<V, N, 2>(vectors, lines, x, inputs, now),
            3 if V::ROWS >= 3 => add::<V, N, 3>(vectors, lines, x, inputs, now),
            4 if V::ROWS >= 4 => add::<V, N, 4>(vectors, lines, x, inputs, now),
            8 if V::ROWS >= 8 => add::<V, N, 8>(vectors, lines, x, inputs, now),
            _ => unreachable!("no panel has {rows} rows"),
        }
        (x, sums) = (&x[rows * inputs..], later);
    }
}

#[inline(always)]
fn add<V: Vectors, N: Numbers, const R: usize>(
    vectors: V,
    lines: &[Line],
    x: &[f32],
    inputs: usize,
    sums: &mut [[f32; TILE]],
) {
    let mut rows = [&x[..inputs]; R];
    for (row, values) in rows.iter_mut().zip(x.chunks_exact(inputs)) {
        *row = values;
    }
    let mut totals = [vectors.splat(0.0); R];
    for (total, sums) in totals.iter_mut().zip(&*sums) {
        *total = vectors.read(sums);
    }
    for input in 0..inputs {
        let weights = N::weights(vectors, lines, input);
        for (total, row) in totals.iter_mut().zip(rows) {
            *total = vectors.multiply_add(weights, vectors.splat(row[input]), *total);
        }
    }
    for (total, sums) in totals.iter().zip(sums) {
        vectors.write(*total, sums);
    }
}

/// The weights of one output.
pub(super) fn look_up<N: Numbers>(lines: &[Line], output: usize, out: &mut [f32]) {
    for (input, out) in out.iter_mut().enumerate() {
        let at = (input * TILE + output) * N::BYTES;
        *out = N::number(&lines[at / Line::BYTES].0[at % Line::BYTES..][..N::BYTES]);
    }
}
