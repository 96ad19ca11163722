//! The gate before every write: it is open while this process surely leads, by its own clock.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// This operator must not write now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this operator does not hold the lease, or no longer surely: it must not write")]
pub struct NotLeader;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Allowed {
    Never,
    Until(Instant),
    Always,
}

/// Whether this process may write. Cheap to clone; all clones are one gate.
#[derive(Clone, Debug)]
pub struct Gate(watch::Sender<Allowed>);

impl Gate {
    /// A gate that is always open: for an operator that runs alone.
    pub fn open() -> Self {
        Self(watch::Sender::new(Allowed::Always))
    }

    /// A gate that is shut until the lease is held.
    pub fn shut() -> Self {
        Self(watch::Sender::new(Allowed::Never))
    }

    /// Until when it is open from now on. `None` shuts it.
    pub(super) fn set(&self, until: Option<Instant>) {
        let new = until.map_or(Allowed::Never, Allowed::Until);
        self.0.send_if_modified(|old| {
            let is_new = *old != new;
            *old = new;
            is_new
        });
    }

    /// How long a write that begins now may take. `None`: as long as it likes.
    ///
    /// # Errors
    /// When nothing may be written.
    pub fn check(&self) -> Result<Option<Duration>, NotLeader> {
        match *self.0.borrow() {
            Allowed::Never => Err(NotLeader),
            Allowed::Always => Ok(None),
            Allowed::Until(until) => {
                let rest = until.saturating_duration_since(Instant::now());
                if rest.is_zero() { Err(NotLeader) } else { Ok(Some(rest)) }
            }
        }
    }

    /// Whether this process may write now.
    pub fn is_open(&self) -> bool {
        self.check().is_ok()
    }

    /// Waits until this process leads. Returns whether it had to wait: what was read before is old then.
    pub async fn opened(&self) -> bool {
        if self.is_open() {
            return false;
        }
        let mut changes = self.0.subscribe();
        // The sender is in `self`: it cannot be gone.
        let _open = changes.wait_for(|_| self.is_open()).await;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shut_gate_refuses_and_open_gate_has_no_limit() {
        assert_eq!(Gate::shut().check(), Err(NotLeader));
        assert_eq!(Gate::open().check(), Ok(None));
    }

    #[test]
    fn gate_shuts_by_itself_when_time_has_passed() {
        let gate = Gate::shut();
        let now = Instant::now();
        gate.set(Some(now + Duration::from_hours(1)));
        assert!(gate.check().unwrap().unwrap() > Duration::from_mins(59));
        gate.set(Some(now));
        assert!(!gate.is_open());
    }

    #[tokio::test]
    async fn who_waits_is_told_that_time_has_passed() {
        let gate = Gate::shut();
        let waiting = tokio::spawn({
            let gate = gate.clone();
            async move { gate.opened().await }
        });
        tokio::task::yield_now().await;
        gate.set(Some(Instant::now() + Duration::from_hours(1)));
        assert!(waiting.await.unwrap());
        assert!(!gate.opened().await);
    }
}
