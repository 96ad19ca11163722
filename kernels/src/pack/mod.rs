//! Quantised matrices as tiles.

mod blocks;

use crate::disjoint::Disjoint;
use crate::line::Line;
use crate::memory::{Lines, Memory};
use crate::{BLOCK, Cores, GROUPS, TILE};
use blocks::Group;
use std::fmt;
use std::io;
use std::slice::ChunksExact;

/// How a file holds the weights of a matrix. The quantised formats are those of ggml (`ggml-quants.c`, `block_q4_0` and so on).
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
    /// 2 bits, a scale and a least value of 4 bits for 16, and of 16 bits for 256.
    Q2_K,
    /// 3 bits, a scale of 6 bits for 16, and of 16 bits for 256.
    Q3_K,
    /// 4 bits, a scale and a least value of 6 bits for 32, and of 16 bits for 256.
    Q4_K,
    /// 5 bits, a scale and a least value of 6 bits for 32, and of 16 bits for 256.
    Q5_K,
    /// 6 bits, a scale of 8 bits for 16, and of 16 bits for 256.
    Q6_K,
    /// Numbers of 32 bits (IEEE 754 binary32).
    F32,
    /// Numbers of 16 bits (IEEE 754 binary16).
    F16,
    /// The upper halves of numbers of 32 bits.
    BF16,
}

/// Bits of a quantised weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bits {
    Two,
    Three,
    Four,
    Five,
    Six,
    Eight,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2_K,
        Self::Q3_K,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
        Self::F32,
        Self::F16,
        Self::BF16,
    ];

    /// Weights of a block of the file.
    pub const fn block_weights(self) -> usize {
        match self {
            Self::Q2_K | Self::Q3_K | Self::Q4_K | Self::Q5_K | Self::Q6_K => 256,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::F32 | Self::F16 | Self::BF16 => 1,
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
            Self::Q2_K => 84,
            Self::Q3_K => 110,
            Self::Q4_K => 144,
            Self::Q5_K => 176,
            Self::Q6_K => 210,
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }

    /// Whether products with it are those of integers.
    pub const fn is_quantised(self) -> bool {
        self.block_weights() > 1
    }

    /// Where a quantised block of the file has its scale, and its least value or the scale of least values.
    pub(crate) const fn scales_at(self) -> (usize, Option<usize>) {
        match self {
            Self::Q4_1 | Self::Q5_1 | Self::Q4_K | Self::Q5_K => (0, Some(2)),
            Self::Q2_K => (80, Some(82)),
            Self::Q3_K => (108, None),
            Self::Q6_K => (208, None),
            _ => (0, None),
        }
    }

    /// Absent when weights are numbers.
    const fn bits(self) -> Option<Bits> {
        Some(match self {
            Self::Q2_K => Bits::Two,
            Self::Q3_K => Bits::Three,
            Self::Q4_0 | Self::Q4_1 | Self::Q4_K => Bits::Four,
            Self::Q5_0 | Self::Q5_1 | Self::Q5_K => Bits::Five,
            Self::Q6_K => Bits::Six,
            Self::Q8_0 => Bits::Eight,
            Self::F32 | Self::F16 | Self::BF16 => return None,
        })
    }

    /// Cache lines of a tile's quantised weights for each [`BLOCK`] inputs.
    pub(crate) const fn lines(self) -> usize {
        match self.bits() {
            Some(Bits::Two) => 2,
            Some(Bits::Three) => 3,
            Some(Bits::Four) => 4,
            Some(Bits::Five) => 5,
            Some(Bits::Six) => 6,
            Some(Bits::Eight) => 8,
            None => 0,
        }
    }

    /// Cache lines of a tile's weights for so many inputs.
    const fn tile_lines(self, inputs: usize) -> usize {
        if self.is_quantised() {
            inputs / BLOCK * self.lines()
        } else {
            (inputs * TILE * self.block_bytes()).div_ceil(Line::BYTES)
        }
    }

    /// Bytes of a tile's scales for each quantised block of the file.
    pub(crate) const fn scale_bytes(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q5_0 | Self::Q8_0 => 2 * TILE,
            Self::Q4_1 | Self::Q5_1 => 4 * TILE,
            Self::Q2_K | Self::Q4_K | Self::Q5_K => 4 * TILE + 16 * TILE,
            Self::Q3_K | Self::Q6_K => 2 * TILE + 16 * TILE,
            Self::F32 | Self::F16 | Self::BF16 => 0,
        }
    }

    /// Bytes of a tile's scales for so many inputs.
    const fn tile_scales(self, inputs: usize) -> usize {
        inputs / self.block_weights() * self.scale_bytes()
    }

    /// Bytes that a packed matrix holds in memory.
    pub const fn resident_bytes(self, outputs: usize, inputs: usize) -> usize {
        let tiles = outputs.div_ceil(TILE);
        tiles * (self.tile_lines(inputs) * Line::BYTES + self.tile_scales(inputs))
    }
}

