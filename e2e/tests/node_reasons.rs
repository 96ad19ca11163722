//! What goes wrong with containers on a real node, and how status says it.

use escadre_e2e::cluster::Image;
use escadre_e2e::escadre;
use escadre_e2e::scenario::Scenario;
use escadre_e2e::testing::CONTEXT_VARIABLE;
use k8s_openapi::api::core::v1::Node;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn container_that_the_kernel_kills_for_memory_is_named() {
    let scenario = Scenario::start().await.unwrap();
    let Ok(cluster) = scenario.test_bed() else {
        eprintln!("skipped: {CONTEXT_VARIABLE} names a cluster, and images are loaded into the test bed only");
        return;
    };
    let image = Image::service("escadre.dev/hog:1", &escadre::program("hog").unwrap()).unwrap();
    cluster.load_image(&image).await.unwrap();
    let deployment = scenario
        .model("tiny")
        .set("/spec/resources/memory", json!("64Mi"))
        .set("/spec/runtime/image", json!("escadre.dev/hog:1"));
    scenario.create(deployment).await.unwrap();
    let (message, status) = scenario
        .await_failure("tiny", "Ready", "OutOfMemoryHost")
        .await
        .unwrap();
    assert!(message.contains("raise spec.resources.memory"), "{message}");
    let failure = status.last_failure.unwrap();
    assert_eq!(
        (failure.reason.as_deref(), failure.exit_code),
        (Some("OOMKilled"), Some(137))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn crash_loop_is_said_with_the_text_that_the_process_left() {
    let scenario = Scenario::start().await.unwrap();
    // An image that exists on the node and whose program does not know our arguments.
    let deployment = scenario
        .model("wrong")
        .set("/spec/runtime/image", json!("escadre.dev/operator:scenario"));
    scenario.create(deployment).await.unwrap();
    let (message, status) = scenario.await_failure("wrong", "Ready", "CrashLoop").await.unwrap();
    assert!(
        message.contains("unexpected argument") && message.contains("container fetch"),
        "{message}"
    );
    let failure = status.last_failure.unwrap();
    assert_eq!(failure.exit_code, Some(2));
    assert!(failure.message.unwrap().contains("unexpected argument"));
    assert!(failure.pod.unwrap().starts_with("wrong-"));
}

/// A resource that every node of the test bed offers though none has such a device.
const NO_ACCELERATOR: &str = "escadre.dev/no-accelerator";

#[tokio::test(flavor = "multi_thread")]
async fn accelerator_that_cannot_be_used_is_said_and_the_processor_does_not_stand_in() {
    let scenario = Scenario::start().await.unwrap();
    if scenario.test_bed().is_err() {
        eprintln!("skipped: {CONTEXT_VARIABLE} names a cluster, and only the test bed's nodes may be changed");
        return;
    }
    let nodes: Api<Node> = Api::all(scenario.namespace().client().clone());
    let offer = json!({"status": {"capacity": {NO_ACCELERATOR: "1"}, "allocatable": {NO_ACCELERATOR: "1"}}});
    for node in nodes.list(&ListParams::default()).await.unwrap() {
        nodes
            .patch_status(&node.name_any(), &PatchParams::default(), &Patch::Strategic(&offer))
            .await
            .unwrap();
    }
    let deployment = scenario.model("blind").set(
        "/spec/resources/gpu",
        json!({"count": 1, "resourceName": NO_ACCELERATOR}),
    );
    scenario.create(deployment).await.unwrap();
    let (message, status) = scenario
        .await_failure("blind", "Ready", "AcceleratorMissing")
        .await
        .unwrap();
    assert!(message.contains("built without CUDA"), "{message}");
    assert_eq!(status.last_failure.unwrap().exit_code, Some(1));
}
