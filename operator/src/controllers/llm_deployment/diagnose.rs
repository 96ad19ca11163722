//! Reads one pod: how far it is, and what is wrong with it. Pure.
//!
//! A failure stays visible while its container is tried again, until the container has come further than it did when
//! it failed: status must not swing between "source unavailable" and "starting" with every attempt.

use escadre_crds::condition::{AnyReason, ConditionType, Reason, VerifyReason, classify_runtime_reason};
use escadre_crds::names;
use escadre_crds::v1alpha1::LastFailure;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod, PodStatus};
use k8s_openapi::jiff::SignedDuration;
use kube::ResourceExt as _;

use super::observe::{ObservedPod, Report};
use crate::runtime_status::{Failure, Said, Stage};
use crate::world::is_ready;

/// How far a pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Progress {
    /// It has no node.
    Unscheduled,
    /// Its containers do not run yet.
    Starting,
    /// It fetches the model.
    Fetching,
    /// It judges the bytes.
    Verifying,
    /// It loads the model.
    Loading,
    /// It serves the wanted digest, by its own word.
    Serving,
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Which condition it makes false.
    pub condition: ConditionType,
    /// Why, for machines.
    pub reason: AnyReason,
    /// Why, for people.
    pub message: String,
}

/// One pod, read.
#[derive(Clone, Debug, PartialEq)]
pub struct Diagnosis {
    /// How far it is.
    pub progress: Progress,
    /// What is wrong.
    pub problem: Option<Problem>,
    /// It cannot have served yet: it does not count against what was reached before.
    pub is_young: bool,
    /// The model's files are in the pod.
    pub is_fetched: bool,
    /// The most recent failure of one of its containers.
    pub last_failure: Option<LastFailure>,
}

/// Reads one pod. `wanted` is the digest that it must serve.
pub fn diagnose(observed: &ObservedPod, wanted: Option<&str>) -> Diagnosis {
    let pod = &observed.pod;
    let empty = PodStatus::default();
    let status = pod.status.as_ref().unwrap_or(&empty);
    let fetch = container(status.init_container_statuses.as_deref(), names::CONTAINER_FETCH);
    let runtime = container(status.container_statuses.as_deref(), names::CONTAINER_RUNTIME);
    let said = observed.said();
    let is_fetched = fetch.is_some_and(has_succeeded);
    let is_serving = is_ready(pod) && said.is_some_and(|said| serves(said, pod, wanted));
    let problem = if is_serving {
        None
    } else {
        whole_pod(pod, status)
            .or_else(|| {
                fetch
                    .filter(|_| !is_fetched)
                    .and_then(|fetch| in_container(pod, fetch, said))
            })
            .or_else(|| runtime.and_then(|runtime| in_container(pod, runtime, None)))
            .or_else(|| said.and_then(|said| reported(pod, said)))
            .or_else(|| unreachable(pod, &observed.report, wanted))
    };
    let has_restarted = runtime.is_some_and(|runtime| runtime.restart_count > 0);
    let says_ready = said.is_some_and(|said| matches!(said.stage, Some(Stage::Ready | Stage::Draining)));
    let was_ready = is_ready(pod) || says_ready || is_lost(status) || lost_readiness(status);
    Diagnosis {
        progress: progress(status, said, is_fetched, is_serving),
        problem,
        is_young: !was_ready && !has_restarted,
        is_fetched,
        last_failure: last_failure(pod, status),
    }
}

/// Whether trying again can never help.
pub fn needs_a_person(reason: AnyReason) -> bool {
    match reason {
        AnyReason::Verify(reason) => !matches!(
            reason,
            VerifyReason::DownloadIncomplete | VerifyReason::CacheFull | VerifyReason::StorageFault
        ),
        AnyReason::Common(reason) => matches!(
            reason,
            Reason::ContextTooLong | Reason::ArchitectureUnsupported | Reason::OutOfMemoryHost | Reason::InvalidSpec
        ),
    }
}