/// Why there is no packed matrix.
#[derive(Debug)]
pub enum PackError {
    /// The bytes are not the matrix.
    Unfit {
        /// How weights are said to be held.
        kind: Kind,
        /// Rows that were said.
        outputs: usize,
        /// Columns that were said.
        inputs: usize,
        /// Bytes that are there.
        bytes: usize,
    },
    /// The system gave no memory.
    Memory(io::Error),
}

impl fmt::Display for PackError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unfit {
                kind,
                outputs,
                inputs,
                bytes,
            } => write!(
                formatter,
                "{bytes} bytes are not {outputs} rows of {inputs} weights of type {kind:?}, whose blocks of {} weights have {} bytes",
                kind.block_weights(),
                kind.block_bytes()
            ),
            Self::Memory(_) => formatter.write_str("the system gave no memory for weights"),
        }
    }
}

impl std::error::Error for PackError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unfit { .. } => None,
            Self::Memory(error) => Some(error),
        }
    }
}

/// A matrix `[outputs, inputs]` as tiles of [`TILE`] outputs; those that the last tile lacks are zeros.
///
/// Weights and scales lie apart, each in the order in which products read them: by tiles, then by inputs.
#[derive(Debug)]
pub struct Packed {
    kind: Kind,
    outputs: usize,
    inputs: usize,
    lines: Lines,
    scales: Lines,
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
    /// When there are no weights, or not exactly the bytes of so many, or no memory.
    pub fn new(
        cores: &Cores,
        memory: &Memory,
        kind: Kind,
        (outputs, inputs): (usize, usize),
        bytes: &[u8],
    ) -> Result<Self, PackError> {
        let row_bytes = inputs / kind.block_weights() * kind.block_bytes();
        let is_whole = inputs > 0 && inputs.is_multiple_of(kind.block_weights());
        if !is_whole || outputs == 0 || outputs.checked_mul(row_bytes) != Some(bytes.len()) {
            return Err(PackError::Unfit {
                kind,
                outputs,
                inputs,
                bytes: bytes.len(),
            });
        }
        let tiles = outputs.div_ceil(TILE);
        let (of_lines, of_scales) = (kind.tile_lines(inputs), kind.tile_scales(inputs));
        let mut lines = memory.take(tiles * of_lines).map_err(PackError::Memory)?;
        let mut scales = memory
            .take((tiles * of_scales).div_ceil(Line::BYTES))
            .map_err(PackError::Memory)?;
        {
            let (lines, scales) = (Disjoint::new(&mut lines), Disjoint::new(Line::bytes_mut(&mut scales)));
            cores.ranges(tiles, 1, |range| {
                for tile in range {
                    let start = tile * TILE * row_bytes;
                    let rows = &bytes[start..bytes.len().min(start + TILE * row_bytes)];
                    // SAFETY: a tile is in one range, and tiles do not overlap.
                    let (lines, scales) = unsafe {
                        (
                            lines.slice(tile * of_lines..(tile + 1) * of_lines),
                            scales.slice(tile * of_scales..(tile + 1) * of_scales),
                        )
                    };
                    if kind.is_quantised() {
                        pack_quantised(kind, &rows.chunks_exact(row_bytes), lines, scales);
                    } else {
                        pack_numbers(kind, rows.chunks_exact(row_bytes), lines);
                    }
                }
            });
        }
        Ok(Self {
            kind,
            outputs,
            inputs,
            lines,
            scales,
        })
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
        let lines = self.kind.tile_lines(self.inputs);
        let scales = self.kind.tile_scales(self.inputs);
        Tile {
            lines: &self.lines[index * lines..(index + 1) * lines],
            scales: &Line::bytes(&self.scales)[index * scales..(index + 1) * scales],
        }
    }
}

/// Packs up to [`TILE`] rows of numbers: for each input those of all outputs.
fn pack_numbers(kind: Kind, rows: ChunksExact<'_, u8>, lines: &mut [Line]) {
    let size = kind.block_bytes();
    for (output, row) in rows.enumerate() {
        for (input, number) in row.chunks_exact(size).enumerate() {
            let at = (input * TILE + output) * size;
            lines[at / Line::BYTES].0[at % Line::BYTES..][..size].copy_from_slice(number);
        }
    }
}

/// Packs up to [`TILE`] rows of quantised blocks.
fn pack_quantised(kind: Kind, rows: &ChunksExact<'_, u8>, lines: &mut [Line], scales: &mut [u8]) {
    let of_lines = kind.block_weights() / BLOCK * kind.lines();
    let blocks = lines.chunks_exact_mut(of_lines);
    let mut groups = [const { Group::NOTHING }; TILE];
    for (index, (lines, scales)) in blocks.zip(scales.chunks_exact_mut(kind.scale_bytes())).enumerate() {
        let start = index * kind.block_bytes();
        for (group, row) in groups.iter_mut().zip(rows.clone()) {
            group.read(kind, &row[start..start + kind.block_bytes()]);
        }
        for (first, lines) in (0..).step_by(BLOCK).zip(lines.chunks_exact_mut(kind.lines())) {
            pack_block(kind, &groups, first, lines);
        }
        pack_scales(kind, &groups, scales);
    }
}

