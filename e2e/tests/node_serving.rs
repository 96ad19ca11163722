//! The whole way on a real node: the chart, the images, a real model, real answers. Runs on the test bed, or on a
//! cluster that a person named.

#![expect(clippy::unwrap_used, reason = "a helper of tests fails the test")]

use std::time::Duration;

use escadre_crds::LlmDeployment;
use escadre_crds::names::{CONTAINER_RUNTIME, PORT_ADMIN_NUMBER};
use escadre_e2e::client::events;
use escadre_e2e::escadre::MODEL_DIGEST;
use escadre_e2e::scenario::{LOADED, Scenario};
use futures::StreamExt as _;
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::{Value, json};

/// The operator looks again.
const SHORT: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn manifest_becomes_a_streamed_answer_heals_scales_and_leaves_nothing() {
    let scenario = Scenario::start().await.unwrap();
    scenario
        .create(scenario.model("chat").set("/spec/model/servedName", json!("smol")))
        .await
        .unwrap();
    let status = scenario.await_ready("chat").await.unwrap();
    assert_eq!(status.served_digest.as_deref(), Some(MODEL_DIGEST));
    let model = status.model.unwrap();
    assert_eq!(
        (model.format.as_deref(), model.architecture.as_deref()),
        (Some("GGUF"), Some("llama"))
    );
    assert_eq!(model.context_length, Some(1024));
    assert!(model.resolved_revision.unwrap().len() >= 40, "a commit");

    answers(&scenario).await;
    heals(&scenario).await;
    scales(&scenario).await;
    leaves_nothing(&scenario).await;
}

async fn answers(scenario: &Scenario) {
    let (api, _way) = scenario.api("chat").await.unwrap();
    assert_eq!(api.models().await.unwrap(), ["smol"]);
    let more = json!({"max_tokens": 24, "temperature": 0, "stream_options": {"include_usage": true}});
    let streamed = api.chat_streamed("smol", "Name a ship.", &more).await.unwrap();
    assert!(
        streamed.done && !streamed.text().is_empty() && streamed.pieces.len() > 1,
        "{streamed:?}"
    );
    let more = json!({"max_tokens": 24, "temperature": 0});
    let whole = api.chat("smol", "Name a ship.", &more).await.unwrap();
    let content = &whole["choices"][0]["message"]["content"];
    assert_eq!(*content, streamed.text(), "streamed or not, one answer");
    let fingerprint = whole["system_fingerprint"].as_str().unwrap();
    assert!(
        fingerprint.contains(&MODEL_DIGEST["sha256:".len()..][..12]),
        "{fingerprint}"
    );
    assert_eq!(
        streamed.usage.unwrap()["completion_tokens"],
        whole["usage"]["completion_tokens"]
    );
}

async fn heals(scenario: &Scenario) {
    let (name, uid) = scenario.await_ready_pods("chat", 1).await.unwrap().pop_first().unwrap();
    scenario.delete_pod(&name).await.unwrap();
    scenario
        .namespace()
        .await_condition("another ready pod", LOADED, async || {
            let pods = scenario.ready_pods("chat").await?;
            Ok((pods.len() == 1 && pods.values().all(|new| *new != uid)).then_some(()))
        })
        .await
        .unwrap();
    scenario.await_ready("chat").await.unwrap();
}

async fn scales(scenario: &Scenario) {
    scenario.patch("chat", json!({"replicas": 2})).await.unwrap();
    scenario.await_ready_pods("chat", 2).await.unwrap();
    scenario.patch("chat", json!({"replicas": 1})).await.unwrap();
    scenario.await_ready_pods("chat", 1).await.unwrap();
    scenario
        .namespace()
        .await_condition("status to show one pod of one", SHORT, async || {
            let status = scenario.namespace().api::<LlmDeployment>().get("chat").await?.status;
            let ready = status
                .and_then(|status| status.display)
                .and_then(|display| display.ready);
            Ok((ready.as_deref() == Some("1/1")).then_some(()))
        })
        .await
        .unwrap();
    let (api, _way) = scenario.api("chat").await.unwrap();
    let answer = api.chat("smol", "Hello!", &json!({"max_tokens": 4})).await.unwrap();
    assert_eq!(answer["object"], "chat.completion");
}

