//! What the API server itself refuses: each manifest with the field that is wrong and the words that say what to do.

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
    for (what, manifest, words) in table() {
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

/// (what is wrong, manifest, words of the message)
fn table() -> Vec<(&'static str, Value, Vec<&'static str>)> {
    let model = |field: &'static str, value: Value| manifest(move |manifest| manifest["spec"]["model"][field] = value);
    let spec = |field: &'static str, value: Value| manifest(move |manifest| manifest["spec"][field] = value);
    vec![
        (
            "unknown field",
            spec("replcas", json!(2)),
            vec!["spec.replcas", "field not declared in schema"],
        ),
        (
            "unknown nested field",
            model("sorce", json!("x")),
            vec!["spec.model.sorce"],
        ),
        (
            "negative replicas",
            spec("replicas", json!(-1)),
            vec!["spec.replicas", "greater than or equal to 0"],
        ),
        (
            "no model",
            manifest(|m| m["spec"] = json!({})),
            vec!["spec.model", "Required"],
        ),
        (
            "no digest",
            model("verification", json!({})),
            vec!["spec.model.verification.digest", "Required"],
        ),
        (
            "no verification",
            manifest(|m| m["spec"]["model"] = json!({"source": "hf://a/b"})),
            vec!["spec.model.verification", "Required"],
        ),
        (
            "digest in capitals",
            model("verification", json!({"digest": DIGEST.to_uppercase()})),
            vec!["spec.model.verification.digest", "64 lower-case"],
        ),
        (
            "digest of another algorithm",
            model("verification", json!({"digest": "md5:00"})),
            vec!["spec.model.verification.digest", "sha256:"],
        ),
        (
            "two sources in one",
            model("source", json!("hf://a/b,https://c/d")),
            vec!["spec.model.source", "hf://<owner>/<name>"],
        ),
        (
            "two https sources",
            model("source", json!("https://a/b https://c/d")),
            vec!["spec.model.source", "one address"],
        ),
        (
            "source without a scheme",
            model("source", json!("SmolLM2")),
            vec!["spec.model.source", "hf://<owner>/<name> or https://"],
        ),
        (
            "plain http",
            model("source", json!("http://a/b.gguf")),
            vec!["spec.model.source", "https://"],
        ),
        (
            "source that comes later",
            model("source", json!("s3://bucket/prefix")),
            vec!["spec.model.source", "not supported"],
        ),
        (
            "hf source without a name",
            model("source", json!("hf://owner")),
            vec!["spec.model.source", "hf://<owner>/<name>"],
        ),
        (
            "password in the address",
            model("source", json!("https://user:secret@host/x.gguf")),
            vec!["spec.model.source", "without user name"],
        ),
        (
            "endpoint beside https",
            manifest(|m| {
                m["spec"]["model"] =
                    json!({"source": "https://a/b.gguf", "endpoint": "https://m", "verification": {"digest": DIGEST}})
            }),
            vec!["spec.model", "endpoint works with an hf:// source only"],
        ),
        (
            "revision beside https",
            manifest(|m| {
                m["spec"]["model"] =
                    json!({"source": "https://a/b.gguf", "revision": "main", "verification": {"digest": DIGEST}})
            }),
            vec!["revision works with an hf:// source only"],
        ),
        (
            "files beside https",
            manifest(|m| {
                m["spec"]["model"] =
                    json!({"source": "https://a/b.gguf", "files": ["*"], "verification": {"digest": DIGEST}})
            }),
            vec!["files works with an hf:// source only"],
        ),
        (
            "revision that climbs",
            model("revision", json!("../main")),
            vec!["spec.model.revision"],
        ),
        (
            "endpoint without a scheme",
            model("endpoint", json!("mirror:8000")),
            vec!["spec.model.endpoint", "must be an address"],
        ),
        (
            "files that climb",
            model("files", json!(["../*.gguf"])),
            vec!["spec.model.files", "no '..'"],
        ),
        (
            "absolute files",
            model("files", json!(["/etc/passwd"])),
            vec!["spec.model.files", "leading '/'"],
        ),
        (
            "empty list of files",
            model("files", json!([])),
            vec!["spec.model.files", "at least 1"],
        ),
        (
            "served name with a space",
            model("servedName", json!("my model")),
            vec!["spec.model.servedName", "qwen2.5-7b"],
        ),
        (
            "long object name",
            manifest(|m| m["metadata"]["name"] = json!("a".repeat(41))),
            vec!["metadata.name", "40 characters"],
        ),
        (
            "object name that begins with a digit",
            manifest(|m| m["metadata"]["name"] = json!("7b")),
            vec!["metadata.name", "begin with a letter"],
        ),
        (
            "two GPUs",
            spec("resources", json!({"gpu": {"count": 2}})),
            vec!["spec.resources.gpu.count", "0 or 1"],
        ),
        (
            "negative GPUs",
            spec("resources", json!({"gpu": {"count": -1}})),
            vec!["spec.resources.gpu.count"],
        ),
        (
            "GPU resource without a domain",
            spec("resources", json!({"gpu": {"count": 1, "resourceName": "gpu"}})),
            vec!["spec.resources.gpu.resourceName", "nvidia.com/gpu"],
        ),
        (
            "memory that is no quantity",
            spec("resources", json!({"memory": "8 Gigs"})),
            vec!["spec.resources.memory"],
        ),
        (
            "context of zero",
            spec("runtime", json!({"maxContext": 0})),
            vec!["spec.runtime.maxContext", "greater than or equal to 1"],
        ),
        (
            "concurrency of zero",
            spec("runtime", json!({"maxConcurrency": 0})),
            vec!["spec.runtime.maxConcurrency"],
        ),
        (
            "image with a space",
            spec("runtime", json!({"image": "a b"})),
            vec!["spec.runtime.image", "without spaces"],
        ),
        (
            "service type",
            spec("service", json!({"type": "ExternalName"})),
            vec!["spec.service.type", "ClusterIP"],
        ),
        (
            "service port",
            spec("service", json!({"port": 70000})),
            vec!["spec.service.port"],
        ),
        (
            "drain",
            spec("drain", json!({"timeoutSeconds": -5})),
            vec!["spec.drain.timeoutSeconds"],
        ),
        (
            "suspend as text",
            spec("suspend", json!("yes")),
            vec!["spec.suspend", "boolean"],
        ),
        (
            "replicas as text",
            spec("replicas", json!("two")),
            vec!["spec.replicas", "expected numeric"],
        ),
    ]
}
