//! What a plan needs to know of one pod, read from the pod and from what its process says.

use std::collections::BTreeMap;
use std::time::Duration;

use escadre_crds::condition::Reason;
use escadre_crds::names;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt as _;

use super::super::diagnose::{Diagnosis, Progress, needs_a_person};
use super::super::observe::{ObservedPod, Probed, Report};
use super::super::revision::Recorded;
use crate::kube_ext::orphans::Identity;
use crate::runtime_status::{Said, Traffic};
use crate::world::is_ready;

/// How long a failed pod stands before it is replaced.
const REST: Duration = Duration::from_secs(10);
/// How long after the end of its grace a pod may still be there: the kubelet needs a moment to remove it.
const LOST_AFTER: SignedDuration = SignedDuration::from_secs(30);

/// What a plan needs to know of a pod.
#[derive(Clone, Debug, Default, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "they are independent of each other")]
pub struct PodFacts {
    /// Which pod.
    pub identity: Identity,
    /// Its revision.
    pub revision: String,
    /// Its slot. `None`: its name is none of ours, so it holds no slot.
    pub slot: Option<u32>,
    /// Labels of ours that it lacks.
    pub missing_labels: BTreeMap<String, String>,
    /// Somebody gave it another image: it serves what nobody asked for.
    pub is_altered: bool,
    /// It is on its way out.
    pub is_terminating: bool,
    /// When nobody waits any longer for it to go.
    pub lost_at: Option<Timestamp>,
    /// It failed or completed as a whole, and will not run again.
    pub has_ended: bool,
    /// Its readiness probe succeeds.
    pub is_ready: bool,
    /// It is or was ready.
    pub was_ready: bool,
    /// It is ready and serves the digest of its revision, by its own word.
    pub is_serving: bool,
    /// Since when it is ready.
    pub ready_since: Option<Timestamp>,
    /// Since when the scheduler finds no node for it.
    pub homeless_since: Option<Timestamp>,
    /// A container of it ends again and again, and waits now.
    pub is_crashing: bool,
    /// How far it is.
    pub milestone: Milestone,
    /// What is wrong with it.
    pub fault: Option<Fault>,
    /// Devices that it holds, by resource name.
    pub devices: BTreeMap<String, String>,
    /// What it did for its clients.
    pub traffic: Option<Traffic>,
    /// It does not answer just now: what it said may be out of date.
    pub is_stale: bool,
    /// What became of the probe prompt.
    pub probed: Probed,
    /// When it was made.
    pub created: Timestamp,
}

/// How far a pod is: what comes later is greater.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Milestone {
    /// Place of its stage.
    pub stage: u8,
    /// Bytes fetched or loaded in it.
    pub bytes: u64,
}

/// What is wrong with a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// For machines.
    pub reason: String,
    /// For people.
    pub message: String,
    /// Trying again cannot help.
    pub is_final: bool,
}

impl PodFacts {
    /// Reads the facts of a pod of `deployment`. `recorded` has what is known of each revision. Revision and slot come
    /// from the name, which nobody can edit.
    pub fn of(
        observed: &ObservedPod,
        deployment: &str,
        recorded: &BTreeMap<String, Recorded>,
        diagnosis: &Diagnosis,
    ) -> Self {
        let pod = &observed.pod;
        let name = pod.name_any();
        let place = names::parse_pod_name(deployment, &name);
        let revision = place.map(|(revision, _)| revision).unwrap_or_default();
        let labels = place.map(|(revision, slot)| names::pod_labels(deployment, revision, slot));
        let image = recorded.get(revision).and_then(|one| one.image.as_deref());
        let deletion = pod.metadata.deletion_timestamp.as_ref();
        Self {
            slot: place.map(|(_, slot)| slot),
            missing_labels: labels
                .into_iter()
                .flatten()
                .filter(|(key, value)| pod.labels().get(key) != Some(value))
                .collect(),
            is_altered: image.is_some_and(|image| has_other_image(pod, image)),
            revision: revision.to_owned(),
            is_terminating: deletion.is_some(),
            // The API server sets the deletion timestamp to the end of the grace.
            lost_at: deletion.and_then(|end| end.0.checked_add(LOST_AFTER).ok()),
            has_ended: has_ended(pod),
            is_ready: is_ready(pod),
            was_ready: !diagnosis.is_young,
            is_serving: diagnosis.progress == Progress::Serving,
            ready_since: since(pod, "Ready", "True"),
            homeless_since: since(pod, "PodScheduled", "False"),
            is_crashing: is_crashing(pod),
            milestone: milestone(diagnosis, observed.said()),
            fault: fault(pod, diagnosis),
            devices: devices(pod),
            traffic: observed.traffic,
            is_stale: matches!(observed.report, Report::Said { stale: true, .. }),
            probed: observed.probed.clone(),
            created: pod.creation_timestamp().map_or(Timestamp::UNIX_EPOCH, |time| time.0),
            identity: Identity {
                uid: pod.uid().unwrap_or_default(),
                name,
            },
        }
    }

