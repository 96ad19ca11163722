//! The rules accept what works and refuse what does not, with a sentence on what to do.

use super::*;
use serde_json::{Value, json};

/// Any digest.
const DIGEST: &str = "sha256:0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a";

fn object() -> Value {
    json!({
        "apiVersion": "escadre.dev/v1alpha1",
        "kind": "LlmDeployment",
        "metadata": {"name": "support-fr"},
        "spec": {"model": {
            "source": "hf://owner/name.v2",
            "verification": {"digest": DIGEST},
        }},
    })
}

/// The object with one field set, judged by the rules.
fn judge(pointer: &str, value: Value) -> Result<(), String> {
    let mut changed = object();
    let mut place = &mut changed;
    for part in pointer.split('.') {
        place = &mut place[part];
    }
    *place = value;
    let parsed: LlmDeployment = serde_json::from_value(changed).map_err(|error| error.to_string())?;
    parsed.validate_cel().map_err(|errors| format!("{errors}"))
}

#[track_caller]
fn refused(pointer: &str, value: Value, words: &str) {
    let shown = value.to_string();
    let error = judge(pointer, value).expect_err(&format!("{pointer}={shown} is accepted"));
    assert!(error.contains(words), "{pointer}={shown}: {error}");
}

#[test]
fn minimal_object_gets_its_defaults() {
    let parsed: LlmDeployment = serde_json::from_value(object()).unwrap();
    parsed.validate_cel().unwrap();
    assert_eq!(parsed.spec.replicas, 1);
    assert_eq!(parsed.spec.service.port, 80);
    assert_eq!(parsed.spec.drain.timeout_seconds, 120);
    assert!(!parsed.spec.suspend);
}

#[test]
fn names_that_pods_can_carry() {
    judge("metadata.name", json!("a".repeat(40))).unwrap();
    for name in ["a".repeat(41).as_str(), "qwen2.5", "1st", "Upper", "ends-", ""] {
        refused(
            "metadata.name",
            json!(name),
            "metadata.name must be at most 40 characters",
        );
    }
}

#[test]
fn sources_that_work() {
    for source in [
        "hf://owner/name",
        "hf://HuggingFaceTB/SmolLM2-135M-Instruct-GGUF",
        "https://h/f.gguf",
        "https://h.example:8443/a/b%20c.gguf?x=1",
        "oci://ghcr.io/org/model_a.v2:v1.0",
        &format!("oci://r:5000/x@{DIGEST}"),
        &format!("oci://r/x/y:v1@{DIGEST}"),
        "s3://models",
        "s3://models.v2/",
        "s3://models/team/tiny+1=é",
        "s3://models/team/tiny/",
    ] {
        judge("spec.model.source", json!(source)).unwrap();
    }
    for source in [
        "gs://b/p",
        "pvc://c/p",
        "file:///x",
        "http://h/f",
        "owner/name",
        "HF://a/b",
    ] {
        refused(
            "spec.model.source",
            json!(source),
            "must be hf://<owner>/<name>, oci://",
        );
    }
    for source in [
        "hf://name",
        "hf://a/b/c",
        "hf://a/b,https://c/d",
        "hf://a/b@main",
        "hf:// a/b",
        "hf://../b",
    ] {
        refused("spec.model.source", json!(source), "must look like hf://");
    }
    for source in [
        "https://h",
        "https://h/",
        "https://u:p@h/f",
        "https://h/f#x",
        "https://h/a b",
        "https://h/f,hf://a/b",
        "https:///f",
    ] {
        refused("spec.model.source", json!(source), "must look like https://");
    }
}

