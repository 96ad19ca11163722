//! Status for every state that pods can be in: which condition, which reason, which words.

use escadre_crds::condition::{self, ConditionType};
use serde_json::{Value, json};

use super::super::apply::{Error as ApplyError, Refusal};
use super::super::build::build;
use super::super::fixtures::{DIGEST, PodFixture, applied, at, object, pass, valid, watched, world};
use super::super::observe::{ForeignPod, ObservedPod};
use super::super::plan::{self, Plan};
use super::*;
use crate::kube_ext::apply::CallError;

/// Judges a world in which every write succeeds.
fn status_of(object: &LlmDeployment, pods: Vec<ObservedPod>) -> LlmDeploymentStatus {
    let observed = world(pods);
    let outcome = pass(object, &observed, at(100));
    judge(object, &observed, &outcome, at(100)).status
}

fn one(status: &LlmDeploymentStatus, type_: ConditionType) -> (String, String, String) {
    let found = condition::get(&status.conditions, type_).unwrap();
    assert_eq!(found.observed_generation, Some(5));
    (found.status.clone(), found.reason.clone(), found.message.clone())
}

/// Checks status and reason of one condition, the reason of `Ready`, and words in its message.
#[track_caller]
fn says(status: &LlmDeploymentStatus, type_: ConditionType, expected: (&str, &str), ready: &str, words: &str) {
    let (is, reason, message) = one(status, type_);
    assert_eq!((is.as_str(), reason.as_str()), expected, "{type_}: {message}");
    let (_, summary, message) = one(status, ConditionType::Ready);
    assert_eq!(summary, ready, "Ready: {message}");
    assert!(message.contains(words), "Ready says: {message}");
}

fn solo() -> LlmDeployment {
    object(&json!({"replicas": 1}))
}

fn ended(code: i32, reason: &str, message: &str) -> Value {
    json!({"terminated": {"exitCode": code, "reason": reason, "message": message, "finishedAt": at(50).to_string()}})
}

fn waiting(reason: &str, message: &str) -> Value {
    json!({"waiting": {"reason": reason, "message": message}})
}

fn fetched(object: &LlmDeployment) -> PodFixture {
    PodFixture::new(object, 0)
        .scheduled()
        .fetch(&json!({"terminated": {"exitCode": 0}}), &json!({}), 0)
}

/// The object after it served with this many pods.
fn reached(spec: &Value, pods: u32) -> LlmDeployment {
    let mut object = object(spec);
    let mut whole = object.clone();
    whole.spec.replicas = i32::try_from(pods).unwrap();
    let serving = (0..pods)
        .map(|slot| PodFixture::new(&whole, slot).serving().done())
        .collect();
    object.status = Some(status_of(&whole, serving));
    assert_eq!(one(object.status.as_ref().unwrap(), ConditionType::Ready).0, "True");
    object
}

#[test]
fn serving_pods_make_it_ready() {
    let object = object(&json!({}));
    let pods = vec![
        PodFixture::new(&object, 0).serving().done(),
        PodFixture::new(&object, 1).serving().done(),
    ];
    let status = status_of(&object, pods);
    says(
        &status,
        ConditionType::Available,
        ("True", "Serving"),
        "Serving",
        DIGEST,
    );
    assert_eq!(one(&status, ConditionType::Reconciling).0, "False");
    assert_eq!(status.served_digest.as_deref(), Some(DIGEST));
    assert_eq!(status.served_revision, status.target_revision);
    assert_eq!(status.current_revision, status.target_revision);
    assert_eq!(
        (
            status.replicas,
            status.ready_replicas,
            status.updated_replicas,
            status.available_replicas
        ),
        (2, 2, 2, 2)
    );
    assert_eq!(status.endpoint.as_deref(), Some("http://support.models.svc:80/v1"));
    let display = status.display.unwrap();
    assert_eq!(
        (display.ready.as_deref(), display.digest.as_deref()),
        (Some("2/2"), Some("ab0a0a0a0a0a"))
    );
    assert_eq!(status.model.unwrap().bytes, Some(321));
    assert_eq!(status.verification.unwrap().result.as_deref(), Some("Verified"));
}

