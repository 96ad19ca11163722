//! The threads that compute.
//!
//! A step of a model is some hundred pieces of work of a hundredth of a millisecond each, so that threads must be found
//! ready: they look for the next piece in a loop for a while before they sleep. The calling thread takes part. Parts of
//! a piece are taken one by one, so that whoever is disturbed takes fewer of them, and nobody waits for a thread that
//! has not begun one.

use crate::Level;
use crate::disjoint::Disjoint;
use std::any::Any;
use std::cell::UnsafeCell;
use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long a thread without work looks for some before it sleeps.
const SPIN: Duration = Duration::from_micros(100);
/// Looks before a thread that waits lets others run.
const LOOKS: u32 = 64;
/// Parts for each thread.
const PARTS_PER_THREAD: usize = 4;

/// Threads, and the instructions that they use. Shared by everything that computes.
pub struct Cores {
    level: Level,
    /// Held while a piece of work is done.
    workers: Mutex<Vec<JoinHandle<()>>>,
    threads: AtomicUsize,
    shared: Arc<Shared>,
}

/// A piece of work: what is called for each part.
#[derive(Clone, Copy)]
struct Job {
    work: &'static (dyn Fn(usize) + Sync),
    parts: usize,
}

/// What workers see.
struct Shared {
    /// [`OPEN`], [`STOP`], the number of the job ([`ONE_JOB`]), and how many workers are at it ([`INSIDE`]).
    state: AtomicU64,
    /// The next part.
    next: AtomicUsize,
    /// Written by the caller while no job is open and nobody is inside; read by workers that are inside.
    job: UnsafeCell<Option<Job>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    sleeping: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
}

// SAFETY: `job` is only reached by the protocol of `state`, and what it refers to is `Sync`.
unsafe impl Sync for Shared {}

/// There is a job, and workers may begin.
const OPEN: u64 = 1 << 63;
/// Workers are to end.
const STOP: u64 = 1 << 62;
/// Jobs are counted above the workers.
const ONE_JOB: u64 = 1 << 16;
const INSIDE: u64 = ONE_JOB - 1;
const JOBS: u64 = !(OPEN | STOP | INSIDE);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cores {
    /// The calling thread alone.
    pub fn alone(level: Level) -> Self {
        Self {
            level,
            workers: Mutex::default(),
            threads: AtomicUsize::new(1),
            shared: Arc::new(Shared {
                state: AtomicU64::new(0),
                next: AtomicUsize::new(0),
                job: UnsafeCell::new(None),
                panic: Mutex::new(None),
                sleeping: AtomicUsize::new(0),
                sleep: Mutex::new(()),
                wake: Condvar::new(),
            }),
        }
    }

    /// So many threads, the calling one included.
    ///
    /// # Errors
    /// When the system gives no threads.
    pub fn start(threads: NonZeroUsize, level: Level) -> io::Result<Self> {
        let cores = Self::alone(level);
        cores.resize(threads)?;
        Ok(cores)
    }

    /// The instructions.
    pub fn level(&self) -> Level {
        self.level
    }

    /// How many threads, the calling one included.
    pub fn threads(&self) -> usize {
        self.threads.load(Ordering::Relaxed)
    }

    /// Changes the number of threads, once nothing is being computed.
    ///
    /// # Errors
    /// When the system gives no threads; then the calling one computes alone.
    pub fn resize(&self, threads: NonZeroUsize) -> io::Result<()> {
        let mut workers = lock(&self.workers);
        self.stop(&mut workers);
        for index in 1..threads.get() {
            let shared = Arc::clone(&self.shared);
            let named = thread::Builder::new().name(format!("compute-{index}"));
            match named.spawn(move || shared.serve()) {
                Ok(worker) => workers.push(worker),
                Err(error) => {
                    self.stop(&mut workers);
                    return Err(error);
                }
            }
        }
        self.threads.store(threads.get(), Ordering::Relaxed);
        Ok(())
    }

    fn stop(&self, workers: &mut Vec<JoinHandle<()>>) {
        self.threads.store(1, Ordering::Relaxed);
        self.shared.state.fetch_or(STOP, Ordering::SeqCst);
        self.shared.wake_all();
        for worker in workers.drain(..) {
            // Panics of work are caught: a worker itself does not panic.
            let _ = worker.join();
        }
        self.shared.state.fetch_and(!STOP, Ordering::SeqCst);
    }

    /// Calls `work` with every number below `parts`, on several threads, and returns when all calls have. Work that is
    /// already going on, or in which this is called, leaves the calling thread alone with it.
    ///
    /// # Panics
    /// When one of the calls does.
    pub fn run(&self, parts: usize, work: impl Fn(usize) + Sync) {
        let workers = (parts > 1).then(|| self.workers.try_lock().ok()).flatten();
        let Some(workers) = workers.filter(|workers| !workers.is_empty()) else {
            return (0..parts).for_each(work);
        };
        let work: &(dyn Fn(usize) + Sync) = &work;
        let job = Job {
            // SAFETY: only the lifetime changes. The reference is followed only by workers that are inside, and `run`
            // does not return before the job is closed and all of them have left.
            work: unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(work) },
            parts,
        };
        self.shared.run(job);
        drop(workers);
        let panic = lock(&self.shared.panic).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Cuts `count` things into ranges of at least `least` of them, a few for each thread, and calls `work` with each.
    pub fn ranges(&self, count: usize, least: usize, work: impl Fn(std::ops::Range<usize>) + Sync) {
        let parts = (count / least.max(1)).clamp(1, self.threads() * PARTS_PER_THREAD);
        let parts = if self.threads() == 1 { 1 } else { parts };
        let first = |part: usize| count * part / parts;
        self.run(parts, |part| work(first(part)..first(part + 1)));
    }

    /// Calls `work` with every `each` values of a buffer, and with how many such chunks come before.
    pub fn chunks<T: Send>(&self, buffer: &mut [T], each: usize, work: impl Fn(usize, &mut [T]) + Sync) {
        let length = buffer.len();
        let buffer = Disjoint::new(buffer);
        self.run(length.div_ceil(each), |part| {
            let start = part * each;
            // SAFETY: a part is given out once, and chunks do not overlap.
            work(part, unsafe { buffer.slice(start..length.min(start + each)) });
        });
    }
}

