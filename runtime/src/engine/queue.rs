//! How much may wait: a bound on requests and on their tokens, and an honest guess when there is room again.

use super::SubmitError;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The weight of the newest request in the mean duration.
const NEWEST: f64 = 0.2;
/// A guess for the first request's duration, in seconds.
const FIRST_GUESS: f64 = 2.0;
/// The longest time that a client is sent away for.
const MAX_RETRY_AFTER: Duration = Duration::from_mins(1);

/// How much may wait.
#[derive(Debug, Clone, Copy)]
pub struct QueueLimits {
    /// Requests that wait.
    pub requests: usize,
    /// Prompt tokens that wait, in all. A single request may have more: it is taken when nothing else waits.
    pub tokens: usize,
    /// Requests that are answered at the same time. As many may wait, however long that takes.
    pub concurrency: usize,
    /// How long a request may be expected to wait.
    pub wait: Duration,
}

#[derive(Debug)]
struct State {
    waiting: usize,
    tokens: usize,
    mean_seconds: f64,
}

/// Counts what waits. Shared by those who submit and the engine's thread.
#[derive(Debug)]
pub struct Admission {
    limits: QueueLimits,
    state: Mutex<State>,
}

impl Admission {
    /// Nothing waits yet.
    pub fn new(limits: QueueLimits) -> Self {
        Self {
            limits,
            state: Mutex::new(State {
                waiting: 0,
                tokens: 0,
                mean_seconds: FIRST_GUESS,
            }),
        }
    }

    /// How much may wait.
    pub fn limits(&self) -> QueueLimits {
        self.limits
    }

    /// Requests that wait.
    pub fn waiting(&self) -> usize {
        self.lock().waiting
    }

    /// Counts a request in, or refuses it.
    pub(crate) fn enter(&self, tokens: usize) -> Result<(), SubmitError> {
        let mut state = self.lock();
        let limits = self.limits;
        let is_full = state.waiting >= limits.requests
            || state.waiting > 0 && state.tokens + tokens > limits.tokens
            || state.waiting >= limits.concurrency
                && self.seconds_until(state.waiting, &state) > limits.wait.as_secs_f64();
        if is_full {
            let retry_after = self.estimate(&state);
            return Err(SubmitError::Full { retry_after });
        }
        state.waiting += 1;
        state.tokens += tokens;
        Ok(())
    }

    /// Counts a request out: it begins to be answered, or nobody waits for it any more.
    pub(crate) fn leave(&self, tokens: usize) {
        let mut state = self.lock();
        state.waiting = state.waiting.saturating_sub(1);
        state.tokens = state.tokens.saturating_sub(tokens);
    }

    /// Learns how long an answer took, from its first step to its end.
    pub(crate) fn learn(&self, duration: Duration) {
        let mut state = self.lock();
        state.mean_seconds += NEWEST * (duration.as_secs_f64() - state.mean_seconds);
    }

    /// When a request that is refused now is likely to find room.
    pub(crate) fn retry_after(&self) -> Duration {
        self.estimate(&self.lock())
    }

    /// Room comes when the first of those that are being answered is done. Whole seconds, since the header has no
    /// others.
    fn estimate(&self, state: &State) -> Duration {
        let seconds = self.seconds_until(1, state).clamp(1.0, MAX_RETRY_AFTER.as_secs_f64());
        Duration::from_secs_f64(seconds.ceil())
    }

    /// Until so many answers are done, on the average: each takes the mean duration, and they go side by side.
    #[expect(clippy::cast_precision_loss, reason = "no queue is so long")]
    fn seconds_until(&self, answers: usize, state: &State) -> f64 {
        state.mean_seconds * answers as f64 / self.limits.concurrency.max(1) as f64
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission() -> Admission {
        Admission::new(QueueLimits {
            requests: 2,
            tokens: 100,
            concurrency: 2,
            wait: Duration::from_secs(30),
        })
    }

    #[test]
    fn full_queue_refuses_and_says_when_to_come_back() {
        let admission = admission();
        admission.enter(10).unwrap();
        admission.enter(10).unwrap();
        for _ in 0..50 {
            admission.learn(Duration::from_secs(19));
        }
        let Err(SubmitError::Full { retry_after }) = admission.enter(1) else {
            panic!("the queue was full")
        };
        assert_eq!(retry_after, Duration::from_secs(10));
        admission.leave(10);
        admission.enter(1).unwrap();
    }

    #[test]
    fn long_prompts_fill_the_queue_but_one_alone_is_always_taken() {
        let admission = admission();
        admission.enter(5000).unwrap();
        assert!(admission.enter(1).is_err());
        admission.leave(5000);
        admission.enter(60).unwrap();
        assert!(admission.enter(60).is_err());
        assert_eq!(admission.waiting(), 1);
    }

    #[test]
    fn queue_is_no_longer_than_anybody_should_wait_but_one_wave_always_waits() {
        let limits = QueueLimits {
            requests: 100,
            tokens: 1000,
            concurrency: 4,
            wait: Duration::from_secs(30),
        };
        let taken = |mean| {
            let admission = Admission::new(limits);
            for _ in 0..100 {
                admission.learn(Duration::from_secs(mean));
            }
            (0..100).take_while(|_| admission.enter(1).is_ok()).count()
        };
        // Each fourth of 10 s somebody is done: the thirteenth waits for 30 s.
        assert_eq!((taken(10), taken(100), taken(1)), (13, 4, 100));
    }

    #[test]
    fn nobody_is_sent_away_for_hours() {
        let admission = admission();
        for _ in 0..50 {
            admission.learn(Duration::from_hours(5));
        }
        assert_eq!(admission.retry_after(), MAX_RETRY_AFTER);
    }
}