#[test]
fn ready_pod_that_serves_something_else_does_not_count() {
    let object = solo();
    let other = PodFixture::new(&object, 0)
        .serving()
        .says(&json!({"stage": "Ready", "servedDigest": "sha256:other"}));
    let status = status_of(&object, vec![other.done()]);
    says(
        &status,
        ConditionType::ModelVerified,
        ("False", "DigestMismatch"),
        "VerifyFailed",
        "sha256:other",
    );
    let stranger = PodFixture::new(&object, 0)
        .serving()
        .says(&json!({"podUid": "other", "stage": "Ready", "servedDigest": DIGEST}));
    assert_eq!(status_of(&object, vec![stranger.done()]).ready_replicas, 0);
}

#[test]
fn pod_with_an_edited_image_does_not_count_whatever_it_says() {
    let object = solo();
    let empty = world(vec![]);
    let first = plan::next(&valid(&object, &empty), &empty, at(1));
    let record = build(&valid(&object, &empty), &first).record.unwrap();
    let image = record.annotations()[names::ANNOTATION_IMAGE].clone();
    let ready = |image: &str| {
        let containers = json!([{"name": "runtime", "image": image}]);
        let pod = PodFixture::new(&object, 0).serving().set("spec.containers", containers);
        let pod = pod.set("spec.initContainers", json!([]));
        let mut observed = world(vec![pod.done()]);
        observed.revisions = vec![watched(&record)];
        let outcome = pass(&object, &observed, at(100));
        judge(&object, &observed, &outcome, at(100)).status.ready_replicas
    };
    assert_eq!(ready(&image), 1);
    assert_eq!(ready("somebody.example.com/else:1"), 0);
}

#[test]
fn pod_that_is_not_ready_does_not_count_whatever_it_says() {
    let object = solo();
    let early = fetched(&object)
        .runtime(&json!({"running": {}}), &json!({}), 0)
        .says(&json!({"stage": "Ready", "servedDigest": DIGEST}));
    assert_eq!(status_of(&object, vec![early.done()]).ready_replicas, 0);
}

#[test]
fn new_object_is_starting() {
    let object = solo();
    says(
        &status_of(&object, vec![]),
        ConditionType::Available,
        ("False", "Starting"),
        "Starting",
        "being made",
    );
    let pod = PodFixture::new(&object, 0)
        .scheduled()
        .fetch(&waiting("PodInitializing", ""), &json!({}), 0);
    says(
        &status_of(&object, vec![pod.done()]),
        ConditionType::CapacityAvailable,
        ("True", "Scheduled"),
        "Starting",
        "is starting",
    );
}

#[test]
fn unschedulable_has_the_words_of_the_scheduler() {
    let object = solo();
    let pod = PodFixture::new(&object, 0).condition(
        "PodScheduled",
        "False",
        "Unschedulable",
        "0/3 nodes: Insufficient nvidia.com/gpu",
    );
    let status = status_of(&object, vec![pod.done()]);
    says(
        &status,
        ConditionType::CapacityAvailable,
        ("False", "Unschedulable"),
        "Unschedulable",
        "Insufficient nvidia.com/gpu",
    );
}

#[test]
fn image_problems_are_named() {
    let object = solo();
    for reason in [
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "CreateContainerConfigError",
    ] {
        let pod = PodFixture::new(&object, 0)
            .scheduled()
            .fetch(&waiting(reason, "no such image"), &json!({}), 0);
        let status = status_of(&object, vec![pod.done()]);
        says(
            &status,
            ConditionType::Available,
            ("False", "ImagePull"),
            "ImagePull",
            reason,
        );
    }
}

