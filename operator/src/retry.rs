//! Back-off per object: each failure in a row doubles the wait, a success forgets them.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

/// The first wait, long enough for a watch to catch up.
const FIRST: Duration = Duration::from_secs(1);
/// The longest wait: a person who repairs something should not have to wait longer.
const LONGEST: Duration = Duration::from_mins(2);

/// How often each object failed in a row.
#[derive(Debug, Default)]
pub struct Backoff(Mutex<HashMap<String, u32>>);

impl Backoff {
    /// Records a failure and returns how long to wait.
    pub fn failed(&self, object: &str) -> Duration {
        let mut failures = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let count = failures.entry(object.to_owned()).or_default();
        let wait = FIRST.saturating_mul(2u32.saturating_pow(*count)).min(LONGEST);
        *count = count.saturating_add(1);
        wait
    }

    /// Forgets the failures of an object.
    pub fn succeeded(&self, object: &str) {
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .remove(object);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_doubles_up_to_a_limit_and_starts_again_after_success() {
        let backoff = Backoff::default();
        assert_eq!(backoff.failed("a/b"), FIRST);
        assert_eq!(backoff.failed("a/b"), FIRST * 2);
        assert_eq!(backoff.failed("a/c"), FIRST);
        for _ in 0..100 {
            backoff.failed("a/b");
        }
        assert_eq!(backoff.failed("a/b"), LONGEST);
        backoff.succeeded("a/b");
        assert_eq!(backoff.failed("a/b"), FIRST);
    }
}
