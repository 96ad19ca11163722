//! `spec.rollout`: how a new revision takes the place of the one that serves, and what it must show before it may.

#![expect(
    unreachable_pub,
    reason = "the derive of the schema makes public copies inside a function"
)]

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Span;
use super::placement::terse;

/// How a new revision replaces the one that serves.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.strategy != 'Surge' || !has(self.maxSurge) || !string(self.maxSurge).matches('^0+%?$') || (has(self.maxUnavailable) && !string(self.maxUnavailable).matches('^0+%?$'))")
        .message("spec.rollout.maxSurge and maxUnavailable must not both be 0 with strategy Surge (an absent maxUnavailable is 0): no pod could ever be replaced; raise one of them, or use strategy InPlace"),
    validation = Rule::new("self.strategy != 'Recreate' || (!has(self.maxSurge) && !has(self.maxUnavailable))")
        .message("spec.rollout.maxSurge and maxUnavailable have no effect with strategy Recreate, which removes every pod first; remove them, or use another strategy"),
    validation = Rule::new("(self.strategy == 'Canary') == has(self.canary)")
        .message("spec.rollout.canary belongs to strategy Canary, and Canary needs it: set spec.rollout.strategy to Canary and give spec.rollout.canary.steps, or remove canary")
)]
pub struct Rollout {
    /// strategy says how pods are replaced. `Auto` makes the new pod first; when no node has room for it for 30 s, one old
    /// pod is drained for it, never the last that is ready. `Surge` makes new pods first and waits for room. `InPlace` drains
    /// an old pod for each new one. `Recreate` removes all old pods first. `Canary` goes by steps. Defaults to `Auto`. Works
    /// live.
    #[serde(default)]
    pub strategy: Strategy,
    /// maxSurge is how many pods there may be beyond `replicas`, a number or a percentage that is rounded up. Absent: 1,
    /// and 0 with `InPlace`. Works live.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxLength" = 16))]
    #[x_kube(validation = Rule::new("string(self).matches('^([0-9]{1,9}|(100|[1-9]?[0-9])%)$')")
        .message("spec.rollout.maxSurge must be a number of pods, 0 or more, or a percentage from '0%' to '100%'"))]
    pub max_surge: Option<IntOrString>,
    /// maxUnavailable is how many of `replicas` may be missing while pods are replaced, a number or a percentage that is
    /// rounded down. Absent: 0; `InPlace`, and an `Auto` that found no room, use at least 1. Works live.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxLength" = 16))]
    #[x_kube(validation = Rule::new("string(self).matches('^([0-9]{1,9}|(100|[1-9]?[0-9])%)$')")
        .message("spec.rollout.maxUnavailable must be a number of pods, 0 or more, or a percentage from '0%' to '100%'"))]
    pub max_unavailable: Option<IntOrString>,
    /// minReadySeconds is how long a new pod must have been ready before an old one goes, 0 to 86400. Defaults to 10.
    /// Works live.
    #[serde(default = "min_ready")]
    #[schemars(range(min = 0, max = 86400))]
    pub min_ready_seconds: i32,
    /// progressDeadline is how long a rollout may stand still, without a byte fetched, a layer loaded or a pod become
    /// ready, before the revision has failed. A long download that moves is never cut. Defaults to `30m`. Works live.
    #[serde(default = "deadline")]
    pub progress_deadline: Span,
    /// canary has the steps of strategy `Canary`. Works live.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<Canary>,
    /// gates are what new pods must show before they replace more of the old ones. Absent: to be ready with the right
    /// digest is enough. Works live.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gates: Option<Gates>,
    /// autoRollback puts the revision that served before back when the new one fails. The spec is not written: status
    /// names the failed revision, and an edit tries anew. `false` stops the rollout where it is. Defaults to true. Works
    /// live.
    #[serde(default = "yes")]
    pub auto_rollback: bool,
    /// paused stops a rollout where it is. Scaling and healing go on. Defaults to false. Works live.
    #[serde(default)]
    pub paused: bool,
    /// revisionHistoryLimit is how many revisions that run no more are kept, 0 to 50, so that editing back needs no new
    /// one. Defaults to 5. Works live.
    #[serde(default = "history")]
    #[schemars(range(min = 0, max = 50))]
    pub revision_history_limit: i32,
}

