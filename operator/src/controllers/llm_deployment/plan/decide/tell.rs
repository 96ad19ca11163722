//! What a decision tells: the plan, what the next pass remembers, and sentences for people.

use std::time::Duration;

use escadre_crds::v1alpha1::Strategy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::Pass;
use crate::controllers::llm_deployment::observe::Probed;
use crate::controllers::llm_deployment::plan::{Plan, PodFacts, State};
use crate::kube_ext::orphans::Identity;

/// `lastProgress` is written when it has moved by this part of the deadline.
const PROGRESS_PARTS: u32 = 20;
/// And not more often than this.
const PROGRESS_LEAST: Duration = Duration::from_secs(5);

impl Pass<'_> {
    /// Says why a new pod finds no place, when nothing is on its way that would give it one.
    pub(super) fn find_block(&mut self, ready: usize) {
        let Some(pod) = self
            .homeless()
            .filter(|pod| self.is_rollout && !self.is_first && self.is_out_of_patience(pod))
        else {
            return;
        };
        let old = self.old_alive();
        let is_leaving =
            !self.step.delete.is_empty() || self.old_pods().any(|old| old.is_terminating && old.is_there(self.now));
        if is_leaving {
            self.why = Some(format!("{}; an old pod makes room for it", words(pod)));
            return;
        }
        let obstacle = if old.is_empty() {
            "it waits for a node"
        } else if self.policy.strategy == Strategy::Surge {
            "strategy Surge stops no pod for it: add a node, or use strategy Auto or InPlace"
        } else if !self.would_make_room(pod) {
            "no old pod holds the devices that it asks for, so that stopping one would not help; see spec.resources"
        } else if ready > self.budget.floor {
            "old pods that must stay hold the places; see spec.rollout"
        } else if old.len() < self.wanted {
            "the place that an old pod left for it was taken by another pod, or is too small, and no further one may be missing; add a node, make room, or raise maxUnavailable"
        } else {
            "stopping the last pod that is ready would leave none, so that nothing is stopped: add a node, or use strategy InPlace or Recreate"
        };
        self.blocked = Some(format!("{}; {obstacle}", words(pod)));
    }

    pub(super) fn finish(mut self) -> Plan {
        let known = self.goal_pods.iter().chain(&self.stable_pods);
        let edited = known.filter(|pod| !pod.missing_labels.is_empty() && !pod.is_terminating);
        let edited = edited.filter(|pod| !self.is_gone(pod));
        self.step.relabel = edited
            .map(|pod| (pod.identity.clone(), pod.missing_labels.clone()))
            .collect();
        let alive = self.goal_alive();
        for pod in &alive {
            let later = self.available_at(pod).filter(|when| *when > self.now);
            let wait = later.and_then(|when| Duration::try_from(when.duration_since(self.now)).ok());
            self.wakes
                .extend(wait.filter(|_| self.is_rollout && (!self.is_first || self.has_others())));
        }
        let lost = self
            .others()
            .filter_map(|pod| pod.lost_at)
            .filter(|when| *when > self.now);
        let lost: Vec<Duration> = lost
            .filter_map(|when| Duration::try_from(when.duration_since(self.now)).ok())
            .collect();
        self.wakes.extend(lost);
        let serving = alive.iter().filter(|pod| pod.is_serving).count();
        let completes = self.wanted > 0
            && serving >= self.wanted
            && self.phase.is_none()
            && !self.has_others()
            && self.goal == self.fleet.target
            && !self.is_failed
            && !self.fleet.is_frozen;
        let probe = self.policy.probe.is_some() && self.is_judged();
        let probe: Vec<Identity> = alive
            .iter()
            .filter(|pod| probe && pod.is_serving && !matches!(pod.probed, Probed::Passed | Probed::Asking))
            .map(|pod| pod.identity.clone())
            .collect();
        let state = if completes { State::Idle } else { self.state(serving) };
        self.remember(serving);
        Plan {
            goal: self.goal.to_owned(),
            state,
            rollout: self.rollout.filter(|_| !completes),
            failure: None,
            completes,
            wake: self.wakes.into_iter().chain(self.resting).min(),
            best: self.best,
            probe,
            watch: if self.watches {
                alive.iter().map(|pod| pod.identity.uid.clone()).collect()
            } else {
                vec![]
            },
            step: self.step,
        }
    }

    /// Where the rollout stands, for people.
    pub(super) fn state(&mut self, serving: usize) -> State {
        let goal = self.goal;
        let old = self.old_alive().len();
        let share = format!(
            "{serving} of {} pods serve, {old} of older revisions are left",
            self.wanted
        );
        if self.is_back {
            return State::RolledBack(share);
        }
        if self.is_failed {
            return State::Halted;
        }
        if self.is_rollout && !self.is_first && !self.fleet.is_frozen && self.policy.is_paused {
            return State::Paused(format!(
                "the rollout of revision {goal} is paused: {share}; set spec.rollout.paused to false to go on"
            ));
        }
        if let Some(stalled) = self.stalled.take() {
            return State::Stalled(stalled);
        }
        if let Some(blocked) = self.blocked.clone() {
            return State::Blocked(blocked);
        }
        if self.is_rollout && (!self.is_first || old > 0 || self.has_others()) {
            let detail = self.why.as_ref().map_or_else(String::new, |why| format!("; {why}"));
            return State::RollingOut(format!("revision {goal} replaces the older one: {share}{detail}"));
        }
        match (self.step.is_empty(), self.resting) {
            (true, Some(rest)) => State::Resting(rest),
            (true, None) => State::Idle,
            (false, _) => State::Working,
        }
    }

    /// Fills in what status tells and the next pass remembers.
    pub(super) fn remember(&mut self, serving: usize) {
        let Some(mut rollout) = self.rollout.take() else { return };
        let old = self.old_alive();
        let ready_old = Self::ready(&old);
        rollout.updated_percent = (serving * 100)
            .checked_div(serving + ready_old)
            .and_then(|percent| i32::try_from(percent).ok());
        let leaving = self.old_pods().filter(|pod| {
            let goes = pod.is_terminating || self.is_gone(pod);
            goes && pod.is_there(self.now) && pod.was_ready
        });
        rollout.draining = leaving.map(|pod| pod.identity.name.clone()).collect();
        rollout.strategy_chosen = (!self.is_first).then_some(self.budget.chosen);
        rollout.why = self.reason_chosen();
        let least = (self.policy.deadline / PROGRESS_PARTS).max(PROGRESS_LEAST);
        if let Some(best) = self.best {
            let before = rollout.last_progress.as_ref().map(|time| time.0);
            let moved = before.map(|before| Duration::try_from(best.at.duration_since(before)).unwrap_or_default());
            if moved.is_none_or(|moved| moved >= least) {
                rollout.last_progress = Some(Time(best.at));
            }
        }
        self.rollout = Some(rollout);
    }

    /// Why pods are replaced as they are.
    pub(super) fn reason_chosen(&self) -> Option<String> {
        if self.is_first {
            return None;
        }
        let how = match (self.policy.strategy, self.budget.chosen) {
            (Strategy::Auto | Strategy::Canary, Strategy::InPlace) if self.policy.max_surge == Some(0) => {
                "maxSurge is 0: an old pod goes for each new one"
            }
            (Strategy::Auto | Strategy::Canary, Strategy::InPlace) => {
                "no node had room for a new pod within 30 s: an old pod goes for each new one"
            }
            (Strategy::Auto | Strategy::Canary, _) => "there is room: new pods come first",
            (Strategy::Surge | Strategy::InPlace | Strategy::Recreate, _) => "the spec asks for it",
        };
        let is_whole = self.policy.strategy == Strategy::Canary && self.wanted == 1;
        let canary = if is_whole {
            "; with one replica every step of the canary is the whole"
        } else {
            ""
        };
        Some(format!("{how}{canary}"))
    }
}

pub(super) fn words(pod: &PodFacts) -> String {
    pod.fault.as_ref().map_or_else(
        || format!("pod {} has no node", pod.identity.name),
        |fault| fault.message.clone(),
    )
}

pub(super) fn pods(count: usize) -> String {
    if count == 1 {
        "1 pod".to_owned()
    } else {
        format!("{count} pods")
    }
}

/// A time of day that a sentence can name, so that it does not change while it is waited for.
pub(super) fn clock(start: Timestamp, length: Duration) -> String {
    start
        .checked_add(length)
        .map_or_else(|_| "later".to_owned(), |end| format!("{end:.0}"))
}