#[test]
fn sources_in_registries_and_buckets_that_do_not_work() {
    for source in [
        "oci://r",
        "oci://r/x",
        "oci://r/X:v1",
        "oci://r/x:",
        "oci://r/../x:v1",
        "oci://r//x:v1",
        "oci://u:p@r/x:v1",
        "oci://r/x@sha256:12",
        "oci://r:5000/x",
        "oci://r/x:v1?y=1",
        "oci://r/x:v1 y",
    ] {
        refused("spec.model.source", json!(source), "must look like oci://");
    }
    for source in [
        "s3://",
        "s3://b",
        "s3:///key",
        "s3://k:s@bucket/x",
        "s3://bucket/../x",
        "s3://bucket/x/..",
        "s3://bucket/a//b",
        "s3://bucket/a b",
        "s3://bucket/a,s3://other/b",
        "s3://bucket/a?versionId=1",
    ] {
        refused("spec.model.source", json!(source), "must look like s3://");
    }
}

#[test]
fn fields_without_effect_are_refused() {
    const HUB: &str = "hf://owner/name";
    const REGISTRY: &str = "oci://r/x:v1";
    const BUCKET: &str = "s3://models/x";
    const FILE: &str = "https://h/f.gguf";
    for (field, value, works, refused) in [
        (
            "endpoint",
            json!("https://m"),
            &[HUB, BUCKET][..],
            &[REGISTRY, FILE][..],
        ),
        ("revision", json!("main"), &[HUB], &[REGISTRY, BUCKET, FILE]),
        ("files", json!(["*.gguf"]), &[HUB, REGISTRY, BUCKET], &[FILE]),
        ("format", json!("Safetensors"), &[HUB, REGISTRY, BUCKET], &[FILE]),
    ] {
        let judged = |source: &str| {
            let mut changed = object();
            changed["spec"]["model"]["source"] = json!(source);
            changed["spec"]["model"][field] = value.clone();
            let parsed: LlmDeployment = serde_json::from_value(changed).unwrap();
            parsed.validate_cel().map_err(|error| error.to_string())
        };
        for source in works {
            judged(source).unwrap();
        }
        for source in refused {
            let error = judged(source).unwrap_err();
            assert!(error.contains(&format!("spec.model.{field}")), "{source}: {error}");
        }
    }
}

#[test]
fn endpoints_that_work() {
    for endpoint in [
        "http://mirror.escadre-demo.svc.cluster.local:8000",
        "https://hf.example.com/sub/path",
        "https://m",
    ] {
        judge("spec.model.endpoint", json!(endpoint)).unwrap();
    }
    for endpoint in [
        "mirror:8000",
        "ftp://m",
        "https://u@m",
        "https://m?q",
        "https://m#f",
        "https://m /x",
    ] {
        refused("spec.model.endpoint", json!(endpoint), "must be an address like");
    }
}

#[test]
fn digests_that_work() {
    for digest in [
        "abc",
        "sha256:abc",
        "sha512:aa",
        &format!("sha256:{}", "0A".repeat(32)),
        &format!("sha256:{}", "0".repeat(65)),
    ] {
        refused(
            "spec.model.verification.digest",
            json!(digest),
            "64 lower-case hexadecimal digits",
        );
    }
}

#[test]
fn files_stay_in_the_repository() {
    judge("spec.model.files", json!(["*.gguf", "sub/*.json", "a..b"])).unwrap();
    for glob in ["/etc/passwd", "../x", "a/../b", "a\\b", "a b"] {
        refused(
            "spec.model.files",
            json!([glob]),
            "must be globs relative to the repository",
        );
    }
}

#[test]
fn revisions_and_names_that_work() {
    judge("spec.model.revision", json!("refs/pr/1")).unwrap();
    refused("spec.model.revision", json!("a..b"), "must be a branch");
    refused("spec.model.revision", json!("a b"), "must be a branch");
    judge("spec.model.servedName", json!("Qwen/qwen2.5-7b:latest")).unwrap();
    refused(
        "spec.model.servedName",
        json!("two words"),
        "spec.model.servedName must be",
    );
    refused("spec.runtime", json!({"image": "a b"}), "must be an image reference");
}

#[test]
fn more_than_one_gpu_is_refused() {
    judge("spec.resources", json!({"gpu": {"count": 1}})).unwrap();
    judge(
        "spec.resources",
        json!({"gpu": {"count": 1, "resourceName": "nvidia.com/mig-1g.10gb"}}),
    )
    .unwrap();
    refused("spec.resources", json!({"gpu": {"count": 2}}), "must be 0 or 1");
    refused(
        "spec.resources",
        json!({"gpu": {"resourceName": "gpu"}}),
        "must be an extended resource",
    );
}

