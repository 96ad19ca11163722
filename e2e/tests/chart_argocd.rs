//! The health script for Argo CD, run by a real Lua on an object in each state.

#![expect(clippy::unwrap_used, reason = "a helper of tests fails the test")]

use std::fmt::Write as _;

use escadre_e2e::cluster::{Cache, packaged_program};
use escadre_e2e::escadre::source_tree;
use serde_json::{Value, json};

/// A JSON value as Lua source.
fn lua(value: &Value) -> String {
    match value {
        Value::Null => "nil".to_owned(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(text) => format!("{text:?}"),
        Value::Array(items) => format!("{{{}}}", items.iter().map(lua).collect::<Vec<_>>().join(",")),
        Value::Object(fields) => {
            let mut text = String::from("{");
            for (name, value) in fields {
                write!(text, "[{name:?}]={},", lua(value)).unwrap();
            }
            text + "}"
        }
    }
}

/// What the script says: health and message.
async fn judge(object: &Value) -> (String, String) {
    let cache = Cache::from_environment().unwrap();
    let program = packaged_program(&cache, "lua5.1", "usr/bin/lua5.1").await.unwrap();
    let script = source_tree().join("charts/escadre/files/argocd-health.lua");
    let source = format!(
        "obj = {}\nlocal health = dofile({:?})\nio.write(health.status, '\\n', health.message)",
        lua(object),
        script.display().to_string()
    );
    let output = tokio::process::Command::new(program)
        .args(["-e", &source])
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let (status, message) = text.split_once('\n').unwrap();
    (status.to_owned(), message.to_owned())
}

/// An object of generation 3 whose status is of `observed`, with these conditions.
fn object(observed: i64, conditions: &[(&str, &str, &str)]) -> Value {
    let conditions: Vec<Value> = conditions
        .iter()
        .map(|(type_, status, reason)| {
            json!({
                "type": type_, "status": status, "reason": reason, "message": "words of \"chat\"",
                "observedGeneration": observed, "lastTransitionTime": "2026-01-01T00:00:00Z",
            })
        })
        .collect();
    json!({
        "apiVersion": "escadre.dev/v1alpha1",
        "kind": "LlmDeployment",
        "metadata": {"name": "chat", "generation": 3},
        "spec": {"replicas": 1},
        "status": {"observedGeneration": observed, "conditions": conditions},
    })
}

async fn assert_health(object: &Value, status: &str, message: &str) {
    let judged = judge(object).await;
    assert_eq!(judged.0, status, "{object}");
    assert!(judged.1.contains(message), "{judged:?}");
}

#[tokio::test]
async fn object_that_nobody_looked_at_is_progressing() {
    let mut new = object(3, &[]);
    new.as_object_mut().unwrap().remove("status");
    assert_health(&new, "Progressing", "has not seen this generation").await;
}

#[tokio::test]
async fn ready_of_an_older_generation_does_not_count() {
    let old = object(2, &[("Ready", "True", "Serving"), ("Stalled", "False", "Complete")]);
    assert_health(&old, "Progressing", "has not seen this generation").await;
}

#[tokio::test]
async fn loading_is_progressing_and_says_what_it_does() {
    let conditions = [
        ("Ready", "False", "Loading"),
        ("Reconciling", "True", "Loading"),
        ("Stalled", "False", "Complete"),
    ];
    assert_health(&object(3, &conditions), "Progressing", "Loading: words of \"chat\"").await;
}

#[tokio::test]
async fn stalled_is_degraded_with_the_reason() {
    let conditions = [
        ("Ready", "False", "VerifyFailed"),
        ("Reconciling", "False", "Complete"),
        ("Stalled", "True", "DigestMismatch"),
    ];
    assert_health(&object(3, &conditions), "Degraded", "DigestMismatch: words").await;
}

#[tokio::test]
async fn ready_is_healthy_also_while_it_grows() {
    let conditions = [
        ("Ready", "True", "Serving"),
        ("Reconciling", "True", "Scaling"),
        ("Stalled", "False", "Complete"),
    ];
    assert_health(&object(3, &conditions), "Healthy", "Serving").await;
}

#[tokio::test]
async fn suspended_is_suspended() {
    let mut suspended = object(3, &[("Ready", "False", "Suspended"), ("Stalled", "False", "Complete")]);
    suspended["spec"]["suspend"] = json!(true);
    assert_health(&suspended, "Suspended", "Suspended").await;
}

#[tokio::test]
async fn paused_rollout_is_suspended() {
    let conditions = [
        ("Ready", "False", "Paused"),
        ("Progressing", "False", "Paused"),
        ("Stalled", "False", "Complete"),
    ];
    assert_health(&object(3, &conditions), "Suspended", "Paused: words").await;
}
