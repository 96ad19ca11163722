//! What the spec asks for, and what became of its writes.

use super::*;

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
fn failed_write_is_in_status_too() {
    let object = solo();
    let observed = world(vec![]);
    let error = ApplyError {
        verb: "apply",
        kind: "Service",
        name: "support".to_owned(),
        source: CallError::Timeout(Duration::from_secs(20)),
    };
    let mut outcome = pass(&object, &observed, at(0));
    outcome.work.as_mut().unwrap().applied = Err(error);
    let status = judge(&object, &observed, &outcome, at(0)).status;
    let (is, reason, message) = one(&status, ConditionType::Progressing);
    assert_eq!((is.as_str(), reason.as_str()), ("False", "ApplyFailed"));
    assert!(message.contains("could not apply Service support"), "{message}");
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
    bad.spec.model.source = "pvc://not/yet".to_owned();
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
fn unchanged_world_writes_nothing() {
    let object = reached(&json!({"replicas": 1}), 1);
    let mut observed = world(vec![PodFixture::new(&object, 0).serving().done()]);
    observed.revisions = vec![];
    let outcome = pass(&object, &observed, at(500));
    assert!(outcome.work.as_ref().unwrap().plan.step.is_empty());
    let judgement = judge(&object, &observed, &outcome, at(500));
    assert!(!differs(object.status.as_ref().unwrap(), &judgement.status));
    assert!(judgement.next_look >= Some(IDLE), "answers and watches wake us");
}
