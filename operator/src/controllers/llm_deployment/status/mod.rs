//! Status: what happened and what was seen, as conditions and counters; then one patch, and events for what changed.
//!
//! `judge` is pure. The patch carries the `resourceVersion` that was read, and is left out when nothing but
//! timestamps would change, so that a world that stands still causes no writes.

mod conditions;
mod revisions;
mod scene;
#[cfg(test)]
mod tests;

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};
use std::time::Duration;

use escadre_crds::condition::{self, ConditionType, Reason};
use escadre_crds::v1alpha1::{Display, DownloadStatus, LastFailure, LlmDeploymentStatus, Timings, VerificationStatus};
use escadre_crds::{LlmDeployment, names};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::{Api, Resource as _, ResourceExt as _};
use serde_json::json;

use super::observe::Observed;
use super::{Outcome, Work};
use crate::context::Context;
use crate::controllers::llm_deployment::events;
use crate::kube_ext::apply::{CallError, apply_status};
use crate::runtime_status::Said;
use conditions::findings;
use scene::{Judged, Scene};

/// After the API server refused a pod: a quota changes without an event that we see.
const BLOCKED: Duration = Duration::from_secs(10);
/// Everything else wakes us by a watch or by an answer of a pod: only a safety net.
const IDLE: Duration = Duration::from_mins(10);

/// Status could not be written.
#[derive(Debug, thiserror::Error)]
#[error("could not write the status of {object}")]
pub struct Error {
    /// Whose.
    pub object: String,
    /// Why not.
    #[source]
    pub source: CallError,
}

impl Error {
    /// Whether the object was changed since it was read.
    pub fn is_conflict(&self) -> bool {
        self.source.status().is_some_and(kube::core::Status::is_conflict)
    }
}

/// What status should be, and when to look again.
#[derive(Clone, Debug, PartialEq)]
pub struct Judgement {
    /// The status.
    pub status: LlmDeploymentStatus,
    /// When to look again. `None`: when something changes.
    pub next_look: Option<Duration>,
}