#[test]
fn download_shows_its_progress() {
    let object = solo();
    let page = json!({"stage": "Fetching", "download": {"bytesDone": 3 << 20, "bytesTotal": 4 << 20, "bytesPerSecond": 9, "remainingSeconds": 99}});
    let pod = PodFixture::new(&object, 0)
        .scheduled()
        .fetch(&json!({"running": {}}), &json!({}), 0)
        .says(&page);
    let observed = world(vec![pod.done()]);
    let judgement = judge(&object, &observed, &pass(&object, &observed, at(100)), at(100));
    says(
        &judgement.status,
        ConditionType::ModelResolved,
        ("False", "Downloading"),
        "Downloading",
        "75 % of 4 MiB",
    );
    assert_eq!(judgement.status.download.as_ref().unwrap().bytes_total, Some(4 << 20));

    // Less than one per cent more is no news.
    let mut before = object.clone();
    before.status = Some(judgement.status.clone());
    let page = json!({"stage": "Fetching", "download": {"bytesDone": (3 << 20) + 1, "bytesTotal": 4 << 20, "bytesPerSecond": 8, "remainingSeconds": 98}});
    let pod = PodFixture::new(&object, 0)
        .scheduled()
        .fetch(&json!({"running": {}}), &json!({}), 0)
        .says(&page);
    let after = status_of(&before, vec![pod.done()]);
    assert!(!differs(&judgement.status, &after));
}

#[test]
fn source_that_does_not_answer_stays_visible_between_attempts() {
    let object = solo();
    let words = r#"{"reason":"SourceUnavailable","message":"https://h answered 404"}"#;
    let attempts = [
        waiting("CrashLoopBackOff", "back-off"),
        json!({"running": {}}),
        ended(1, "Error", words),
    ];
    for attempt in attempts {
        let pod = PodFixture::new(&object, 0)
            .scheduled()
            .fetch(&attempt, &ended(1, "Error", words), 3)
            .says(&json!({"stage": "Fetching"}));
        let status = status_of(&object, vec![pod.done()]);
        says(
            &status,
            ConditionType::ModelResolved,
            ("False", "SourceUnavailable"),
            "SourceUnavailable",
            "answered 404",
        );
        let failure = status.last_failure.unwrap();
        assert_eq!(
            (failure.reason.as_deref(), failure.exit_code),
            (Some("SourceUnavailable"), Some(1))
        );
        assert_eq!(failure.message.as_deref(), Some("https://h answered 404"));
    }
    let page = json!({"stage": "Fetching", "download": {"bytesDone": 5, "bytesTotal": 10}});
    let back = PodFixture::new(&object, 0)
        .scheduled()
        .fetch(&json!({"running": {}}), &ended(1, "Error", words), 3)
        .says(&page);
    says(
        &status_of(&object, vec![back.done()]),
        ConditionType::ModelResolved,
        ("False", "Downloading"),
        "Downloading",
        "50 %",
    );
}

#[test]
fn wrong_bytes_are_verify_failed_with_the_specific_reason() {
    let object = solo();
    for reason in ["DigestMismatch", "DownloadIncomplete", "GgufInvalid", "LfsPointer"] {
        let words = json!({"reason": reason, "message": "model.gguf: got 12 want 34"}).to_string();
        let pod = PodFixture::new(&object, 0).scheduled().fetch(
            &waiting("CrashLoopBackOff", ""),
            &ended(1, "Error", &words),
            1,
        );
        let status = status_of(&object, vec![pod.done()]);
        says(
            &status,
            ConditionType::ModelVerified,
            ("False", reason),
            "VerifyFailed",
            "model.gguf: got 12 want 34",
        );
        assert_eq!(status.verification.unwrap().result.as_deref(), Some("Refused"));
    }
}

