//! Pods that cannot start, fail or are lost: the reason and the words.

use super::*;

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
    let plan = plan::next(&valid, &observed, None, at(0));
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