async fn leaves_nothing(scenario: &Scenario) {
    scenario.delete("chat").await.unwrap();
    scenario
        .namespace()
        .await_condition("everything to be gone", Duration::from_mins(2), async || {
            let (all, namespace) = (ListParams::default(), scenario.namespace());
            let pods = namespace.api::<Pod>().list(&all).await?.items.len();
            let services = namespace.api::<Service>().list(&all).await?.items.len();
            let revisions = namespace.api::<ControllerRevision>().list(&all).await?.items.len();
            Ok((pods + services + revisions == 0).then_some(()))
        })
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn open_stream_survives_the_end_of_its_pod() {
    let scenario = Scenario::start().await.unwrap();
    scenario.create(scenario.model("drained")).await.unwrap();
    scenario.await_ready("drained").await.unwrap();
    let (api, _way) = scenario.api("drained").await.unwrap();
    let request = json!({
        "model": "drained", "stream": true, "max_tokens": 160, "temperature": 0,
        "messages": [{"role": "user", "content": "Count from one to one hundred."}]
    });
    let answer = api
        .post("/v1/chat/completions", &request)
        .await
        .unwrap()
        .error_for_status()
        .unwrap();
    let mut events = std::pin::pin!(events(answer));
    events.next().await.unwrap().unwrap();
    let (name, _) = scenario
        .await_ready_pods("drained", 1)
        .await
        .unwrap()
        .pop_first()
        .unwrap();
    scenario.delete_pod(&name).await.unwrap();
    let mut last = String::new();
    while let Some(event) = events.next().await {
        last = event.unwrap();
    }
    assert_eq!(last, "[DONE]");
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_that_do_not_fit_are_said_before_loading() {
    let scenario = Scenario::start().await.unwrap();
    let (memory, context, image) = (
        "/spec/resources/memory",
        "/spec/runtime/maxContext",
        "/spec/runtime/image",
    );
    scenario
        .create(scenario.model("small").set(memory, json!("96Mi")))
        .await
        .unwrap();
    scenario
        .create(scenario.model("long").set(context, json!(1_000_000)))
        .await
        .unwrap();
    scenario
        .create(
            scenario
                .model("imageless")
                .set(image, json!("escadre.dev/runtime:absent")),
        )
        .await
        .unwrap();

    let (message, _) = scenario.await_failure("long", "Ready", "ContextTooLong").await.unwrap();
    assert!(message.contains("1000000") && message.contains("8192"), "{message}");
    let (message, _) = scenario.await_failure("imageless", "Ready", "ImagePull").await.unwrap();
    assert!(message.contains("escadre.dev/runtime:absent"), "{message}");
    let (message, _) = scenario
        .await_failure("small", "Ready", "OutOfMemoryHost")
        .await
        .unwrap();
    // What the weights take as they are held, and the limit.
    assert!(
        message.contains("96576768 for weights") && message.contains("100663296"),
        "{message}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn pod_that_is_given_more_processors_in_place_uses_them_without_a_restart() {
    let scenario = Scenario::start().await.unwrap();
    scenario
        .create(scenario.model("grows").set("/spec/resources/cpu", json!("1")))
        .await
        .unwrap();
    scenario.await_ready("grows").await.unwrap();
    let (name, uid) = scenario
        .await_ready_pods("grows", 1)
        .await
        .unwrap()
        .pop_first()
        .unwrap();
    assert_eq!(status_page(&scenario, &name).await["threads"], 1);

    let pods = scenario.namespace().api::<Pod>();
    let cpu = json!({"cpu": "1500m"});
    let containers = json!([{"name": CONTAINER_RUNTIME, "resources": {"requests": cpu, "limits": cpu}}]);
    let patch = Patch::Strategic(json!({"spec": {"containers": containers}}));
    pods.patch_subresource("resize", &name, &PatchParams::default(), &patch)
        .await
        .unwrap();
    let (api, _way) = scenario.api("grows").await.unwrap();
    scenario
        .namespace()
        .await_condition("another number of threads", LOADED, async || {
            // Limits are looked at when there is something to do.
            api.chat("grows", "Name a ship.", &json!({"max_tokens": 4})).await?;
            Ok((status_page(&scenario, &name).await["threads"] == 2).then_some(()))
        })
        .await
        .unwrap();
    let pod = pods.get(&name).await.unwrap();
    assert_eq!(pod.metadata.uid.as_deref(), Some(uid.as_str()));
    let containers = pod.status.unwrap().container_statuses.unwrap();
    assert!(containers.iter().all(|container| container.restart_count == 0));
}

/// The page of a pod's runtime, by way of the API server.
async fn status_page(scenario: &Scenario, pod: &str) -> Value {
    let namespace = scenario.namespace();
    let path = format!(
        "/api/v1/namespaces/{}/pods/{pod}:{PORT_ADMIN_NUMBER}/proxy/status",
        namespace.name()
    );
    let request = http::Request::get(path).body(vec![]).unwrap();
    namespace.client().request(request).await.unwrap()
}
