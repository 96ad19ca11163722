//! What `spec.rollout` means for so many pods.

use std::time::Duration;

use escadre_crds::v1alpha1::{Gates, ProbePrompt, Rollout, Span, Strategy};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// How long requests are watched when nothing is said.
const WINDOW: Duration = Duration::from_mins(1);

/// What `spec.rollout` means for so many pods.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// How pods are replaced.
    pub strategy: Strategy,
    /// Pods beyond the wanted ones. `None`: nothing was said.
    pub max_surge: Option<usize>,
    /// Pods that may be missing.
    pub max_unavailable: usize,
    /// How long a pod must have been ready.
    pub min_ready: Duration,
    /// How long a rollout may stand still.
    pub deadline: Duration,
    /// What is gone through before the rollout completes.
    pub phases: Vec<Phase>,
    /// What every new pod is asked.
    pub probe: Option<ProbePrompt>,
    /// Whether the revision before comes back.
    pub auto_rollback: bool,
    /// Whether the rollout stands.
    pub is_paused: bool,
    /// Revisions that are kept though nothing needs them.
    pub history: usize,
}

/// A part of a rollout.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Phase {
    /// New pods.
    pub pods: usize,
    /// How long it lasts.
    pub pause: Duration,
    /// What must be shown.
    pub limits: Limits,
}

/// What requests to new pods must show.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Limits {
    /// The share of requests that may fail.
    pub error_rate: Option<f64>,
    /// What the 90th percentile of the time to the first token may be.
    pub first_token: Option<Duration>,
    /// How long requests are watched.
    pub window: Duration,
}

impl Limits {
    /// Whether there is anything to show.
    pub fn is_empty(&self) -> bool {
        self.error_rate.is_none() && self.first_token.is_none()
    }

    /// What is absent in `step` is taken from `general`.
    fn of(step: Option<&Gates>, general: Option<&Gates>) -> Self {
        let both = [step, general];
        let first = |pick: fn(&Gates) -> Option<&Span>| {
            let span = both.iter().flatten().find_map(|gates| pick(gates));
            span.and_then(Span::duration)
        };
        Self {
            error_rate: both.iter().flatten().find_map(|gates| gates.max_error_rate),
            first_token: first(|gates| gates.max_time_to_first_token.as_ref()),
            window: first(|gates| gates.window.as_ref()).unwrap_or(WINDOW),
        }
    }
}

impl Policy {
    /// Reads the field for `replicas` pods.
    pub fn of(rollout: &Rollout, replicas: usize) -> Self {
        let general = rollout.gates.as_ref();
        let steps = rollout.canary.as_ref().filter(|_| rollout.strategy == Strategy::Canary);
        let steps = steps.iter().flat_map(|canary| &canary.steps);
        let mut phases: Vec<Phase> = steps
            .map(|step| Phase {
                pods: match (step.replicas, step.weight) {
                    (Some(pods), _) => count(pods).clamp(1, replicas.max(1)),
                    (None, weight) => (replicas * count(weight.unwrap_or(100))).div_ceil(100),
                },
                pause: step.pause.duration().unwrap_or_default(),
                limits: Limits::of(step.gates.as_ref(), general),
            })
            .collect();
        let first = Limits::of(None, general);
        if phases.is_empty() && !first.is_empty() {
            phases.push(Phase {
                pods: 1.min(replicas),
                pause: Duration::ZERO,
                limits: first,
            });
        }
        Self {
            strategy: rollout.strategy,
            max_surge: rollout.max_surge.as_ref().map(|surge| pods(surge, replicas, true)),
            max_unavailable: rollout
                .max_unavailable
                .as_ref()
                .map_or(0, |most| pods(most, replicas, false)),
            min_ready: Duration::from_secs(rollout.min_ready_seconds.max(0).unsigned_abs().into()),
            deadline: rollout.progress_deadline.duration().unwrap_or(Duration::from_mins(30)),
            phases,
            probe: rollout.probe().cloned(),
            auto_rollback: rollout.auto_rollback,
            is_paused: rollout.paused,
            history: count(rollout.revision_history_limit),
        }
    }
}

fn count(number: i32) -> usize {
    usize::try_from(number).unwrap_or(0)
}

/// A number of pods, or a percentage of `replicas` that is rounded up or down.
fn pods(text: &IntOrString, replicas: usize, rounds_up: bool) -> usize {
    let text = match text {
        IntOrString::Int(pods) => return count(*pods),
        IntOrString::String(text) => text,
    };
    match text.strip_suffix('%').map(str::parse::<usize>) {
        Some(Ok(percent)) if rounds_up => (replicas * percent).div_ceil(100),
        Some(Ok(percent)) => replicas * percent / 100,
        Some(Err(_)) => 0,
        None => text.parse().unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn policy(rollout: Value, replicas: usize) -> Policy {
        Policy::of(&serde_json::from_value(rollout).unwrap(), replicas)
    }

    #[test]
    fn percentages_are_rounded_to_the_safe_side() {
        let policy = policy(json!({"maxSurge": "25%", "maxUnavailable": "25%"}), 6);
        assert_eq!((policy.max_surge, policy.max_unavailable), (Some(2), 1));
    }

    #[test]
    fn weights_are_whole_pods_and_steps_take_the_general_gates() {
        let policy = policy(
            json!({
                "strategy": "Canary", "gates": {"maxErrorRate": 0.5, "window": "9s"},
                "canary": {"steps": [{"weight": 1}, {"weight": 50, "pause": "2m", "gates": {"maxTimeToFirstToken": "3s", "window": "5s"}}]},
            }),
            5,
        );
        assert_eq!((policy.phases[0].pods, policy.phases[1].pods), (1, 3));
        assert_eq!(policy.phases[0].limits.window, Duration::from_secs(9));
        assert_eq!(policy.phases[1].pause, Duration::from_mins(2));
        let limits = &policy.phases[1].limits;
        assert_eq!(
            (limits.error_rate, limits.first_token),
            (Some(0.5), Some(Duration::from_secs(3)))
        );
        assert_eq!(limits.window, Duration::from_secs(5));
    }

    #[test]
    fn gates_without_a_canary_are_shown_by_the_first_new_pod() {
        let gated = policy(json!({"gates": {"maxErrorRate": 0.1}}), 4);
        assert_eq!(gated.phases.len(), 1);
        assert_eq!(gated.phases[0].pods, 1);
        assert!(policy(json!({"gates": {"window": "1s"}}), 4).phases.is_empty());
    }

    #[test]
    fn more_canary_pods_than_replicas_are_all_of_them() {
        let canary = json!({"strategy": "Canary", "canary": {"steps": [{"replicas": 3}]}});
        assert_eq!(policy(canary, 2).phases[0].pods, 2);
    }
}
