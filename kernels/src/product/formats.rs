//! How tiles of each kind become integers and scales.

use crate::instructions::Vectors;
use crate::line::Line;
use crate::{GROUPS, TILE};

/// Scales of a tile for one block of inputs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scales<V: Vectors> {
    /// Of its halves; the second is that of the whole block where halves share one.
    pub(super) halves: [V::Floats; 2],
    /// Added for each 1 of the inputs' sum, of its halves or of the block; nothing where a format has no least values.
    pub(super) leasts: [V::Floats; 2],
}

/// A way to pack matrices. Associated constants decide what the compiler leaves out.
pub(super) trait Format {
    /// Cache lines of each block of inputs.
    const LINES: usize;
    /// Blocks of inputs that share scales.
    const BLOCKS: usize;
    /// Bytes of those scales.
    const SCALE_BYTES: usize;
    /// What integers count from is -2 to this power. Absent where it is 0.
    const ZERO: Option<i32>;
    /// Whether the halves of a block have scales of their own.
    const HALVES: bool;
    /// Whether there are least values.
    const LEAST: bool;
    /// Whether integers have all eight bits.
    const WHOLE: bool;

    /// The integers of each group of four inputs.
    fn weights<V: Vectors>(vectors: V, lines: &[Line]) -> [V::Bytes; GROUPS];
    /// The scales of block `block` of those that share `bytes`.
    fn scales<V: Vectors>(vectors: V, bytes: &[u8], block: usize) -> Scales<V>;
}

#[inline(always)]
fn nibbles<V: Vectors>(vectors: V, lines: &[Line]) -> [V::Bytes; GROUPS] {
    let mut weights = [vectors.load(&lines[0]); GROUPS];
    for line in 0..4 {
        let both = vectors.load(&lines[line]);
        weights[line] = vectors.mask(both, 0x0f);
        weights[line + 4] = vectors.mask(vectors.right(both, 4), 0x0f);
    }
    weights
}

#[inline(always)]
fn twos<V: Vectors>(vectors: V, lines: &[Line]) -> [V::Bytes; GROUPS] {
    let mut weights = [vectors.load(&lines[0]); GROUPS];
    for (weights, line) in weights.chunks_exact_mut(4).zip(&lines[..2]) {
        let bits = vectors.load(line);
        for (group, weight) in (0..).zip(weights) {
            *weight = vectors.mask(vectors.right(bits, 2 * group), 0x03);
        }
    }
    weights
}

#[inline(always)]
fn threes<V: Vectors>(vectors: V, lines: &[Line]) -> [V::Bytes; GROUPS] {
    let mut weights = twos(vectors, lines);
    let bits = vectors.load(&lines[2]);
    for (group, weight) in (0..).zip(&mut weights) {
        let moved = if group < 2 {
            vectors.left(bits, 2 - group)
        } else {
            vectors.right(bits, group - 2)
        };
        *weight = vectors.or(*weight, vectors.mask(moved, 0x04));
    }
    weights
}

#[inline(always)]
fn fives<V: Vectors>(vectors: V, lines: &[Line]) -> [V::Bytes; GROUPS] {
    let mut weights = nibbles(vectors, lines);
    let bits = vectors.load(&lines[4]);
    for (group, weight) in (0..).zip(&mut weights) {
        let moved = if group < 4 {
            vectors.left(bits, 4 - group)
        } else {
            vectors.right(bits, group - 4)
        };
        *weight = vectors.or(*weight, vectors.mask(moved, 0x10));
    }
    weights
}

#[inline(always)]
fn sixes<V: Vectors>(vectors: V, lines: &[Line]) -> [V::Bytes; GROUPS] {
    let mut weights = nibbles(vectors, lines);
    for (weights, line) in weights.chunks_exact_mut(4).zip(&lines[4..6]) {
        let bits = vectors.load(line);
        for (group, weight) in (0..).zip(weights) {
            let moved = if group < 2 {
                vectors.left(bits, 4 - 2 * group)
            } else {
                vectors.right(bits, 2 * group - 4)
            };
            *weight = vectors.or(*weight, vectors.mask(moved, 0x30));
        }
    }
    weights
}

#[inline(always)]
fn whole<V: Vectors>(vectors: V, lines: &[Line]) -> [V::Bytes; GROUPS] {
    let mut weights = [vectors.load(&lines[0]); GROUPS];
    for (weight, line) in weights.iter_mut().zip(lines) {
        *weight = vectors.load(line);
    }
    weights
}

/// A scale.
#[inline(always)]
fn one<V: Vectors>(vectors: V, bytes: &[u8], _: usize) -> Scales<V> {
    let scale = vectors.halves(&part(bytes, 0));
    Scales {
        halves: [scale; 2],
        leasts: [vectors.splat(0.0); 2],
    }
}

/// A scale and a least value.
#[inline(always)]
fn with_least<V: Vectors>(vectors: V, bytes: &[u8], block: usize) -> Scales<V> {
    Scales {
        leasts: [vectors.halves(&part(bytes, 2 * TILE)); 2],
        ..one(vectors, bytes, block)
    }
}