#[test]
fn refused_model_is_stalled_and_a_cut_download_is_not() {
    let object = solo();
    for (reason, stalled) in [("DigestMismatch", "True"), ("DownloadIncomplete", "False")] {
        let words = json!({"reason": reason, "message": "m"}).to_string();
        let pod = PodFixture::new(&object, 0).scheduled().fetch(
            &waiting("CrashLoopBackOff", ""),
            &ended(1, "Error", &words),
            1,
        );
        let status = status_of(&object, vec![pod.done()]);
        assert_eq!(one(&status, ConditionType::Stalled).0, stalled, "{reason}");
        assert_eq!(
            one(&status, ConditionType::Reconciling).0 == "True",
            stalled == "False",
            "{reason}"
        );
    }
}

#[test]
fn reasons_of_the_runtime_are_kept() {
    let object = solo();
    for reason in [
        "OutOfMemoryHost",
        "AcceleratorMissing",
        "ContextTooLong",
        "ArchitectureUnsupported",
    ] {
        let words = json!({"reason": reason, "message": "needs 5 GiB, has 1 GiB"}).to_string();
        let pod = fetched(&object).runtime(&waiting("CrashLoopBackOff", ""), &ended(1, "Error", &words), 4);
        let status = status_of(&object, vec![pod.done()]);
        says(
            &status,
            ConditionType::Available,
            ("False", reason),
            reason,
            "needs 5 GiB, has 1 GiB",
        );
    }
}

#[test]
fn killed_for_memory_is_out_of_memory() {
    let object = solo();
    let pod = fetched(&object).runtime(&waiting("CrashLoopBackOff", ""), &ended(137, "OOMKilled", ""), 1);
    let status = status_of(&object, vec![pod.done()]);
    says(
        &status,
        ConditionType::Available,
        ("False", "OutOfMemoryHost"),
        "OutOfMemoryHost",
        "raise spec.resources.memory",
    );
    assert_eq!(status.last_failure.unwrap().reason.as_deref(), Some("OOMKilled"));
}

#[test]
fn crash_loop_has_the_last_words() {
    let object = solo();
    let pod = fetched(&object).runtime(
        &waiting("CrashLoopBackOff", "back-off"),
        &ended(101, "Error", "thread panicked at x.rs:7"),
        6,
    );
    let status = status_of(&object, vec![pod.done()]);
    says(
        &status,
        ConditionType::Available,
        ("False", "CrashLoop"),
        "CrashLoop",
        "thread panicked at x.rs:7",
    );
    let failure = status.last_failure.unwrap();
    assert_eq!(
        (failure.exit_code, failure.message.as_deref()),
        (Some(101), Some("thread panicked at x.rs:7"))
    );
    assert_eq!(failure.time.unwrap().0, at(50));
}

#[test]
fn last_failure_stays_after_it_was_healed() {
    let mut object = solo();
    let pod = fetched(&object).runtime(&waiting("CrashLoopBackOff", ""), &ended(101, "Error", "boom"), 6);
    object.status = Some(status_of(&object, vec![pod.done()]));
    let status = status_of(&object, vec![PodFixture::new(&object, 0).serving().done()]);
    assert_eq!(one(&status, ConditionType::Ready).0, "True");
    assert_eq!(status.last_failure.unwrap().message.as_deref(), Some("boom"));
}

#[test]
fn end_of_a_pod_that_was_told_to_end_is_no_failure() {
    let object = solo();
    let leaving = fetched(&object)
        .runtime(&ended(1, "Error", "interrupted"), &json!({}), 0)
        .set("metadata.deletionTimestamp", json!(at(49).to_string()));
    assert_eq!(status_of(&object, vec![leaving.done()]).last_failure, None);
}

