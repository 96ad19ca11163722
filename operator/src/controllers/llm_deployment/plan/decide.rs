//! The decision: which pods are made and which go, for every strategy by the same rules.
//!
//! Pods are of three sides: those of the goal, those of the stable revision that the goal replaces, and strays of
//! revisions that were given up. The goal is what the spec asks for, or, after it failed, the stable revision.

mod budget;
mod judge;
mod pods;
mod tell;

use std::collections::BTreeSet;
use std::time::Duration;

use escadre_crds::v1alpha1::{RolloutStatus, Strategy};
use k8s_openapi::jiff::Timestamp;

use super::facts::PodFacts;
use super::policy::{Phase, Policy};
use super::verdict::{Best, Failure};
use super::{Fleet, Plan, State, Step};
use crate::controllers::llm_deployment::observe::Probed;
use crate::kube_ext::orphans::Identity;

/// Decides what to do now for one deployment.
pub fn decide(fleet: &Fleet, now: Timestamp) -> Plan {
    if let Some(record) = fleet.remake.as_ref().filter(|_| !fleet.is_failed) {
        return remake(fleet, record);
    }
    let mut pass = Pass::new(fleet, now);
    pass.remove_at_once();
    pass.open_rollout();
    if let Some(failure) = pass.judge() {
        return pass.fail(failure);
    }
    pass.choose();
    pass.remove_old();
    pass.remove_ended();
    pass.heal_stable();
    pass.remove_surplus();
    pass.create_new();
    pass.finish()
}

/// Throws the target's record away, with its pods, since it never served and its settings were edited.
fn remake(fleet: &Fleet, record: &Identity) -> Plan {
    let mine = fleet
        .pods
        .iter()
        .filter(|pod| pod.revision == fleet.target && !pod.is_terminating);
    Plan {
        step: Step {
            delete: mine.map(|pod| pod.identity.clone()).collect(),
            forget: vec![record.clone()],
            ..Step::default()
        },
        state: State::Remaking,
        rollout: fleet.memory.clone(),
        ..Plan::default()
    }
}

/// How pods are replaced now.
#[derive(Clone, Copy, Debug)]
struct Budget {
    chosen: Strategy,
    /// Pods that there may be.
    ceiling: usize,
    /// Pods that must be ready.
    floor: usize,
    /// Ready pods up to which lost ones of the stable revision are made again.
    healed: usize,
}

#[expect(clippy::struct_excessive_bools, reason = "they are independent of each other")]
struct Pass<'a> {
    fleet: &'a Fleet,
    policy: &'a Policy,
    now: Timestamp,
    wanted: usize,
    goal: &'a str,
    /// The revision that the goal replaces.
    stable: Option<&'a str>,
    /// The goal failed before: this brings the stable revision back.
    is_back: bool,
    /// No revision was ever complete: there is nothing to lose and nothing to go back to.
    is_first: bool,
    /// The target failed, which the stable revision cannot.
    is_failed: bool,
    is_rollout: bool,
    goal_pods: Vec<&'a PodFacts>,
    stable_pods: Vec<&'a PodFacts>,
    stray_pods: Vec<&'a PodFacts>,
    /// Pods that nobody asked for in this form.
    strange_pods: Vec<&'a PodFacts>,
    /// UIDs of those that go in this pass.
    gone: BTreeSet<&'a str>,
    rollout: Option<RolloutStatus>,
    best: Option<Best>,
    phase: Option<Phase>,
    budget: Budget,
    step: Step,
    resting: Option<Duration>,
    wakes: Vec<Duration>,
    blocked: Option<String>,
    why: Option<String>,
    stalled: Option<Failure>,
    watches: bool,
}

