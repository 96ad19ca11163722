//! The whole way on a real node: the chart, the images, a real model, real answers, and what goes wrong on it.

#![expect(clippy::unwrap_used, reason = "a helper of tests fails the test")]

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use escadre_crds::{LlmDeployment, LlmDeploymentStatus, names};
use escadre_e2e::client::OpenAi;
use escadre_e2e::cluster::Cluster;
use escadre_e2e::escadre::{self, MODEL_DIGEST, MODEL_FILE, MODEL_SOURCE};
use escadre_e2e::fixtures::Deployment;
use escadre_e2e::testing::{self, TestNamespace};
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;
use tokio::sync::OnceCell;

/// Fetching, loading and warming up the model, beside the other tests of this file on two cores.
const LOADED: Duration = Duration::from_mins(3);
/// The operator looks again.
const SHORT: Duration = Duration::from_secs(30);
/// Long enough for the fetcher to give up a source after its own retries.
const NAMED: Duration = Duration::from_secs(150);

/// Addresses of mirrors, by the fault that they play.
struct Mirrors {
    right: String,
    not_found: String,
    cut: String,
    wrong_bytes: String,
}

struct Fixture {
    cluster: &'static Cluster,
    mirrors: &'static Mirrors,
    namespace: TestNamespace,
}

async fn fixture() -> Fixture {
    static MIRRORS: OnceCell<Mirrors> = OnceCell::const_new();
    let shared = testing::cluster().await.unwrap();
    let cluster = shared.own().unwrap();
    let mirrors = MIRRORS
        .get_or_try_init(async || {
            let root = escadre::mirror_root(cluster)?;
            escadre::install_chart(cluster).await?;
            anyhow::Ok(Mirrors {
                right: escadre::start_mirror(cluster, &root, 8000, None).await?,
                not_found: escadre::start_mirror(cluster, &root, 8001, Some("not-found")).await?,
                cut: escadre::start_mirror(cluster, &root, 8002, Some("cut")).await?,
                wrong_bytes: escadre::start_mirror(cluster, &root, 8003, Some("wrong-bytes")).await?,
            })
        })
        .await
        .unwrap();
    Fixture {
        cluster,
        mirrors,
        namespace: shared.namespace().await.unwrap(),
    }
}

impl Fixture {
    /// The real model from a mirror, with a short drain so that tests end soon.
    fn model(&self, name: &str) -> Deployment {
        Deployment::named(name)
            .model(MODEL_SOURCE, MODEL_DIGEST)
            .endpoint(&self.mirrors.right)
            .set("/spec/model/files", json!([MODEL_FILE]))
            .set("/spec/runtime/maxContext", json!(1024))
            .set("/spec/drain/timeoutSeconds", json!(30))
            // No CPU is asked for: many of these pods share the two cores of a test machine.
            .set("/spec/resources/memory", json!("1Gi"))
    }

    /// A model of the mirror that cannot be served.
    fn broken(&self, name: &str, model: &str, digest: &str) -> Deployment {
        self.model(name)
            .model(&format!("hf://fixture-owner/{model}"), digest)
            .set("/spec/model/files", json!(["*.gguf"]))
    }

    async fn create(&self, deployment: Deployment) {
        let typed: LlmDeployment = serde_json::from_value(deployment.into_value()).unwrap();
        self.namespace
            .api()
            .create(&PostParams::default(), &typed)
            .await
            .unwrap();
    }

    async fn patch(&self, name: &str, spec: serde_json::Value) {
        let api: Api<LlmDeployment> = self.namespace.api();
        api.patch(name, &PatchParams::default(), &Patch::Merge(json!({"spec": spec})))
            .await
            .unwrap();
    }

    /// Waits until `Ready` is true for the newest generation.
    async fn await_ready(&self, name: &str) -> LlmDeploymentStatus {
        self.await_condition(name, "Ready", "True", |_| true, LOADED).await
    }

    /// Waits until a condition is `False` with `reason` for the newest generation; returns its message and the status.
    async fn await_failure(&self, name: &str, condition: &str, reason: &str) -> (String, LlmDeploymentStatus) {
        let status = self
            .await_condition(name, condition, "False", |found| found == reason, NAMED)
            .await;
        let message = status
            .conditions
            .iter()
            .find(|one| one.type_ == condition)
            .unwrap()
            .message
            .clone();
        (message, status)
    }

    async fn await_condition(
        &self,
        name: &str,
        condition: &str,
        wanted: &str,
        reason: impl Fn(&str) -> bool,
        deadline: Duration,
    ) -> LlmDeploymentStatus {
        let api: Api<LlmDeployment> = self.namespace.api();
        self.namespace
            .await_condition(&format!("{condition}={wanted} of {name}"), deadline, async || {
                let object = api.get(name).await?;
                let generation = object.metadata.generation;
                Ok(object.status.filter(|status| {
                    status.conditions.iter().any(|one| {
                        one.type_ == condition
                            && one.status == wanted
                            && one.observed_generation == generation
                            && reason(&one.reason)
                    })
                }))
            })
            .await
            .unwrap()
    }

