//! Quantised matrices as tiles.

mod blocks;

use crate::line::Line;
use crate::{BLOCK, GROUPS, TILE};
use blocks::Group;
use std::fmt;

/// How a GGUF file holds the weights of a matrix. The formats are those of ggml (`ggml-quants.c`, `block_q4_0` and so on).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(non_camel_case_types, reason = "the names that files and their users know")]
pub enum Kind {
    /// 4 bits, a scale for 32.
    Q4_0,
    /// 4 bits, a scale and a least value for 32.
    Q4_1,
    /// 5 bits, a scale for 32.
    Q5_0,
    /// 5 bits, a scale and a least value for 32.
    Q5_1,
    /// 8 bits, a scale for 32.
    Q8_0,
    /// 4 bits, a scale and a least value of 6 bits for 32, and of 16 bits for 256.
    Q4_K,
    /// 5 bits, a scale and a least value of 6 bits for 32, and of 16 bits for 256.
    Q5_K,
    /// 6 bits, a scale of 8 bits for 16, and of 16 bits for 256.
    Q6_K,
}

/// Bits of a weight beside the low four, or all eight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bits {
    Four,
    Five,
    Six,
    Eight,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
    ];

    /// Weights of a block of the file.
    pub const fn block_weights(self) -> usize {
        match self {
            Self::Q4_K | Self::Q5_K | Self::Q6_K => 256,
            _ => 32,
        }
    }

    /// Bytes of a block of the file.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q4_K => 144,
            Self::Q5_K => 176,
            Self::Q6_K => 210,
        }
    }

    const fn bits(self) -> Bits {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q4_K => Bits::Four,
            Self::Q5_0 | Self::Q5_1 | Self::Q5_K => Bits::Five,
            Self::Q6_K => Bits::Six,
            Self::Q8_0 => Bits::Eight,
        }
    }

    /// Cache lines of a tile's weights for each [`BLOCK`] inputs.
    pub(crate) const fn lines(self) -> usize {
        match self.bits() {
            Bits::Four => 4,
            Bits::Five => 5,
            Bits::Six => 6,
            Bits::Eight => 8,
        }
    }

    /// Bytes of a tile's scales for each block of the file.
    pub(crate) const fn scale_bytes(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q5_0 | Self::Q8_0 => 2 * TILE,
            Self::Q4_1 | Self::Q5_1 => 4 * TILE,
            Self::Q4_K | Self::Q5_K => 4 * TILE + 8 * 2 * TILE,
            Self::Q6_K => 2 * TILE + 16 * TILE,
        }
    }

    /// Bytes that a packed matrix holds in memory.
    pub const fn resident_bytes(self, outputs: usize, inputs: usize) -> usize {
        let tiles = outputs.div_ceil(TILE);
        let weights = inputs / BLOCK * self.lines() * size_of::<Line>();
        tiles * (weights + inputs / self.block_weights() * self.scale_bytes())
    }
}

/// Why bytes are not a matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfit {
    kind: Kind,
    outputs: usize,
    inputs: usize,
    bytes: usize,
}

impl fmt::Display for Unfit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kind,
            outputs,
            inputs,
            bytes,
        } = self;
        write!(
            formatter,
            "{bytes} bytes are not {outputs} rows of {inputs} weights of type {kind:?}, whose blocks of {} weights have {} bytes",
            kind.block_weights(),
            kind.block_bytes()
        )
    }
}

impl std::error::Error for Unfit {}

/// A matrix `[outputs, inputs]` as tiles of [`TILE`] outputs; those that the last tile lacks are zeros.
///
/// Weights and scales lie apart, each in the order in which products read them: by tiles, then by blocks of inputs.
#[derive(Debug)]
pub struct Packed {
    kind: Kind,
    outputs: usize,
    inputs: usize,
    lines: Vec<Line>,
    scales: Vec<u8>,
}

/// A tile of a matrix.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tile<'a> {
    pub(crate) lines: &'a [Line],
    pub(crate) scales: &'a [u8],
}

impl Packed {
    /// Packs the bytes of a file: rows of blocks, one row for each output.
    ///
    /// # Errors
    /// When there are no weights, or not exactly the bytes of so many.
    pub fn new(kind: Kind, outputs: usize, inputs: usize, bytes: &[u8]) -> Result<Self, Unfit> {
        let unfit = || Unfit {
            kind,
            outputs,
            inputs,
            bytes: bytes.len(),
        };
        let row_bytes = inputs / kind.block_weights() * kind.block_bytes();
        let is_whole = inputs > 0 && inputs.is_multiple_of(kind.block_weights());
        if !is_whole || outputs == 0 || outputs.checked_mul(row_bytes) != Some(bytes.len()) {
            return Err(unfit());
        }
        let mut packed = Self {
            kind,
            outputs,
            inputs,
            lines: Vec::with_capacity(outputs.div_ceil(TILE) * inputs / BLOCK * kind.lines()),
            scales: Vec::with_capacity(outputs.div_ceil(TILE) * inputs / kind.block_weights() * kind.scale_bytes()),
        };
        for rows in bytes.chunks(TILE * row_bytes) {
            let rows: Vec<&[u8]> = rows.chunks_exact(row_bytes).collect();
            for start in (0..row_bytes).step_by(kind.block_bytes()) {
                let mut groups = [Group::NOTHING; TILE];
                for (group, row) in groups.iter_mut().zip(&rows) {
                    *group = Group::read(kind, &row[start..start + kind.block_bytes()]);
                }
                packed.push(&groups);
            }
        }
        Ok(packed)
    }

