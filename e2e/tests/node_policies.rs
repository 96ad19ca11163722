//! Policies on a real node: a signed model is served, and nothing else under the same policy.

#![expect(clippy::unwrap_used, reason = "a helper of tests fails the test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use escadre_e2e::escadre::{self, MODEL_FILE};
use escadre_e2e::policy::TestPolicy;
use escadre_e2e::scenario::Scenario;
use escadre_e2e::testing::CONTEXT_VARIABLE;
use serde_json::{Value, json};

const REPOSITORY: &str = "signed";

/// Runs a program, which must succeed.
fn run(program: &Path, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new(program).args(arguments).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{} {arguments:?}: {error}", program.display());
    output.stdout
}

/// A new key: its file, and its public part.
fn key(folder: &Path, name: &str) -> (PathBuf, String) {
    let file = folder.join(name);
    let path = file.to_str().unwrap();
    let openssl = Path::new("openssl");
    run(
        openssl,
        &["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", path],
    );
    let public = run(openssl, &["pkey", "-in", path, "-pubout"]);
    (file, String::from_utf8(public).unwrap())
}

/// The real model in a folder with its signature, on the mirror. Returns the digest of the folder.
fn publish(root: &Path, key: &Path) -> String {
    let folder = root.join("fixture-owner").join(REPOSITORY);
    fs::create_dir_all(&folder).unwrap();
    let model = folder.join(MODEL_FILE);
    let source = root.join("fixture-owner/smollm2").join(MODEL_FILE);
    let _ = fs::remove_file(&model);
    fs::hard_link(&source, &model).unwrap();
    let _ = fs::remove_file(folder.join("model.sig"));
    let runtime = escadre::program("escadre-runtime").unwrap();
    let folder = folder.to_str().unwrap();
    run(&runtime, &["sign", "--model", folder, "--key", key.to_str().unwrap()]);
    let found = run(&runtime, &["inspect", "--model", folder, "--json"]);
    let found: Value = serde_json::from_slice(&found).unwrap();
    found["model"]["digest"].as_str().unwrap().to_owned()
}

fn trusts(public: &str) -> Value {
    json!({"signatures": {"anyOf": [{"publicKey": public}]}, "verification": {"minimumLevel": "Signed"}})
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_the_policy_trusts_is_served_and_what_serves_goes_on() {
    let scenario = Scenario::start().await.unwrap();
    let Ok(cluster) = scenario.test_bed() else {
        eprintln!("skipped: {CONTEXT_VARIABLE} names a cluster, and the signed model is on the test bed");
        return;
    };
    let keys = tempfile::tempdir().unwrap();
    let ((private, public), (_, other)) = (key(keys.path(), "ours.pem"), key(keys.path(), "other.pem"));
    let digest = publish(&escadre::mirror_root(cluster).unwrap(), &private);
    let policy = TestPolicy::create(scenario.namespace(), "prod", &trusts(&public))
        .await
        .unwrap();

    // Without a signature among its files.
    scenario.create(scenario.model("bare")).await.unwrap();
    let (message, _) = scenario
        .await_failure("bare", "ModelVerified", "FileMissing")
        .await
        .unwrap();
    assert!(
        message.contains(&policy.name) && message.contains("model.sig"),
        "{message}"
    );
    scenario.delete("bare").await.unwrap();

    let signed = scenario
        .model("signed")
        .model(&format!("hf://fixture-owner/{REPOSITORY}"), &digest)
        .set("/spec/model/files", json!([MODEL_FILE, "model.sig"]));
    scenario.create(signed).await.unwrap();
    let status = scenario.await_ready("signed").await.unwrap();
    let verification = status.verification.unwrap();
    assert_eq!(verification.method.as_deref(), Some("Signature"));
    assert!(verification.signer.unwrap().starts_with("key sha256:"));
    assert_eq!(status.model.unwrap().license.as_deref(), Some("Apache-2.0"));
    let before = scenario.ready_pods("signed").await.unwrap();

    // Another key is trusted from now on: what serves goes on, what is new is refused.
    policy
        .edit(&json!({"signatures": {"anyOf": [{"publicKey": other}]}}))
        .await
        .unwrap();
    still_serves(&scenario, "KeyNotTrusted", &before, &policy.name).await;
    policy
        .edit(&json!({"signatures": {"anyOf": [{"publicKey": public}]}}))
        .await
        .unwrap();
    scenario.await_ready("signed").await.unwrap();

    policy
        .edit(&json!({"licenses": {"deny": ["Apache-2.0"]}}))
        .await
        .unwrap();
    still_serves(&scenario, "LicenseNotAllowed", &before, &policy.name).await;
    policy.delete().await.unwrap();
}

/// Waits until a new pod was refused with this reason; the pods from before serve all the same.
async fn still_serves(scenario: &Scenario, reason: &str, before: &BTreeMap<String, String>, policy: &str) {
    let (message, _) = scenario.await_failure("signed", "Ready", "RolledBack").await.unwrap();
    assert!(message.contains(reason) && message.contains(policy), "{message}");
    assert_eq!(&scenario.ready_pods("signed").await.unwrap(), before);
}
