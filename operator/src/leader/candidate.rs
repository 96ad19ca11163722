//! One candidate for the lease, without input and output: told what the API server answered and what time it is, it
//! says what to ask next. The driver in `mod.rs` and the simulation both run exactly this.
//!
//! # Guarantees
//! - A lease is only written over the resource version that was read, so of two claims one is refused.
//! - The right to act counts from the moment a claim or a renewal was *sent*, and only once it was confirmed.
//! - After an answer that was lost the lease is read again before it is written.

use std::time::Duration;

use super::decide::{Decision, Seen, Timing, decide};

/// What to ask the API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Call {
    /// Read the lease.
    Read,
    /// Create it, held by us.
    Create,
    /// Replace the lease of this resource version by one that we hold.
    Replace {
        /// The resource version.
        version: String,
        /// Whether it was somebody else's, or nobody's.
        is_claim: bool,
    },
}

/// What the API server answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The lease: the answer to a read.
    Found(Lease),
    /// There is none: the answer to a read.
    Missing,
    /// The claim or renewal is stored under this resource version.
    Stored(String),
    /// Refused, lost or too late.
    Failed,
}

/// What matters of a lease object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lease {
    /// Who holds it.
    pub(super) holder: Option<String>,
    /// Its resource version.
    pub(super) version: String,
    /// How long it holds. `None`: it does not say.
    pub(super) length: Option<Duration>,
}

/// What to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Ask the API server.
    Ask(Call),
    /// Wait.
    Sleep(Duration),
    /// We led and do no more: the process must end.
    Lost(&'static str),
}

/// One candidate.
#[derive(Debug)]
pub(super) struct Candidate {
    me: String,
    timing: Timing,
    seen: Option<Seen>,
    /// Whether `seen` is what we know now; otherwise the lease is read before anything else.
    is_fresh: bool,
    /// When the last confirmed claim or renewal was sent. `None`: we do not lead.
    renewed: Option<Duration>,
    wake: Duration,
}

impl Candidate {
    /// One that knows nothing yet. `me` must be unique among all processes that ever ran.
    pub(super) fn new(me: String, timing: Timing) -> Self {
        Self {
            me,
            timing,
            seen: None,
            is_fresh: false,
            renewed: None,
            wake: Duration::ZERO,
        }
    }

    /// Until when this process may write. `None`: not now.
    pub(super) fn allowed_until(&self) -> Option<Duration> {
        self.renewed.map(|sent| sent + self.timing.allowed())
    }

    /// Who holds the lease, as far as we know.
    pub(super) fn holder(&self) -> Option<&str> {
        self.seen.as_ref()?.holder.as_deref()
    }

    /// What to do now.
    pub(super) fn next(&mut self, now: Duration) -> Step {
        if let Some(sent) = self.renewed
            && now >= sent + self.timing.renew_deadline
        {
            return Step::Lost("the lease could not be renewed in time");
        }
        if now < self.wake {
            return Step::Sleep(self.wake.saturating_sub(now));
        }
        let Some(seen) = self.seen.as_ref().filter(|_| self.is_fresh) else {
            return Step::Ask(Call::Read);
        };
        let decision = decide(seen, &self.me, now);
        let is_claim = match decision {
            Decision::Claim | Decision::Wait(_) if self.renewed.is_some() => {
                return Step::Lost("another operator holds the lease");
            }
            Decision::Wait(rest) => {
                let pause = rest.min(self.timing.retry);
                self.is_fresh = false;
                self.wake = now + pause;
                return Step::Sleep(pause);
            }
            Decision::Claim => true,
            Decision::Renew => false,
        };
        Step::Ask(match &seen.version {
            None => Call::Create,
            Some(version) => Call::Replace {
                version: version.clone(),
                is_claim,
            },
        })
    }

    /// Takes the answer to a call that was sent at `sent` and came back at `now`.
    pub(super) fn answered(&mut self, answer: Answer, sent: Duration, now: Duration) {
        match answer {
            Answer::Found(lease) => self.saw(lease, now),
            Answer::Missing => self.saw_nothing(now),
            Answer::Stored(version) => {
                self.renewed = Some(sent);
                self.seen = Some(Seen {
                    holder: Some(self.me.clone()),
                    version: Some(version),
                    length: self.timing.lease,
                    since: now,
                });
                self.is_fresh = true;
                self.wake = now + self.timing.retry;
            }
            Answer::Failed => {
                self.is_fresh = false;
                // A leader has no time to lose; a quarter still spares an API server in trouble.
                let pause = if self.renewed.is_some() {
                    self.timing.retry / 4
                } else {
                    self.timing.retry
                };
                self.wake = now + pause;
            }
        }
    }

