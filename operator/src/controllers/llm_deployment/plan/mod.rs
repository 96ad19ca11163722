//! What to write now, as a value. Pure: the same world always gives the same plan, and a plan that was carried out
//! twice does no harm.
//!
//! Invariants, checked in the simulation:
//! - a pod is created only in a slot that no pod holds, terminating ones included: a name is never used twice;
//! - there are never more living pods than the wanted ones and `maxSurge`, but for those that were there before;
//! - nothing that is taken away brings the pods that are ready below the wanted ones less `maxUnavailable`;
//! - no pod of a failed revision is made again; the stable revision goes last, and comes back when the new one fails;
//! - a pod that is already terminating is never deleted again;
//! - labels by which the Service and people find a pod are put right, a pod whose image was edited is replaced;
//! - a pod that has just failed rests before it is replaced, so that a pod that fails at once makes no storm;
//! - every rollout ends, or says what it waits for; when the world stands still, so does the plan.
//!
//! What a rollout must remember from pass to pass is in `status.rollout`, so that any operator can go on with it.

mod decide;
pub mod facts;
pub mod policy;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
pub mod verdict;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use escadre_crds::names;
use escadre_crds::v1alpha1::RolloutStatus;
use k8s_openapi::jiff::Timestamp;

pub use decide::decide;
pub use facts::PodFacts;
use policy::Policy;
pub use verdict::{Best, Failure};

use super::observe::Observed;
use super::revision::unused;
use super::validate::Valid;
use crate::kube_ext::orphans::Identity;

/// What to do now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Writes to make.
    pub step: Step,
    /// Where things stand.
    pub state: State,
    /// The revision that there should be pods of: what the spec asks for, or the stable one after that failed.
    pub goal: String,
    /// What the rollout remembers. `None`: there is none.
    pub rollout: Option<RolloutStatus>,
    /// Why the target has just failed.
    pub failure: Option<Failure>,
    /// The target has its size, has shown what it must, and nothing else is left.
    pub completes: bool,
    /// When something that time alone changes may happen.
    pub wake: Option<Duration>,
    /// How far the goal has come, to be compared in the next pass.
    pub best: Option<Best>,
    /// Pods to ask the probe prompt.
    pub probe: Vec<Identity>,
    /// UIDs of pods whose requests are watched closely.
    pub watch: Vec<String>,
}

/// Where things stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Nothing is to be written.
    #[default]
    Idle,
    /// Pods are made or removed.
    Working,
    /// A failed pod rests before it is replaced.
    Resting(Duration),
    /// The record of a revision that never served is made anew.
    Remaking,
    /// A new revision replaces another.
    RollingOut(String),
    /// It cannot go on, for a reason that may go away.
    Blocked(String),
    /// Somebody paused it.
    Paused(String),
    /// The first revision makes no progress, and there is none to go back to.
    Stalled(Failure),
    /// The target has just failed.
    Failed,
    /// The target failed, and nobody wants the way back.
    Halted,
    /// The target failed, and the stable revision serves in its place, or comes back.
    RolledBack(String),
}

/// Writes of one pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Slots to fill, by revision.
    pub create: Vec<(String, u32)>,
    /// Pods to delete.
    pub delete: Vec<Identity>,
    /// Pods whose labels were edited, and the labels that they must have.
    pub relabel: Vec<(Identity, BTreeMap<String, String>)>,
    /// Whether the target revision must be recorded first.
    pub record: bool,
    /// Records of revisions to delete, last of all.
    pub forget: Vec<Identity>,
}

impl Step {
    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What a decision is made from.
#[derive(Clone, Debug)]
pub struct Fleet {
    /// The revision that the spec asks for.
    pub target: String,
    /// The revision that was complete last, when its record is there.
    pub stable: Option<String>,
    /// The target failed, and the spec was not edited since.
    pub is_failed: bool,
    /// The spec cannot be followed: pods are healed, nothing else is done.
    pub is_frozen: bool,
    /// How many pods.
    pub replicas: usize,
    /// How they are replaced.
    pub policy: Policy,
    /// Whether the target is recorded.
    pub is_recorded: bool,
    /// Slots that pods of other owners hold by their names.
    pub held: BTreeSet<(String, u32)>,
    /// The target's record, to throw away with its pods, since it never served and its settings were edited.
    pub remake: Option<Identity>,
    /// Records that nothing needs any more.
    pub unused: Vec<Identity>,
    /// What the rollout remembers.
    pub memory: Option<RolloutStatus>,
    /// Which revision had come how far.
    pub best: Option<(String, Best)>,
    /// Why the API server refused a pod, in its words.
    pub refusal: Option<String>,
    /// The pods.
    pub pods: Vec<PodFacts>,
}

impl Plan {
    /// Throws a record away: the next pass makes it anew.
    #[must_use]
    pub fn remake(self, record: Identity) -> Self {
        Self {
            step: Step {
                forget: vec![record],
                ..Step::default()
            },
            state: State::Remaking,
            completes: false,
            ..self
        }
    }
}

/// What to do now for one object. `best` is which revision had come how far in the pass before.
pub fn next(valid: &Valid, observed: &Observed, best: Option<(String, Best)>, now: Timestamp) -> Plan {
    let target = valid.revision.as_str();
    let stored = valid.recorded.get(target);
    let pods = valid.pods(observed);
    let has_served = valid.before.current_revision.as_deref() == Some(target)
        || pods.iter().any(|pod| pod.revision == target && pod.was_ready);
    let is_edited = stored.is_some_and(|stored| stored.settings.as_ref() != Some(&valid.settings.fingerprint()));
    // A wrong mirror must be repairable.
    let remake = stored.filter(|_| !has_served && is_edited && !valid.is_frozen);
    let replicas = usize::try_from(valid.replicas).unwrap_or(usize::MAX);
    let foreign = observed.foreign.iter();
    let stable = valid.before.current_revision.clone();
    let mut fleet = Fleet {
        target: target.to_owned(),
        stable: stable.filter(|stable| valid.recorded.contains_key(stable)),
        is_failed: valid.before.failed_revision.as_deref() == Some(target) && remake.is_none(),
        is_frozen: valid.is_frozen,
        replicas,
        policy: Policy::of(&valid.rollout, replicas),
        is_recorded: stored.is_some(),
        held: foreign
            .filter_map(|pod| names::parse_pod_name(&valid.name, &pod.name))
            .map(|(revision, slot)| (revision.to_owned(), slot))
            .collect(),
        remake: remake.map(|stored| stored.identity.clone()),
        unused: vec![],
        memory: valid.before.rollout.clone(),
        best,
        refusal: valid.refusal(),
        pods,
    };
    fleet.unused = unused(&valid.recorded, &valid.before, &kept(&fleet), fleet.policy.history);
    decide(&fleet, now)
}

/// The revisions whose records are needed.
fn kept(fleet: &Fleet) -> BTreeSet<&str> {
    let of_pods = fleet.pods.iter().map(|pod| pod.revision.as_str());
    of_pods
        .chain([fleet.target.as_str()])
        .chain(fleet.stable.as_deref())
        .collect()
}