/// The lines of [`BLOCK`] inputs from `first` on.
fn pack_block(kind: Kind, groups: &[Group; TILE], first: usize, lines: &mut [Line]) {
    let mut planes = [Line::ZERO; GROUPS];
    for (output, of_output) in groups.iter().enumerate() {
        let weights = of_output.weights[first..first + BLOCK].as_chunks::<4>().0;
        for (plane, four) in planes.iter_mut().zip(weights) {
            plane.0.as_chunks_mut().0[output] = *four;
        }
    }
    match kind.bits() {
        None => {}
        Some(Bits::Eight) => lines.copy_from_slice(&planes),
        Some(bits @ (Bits::Two | Bits::Three)) => {
            lines[0] = gather(&planes[..4], 0, 2);
            lines[1] = gather(&planes[4..], 0, 2);
            if bits == Bits::Three {
                lines[2] = gather(&planes, 2, 1);
            }
        }
        Some(bits) => {
            for (at, line) in lines[..4].iter_mut().enumerate() {
                *line = low(&planes, at);
            }
            match bits {
                Bits::Five => lines[4] = gather(&planes, 4, 1),
                Bits::Six => {
                    lines[4] = gather(&planes[..4], 4, 2);
                    lines[5] = gather(&planes[4..], 4, 2);
                }
                Bits::Two | Bits::Three | Bits::Four | Bits::Eight => {}
            }
        }
    }
}

/// The scales of one block of the file of each output of a tile.
fn pack_scales(kind: Kind, groups: &[Group; TILE], scales: &mut [u8]) {
    let of_all = |byte: &dyn Fn(&Group) -> u8| {
        let mut bytes = [0; TILE];
        for (to, group) in bytes.iter_mut().zip(groups) {
            *to = byte(group);
        }
        bytes
    };
    let (shared, parts) = scales.split_at_mut(match kind.scales_at().1 {
        None => 2 * TILE,
        Some(_) => 4 * TILE,
    });
    let (of_scale, of_least) = shared.split_at_mut(2 * TILE);
    for (to, group) in of_scale.as_chunks_mut().0.iter_mut().zip(groups) {
        *to = group.scale;
    }
    for (to, group) in of_least.as_chunks_mut().0.iter_mut().zip(groups) {
        *to = group.least;
    }
    let parts = parts.as_chunks_mut::<TILE>().0;
    match kind {
        Kind::Q4_K | Kind::Q5_K => {
            for (block, pair) in parts.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                pair[0] = of_all(&|group| group.scales[block]);
                pair[1] = of_all(&|group| group.leasts[block]);
            }
        }
        Kind::Q2_K => {
            for (half, part) in parts.iter_mut().enumerate() {
                *part = of_all(&|group| group.scales[half] | group.leasts[half] << 4);
            }
        }
        _ => {
            for (half, part) in parts.iter_mut().enumerate() {
                *part = of_all(&|group| group.scales[half]);
            }
        }
    }
}

/// The low four bits of group `line`, and in the upper half of the bytes those of the fourth group after it.
fn low(planes: &[Line; GROUPS], line: usize) -> Line {
    Line(std::array::from_fn(|at| {
        planes[line].0[at] & 0x0f | planes[line + 4].0[at] << 4
    }))
}

/// `count` bits of each group from bit `first` on: those of the first group lowest.
fn gather(planes: &[Line], first: usize, count: usize) -> Line {
    let mask = (1 << count) - 1;
    Line(std::array::from_fn(|at| {
        let bits = planes.iter().enumerate();
        bits.fold(0, |bits, (group, plane)| {
            bits | (plane.0[at] >> first & mask) << (group * count)
        })
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_not_the_matrix_are_refused_with_the_numbers() {
        let error = Packed::new(&Cores::default(), &Memory::default(), Kind::Q4_0, (2, 64), &[0; 71]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "71 bytes are not 2 rows of 64 weights of type Q4_0, whose blocks of 32 weights have 18 bytes"
        );
        for (outputs, inputs) in [(0, 64), (2, 0), (2, 48), (usize::MAX, 64)] {
            assert!(
                Packed::new(
                    &Cores::default(),
                    &Memory::default(),
                    Kind::Q4_0,
                    (outputs, inputs),
                    &[0; 54]
                )
                .is_err()
            );
        }
    }

    #[test]
    fn packed_matrix_takes_what_is_said_and_hardly_more_than_its_file() {
        for kind in Kind::ALL {
            let bytes = vec![0; 32 * 512 / kind.block_weights() * kind.block_bytes()];
            let packed = Packed::new(&Cores::default(), &Memory::default(), kind, (32, 512), &bytes).unwrap();
            let resident = (packed.lines.len() + packed.scales.len()) * Line::BYTES;
            assert_eq!(resident, kind.resident_bytes(32, 512));
            assert!(
                resident >= bytes.len() && resident * 100 <= bytes.len() * 104,
                "{kind:?}"
            );
        }
    }
}
