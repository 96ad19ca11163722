//! Whether a matrix that lies in memory is multiplied rightly.

use super::tile::Unpacked;
use super::{Inputs, multiply};
use crate::{Activations, Cores, Level, Packed, TILE};

/// Whether the instructions of these cores give the same bits as plain loops, for a few tiles of a matrix as it lies in
/// memory, with one row and with more rows than are computed together.
pub fn agrees(cores: &Cores, matrix: &Packed) -> bool {
    same_products(cores.level(), matrix, matrix)
}

/// Compares what a level makes of the first and the last tile of one matrix with what plain loops make of those of another.
pub(super) fn same_products(level: Level, one: &Packed, other: &Packed) -> bool {
    /// More than any level computes together.
    const ROWS: usize = 9;
    let last = one.outputs().div_ceil(TILE) - 1;
    // Any numbers but zero, in no order that blocks have.
    let number = |at: usize| f32::from(u8::try_from(at * 7 % 6).unwrap_or_default()) / 2.0 - 1.25;
    let x: Vec<f32> = (0..ROWS * one.inputs()).map(number).collect();
    let products = |level: Level, matrix: &Packed, rows: usize, tile: usize| {
        let cores = Cores::alone(level);
        let (mut scratch, x) = (Activations::new(level), &x[..rows * matrix.inputs()]);
        let x = Inputs::new(&cores, &mut scratch, x, &[matrix]);
        let mut sums = vec![[0.0; TILE]; rows];
        multiply(&cores, matrix, tile..tile + 1, x, &mut Unpacked::new(), &mut sums);
        sums
    };
    [(1, 0), (ROWS, last)].into_iter().all(|(rows, tile)| {
        let (fast, plain) = (
            products(level, one, rows, tile),
            products(Level::PORTABLE, other, rows, tile),
        );
        let pairs = fast.as_flattened().iter().zip(plain.as_flattened());
        pairs.into_iter().all(|(fast, plain)| fast.to_bits() == plain.to_bits())
    })
}