impl Default for Cores {
    /// The calling thread alone, with the fastest instructions of the processor.
    fn default() -> Self {
        Self::alone(Level::detect())
    }
}

impl Drop for Cores {
    fn drop(&mut self) {
        let mut workers = std::mem::take(&mut *lock(&self.workers));
        self.stop(&mut workers);
    }
}

impl fmt::Debug for Cores {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} threads with {:?}", self.threads(), self.level)
    }
}

impl Shared {
    /// Does a job with the workers; the caller is the only one who opens and closes.
    fn run(&self, job: Job) {
        // SAFETY: no job is open and nobody is inside, so that nobody reads it.
        unsafe { *self.job.get() = Some(job) };
        self.next.store(0, Ordering::Relaxed);
        let number = (self.state.load(Ordering::Relaxed) + ONE_JOB) & JOBS;
        self.state.store(OPEN | number, Ordering::SeqCst);
        if self.sleeping.load(Ordering::SeqCst) > 0 {
            self.wake_all();
        }
        self.work(job);
        self.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut looks = 0;
        while self.state.load(Ordering::Acquire) & INSIDE != 0 {
            looks += 1;
            if looks % LOOKS == 0 {
                thread::yield_now();
            }
            std::hint::spin_loop();
        }
        // SAFETY: no job is open and nobody is inside. What it refers to may end now.
        unsafe { *self.job.get() = None };
    }

