//! How many threads compute: as many as the process may use, also when that changes while it runs.

use crate::cgroup;
use crate::engine::StepModel;
use crate::kv::BlockId;
use crate::model::{Logits, ModelError, StepBatch};
use crate::status::Board;
use escadre_kernels::{Cores, Level};
use rustix::thread::sched_getaffinity;
use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::{info, warn};

/// How often the limits are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Threads that may compute: what was asked for, or else what the container has now.
pub fn count(wanted: Option<NonZeroUsize>) -> NonZeroUsize {
    wanted.unwrap_or_else(|| cgroup::read().threads(processors()))
}

/// Processors that the system lets this thread run on. The standard library's number also looks at quotas, and takes
/// one of 1.5 processors for 1.
fn processors() -> NonZeroUsize {
    let allowed = sched_getaffinity(None).ok();
    let count = allowed.and_then(|allowed| NonZeroUsize::new(allowed.count().try_into().ok()?));
    count.unwrap_or(NonZeroUsize::MIN)
}

/// The threads that compute.
#[derive(Debug)]
pub struct Threads {
    wanted: Option<NonZeroUsize>,
    cores: Arc<Cores>,
    looked: Instant,
}

impl Threads {
    /// Starts them: so many, or without a wish as many as the container has.
    ///
    /// # Errors
    /// When the system gives no threads.
    pub fn start(wanted: Option<NonZeroUsize>, level: Level) -> io::Result<Self> {
        Ok(Self {
            wanted,
            cores: Arc::new(Cores::start(count(wanted), level)?),
            looked: Instant::now(),
        })
    }

    /// How many they are.
    pub fn count(&self) -> usize {
        self.cores.threads()
    }

    /// What computes with them.
    pub fn cores(&self) -> Arc<Cores> {
        Arc::clone(&self.cores)
    }

    /// Looks at the container's limits now and then, and changes the number of threads with them. Returns whether it
    /// changed.
    fn follow(&mut self) -> bool {
        if self.wanted.is_some() || self.looked.elapsed() < LOOK {
            return false;
        }
        self.looked = Instant::now();
        let count = count(None);
        if count.get() == self.count() {
            return false;
        }
        let from = self.count();
        match self.cores.resize(count) {
            Ok(()) => info!(from, to = count, "the container's processors changed"),
            Err(error) => warn!(%error, to = count, "could not change the number of threads: one computes"),
        }
        self.count() != from
    }
}

/// A model that computes with [`Threads`].
#[derive(Debug)]
pub struct Threaded<M> {
    /// The model.
    pub model: M,
    threads: Threads,
    board: Board,
}

impl<M> Threaded<M> {
    /// Says the number of threads on the board, now and whenever it changes.
    pub fn new(model: M, threads: Threads, board: Board) -> Self {
        let threaded = Self { model, threads, board };
        threaded.say();
        threaded
    }

    fn say(&self) {
        let count = self.threads.count();
        self.board.update(|status| status.threads = Some(count));
    }
}

impl<M: StepModel> StepModel for Threaded<M> {
    fn forward(&mut self, batch: &StepBatch) -> Result<Logits, ModelError> {
        if self.threads.follow() {
            self.say();
        }
        self.model.forward(batch)
    }

    fn copy_block(&mut self, from: BlockId, to: BlockId) -> Result<(), ModelError> {
        self.model.copy_block(from, to)
    }

    fn blocks(&self) -> usize {
        self.model.blocks()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_that_was_asked_for_is_kept_and_another_follows_the_container() {
        let mut threads = Threads::start(NonZeroUsize::new(3), Level::detect()).unwrap();
        assert_eq!(threads.count(), 3);
        threads.looked -= LOOK;
        assert!(!threads.follow());
        let available = count(None);
        threads.wanted = None;
        assert!(!threads.follow() || available.get() != 3);
        threads.cores.resize(available.saturating_add(1)).unwrap();
        threads.looked -= LOOK;
        assert!(threads.follow());
        assert_eq!(threads.count(), available.get());
    }
}
