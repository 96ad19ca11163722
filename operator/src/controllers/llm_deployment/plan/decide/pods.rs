//! Which pods go, and which are made.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use escadre_crds::v1alpha1::Strategy;

use super::Pass;
use crate::controllers::llm_deployment::plan::PodFacts;

/// How many pods one pass creates. More follow in the next pass, which sees how these were taken.
const CREATE_LIMIT: usize = 32;

impl Pass<'_> {
    /// What nobody waits for: pods that serve what nobody asked for, and those of given up revisions that serve nothing.
    pub(super) fn remove_at_once(&mut self) {
        for pod in self.strange_pods.clone() {
            self.remove(pod);
        }
        for pod in self.stray_pods.clone() {
            if pod.has_ended || !pod.was_ready || pod.is_crashing {
                self.remove(pod);
            }
        }
    }

    /// Old pods that are not needed any longer: those that do not serve first, then strays, then the oldest.
    pub(super) fn remove_old(&mut self) {
        let mut old = self.old_alive();
        let alive = self.goal_alive();
        let total = old.len() + alive.len();
        let available = self.available();
        let ready_old = Self::ready(&old);
        let unproven = alive.len() - available;
        let mut unready = total.saturating_sub(self.budget.floor + unproven);
        let mut ready = (available + ready_old).saturating_sub(self.budget.floor);
        let mut most = old.len().saturating_sub(self.kept());
        if self.is_held() {
            // What is new and serves nothing goes first, below.
            let idle = alive.iter().filter(|pod| !pod.is_ready).count();
            most = total.saturating_sub(self.budget.ceiling + idle);
            unready = most;
        }
        old.sort_by_key(|pod| {
            (
                pod.is_ready,
                Some(pod.revision.as_str()) == self.stable,
                pod.created,
                pod.slot,
            )
        });
        for pod in old {
            let left = if pod.is_ready { &mut ready } else { &mut unready };
            if *left == 0 || most == 0 {
                continue;
            }
            *left -= 1;
            most -= 1;
            self.remove(pod);
        }
        self.find_block(available + ready_old);
    }

    /// Pods that ended as a whole rest for a moment, so that pods that fail at once make no storm, and go then.
    pub(super) fn remove_ended(&mut self) {
        let sides = self.goal_pods.iter().chain(&self.stable_pods).copied();
        let ended: Vec<&PodFacts> = sides.filter(|pod| pod.has_ended && !pod.is_terminating).collect();
        for pod in ended {
            let is_needed = self.goal_alive().len() + self.old_alive().len() < self.wanted;
            match pod.rest(self.now).filter(|_| is_needed) {
                Some(rest) => self.resting = Some(self.resting.map_or(rest, |other| other.min(rest))),
                None => self.remove(pod),
            }
        }
    }

    pub(super) fn resting(&self, side: &[&PodFacts]) -> usize {
        let ended = side.iter().filter(|pod| pod.has_ended && !pod.is_terminating);
        ended.filter(|pod| !self.is_gone(pod)).count()
    }

    /// Stable pods that got lost are made again, as long as the goal does not serve in their place.
    pub(super) fn heal_stable(&mut self) {
        let from = self.rollout.as_ref().and_then(|rollout| rollout.from.as_deref());
        let Some(stable) = self.stable.filter(|stable| from == Some(*stable)) else {
            return;
        };
        let alive: Vec<&PodFacts> = self.alive(&self.stable_pods).collect();
        let is_unsound = !alive.is_empty() && alive.iter().all(|pod| pod.is_crashing);
        if self.budget.chosen == Strategy::Recreate || is_unsound {
            return;
        }
        let strays: Vec<&PodFacts> = self.alive(&self.stray_pods).collect();
        let others = Self::ready(&self.goal_alive()) + Self::ready(&strays);
        let needed = if self.is_held() {
            self.wanted.saturating_sub(others)
        } else {
            self.budget.healed.saturating_sub(others).max(self.kept())
        };
        let room = self
            .budget
            .ceiling
            .saturating_sub(self.goal_alive().len() + self.old_alive().len());
        let missing = needed
            .saturating_sub(alive.len() + self.resting(&self.stable_pods))
            .min(room);
        self.create(stable, missing);
    }

    /// Pods of the goal that are too many: those that are not ready first, then the newest, then the highest slot.
    pub(super) fn remove_surplus(&mut self) {
        let mut alive = self.goal_alive();
        let old = self.old_alive();
        let most = if self.is_held() {
            self.budget.ceiling.saturating_sub(old.len())
        } else {
            self.target()
        };
        let surplus = alive.len().saturating_sub(most);
        let ready = Self::ready(&alive) + Self::ready(&old);
        let mut spare = ready.saturating_sub(self.budget.floor);
        alive.sort_by_key(|pod| (pod.is_ready, Reverse(pod.created), Reverse(pod.slot)));
        for pod in alive.into_iter().take(surplus) {
            if pod.is_ready && self.is_rollout {
                let Some(left) = spare.checked_sub(1) else { break };
                spare = left;
            }
            self.remove(pod);
        }
    }

    pub(super) fn create_new(&mut self) {
        let waits = self.budget.chosen == Strategy::Recreate && self.has_others();
        if self.is_held() || waits {
            return;
        }
        let alive = self.goal_alive().len();
        let total = alive + self.old_alive().len() + self.step.create.len();
        let room = self.budget.ceiling.saturating_sub(total);
        let missing = self.target().saturating_sub(alive + self.resting(&self.goal_pods));
        self.create(self.goal, missing.min(room));
        self.step.record = !self.fleet.is_recorded
            && self
                .step
                .create
                .iter()
                .any(|(revision, _)| *revision == self.fleet.target);
    }

    pub(super) fn create(&mut self, revision: &str, count: usize) {
        let named = self.fleet.pods.iter().filter(|pod| pod.revision == revision);
        let mut held: BTreeSet<u32> = named.filter_map(|pod| pod.slot).collect();
        held.extend(
            self.fleet
                .held
                .iter()
                .filter(|(of, _)| of == revision)
                .map(|(_, slot)| slot),
        );
        let limit = CREATE_LIMIT.saturating_sub(self.step.create.len());
        let free = (0..).filter(|slot| !held.contains(slot)).take(count.min(limit));
        self.step.create.extend(free.map(|slot| (revision.to_owned(), slot)));
    }
}