    /// Takes parts until there are none left. Keeps the first panic.
    fn work(&self, job: Job) {
        let done = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let part = self.next.fetch_add(1, Ordering::Relaxed);
                if part >= job.parts {
                    return;
                }
                (job.work)(part);
            }
        }));
        if let Err(panic) = done {
            // The other parts are not needed any more.
            self.next.store(job.parts, Ordering::Relaxed);
            lock(&self.panic).get_or_insert(panic);
        }
    }

    /// What a worker does.
    fn serve(&self) {
        let mut last = self.state.load(Ordering::Acquire) & JOBS;
        // The job that is open when a worker begins is taken too.
        last = last.wrapping_sub(ONE_JOB) & JOBS;
        loop {
            let state = self.wait(last);
            if state & STOP != 0 {
                return;
            }
            let entered = self
                .state
                .compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Relaxed);
            if entered.is_err() {
                continue;
            }
            // SAFETY: this worker is inside an open job, which the caller does not change before it has left.
            if let Some(job) = unsafe { *self.job.get() } {
                self.work(job);
            }
            last = state & JOBS;
            self.state.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Waits for an open job other than the last one, or the end. Returns the state that says so.
    fn wait(&self, last: u64) -> u64 {
        let is_call = |state: u64| state & STOP != 0 || (state & OPEN != 0 && state & JOBS != last);
        let began = Instant::now();
        loop {
            for _ in 0..LOOKS {
                let state = self.state.load(Ordering::Acquire);
                if is_call(state) {
                    return state;
                }
                std::hint::spin_loop();
            }
            if began.elapsed() >= SPIN {
                break;
            }
        }
        let mut sleep = lock(&self.sleep);
        self.sleeping.fetch_add(1, Ordering::SeqCst);
        loop {
            // After it was said that somebody sleeps: whoever opens a job looks at that afterwards.
            let state = self.state.load(Ordering::SeqCst);
            if is_call(state) {
                self.sleeping.fetch_sub(1, Ordering::SeqCst);
                return state;
            }
            sleep = self.wake.wait(sleep).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn wake_all(&self) {
        drop(lock(&self.sleep));
        self.wake.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cores(threads: usize) -> Cores {
        Cores::start(NonZeroUsize::new(threads).unwrap(), Level::PORTABLE).unwrap()
    }

    #[test]
    fn every_part_is_done_once_also_after_sleeping_and_with_more_threads_than_parts() {
        for threads in [1, 2, 5] {
            let cores = cores(threads);
            for parts in [0, 1, 2, 3, 100] {
                for round in 0..50 {
                    let mut done = vec![0; parts];
                    cores.chunks(&mut done, 1, |part, done| done[0] += part + 1);
                    let expected: Vec<usize> = (1..=parts).collect();
                    assert_eq!(done, expected, "{threads} {parts}");
                    if round % 25 == 0 {
                        thread::sleep(2 * SPIN);
                    }
                }
            }
        }
    }

    #[test]
    fn number_of_threads_changes() {
        let cores = cores(1);
        for threads in [3, 1, 2] {
            cores.resize(NonZeroUsize::new(threads).unwrap()).unwrap();
            assert_eq!(cores.threads(), threads);
            let (seen, waits) = (Mutex::new(std::collections::HashSet::new()), AtomicUsize::new(0));
            cores.run(threads, |_| {
                lock(&seen).insert(thread::current().id());
                // Nobody takes a second part before everybody has one.
                waits.fetch_add(1, Ordering::SeqCst);
                while waits.load(Ordering::SeqCst) < threads {
                    thread::yield_now();
                }
            });
            assert_eq!(lock(&seen).len(), threads);
        }
    }

    #[test]
    fn work_within_work_and_of_two_callers_is_done() {
        let cores = cores(3);
        let count = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        cores.run(4, |_| {
                            cores.run(2, |_| {
                                count.fetch_add(1, Ordering::Relaxed);
                            });
                        });
                    }
                });
            }
        });
        assert_eq!(count.into_inner(), 3 * 100 * 4 * 2);
    }

    #[test]
    fn panic_of_a_part_reaches_the_caller_and_the_threads_live_on() {
        let cores = cores(2);
        for _ in 0..20 {
            let result = catch_unwind(AssertUnwindSafe(|| {
                cores.run(8, |part| assert!(part != 5, "part 5"));
            }));
            assert!(result.is_err());
        }
        let count = AtomicUsize::new(0);
        cores.run(8, |_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.into_inner(), 8);
    }

    #[test]
    fn ranges_leave_nothing_out() {
        let cores = cores(2);
        for (count, least) in [(1, 1), (7, 3), (100, 1), (100, 200)] {
            let mut done = vec![0; count];
            let parts = Disjoint::new(&mut done);
            cores.ranges(count, least, |range| {
                // SAFETY: ranges do not overlap.
                unsafe { parts.slice(range) }.fill(1);
            });
            assert_eq!(done, vec![1; count]);
        }
    }
}