#[test]
fn verifying_and_loading_are_told_apart() {
    let object = solo();
    let run = |stage: &str, result: &str| {
        let pod = fetched(&object)
            .runtime(&json!({"running": {}}), &json!({}), 0)
            .says(&json!({"stage": stage, "verification": {"result": result}}));
        status_of(&object, vec![pod.done()])
    };
    says(
        &run("Verifying", "Pending"),
        ConditionType::ModelVerified,
        ("Unknown", "Verifying"),
        "Verifying",
        "verifying",
    );
    says(
        &run("Loading", "Verified"),
        ConditionType::ModelVerified,
        ("True", "Verified"),
        "Loading",
        "loading",
    );
    says(
        &run("WarmingUp", "Verified"),
        ConditionType::ModelResolved,
        ("True", "Resolved"),
        "Loading",
        "loading",
    );
}

#[test]
fn silent_runtime_is_unreachable() {
    let object = solo();
    let pod = PodFixture::new(&object, 0).serving().silent();
    let status = status_of(&object, vec![pod.done()]);
    says(
        &status,
        ConditionType::Available,
        ("False", "RuntimeUnreachable"),
        "RuntimeUnreachable",
        "network policies on port 9090",
    );
}

#[test]
fn lost_node_is_named() {
    let object = solo();
    for (ready, containers) in [("Unknown", "True"), ("False", "True")] {
        let pod = PodFixture::new(&object, 0)
            .scheduled()
            .condition("Ready", ready, "", "")
            .condition("ContainersReady", containers, "", "")
            .silent();
        let status = status_of(&object, vec![pod.done()]);
        says(
            &status,
            ConditionType::Available,
            ("False", "NodeLost"),
            "NodeLost",
            "node-9",
        );
    }
}

#[test]
fn pod_that_lost_its_readiness_lowers_ready() {
    let object = reached(&json!({"replicas": 2}), 2);
    let judge_with = |unready_since: i64| {
        let pod = PodFixture::new(&object, 1)
            .scheduled()
            .fetch(&json!({"terminated": {"exitCode": 0}}), &json!({}), 0)
            .runtime(&json!({"running": {}}), &json!({}), 0)
            .set("status.startTime", json!(at(1).to_string()))
            .condition_since("Ready", "False", at(unready_since))
            .silent();
        let pods = vec![PodFixture::new(&object, 0).serving().done(), pod.done()];
        one(&status_of(&object, pods), ConditionType::Ready).0
    };
    assert_eq!(judge_with(60), "False");
    assert_eq!(judge_with(2), "True", "a pod that was never ready is growth");
}

#[test]
fn evicted_pod_is_named() {
    let object = solo();
    let pod = PodFixture::new(&object, 0)
        .scheduled()
        .set("metadata.creationTimestamp", json!(at(95).to_string()))
        .set("status.phase", json!("Failed"))
        .set("status.reason", json!("Evicted"))
        .set("status.message", json!("disk pressure"));
    let status = status_of(&object, vec![pod.done()]);
    says(
        &status,
        ConditionType::Available,
        ("False", "PodFailed"),
        "PodFailed",
        "disk pressure",
    );
    assert_eq!(status.last_failure.unwrap().reason.as_deref(), Some("Evicted"));
}

#[test]
fn refused_pod_has_the_words_of_the_api_server() {
    let object = solo();
    let observed = world(vec![]);
    let valid = valid(&object, &observed);
    let plan = plan::next(&valid, &observed, at(0));
    let refusal = Refusal {
        pod: "support-x-0".to_owned(),
        message: "exceeded quota: gpus".to_owned(),
    };
    let judgement = judge(&object, &observed, &applied(valid, plan, Some(refusal)), at(0));
    says(
        &judgement.status,
        ConditionType::Available,
        ("False", "PodRefused"),
        "PodRefused",
        "exceeded quota: gpus",
    );
    assert_eq!(judgement.next_look, Some(BLOCKED));
}