fn container<'a>(statuses: Option<&'a [ContainerStatus]>, name: &str) -> Option<&'a ContainerStatus> {
    statuses?.iter().find(|status| status.name == name)
}

fn has_succeeded(container: &ContainerStatus) -> bool {
    let ended = container.state.as_ref().and_then(|state| state.terminated.as_ref());
    ended.is_some_and(|ended| ended.exit_code == 0)
}

fn serves(said: &Said, pod: &Pod, wanted: Option<&str>) -> bool {
    said.pod_uid.is_some()
        && said.pod_uid == pod.uid()
        && said.served_digest.is_some()
        && said.served_digest.as_deref() == wanted
}

fn progress(status: &PodStatus, said: Option<&Said>, is_fetched: bool, is_serving: bool) -> Progress {
    if is_serving {
        return Progress::Serving;
    }
    if condition(status, "PodScheduled").is_none_or(|(status, ..)| status != "True") {
        return Progress::Unscheduled;
    }
    match said.and_then(|said| said.stage) {
        Some(Stage::Fetching) => Progress::Fetching,
        Some(Stage::Verifying) => Progress::Verifying,
        Some(Stage::Loading | Stage::WarmingUp | Stage::Ready | Stage::Draining) => Progress::Loading,
        Some(Stage::Failed) | None if is_fetched => Progress::Verifying,
        Some(Stage::Failed) | None => Progress::Starting,
    }
}

/// Status, reason and message of a pod's condition.
fn condition<'a>(status: &'a PodStatus, name: &str) -> Option<(&'a str, &'a str, &'a str)> {
    let found = status.conditions.as_deref()?.iter().find(|one| one.type_ == name)?;
    Some((
        found.status.as_str(),
        found.reason.as_deref().unwrap_or_default(),
        found.message.as_deref().unwrap_or_default(),
    ))
}

/// What is wrong with the pod as a whole: it failed, has no place, or its node is gone.
fn whole_pod(pod: &Pod, status: &PodStatus) -> Option<Problem> {
    let name = pod.name_any();
    if status.phase.as_deref() == Some("Failed") {
        let reason = status.reason.as_deref().unwrap_or("Failed");
        let words = status.message.as_deref().unwrap_or("no message");
        return Some(available(
            Reason::PodFailed,
            format!("pod {name} failed ({reason}): {words}; it will be replaced"),
        ));
    }
    if let Some(("False", "Unschedulable", words)) = condition(status, "PodScheduled") {
        return Some(Problem {
            condition: ConditionType::CapacityAvailable,
            reason: Reason::Unschedulable.into(),
            message: format!("pod {name} has no node: {words}"),
        });
    }
    is_lost(status).then(|| {
        let node = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.node_name.as_deref())
            .unwrap_or("its node");
        available(
            Reason::NodeLost,
            format!("pod {name} is on node {node}, which does not answer; see `kubectl describe node {node}`"),
        )
    })
}

/// Whether the pod's node does not answer: the kubelet said that every container is ready and was not heard again,
/// the cluster has marked the pod as not ready in its place.
fn is_lost(status: &PodStatus) -> bool {
    let is = |name: &str, wanted: &str| condition(status, name).is_some_and(|(status, ..)| status == wanted);
    is("Ready", "Unknown") || (is("Ready", "False") && is("ContainersReady", "True"))
}

/// Whether the pod was ready once and is no longer: a pod that never was has been unready since it started.
fn lost_readiness(status: &PodStatus) -> bool {
    /// A kubelet reports the first time within a moment; a model does not load within it.
    const MOMENT: SignedDuration = SignedDuration::from_secs(10);
    let ready = status
        .conditions
        .iter()
        .flatten()
        .find(|one| one.type_ == "Ready" && one.status == "False");
    let changed = ready.and_then(|ready| ready.last_transition_time.as_ref());
    match (changed, status.start_time.as_ref()) {
        (Some(changed), Some(started)) => changed.0.duration_since(started.0) > MOMENT,
        (Some(_) | None, _) => false,
    }
}

