//! Whether a new revision is good: what its pods and its requests have shown so far.

use std::time::Duration;

use escadre_crds::condition::Reason;
use k8s_openapi::jiff::Timestamp;

use super::facts::{Milestone, PodFacts};
use super::policy::{Limits, Policy};
use crate::controllers::llm_deployment::observe::Probed;

/// Requests from which on too many errors or too slow answers are certain before the window has passed.
const EVIDENCE: u64 = 20;
/// How long a window that is over waits for a pod that does not answer: what it said before is no evidence in favour.
const HEARD_AGAIN: Duration = Duration::from_secs(2);

/// Why a revision failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// For machines.
    pub reason: String,
    /// For people.
    pub message: String,
}

/// How far the pods of a revision have come, and when they came so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Best {
    /// Pods that serve, then the furthest of those that do not.
    pub measure: (usize, Milestone),
    /// When.
    pub at: Timestamp,
}

impl Best {
    /// What is best now. Without a `before`, as after a restart of the operator, what is found is not news.
    pub fn of(before: Option<Self>, known_at: Timestamp, pods: &[&PodFacts], now: Timestamp) -> Self {
        let serving = pods.iter().filter(|pod| pod.is_serving).count();
        let others = pods.iter().filter(|pod| !pod.is_serving).map(|pod| pod.milestone);
        let measure = (serving, others.max().unwrap_or_default());
        match before {
            None => Self { measure, at: known_at },
            Some(before) if measure > before.measure => Self { measure, at: now },
            Some(before) => before,
        }
    }
}

/// What is certain of the pods alone: no time passes in this question.
pub fn certain(policy: &Policy, limits: Option<&Limits>, pods: &[&PodFacts]) -> Option<Failure> {
    let faults = pods.iter().filter_map(|pod| pod.fault.as_ref());
    let hopeless = faults.filter(|fault| fault.is_final).map(|fault| Failure {
        reason: fault.reason.clone(),
        message: fault.message.clone(),
    });
    let probe = policy.probe.as_ref();
    let wrong = pods.iter().filter_map(|pod| {
        let (Probed::Failed(answer), Some(probe)) = (&pod.probed, probe) else {
            return None;
        };
        Some(Failure {
            reason: Reason::ProbeFailed.to_string(),
            message: format!(
                "pod {} answered {answer:?} to the probe prompt, which does not contain {:?}",
                pod.identity.name, probe.expect_contains
            ),
        })
    });
    let over = limits.and_then(|limits| exceeded(limits, pods, EVIDENCE));
    hopeless.chain(wrong).next().or(over)
}

/// What became of a window in which requests were watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Window {
    /// It goes on for so long.
    Open(Duration),
    /// Nothing speaks against the revision; the sentence says what was seen.
    Passed(String),
    /// The revision is not good enough.
    Failed(Failure),
}

/// Judges the requests of a window that began `elapsed` ago.
pub fn window(limits: &Limits, pods: &[&PodFacts], elapsed: Duration) -> Window {
    if limits.is_empty() {
        return Window::Passed(String::new());
    }
    if let Some(left) = limits.window.checked_sub(elapsed).filter(|left| !left.is_zero()) {
        return Window::Open(left);
    }
    if let Some(failure) = exceeded(limits, pods, 1) {
        return Window::Failed(failure);
    }
    if pods.iter().any(|pod| pod.is_stale) {
        return Window::Open(HEARD_AGAIN);
    }
    let requests: u64 = pods
        .iter()
        .filter_map(|pod| pod.traffic)
        .map(|traffic| traffic.requests)
        .sum();
    Window::Passed(if requests == 0 {
        "no evidence: no request to the new pods ended within the window, so that nothing speaks against them"
            .to_owned()
    } else {
        format!("{requests} requests to the new pods were within the gates")
    })
}

/// The gate that was exceeded, by at least so many requests.
fn exceeded(limits: &Limits, pods: &[&PodFacts], evidence: u64) -> Option<Failure> {
    let failed = |message| Failure {
        reason: Reason::GateFailed.to_string(),
        message,
    };
    let traffic = || pods.iter().filter_map(|pod| pod.traffic);
    let (requests, errors) = traffic().fold((0, 0), |(requests, errors), one| {
        (requests + one.requests, errors + one.errors)
    });
    #[expect(clippy::cast_precision_loss, reason = "a share of requests needs no 53 bits")]
    let rate = errors as f64 / requests.max(1) as f64;
    if let Some(most) = limits.error_rate.filter(|most| requests >= evidence && rate > *most) {
        return Some(failed(format!(
            "{errors} of {requests} requests to the new pods failed, maxErrorRate allows {most}"
        )));
    }
    let most = limits.first_token?;
    pods.iter().find_map(|pod| {
        let first = pod.traffic?.first_token.filter(|first| first.count >= evidence)?;
        let is_slow = first.p90_seconds > most.as_secs_f64();
        is_slow.then(|| {
            failed(format!(
                "the time to the first token of pod {} was {:.3} s (90th percentile of {} requests), maxTimeToFirstToken allows {:.3} s",
                pod.identity.name,
                first.p90_seconds,
                first.count,
                most.as_secs_f64()
            ))
        })
    })
}

