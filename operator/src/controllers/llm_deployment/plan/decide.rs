//! The decision: which pods are made and which go, for every strategy by the same rules.
//!
//! Pods are of three sides: those of the goal, those of the stable revision that the goal replaces, and strays of
//! revisions that were given up. The goal is what the spec asks for, or, after it failed, the stable revision.

use std::collections::BTreeSet;
use std::time::Duration;

use escadre_crds::condition::Reason;
use escadre_crds::v1alpha1::{RolloutStatus, Strategy};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::facts::PodFacts;
use super::policy::{Phase, Policy};
use super::verdict::{self, Best, Failure, Window};
use super::{Fleet, Plan, State, Step};
use crate::controllers::llm_deployment::observe::Probed;
use crate::kube_ext::orphans::Identity;

/// How many pods one pass creates. More follow in the next pass, which sees how these were taken.
const CREATE_LIMIT: usize = 32;
/// How long a new pod may look for a node before an old one makes room for it.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often requests are counted while a gate watches them.
const GATE_PACE: Duration = Duration::from_secs(2);
/// `lastProgress` is written when it has moved by this part of the deadline.
const PROGRESS_PARTS: u32 = 20;
/// And not more often than this.
const PROGRESS_LEAST: Duration = Duration::from_secs(5);

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

    /// What nobody waits for: pods that serve what nobody asked for, and those of given up revisions that serve nothing.
    fn remove_at_once(&mut self) {
        for pod in self.strange_pods.clone() {
            self.remove(pod);
        }
        for pod in self.stray_pods.clone() {
            if pod.has_ended || !pod.was_ready || pod.is_crashing {
                self.remove(pod);
            }
        }
    }

    /// Remembers what this rollout knew, or begins one.
    fn open_rollout(&mut self) {
        if !self.is_rollout {
            return;
        }
        let known = self.fleet.memory.as_ref().filter(|known| known.revision == self.goal);
        let mut rollout = known.cloned().unwrap_or_else(|| RolloutStatus {
            revision: self.goal.to_owned(),
            from: self
                .stable
                .filter(|_| self.alive(&self.stable_pods).next().is_some())
                .map(str::to_owned),
            started_at: Some(Time(self.now)),
            ..RolloutStatus::default()
        });
        let phases = self.phases();
        rollout.step = (phases > 0).then(|| rollout.step.unwrap_or(1));
        let known_at = rollout.last_progress.as_ref().or(rollout.started_at.as_ref());
        let known_at = known_at.map_or(self.now, |time| time.0);
        let before = self.fleet.best.as_ref().filter(|(of, _)| of == self.goal);
        let before = before.map(|(_, best)| *best);
        self.best = Some(Best::of(before, known_at, &self.goal_alive(), self.now));
        self.rollout = Some(rollout);
    }

    /// How many phases there are before the last one, in which all pods are replaced.
    fn phases(&self) -> usize {
        self.stable.map_or(0, |_| self.policy.phases.len())
    }

    /// Moves through the phases. Returns why the goal failed, when it did.
    fn judge(&mut self) -> Option<Failure> {
        let mut rollout = self.rollout.take()?;
        let failure = self.judge_phases(&mut rollout);
        self.rollout = Some(rollout);
        if failure.is_some() {
            return failure;
        }
        if self.is_judged()
            && let Some(failure) = self.certain_failure()
        {
            return Some(failure);
        }
        let exceeded = self.deadline()?;
        if self.is_judged() {
            return Some(exceeded);
        }
        // There is nothing to go back to: it is told, and goes on.
        self.stalled = Some(exceeded).filter(|_| self.is_first);
        None
    }

    fn certain_failure(&self) -> Option<Failure> {
        let limits = self.phase.as_ref().map(|phase| &phase.limits);
        let limits = limits.or_else(|| self.policy.phases.last().map(|phase| &phase.limits));
        verdict::certain(self.policy, limits, &self.goal_alive())
    }

    fn judge_phases(&mut self, rollout: &mut RolloutStatus) -> Option<Failure> {
        loop {
            let index = rollout
                .step
                .and_then(|step| usize::try_from(step).ok())?
                .checked_sub(1)?;
            let phases = &self.policy.phases[..self.phases()];
            self.phase = phases.get(index).cloned();
            let phase = self.phase.clone()?;
            if self.available() < phase.pods.min(self.wanted) || self.is_held() {
                return None;
            }
            let ready_at = rollout.step_ready_at.get_or_insert(Time(self.now)).0;
            let elapsed = Duration::try_from(self.now.duration_since(ready_at)).unwrap_or_default();
            if !rollout.gates_passed {
                match verdict::window(&phase.limits, &self.goal_alive(), elapsed) {
                    Window::Open(left) => {
                        self.watches = true;
                        self.wakes.push(left.min(GATE_PACE));
                        self.why = Some(format!(
                            "requests to {} are watched until {}",
                            pods(phase.pods),
                            clock(ready_at, phase.limits.window)
                        ));
                        return None;
                    }
                    Window::Failed(failure) => return Some(failure),
                    Window::Passed(words) => {
                        rollout.gates_passed = true;
                        self.why = Some(words).filter(|words| !words.is_empty());
                    }
                }
            }
            if let Some(left) = phase.pause.checked_sub(elapsed).filter(|left| !left.is_zero()) {
                self.wakes.push(left);
                self.why = Some(format!("the step lasts until {}", clock(ready_at, phase.pause)));
                return None;
            }
            rollout.step = rollout.step.map(|step| step + 1);
            rollout.step_ready_at = None;
            rollout.gates_passed = false;
        }
    }

    /// How many pods of the goal there should be now.
    fn target(&self) -> usize {
        self.phase
            .as_ref()
            .map_or(self.wanted, |phase| phase.pods.min(self.wanted))
    }

    /// Whether the goal stood still for too long. Time counts only while its pods are what is waited for.
    fn deadline(&mut self) -> Option<Failure> {
        let waits_for_others = self.policy.strategy == Strategy::Recreate && self.has_others();
        let is_waited_for = self.available() < self.target() && !waits_for_others && !self.is_held();
        let alive = self.goal_alive();
        let serve_soon = alive.iter().filter(|pod| pod.is_serving).count() >= self.target();
        let now = self.now;
        let best = self.best.as_mut()?;
        if !is_waited_for || serve_soon && self.policy.probe.is_none() {
            best.at = now;
            return None;
        }
        let still = Duration::try_from(now.duration_since(best.at)).unwrap_or_default();
        let left = self.policy.deadline.checked_sub(still).filter(|left| !left.is_zero());
        if let Some(left) = left {
            self.wakes.push(left);
            return None;
        }
        let obstacle = verdict::obstacle(&alive, self.fleet.refusal.as_deref());
        Some(Failure {
            reason: Reason::ProgressDeadlineExceeded.to_string(),
            message: format!(
                "no progress for {} s: {}",
                self.policy.deadline.as_secs(),
                obstacle.unwrap_or_else(|| "no pod was made".to_owned())
            ),
        })
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

    /// Chooses how pods are replaced.
    fn choose(&mut self) {
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
        self.budget = Budget {
            chosen,
            ceiling: wanted + surge,
            floor,
        };
        if let Some(pod) = homeless.filter(|pod| !self.is_out_of_patience(pod)) {
            self.wakes.push(PATIENCE.saturating_sub(self.sought(pod)));
        }
    }

    /// The pod of the goal that has looked for a node for longest.
    fn homeless(&self) -> Option<&'a PodFacts> {
        let alive = self.alive(&self.goal_pods).filter(|pod| pod.homeless_since.is_some());
        alive.min_by_key(|pod| pod.homeless_since)
    }

    /// For how long a pod has looked for a node.
    fn sought(&self, pod: &PodFacts) -> Duration {
        let sought = pod.homeless_since.map(|since| self.now.duration_since(since));
        sought
            .and_then(|sought| Duration::try_from(sought).ok())
            .unwrap_or_default()
    }

    fn is_out_of_patience(&self, pod: &PodFacts) -> bool {
        self.sought(pod) >= PATIENCE
    }

    /// Whether an old pod has every device that this one looks for.
    fn would_make_room(&self, pod: &PodFacts) -> bool {
        let old = self.old_alive();
        old.iter().any(|old| {
            pod.devices
                .iter()
                .all(|(name, amount)| old.devices.get(name) == Some(amount))
        })
    }

    /// Old pods that must stay as long as the goal has not shown what it can.
    fn kept(&self) -> usize {
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

    /// Old pods that are not needed any longer: those that do not serve first, then strays, then the oldest.
    fn remove_old(&mut self) {
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

    /// Says why a new pod finds no place, when nothing is on its way that would give it one.
    fn find_block(&mut self, ready: usize) {
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
        } else if self.alive(&self.goal_pods).count() + old.len() <= self.wanted {
            "the place that an old pod left for it was taken by another pod, or is too small; add a node, or make room"
        } else {
            "stopping the last pod that is ready would leave none, so that nothing is stopped: add a node, or use strategy InPlace or Recreate"
        };
        self.blocked = Some(format!("{}; {obstacle}", words(pod)));
    }

    /// Pods that ended as a whole rest for a moment, so that pods that fail at once make no storm, and go then.
    fn remove_ended(&mut self) {
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

    fn resting(&self, side: &[&PodFacts]) -> usize {
        let ended = side.iter().filter(|pod| pod.has_ended && !pod.is_terminating);
        ended.filter(|pod| !self.is_gone(pod)).count()
    }

    /// Stable pods that got lost are made again, as long as the goal does not serve in their place.
    fn heal_stable(&mut self) {
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
            self.budget.floor.saturating_sub(others).max(self.kept())
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
    fn remove_surplus(&mut self) {
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
        alive.sort_by_key(|pod| {
            (
                pod.is_ready,
                std::cmp::Reverse(pod.created),
                std::cmp::Reverse(pod.slot),
            )
        });
        for pod in alive.into_iter().take(surplus) {
            if pod.is_ready && self.is_rollout {
                let Some(left) = spare.checked_sub(1) else { break };
                spare = left;
            }
            self.remove(pod);
        }
    }

    fn create_new(&mut self) {
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

    fn create(&mut self, revision: &str, count: usize) {
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

    fn finish(mut self) -> Plan {
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
    fn state(&mut self, serving: usize) -> State {
        let goal = self.goal;
        let old = self.old_alive().len();
        let share = format!(
            "{serving} of {} serve, {old} of older revisions are left",
            pods(self.wanted)
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
    fn remember(&mut self, serving: usize) {
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
    fn reason_chosen(&self) -> Option<String> {
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

fn words(pod: &PodFacts) -> String {
    pod.fault.as_ref().map_or_else(
        || format!("pod {} has no node", pod.identity.name),
        |fault| fault.message.clone(),
    )
}

fn pods(count: usize) -> String {
    if count == 1 {
        "1 pod".to_owned()
    } else {
        format!("{count} pods")
    }
}

/// A time of day that a sentence can name, so that it does not change while it is waited for.
fn clock(start: Timestamp, length: Duration) -> String {
    start
        .checked_add(length)
        .map_or_else(|_| "later".to_owned(), |end| format!("{end:.0}"))
}
