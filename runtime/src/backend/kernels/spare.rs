//! Buffers of a step, whose memory is used again.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

/// Memory that no buffer has.
#[derive(Debug, Default)]
pub(super) struct Spare(Mutex<Vec<Vec<f32>>>);

/// Activations, `[rows, width]`.
#[derive(Debug)]
pub struct Buffer {
    values: Vec<f32>,
    width: usize,
    spare: Arc<Spare>,
}

impl Buffer {
    /// A buffer whose values are any. Takes the smallest memory that is large enough; when there is none, the largest
    /// that there is makes room for a larger one, so that there are never more than buffers were in use at once.
    pub(super) fn take(spare: &Arc<Spare>, rows: usize, width: usize) -> Self {
        let length = rows * width;
        let mut free = spare.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |values: &&(usize, &Vec<f32>)| values.1.capacity() >= length;
        let sizes = || free.iter().enumerate();
        let best = sizes()
            .filter(|place| fits(&place))
            .min_by_key(|(_, values)| values.capacity());
        let largest = || sizes().max_by_key(|(_, values)| values.capacity());
        let place = best.or_else(largest).map(|(index, _)| index);
        let mut values = place.map(|index| free.swap_remove(index)).unwrap_or_default();
        drop(free);
        if values.capacity() < length {
            values = Vec::with_capacity(length);
        }
        values.resize(length, 0.0);
        Self {
            values,
            width,
            spare: Arc::clone(spare),
        }
    }

    pub(super) fn rows(&self) -> usize {
        self.values.len() / self.width
    }

    pub(super) fn width(&self) -> usize {
        self.width
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let values = std::mem::take(&mut self.values);
        self.spare.0.lock().unwrap_or_else(PoisonError::into_inner).push(values);
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.values
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_and_there_is_no_more_than_was_in_use_at_once() {
        let spare = Arc::new(Spare::default());
        let place = |buffer: &Buffer| buffer.as_ptr().addr();
        let (large, small) = (Buffer::take(&spare, 4, 100), Buffer::take(&spare, 1, 100));
        let places = [place(&large), place(&small)];
        drop((large, small));
        let (small, large) = (Buffer::take(&spare, 1, 90), Buffer::take(&spare, 3, 100));
        assert_eq!([place(&large), place(&small)], places);
        assert_eq!((large.rows(), large.width(), large.len()), (3, 100, 300));
        drop((large, small));
        for rows in 5..9 {
            drop(Buffer::take(&spare, rows, 100));
        }
        assert_eq!(spare.0.lock().unwrap().len(), 2);
    }
}
