//! Columns of one buffer, written by several threads.

use crate::TILE;
use std::marker::PhantomData;
use std::ops::Range;

/// Some columns of a buffer `[rows, width]`, beginning at a tile. Those that [`Columns::split`] gives share none, so that
/// each may be written by another thread.
#[derive(Debug)]
pub struct Columns<'a> {
    buffer: *mut f32,
    rows: usize,
    width: usize,
    range: Range<usize>,
    lives: PhantomData<&'a mut [f32]>,
}

// SAFETY: a value has the only access to its columns for as long as the buffer is lent, and f32 may be sent.
unsafe impl Send for Columns<'_> {}

impl<'a> Columns<'a> {
    /// Cuts a buffer `[rows, width]` into at most `parts` of about the same number of tiles.
    ///
    /// # Panics
    /// When the buffer is not as long as rows times width.
    pub fn split(buffer: &'a mut [f32], rows: usize, width: usize, parts: usize) -> Vec<Self> {
        assert_eq!(Some(buffer.len()), rows.checked_mul(width), "a buffer has its rows");
        let tiles = width.div_ceil(TILE);
        let parts = parts.clamp(1, tiles.max(1));
        let buffer = buffer.as_mut_ptr();
        let first = |part: usize| (tiles * part / parts * TILE).min(width);
        let of = |part: usize| Self {
            buffer,
            rows,
            width,
            range: first(part)..first(part + 1),
            lives: PhantomData,
        };
        (0..parts).map(of).collect()
    }

    /// Rows of the buffer.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The whole buffer's columns.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The tiles of these columns.
    pub(crate) fn tiles(&self) -> Range<usize> {
        self.range.start / TILE..self.range.end.div_ceil(TILE)
    }

    /// One row's columns of a tile: [`TILE`] of them, or fewer at the end of the row.
    pub(crate) fn of_tile(&mut self, row: usize, tile: usize) -> &mut [f32] {
        let start = tile * TILE;
        let end = (start + TILE).min(self.range.end);
        assert!(
            row < self.rows && self.range.start <= start && start < end,
            "a tile of these columns"
        );
        // SAFETY: row and columns are within the buffer, no other value has these columns, and `self` is lent.
        unsafe { std::slice::from_raw_parts_mut(self.buffer.add(row * self.width + start), end - start) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_share_no_column_and_leave_none_out() {
        for (rows, width, parts) in [(1, 1, 4), (3, 40, 2), (2, 100, 3), (2, 64, 100)] {
            let mut buffer = vec![0.0; rows * width];
            for mut part in Columns::split(&mut buffer, rows, width, parts) {
                for row in 0..part.rows() {
                    for tile in part.tiles() {
                        part.of_tile(row, tile).iter_mut().for_each(|value| *value += 1.0);
                    }
                }
            }
            assert!(
                buffer.iter().all(|value| value.to_bits() == 1.0_f32.to_bits()),
                "{rows} {width} {parts}"
            );
        }
    }

    #[test]
    #[should_panic(expected = "a tile of these columns")]
    fn columns_of_another_part_are_refused() {
        let mut buffer = vec![0.0; 64];
        let mut parts = Columns::split(&mut buffer, 1, 64, 2);
        parts[0].of_tile(0, 2);
    }
}