/// Scales of scales and of least values, then both for each block; least values are subtracted.
#[inline(always)]
fn of_blocks<V: Vectors>(vectors: V, bytes: &[u8], block: usize) -> Scales<V> {
    let at = 4 * TILE + block * 2 * TILE;
    let scale = vectors.multiply(vectors.halves(&part(bytes, 0)), vectors.unsigned(&part(bytes, at)));
    let negative = vectors.multiply(vectors.halves(&part(bytes, 2 * TILE)), vectors.splat(-1.0));
    Scales {
        halves: [scale; 2],
        leasts: [vectors.multiply(negative, vectors.unsigned(&part(bytes, at + TILE))); 2],
    }
}

/// A scale of scales, then two for each block.
#[inline(always)]
fn of_halves<V: Vectors>(vectors: V, bytes: &[u8], block: usize) -> Scales<V> {
    let scale = vectors.halves(&part(bytes, 0));
    let at = 2 * TILE + 2 * block * TILE;
    Scales {
        halves: [
            vectors.multiply(scale, vectors.signed(&part(bytes, at))),
            vectors.multiply(scale, vectors.signed(&part(bytes, at + TILE))),
        ],
        leasts: [vectors.splat(0.0); 2],
    }
}

/// Scales of scales and of least values, then both in one byte for each half of a block; least values are subtracted.
#[inline(always)]
fn of_halves_with_least<V: Vectors>(vectors: V, bytes: &[u8], block: usize) -> Scales<V> {
    let scale = vectors.halves(&part(bytes, 0));
    let negative = vectors.multiply(vectors.halves(&part(bytes, 2 * TILE)), vectors.splat(-1.0));
    let at = 4 * TILE + 2 * block * TILE;
    let (low, high) = (part::<TILE>(bytes, at), part::<TILE>(bytes, at + TILE));
    let (scales, leasts) = (
        [low, high].map(|half| half.map(|byte| byte & 15)),
        [low, high].map(|half| half.map(|byte| byte >> 4)),
    );
    Scales {
        halves: [
            vectors.multiply(scale, vectors.unsigned(&scales[0])),
            vectors.multiply(scale, vectors.unsigned(&scales[1])),
        ],
        leasts: [
            vectors.multiply(negative, vectors.unsigned(&leasts[0])),
            vectors.multiply(negative, vectors.unsigned(&leasts[1])),
        ],
    }
}

/// `N` bytes from `at` on.
#[inline(always)]
fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut part = [0; N];
    part.copy_from_slice(&bytes[at..at + N]);
    part
}

/// Declares a format: its name, constants, and the functions that read it.
macro_rules! format {
    ($(#[$doc:meta])* $name:ident, $kind:ident, zero $zero:expr, halves $halves:expr, least $least:expr, $weights:ident, $scales:ident) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub(super) struct $name;

        impl Format for $name {
            const LINES: usize = crate::Kind::$kind.lines();
            const BLOCKS: usize = crate::Kind::$kind.block_weights() / crate::BLOCK;
            const SCALE_BYTES: usize = crate::Kind::$kind.scale_bytes();
            const ZERO: Option<i32> = $zero;
            const HALVES: bool = $halves;
            const LEAST: bool = $least;
            const WHOLE: bool = Self::LINES == GROUPS;

            #[inline(always)]
            fn weights<V: Vectors>(vectors: V, lines: &[Line]) -> [V::Bytes; GROUPS] {
                $weights(vectors, lines)
            }

            #[inline(always)]
            fn scales<V: Vectors>(vectors: V, bytes: &[u8], block: usize) -> Scales<V> {
                $scales(vectors, bytes, block)
            }
        }
    };
}

format!(/** `Q4_0`. */ Nibbles, Q4_0, zero Some(3), halves false, least false, nibbles, one);
format!(/** `Q4_1`. */ NibblesLeast, Q4_1, zero None, halves false, least true, nibbles, with_least);
format!(/** `Q5_0`. */ Fives, Q5_0, zero Some(4), halves false, least false, fives, one);
format!(/** `Q5_1`. */ FivesLeast, Q5_1, zero None, halves false, least true, fives, with_least);
format!(/** `Q8_0`. */ Whole, Q8_0, zero Some(7), halves false, least false, whole, one);
format!(/** `Q2_K`. */ TwosLong, Q2_K, zero None, halves true, least true, twos, of_halves_with_least);
format!(/** `Q3_K`. */ ThreesLong, Q3_K, zero Some(2), halves true, least false, threes, of_halves);
format!(/** `Q4_K`. */ NibblesLong, Q4_K, zero None, halves false, least true, nibbles, of_blocks);
format!(/** `Q5_K`. */ FivesLong, Q5_K, zero None, halves false, least true, fives, of_blocks);
format!(/** `Q6_K`. */ SixesLong, Q6_K, zero Some(5), halves true, least false, sixes, of_halves);
