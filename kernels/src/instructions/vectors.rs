//! What a level must be able to do.

use crate::TILE;
use crate::line::Line;

/// Something that is built for every level. All that it calls must become part of it (`inline(always)`), else it is built
/// for the narrowest vectors.
pub(crate) trait Work {
    type Output;

    fn run<V: Vectors>(self, vectors: V) -> Self::Output;
}

/// Sixteen numbers at a time, one for each output of a tile. Every implementation gives the same bits.
pub(crate) trait Vectors: Copy {
    /// 64 integers of 8 bits: four inputs of each output.
    type Bytes: Copy;
    /// An integer of 32 bits for each output.
    type Ints: Copy;
    /// A number of 32 bits for each output.
    type Floats: Copy;
    /// Rows that the registers have room for: what the level's instructions say.
    const ROWS: usize;

    fn load(self, line: &Line) -> Self::Bytes;
    fn store(self, bytes: Self::Bytes, line: &mut Line);
    /// The bits of `mask` in every byte.
    fn mask(self, bytes: Self::Bytes, mask: u8) -> Self::Bytes;
    /// Bytes moved to the left; what leaves one enters its neighbour, and must be masked.
    fn left(self, bytes: Self::Bytes, bits: i32) -> Self::Bytes;
    /// Bytes moved to the right, as [`left`](Self::left).
    fn right(self, bytes: Self::Bytes, bits: i32) -> Self::Bytes;
    fn or(self, one: Self::Bytes, other: Self::Bytes) -> Self::Bytes;

    /// `value << bits` for every output.
    fn start(self, value: u32, bits: i32) -> Self::Ints;
    /// Adds the products of four unsigned weights of each output, at most 127, with the four signed bytes of `inputs`.
    fn dot(self, sums: Self::Ints, weights: Self::Bytes, inputs: u32) -> Self::Ints;
    /// As [`dot`](Self::dot) with weights to 255.
    fn dot_whole(self, sums: Self::Ints, weights: Self::Bytes, inputs: u32) -> Self::Ints;

    fn to_floats(self, ints: Self::Ints) -> Self::Floats;
    fn splat(self, value: f32) -> Self::Floats;
    fn multiply(self, one: Self::Floats, other: Self::Floats) -> Self::Floats;
    /// `one * other + sum`, rounded once.
    fn multiply_add(self, one: Self::Floats, other: Self::Floats, sum: Self::Floats) -> Self::Floats;
    /// Numbers of 16 bits, little-endian.
    fn halves(self, bytes: &[u8; 2 * TILE]) -> Self::Floats;
    /// Numbers of 16 bits as a cache has them.
    fn widen(self, bits: &[u16; TILE]) -> Self::Floats;
    /// The nearest numbers of 16 bits, halves to even.
    fn narrow(self, floats: Self::Floats, bits: &mut [u16; TILE]);
    /// Upper halves of numbers of 32 bits, little-endian.
    fn uppers(self, bytes: &[u8; 2 * TILE]) -> Self::Floats;
    fn unsigned(self, bytes: &[u8; TILE]) -> Self::Floats;
    fn signed(self, bytes: &[u8; TILE]) -> Self::Floats;
    fn read(self, values: &[f32; TILE]) -> Self::Floats;
    fn write(self, floats: Self::Floats, values: &mut [f32; TILE]);
}