#[test]
fn failed_write_is_in_status_too() {
    let object = solo();
    let observed = world(vec![]);
    let error = ApplyError {
        verb: "apply",
        kind: "Service",
        name: "support".to_owned(),
        source: CallError::Timeout(Duration::from_secs(20)),
    };
    let outcome = Outcome::Failed {
        valid: Box::new(valid(&object, &observed)),
        error: Box::new(error),
    };
    let status = judge(&object, &observed, &outcome, at(0)).status;
    let (is, reason, message) = one(&status, ConditionType::Progressing);
    assert_eq!((is.as_str(), reason.as_str()), ("False", "ApplyFailed"));
    assert!(message.contains("could not apply Service support"), "{message}");
}

#[test]
fn zero_replicas_are_ready_and_not_available() {
    let object = object(&json!({"replicas": 0}));
    let status = status_of(&object, vec![]);
    says(
        &status,
        ConditionType::Available,
        ("False", "ScaledToZero"),
        "ScaledToZero",
        "no pods",
    );
    assert_eq!(one(&status, ConditionType::Ready).0, "True");
    assert_eq!(one(&status, ConditionType::Reconciling).0, "False");
}

#[test]
fn suspended_object_is_neither_ready_nor_available() {
    let object = object(&json!({"suspend": true}));
    let status = status_of(&object, vec![]);
    says(
        &status,
        ConditionType::Available,
        ("False", "Suspended"),
        "Suspended",
        "set spec.suspend to false",
    );
    assert_eq!(one(&status, ConditionType::Ready).0, "False");
    assert_eq!(one(&status, ConditionType::Stalled).0, "False");
}

#[test]
fn rejected_spec_is_stalled_and_keeps_what_serves() {
    let object = reached(&json!({"replicas": 1}), 1);
    let pod = PodFixture::new(&object, 0).serving().done();
    let mut bad = object;
    bad.spec.model.source = "oci://not/yet".to_owned();
    let status = status_of(&bad, vec![pod]);
    says(
        &status,
        ConditionType::Accepted,
        ("False", "InvalidSpec"),
        "InvalidSpec",
        "spec.model.source",
    );
    assert_eq!(one(&status, ConditionType::Stalled).0, "True");
    assert_eq!(one(&status, ConditionType::Available).0, "True");
    assert_eq!(status.served_digest.as_deref(), Some(DIGEST));
}

#[test]
fn growth_does_not_lower_ready() {
    let object = reached(&json!({"replicas": 3}), 2);
    let new = |state: PodFixture| {
        vec![
            PodFixture::new(&object, 0).serving().done(),
            PodFixture::new(&object, 1).serving().done(),
            state.done(),
        ]
    };
    let loading = PodFixture::new(&object, 2)
        .scheduled()
        .fetch(&json!({"running": {}}), &json!({}), 0);
    let status = status_of(&object, new(loading));
    assert_eq!(one(&status, ConditionType::Ready).0, "True");
    assert_eq!(one(&status, ConditionType::Reconciling).0, "True");
    assert_eq!(one(&status, ConditionType::Degraded).0, "False");
    assert_eq!(status.display.unwrap().ready.as_deref(), Some("2/3"));

    let homeless = PodFixture::new(&object, 2).condition("PodScheduled", "False", "Unschedulable", "no room");
    let status = status_of(&object, new(homeless));
    assert_eq!(one(&status, ConditionType::Ready).0, "True");
    assert_eq!(one(&status, ConditionType::CapacityAvailable).1, "Unschedulable");
    assert_eq!(one(&status, ConditionType::Degraded).0, "True");
}

#[test]
fn first_size_must_be_reached_before_ready() {
    let object = object(&json!({"replicas": 2}));
    let loading = PodFixture::new(&object, 1)
        .scheduled()
        .fetch(&json!({"running": {}}), &json!({}), 0);
    let status = status_of(
        &object,
        vec![PodFixture::new(&object, 0).serving().done(), loading.done()],
    );
    says(
        &status,
        ConditionType::Available,
        ("True", "Serving"),
        "Starting",
        "is starting",
    );
    assert_eq!(one(&status, ConditionType::Ready).0, "False");
}