/// Judges what happened and what was seen.
pub fn judge(object: &LlmDeployment, observed: &Observed, outcome: &Outcome, now: Timestamp) -> Judgement {
    let scene = Scene::new(object, observed, outcome, now);
    let mut conditions = scene.before.conditions.clone();
    for finding in findings(&scene) {
        condition::set(&mut conditions, finding, object.metadata.generation, now);
    }
    let served = most_served(&scene);
    let served_digest = served
        .and_then(|pod| pod.said())
        .and_then(|said| said.served_digest.clone());
    let available = count(scene.available());
    let is_same_target = scene.before.target_revision == scene.target;
    let status = LlmDeploymentStatus {
        observed_generation: object.metadata.generation,
        conditions,
        replicas: count(scene.alive()),
        ready_replicas: available,
        updated_replicas: count(scene.of(scene.target.as_deref()).count()),
        verified_replicas: count(scene.mine().filter(|pod| pod.is_verified()).count()),
        available_replicas: available,
        selector: Some(names::selector(&scene.name())),
        display: Some(Display {
            ready: Some(format!("{available}/{}", scene.wanted)),
            digest: served_digest
                .as_deref()
                .and_then(|digest| digest.get(7..19))
                .map(str::to_owned),
        }),
        served_revision: served.map(|pod| pod.facts.revision.clone()),
        served_digest,
        current_revision: if scene.is_reached() {
            scene.target.clone()
        } else {
            scene.before.current_revision.clone()
        },
        target_revision: scene.target.clone(),
        failed_revision: scene.failure().map(|(failed, _)| failed.to_owned()),
        rollout: match scene.plan() {
            Some(plan) => plan.rollout.clone(),
            None => scene.before.rollout.clone(),
        },
        revisions: revisions::of(&scene),
        endpoint: scene.has_service.then(|| endpoint(object)),
        model: from_pods(&scene, |said| said.model.clone())
            .or_else(|| scene.before.model.clone().filter(|_| is_same_target)),
        verification: verification(&scene, is_same_target),
        download: download(&scene),
        timings: timings(&scene).or_else(|| scene.before.timings.clone().filter(|_| is_same_target)),
        performance: from_pods(&scene, |said| said.performance.clone())
            .or_else(|| scene.before.performance.clone().filter(|_| is_same_target)),
        last_failure: last_failure(&scene),
    };
    Judgement {
        next_look: next_look(&scene, object),
        status,
    }
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// The address of the API.
fn endpoint(object: &LlmDeployment) -> String {
    let port = u16::try_from(object.spec.service.port).unwrap_or(80);
    let access = object.spec.access.as_ref();
    let is_encrypted = access.is_some_and(|access| access.tls.is_some());
    let namespace = object.namespace().unwrap_or_default();
    names::endpoint(&object.name_any(), &namespace, port, is_encrypted)
}

/// A pod of the revision that most pods serve; of two that are even, the one that served before.
fn most_served<'a, 'b>(scene: &'b Scene<'a>) -> Option<&'b Judged<'a>> {
    let serving = || scene.pods.iter().filter(|pod| pod.is_serving());
    let of = |revision: &str| serving().filter(|pod| pod.facts.revision == revision).count();
    let was = scene.before.served_revision.as_deref();
    serving().max_by_key(|pod| {
        let revision = pod.facts.revision.as_str();
        (of(revision), Some(revision) == was)
    })
}

/// What the pods say: those of the goal that serve, then others that serve, then the rest of the goal's.
fn from_pods<T>(scene: &Scene<'_>, pick: impl Fn(&Said) -> Option<T>) -> Option<T> {
    let serving = scene.mine().filter(|pod| pod.is_serving());
    let older = scene.pods.iter().filter(|pod| pod.is_serving());
    let others = scene.mine().filter(|pod| !pod.is_serving());
    let all = serving.chain(older).chain(others);
    all.filter_map(|pod| pod.said()).find_map(pick)
}

fn verification(scene: &Scene<'_>, is_same_target: bool) -> Option<VerificationStatus> {
    let said = from_pods(scene, |said| said.verification.clone());
    if scene.problem(ConditionType::ModelVerified).is_some() {
        // The process that refused has ended; what it said last, if anything, is the better source.
        let refused = said.filter(|said| said.result.as_deref() == Some("Refused"));
        return Some(refused.unwrap_or_else(|| VerificationStatus {
            result: Some("Refused".to_owned()),
            method: Some("Digest".to_owned()),
            ..VerificationStatus::default()
        }));
    }
    said.or_else(|| scene.before.verification.clone().filter(|_| is_same_target))
}

/// Progress of the pod that has fetched least. An older value stays until a whole per cent more has arrived.
fn download(scene: &Scene<'_>) -> Option<DownloadStatus> {
    let slowest = scene
        .mine()
        .filter(|pod| !pod.diagnosis.is_fetched)
        .filter_map(|pod| pod.said().and_then(|said| said.download.clone()))
        .min_by_key(|download| download.bytes_done);
    let now = slowest?;
    let before = scene.before.download.as_ref();
    let is_same = before.is_some_and(|before| before.bytes_total == now.bytes_total && share(before) == share(&now));
    if is_same { before.cloned() } else { Some(now) }
}

/// Whole per cents; without a total, steps of 64 MiB.
fn share(download: &DownloadStatus) -> i128 {
    let done = i128::from(download.bytes_done.unwrap_or(0));
    match download.bytes_total {
        Some(total) if total > 0 => done * 100 / i128::from(total),
        Some(_) | None => done / (64 * 1024 * 1024),
    }
}

/// The steps of the pod that became ready last.
fn timings(scene: &Scene<'_>) -> Option<Timings> {
    let serving = scene.mine().filter(|pod| pod.is_serving());
    serving
        .filter_map(|pod| timings_of(&pod.observed.pod, pod.said()))
        .max_by_key(|(when, _)| *when)
        .map(|(_, timings)| timings)
}

/// When a pod became ready, and its steps.
fn timings_of(pod: &Pod, said: Option<&Said>) -> Option<(Timestamp, Timings)> {
    let status = pod.status.as_ref()?;
    let created = pod.creation_timestamp()?.0;
    let since = |name: &str| {
        let conditions = status.conditions.iter().flatten();
        let found = conditions
            .into_iter()
            .find(|one| one.type_ == name && one.status == "True");
        found
            .and_then(|one| one.last_transition_time.as_ref())
            .map(|time| time.0)
    };
    let seconds = |from: Timestamp, to: Timestamp| to.duration_since(from).as_secs_f64().max(0.0);
    let ready = since("Ready")?;
    let fetch = status
        .init_container_statuses
        .iter()
        .flatten()
        .find(|one| one.name == names::CONTAINER_FETCH);
    let fetched = fetch.and_then(|fetch| fetch.state.as_ref()?.terminated.as_ref());
    let runtime = status
        .container_statuses
        .iter()
        .flatten()
        .find(|one| one.name == names::CONTAINER_RUNTIME);
    let started = runtime.and_then(|runtime| runtime.state.as_ref()?.running.as_ref()?.started_at.as_ref());
    let timings = Timings {
        scheduled: since("PodScheduled").map(|scheduled| seconds(created, scheduled)),
        fetched: fetched
            .and_then(|fetched| Some(seconds(fetched.started_at.as_ref()?.0, fetched.finished_at.as_ref()?.0))),
        verified: said.and_then(|said| said.verification.as_ref()?.duration_seconds),
        loaded: started.map(|started| seconds(started.0, ready)),
        ready: Some(seconds(created, ready)),
    };
    Some((ready, timings))
}

fn last_failure(scene: &Scene<'_>) -> Option<LastFailure> {
    let newest = scene
        .pods
        .iter()
        // A process that was told to end may say so with an exit code.
        .filter(|pod| !pod.facts.is_terminating)
        .filter_map(|pod| pod.diagnosis.last_failure.clone())
        .max_by_key(|failure| failure.time.as_ref().map(|time| time.0));
    let before = scene.before.last_failure.clone();
    match (newest, before) {
        (Some(newest), Some(before)) => {
            let is_older = newest.time.as_ref().map(|time| time.0) < before.time.as_ref().map(|time| time.0);
            Some(if is_older { before } else { newest })
        }
        (newest, before) => newest.or(before),
    }
}

fn next_look(scene: &Scene<'_>, object: &LlmDeployment) -> Option<Duration> {
    let safety_net = IDLE + jitter(object);
    let outcome = scene.outcome;
    let is_blocked = match (&outcome.rejected, &outcome.work) {
        // The error policy decides.
        (_, Some(Work { applied: Err(_), .. })) => return None,
        // A Service in the way can go without an event that we see, and not everything that can be missing is watched.
        (Some(rejected), _) => !scene.has_service || rejected.reason == Reason::DependencyMissing,
        (None, _) => scene.refused().is_some(),
    };
    let planned = scene.plan().and_then(|plan| plan.wake);
    let waits = is_blocked.then_some(BLOCKED).into_iter().chain(planned);
    Some(waits.min().unwrap_or(safety_net))
}

/// Up to a minute, the same for one object always: objects do not all wake at once.
fn jitter(object: &LlmDeployment) -> Duration {
    let mut hasher = DefaultHasher::new();
    object.metadata.uid.hash(&mut hasher);
    Duration::from_secs(hasher.finish() % 60)
}

/// Whether two statuses differ in more than timestamps.
fn differs(before: &LlmDeploymentStatus, after: &LlmDeploymentStatus) -> bool {
    let timeless = |status: &LlmDeploymentStatus| {
        let mut status = status.clone();
        for condition in &mut status.conditions {
            condition.last_transition_time.0 = Timestamp::UNIX_EPOCH;
        }
        if let Some(failure) = &mut status.last_failure {
            failure.time = None;
        }
        status
    };
    timeless(before) != timeless(after)
}

/// Whether nothing changed that somebody may wait for: every condition is as true as before, of the same generation.
fn is_progress_alone(before: &LlmDeploymentStatus, after: &LlmDeploymentStatus) -> bool {
    let states = |status: &LlmDeploymentStatus| -> Vec<(String, String)> {
        let conditions = status.conditions.iter();
        conditions.map(|one| (one.type_.clone(), one.status.clone())).collect()
    };
    // What the next pass must know: it acts on nothing that is not written down.
    let decided = |status: &LlmDeploymentStatus| {
        let rollout = status.rollout.as_ref();
        let rollout = rollout.map(|rollout| (rollout.revision.clone(), rollout.step, rollout.gates_passed));
        (status.failed_revision.clone(), status.current_revision.clone(), rollout)
    };
    before.observed_generation == after.observed_generation
        && states(before) == states(after)
        && decided(before) == decided(after)
}

/// Judges, writes what changed, tells what changed.
///
/// # Errors
/// When the patch fails. An object that is gone needs no status.
pub async fn write(
    ctx: &Context,
    object: &LlmDeployment,
    observed: &Observed,
    outcome: &Outcome,
) -> Result<Option<Duration>, Error> {
    let Judgement { status, next_look } = judge(object, observed, outcome, ctx.clock.now());
    let before = object.status.clone().unwrap_or_default();
    if !differs(&before, &status) {
        return Ok(next_look);
    }
    if is_progress_alone(&before, &status)
        && let Some(wait) = ctx.world.statuses.wait(object)
    {
        return Ok(Some(next_look.map_or(wait, |look| look.min(wait))));
    }
    let name = object.name_any();
    let namespace = object.namespace().unwrap_or_default();
    let patch = json!({
        "apiVersion": LlmDeployment::api_version(&()),
        "kind": LlmDeployment::kind(&()),
        "metadata": {"name": name, "namespace": namespace, "resourceVersion": object.resource_version()},
        "status": status,
    });
    let api: Api<LlmDeployment> = Api::namespaced(ctx.client.clone(), &namespace);
    match apply_status::<LlmDeployment>(&api, &name, &patch).await {
        Ok(written) => {
            ctx.world.statuses.wrote(object, &written);
            ctx.metrics.wrote("apply", "LlmDeploymentStatus");
            let policies: Vec<_> = observed.policies.iter().map(|policy| policy.name_any()).collect();
            ctx.audit.record(object, (&before, &status), &policies, ctx.clock.now());
            events::publish(ctx, object, &before.conditions, &status.conditions).await;
            Ok(next_look)
        }
        Err(error) if error.status().is_some_and(kube::core::Status::is_not_found) => Ok(None),
        Err(source) => Err(Error {
            object: format!("{namespace}/{name}"),
            source,
        }),
    }
}