#[test]
fn quantities_are_above_zero() {
    for quantity in ["2", "500m", "1.5Gi", "1e3"] {
        judge("spec.resources", json!({"cpu": quantity, "memory": quantity})).unwrap();
    }
    for quantity in ["lots", "0", "-1", "1Q"] {
        refused(
            "spec.resources",
            json!({"cpu": quantity}),
            "spec.resources.cpu must be a quantity above 0",
        );
        refused(
            "spec.resources",
            json!({"memory": quantity}),
            "spec.resources.memory must be a quantity above 0",
        );
    }
}

#[test]
fn own_annotations_are_refused_on_the_service() {
    judge("spec.service", json!({"annotations": {"example.com/a": "b"}})).unwrap();
    refused(
        "spec.service",
        json!({"annotations": {"escadre.dev/applied": "x"}}),
        "must not use keys that begin with escadre.dev/",
    );
}

#[test]
fn arguments_cannot_step_round_verification() {
    judge(
        "spec.runtime",
        json!({"args": ["--threads=4", "--digestive", "--log", "debug"]}),
    )
    .unwrap();
    for (args, words) in [
        (json!(["--digest=sha256:00"]), "they decide which bytes are served"),
        (
            json!(["--threads=4", "--model", "/x"]),
            "they decide which bytes are served",
        ),
        (json!(["--max-context=9"]), "spec.runtime.maxContext"),
        (json!(["--port=1"]), "addresses, ports"),
        (json!(["--trace-sampling", "1"]), "use spec.observability.tracing"),
        (json!(["--help"]), "remove --help"),
    ] {
        refused("spec.runtime", json!({"args": args}), words);
    }
}

