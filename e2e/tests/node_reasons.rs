//! What goes wrong with containers on a real node, and how status says it.

use escadre_e2e::cluster::Image;
use escadre_e2e::escadre;
use escadre_e2e::scenario::Scenario;
use escadre_e2e::testing::CONTEXT_VARIABLE;
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
