//! How requests to generate went, from which the operator judges a revision: how many ended, how many of them failed,
//! and how soon answers began.
//!
//! A request counts when it ends by an answer or by our fault. One that is refused because of its client, or because
//! the queue is full, says nothing about the revision; nor does one whose client went away.

use serde::Serialize;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The section of the status page.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Requests that ended, since the process became ready.
    pub requests: u64,
    /// Those that were answered with a 5xx, or whose stream ended with an error.
    pub errors: u64,
    /// From a request's arrival to its first token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_to_first_token: Option<Times>,
}

/// Some times.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Times {
    /// How many there are.
    pub count: usize,
    /// Half of them are no longer.
    pub p50_seconds: f64,
    /// Nine of ten are no longer.
    pub p90_seconds: f64,
}

/// What is counted. Pure: the time comes in.
#[derive(Debug, Default)]
struct Tally {
    requests: u64,
    errors: u64,
    first_tokens: VecDeque<(Instant, Duration)>,
}

impl Tally {
    /// First tokens that are remembered.
    const KEPT: usize = 256;
    /// For how long.
    const WINDOW: Duration = Duration::from_mins(10);

    fn first_token(&mut self, now: Instant, waited: Duration) {
        if self.first_tokens.len() == Self::KEPT {
            self.first_tokens.pop_front();
        }
        self.first_tokens.push_back((now, waited));
    }

    fn summary(&self, now: Instant) -> Summary {
        let recent = self
            .first_tokens
            .iter()
            .filter(|(at, _)| now.saturating_duration_since(*at) <= Self::WINDOW);
        let mut waited: Vec<Duration> = recent.map(|(_, waited)| *waited).collect();
        waited.sort_unstable();
        Summary {
            requests: self.requests,
            errors: self.errors,
            time_to_first_token: times(&waited),
        }
    }
}

/// Quantiles by the nearest rank.
fn times(sorted: &[Duration]) -> Option<Times> {
    let at = |percent: usize| {
        let rank = (sorted.len() * percent).div_ceil(100);
        Some(sorted.get(rank.checked_sub(1)?)?.as_secs_f64())
    };
    Some(Times {
        count: sorted.len(),
        p50_seconds: at(50)?,
        p90_seconds: at(90)?,
    })
}

/// The tally, shared. Its lock is taken at most twice for a request.
#[derive(Debug, Default)]
pub struct Traffic(Mutex<Tally>);

impl Traffic {
    /// How it went so far.
    pub fn summary(&self, now: Instant) -> Summary {
        self.lock().summary(now)
    }

    fn lock(&self) -> MutexGuard<'_, Tally> {
        // Counts that a panicking thread left behind are still right.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One request, from its arrival to its end. Clones are the same request; only its first end counts. Without one, a
/// panic is its end; otherwise its client went away, and it does not count.
#[derive(Debug, Clone)]
pub struct Attempt(Arc<Open>);

#[derive(Debug)]
struct Open {
    traffic: Arc<Traffic>,
    arrived: Instant,
    has_token: AtomicBool,
    has_ended: AtomicBool,
}

impl Attempt {
    /// A request that arrives now.
    pub fn new(traffic: Arc<Traffic>) -> Self {
        Self(Arc::new(Open {
            traffic,
            arrived: Instant::now(),
            has_token: AtomicBool::new(false),
            has_ended: AtomicBool::new(false),
        }))
    }

    /// It has a token. Only the first one counts.
    pub fn token(&self) {
        if !self.0.has_token.swap(true, Ordering::Relaxed) {
            let now = Instant::now();
            let waited = now.duration_since(self.0.arrived);
            self.0.traffic.lock().first_token(now, waited);
        }
    }

    /// It was answered completely.
    pub fn answered(&self) {
        self.0.end(0);
    }

    /// It failed, by our fault.
    pub fn failed(&self) {
        self.0.end(1);
    }
}

impl Open {
    fn end(&self, errors: u64) {
        if !self.has_ended.swap(true, Ordering::Relaxed) {
            let mut tally = self.traffic.lock();
            tally.requests += 1;
            tally.errors += errors;
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.end(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn quantiles_are_of_the_nearest_rank() {
        let seconds = |range: std::ops::RangeInclusive<u64>| range.map(Duration::from_secs).collect::<Vec<_>>();
        assert_eq!(times(&[]), None);
        for (last, p50, p90) in [(1, 1.0, 1.0), (2, 1.0, 2.0), (10, 5.0, 9.0), (11, 6.0, 10.0)] {
            let expected = Times {
                count: usize::try_from(last).unwrap(),
                p50_seconds: p50,
                p90_seconds: p90,
            };
            assert_eq!(times(&seconds(1..=last)), Some(expected));
        }
    }

    #[test]
    fn only_the_last_256_first_tokens_are_remembered() {
        let now = Instant::now();
        let mut tally = Tally::default();
        for _ in 0..10 {
            tally.first_token(now, 100 * SECOND);
        }
        for _ in 0..Tally::KEPT {
            tally.first_token(now, SECOND);
        }
        let expected = Times {
            count: 256,
            p50_seconds: 1.0,
            p90_seconds: 1.0,
        };
        assert_eq!(tally.summary(now).time_to_first_token, Some(expected));
    }

    #[test]
    fn first_tokens_drop_out_after_ten_minutes() {
        let start = Instant::now();
        let mut tally = Tally::default();
        tally.first_token(start, 9 * SECOND);
        tally.first_token(start + SECOND, SECOND);
        let count = |now| tally.summary(now).time_to_first_token.map(|times| times.count);
        assert_eq!(count(start + 600 * SECOND), Some(2));
        assert_eq!(count(start + 601 * SECOND), Some(1));
        assert_eq!(count(start + 602 * SECOND), None);
    }

    #[test]
    fn request_ends_once_and_one_without_an_end_does_not_count() {
        let traffic = Arc::new(Traffic::default());
        let attempt = Attempt::new(Arc::clone(&traffic));
        attempt.token();
        attempt.clone().failed();
        attempt.token();
        attempt.answered();
        Attempt::new(Arc::clone(&traffic)).answered();
        drop(Attempt::new(Arc::clone(&traffic)));
        let summary = traffic.summary(Instant::now());
        assert_eq!((summary.requests, summary.errors), (2, 1));
        assert_eq!(summary.time_to_first_token.unwrap().count, 1);
    }

    #[test]
    fn panic_is_an_error() {
        let traffic = Arc::new(Traffic::default());
        let attempt = Attempt::new(Arc::clone(&traffic));
        let thread = std::thread::spawn(move || {
            let _attempt = attempt;
            panic!("as the test wants it");
        });
        assert!(thread.join().is_err());
        let summary = traffic.summary(Instant::now());
        assert_eq!((summary.requests, summary.errors), (1, 1));
    }

    #[test]
    fn section_has_the_names_that_the_operator_reads() {
        let mut tally = Tally {
            requests: 3,
            errors: 1,
            ..Tally::default()
        };
        let now = Instant::now();
        let page = |tally: &Tally| serde_json::to_value(tally.summary(now)).unwrap();
        assert_eq!(page(&tally), serde_json::json!({"requests": 3, "errors": 1}));
        tally.first_token(now, Duration::from_millis(250));
        assert_eq!(
            page(&tally)["timeToFirstToken"],
            serde_json::json!({"count": 1, "p50Seconds": 0.25, "p90Seconds": 0.25})
        );
    }
}
