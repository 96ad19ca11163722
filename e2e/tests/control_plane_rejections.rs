//! What the API server itself refuses: each manifest with the field that is wrong and the words that say what to do.

mod rejected_fields;

use escadre_crds::LlmDeployment;
use escadre_crds::examples::SMOLLM2_DIGEST as DIGEST;
use escadre_e2e::{escadre, testing};
use kube::Api;
use kube::api::{DynamicObject, Patch, PatchParams, ValidationDirective};
use kube::core::ApiResource;
use serde_json::{Value, json};

#[tokio::test]
async fn wrong_manifests_are_refused_with_the_field_and_the_remedy() {
    let cluster = testing::control_plane().await.unwrap();
    escadre::install_resource(cluster.own().unwrap()).await.unwrap();
    let namespace = cluster.namespace().await.unwrap();
    let kind = ApiResource::erase::<LlmDeployment>(&());
    let deployments: Api<DynamicObject> = Api::namespaced_with(namespace.client().clone(), namespace.name(), &kind);
    // What `kubectl apply --server-side` sends.
    let strict = PatchParams {
        field_validation: Some(ValidationDirective::Strict),
        ..PatchParams::apply("kubectl")
    };

    let mut wrong = Vec::new();
    let table = table();
    assert!(table.len() >= 80, "only {} manifests", table.len());
    for (what, manifest, words) in table {
        let name = manifest["metadata"]["name"].as_str().unwrap().to_owned();
        match deployments.patch(&name, &strict, &Patch::Apply(&manifest)).await {
            Ok(_) => wrong.push(format!("{what}: accepted")),
            Err(kube::Error::Api(status)) => {
                wrong.extend(
                    words
                        .iter()
                        .filter(|word| !status.message.contains(*word))
                        .map(|word| format!("{what}: `{word}` is not in: {}", status.message)),
                );
            }
            Err(error) => wrong.push(format!("{what}: {error}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn every_example_is_accepted() {
    let cluster = testing::control_plane().await.unwrap();
    escadre::install_resource(cluster.own().unwrap()).await.unwrap();
    let namespace = cluster.namespace().await.unwrap();
    let kind = ApiResource::erase::<LlmDeployment>(&());
    let deployments: Api<DynamicObject> = Api::namespaced_with(namespace.client().clone(), namespace.name(), &kind);
    let strict = PatchParams {
        field_validation: Some(ValidationDirective::Strict),
        dry_run: true,
        ..PatchParams::apply("kubectl")
    };
    for example in escadre_crds::examples::all() {
        let name = example.manifest["metadata"]["name"].as_str().unwrap();
        let accepted = deployments.patch(name, &strict, &Patch::Apply(&example.manifest)).await;
        assert!(accepted.is_ok(), "{}: {accepted:?}", example.path);
    }
}

fn manifest(edit: impl FnOnce(&mut Value)) -> Value {
    let mut manifest = json!({
        "apiVersion": "escadre.dev/v1alpha1",
        "kind": "LlmDeployment",
        "metadata": {"name": "refused"},
        "spec": {"model": {"source": "hf://owner/name", "verification": {"digest": DIGEST}}}
    });
    edit(&mut manifest);
    manifest
}

/// What is wrong, the manifest, words of the message.
type Case = (&'static str, Value, &'static [&'static str]);

fn model(field: &str, value: Value) -> Value {
    manifest(|manifest| manifest["spec"]["model"][field] = value)
}

fn spec(field: &str, value: Value) -> Value {
    manifest(|manifest| manifest["spec"][field] = value)
}

fn name(name: &str) -> Value {
    manifest(|manifest| manifest["metadata"]["name"] = json!(name))
}

/// A field that an `https://` source does not have.
fn beside_https(field: &str, value: &Value) -> Value {
    spec(
        "model",
        json!({"source": "https://a/b.gguf", field: value, "verification": {"digest": DIGEST}}),
    )
}

fn table() -> Vec<Case> {
    [about_the_model(), about_the_rest(), rejected_fields::table()].concat()
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn about_the_model() -> Vec<Case> {
    let digest = |digest: &str| model("verification", json!({"digest": digest}));
    let source = |source: &str| model("source", json!(source));
    vec![
        (
            "unknown nested field",
            model("sorce", json!("x")),
            &["spec.model.sorce"],
        ),
        (
            "no model",
            manifest(|m| m["spec"] = json!({})),
            &["spec.model", "Required"],
        ),
        (
            "no digest",
            model("verification", json!({})),
            &["spec.model.verification.digest", "Required"],
        ),
        (
            "no verification",
            spec("model", json!({"source": "hf://a/b"})),
            &["spec.model.verification", "Required"],
        ),
        (
            "digest in capitals",
            digest(&DIGEST.to_uppercase()),
            &["spec.model.verification.digest", "64 lower-case"],
        ),
        (
            "digest of another algorithm",
            digest("md5:00"),
            &["spec.model.verification.digest", "sha256:"],
        ),
        (
            "two sources in one",
            source("hf://a/b,https://c/d"),
            &["spec.model.source", "hf://<owner>/<name>"],
        ),
        (
            "two https sources",
            source("https://a/b https://c/d"),
            &["spec.model.source", "one address"],
        ),
        (
            "source without a scheme",
            source("SmolLM2"),
            &["spec.model.source", "hf://<owner>/<name>, oci://"],
        ),
        (
            "plain http",
            source("http://a/b.gguf"),
            &["spec.model.source", "https://"],
        ),
        (
            "source that comes later",
            source("pvc://claim/path"),
            &["spec.model.source", "not supported"],
        ),
        (
            "oci source without a version",
            source("oci://ghcr.io/team/model"),
            &["spec.model.source", "a tag or a digest"],
        ),
        (
            "s3 source that leaves its prefix",
            source("s3://models/../other"),
            &["spec.model.source", "s3://<bucket>/<prefix>"],
        ),
        (
            "hf source without a name",
            source("hf://owner"),
            &["spec.model.source", "hf://<owner>/<name>"],
        ),
        (
            "password in the address",
            source("https://user:secret@host/x.gguf"),
            &["spec.model.source", "without user name"],
        ),
        (
            "endpoint beside https",
            beside_https("endpoint", &json!("https://m")),
            &["endpoint works with an hf:// or s3:// source only"],
        ),
        (
            "revision beside https",
            beside_https("revision", &json!("main")),
            &["revision works with an hf:// source only"],
        ),
        (
            "files beside https",
            beside_https("files", &json!(["*"])),
            &["files does not work with an https:// source"],
        ),
        (
            "revision that climbs",
            model("revision", json!("../main")),
            &["spec.model.revision"],
        ),
        (
            "endpoint without a scheme",
            model("endpoint", json!("mirror:8000")),
            &["spec.model.endpoint", "must be an address"],
        ),
        (
            "files that climb",
            model("files", json!(["../*.gguf"])),
            &["spec.model.files", "no '..'"],
        ),
        (
            "absolute files",
            model("files", json!(["/etc/passwd"])),
            &["spec.model.files", "leading '/'"],
        ),
        (
            "empty list of files",
            model("files", json!([])),
            &["spec.model.files", "at least 1"],
        ),
        (
            "served name with a space",
            model("servedName", json!("my model")),
            &["spec.model.servedName", "qwen2.5-7b"],
        ),
    ]
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn about_the_rest() -> Vec<Case> {
    let gpu = |gpu: Value| spec("resources", json!({"gpu": gpu}));
    let runtime = |field: &str, value: Value| spec("runtime", json!({field: value}));
    let service = |field: &str, value: Value| spec("service", json!({field: value}));
    vec![
        (
            "unknown field",
            spec("replcas", json!(2)),
            &["spec.replcas", "field not declared in schema"],
        ),
        (
            "negative replicas",
            spec("replicas", json!(-1)),
            &["spec.replicas", "greater than or equal to 0"],
        ),
        (
            "replicas as text",
            spec("replicas", json!("two")),
            &["spec.replicas", "expected numeric"],
        ),
        (
            "long object name",
            name(&"a".repeat(41)),
            &["metadata.name", "40 characters"],
        ),
        (
            "object name that begins with a digit",
            name("7b"),
            &["metadata.name", "begin with a letter"],
        ),
        (
            "two GPUs",
            gpu(json!({"count": 2})),
            &["spec.resources.gpu.count", "0 or 1"],
        ),
        (
            "negative GPUs",
            gpu(json!({"count": -1})),
            &["spec.resources.gpu.count"],
        ),
        (
            "GPU without a domain",
            gpu(json!({"count": 1, "resourceName": "gpu"})),
            &["spec.resources.gpu.resourceName", "nvidia.com/gpu"],
        ),
        (
            "memory that is no quantity",
            spec("resources", json!({"memory": "8 Gigs"})),
            &["spec.resources.memory"],
        ),
        (
            "context of zero",
            runtime("maxContext", json!(0)),
            &["spec.runtime.maxContext", "greater than or equal to 1"],
        ),
        (
            "concurrency of zero",
            runtime("maxConcurrency", json!(0)),
            &["spec.runtime.maxConcurrency"],
        ),
        (
            "image with a space",
            runtime("image", json!("a b")),
            &["spec.runtime.image", "without spaces"],
        ),
        (
            "service type",
            service("type", json!("ExternalName")),
            &["spec.service.type", "ClusterIP"],
        ),
        ("service port", service("port", json!(70000)), &["spec.service.port"]),
        (
            "drain",
            spec("drain", json!({"timeoutSeconds": -5})),
            &["spec.drain.timeoutSeconds"],
        ),
        (
            "suspend as text",
            spec("suspend", json!("yes")),
            &["spec.suspend", "boolean"],
        ),
    ]
}