fn available(reason: Reason, message: String) -> Problem {
    Problem {
        condition: ConditionType::Available,
        reason: reason.into(),
        message,
    }
}

/// Names under which a kubelet says that a container cannot be made from its image.
const CANNOT_CREATE: [&str; 9] = [
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "ImageInspectError",
    "RegistryUnavailable",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
];

/// What is wrong with one container. `said` is what it says now that it runs again.
fn in_container(pod: &Pod, container: &ContainerStatus, said: Option<&Said>) -> Option<Problem> {
    let name = pod.name_any();
    let waiting = container.state.as_ref().and_then(|state| state.waiting.as_ref());
    if let Some(waiting) = waiting
        && let Some(reason) = waiting
            .reason
            .as_deref()
            .filter(|reason| CANNOT_CREATE.contains(reason))
    {
        let image = if container.image.is_empty() {
            image(pod, &container.name)
        } else {
            container.image.clone()
        };
        let words = waiting.message.as_deref().unwrap_or("no message");
        if words.contains("OOM-killed") {
            // The limit is too small even for the program that starts the container.
            return Some(killed_for_memory(&format!(
                "container {} of pod {name}",
                container.name
            )));
        }
        if reason == "CreateContainerConfigError" && (words.contains("secret") || words.contains("configmap")) {
            return Some(missing(&name, &container.name, words));
        }
        return Some(available(
            Reason::ImagePull,
            format!(
                "container {} of pod {name} cannot be created from image {image}: {reason}: {words}",
                container.name
            ),
        ));
    }
    let ended = failed_end(container)?;
    let problem = ending(pod, container, ended);
    let is_back = problem.condition == ConditionType::ModelResolved
        && said
            .and_then(|said| said.download.as_ref())
            .is_some_and(|download| download.bytes_done.unwrap_or(0) > 0);
    (!is_back).then_some(problem)
}

/// Something that the pod names is not there. The kubelet tries again by itself, so that it heals without an edit.
fn missing(pod: &str, container: &str, words: &str) -> Problem {
    let message = format!(
        "container {container} of pod {pod} waits: {words}; create it in the pod's namespace, and the pod goes on by itself"
    );
    if container == names::CONTAINER_FETCH && words.contains("secret") {
        return Problem {
            condition: ConditionType::ModelResolved,
            reason: Reason::SecretMissing.into(),
            message,
        };
    }
    available(Reason::DependencyMissing, message)
}

fn image(pod: &Pod, container: &str) -> String {
    let spec = pod.spec.as_ref();
    let init = spec
        .and_then(|spec| spec.init_containers.as_ref())
        .into_iter()
        .flatten();
    let all = init.chain(spec.into_iter().flat_map(|spec| &spec.containers));
    all.into_iter()
        .find(|one| one.name == container)
        .and_then(|one| one.image.clone())
        .unwrap_or_default()
}

/// The last time that a container ended with a failure.
fn failed_end(container: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    let now = container.state.as_ref().and_then(|state| state.terminated.as_ref());
    let before = container
        .last_state
        .as_ref()
        .and_then(|state| state.terminated.as_ref());
    now.or(before).filter(|ended| ended.exit_code != 0)
}

/// A container's own last words, when it left them in our form.
fn last_words(ended: &ContainerStateTerminated) -> Option<Failure> {
    let text = ended.message.as_deref()?.trim();
    let line = text
        .lines()
        .rev()
        .find(|line| line.trim_start().starts_with('{'))
        .unwrap_or(text);
    serde_json::from_str(text).or_else(|_| serde_json::from_str(line)).ok()
}

