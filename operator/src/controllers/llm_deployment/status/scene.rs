//! One look at everything that status is made from: the pods read once, counted once. Pure.

use std::collections::BTreeMap;

use escadre_crds::LlmDeployment;
use escadre_crds::condition::{AnyReason, ConditionType, Reason};
use escadre_crds::v1alpha1::{LlmDeploymentStatus, RevisionStatus};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;

use super::super::Outcome;
use super::super::apply::Refusal;
use super::super::build::min_available;
use super::super::diagnose::{Diagnosis, Problem, Progress, diagnose};
use super::super::observe::{ForeignPod, Observed, ObservedPod};
use super::super::plan::{Plan, PodFacts, State};
use crate::runtime_status::Said;

/// One pod, read.
#[derive(Clone, Debug)]
pub(super) struct Judged<'a> {
    pub(super) observed: &'a ObservedPod,
    pub(super) facts: PodFacts,
    pub(super) diagnosis: Diagnosis,
}

impl Judged<'_> {
    pub(super) fn is_serving(&self) -> bool {
        self.facts.is_alive() && !self.facts.is_altered && self.facts.is_serving
    }

    /// Its process found the bytes to be those of the digest.
    pub(super) fn is_verified(&self) -> bool {
        let verification = self.said().and_then(|said| said.verification.as_ref());
        verification.and_then(|one| one.result.as_deref()) == Some("Verified")
    }

    pub(super) fn said(&self) -> Option<&Said> {
        self.observed.said()
    }
}

/// Everything that status is made from.
pub(super) struct Scene<'a> {
    pub(super) object: &'a LlmDeployment,
    pub(super) outcome: &'a Outcome,
    pub(super) before: LlmDeploymentStatus,
    /// The revision that the spec asks for; while the spec is refused, the one that it asked for before.
    pub(super) target: Option<String>,
    /// The revision that there should be pods of: the target, or after that failed the one that served before.
    pub(super) goal: Option<String>,
    /// How many pods there should be.
    pub(super) wanted: usize,
    pub(super) is_suspended: bool,
    /// Pods that count: not those that hang on lost nodes.
    pub(super) pods: Vec<Judged<'a>>,
    pub(super) foreign: &'a [ForeignPod],
    pub(super) has_service: bool,
}

impl<'a> Scene<'a> {
    pub(super) fn new(object: &'a LlmDeployment, observed: &'a Observed, outcome: &'a Outcome, now: Timestamp) -> Self {
        let before = object.status.clone().unwrap_or_default();
        let name = object.name_any();
        let (target, goal) = match &outcome.work {
            Some(work) => (Some(work.valid.revision.to_string()), Some(work.plan.goal.clone())),
            None => (before.target_revision.clone(), before.target_revision.clone()),
        };
        let nothing = BTreeMap::new();
        let pods = observed.pods.iter().map(|one| {
            let (recorded, diagnosis) = match &outcome.work {
                Some(work) => (&work.valid.recorded, work.valid.diagnose(one)),
                None => (&nothing, diagnose(one, before.served_digest.as_deref())),
            };
            Judged {
                observed: one,
                facts: PodFacts::of(one, &name, recorded, &diagnosis),
                diagnosis,
            }
        });
        let is_there = observed.service.as_ref().is_some_and(|found| found.is_ours);
        let applied = outcome.work.as_ref().and_then(|work| work.applied.as_ref().ok());
        let wanted = if object.spec.suspend {
            0
        } else {
            object.spec.replicas.max(0)
        };
        Self {
            object,
            outcome,
            target,
            goal,
            wanted: usize::try_from(wanted).unwrap_or(usize::MAX),
            is_suspended: object.spec.suspend,
            pods: pods.filter(|pod| pod.facts.is_there(now)).collect(),
            foreign: &observed.foreign,
            has_service: is_there || applied.is_some_and(|children| children.service.is_some()),
            before,
        }
    }

