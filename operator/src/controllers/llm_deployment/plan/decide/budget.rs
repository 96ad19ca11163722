//! How many pods there may be and how many must be ready: what a strategy comes to, by trial.

use std::time::Duration;

use escadre_crds::v1alpha1::Strategy;

use super::{Budget, Pass};
use crate::controllers::llm_deployment::plan::PodFacts;

/// How long a new pod may look for a node before an old one makes room for it.
const PATIENCE: Duration = Duration::from_secs(30);

impl<'a> Pass<'a> {
    /// Chooses how pods are replaced.
    pub(super) fn choose(&mut self) {
        let (wanted, policy) = (self.wanted, self.policy);
        let surge = policy.max_surge.unwrap_or(1);
        let unavailable = policy.max_unavailable;
        let nothing = surge == 0 && unavailable == 0;
        let is_in_place = self.rollout.as_ref().and_then(|rollout| rollout.strategy_chosen) == Some(Strategy::InPlace);
        let homeless = self.homeless();
        let (chosen, surge, unavailable, least) = match policy.strategy {
            Strategy::Recreate => (Strategy::Recreate, 0, wanted, 0),
            Strategy::InPlace => (Strategy::InPlace, policy.max_surge.unwrap_or(0), unavailable.max(1), 0),
            Strategy::Surge => (Strategy::Surge, surge, unavailable.max(usize::from(nothing)), 0),
            Strategy::Auto | Strategy::Canary if nothing => (Strategy::InPlace, 0, 1, 1),
            Strategy::Auto | Strategy::Canary
                if is_in_place || homeless.is_some_and(|pod| self.is_out_of_patience(pod)) =>
            {
                let makes_room = homeless.is_some_and(|pod| self.would_make_room(pod));
                (Strategy::InPlace, surge, unavailable.max(usize::from(makes_room)), 1)
            }
            Strategy::Auto | Strategy::Canary => (Strategy::Surge, surge, unavailable, 1),
        };
        let (unavailable, least) = if self.is_back {
            (unavailable.max(1), surge.min(1))
        } else {
            (unavailable, least)
        };
        let mut floor = wanted.saturating_sub(unavailable).max(least.min(wanted));
        let is_leaving = self
            .stray_pods
            .iter()
            .any(|pod| pod.is_terminating && pod.is_there(self.now));
        if self.is_back && !is_leaving && homeless.is_some_and(|pod| self.is_out_of_patience(pod)) {
            // What failed holds the place that the stable revision needs.
            let ready = Self::ready(&self.old_alive());
            floor = floor.min((self.available() + ready).saturating_sub(1));
        }
        // The one that went in its place is not missing, also while the new one has its node and loads.
        let in_place = wanted.saturating_sub(usize::from(chosen == Strategy::InPlace));
        self.budget = Budget {
            chosen,
            ceiling: wanted + surge,
            floor,
            healed: floor.min(in_place.max(least.min(wanted))),
        };
        if let Some(pod) = homeless.filter(|pod| !self.is_out_of_patience(pod)) {
            self.wakes.push(PATIENCE.saturating_sub(self.sought(pod)));
        }
    }

    /// The pod of the goal that has looked for a node for longest.
    pub(super) fn homeless(&self) -> Option<&'a PodFacts> {
        let alive = self.alive(&self.goal_pods).filter(|pod| pod.homeless_since.is_some());
        alive.min_by_key(|pod| pod.homeless_since)
    }

    /// For how long a pod has looked for a node.
    pub(super) fn sought(&self, pod: &PodFacts) -> Duration {
        let sought = pod.homeless_since.map(|since| self.now.duration_since(since));
        sought
            .and_then(|sought| Duration::try_from(sought).ok())
            .unwrap_or_default()
    }

    pub(super) fn is_out_of_patience(&self, pod: &PodFacts) -> bool {
        self.sought(pod) >= PATIENCE
    }

    /// Whether an old pod has every device that this one looks for.
    pub(super) fn would_make_room(&self, pod: &PodFacts) -> bool {
        let old = self.old_alive();
        old.iter().any(|old| {
            pod.devices
                .iter()
                .all(|(name, amount)| old.devices.get(name) == Some(amount))
        })
    }

    /// Old pods that must stay as long as the goal has not shown what it can.
    pub(super) fn kept(&self) -> usize {
        let Some(phase) = &self.phase else { return 0 };
        if self.budget.chosen == Strategy::Recreate {
            return 0;
        }
        let surges = self.budget.chosen == Strategy::Surge && self.budget.ceiling > self.wanted;
        let rest = self.wanted - phase.pods.min(self.wanted);
        match self.policy.strategy {
            // The share of a step is what was asked for, but one stays to go back to.
            Strategy::Canary => rest.max(usize::from(surges)),
            _ if surges => self.wanted,
            _ => rest,
        }
    }
}
