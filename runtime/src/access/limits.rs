//! How much one client may ask for: requests and tokens in a minute. Pure.
//!
//! Both are buckets that fill up steadily: a client that was quiet for a minute may use all of a minute's allowance at once.

use std::io;
use std::num::NonZeroU32;
use std::path::Path;
use std::time::{Duration, Instant};

/// What each client may use. Absent: as much as it likes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Requests that generate.
    pub requests_per_minute: Option<NonZeroU32>,
    /// Tokens of prompts and answers.
    pub tokens_per_minute: Option<NonZeroU32>,
}

/// The file with the requests in a folder of limits.
const REQUESTS: &str = "requests-per-minute";
/// The file with the tokens.
const TOKENS: &str = "tokens-per-minute";

/// Why limits cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LimitsError {
    /// The folder or a file in it cannot be read.
    #[error("{path}: {error}")]
    Unreadable {
        /// Which.
        path: String,
        /// Why.
        error: io::Error,
    },
    /// A file has something else in it.
    #[error("`{file}` must have a whole number of at least 1 in it, or nothing (it has `{text}`)")]
    NoNumber {
        /// Which.
        file: &'static str,
        /// What it has, or how that begins.
        text: String,
    },
}

impl Limits {
    /// The limits of a folder: the files `requests-per-minute` and `tokens-per-minute`. One that is empty or not there is none.
    ///
    /// # Errors
    /// When something cannot be read or is no number.
    pub fn read(folder: &Path) -> Result<Self, LimitsError> {
        let unreadable = |path: &Path, error| LimitsError::Unreadable {
            path: path.display().to_string(),
            error,
        };
        std::fs::read_dir(folder).map_err(|error| unreadable(folder, error))?;
        let limit = |file: &'static str| {
            let path = folder.join(file);
            let text = match std::fs::read_to_string(&path) {
                Ok(text) => text,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(unreadable(&path, error)),
            };
            match text.trim() {
                "" => Ok(None),
                text => text.parse().map(Some).map_err(|_| LimitsError::NoNumber {
                    file,
                    text: text.chars().take(40).collect(),
                }),
            }
        };
        Ok(Self {
            requests_per_minute: limit(REQUESTS)?,
            tokens_per_minute: limit(TOKENS)?,
        })
    }
}

/// What one client has left.
#[derive(Debug, Clone)]
pub struct Budget {
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
}

/// Why a client has to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// What there is too little of: `requests` or `tokens`.
    pub of: &'static str,
    /// The limit for a minute.
    pub limit: u32,
    /// When there will be enough. Absent: never, it is more than a minute's allowance.
    pub retry_after: Option<Duration>,
}

/// What a client has left, for the headers of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Standing {
    /// Of requests, if they are limited.
    pub requests: Option<Left>,
    /// Of tokens, if they are limited.
    pub tokens: Option<Left>,
}

/// What is left of an allowance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// For a minute.
    pub limit: u32,
    /// Now.
    pub remaining: u32,
    /// Until all of it is there again.
    pub reset: Duration,
}

#[derive(Debug, Clone)]
struct Bucket {
    limit: NonZeroU32,
    /// May be less than nothing.
    left: f64,
    at: Instant,
}

impl Bucket {
    fn new(limit: NonZeroU32, now: Instant) -> Self {
        Self {
            limit,
            left: limit.get().into(),
            at: now,
        }
    }

    /// The same under another limit: as much is used up as before.
    fn under(mut self, limit: NonZeroU32, now: Instant) -> Self {
        self.fill(now);
        self.left += f64::from(limit.get()) - f64::from(self.limit.get());
        self.limit = limit;
        self
    }

    fn per_second(&self) -> f64 {
        f64::from(self.limit.get()) / 60.0
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + passed * self.per_second()).min(self.limit.get().into());
        self.at = now;
    }

    /// How long it takes until there are so many.
    fn until(&self, wanted: f64) -> Duration {
        Duration::try_from_secs_f64((wanted - self.left).max(0.0) / self.per_second()).unwrap_or(Duration::MAX)
    }

    fn take(&mut self, of: &'static str, count: f64, now: Instant) -> Result<(), Refusal> {
        self.fill(now);
        if count <= self.left {
            self.left -= count;
            return Ok(());
        }
        let limit = self.limit.get();
        Err(Refusal {
            of,
            limit,
            retry_after: (count <= f64::from(limit)).then(|| self.until(count)),
        })
    }

    fn standing(&mut self, now: Instant) -> Left {
        self.fill(now);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "from 0 to the limit"
        )]
        let remaining = self.left.max(0.0) as u32;
        Left {
            limit: self.limit.get(),
            remaining,
            reset: self.until(self.limit.get().into()),
        }
    }
}

impl Budget {
    /// All of a minute's allowance.
    pub fn new(limits: Limits, now: Instant) -> Self {
        Self {
            requests: limits.requests_per_minute.map(|limit| Bucket::new(limit, now)),
            tokens: limits.tokens_per_minute.map(|limit| Bucket::new(limit, now)),
        }
    }

    /// Takes other limits over.
    pub fn adapt(&mut self, limits: Limits, now: Instant) {
        let adapt = |bucket: &mut Option<Bucket>, limit: Option<NonZeroU32>| {
            *bucket = limit.map(|limit| match bucket.take() {
                Some(bucket) => bucket.under(limit, now),
                None => Bucket::new(limit, now),
            });
        };
        adapt(&mut self.requests, limits.requests_per_minute);
        adapt(&mut self.tokens, limits.tokens_per_minute);
    }

    /// Takes a request.
    ///
    /// # Errors
    /// When none is left.
    pub fn take_request(&mut self, now: Instant) -> Result<(), Refusal> {
        self.requests
            .as_mut()
            .map_or(Ok(()), |bucket| bucket.take("requests", 1.0, now))
    }