#[test]
fn pod_that_served_and_crashed_lowers_ready() {
    let object = reached(&json!({"replicas": 2}), 2);
    let crashed = PodFixture::new(&object, 1)
        .scheduled()
        .fetch(&json!({"terminated": {"exitCode": 0}}), &json!({}), 0)
        .runtime(&waiting("CrashLoopBackOff", ""), &ended(139, "Error", "segfault"), 1);
    let status = status_of(
        &object,
        vec![PodFixture::new(&object, 0).serving().done(), crashed.done()],
    );
    assert_eq!(one(&status, ConditionType::Ready).0, "False");
    assert_eq!(one(&status, ConditionType::Degraded).1, "CrashLoop");
    assert_eq!(status.ready_replicas, 1);
}

#[test]
fn pod_of_an_older_revision_keeps_ready_away() {
    let object = reached(&json!({"replicas": 1}), 1);
    let old = PodFixture::new(&object, 0)
        .serving()
        .set("metadata.deletionTimestamp", json!(at(99).to_string()))
        .done();
    let mut edited = object;
    edited.spec.model.revision = Some("v9".to_owned());
    let new = PodFixture::new(&edited, 0).serving().done();
    let status = status_of(&edited, vec![old, new]);
    says(
        &status,
        ConditionType::Progressing,
        ("True", "Recreating"),
        "Recreating",
        "replaces the older one",
    );
    assert_eq!(status.replicas, 1);
}

#[test]
fn pod_that_hangs_on_a_lost_node_does_not_count() {
    let object = reached(&json!({"replicas": 1}), 1);
    let hanging = || {
        PodFixture::new(&object, 0)
            .scheduled()
            .set("metadata.deletionTimestamp", json!(at(100).to_string()))
            .done()
    };
    let mut edited = object.clone();
    edited.spec.model.revision = Some("v9".to_owned());
    let judged = |second| {
        let observed = world(vec![hanging(), PodFixture::new(&edited, 0).serving().done()]);
        let outcome = pass(&edited, &observed, at(second));
        judge(&edited, &observed, &outcome, at(second))
    };
    let early = judged(110);
    assert_eq!(one(&early.status, ConditionType::Ready).0, "False");
    assert_eq!(early.next_look, Some(Duration::from_secs(20)));
    let late = judged(131);
    assert_eq!(one(&late.status, ConditionType::Ready).0, "True");
    assert!(late.next_look >= Some(IDLE));
}

#[test]
fn available_means_as_many_as_evictions_must_leave() {
    let object = reached(&json!({"replicas": 3, "disruption": {"minAvailable": 2}}), 3);
    let pods = |serving: u32| {
        let pods = (0..3).map(|slot| {
            let pod = PodFixture::new(&object, slot);
            if slot < serving {
                pod.serving().done()
            } else {
                pod.scheduled().done()
            }
        });
        status_of(&object, pods.collect())
    };
    assert_eq!(one(&pods(2), ConditionType::Available).0, "True");
    let status = pods(1);
    assert_eq!(one(&status, ConditionType::Available).0, "False");
    assert_eq!(status.available_replicas, 1);
}

#[test]
fn foreign_pod_behind_the_service_is_reported() {
    let object = reached(&json!({"replicas": 1}), 1);
    let mut observed = world(vec![PodFixture::new(&object, 0).serving().done()]);
    observed.foreign = vec![ForeignPod {
        name: "intruder".to_owned(),
        is_selected: true,
    }];
    let status = judge(&object, &observed, &pass(&object, &observed, at(500)), at(500)).status;
    let (is, reason, message) = one(&status, ConditionType::Degraded);
    assert_eq!((is.as_str(), reason.as_str()), ("True", "ForeignPod"));
    assert!(message.contains("pod intruder carries the labels"), "{message}");
}