    /// Ready serving pods by name, with their UIDs.
    async fn ready_pods(&self, name: &str) -> Result<BTreeMap<String, String>> {
        let list = self
            .namespace
            .api::<Pod>()
            .list(&ListParams::default().labels(&names::selector(name)))
            .await?;
        Ok(list
            .into_iter()
            .filter(|pod| pod.metadata.deletion_timestamp.is_none() && is_ready(pod))
            .map(|pod| (pod.name_any(), pod.uid().unwrap_or_default()))
            .collect())
    }

    async fn await_ready_pods(&self, name: &str, count: usize) -> BTreeMap<String, String> {
        self.namespace
            .await_condition(&format!("{count} ready pods of {name}"), LOADED, async || {
                Ok(Some(self.ready_pods(name).await?).filter(|pods| pods.len() == count))
            })
            .await
            .unwrap()
    }

    async fn api(&self, name: &str) -> OpenAi {
        let base = escadre::reach(self.cluster, self.namespace.name(), name).await.unwrap();
        OpenAi::new(&base).unwrap()
    }
}

fn is_ready(pod: &Pod) -> bool {
    pod.status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten())
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

#[tokio::test(flavor = "multi_thread")]
async fn manifest_becomes_a_streamed_answer_heals_scales_and_leaves_nothing() {
    let fixture = fixture().await;
    fixture
        .create(fixture.model("chat").set("/spec/model/servedName", json!("smol")))
        .await;
    let status = fixture.await_ready("chat").await;
    assert_eq!(status.served_digest.as_deref(), Some(MODEL_DIGEST));
    let model = status.model.unwrap();
    assert_eq!(
        (model.format.as_deref(), model.architecture.as_deref()),
        (Some("GGUF"), Some("llama"))
    );
    assert_eq!(model.context_length, Some(1024));
    assert!(model.resolved_revision.unwrap().len() >= 40, "the mirror's commit");

    let api = fixture.api("chat").await;
    assert_eq!(api.models().await.unwrap(), ["smol"]);
    let more = json!({"max_tokens": 24, "temperature": 0, "stream_options": {"include_usage": true}});
    let streamed = api.chat_streamed("smol", "Name a ship.", &more).await.unwrap();
    assert!(
        streamed.done && !streamed.text().is_empty() && streamed.pieces.len() > 1,
        "{streamed:?}"
    );
    let whole = api
        .chat("smol", "Name a ship.", &json!({"max_tokens": 24, "temperature": 0}))
        .await
        .unwrap();
    assert_eq!(
        whole["choices"][0]["message"]["content"],
        streamed.text(),
        "streamed or not, one answer"
    );
    let fingerprint = whole["system_fingerprint"].as_str().unwrap();
    assert!(
        fingerprint.contains(&MODEL_DIGEST["sha256:".len()..][..12]),
        "{fingerprint}"
    );
    assert_eq!(
        streamed.usage.unwrap()["completion_tokens"],
        whole["usage"]["completion_tokens"]
    );

    heals(&fixture).await;
    scales(&fixture).await;
    leaves_nothing(&fixture).await;
}

async fn heals(fixture: &Fixture) {
    let (name, uid) = fixture.await_ready_pods("chat", 1).await.pop_first().unwrap();
    fixture
        .namespace
        .api::<Pod>()
        .delete(&name, &DeleteParams::default())
        .await
        .unwrap();
    fixture
        .namespace
        .await_condition("another ready pod", LOADED, async || {
            let pods = fixture.ready_pods("chat").await?;
            Ok((pods.len() == 1 && pods.values().all(|new| *new != uid)).then_some(()))
        })
        .await
        .unwrap();
    fixture.await_ready("chat").await;
}

async fn scales(fixture: &Fixture) {
    fixture.patch("chat", json!({"replicas": 2})).await;
    fixture.await_ready_pods("chat", 2).await;
    fixture.patch("chat", json!({"replicas": 1})).await;
    fixture.await_ready_pods("chat", 1).await;
    fixture
        .namespace
        .await_condition("status to show one pod of one", SHORT, async || {
            let status = fixture.namespace.api::<LlmDeployment>().get("chat").await?.status;
            let ready = status
                .and_then(|status| status.display)
                .and_then(|display| display.ready);
            Ok((ready.as_deref() == Some("1/1")).then_some(()))
        })
        .await
        .unwrap();
    let answer = fixture
        .api("chat")
        .await
        .chat("smol", "Hello!", &json!({"max_tokens": 4}))
        .await
        .unwrap();
    assert_eq!(answer["object"], "chat.completion");
}