    /// Appends one block of the file of each output of a tile.
    fn push(&mut self, groups: &[Group; TILE]) {
        for first in (0..self.kind.block_weights()).step_by(BLOCK) {
            let planes: [Line; GROUPS] = std::array::from_fn(|group| {
                Line(std::array::from_fn(|at| {
                    groups[at / 4].weights[first + group * 4 + at % 4]
                }))
            });
            match self.kind.bits() {
                Bits::Eight => self.lines.extend(planes),
                bits => {
                    self.lines.extend((0..4).map(|line| low(&planes, line)));
                    match bits {
                        Bits::Five => self.lines.push(high(&planes, 1)),
                        Bits::Six => self.lines.extend([high(&planes[..4], 2), high(&planes[4..], 2)]),
                        Bits::Four | Bits::Eight => {}
                    }
                }
            }
        }
        self.push_scales(groups);
    }

    fn push_scales(&mut self, groups: &[Group; TILE]) {
        self.scales.extend(groups.iter().flat_map(|group| group.scale));
        match self.kind {
            Kind::Q4_0 | Kind::Q5_0 | Kind::Q8_0 => {}
            Kind::Q4_1 | Kind::Q5_1 => self.scales.extend(groups.iter().flat_map(|group| group.least)),
            Kind::Q4_K | Kind::Q5_K => {
                self.scales.extend(groups.iter().flat_map(|group| group.least));
                for block in 0..8 {
                    self.scales.extend(groups.iter().map(|group| group.scales[block]));
                    self.scales.extend(groups.iter().map(|group| group.leasts[block]));
                }
            }
            Kind::Q6_K => {
                for half in 0..16 {
                    self.scales.extend(groups.iter().map(|group| group.scales[half]));
                }
            }
        }
    }

    /// How its file held it.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Rows of the file: outputs of a product.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Columns of the file: inputs of a product.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// A tile; the matrix has `outputs / TILE` of them, rounded up.
    pub(crate) fn tile(&self, index: usize) -> Tile<'_> {
        let lines = self.inputs / BLOCK * self.kind.lines();
        let scales = self.inputs / self.kind.block_weights() * self.kind.scale_bytes();
        Tile {
            lines: &self.lines[index * lines..(index + 1) * lines],
            scales: &self.scales[index * scales..(index + 1) * scales],
        }
    }
}

/// The low four bits of group `line`, and in the upper half of the bytes those of the fourth group after it.
fn low(planes: &[Line; GROUPS], line: usize) -> Line {
    Line(std::array::from_fn(|at| {
        planes[line].0[at] & 0x0f | planes[line + 4].0[at] << 4
    }))
}

/// The bits above the low four of each group, `count` of them: those of the first group lowest.
fn high(planes: &[Line], count: usize) -> Line {
    Line(std::array::from_fn(|at| {
        let bits = planes.iter().enumerate();
        bits.fold(0, |bits, (group, plane)| bits | (plane.0[at] >> 4) << (group * count))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_not_the_matrix_are_refused_with_the_numbers() {
        let error = Packed::new(Kind::Q4_0, 2, 64, &[0; 71]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "71 bytes are not 2 rows of 64 weights of type Q4_0, whose blocks of 32 weights have 18 bytes"
        );
        for (outputs, inputs) in [(0, 64), (2, 0), (2, 48), (usize::MAX, 64)] {
            assert!(Packed::new(Kind::Q4_0, outputs, inputs, &[0; 54]).is_err());
        }
    }

    #[test]
    fn packed_matrix_takes_what_is_said_and_hardly_more_than_its_file() {
        for kind in Kind::ALL {
            let bytes = vec![0; 32 * 512 / kind.block_weights() * kind.block_bytes()];
            let packed = Packed::new(kind, 32, 512, &bytes).unwrap();
            let resident = packed.lines.len() * size_of::<Line>() + packed.scales.len();
            assert_eq!(resident, kind.resident_bytes(32, 512));
            assert!(
                resident >= bytes.len() && resident * 100 <= bytes.len() * 103,
                "{kind:?}"
            );
        }
    }
}