#[test]
fn flip_of_a_condition_is_never_held_back() {
    let object = solo();
    let starting = status_of(&object, vec![PodFixture::new(&object, 0).scheduled().done()]);
    let mut before = object.clone();
    before.status = Some(starting.clone());
    let running = PodFixture::new(&object, 0)
        .scheduled()
        .fetch(&json!({"terminated": {"exitCode": 0}}), &json!({}), 0)
        .runtime(&json!({"running": {}}), &json!({}), 0);
    let loading = status_of(&before, vec![running.says(&json!({"stage": "Loading"})).done()]);
    let serving = status_of(&before, vec![PodFixture::new(&object, 0).serving().done()]);
    assert!(!is_progress_alone(&starting, &loading), "ModelResolved became true");
    assert!(!is_progress_alone(&loading, &serving));
    let mut more = loading.clone();
    more.replicas += 1;
    assert!(is_progress_alone(&loading, &more));
    more.observed_generation = Some(6);
    assert!(!is_progress_alone(&loading, &more));
}

#[test]
fn timings_are_those_of_the_pod_that_became_ready_last() {
    let object = object(&json!({"replicas": 2}));
    let pod = |slot, ready| {
        PodFixture::new(&object, slot)
            .condition_since("PodScheduled", "True", at(2))
            .fetch(&json!({"terminated": {"exitCode": 0, "startedAt": at(3).to_string(), "finishedAt": at(10).to_string()}}), &json!({}), 0)
            .runtime(&json!({"running": {"startedAt": at(11).to_string()}}), &json!({}), 0)
            .condition_since("Ready", "True", at(ready))
            .says(&json!({
                "stage": "Ready", "servedDigest": DIGEST, "verification": {"result": "Verified", "durationSeconds": 1.5},
                "performance": {"prefillTokensPerSecond": 812.5, "decodeTokensPerSecond": 41.0},
            }))
            .done()
    };
    let status = status_of(&object, vec![pod(0, 20), pod(1, 15)]);
    let timings = status.timings.unwrap();
    assert_eq!(
        (timings.scheduled, timings.fetched, timings.verified),
        (Some(2.0), Some(7.0), Some(1.5))
    );
    assert_eq!((timings.loaded, timings.ready), (Some(9.0), Some(20.0)));
    assert_eq!(status.performance.unwrap().decode_tokens_per_second, Some(41.0));
    assert_eq!(status.verified_replicas, 2);
}

#[test]
fn missing_secret_of_the_source_is_named_and_heals_by_itself() {
    let object = solo();
    let words = "secret \"hub\" not found";
    let pod =
        PodFixture::new(&object, 0)
            .scheduled()
            .fetch(&waiting("CreateContainerConfigError", words), &json!({}), 0);
    let status = status_of(&object, vec![pod.done()]);
    says(
        &status,
        ConditionType::ModelResolved,
        ("False", "SecretMissing"),
        "SecretMissing",
        words,
    );
    let pod = fetched(&object).runtime(&waiting("CreateContainerConfigError", words), &json!({}), 0);
    let status = status_of(&object, vec![pod.done()]);
    says(
        &status,
        ConditionType::Available,
        ("False", "DependencyMissing"),
        "DependencyMissing",
        words,
    );
}

#[test]
fn unchanged_world_writes_nothing() {
    let object = reached(&json!({"replicas": 1}), 1);
    let mut observed = world(vec![PodFixture::new(&object, 0).serving().done()]);
    observed.revisions = vec![];
    let outcome = pass(&object, &observed, at(500));
    assert!(matches!(
        outcome,
        Outcome::Applied {
            plan: Plan::Complete,
            ..
        }
    ));
    let judgement = judge(&object, &observed, &outcome, at(500));
    assert!(!differs(object.status.as_ref().unwrap(), &judgement.status));
    assert!(judgement.next_look >= Some(IDLE), "answers and watches wake us");
}
