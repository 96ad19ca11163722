//! How requests to generate went, from which the operator judges a revision: how many ended, how many of them failed,
//! and how soon answers began.
//!
//! A request counts when it ends by an answer or by our fault. One that is refused because of its client, or because
//! the queue is full, says nothing about the revision; nor does one whose client went away, but for how long it waited
//! in vain.

use serde::Serialize;
use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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
    /// From a request's arrival to its first token. A request that has none yet, or whose client went away before,
    /// counts by what it has waited when that is more than nine of ten others waited: an engine that answers nobody
    /// must not look like one that nobody asked.
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

/// How long a request waited.
#[derive(Debug, Clone, Copy)]
struct Wait {
    ended: Instant,
    length: Duration,
    /// A token ended it; else the client went away.
    has_token: bool,
}

/// What is counted. Pure: the time comes in.
#[derive(Debug, Default)]
struct Tally {
    requests: u64,
    errors: u64,
    /// Arrivals of requests that the engine has taken and that have no token yet, with a number that makes them unique.
    waiting: BTreeSet<(Instant, u64)>,
    waits: VecDeque<Wait>,
}

impl Tally {
    /// Waits that are remembered.
    const KEPT: usize = 256;
    /// For how long.
    const WINDOW: Duration = Duration::from_mins(10);

    fn wait_ended(&mut self, wait: Wait) {
        if self.waits.len() == Self::KEPT {
            self.waits.pop_front();
        }
        self.waits.push_back(wait);
    }

    fn summary(&self, now: Instant) -> Summary {
        let recent = || {
            let recent = self.waits.iter();
            recent.filter(|wait| now.saturating_duration_since(wait.ended) <= Self::WINDOW)
        };
        let lengths = |has_token: bool| {
            let some = recent().filter(move |wait| wait.has_token == has_token);
            some.map(|wait| wait.length)
        };
        let mut waited: Vec<Duration> = lengths(true).collect();
        waited.sort_unstable();
        // Of these only the least that they come to is known. Shorter ones say nothing.
        let most = rank(&waited, 90).unwrap_or_default();
        let waiting = self.waiting.iter();
        let waiting = waiting.map(|(arrived, _)| now.saturating_duration_since(*arrived));
        waited.extend(lengths(false).chain(waiting).filter(|length| *length > most));
        waited.sort_unstable();
        Summary {
            requests: self.requests,
            errors: self.errors,
            time_to_first_token: times(&waited),
        }
    }
}

/// The quantile by the nearest rank.
fn rank(sorted: &[Duration], percent: usize) -> Option<Duration> {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.checked_sub(1)?).copied()
}

fn times(sorted: &[Duration]) -> Option<Times> {
    Some(Times {
        count: sorted.len(),
        p50_seconds: rank(sorted, 50)?.as_secs_f64(),
        p90_seconds: rank(sorted, 90)?.as_secs_f64(),
    })
}

/// The tally, shared. Its lock is taken three times for a request.
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
    number: u64,
    /// The engine has it, and it has no token yet.
    is_waiting: AtomicBool,
    has_ended: AtomicBool,
}

impl Attempt {
    /// A request that arrives now.
    pub fn new(traffic: Arc<Traffic>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(Arc::new(Open {
            traffic,
            arrived: Instant::now(),
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            is_waiting: AtomicBool::new(false),
            has_ended: AtomicBool::new(false),
        }))
    }

    /// The engine takes it: it waits for its first token. Once at most.
    pub fn accepted(&self) {
        self.0.is_waiting.store(true, Ordering::Relaxed);
        self.0.traffic.lock().waiting.insert(self.0.key());
    }

    /// It has a token. Only the first one counts.
    pub fn token(&self) {
        self.0.wait_ends(Some(true));
    }

    /// It was answered completely.
    pub fn answered(&self) {
        self.0.end(0);
    }

    /// It failed, by our fault.
    pub fn failed(&self) {
        self.0.wait_ends(None);
        self.0.end(1);
    }
}

impl Open {
    fn key(&self) -> (Instant, u64) {
        (self.arrived, self.number)
    }

