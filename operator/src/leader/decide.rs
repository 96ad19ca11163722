//! What to do about the lease. Pure: the lease as we saw it, who we are, and our own clock in; a decision out.
//!
//! Times are durations on a clock that only this process reads. The times *in* the lease were written by the clocks of
//! other machines and are never looked at: a lease has run out when this process has seen it unchanged for its whole
//! length.

use std::time::Duration;

/// How long things take. The defaults are those that Kubernetes's own controllers use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How long a lease holds after it was last renewed.
    pub lease: Duration,
    /// A leader that could not renew for this long gives up.
    pub renew_deadline: Duration,
    /// How often a leader renews, and how often the others look.
    pub retry: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        }
    }
}

impl Timing {
    /// How long after a renewal was *sent* the leader may still write. A fifth of the lease is kept back: clocks of two
    /// machines may run at rates that differ, and a write needs time to arrive.
    pub fn allowed(&self) -> Duration {
        self.lease * 4 / 5
    }

    /// The longest wait for one answer: at least two tries fit in before the leader gives up.
    pub fn call(&self) -> Duration {
        self.renew_deadline / 2
    }

    /// What is wrong with these times, in words for the person who chose them.
    pub fn fault(&self) -> Option<String> {
        if self.lease.as_secs() == 0 || self.lease.subsec_nanos() != 0 {
            return Some("--lease-duration must be a whole number of seconds, at least 1s".to_owned());
        }
        if self.renew_deadline >= self.allowed() {
            return Some(format!(
                "--renew-deadline must be less than four fifths of --lease-duration ({:?})",
                self.allowed()
            ));
        }
        if self.retry.is_zero() || self.retry * 2 > self.renew_deadline {
            return Some("--renew-interval must be more than 0 and at most half of --renew-deadline".to_owned());
        }
        None
    }
}

/// The lease as this process saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Who holds it. `None`: nobody, it was given back or never taken.
    pub holder: Option<String>,
    /// Its resource version. `None`: there is no such object.
    pub version: Option<String>,
    /// How long it holds, by its own word.
    pub length: Duration,
    /// When we first saw it like this, by our own clock.
    pub since: Duration,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Take the lease.
    Claim,
    /// It is ours: renew it.
    Renew,
    /// Somebody else holds it, at least for this long.
    Wait(Duration),
}

/// Decides.
pub fn decide(lease: &Seen, me: &str, now: Duration) -> Decision {
    match &lease.holder {
        None => Decision::Claim,
        Some(holder) if holder == me => Decision::Renew,
        Some(_) => {
            let rest = (lease.since + lease.length).saturating_sub(now);
            if rest.is_zero() {
                Decision::Claim
            } else {
                Decision::Wait(rest)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn held_by(holder: Option<&str>) -> Seen {
        Seen {
            holder: holder.map(str::to_owned),
            version: Some("7".to_owned()),
            length: 15 * SECOND,
            since: 100 * SECOND,
        }
    }

    #[test]
    fn lease_of_nobody_is_claimed() {
        assert_eq!(decide(&held_by(None), "me", 100 * SECOND), Decision::Claim);
    }

    #[test]
    fn own_lease_is_renewed_even_when_it_has_run_out() {
        assert_eq!(decide(&held_by(Some("me")), "me", 900 * SECOND), Decision::Renew);
    }

    #[test]
    fn lease_of_another_is_waited_for_and_claimed_when_seen_unchanged_for_its_length() {
        let lease = held_by(Some("other"));
        assert_eq!(decide(&lease, "me", 103 * SECOND), Decision::Wait(12 * SECOND));
        assert_eq!(decide(&lease, "me", 115 * SECOND), Decision::Claim);
    }

    #[test]
    fn default_times_make_sense_and_wrong_ones_are_named() {
        let good = Timing::default();
        assert_eq!(good.fault(), None);
        let fault = |timing: Timing| timing.fault().unwrap();
        let lease = Duration::from_millis(1500);
        assert!(fault(Timing { lease, ..good }).contains("--lease-duration"));
        let renew_deadline = 12 * SECOND;
        assert!(fault(Timing { renew_deadline, ..good }).contains("--renew-deadline"));
        let retry = 6 * SECOND;
        assert!(fault(Timing { retry, ..good }).contains("--renew-interval"));
    }
}
