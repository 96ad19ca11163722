//! Memory that begins where cache lines do.

/// A cache line: four inputs of each output of a tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [u8; Self::BYTES]);

impl Line {
    pub(crate) const BYTES: usize = 64;
    pub(crate) const ZERO: Self = Self([0; Self::BYTES]);

    /// The bytes of lines, one after the other.
    pub(crate) fn bytes(lines: &[Self]) -> &[u8] {
        // SAFETY: a line is its bytes and has no padding.
        unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), lines.len() * Self::BYTES) }
    }

    /// The bytes of lines, for writing.
    pub(crate) fn bytes_mut(lines: &mut [Self]) -> &mut [u8] {
        // SAFETY: as above, and any bytes are a line.
        unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * Self::BYTES) }
    }
}