    fn saw(&mut self, lease: Lease, now: Duration) {
        self.is_fresh = true;
        let holder = lease.holder.filter(|holder| !holder.is_empty());
        let length = lease
            .length
            .filter(|length| !length.is_zero())
            .unwrap_or(self.timing.lease);
        let is_same = self
            .seen
            .as_ref()
            .is_some_and(|seen| seen.version.as_ref() == Some(&lease.version));
        if !is_same {
            self.seen = Some(Seen {
                holder,
                version: Some(lease.version),
                length,
                since: now,
            });
        }
    }

    /// A lease that was deleted frees nothing: whoever held it may act until it would have run out.
    fn saw_nothing(&mut self, now: Duration) {
        self.is_fresh = true;
        match &mut self.seen {
            Some(seen) => seen.version = None,
            None => {
                self.seen = Some(Seen {
                    holder: None,
                    version: None,
                    length: self.timing.lease,
                    since: now,
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn lease(holder: &str, version: &str) -> Answer {
        Answer::Found(Lease {
            holder: Some(holder.to_owned()),
            version: version.to_owned(),
            length: Some(15 * SECOND),
        })
    }

    fn candidate() -> Candidate {
        Candidate::new("me".to_owned(), Timing::default())
    }

    fn leader() -> Candidate {
        let mut leader = candidate();
        assert_eq!(leader.next(SECOND), Step::Ask(Call::Read));
        leader.answered(Answer::Missing, SECOND, SECOND);
        assert_eq!(leader.next(SECOND), Step::Ask(Call::Create));
        leader.answered(Answer::Stored("1".to_owned()), SECOND, 2 * SECOND);
        leader
    }

    #[test]
    fn right_to_act_counts_from_when_the_claim_was_sent() {
        assert_eq!(leader().allowed_until(), Some(13 * SECOND));
    }

    #[test]
    fn lost_answer_gives_no_right_and_the_lease_is_read_again() {
        let mut one = candidate();
        one.answered(Answer::Missing, SECOND, SECOND);
        one.answered(Answer::Failed, SECOND, 2 * SECOND);
        assert_eq!(one.allowed_until(), None);
        assert_eq!(one.next(4 * SECOND), Step::Ask(Call::Read));
        // The claim had arrived: it is ours, and must be confirmed by a renewal.
        one.answered(lease("me", "1"), 4 * SECOND, 4 * SECOND);
        let renewal = Call::Replace {
            version: "1".to_owned(),
            is_claim: false,
        };
        assert_eq!(one.next(4 * SECOND), Step::Ask(renewal));
    }

    #[test]
    fn leader_that_cannot_renew_gives_up_at_the_deadline() {
        let mut leader = leader();
        leader.answered(Answer::Failed, 4 * SECOND, 9 * SECOND);
        assert_eq!(leader.next(10 * SECOND), Step::Ask(Call::Read));
        assert!(matches!(leader.next(11 * SECOND), Step::Lost(_)));
    }

    #[test]
    fn leader_that_sees_another_holder_gives_up() {
        let mut leader = leader();
        leader.answered(Answer::Failed, 4 * SECOND, 5 * SECOND);
        leader.answered(lease("other", "2"), 6 * SECOND, 6 * SECOND);
        assert!(matches!(leader.next(6 * SECOND), Step::Lost(_)));
    }

    #[test]
    fn leader_makes_a_deleted_lease_again_and_others_wait_for_its_length() {
        let mut leader = leader();
        leader.answered(Answer::Failed, 4 * SECOND, 5 * SECOND);
        leader.answered(Answer::Missing, 6 * SECOND, 6 * SECOND);
        assert_eq!(leader.next(6 * SECOND), Step::Ask(Call::Create));

        let mut follower = candidate();
        follower.answered(lease("other", "1"), SECOND, SECOND);
        assert_eq!(follower.next(SECOND), Step::Sleep(2 * SECOND));
        follower.answered(Answer::Missing, 3 * SECOND, 3 * SECOND);
        assert_eq!(follower.next(3 * SECOND), Step::Sleep(2 * SECOND));
        follower.answered(Answer::Missing, 16 * SECOND, 16 * SECOND);
        assert_eq!(follower.next(16 * SECOND), Step::Ask(Call::Create));
    }

    #[test]
    fn change_by_somebody_who_does_not_claim_takes_nothing_away() {
        let mut leader = leader();
        leader.answered(Answer::Failed, 4 * SECOND, 4 * SECOND);
        leader.answered(lease("me", "2"), 5 * SECOND, 5 * SECOND);
        assert!(matches!(leader.next(5 * SECOND), Step::Ask(Call::Replace { version, .. }) if version == "2"));
    }

    #[test]
    fn length_in_the_lease_is_honoured() {
        let mut follower = candidate();
        let long = Lease {
            holder: Some("other".to_owned()),
            version: "1".to_owned(),
            length: Some(60 * SECOND),
        };
        follower.answered(Answer::Found(long), SECOND, SECOND);
        assert!(matches!(follower.next(40 * SECOND), Step::Sleep(_)));
    }
}