    /// Takes the tokens of a prompt.
    ///
    /// # Errors
    /// When there are not as many.
    pub fn take_prompt(&mut self, tokens: usize, now: Instant) -> Result<(), Refusal> {
        let bucket = self.tokens.as_mut();
        bucket.map_or(Ok(()), |bucket| bucket.take("tokens", as_number(tokens), now))
    }

    /// Takes tokens that were used already.
    pub fn charge(&mut self, tokens: usize, now: Instant) {
        if let Some(bucket) = &mut self.tokens {
            bucket.fill(now);
            bucket.left -= as_number(tokens);
        }
    }

    /// Gives tokens back that were taken and not used.
    pub fn give_back(&mut self, tokens: usize, now: Instant) {
        if let Some(bucket) = &mut self.tokens {
            bucket.fill(now);
            bucket.left = (bucket.left + as_number(tokens)).min(bucket.limit.get().into());
        }
    }

    /// What is left; absent without limits.
    pub fn standing(&mut self, now: Instant) -> Option<Standing> {
        let standing = Standing {
            requests: self.requests.as_mut().map(|bucket| bucket.standing(now)),
            tokens: self.tokens.as_mut().map(|bucket| bucket.standing(now)),
        };
        (standing != Standing::default()).then_some(standing)
    }
}

#[expect(clippy::cast_precision_loss, reason = "contexts are much shorter")]
fn as_number(tokens: usize) -> f64 {
    tokens as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(requests: u32, tokens: u32, now: Instant) -> Budget {
        let limits = Limits {
            requests_per_minute: NonZeroU32::new(requests),
            tokens_per_minute: NonZeroU32::new(tokens),
        };
        Budget::new(limits, now)
    }

    #[test]
    fn requests_come_back_with_time() {
        let start = Instant::now();
        let mut budget = budget(60, 0, start);
        (0..60).for_each(|_| budget.take_request(start).unwrap());
        let refusal = budget.take_request(start).unwrap_err();
        assert_eq!((refusal.of, refusal.limit), ("requests", 60));
        assert_eq!(refusal.retry_after.unwrap().as_secs(), 1);
        budget.take_request(start + Duration::from_secs(1)).unwrap();
        assert!(budget.take_request(start + Duration::from_secs(1)).is_err());
        let standing = budget
            .standing(start + Duration::from_secs(31))
            .unwrap()
            .requests
            .unwrap();
        assert_eq!(
            (standing.limit, standing.remaining, standing.reset.as_secs()),
            (60, 30, 30)
        );
        assert_eq!(
            budget
                .standing(start + Duration::from_hours(1))
                .unwrap()
                .requests
                .unwrap()
                .remaining,
            60
        );
    }

    #[test]
    fn answers_may_cost_more_than_is_left_and_are_paid_before_the_next() {
        let start = Instant::now();
        let mut budget = budget(0, 600, start);
        budget.take_prompt(500, start).unwrap();
        budget.charge(300, start);
        assert_eq!(budget.standing(start).unwrap().tokens.unwrap().remaining, 0);
        let refusal = budget.take_prompt(100, start).unwrap_err();
        assert_eq!(refusal.retry_after.unwrap().as_secs(), 30);
        budget.take_prompt(100, start + Duration::from_secs(30)).unwrap();
        assert_eq!(budget.take_prompt(601, start).unwrap_err().retry_after, None);
        let left = |budget: &mut Budget, now| budget.standing(now).unwrap().tokens.unwrap().remaining;
        let later = start + Duration::from_secs(40);
        let before = left(&mut budget, later);
        budget.take_prompt(50, later).unwrap();
        budget.give_back(50, later);
        assert_eq!(left(&mut budget, later), before);
        budget.give_back(10_000, later);
        assert_eq!(left(&mut budget, later), 600);
    }

    #[test]
    fn what_was_used_stays_used_under_another_limit() {
        let start = Instant::now();
        let mut budget = budget(10, 0, start);
        (0..8).for_each(|_| budget.take_request(start).unwrap());
        let limits = |requests: u32, tokens: u32| Limits {
            requests_per_minute: NonZeroU32::new(requests),
            tokens_per_minute: NonZeroU32::new(tokens),
        };
        budget.adapt(limits(5, 100), start);
        assert!(budget.take_request(start).is_err());
        budget.take_prompt(100, start).unwrap();
        budget.adapt(limits(20, 0), start);
        assert_eq!(budget.standing(start).unwrap().requests.unwrap().remaining, 12);
        assert_eq!(budget.standing(start).unwrap().tokens, None);
    }

    #[test]
    fn limits_are_files_of_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| std::fs::write(folder.path().join(file), text).unwrap();
        assert_eq!(Limits::read(folder.path()).unwrap(), Limits::default());
        write(REQUESTS, "12\n");
        write(TOKENS, "");
        let limits = Limits::read(folder.path()).unwrap();
        assert_eq!(limits.requests_per_minute, NonZeroU32::new(12));
        assert_eq!(limits.tokens_per_minute, None);
        for bad in ["0", "-1", "many", "1.5"] {
            write(TOKENS, bad);
            let error = Limits::read(folder.path()).unwrap_err().to_string();
            assert!(error.starts_with("`tokens-per-minute` must"), "{error}");
        }
        assert!(Limits::read(&folder.path().join("nowhere")).is_err());
    }

    #[test]
    fn without_limits_everything_is_taken() {
        let now = Instant::now();
        let mut budget = budget(0, 0, now);
        (0..1000).for_each(|_| budget.take_request(now).unwrap());
        budget.take_prompt(usize::MAX, now).unwrap();
        assert_eq!(budget.standing(now), None);
    }
}
