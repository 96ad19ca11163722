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

    /// Asks for what lies some lines after this one, wherever that is.
    fn prefetch(self, line: &Line, lines_ahead: usize);

    /// `value << bits` for every output.
    fn start(self, value: u32, bits: i32) -> Self::Ints;
    /// Adds the products of four unsigned weights of each output, at most 127, with the four signed bytes of `inputs`.
    fn dot(self, sums: Self::Ints, weights: Self::Bytes, inputs: u32) -> Self::Ints;
    /// As [`dot`](Self::dot) with weights to 255.
    fn dot_whole(self, sums: Self::Ints, weights: Self::Bytes, inputs: u32) -> Self::Ints;

    /// Low bytes.
    fn bytes(self, ints: Self::Ints) -> [u8; TILE];
    /// The sum of all integers.
    fn total(self, ints: Self::Ints) -> i32;

    fn to_floats(self, ints: Self::Ints) -> Self::Floats;
    fn splat(self, value: f32) -> Self::Floats;
    fn add(self, one: Self::Floats, other: Self::Floats) -> Self::Floats;
    fn subtract(self, one: Self::Floats, other: Self::Floats) -> Self::Floats;
    fn divide(self, one: Self::Floats, other: Self::Floats) -> Self::Floats;
    fn absolute(self, floats: Self::Floats) -> Self::Floats;
    /// `one` where it is larger, else `other`, also where one of them is no number.
    fn larger(self, one: Self::Floats, other: Self::Floats) -> Self::Floats;
    /// `one` where it is smaller, else `other`, also where one of them is no number.
    fn smaller(self, one: Self::Floats, other: Self::Floats) -> Self::Floats;
    /// The largest of all, none of which is no number.
    fn largest(self, floats: Self::Floats) -> f32;
    /// 0 where `floats` is below `limit`, else `values`, also where it is no number.
    fn unless_below(self, floats: Self::Floats, limit: f32, values: Self::Floats) -> Self::Floats;
    /// 0 where it is no number.
    fn numbers(self, floats: Self::Floats) -> Self::Floats;
    /// The nearest integers, halves to even, of numbers below 2^31.
    fn round(self, floats: Self::Floats) -> Self::Ints;
    /// 2 to the power of small integers.
    fn power_of_two(self, ints: Self::Ints) -> Self::Floats;
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
