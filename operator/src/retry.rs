//! Back-off per object: each failure in a row doubles the wait, a success forgets them.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use crate::world::cache::Key;

/// The first wait, long enough for a watch to catch up.
const FIRST: Duration = Duration::from_secs(1);
/// The longest wait: a person who repairs something should not have to wait longer.
const LONGEST: Duration = Duration::from_mins(2);

/// How often each object failed in a row.
#[derive(Debug, Default)]
pub struct Backoff(Mutex<HashMap<Key, u32>>);

impl Backoff {
    /// Records a failure and returns how long to wait.
    pub fn failed(&self, object: &Key) -> Duration {
        let mut failures = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let count = failures.entry(object.clone()).or_default();
        let wait = FIRST.saturating_mul(2u32.saturating_pow(*count)).min(LONGEST);
        *count = count.saturating_add(1);
        wait
    }

    /// Forgets the failures of an object.
    pub fn forget(&self, object: &Key) {
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
        let [one, other] = ["b", "c"].map(|name| ("a".to_owned(), name.to_owned()));
        assert_eq!(backoff.failed(&one), FIRST);
        assert_eq!(backoff.failed(&one), FIRST * 2);
        assert_eq!(backoff.failed(&other), FIRST);
        for _ in 0..100 {
            backoff.failed(&one);
        }
        assert_eq!(backoff.failed(&one), LONGEST);
        backoff.forget(&one);
        assert_eq!(backoff.failed(&one), FIRST);
    }
}