/// How pods are replaced.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strategy {
    /// The new pod first, if there is room; else in place.
    #[default]
    Auto,
    /// The new pod first.
    Surge,
    /// The old pod goes for the new one.
    InPlace,
    /// All old pods go before the first new one is made.
    Recreate,
    /// By steps.
    Canary,
}

/// The steps of a canary.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Canary {
    /// steps say how many pods of the new revision there are, one after the other; after the last one the rollout
    /// completes. All in `replicas`, or all in `weight`, strictly rising. Required, 1 to 20.
    #[schemars(length(min = 1, max = 20))]
    #[x_kube(
        merge_strategy = ListMerge::Atomic,
        validation = Rule::new("self.all(step, has(step.weight)) || self.all(step, has(step.replicas))")
            .message("spec.rollout.canary.steps must all have replicas or all have weight; use one of them for all steps"),
        validation = Rule::new("self.all(a, !has(a.replicas) || (self.filter(b, has(b.replicas) && b.replicas == a.replicas).size() == 1 && self.filter(b, has(b.replicas) && b.replicas >= a.replicas)[0].replicas == a.replicas))")
            .message("spec.rollout.canary.steps must rise strictly: each step needs more replicas than the one before; after the last step the rollout completes by itself"),
        validation = Rule::new("self.all(a, !has(a.weight) || (self.filter(b, has(b.weight) && b.weight == a.weight).size() == 1 && self.filter(b, has(b.weight) && b.weight >= a.weight)[0].weight == a.weight))")
            .message("spec.rollout.canary.steps must rise strictly: each step needs a higher weight than the one before; after the last step the rollout completes by itself")
    )]
    pub steps: Vec<CanaryStep>,
}

/// One step of a canary.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.replicas) != has(self.weight)")
    .message("spec.rollout.canary.steps[] must have replicas or weight, and not both"))]
pub struct CanaryStep {
    /// replicas is how many pods of the new revision there are in this step, 1 or more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub replicas: Option<i32>,
    /// weight is the share of the pods in per cent, 1 to 100, rounded up to whole pods: the Service balances
    /// connections, so that the share of requests follows the share of pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub weight: Option<i32>,
    /// pause is how long the step lasts once its pods are ready. Defaults to `0s`. `spec.rollout.paused` stops longer.
    #[serde(default)]
    pub pause: Span,
    /// gates of this step, with the fields of `spec.rollout.gates`; what is absent here is taken from there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "terse::<Option<Gates>>")]
    pub gates: Option<Gates>,
}

/// What new pods must show, by the runtime's own numbers.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Gates {
    /// probePrompt is asked of every new pod; another answer fails the revision. Absent: nothing is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe_prompt: Option<ProbePrompt>,
    /// maxErrorRate is the share of requests, from 0 to 1, that new pods may answer with a server error. Absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1))]
    pub max_error_rate: Option<f64>,
    /// maxTimeToFirstToken is what the 90th percentile of the time to the first token may be on each new pod. Absent:
    /// any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_time_to_first_token: Option<Span>,
    /// window is how long requests are watched before error rate and time to first token are judged. Without a request
    /// in it there is no evidence against the revision, and it passes. Defaults to `60s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Span>,
}

/// A question with a known answer.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ProbePrompt {
    /// prompt is what the user says. Required.
    #[schemars(length(min = 1, max = 4096))]
    pub prompt: String,
    /// expectContains must be in the first 64 tokens of the answer, in this spelling. Required.
    #[schemars(length(min = 1, max = 1024))]
    pub expect_contains: String,
}

impl Rollout {
    /// The prompt that new pods are asked: that of the rollout, or the first of a step.
    pub fn probe(&self) -> Option<&ProbePrompt> {
        let general = self.gates.iter();
        let steps = self.canary.iter().flat_map(|canary| &canary.steps);
        let all = general.chain(steps.filter_map(|step| step.gates.as_ref()));
        all.into_iter().find_map(|gates| gates.probe_prompt.as_ref())
    }
}

impl Default for Rollout {
    fn default() -> Self {
        Self {
            strategy: Strategy::default(),
            max_surge: None,
            max_unavailable: None,
            min_ready_seconds: min_ready(),
            progress_deadline: deadline(),
            canary: None,
            gates: None,
            auto_rollback: yes(),
            paused: false,
            revision_history_limit: history(),
        }
    }
}

fn min_ready() -> i32 {
    10
}

fn deadline() -> Span {
    Span::from_text("30m")
}

fn history() -> i32 {
    5
}

fn yes() -> bool {
    true
}
