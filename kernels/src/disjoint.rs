//! A buffer of which several threads write different parts.

use std::marker::PhantomData;
use std::ops::Range;

/// A buffer that is lent for writing. Every access to it is within its bounds; that two of them do not overlap is for
/// their callers to see to.
#[derive(Debug)]
pub(crate) struct Disjoint<'a, T> {
    start: *mut T,
    length: usize,
    lives: PhantomData<&'a mut [T]>,
}

// SAFETY: it is a mutable slice, which may be sent where its values may be.
unsafe impl<T: Send> Send for Disjoint<'_, T> {}
// SAFETY: the only way to its values is `slice`, whose callers promise to use no value from two threads.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    pub(crate) fn new(buffer: &'a mut [T]) -> Self {
        Self {
            start: buffer.as_mut_ptr(),
            length: buffer.len(),
            lives: PhantomData,
        }
    }

    /// A part of the buffer.
    ///
    /// # Panics
    /// When it is not within the buffer.
    ///
    /// # Safety
    /// For as long as the part is used nothing else uses any of its values.
    #[expect(clippy::mut_from_ref, reason = "callers promise that parts do not overlap")]
    pub(crate) unsafe fn slice(&self, range: Range<usize>) -> &mut [T] {
        assert!(
            range.start <= range.end && range.end <= self.length,
            "{range:?} of a buffer of {}",
            self.length
        );
        // SAFETY: the range is within the buffer, which is lent to this value; the caller promises the rest.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "3..9 of a buffer of 8")]
    fn part_beyond_the_buffer_is_refused() {
        let mut buffer = [0; 8];
        let buffer = Disjoint::new(&mut buffer);
        // SAFETY: nothing else uses the buffer.
        unsafe { buffer.slice(3..9) };
    }
}