    /// Whether it stays and may run.
    pub fn is_alive(&self) -> bool {
        !self.is_terminating && !self.has_ended
    }

    /// Whether it is still there as far as anybody should wait for it.
    pub fn is_there(&self, now: Timestamp) -> bool {
        !self.is_terminating || self.lost_at.is_none_or(|when| now < when)
    }

    /// How long a failed pod still rests. `None`: long enough.
    pub fn rest(&self, now: Timestamp) -> Option<Duration> {
        let age = Duration::try_from(now.duration_since(self.created)).unwrap_or_default();
        REST.checked_sub(age).filter(|left| !left.is_zero())
    }
}

fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Failed" | "Succeeded"))
}

/// Whether a container of ours has another image than the revision's: of a pod's spec only images can be edited so that
/// it runs something else.
fn has_other_image(pod: &Pod, image: &str) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let ours = [names::CONTAINER_FETCH, names::CONTAINER_RUNTIME];
    let mut containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    containers.any(|one| ours.contains(&one.name.as_str()) && one.image.as_deref() != Some(image))
}

/// Since when a condition of the pod is so.
fn since(pod: &Pod, type_: &str, status: &str) -> Option<Timestamp> {
    let mut conditions = pod.status.as_ref()?.conditions.as_ref()?.iter();
    let found = conditions.find(|one| one.type_ == type_ && one.status == status)?;
    let time = found.last_transition_time.as_ref().map(|time| time.0);
    time.or_else(|| pod.creation_timestamp().map(|time| time.0))
}

fn statuses(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    pod.status.iter().flat_map(|status| {
        let init = status.init_container_statuses.iter();
        init.chain(&status.container_statuses).flatten()
    })
}

fn is_crashing(pod: &Pod) -> bool {
    statuses(pod).any(|one| {
        let waiting = one.state.as_ref().and_then(|state| state.waiting.as_ref());
        waiting.and_then(|waiting| waiting.reason.as_deref()) == Some("CrashLoopBackOff")
    })
}

fn milestone(diagnosis: &Diagnosis, said: Option<&Said>) -> Milestone {
    let bytes = match diagnosis.progress {
        Progress::Fetching => said
            .and_then(|said| said.download.as_ref()?.bytes_done)
            .and_then(|bytes| u64::try_from(bytes).ok()),
        Progress::Verifying | Progress::Loading => said.and_then(|said| said.load.as_ref()?.bytes_done),
        Progress::Unscheduled | Progress::Starting | Progress::Serving => None,
    };
    Milestone {
        stage: diagnosis.progress as u8,
        bytes: bytes.unwrap_or(0),
    }
}

/// How often a container may end before its revision is given up: by then the kubelet has waited for more than a minute.
const CRASHES: i32 = 3;

fn fault(pod: &Pod, diagnosis: &Diagnosis) -> Option<Fault> {
    let problem = diagnosis.problem.as_ref()?;
    let restarts = statuses(pod).map(|one| one.restart_count).max().unwrap_or(0);
    let has_crashed = problem.reason == Reason::CrashLoop.into() && restarts >= CRASHES;
    Some(Fault {
        reason: problem.reason.as_str().to_owned(),
        message: problem.message.clone(),
        is_final: needs_a_person(problem.reason) || has_crashed,
    })
}

/// What the pod asks of a node beside processor and memory, which only a whole device can give.
fn devices(pod: &Pod) -> BTreeMap<String, String> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let limits = containers
        .filter_map(|one| one.resources.as_ref()?.limits.as_ref())
        .flatten();
    limits.map(|(name, amount)| (name.clone(), amount.0.clone())).collect()
}
