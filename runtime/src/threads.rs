//! How many threads compute: as many as the process may use, also when that changes while it runs.

use crate::cgroup;
use crate::engine::StepModel;
use crate::failure::Failure;
use crate::kv::BlockId;
use crate::model::{Logits, ModelError, StepBatch};
use crate::status::Board;
use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};
use rustix::thread::sched_getaffinity;
use std::num::NonZeroUsize;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};
use tracing::{info, warn};

/// Says that the environment was set by the program itself, so that it is never started in a circle.
const SETTLED: &str = "ESCADRE_THREADS_SETTLED";
/// How often the limits are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// What the tensor library reads its own numbers of threads from, once, and takes the machine's without. All its
/// products are cut into parts here, and each is computed by one thread of ours.
const ENVIRONMENT: [(&str, &str); 2] = [("RAYON_NUM_THREADS", "1"), ("CANDLE_NUM_THREADS", "1")];

/// Returns when the environment is right; else replaces this process by one whose is, with the same arguments and the
/// same process id: a process cannot change its own environment safely. Must be called before anything is opened or
/// started.
///
/// # Errors
/// When the process cannot be replaced.
pub fn settle() -> Result<(), Failure> {
    let is_right = ENVIRONMENT
        .iter()
        .all(|(name, value)| std::env::var(name).is_ok_and(|known| known == *value));
    if is_right || std::env::var_os(SETTLED).is_some() {
        return Ok(());
    }
    let failure = |error: std::io::Error| {
        Failure::new(
            "Internal",
            format!("could not start again with the right threads: {error}"),
        )
    };
    let program = std::env::current_exe().map_err(failure)?;
    let error = Command::new(program)
        .args(std::env::args_os().skip(1))
        .envs(ENVIRONMENT)
        .env(SETTLED, "1")
        .exec();
    Err(failure(error))
}

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
    pool: ThreadPool,
    looked: Instant,
}

impl Threads {
    /// Starts them: so many, or without a wish as many as the container has.
    ///
    /// # Errors
    /// When the system gives no threads.
    pub fn start(wanted: Option<NonZeroUsize>) -> Result<Self, ThreadPoolBuildError> {
        Ok(Self {
            wanted,
            pool: pool(count(wanted))?,
            looked: Instant::now(),
        })
    }

    /// How many they are.
    pub fn count(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// Does something with them.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.pool.install(work)
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
        match pool(count) {
            Ok(pool) => {
                info!(from = self.count(), to = count, "the container's processors changed");
                self.pool = pool;
                true
            }
            Err(error) => {
                warn!(%error, to = count, "could not change the number of threads");
                false
            }
        }
    }
}

fn pool(count: NonZeroUsize) -> Result<ThreadPool, ThreadPoolBuildError> {
    let named = ThreadPoolBuilder::new().thread_name(|index| format!("compute-{index}"));
    named.num_threads(count.get()).build()
}

/// A model whose steps are computed by [`Threads`].
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
        self.threads.run(|| self.model.forward(batch))
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
    fn work_runs_on_as_many_threads_as_were_asked_for() {
        let threads = Threads::start(NonZeroUsize::new(3)).unwrap();
        assert_eq!(threads.run(rayon::current_num_threads), 3);
    }

    #[test]
    fn number_that_was_asked_for_is_kept_and_another_follows_the_container() {
        let mut threads = Threads::start(NonZeroUsize::new(3)).unwrap();
        threads.looked -= LOOK;
        assert!(!threads.follow());
        let available = count(None);
        threads.wanted = None;
        assert!(!threads.follow() || available.get() != 3);
        threads.pool = pool(available.saturating_add(1)).unwrap();
        threads.looked -= LOOK;
        assert!(threads.follow());
        assert_eq!(threads.count(), available.get());
    }
}