    /// `has_token`: whether it ended with a token or since the client went away. `None`: neither.
    fn wait_ends(&self, has_token: Option<bool>) {
        if !self.is_waiting.swap(false, Ordering::Relaxed) {
            return;
        }
        let mut tally = self.traffic.lock();
        tally.waiting.remove(&self.key());
        if let Some(has_token) = has_token {
            let ended = Instant::now();
            tally.wait_ended(Wait {
                ended,
                length: ended.duration_since(self.arrived),
                has_token,
            });
        }
    }

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
            self.wait_ends(None);
            self.end(1);
        } else {
            self.wait_ends(Some(false));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn wait(ended: Instant, length: Duration) -> Wait {
        Wait {
            ended,
            length,
            has_token: true,
        }
    }

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
            tally.wait_ended(wait(now, 100 * SECOND));
        }
        for _ in 0..Tally::KEPT {
            tally.wait_ended(wait(now, SECOND));
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
        tally.wait_ended(wait(start, 9 * SECOND));
        tally.wait_ended(wait(start + SECOND, SECOND));
        let count = |now| tally.summary(now).time_to_first_token.map(|times| times.count);
        assert_eq!(count(start + 600 * SECOND), Some(2));
        assert_eq!(count(start + 601 * SECOND), Some(1));
        assert_eq!(count(start + 602 * SECOND), None);
    }

    #[test]
    fn request_ends_once_and_one_without_an_end_does_not_count() {
        let traffic = Arc::new(Traffic::default());
        let attempt = Attempt::new(Arc::clone(&traffic));
        attempt.accepted();
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
    fn request_that_waits_longer_than_others_did_counts() {
        let now = Instant::now();
        let mut tally = Tally::default();
        let arrived = |seconds: u64| now.checked_sub(Duration::from_secs(seconds)).unwrap();
        tally.waiting.insert((arrived(70), 0));
        let told = |tally: &Tally| {
            tally
                .summary(now)
                .time_to_first_token
                .map(|times| (times.count, times.p90_seconds))
        };
        assert_eq!(told(&tally), Some((1, 70.0)), "nobody was answered");
        for _ in 0..9 {
            tally.wait_ended(wait(now, 2 * SECOND));
        }
        tally.waiting.insert((arrived(1), 1));
        assert_eq!(told(&tally), Some((10, 2.0)), "the one that has just come says nothing");
        tally.wait_ended(Wait {
            has_token: false,
            ..wait(now, 30 * SECOND)
        });
        assert_eq!(told(&tally), Some((11, 30.0)), "a client that gave up has waited");
    }

    #[test]
    fn request_waits_from_its_acceptance_to_its_first_token_its_failure_or_its_end() {
        let traffic = Arc::new(Traffic::default());
        let waiting = || traffic.lock().waiting.len();
        let open: Vec<Attempt> = (0..3).map(|_| Attempt::new(Arc::clone(&traffic))).collect();
        assert_eq!(waiting(), 0);
        open.iter().for_each(Attempt::accepted);
        assert_eq!(waiting(), 3);
        open[0].token();
        open[1].failed();
        assert_eq!(waiting(), 1);
        drop(open);
        assert_eq!(waiting(), 0);
        let kept: Vec<bool> = traffic.lock().waits.iter().map(|wait| wait.has_token).collect();
        assert_eq!(kept, [true, false], "a failure has no time to its first token");
    }

    #[test]
    fn panic_is_an_error() {
        let traffic = Arc::new(Traffic::default());
        let attempt = Attempt::new(Arc::clone(&traffic));
        attempt.accepted();
        let thread = std::thread::spawn(move || {
            let _attempt = attempt;
            panic!("as the test wants it");
        });
        assert!(thread.join().is_err());
        let summary = traffic.summary(Instant::now());
        assert_eq!((summary.requests, summary.errors), (1, 1));
        assert_eq!(summary.time_to_first_token, None);
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
        tally.wait_ended(wait(now, Duration::from_millis(250)));
        assert_eq!(
            page(&tally)["timeToFirstToken"],
            serde_json::json!({"count": 1, "p50Seconds": 0.25, "p90Seconds": 0.25})
        );
    }
}