/// What stands in the way when nothing moves, for people.
pub fn obstacle(pods: &[&PodFacts], refusal: Option<&str>) -> Option<String> {
    let fault = pods.iter().find_map(|pod| pod.fault.as_ref());
    fault
        .map(|fault| format!("{}: {}", fault.reason, fault.message))
        .or_else(|| refusal.map(str::to_owned))
        .or_else(|| {
            let pod = pods.iter().find(|pod| !pod.is_serving).or_else(|| pods.first())?;
            let name = &pod.identity.name;
            Some(match &pod.probed {
                Probed::Unreachable(words) => format!("pod {name} cannot be asked the probe prompt: {words}"),
                Probed::Asking => format!("pod {name} has not answered the probe prompt yet"),
                Probed::NotAsked | Probed::Passed | Probed::Failed(_) => format!("pod {name} is not ready"),
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime_status::{FirstToken, Traffic};

    fn pod(requests: u64, errors: u64, p90: Option<(u64, f64)>) -> PodFacts {
        PodFacts {
            traffic: Some(Traffic {
                requests,
                errors,
                first_token: p90.map(|(count, p90_seconds)| FirstToken { count, p90_seconds }),
            }),
            ..PodFacts::default()
        }
    }

    fn limits() -> Limits {
        Limits {
            error_rate: Some(0.1),
            first_token: Some(Duration::from_secs(2)),
            window: Duration::from_secs(30),
        }
    }

    #[test]
    fn few_requests_are_judged_at_the_end_of_the_window_only() {
        let bad = pod(2, 1, None);
        assert_eq!(exceeded(&limits(), &[&bad], EVIDENCE), None);
        assert_eq!(
            window(&limits(), &[&bad], Duration::from_secs(29)),
            Window::Open(Duration::from_secs(1))
        );
        let Window::Failed(failure) = window(&limits(), &[&bad], Duration::from_secs(30)) else {
            panic!("passed");
        };
        assert_eq!(failure.reason, "GateFailed");
        assert!(failure.message.contains("1 of 2 requests"), "{}", failure.message);
    }

    #[test]
    fn many_requests_are_judged_at_once() {
        let bad = pod(30, 4, None);
        let slow = pod(30, 0, Some((25, 2.5)));
        assert!(exceeded(&limits(), &[&bad], EVIDENCE).is_some());
        let failure = exceeded(&limits(), &[&slow], EVIDENCE).unwrap();
        assert!(failure.message.contains("2.500 s"), "{}", failure.message);
        assert_eq!(exceeded(&limits(), &[&pod(30, 3, Some((25, 1.9)))], EVIDENCE), None);
    }

    #[test]
    fn window_without_a_request_passes_and_says_so() {
        let Window::Passed(words) = window(&limits(), &[&pod(0, 0, None)], Duration::from_secs(31)) else {
            panic!("failed");
        };
        assert!(words.starts_with("no evidence"), "{words}");
    }

    #[test]
    fn pod_that_does_not_answer_passes_no_window() {
        let silent = PodFacts {
            is_stale: true,
            ..pod(0, 0, None)
        };
        let over = Duration::from_secs(31);
        assert_eq!(window(&limits(), &[&silent], over), Window::Open(HEARD_AGAIN));
        let failing = PodFacts {
            is_stale: true,
            ..pod(2, 1, None)
        };
        assert!(matches!(window(&limits(), &[&failing], over), Window::Failed(_)));
    }

    #[test]
    fn progress_is_what_was_never_reached_before() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let at_stage = |stage, bytes| PodFacts {
            milestone: Milestone { stage, bytes },
            ..PodFacts::default()
        };
        let first = Best::of(None, at(1), &[&at_stage(2, 50)], at(9));
        assert_eq!(first.at, at(1), "after a restart nothing is news");
        let more = Best::of(Some(first), at(1), &[&at_stage(2, 51)], at(10));
        assert_eq!(more.at, at(10));
        let again = Best::of(Some(more), at(1), &[&at_stage(1, 0)], at(11));
        let again = Best::of(Some(again), at(1), &[&at_stage(2, 51)], at(12));
        assert_eq!(again.at, at(10), "a container that starts anew makes no progress");
    }
}
