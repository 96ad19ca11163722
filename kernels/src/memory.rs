//! Memory for weights: large pieces, for which the system is asked to use large pages. A step reads all weights once, and
//! with pages of 4 KiB it would wait for their addresses.

use crate::line::Line;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use std::ffi::c_void;
use std::io;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of a large page, and where one begins.
const PAGE: usize = 2 << 20;
/// Bytes of a piece at least.
const PIECE: usize = 32 << 20;

/// Where packed matrices get their memory from. What one matrix had is given back when all of its piece's have gone.
#[derive(Debug, Default)]
pub struct Memory(Mutex<Option<Open>>);

/// A piece that has room left.
#[derive(Debug)]
struct Open {
    piece: Arc<Piece>,
    used: usize,
}

/// Memory of the system, all zeros at first.
#[derive(Debug)]
struct Piece {
    mapped: NonNull<c_void>,
    bytes: usize,
    lines: NonNull<Line>,
    count: usize,
}

// SAFETY: memory belongs to no thread, and is only reached through `Lines`, which share no line.
unsafe impl Send for Piece {}
// SAFETY: as above.
unsafe impl Sync for Piece {}

impl Piece {
    /// At least so many lines.
    fn map(count: usize) -> io::Result<Self> {
        let too_large = || io::Error::from(io::ErrorKind::OutOfMemory);
        let used = count.checked_mul(size_of::<Line>()).ok_or_else(too_large)?;
        let used = used.max(PIECE).checked_next_multiple_of(PAGE).ok_or_else(too_large)?;
        let bytes = used.checked_add(PAGE).ok_or_else(too_large)?;
        // SAFETY: a new mapping, at a place that the system chooses.
        let mapped = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )?
        };
        let mapped = NonNull::new(mapped).ok_or_else(too_large)?;
        let skip = mapped.as_ptr().addr().next_multiple_of(PAGE) - mapped.as_ptr().addr();
        // SAFETY: less than a page, and the mapping is one longer than what is used.
        let lines = unsafe { mapped.byte_add(skip) };
        // SAFETY: what is used lies within the mapping. A system without large pages goes without.
        let _ = unsafe { madvise(lines.as_ptr(), used, Advice::LinuxHugepage) };
        Ok(Self {
            mapped,
            bytes,
            lines: lines.cast(),
            count: used / size_of::<Line>(),
        })
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        // SAFETY: nobody has lines of it any more.
        let _ = unsafe { munmap(self.mapped.as_ptr(), self.bytes) };
    }
}

impl Memory {
    /// So many lines, all zeros.
    ///
    /// # Errors
    /// When the system gives no memory.
    pub(crate) fn take(&self, count: usize) -> io::Result<Lines> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |open: &&mut Open| open.piece.count - open.used >= count;
        let open = match open.as_mut().filter(fits) {
            Some(_) => open.as_mut(),
            None => Some(open.insert(Open {
                piece: Arc::new(Piece::map(count)?),
                used: 0,
            })),
        };
        let open = open.ok_or(io::ErrorKind::OutOfMemory)?;
        let range = open.used..open.used + count;
        open.used = range.end;
        Ok(Lines {
            piece: Arc::clone(&open.piece),
            range,
        })
    }
}

/// Some lines of a piece, which nobody else has.
#[derive(Debug)]
pub(crate) struct Lines {
    piece: Arc<Piece>,
    range: Range<usize>,
}

impl Deref for Lines {
    type Target = [Line];

    fn deref(&self) -> &[Line] {
        // SAFETY: the range lies within the piece, which was zeros or lines at any time, and nobody else has it.
        unsafe { std::slice::from_raw_parts(self.piece.lines.add(self.range.start).as_ptr(), self.range.len()) }
    }
}

impl DerefMut for Lines {
    fn deref_mut(&mut self) -> &mut [Line] {
        // SAFETY: as above, and `self` is lent for writing.
        unsafe { std::slice::from_raw_parts_mut(self.piece.lines.add(self.range.start).as_ptr(), self.range.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_zeros_that_nobody_else_has() {
        let memory = Memory::default();
        let most = PIECE / size_of::<Line>();
        let mut all: Vec<Lines> = [1, 5, most - 6, 3, most + 1, 2]
            .map(|count| memory.take(count).unwrap())
            .into();
        for (mark, lines) in (1..).zip(&mut all) {
            assert!(lines.iter().all(|line| *line == Line::ZERO));
            lines.fill(Line([mark; 64]));
        }
        assert_eq!(
            all.iter().map(|lines| lines.len()).collect::<Vec<_>>(),
            [1, 5, most - 6, 3, most + 1, 2]
        );
        for (mark, lines) in (1..).zip(&all) {
            assert!(lines.iter().all(|line| *line == Line([mark; 64])));
            assert!(lines.as_ptr().is_aligned());
        }
        assert!(memory.take(usize::MAX / 64).is_err());
    }
}
