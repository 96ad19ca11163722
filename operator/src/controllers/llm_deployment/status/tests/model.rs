//! The model on its way: source, download, verification.

use super::*;

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
        "OutOfMemoryGpu",
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
