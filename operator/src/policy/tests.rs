//! What policies say to a spec, field by field.

use super::*;
use serde_json::{Value, json};

const KEY: &str = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEa5fLUxS5HmCtMRIMYdKv0z7zDPPq\n-----END PUBLIC KEY-----\n";

fn policy(name: &str, spec: &Value) -> Arc<ModelPolicy> {
    let policy = json!({
        "apiVersion": "escadre.dev/v1alpha1", "kind": "ModelPolicy", "metadata": {"name": name}, "spec": spec,
    });
    Arc::new(serde_json::from_value(policy).unwrap())
}

fn spec(model: &Value) -> LlmDeploymentSpec {
    let mut full = json!({
        "source": "hf://owner/name",
        "verification": {"digest": format!("sha256:{}", "0a".repeat(32))},
    });
    for (key, value) in model.as_object().unwrap() {
        full[key] = value.clone();
    }
    serde_json::from_value(json!({"model": full})).unwrap()
}

fn messages(model: &Value, policies: &[Value]) -> Vec<String> {
    let policies: Vec<_> = policies.iter().map(|spec| policy("prod", spec)).collect();
    let judgement = judge(&spec(model), &policies);
    judgement
        .violations
        .into_iter()
        .map(|violation| violation.message)
        .collect()
}

#[test]
fn what_the_manifest_shows_is_judged_before_there_are_pods() {
    let table = [
        (json!({}), json!({}), None),
        (json!({}), json!({"sources": {"allow": ["hf://owner/*"]}}), None),
        (
            json!({"source": "hf://owner/name"}),
            json!({"sources": {"allow": ["oci://**", "hf://*/name"]}}),
            None,
        ),
        (
            json!({"source": "https://example.com/a/b.gguf"}),
            json!({"sources": {"allow": ["https://example.com/*"]}}),
            Some("sources.allow: models may come from https://example.com/* only"),
        ),
        (
            json!({"source": "https://example.com/a/b.gguf"}),
            json!({"sources": {"allow": ["https://example.com/**"]}}),
            None,
        ),
        (
            json!({}),
            json!({"sources": {"allow": ["hf://[owner/*"]}}),
            Some("the policy itself cannot be used"),
        ),
        (
            json!({}),
            json!({"verification": {"minimumLevel": "Signed"}}),
            Some("name the signer in spec.model.verification.signatures"),
        ),
        (
            json!({"format": "GGUF"}),
            json!({"formats": ["Safetensors"]}),
            Some("formats: spec.model.format is not one"),
        ),
        (
            json!({"format": "GGUF"}),
            json!({"formats": ["Safetensors", "GGUF"]}),
            None,
        ),
        (json!({}), json!({"formats": ["Safetensors"]}), None),
        (
            json!({"license": "LicenseRef-llama3"}),
            json!({"licenses": {"deny": ["LicenseRef-llama3"]}}),
            Some("licenses: spec.model.license: the model's licence is not one that may be used"),
        ),
        (
            json!({"license": "MIT"}),
            json!({"licenses": {"allow": ["Apache-2.0", "MIT"]}}),
            None,
        ),
        (json!({}), json!({"licenses": {"allow": ["Apache-2.0"]}}), None),
        (
            json!({}),
            json!({"licenses": {"allow": ["Apache 2"]}}),
            Some("the policy itself cannot be used"),
        ),
        (
            json!({}),
            json!({"signatures": {"anyOf": [{"publicKey": KEY}]}}),
            Some("the policy itself cannot be used"),
        ),
        (
            json!({}),
            json!({"signatures": {"anyOf": [{}]}}),
            Some("anyOf[0] must have exactly one of"),
        ),
    ];
    for (model, demanded, expected) in table {
        let found = messages(&model, std::slice::from_ref(&demanded));
        match expected {
            None => assert_eq!(found, [""; 0], "{model} {demanded}"),
            Some(words) => {
                assert_eq!(found.len(), 1, "{model} {demanded}: {found:?}");
                assert!(
                    found[0].starts_with("ModelPolicy prod, ") && found[0].contains(words),
                    "{}",
                    found[0]
                );
            }
        }
    }
}

#[test]
fn all_policies_hold_and_the_strictest_decides() {
    let deny = |on: &str| json!({"sources": {"allow": ["oci://**"]}, "onViolation": on});
    let policies = [
        policy("a", &deny("Alert")),
        policy("b", &deny("Drain")),
        policy("c", &deny("Refuse")),
        policy("d", &json!({})),
    ];
    let judgement = judge(&spec(&json!({})), &policies);
    assert_eq!(judgement.violations.len(), 3);
    let strictest = judgement.strictest().unwrap();
    assert_eq!(strictest.on_violation, OnViolation::Drain);
    assert!(
        strictest.message.starts_with("ModelPolicy b, "),
        "{}",
        strictest.message
    );
    assert_eq!(judge(&spec(&json!({})), &[]), Judgement::default());
}

/// The runtime reads this text; its own tests read the same fields.
#[test]
fn what_only_the_model_shows_is_handed_to_the_pods() {
    let template = format!("sha256:{}", "1b".repeat(32));
    let policies = [
        policy(
            "licences",
            &json!({"licenses": {"deny": ["MIT"]}, "formats": ["GGUF"], "templates": {"approvedDigests": [template]}}),
        ),
        policy("none", &json!({"sources": {"allow": ["hf://**"]}})),
    ];
    let judgement = judge(&spec(&json!({"license": "Apache-2.0"})), &policies);
    assert_eq!(judgement.violations, []);
    assert_eq!(
        serde_json::to_value(&judgement.requirements).unwrap(),
        json!([
            {"by": "spec.model", "license": "Apache-2.0"},
            {"by": "ModelPolicy licences", "licenses": {"deny": ["MIT"]}, "templates": [template], "formats": ["GGUF"]},
        ])
    );
}

#[test]
fn own_demands_must_be_usable() {
    assert_eq!(check_own(&spec(&json!({"license": "Apache-2.0"}))), Ok(()));
    let error = check_own(&spec(&json!({"license": "Apache 2"}))).unwrap_err();
    assert!(error.starts_with("spec.model.license: "), "{error}");
    let digest = format!("sha256:{}", "0a".repeat(32));
    let signed = json!({"verification": {"digest": digest, "signatures": {"anyOf": [{"publicKey": KEY}]}}});
    let error = check_own(&spec(&signed)).unwrap_err();
    assert!(
        error.starts_with("spec.model.verification.signatures.anyOf[0]: "),
        "{error}"
    );
}

#[test]
fn requirements_that_no_argument_can_hold_are_refused() {
    let many = json!({"templates": {"approvedDigests": vec![format!("sha256:{}", "1b".repeat(32)); 128]}});
    let policies = vec![policy("big", &many); 12];
    let judgement = judge(&spec(&json!({})), &policies);
    assert!(
        judgement.violations[0].message.contains("a pod can be told"),
        "{judgement:?}"
    );
}