fn ending(pod: &Pod, container: &ContainerStatus, ended: &ContainerStateTerminated) -> Problem {
    let name = pod.name_any();
    let place = format!("container {} of pod {name}", container.name);
    if let Some(failure) = last_words(ended) {
        let (condition, reason) = classify_runtime_reason(&failure.reason);
        let words = if failure.message.is_empty() {
            &failure.reason
        } else {
            &failure.message
        };
        return Problem {
            condition,
            reason,
            message: format!("{place}: {words}"),
        };
    }
    if ended.reason.as_deref() == Some("OOMKilled") || ended.message.iter().any(|words| words.contains("OOM-killed")) {
        return killed_for_memory(&place);
    }
    available(
        Reason::CrashLoop,
        format!(
            "{place} ended with code {} after {} restarts: {}",
            ended.exit_code,
            container.restart_count,
            tail(ended)
        ),
    )
}

fn killed_for_memory(place: &str) -> Problem {
    available(
        Reason::OutOfMemoryHost,
        format!("{place} was killed because it used more memory than its limit; raise spec.resources.memory"),
    )
}

/// The end of what a container left, short enough for a sentence.
fn tail(ended: &ContainerStateTerminated) -> String {
    /// Bytes of the last words that are shown.
    const LIMIT: usize = 400;
    let text = ended.message.as_deref().unwrap_or_default().trim();
    if text.is_empty() {
        return "it left no message, see `kubectl logs --previous`".to_owned();
    }
    let start = text.len().saturating_sub(LIMIT);
    text[text.ceil_char_boundary(start)..].to_owned()
}

/// What a runtime says is wrong with itself.
fn reported(pod: &Pod, said: &Said) -> Option<Problem> {
    let failure = said.failure.as_ref()?;
    let (condition, reason) = classify_runtime_reason(&failure.reason);
    Some(Problem {
        condition,
        reason,
        message: format!("pod {}: {}", pod.name_any(), failure.message),
    })
}

/// A pod that is ready, but not by a word that we could hear.
fn unreachable(pod: &Pod, report: &Report, wanted: Option<&str>) -> Option<Problem> {
    if !is_ready(pod) {
        return None;
    }
    let name = pod.name_any();
    match report {
        Report::Unreachable(why) => Some(available(
            Reason::RuntimeUnreachable,
            format!(
                "pod {name} is ready, but the operator cannot read its status page ({why}); check network policies on port {}",
                names::PORT_ADMIN_NUMBER
            ),
        )),
        Report::Said { said, .. } if said.served_digest.is_some() && said.served_digest.as_deref() != wanted => {
            Some(Problem {
                condition: ConditionType::ModelVerified,
                reason: escadre_crds::condition::VerifyReason::DigestMismatch.into(),
                message: format!(
                    "pod {name} serves {} instead of {}",
                    said.served_digest.as_deref().unwrap_or_default(),
                    wanted.unwrap_or_default()
                ),
            })
        }
        Report::Said { .. } | Report::NotAsked | Report::Waiting => None,
    }
}

/// The most recent failure in the pod, for `status.lastFailure`.
fn last_failure(pod: &Pod, status: &PodStatus) -> Option<LastFailure> {
    let containers = status
        .init_container_statuses
        .iter()
        .chain(&status.container_statuses)
        .flatten();
    let ended = containers
        .filter_map(failed_end)
        .max_by_key(|ended| ended.finished_at.as_ref().map(|time| time.0));
    if let Some(ended) = ended {
        let words = last_words(ended);
        return Some(LastFailure {
            reason: Some(words.as_ref().map_or_else(
                || ended.reason.clone().unwrap_or_else(|| "Error".to_owned()),
                |words| words.reason.clone(),
            )),
            exit_code: Some(ended.exit_code),
            message: Some(
                words
                    .map(|words| words.message)
                    .filter(|text| !text.is_empty())
                    .unwrap_or_else(|| tail(ended)),
            ),
            pod: Some(pod.name_any()),
            time: ended.finished_at.clone(),
        });
    }
    (status.phase.as_deref() == Some("Failed")).then(|| LastFailure {
        reason: Some(status.reason.clone().unwrap_or_else(|| "PodFailed".to_owned())),
        exit_code: None,
        message: status.message.clone(),
        pod: Some(pod.name_any()),
        time: pod.creation_timestamp(),
    })
}
