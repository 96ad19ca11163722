//! One look at everything that status is made from: the pods read once, counted once. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use escadre_crds::LlmDeployment;
use escadre_crds::condition::{AnyReason, ConditionType, Reason};
use escadre_crds::v1alpha1::LlmDeploymentStatus;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt as _;

use super::super::Outcome;
use super::super::apply::Refusal;
use super::super::build::min_available;
use super::super::diagnose::{Diagnosis, Problem, Progress, diagnose};
use super::super::observe::{ForeignPod, Observed, ObservedPod, Report};
use super::super::plan::{Plan, PodFacts};
use crate::runtime_status::Said;

/// How long after the end of its grace a pod may still be there: the kubelet needs a moment to remove it.
const STUCK_AFTER: SignedDuration = SignedDuration::from_secs(30);

/// One pod, read.
#[derive(Clone, Debug)]
pub(super) struct Judged<'a> {
    pub(super) observed: &'a ObservedPod,
    pub(super) facts: PodFacts,
    pub(super) diagnosis: Diagnosis,
}

impl Judged<'_> {
    pub(super) fn is_alive(&self) -> bool {
        !self.facts.is_terminating && !self.facts.has_ended
    }

    pub(super) fn is_serving(&self) -> bool {
        self.is_alive() && !self.facts.is_altered && self.diagnosis.progress == Progress::Serving
    }

    /// It should have gone long ago: its node is lost, nothing can be served from there.
    fn is_stuck(&self, now: Timestamp) -> bool {
        self.stuck_at().is_some_and(|when| now >= when)
    }

    /// When a terminating pod counts as stuck. The API server sets the deletion timestamp to the end of its grace.
    fn stuck_at(&self) -> Option<Timestamp> {
        let end = self.observed.pod.metadata.deletion_timestamp.as_ref()?;
        end.0.checked_add(STUCK_AFTER).ok()
    }

    /// Its process found the bytes to be those of the digest.
    pub(super) fn is_verified(&self) -> bool {
        let verification = self.said().and_then(|said| said.verification.as_ref());
        verification.and_then(|one| one.result.as_deref()) == Some("Verified")
    }

    pub(super) fn said(&self) -> Option<&Said> {
        match &self.observed.report {
            Report::Said { said, .. } => Some(said),
            Report::NotAsked | Report::Waiting | Report::Unreachable(_) => None,
        }
    }
}

/// Everything that status is made from.
pub(super) struct Scene<'a> {
    pub(super) object: &'a LlmDeployment,
    pub(super) outcome: &'a Outcome,
    pub(super) before: LlmDeploymentStatus,
    /// The revision that the spec asks for; while the spec is refused, the one that it asked for before.
    pub(super) target: Option<String>,
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
        let (target, digest, wanted, is_suspended) = match outcome {
            Outcome::Rejected(_) => {
                let wanted = if object.spec.suspend {
                    0
                } else {
                    object.spec.replicas.max(0)
                };
                (
                    before.target_revision.clone(),
                    before.served_digest.clone(),
                    wanted.unsigned_abs(),
                    object.spec.suspend,
                )
            }
            Outcome::Applied { valid, .. } | Outcome::Failed { valid, .. } => (
                Some(valid.revision.to_string()),
                Some(valid.intent.digest.clone()),
                valid.replicas,
                valid.suspended,
            ),
        };
        let name = object.name_any();
        let no_images = BTreeMap::new();
        let images = match outcome {
            Outcome::Rejected(_) => &no_images,
            Outcome::Applied { valid, .. } | Outcome::Failed { valid, .. } => &valid.images,
        };
        let pods = observed.pods.iter().map(|one| Judged {
            observed: one,
            facts: PodFacts::of(&one.pod, &name, images),
            diagnosis: diagnose(one, digest.as_deref()),
        });
        let is_there = observed.service.as_ref().is_some_and(|found| found.is_ours);
        let was_made = matches!(outcome, Outcome::Applied { children, .. } if children.service.is_some());
        Self {
            object,
            outcome,
            target,
            wanted: usize::try_from(wanted).unwrap_or(usize::MAX),
            is_suspended,
            pods: pods.filter(|pod| !pod.is_stuck(now)).collect(),
            foreign: &observed.foreign,
            has_service: is_there || was_made,
            before,
        }
    }

    /// How long until a terminating pod does not count any more.
    pub(super) fn next_stuck(&self, now: Timestamp) -> Option<Duration> {
        let waits = self.pods.iter().filter_map(Judged::stuck_at);
        waits
            .filter_map(|when| Duration::try_from(when.duration_since(now)).ok())
            .min()
    }

    pub(super) fn name(&self) -> String {
        self.object.name_any()
    }

    /// Living pods of the target revision.
    pub(super) fn mine(&self) -> impl Iterator<Item = &Judged<'a>> {
        self.pods
            .iter()
            .filter(|pod| pod.is_alive() && Some(&pod.facts.revision) == self.target.as_ref())
    }

    /// Pods of other revisions, those on their way out too.
    pub(super) fn others(&self) -> usize {
        self.pods
            .iter()
            .filter(|pod| Some(&pod.facts.revision) != self.target.as_ref())
            .count()
    }

    pub(super) fn alive(&self) -> usize {
        self.pods.iter().filter(|pod| pod.is_alive()).count()
    }

    pub(super) fn serving(&self) -> usize {
        self.mine().filter(|pod| pod.is_serving()).count()
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
            .filter(|pod| !pod.facts.is_terminating && Some(&pod.facts.revision) == self.target.as_ref())
            .filter_map(|pod| pod.diagnosis.problem.as_ref())
    }

    pub(super) fn refused(&self) -> Option<&Refusal> {
        match self.outcome {
            Outcome::Applied { children, .. } => children.stage.refused.as_ref(),
            Outcome::Rejected(_) | Outcome::Failed { .. } => None,
        }
    }

    /// The revision reached its size once: since then, growth and healing do not lower `Ready`.
    pub(super) fn was_reached(&self) -> bool {
        self.target.is_some() && self.before.current_revision == self.target
    }

    /// The revision has its size now, and nothing else is left.
    pub(super) fn is_reached(&self) -> bool {
        self.wanted > 0 && self.serving() >= self.wanted && self.others() == 0
    }

    /// Nothing is on its way.
    pub(super) fn is_settled(&self) -> bool {
        let is_planned = match self.outcome {
            Outcome::Applied { plan, .. } => *plan == Plan::Complete,
            Outcome::Rejected(_) | Outcome::Failed { .. } => false,
        };
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
