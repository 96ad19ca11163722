//! Policies of the cluster: what they keep out, what becomes of what runs, and what the pods are told to check.

#![expect(clippy::unwrap_used, reason = "a helper of tests fails the test")]

use std::time::Duration;

use escadre_crds::{ModelPolicy, names};
use escadre_e2e::fixtures::Deployment;
use escadre_e2e::policy::TestPolicy;
use escadre_e2e::stage::Stage;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

const SEED: u64 = 20_261_129;
const SOON: Duration = Duration::from_mins(1);

async fn policy(stage: &Stage, name: &str, spec: Value) -> TestPolicy {
    TestPolicy::create(stage.namespace(), name, &spec).await.unwrap()
}

/// Waits until a condition has this status and reason; returns its message.
async fn await_reason(stage: &Stage, name: &str, (type_, status, reason): (&str, &str, &str)) -> String {
    let what = format!("{type_}={status} {reason} of {name}");
    stage
        .namespace()
        .await_condition(&what, SOON, async || {
            let object = stage.deployments().get(name).await?;
            let conditions = object.status.unwrap_or_default().conditions;
            let found = conditions.into_iter().find(|one| one.type_ == type_);
            Ok(found
                .filter(|found| (found.status.as_str(), found.reason.as_str()) == (status, reason))
                .map(|found| found.message))
        })
        .await
        .unwrap()
}

/// The pods that are not terminating.
async fn living(stage: &Stage, name: &str) -> Vec<Pod> {
    let api: Api<Pod> = stage.namespace().api();
    let list = api
        .list(&ListParams::default().labels(&names::selector(name)))
        .await
        .unwrap();
    list.into_iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_none())
        .collect()
}

async fn await_pods(stage: &Stage, name: &str, count: usize) {
    let what = format!("{count} pods of {name}");
    stage
        .namespace()
        .await_condition(&what, SOON, async || {
            Ok((living(stage, name).await.len() == count).then_some(()))
        })
        .await
        .unwrap();
}

#[tokio::test]
async fn what_a_policy_keeps_out_gets_no_pod_and_heals_with_the_policy() {
    let stage = Stage::shared(SEED).await.unwrap();
    let _operator = stage.operator().unwrap();
    let policy = policy(
        &stage,
        "sources",
        json!({"sources": {"allow": ["oci://registry.example.com/**"]}}),
    )
    .await;
    stage.create(Deployment::named("kept-out").replicas(1)).await.unwrap();
    let message = await_reason(&stage, "kept-out", ("Accepted", "False", "PolicyViolation")).await;
    assert!(
        message.starts_with(&format!("ModelPolicy {}, sources.allow: ", policy.name)),
        "{message}"
    );
    let ready = await_reason(&stage, "kept-out", ("Ready", "False", "PolicyViolation")).await;
    assert_eq!(ready, message);
    await_reason(&stage, "kept-out", ("Stalled", "True", "PolicyViolation")).await;
    assert!(living(&stage, "kept-out").await.is_empty());

    policy
        .edit(&json!({"sources": {"allow": ["hf://**", "https://**"]}}))
        .await
        .unwrap();
    await_reason(&stage, "kept-out", ("Ready", "True", "Serving")).await;
    policy.delete().await.unwrap();
}

#[tokio::test]
async fn what_runs_goes_on_is_told_of_or_drained_as_the_policy_says() {
    let stage = Stage::shared(SEED + 1).await.unwrap();
    let _operator = stage.operator().unwrap();
    stage.create(Deployment::named("running").replicas(2)).await.unwrap();
    await_reason(&stage, "running", ("Ready", "True", "Serving")).await;
    let before = living(&stage, "running").await;

    let forbids = json!({"sources": {"allow": ["oci://**"]}, "onViolation": "Alert"});
    let policy = policy(&stage, "later", forbids).await;
    let message = await_reason(&stage, "running", ("Degraded", "True", "PolicyViolation")).await;
    assert!(message.contains("sources.allow"), "{message}");
    await_reason(&stage, "running", ("Ready", "True", "Serving")).await;
    // An edit must keep to it.
    stage
        .edit("running", json!({"podLabels": {"team": "a"}}))
        .await
        .unwrap();
    await_reason(&stage, "running", ("Accepted", "False", "PolicyViolation")).await;
    assert_eq!(uids(&living(&stage, "running").await), uids(&before));

    policy.edit(&json!({"onViolation": "Refuse"})).await.unwrap();
    await_reason(&stage, "running", ("Accepted", "False", "PolicyViolation")).await;
    // A pod that goes is healed from its record.
    let api: Api<Pod> = stage.namespace().api();
    let gone = before[0].metadata.name.clone().unwrap();
    api.delete(&gone, &DeleteParams::default()).await.unwrap();
    let healed = async || {
        let now = living(&stage, "running").await;
        Ok((now.len() == 2 && uids(&now) != uids(&before)).then_some(()))
    };
    stage
        .namespace()
        .await_condition("the pod to be healed", SOON, healed)
        .await
        .unwrap();

    policy.edit(&json!({"onViolation": "Drain"})).await.unwrap();
    await_pods(&stage, "running", 0).await;
    policy.delete().await.unwrap();
    await_reason(&stage, "running", ("Ready", "True", "Serving")).await;
    assert_eq!(living(&stage, "running").await.len(), 2);
}