async fn leaves_nothing(fixture: &Fixture) {
    fixture
        .namespace
        .api::<LlmDeployment>()
        .delete("chat", &DeleteParams::default())
        .await
        .unwrap();
    fixture
        .namespace
        .await_condition("everything to be gone", Duration::from_mins(2), async || {
            let all = ListParams::default();
            let pods = fixture.namespace.api::<Pod>().list(&all).await?.items.len();
            let services = fixture.namespace.api::<Service>().list(&all).await?.items.len();
            let revisions = fixture
                .namespace
                .api::<ControllerRevision>()
                .list(&all)
                .await?
                .items
                .len();
            Ok((pods + services + revisions == 0).then_some(()))
        })
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn open_stream_survives_the_end_of_its_pod() {
    let fixture = fixture().await;
    fixture.create(fixture.model("drained")).await;
    fixture.await_ready("drained").await;
    let api = fixture.api("drained").await;
    let request = json!({
        "model": "drained", "stream": true, "max_tokens": 160, "temperature": 0,
        "messages": [{"role": "user", "content": "Count from one to one hundred."}]
    });
    // A stream that goes on while its pod is told to end.
    let answer = api
        .post("/v1/chat/completions", &request)
        .await
        .unwrap()
        .error_for_status()
        .unwrap();
    let mut events = std::pin::pin!(escadre_e2e::client::events(answer));
    let first = futures::StreamExt::next(&mut events).await.context("no event").unwrap();
    assert!(first.is_ok(), "{first:?}");
    let (name, _) = fixture.await_ready_pods("drained", 1).await.pop_first().unwrap();
    fixture
        .namespace
        .api::<Pod>()
        .delete(&name, &DeleteParams::default())
        .await
        .unwrap();
    let mut last = String::new();
    while let Some(event) = futures::StreamExt::next(&mut events).await {
        last = event.unwrap();
    }
    assert_eq!(last, "[DONE]");
}

#[tokio::test(flavor = "multi_thread")]
async fn source_that_fails_is_named() {
    let fixture = fixture().await;
    fixture
        .create(fixture.model("missing").endpoint(&fixture.mirrors.not_found))
        .await;
    fixture
        .create(fixture.model("half").endpoint(&fixture.mirrors.cut))
        .await;
    fixture
        .create(fixture.model("changed").endpoint(&fixture.mirrors.wrong_bytes))
        .await;

    let (message, _) = fixture
        .await_failure("missing", "ModelResolved", "SourceUnavailable")
        .await;
    assert!(message.contains("404") && message.contains(MODEL_FILE), "{message}");
    let (message, status) = fixture
        .await_failure("changed", "ModelVerified", "DigestMismatch")
        .await;
    assert!(message.contains(&MODEL_DIGEST[7..19]), "{message}");
    assert_eq!(status.served_digest, None);
    let (message, status) = fixture
        .await_failure("half", "ModelVerified", "DownloadIncomplete")
        .await;
    assert!(message.contains(MODEL_FILE), "{message}");
    assert_eq!(
        status.last_failure.unwrap().reason.as_deref(),
        Some("DownloadIncomplete")
    );
    for name in ["missing", "half", "changed"] {
        assert_eq!(fixture.ready_pods(name).await.unwrap().len(), 0, "{name}");
    }

    // The source comes back: it heals by an edit of the source alone.
    fixture
        .patch("missing", json!({"model": {"endpoint": fixture.mirrors.right}}))
        .await;
    fixture.await_ready("missing").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn file_that_cannot_be_served_is_named() {
    let fixture = fixture().await;
    let root = escadre::mirror_root(fixture.cluster).unwrap().join("fixture-owner");
    let digest = |model: &str| escadre::digest(&std::fs::read(root.join(model).join("model.gguf")).unwrap());
    for model in ["truncated", "text", "foreign"] {
        fixture.create(fixture.broken(model, model, &digest(model))).await;
    }
    let (message, _) = fixture.await_failure("truncated", "ModelVerified", "GgufInvalid").await;
    assert!(message.contains("model.gguf"), "{message}");
    let (message, _) = fixture.await_failure("text", "Ready", "VerifyFailed").await;
    assert!(message.contains("GGUF"), "{message}");
    let (message, _) = fixture
        .await_failure("foreign", "Ready", "ArchitectureUnsupported")
        .await;
    assert!(message.contains("mamba") && message.contains("llama"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_that_do_not_fit_are_said_before_loading() {
    let fixture = fixture().await;
    fixture
        .create(fixture.model("small").set("/spec/resources/memory", json!("96Mi")))
        .await;
    fixture
        .create(fixture.model("long").set("/spec/runtime/maxContext", json!(1_000_000)))
        .await;
    fixture
        .create(
            fixture
                .model("imageless")
                .set("/spec/runtime/image", json!("escadre.dev/runtime:absent")),
        )
        .await;

    let (message, _) = fixture.await_failure("long", "Ready", "ContextTooLong").await;
    assert!(message.contains("1000000") && message.contains("8192"), "{message}");
    let (message, _) = fixture.await_failure("imageless", "Ready", "ImagePull").await;
    assert!(message.contains("escadre.dev/runtime:absent"), "{message}");
    let (message, _) = fixture.await_failure("small", "Ready", "OutOfMemoryHost").await;
    // What the weights take, and the limit.
    assert!(
        message.contains("98362432") && message.contains("100663296"),
        "{message}"
    );
}
