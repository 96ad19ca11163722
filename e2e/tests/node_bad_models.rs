//! Sources that fail and files that cannot be served, on a real node. The mirrors that play the faults belong to the
//! test bed, so these scenarios run there even when a person named a cluster for the others.

#![expect(clippy::unwrap_used, reason = "a helper of tests fails the test")]

use escadre_e2e::escadre::{self, MODEL_DIGEST, MODEL_FILE};
use escadre_e2e::scenario::Scenario;
use escadre_e2e::testing::CONTEXT_VARIABLE;
use serde_json::json;

/// The scenario; none, and said so, on a cluster without our mirrors.
async fn scenario() -> Option<Scenario> {
    let scenario = Scenario::start().await.unwrap();
    if scenario.test_bed().is_err() {
        eprintln!("skipped: {CONTEXT_VARIABLE} names a cluster, and the faulty mirrors are on the test bed");
        return None;
    }
    Some(scenario)
}

#[tokio::test(flavor = "multi_thread")]
async fn source_that_fails_is_named() {
    let Some(scenario) = scenario().await else { return };
    let cluster = scenario.test_bed().unwrap();
    let root = escadre::mirror_root(cluster).unwrap();
    for (name, port, fault) in [
        ("missing", 8001, "not-found"),
        ("half", 8002, "cut"),
        ("changed", 8003, "wrong-bytes"),
    ] {
        let mirror = escadre::start_mirror(cluster, &root, port, Some(fault)).await.unwrap();
        scenario.create(scenario.model(name).endpoint(&mirror)).await.unwrap();
    }

    let (message, _) = scenario
        .await_failure("missing", "ModelResolved", "SourceUnavailable")
        .await
        .unwrap();
    assert!(message.contains("404") && message.contains(MODEL_FILE), "{message}");
    let (message, status) = scenario
        .await_failure("changed", "ModelVerified", "DigestMismatch")
        .await
        .unwrap();
    assert!(message.contains(&MODEL_DIGEST["sha256:".len()..][..12]), "{message}");
    assert_eq!(status.served_digest, None);
    let (message, status) = scenario
        .await_failure("half", "ModelVerified", "DownloadIncomplete")
        .await
        .unwrap();
    assert!(message.contains(MODEL_FILE), "{message}");
    assert_eq!(
        status.last_failure.unwrap().reason.as_deref(),
        Some("DownloadIncomplete")
    );
    for name in ["missing", "half", "changed"] {
        assert_eq!(scenario.ready_pods(name).await.unwrap().len(), 0, "{name}");
    }

    // It heals by an edit of the source alone.
    let right = scenario.model("missing").into_value()["spec"]["model"]["endpoint"].clone();
    scenario
        .patch("missing", json!({"model": {"endpoint": right}}))
        .await
        .unwrap();
    scenario.await_ready("missing").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn file_that_cannot_be_served_is_named() {
    let Some(scenario) = scenario().await else { return };
    let root = escadre::mirror_root(scenario.test_bed().unwrap())
        .unwrap()
        .join("fixture-owner");
    for model in ["truncated", "text", "foreign"] {
        let digest = escadre::digest(&std::fs::read(root.join(model).join("model.gguf")).unwrap());
        let deployment = scenario
            .model(model)
            .model(&format!("hf://fixture-owner/{model}"), &digest)
            .set("/spec/model/files", json!(["*.gguf"]));
        scenario.create(deployment).await.unwrap();
    }
    let (message, _) = scenario
        .await_failure("truncated", "ModelVerified", "GgufInvalid")
        .await
        .unwrap();
    assert!(message.contains("model.gguf"), "{message}");
    let (message, _) = scenario.await_failure("text", "Ready", "VerifyFailed").await.unwrap();
    assert!(message.contains("GGUF"), "{message}");
    let (message, _) = scenario
        .await_failure("foreign", "Ready", "ArchitectureUnsupported")
        .await
        .unwrap();
    assert!(message.contains("mamba") && message.contains("llama"), "{message}");
}