fn uids(pods: &[Pod]) -> Vec<String> {
    let mut uids: Vec<_> = pods.iter().filter_map(|pod| pod.metadata.uid.clone()).collect();
    uids.sort();
    uids
}

#[tokio::test]
async fn what_only_the_model_shows_is_demanded_of_new_pods() {
    let stage = Stage::shared(SEED + 2).await.unwrap();
    let _operator = stage.operator().unwrap();
    stage.create(Deployment::named("told").replicas(1)).await.unwrap();
    await_reason(&stage, "told", ("Ready", "True", "Serving")).await;
    assert_eq!(demanded(&living(&stage, "told").await[0]), None);

    let policy = policy(&stage, "licences", json!({"licenses": {"allow": ["Apache-2.0"]}})).await;
    let by = format!("ModelPolicy {}", policy.name);
    let wanted = json!([{"by": by, "licenses": {"allow": ["Apache-2.0"]}}]);
    let told = async || {
        let pods = living(&stage, "told").await;
        let is_told = pods.len() == 1 && demanded(&pods[0]).as_ref() == Some(&wanted);
        Ok(is_told.then_some(()))
    };
    stage
        .namespace()
        .await_condition("a pod that checks the licence", SOON, told)
        .await
        .unwrap();
    await_reason(&stage, "told", ("Ready", "True", "Serving")).await;

    // A licence that the manifest names is judged before there is a pod.
    stage
        .edit("told", json!({"model": {"license": "LicenseRef-llama3"}}))
        .await
        .unwrap();
    let message = await_reason(&stage, "told", ("Accepted", "False", "PolicyViolation")).await;
    assert!(
        message.contains("licenses: spec.model.license") && message.contains("Apache-2.0"),
        "{message}"
    );
    policy.delete().await.unwrap();
}

/// What a pod was told to check.
fn demanded(pod: &Pod) -> Option<Value> {
    let container = &pod.spec.as_ref()?.containers[0];
    let argument = container
        .args
        .as_ref()?
        .iter()
        .find_map(|argument| argument.strip_prefix("--requirements="));
    argument.map(|text| serde_json::from_str(text).unwrap())
}

#[tokio::test]
async fn policy_that_cannot_be_used_lets_nothing_through() {
    let stage = Stage::shared(SEED + 3).await.unwrap();
    let _operator = stage.operator().unwrap();
    let broken = json!({"signatures": {"anyOf": [{"publicKey": "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"}]}});
    let policy = policy(&stage, "broken", broken).await;
    stage.create(Deployment::named("behind").replicas(1)).await.unwrap();
    let message = await_reason(&stage, "behind", ("Accepted", "False", "PolicyViolation")).await;
    assert!(
        message.contains("the policy itself cannot be used") && message.contains("anyOf[0]"),
        "{message}"
    );
    policy.delete().await.unwrap();
    await_reason(&stage, "behind", ("Ready", "True", "Serving")).await;
}

#[tokio::test]
async fn wrong_policies_are_refused_with_the_field_and_the_remedy() {
    let stage = Stage::shared(SEED + 4).await.unwrap();
    let api: Api<ModelPolicy> = Api::all(stage.namespace().client().clone());
    let strict = PatchParams {
        field_validation: Some(kube::api::ValidationDirective::Strict),
        dry_run: true,
        ..PatchParams::apply("kubectl")
    };
    let signer = |signer: Value| json!({"signatures": {"anyOf": [signer]}});
    let table = [
        (json!({"licences": {}}), "licences"),
        (json!({"licenses": {}}), "allow, deny or both"),
        (json!({"formats": []}), "formats"),
        (json!({"formats": ["Pickle"]}), "Safetensors"),
        (json!({"verification": {"minimumLevel": "None"}}), "Pinned"),
        (json!({"sources": {"allow": []}}), "sources.allow"),
        (
            json!({"templates": {"approvedDigests": ["sha256:00"]}}),
            "approvedDigests",
        ),
        (json!({"onViolation": "Off"}), "Alert"),
        (signer(json!({})), "exactly one of publicKey"),
        (signer(json!({"publicKey": "key"})), "openssl pkey"),
        (
            signer(json!({"certificateAuthorities": "ca"})),
            "-----BEGIN CERTIFICATE-----",
        ),
        (signer(json!({"keyless": {"identity": "a"}})), "issuer"),
        (json!({"signatures": {"anyOf": []}}), "anyOf"),
        (
            json!({"signatures": {"bundle": "../model.sig", "anyOf": [{"publicKey": "-----BEGIN PUBLIC KEY-----"}]}}),
            "no '..'",
        ),
    ];
    for (spec, words) in table {
        let policy = json!({
            "apiVersion": "escadre.dev/v1alpha1", "kind": "ModelPolicy", "metadata": {"name": "wrong"}, "spec": spec,
        });
        let error = api.patch("wrong", &strict, &Patch::Apply(&policy)).await.unwrap_err();
        assert!(
            error.to_string().contains(words),
            "{spec}: `{words}` is not in: {error}"
        );
    }
}
