//! Where the goal is on its way, and whether it is good enough to go on.

use std::time::Duration;

use escadre_crds::condition::Reason;
use escadre_crds::v1alpha1::{RolloutStatus, Strategy};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::Pass;
use super::tell::{clock, pods};
use crate::controllers::llm_deployment::plan::verdict::{self, Best, Failure, Window};

/// How often requests are counted while a gate watches them.
const GATE_PACE: Duration = Duration::from_secs(2);

impl Pass<'_> {
    /// Remembers what this rollout knew, or begins one.
    pub(super) fn open_rollout(&mut self) {
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
    pub(super) fn phases(&self) -> usize {
        self.stable.map_or(0, |_| self.policy.phases.len())
    }

    /// Moves through the phases. Returns why the goal failed, when it did.
    pub(super) fn judge(&mut self) -> Option<Failure> {
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

    pub(super) fn certain_failure(&self) -> Option<Failure> {
        let limits = self.phase.as_ref().map(|phase| &phase.limits);
        let limits = limits.or_else(|| self.policy.phases.last().map(|phase| &phase.limits));
        verdict::certain(self.policy, limits, &self.goal_alive())
    }

    pub(super) fn judge_phases(&mut self, rollout: &mut RolloutStatus) -> Option<Failure> {
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

    /// Whether the goal stood still for too long. Time counts only while its pods are what is waited for.
    pub(super) fn deadline(&mut self) -> Option<Failure> {
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
}