impl<'a> Pass<'a> {
    fn new(fleet: &'a Fleet, now: Timestamp) -> Self {
        let stable = fleet.stable.as_deref();
        let is_failed = fleet.is_failed && stable != Some(&fleet.target);
        let is_back = is_failed && fleet.policy.auto_rollback && stable.is_some();
        let goal = stable.filter(|_| is_back).unwrap_or(&fleet.target);
        let stable_but_goal = stable.filter(|stable| *stable != goal);
        let (mut goal_pods, mut stable_pods, mut stray_pods, mut strange_pods) = (vec![], vec![], vec![], vec![]);
        for pod in &fleet.pods {
            let side = if pod.slot.is_none() || pod.is_altered {
                &mut strange_pods
            } else if pod.revision == goal {
                &mut goal_pods
            } else if Some(pod.revision.as_str()) == stable_but_goal {
                &mut stable_pods
            } else {
                &mut stray_pods
            };
            side.push(pod);
        }
        let mut pass = Self {
            fleet,
            policy: &fleet.policy,
            now,
            wanted: fleet.replicas,
            goal,
            stable: stable_but_goal,
            is_back,
            is_first: stable.is_none(),
            is_failed,
            is_rollout: false,
            goal_pods,
            stable_pods,
            stray_pods,
            strange_pods,
            gone: BTreeSet::new(),
            rollout: None,
            best: None,
            phase: None,
            budget: Budget {
                chosen: Strategy::Surge,
                ceiling: fleet.replicas,
                floor: 0,
                healed: 0,
            },
            step: Step {
                forget: fleet.unused.clone(),
                ..Step::default()
            },
            resting: None,
            wakes: vec![],
            blocked: None,
            why: None,
            stalled: None,
            watches: false,
        };
        pass.is_rollout = fleet.replicas > 0 && (stable != Some(goal) || pass.has_others());
        pass
    }

    /// The rollout stands: by the user's word, since the spec cannot be followed, or since the goal failed and nobody
    /// asked for the way back.
    fn is_held(&self) -> bool {
        let is_stopped = self.policy.is_paused || self.fleet.is_frozen || (self.is_failed && !self.is_back);
        is_stopped && self.is_rollout && !self.is_first
    }

    fn alive<'b>(&'b self, side: &'b [&'a PodFacts]) -> impl Iterator<Item = &'a PodFacts> + use<'a, 'b> {
        let alive = side.iter().copied();
        alive.filter(|pod| pod.is_alive() && !self.is_gone(pod))
    }

    fn goal_alive(&self) -> Vec<&'a PodFacts> {
        self.alive(&self.goal_pods).collect()
    }

    fn old_alive(&self) -> Vec<&'a PodFacts> {
        self.alive(&self.stable_pods)
            .chain(self.alive(&self.stray_pods))
            .collect()
    }

    /// Pods of the stable revision and strays, also those on their way out.
    fn old_pods(&self) -> impl Iterator<Item = &'a PodFacts> {
        self.stable_pods.iter().chain(&self.stray_pods).copied()
    }

    /// Pods that are not the goal's.
    fn others(&self) -> impl Iterator<Item = &'a PodFacts> {
        self.old_pods().chain(self.strange_pods.iter().copied())
    }

    fn has_others(&self) -> bool {
        self.others().any(|pod| pod.is_there(self.now))
    }

    fn is_gone(&self, pod: &PodFacts) -> bool {
        self.gone.contains(pod.identity.uid.as_str())
    }

    fn ready(pods: &[&PodFacts]) -> usize {
        pods.iter().filter(|pod| pod.is_ready).count()
    }

    fn remove(&mut self, pod: &'a PodFacts) {
        if !pod.is_terminating && self.gone.insert(&pod.identity.uid) {
            self.step.delete.push(pod.identity.clone());
        }
    }

    /// When a pod counts for what it should do. `None`: not as it is now.
    fn available_at(&self, pod: &PodFacts) -> Option<Timestamp> {
        let is_probed = self.policy.probe.is_none() || !self.is_judged() || pod.probed == Probed::Passed;
        let since = pod.ready_since.filter(|_| pod.is_serving && is_probed)?;
        since.checked_add(self.policy.min_ready).ok()
    }

    fn available(&self) -> usize {
        let alive = self.alive(&self.goal_pods);
        alive
            .filter(|pod| self.available_at(pod).is_some_and(|when| when <= self.now))
            .count()
    }

    /// Whether the goal has to show that it is good, beside one that is known to be.
    fn is_judged(&self) -> bool {
        self.is_rollout && self.stable.is_some() && !self.is_failed && !self.fleet.is_frozen
    }

    /// How many pods of the goal there should be now.
    fn target(&self) -> usize {
        self.phase
            .as_ref()
            .map_or(self.wanted, |phase| phase.pods.min(self.wanted))
    }

    /// The goal has failed. This is written down first; what follows from it is the next pass's.
    fn fail(mut self, failure: Failure) -> Plan {
        let rollout = self.rollout.take();
        Plan {
            state: State::Failed,
            goal: self.goal.to_owned(),
            rollout,
            failure: Some(failure),
            ..Plan::default()
        }
    }
}