#[test]
fn environment_takes_secrets_by_reference_only() {
    let reference = json!({"name": "API_TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}});
    judge(
        "spec.runtime",
        json!({"env": [reference, {"name": "MODE", "value": "x"}]}),
    )
    .unwrap();
    for (variable, words) in [
        (json!({"name": "hf_token", "value": "x"}), "use valueFrom.secretKeyRef"),
        (
            json!({"name": "DB_PASSWORD", "value": ""}),
            "use valueFrom.secretKeyRef",
        ),
        (
            json!({"name": "ESCADRE_LOG", "value": "debug"}),
            "must not begin with ESCADRE_",
        ),
        (json!({"name": "LD_PRELOAD", "value": "/x.so"}), "program loader"),
        (json!({"name": "1A", "value": "x"}), "must be a name of a variable"),
        (
            json!({"name": "A", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}),
            "value or valueFrom, not both",
        ),
    ] {
        refused("spec.runtime", json!({"env": [variable]}), words);
    }
}

#[test]
fn overlay_files_are_templates_and_configuration() {
    judge("spec.files", json!([{"path": "chat_template.jinja", "inline": "x"}])).unwrap();
    let reference = json!({"name": "templates", "key": "chat.jinja"});
    judge(
        "spec.files",
        json!([{"path": "generation_config.json", "configMapRef": reference}]),
    )
    .unwrap();
    for (file, words) in [
        (json!({"path": "../x", "inline": "x"}), "without '..'"),
        (
            json!({"path": "/etc/x", "inline": "x"}),
            "relative to the model's folder",
        ),
        (
            json!({"path": "model.safetensors", "inline": "x"}),
            "belong to the digest",
        ),
        (json!({"path": "config.json", "inline": "{}"}), "belong to the digest"),
        (json!({"path": "chat_template.jinja"}), "exactly one of them"),
        (
            json!({"path": "chat_template.jinja", "inline": "x", "configMapRef": reference}),
            "exactly one of them",
        ),
    ] {
        refused("spec.files", json!([file]), words);
    }
}

#[test]
fn disruption_is_a_number_or_a_percentage() {
    for value in [json!(0), json!(3), json!("50%"), json!("100%"), json!("0%")] {
        judge("spec.disruption", json!({"minAvailable": value})).unwrap();
    }
    for value in [json!(-1), json!("101%"), json!("half"), json!("1.5")] {
        refused(
            "spec.disruption",
            json!({"minAvailable": value}),
            "spec.disruption.minAvailable must be a number of pods",
        );
    }
}

#[test]
fn own_labels_and_annotations_are_refused_on_pods() {
    judge(
        "spec.podLabels",
        json!({"team": "search", "app.kubernetes.io/name": "x"}),
    )
    .unwrap();
    for key in [
        "escadre.dev/slot",
        "app.kubernetes.io/component",
        "app.kubernetes.io/managed-by",
    ] {
        refused("spec.podLabels", json!({key: "x"}), "use another key");
    }
    refused("spec.podLabels", json!({"team": "two words"}), "must have values");
    judge("spec.podAnnotations", json!({"example.com/x": "two words"})).unwrap();
    refused("spec.podAnnotations", json!({"escadre.dev/x": "y"}), "use another key");
    refused(
        "spec.podAnnotations",
        json!({"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}),
        "use spec.disruption.safeToEvict",
    );
}

#[test]
fn proxies_that_work() {
    judge(
        "spec.network",
        json!({"httpsProxy": "http://proxy.corp:3128", "noProxy": ".svc,10.0.0.0/8", "caBundleRef": {"name": "ca"}}),
    )
    .unwrap();
    for proxy in ["proxy:3128", "http://user:pass@proxy", "socks5://p", "http://p/x"] {
        refused(
            "spec.network",
            json!({"httpsProxy": proxy}),
            "must be an address like http://proxy",
        );
    }
    refused(
        "spec.network",
        json!({"noProxy": "a"}),
        "works with spec.network.httpsProxy only",
    );
    refused(
        "spec.network",
        json!({"httpsProxy": "http://p", "noProxy": "a, b"}),
        "without spaces",
    );
}

#[test]
fn spans_go_to_an_address_and_the_rest_is_a_share() {
    for tracing in [
        json!({"endpoint": "http://collector.observability.svc:4318"}),
        json!({"endpoint": "https://otlp.example.com/tenant-1", "sampling": 0}),
        json!({"endpoint": "http://10.0.0.7:4318/", "sampling": 0.05}),
    ] {
        judge("spec.observability", json!({"tracing": tracing})).unwrap();
    }
    for endpoint in [
        "collector:4318",
        "grpc://collector:4317",
        "http://user:pass@collector",
        "http://c?x=y",
    ] {
        refused(
            "spec.observability",
            json!({"tracing": {"endpoint": endpoint}}),
            "spec.observability.tracing.endpoint must be an address like",
        );
    }
    for sampling in [json!(1.5), json!(-0.1)] {
        refused(
            "spec.observability",
            json!({"tracing": {"endpoint": "http://collector:4318", "sampling": sampling}}),
            "spec.observability.tracing.sampling must be a share",
        );
    }
    refused("spec.observability", json!({"tracing": {}}), "endpoint");
}

#[test]
fn format_needs_a_source_that_can_have_it() {
    judge("spec.model.format", json!("Safetensors")).unwrap();
    let mut changed = object();
    changed["spec"]["model"]["source"] = json!("https://h/f.gguf");
    changed["spec"]["model"]["format"] = json!("Safetensors");
    let parsed: LlmDeployment = serde_json::from_value(changed).unwrap();
    let error = parsed.validate_cel().unwrap_err().to_string();
    assert!(
        error.contains("spec.model.format Safetensors does not work with an https:// source"),
        "{error}"
    );
    refused("spec.model.format", json!("pickle"), "unknown variant");
}

/// Everything of `golden` is in `parsed`: a later version may add its defaults, and nothing else.
#[track_caller]
fn kept(golden: &Value, parsed: &Value, path: &str) {
    match (golden, parsed) {
        (Value::Object(golden), Value::Object(parsed)) => {
            for (key, value) in golden {
                kept(value, parsed.get(key).unwrap_or(&Value::Null), &format!("{path}.{key}"));
            }
        }
        (golden, parsed) => assert_eq!(golden, parsed, "{path}"),
    }
}

/// Objects that were written with this version must parse in every later one.
#[test]
fn golden_object_still_parses() {
    let golden: Value = serde_json::from_str(include_str!("golden.json")).unwrap();
    let parsed: LlmDeployment = serde_json::from_value(golden.clone()).unwrap();
    parsed.validate_cel().unwrap();
    kept(&golden, &serde_json::to_value(&parsed).unwrap(), "");
}

/// The same for an object that uses every field.
#[test]
fn golden_object_with_every_field_still_parses() {
    let golden: Value = serde_json::from_str(include_str!("golden_fields.json")).unwrap();
    let parsed: LlmDeployment = serde_json::from_value(golden.clone()).unwrap();
    parsed.validate_cel().unwrap();
    assert_eq!(serde_json::to_value(&parsed).unwrap(), golden);
}

#[test]
fn rollouts_that_work() {
    for rollout in [
        json!({}),
        json!({"strategy": "Surge", "maxSurge": "25%", "maxUnavailable": 0}),
        json!({"strategy": "Surge", "maxSurge": 0, "maxUnavailable": 1}),
        json!({"strategy": "InPlace", "maxSurge": 0, "maxUnavailable": 0}),
        json!({"maxSurge": 0, "maxUnavailable": "0%"}),
        json!({"strategy": "Recreate"}),
        json!({"strategy": "Canary", "canary": {"steps": [{"replicas": 1, "pause": "1h30m"}, {"replicas": 2}]}}),
        json!({"strategy": "Canary", "canary": {"steps": [{"weight": 5}, {"weight": 50}, {"weight": 100}]}}),
        json!({"gates": {"maxErrorRate": 0.01, "maxTimeToFirstToken": "1500ms", "window": "2m"}}),
        json!({"gates": {"probePrompt": {"prompt": "2+2?", "expectContains": "4"}}}),
        json!({"progressDeadline": "90s", "paused": true, "autoRollback": false, "revisionHistoryLimit": 0}),
    ] {
        let shown = rollout.to_string();
        judge("spec.rollout", rollout).unwrap_or_else(|error| panic!("{shown}: {error}"));
    }
}

#[test]
fn rollouts_that_cannot_work() {
    let canary = |steps: Value| json!({"strategy": "Canary", "canary": {"steps": steps}});
    for (rollout, words) in [
        (json!({"strategy": "Surge", "maxSurge": 0}), "must not both be 0"),
        (
            json!({"strategy": "Surge", "maxSurge": "0%", "maxUnavailable": "00%"}),
            "maxUnavailable must be a number",
        ),
        (
            json!({"strategy": "Recreate", "maxSurge": 1}),
            "no effect with strategy Recreate",
        ),
        (json!({"strategy": "Canary"}), "Canary needs it"),
        (
            json!({"strategy": "Surge", "canary": {"steps": [{"replicas": 1}]}}),
            "belongs to strategy Canary",
        ),
        (
            canary(json!([{"replicas": 1}, {"weight": 50}])),
            "use one of them for all steps",
        ),
        (canary(json!([{"replicas": 2}, {"replicas": 2}])), "must rise strictly"),
        (canary(json!([{"weight": 50}, {"weight": 20}])), "must rise strictly"),
        (canary(json!([{"pause": "1m"}])), "replicas or weight"),
        (canary(json!([{"replicas": 1, "weight": 1}])), "replicas or weight"),
        (json!({"maxSurge": "1.5"}), "maxSurge must be a number of pods"),
        (
            json!({"maxUnavailable": "101%"}),
            "maxUnavailable must be a number of pods",
        ),
        (json!({"progressDeadline": "30"}), "a length of time like"),
        (json!({"gates": {"window": "1d"}}), "a length of time like"),
    ] {
        refused("spec.rollout", rollout, words);
    }
}
