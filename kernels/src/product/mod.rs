//! Products of packed matrices and quantised activations.
//!
//! One algorithm ([`tile`]) is written against [`vectors::Vectors`], which each level has its own instructions for.

mod formats;
mod portable;
mod tile;
mod vectors;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::level::Instructions;
use crate::{Activations, Columns, Kind, Level, Packed};
use formats::{Fives, FivesLeast, FivesLong, Format, Nibbles, NibblesLeast, NibblesLong, SixesLong, Whole};
use tile::Scratch;
use vectors::Vectors;

/// Computes some columns of `x` times the transposed matrix, with the instructions that `x` is laid out for. Which columns
/// are computed together has no influence on their values.
///
/// # Panics
/// When the sizes of the three do not fit together.
pub fn multiply(matrix: &Packed, x: &Activations, out: &mut Columns<'_>) {
    assert_eq!(matrix.inputs(), x.inputs(), "as many inputs as rows have");
    assert_eq!(matrix.outputs(), out.width(), "as many outputs as columns");
    assert_eq!(x.rows(), out.rows(), "as many rows of the buffer as of activations");
    run(x.level(), matrix, x, out);
}

#[cfg(target_arch = "x86_64")]
fn run(level: Level, matrix: &Packed, x: &Activations, out: &mut Columns<'_>) {
    match level.instructions() {
        // SAFETY: a level is only made where the processor has its instructions.
        Instructions::Avx512 => unsafe { x86::with_avx512(matrix, x, out) },
        // SAFETY: as above.
        Instructions::AvxVnni => unsafe { x86::with_avx_vnni(matrix, x, out) },
        // SAFETY: as above.
        Instructions::Avx2 => unsafe { x86::with_avx2(matrix, x, out) },
        Instructions::Portable => by_kind(portable::Loops, matrix, x, out),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn run(_: Level, matrix: &Packed, x: &Activations, out: &mut Columns<'_>) {
    by_kind(portable::Loops, matrix, x, out);
}

/// The product for the kind of the matrix.
#[inline(always)]
fn by_kind<V: Vectors>(vectors: V, matrix: &Packed, x: &Activations, out: &mut Columns<'_>) {
    match matrix.kind() {
        Kind::Q4_0 => of_format::<V, Nibbles>(vectors, matrix, x, out),
        Kind::Q4_1 => of_format::<V, NibblesLeast>(vectors, matrix, x, out),
        Kind::Q5_0 => of_format::<V, Fives>(vectors, matrix, x, out),
        Kind::Q5_1 => of_format::<V, FivesLeast>(vectors, matrix, x, out),
        Kind::Q8_0 => of_format::<V, Whole>(vectors, matrix, x, out),
        Kind::Q4_K => of_format::<V, NibblesLong>(vectors, matrix, x, out),
        Kind::Q5_K => of_format::<V, FivesLong>(vectors, matrix, x, out),
        Kind::Q6_K => of_format::<V, SixesLong>(vectors, matrix, x, out),
    }
}

#[inline(always)]
fn of_format<V: Vectors, F: Format>(vectors: V, matrix: &Packed, x: &Activations, out: &mut Columns<'_>) {
    let mut scratch = Scratch::<F>::new(x);
    for index in out.tiles() {
        for (row, sums) in scratch.multiply(vectors, matrix.tile(index), x).iter().enumerate() {
            let out = out.of_tile(row, index);
            out.copy_from_slice(&sums[..out.len()]);
        }
    }
}

#[cfg(test)]
mod tests;
