//! How much one client may ask for: requests and tokens in a minute. Pure.
//!
//! Both are buckets that fill up steadily: a client that was quiet for a minute may use all of a minute's allowance at once.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

/// What each client may use. Absent: as much as it likes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Requests that generate.
    pub requests_per_minute: Option<NonZeroU32>,
    /// Tokens of prompts and answers.
    pub tokens_per_minute: Option<NonZeroU32>,
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
    fn without_limits_everything_is_taken() {
        let now = Instant::now();
        let mut budget = budget(0, 0, now);
        (0..1000).for_each(|_| budget.take_request(now).unwrap());
        budget.take_prompt(usize::MAX, now).unwrap();
        assert_eq!(budget.standing(now), None);
    }
}
