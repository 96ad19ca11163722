//! Which pods count as serving, and what that makes of `Ready` and `Available`.

use super::*;

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
    let first = plan::next(&valid(&object, &empty), &empty, None, at(1));
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
        ("True", "RollingOut"),
        "RollingOut",
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
