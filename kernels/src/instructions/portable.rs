//! Plain loops: the definition of what the other levels compute.

use super::vectors::Vectors;
use crate::TILE;
use crate::level::Instructions;
use crate::line::Line;

/// Of every processor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Loops;

/// Pairs of bytes as one integer, as the instructions of the other levels move them.
fn pairs(bytes: [u8; 64], change: impl Fn(u16) -> u16) -> [u8; 64] {
    let mut out = [0; 64];
    for (out, pair) in out.as_chunks_mut::<2>().0.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *out = change(u16::from_le_bytes(*pair)).to_le_bytes();
    }
    out
}

impl Vectors for Loops {
    type Bytes = [u8; 64];
    type Ints = [i32; TILE];
    type Floats = [f32; TILE];
    const ROWS: usize = Instructions::Portable.rows();

    fn load(self, line: &Line) -> [u8; 64] {
        line.0
    }

    fn store(self, bytes: [u8; 64], line: &mut Line) {
        line.0 = bytes;
    }

    fn mask(self, bytes: [u8; 64], mask: u8) -> [u8; 64] {
        bytes.map(|byte| byte & mask)
    }

    fn left(self, bytes: [u8; 64], bits: i32) -> [u8; 64] {
        pairs(bytes, |pair| pair << bits)
    }

    fn right(self, bytes: [u8; 64], bits: i32) -> [u8; 64] {
        pairs(bytes, |pair| pair >> bits)
    }

    fn or(self, one: [u8; 64], other: [u8; 64]) -> [u8; 64] {
        std::array::from_fn(|at| one[at] | other[at])
    }

    fn prefetch(self, _: &Line, _: usize) {}

    fn start(self, value: u32, bits: i32) -> [i32; TILE] {
        [value.cast_signed() << bits; TILE]
    }

    fn dot(self, sums: [i32; TILE], weights: [u8; 64], inputs: u32) -> [i32; TILE] {
        let inputs = inputs.to_le_bytes().map(|byte| i32::from(byte.cast_signed()));
        let mut sums = sums;
        for (sum, weights) in sums.iter_mut().zip(weights.as_chunks::<4>().0) {
            let products = weights.iter().zip(inputs);
            *sum += products.map(|(weight, input)| i32::from(*weight) * input).sum::<i32>();
        }
        sums
    }

    fn dot_whole(self, sums: [i32; TILE], weights: [u8; 64], inputs: u32) -> [i32; TILE] {
        self.dot(sums, weights, inputs)
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "wanted")]
    fn bytes(self, ints: [i32; TILE]) -> [u8; TILE] {
        ints.map(|int| int as u8)
    }

    fn total(self, ints: [i32; TILE]) -> i32 {
        ints.iter().sum()
    }

    #[expect(clippy::cast_precision_loss, reason = "sums of a block have less than 24 bits")]
    fn to_floats(self, ints: [i32; TILE]) -> [f32; TILE] {
        ints.map(|int| int as f32)
    }

    fn splat(self, value: f32) -> [f32; TILE] {
        [value; TILE]
    }

    fn add(self, one: [f32; TILE], other: [f32; TILE]) -> [f32; TILE] {
        std::array::from_fn(|at| one[at] + other[at])
    }

    fn subtract(self, one: [f32; TILE], other: [f32; TILE]) -> [f32; TILE] {
        std::array::from_fn(|at| one[at] - other[at])
    }

    fn divide(self, one: [f32; TILE], other: [f32; TILE]) -> [f32; TILE] {
        std::array::from_fn(|at| one[at] / other[at])
    }

    fn absolute(self, floats: [f32; TILE]) -> [f32; TILE] {
        floats.map(f32::abs)
    }

    fn larger(self, one: [f32; TILE], other: [f32; TILE]) -> [f32; TILE] {
        std::array::from_fn(|at| if one[at] > other[at] { one[at] } else { other[at] })
    }

    fn smaller(self, one: [f32; TILE], other: [f32; TILE]) -> [f32; TILE] {
        std::array::from_fn(|at| if one[at] < other[at] { one[at] } else { other[at] })
    }

    fn largest(self, floats: [f32; TILE]) -> f32 {
        floats.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }

    fn unless_below(self, floats: [f32; TILE], limit: f32, values: [f32; TILE]) -> [f32; TILE] {
        std::array::from_fn(|at| if floats[at] < limit { 0.0 } else { values[at] })
    }

    fn numbers(self, floats: [f32; TILE]) -> [f32; TILE] {
        floats.map(|float| if float.is_nan() { 0.0 } else { float })
    }

    #[expect(clippy::cast_possible_truncation, reason = "numbers below 2^31")]
    fn round(self, floats: [f32; TILE]) -> [i32; TILE] {
        // What is no number becomes the least integer, as the instructions of the other levels have it.
        floats.map(|float| {
            if float.is_nan() {
                i32::MIN
            } else {
                float.round_ties_even() as i32
            }
        })
    }

    fn power_of_two(self, ints: [i32; TILE]) -> [f32; TILE] {
        ints.map(|int| f32::from_bits((int.wrapping_add(127) << 23).cast_unsigned()))
    }

    fn multiply(self, one: [f32; TILE], other: [f32; TILE]) -> [f32; TILE] {
        std::array::from_fn(|at| one[at] * other[at])
    }

    fn multiply_add(self, one: [f32; TILE], other: [f32; TILE], sum: [f32; TILE]) -> [f32; TILE] {
        std::array::from_fn(|at| one[at].mul_add(other[at], sum[at]))
    }

    fn halves(self, bytes: &[u8; 2 * TILE]) -> [f32; TILE] {
        std::array::from_fn(|at| half::f16::from_le_bytes([bytes[2 * at], bytes[2 * at + 1]]).to_f32())
    }

    fn widen(self, bits: &[u16; TILE]) -> [f32; TILE] {
        bits.map(|bits| half::f16::from_bits(bits).to_f32())
    }

    fn narrow(self, floats: [f32; TILE], bits: &mut [u16; TILE]) {
        *bits = floats.map(|float| half::f16::from_f32(float).to_bits());
    }

    fn uppers(self, bytes: &[u8; 2 * TILE]) -> [f32; TILE] {
        std::array::from_fn(|at| f32::from_bits(u32::from_le_bytes([0, 0, bytes[2 * at], bytes[2 * at + 1]])))
    }

    fn unsigned(self, bytes: &[u8; TILE]) -> [f32; TILE] {
        bytes.map(f32::from)
    }

    fn signed(self, bytes: &[u8; TILE]) -> [f32; TILE] {
        bytes.map(|byte| f32::from(byte.cast_signed()))
    }

    fn read(self, values: &[f32; TILE]) -> [f32; TILE] {
        *values
    }

    fn write(self, floats: [f32; TILE], values: &mut [f32; TILE]) {
        *values = floats;
    }
}
