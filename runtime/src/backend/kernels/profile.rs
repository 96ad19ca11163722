//! Where the time of steps goes.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};
use strum::IntoEnumIterator as _;

/// What a step consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::Display, strum::EnumIter)]
pub enum Operation {
    /// Rows of the embedding are looked up and scaled.
    #[strum(serialize = "embedding")]
    Embedding,
    /// Root mean squares of rows and heads.
    #[strum(serialize = "norms")]
    Norm,
    /// Queries, keys and values.
    #[strum(serialize = "queries, keys, values")]
    Project,
    /// Rotations, and keys and values that are written to the cache.
    #[strum(serialize = "rotations, cache")]
    RopeAppend,
    /// Attention over the cache.
    #[strum(serialize = "attention")]
    Attention,
    /// Gates of the feed-forward blocks.
    #[strum(serialize = "gate and up")]
    Gated,
    /// What attention and the feed-forward blocks add to the stream.
    #[strum(serialize = "output and down")]
    Linear,
    /// Logits.
    #[strum(serialize = "head")]
    Head,
}

/// How long operations took, all threads waiting for the last.
#[derive(Debug, Default)]
pub struct Profile(Mutex<Vec<Duration>>);

impl Profile {
    /// Measures an operation.
    pub(super) fn time<R>(&self, operation: Operation, work: impl FnOnce() -> R) -> R {
        let began = Instant::now();
        let result = work();
        let mut times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let index = operation as usize;
        if times.len() <= index {
            times.resize(index + 1, Duration::ZERO);
        }
        times[index] += began.elapsed();
        result
    }

    /// What was measured since the last call.
    pub fn take(&self) -> Vec<(Operation, Duration)> {
        let times = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        Operation::iter().zip(times).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_an_operation_add_up_until_they_are_taken() {
        let profile = Profile::default();
        let pause = Duration::from_millis(2);
        for operation in [Operation::Gated, Operation::Norm, Operation::Gated] {
            profile.time(operation, || std::thread::sleep(pause));
        }
        let times = profile.take();
        let of = |wanted| {
            times
                .iter()
                .find(|(operation, _)| *operation == wanted)
                .map(|(_, time)| *time)
        };
        assert!(of(Operation::Gated).unwrap() >= 2 * pause);
        assert!(of(Operation::Norm).unwrap() >= pause);
        assert_eq!(of(Operation::Attention), Some(Duration::ZERO));
        assert!(profile.take().is_empty());
    }
}