    pub(super) fn plan(&self) -> Option<&'a Plan> {
        self.outcome.work.as_ref().map(|work| &work.plan)
    }

    /// Where it does not keep to policies that only want to be told.
    pub(super) fn alerts(&self) -> &'a [String] {
        self.outcome.work.as_ref().map_or(&[], |work| &work.valid.alerts)
    }

    pub(super) fn name(&self) -> String {
        self.object.name_any()
    }

    /// Living pods of one revision.
    pub(super) fn of<'b>(&'b self, revision: Option<&'b str>) -> impl Iterator<Item = &'b Judged<'a>> {
        let alive = self.pods.iter().filter(|pod| pod.facts.is_alive());
        alive.filter(move |pod| Some(pod.facts.revision.as_str()) == revision)
    }

    /// Living pods of the goal.
    pub(super) fn mine(&self) -> impl Iterator<Item = &Judged<'a>> {
        self.of(self.goal.as_deref())
    }

    /// Pods of other revisions, those on their way out too.
    pub(super) fn others(&self) -> usize {
        self.pods
            .iter()
            .filter(|pod| Some(&pod.facts.revision) != self.goal.as_ref())
            .count()
    }

    pub(super) fn alive(&self) -> usize {
        self.pods.iter().filter(|pod| pod.facts.is_alive()).count()
    }

    /// Pods of the goal that serve.
    pub(super) fn serving(&self) -> usize {
        self.mine().filter(|pod| pod.is_serving()).count()
    }

    /// Pods that serve the digest of their revision, whichever that is.
    pub(super) fn available(&self) -> usize {
        self.pods.iter().filter(|pod| pod.is_serving()).count()
    }

    /// The digest of the goal.
    pub(super) fn digest(&self) -> &str {
        let valid = self.outcome.work.as_ref().map(|work| &work.valid);
        let recorded = valid
            .zip(self.goal.as_ref())
            .and_then(|(valid, goal)| valid.recorded.get(goal));
        let recorded = recorded.and_then(|recorded| recorded.digest.as_deref());
        recorded.unwrap_or(&self.object.spec.model.verification.digest)
    }

    /// The failed revision and why, when the target failed.
    pub(super) fn failure(&self) -> Option<(&str, String)> {
        let target = self.target.as_deref()?;
        if let Some(failure) = self.plan().and_then(|plan| plan.failure.as_ref()) {
            return Some((target, format!("{}: {}", failure.reason, failure.message)));
        }
        let is_failed = matches!(
            self.plan().map(|plan| &plan.state),
            Some(State::RolledBack(_) | State::Halted)
        );
        let known = self.before.revisions.iter().find(|one| one.name == target);
        let words = |one: &RevisionStatus| {
            let reason = one.reason.as_deref().unwrap_or("Failed");
            format!("{reason}: {}", one.message.as_deref().unwrap_or_default())
        };
        is_failed.then(|| (target, known.map(words).unwrap_or_default()))
    }

    /// How many pods must serve for `Available`: what evictions must leave, or one.
    pub(super) fn least_available(&self) -> usize {
        let size = u32::try_from(self.wanted).unwrap_or(u32::MAX);
        let least = min_available(&self.object.spec.disruption, size).unwrap_or(1);
        usize::try_from(least)
            .unwrap_or(usize::MAX)
            .clamp(1, self.wanted.max(1))
    }

    /// The first problem that makes a condition false, in the order of the pods.
    pub(super) fn problem(&self, condition: ConditionType) -> Option<&Problem> {
        self.problems().find(|problem| problem.condition == condition)
    }

    /// Problems of pods that count: living ones, and those that failed as a whole and are not replaced yet.
    pub(super) fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.pods
            .iter()
            .filter(|pod| !pod.facts.is_terminating && Some(&pod.facts.revision) == self.goal.as_ref())
            .filter_map(|pod| pod.diagnosis.problem.as_ref())
    }

    pub(super) fn refused(&self) -> Option<&Refusal> {
        let children = self.outcome.work.as_ref()?.applied.as_ref().ok()?;
        children.stage.refused.as_ref()
    }

    /// The revision reached its size once: since then, growth and healing do not lower `Ready`.
    pub(super) fn was_reached(&self) -> bool {
        self.target.is_some() && self.before.current_revision == self.target
    }

    /// The target has its size now, has shown what it must, and nothing else is left.
    pub(super) fn is_reached(&self) -> bool {
        self.plan().is_some_and(|plan| plan.completes)
    }

    /// Nothing is on its way.
    pub(super) fn is_settled(&self) -> bool {
        let work = self.outcome.work.as_ref().filter(|_| self.outcome.rejected.is_none());
        let is_planned = work.is_some_and(|work| work.plan.step.is_empty() && work.applied.is_ok());
        is_planned && self.serving() == self.wanted && self.alive() == self.wanted && self.others() == 0
    }

    /// What the pod that is furthest, of those that do not serve, is doing.
    pub(super) fn activity(&self) -> (Reason, String) {
        let name = self.name();
        let furthest = self
            .mine()
            .filter(|pod| !pod.is_serving())
            .max_by_key(|pod| pod.diagnosis.progress);
        let Some(pod) = furthest else {
            return (Reason::Starting, format!("pods of {name} are being made"));
        };
        let pod_name = &pod.facts.identity.name;
        match pod.diagnosis.progress {
            Progress::Unscheduled | Progress::Starting => (Reason::Starting, format!("pod {pod_name} is starting")),
            Progress::Fetching => (Reason::Downloading, downloading(pod)),
            Progress::Verifying => (Reason::Verifying, format!("pod {pod_name} is verifying the model")),
            Progress::Loading | Progress::Serving => (Reason::Loading, format!("pod {pod_name} is loading the model")),
        }
    }

    /// The pods that serve no longer though they did, which is what lowers `Ready` after it was reached.
    pub(super) fn has_lost(&self) -> bool {
        self.mine().any(|pod| !pod.is_serving() && !pod.diagnosis.is_young)
    }
}

/// How far a download is, in whole per cents, so that the sentence changes a hundred times at most.
pub(super) fn downloading(pod: &Judged<'_>) -> String {
    let name = &pod.facts.identity.name;
    let download = pod.said().and_then(|said| said.download.as_ref());
    let done = download.and_then(|download| download.bytes_done).unwrap_or(0);
    match download
        .and_then(|download| download.bytes_total)
        .filter(|total| *total > 0)
    {
        Some(total) => {
            let percent = i128::from(done) * 100 / i128::from(total);
            format!("pod {name} has fetched {percent} % of {} MiB", total / (1024 * 1024))
        }
        None => format!("pod {name} is fetching the model"),
    }
}

/// A sentence about a condition that is not judged, because nothing could judge it yet.
pub(super) fn pending(what: &str) -> (AnyReason, String) {
    (Reason::Pending.into(), format!("no pod has {what} yet"))
}
