//! Keys, limits and certificates of a deployment: Secrets that come later and are edited, limits that are edited, a probe
//! prompt that needs no key, TLS.

#![expect(clippy::unwrap_used, reason = "a helper of tests fails the test")]

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use escadre_e2e::client::OpenAi;
use escadre_e2e::escadre;
use escadre_e2e::scenario::{LOADED, Scenario};
use escadre_e2e::testing;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Secret, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams, PostParams};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use serde_json::{Value, json};

/// From the edit of a Secret until the process has read it: the kubelet brings it into the pod now and then.
const BROUGHT: Duration = Duration::from_secs(90);
const ALICE: &str = "sk-alice-0123456789";
const ALICE_LATER: &str = "sk-alice-9876543210";

fn secret(name: &str, data: &[(&str, &str)]) -> Secret {
    let data = data
        .iter()
        .map(|(key, value)| ((*key).to_owned(), ByteString(value.as_bytes().to_vec())));
    Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        },
        data: Some(data.collect::<BTreeMap<_, _>>()),
        ..Secret::default()
    }
}

async fn create(scenario: &Scenario, secret: &Secret) {
    let secrets = scenario.namespace().api::<Secret>();
    secrets.create(&PostParams::default(), secret).await.unwrap();
}

/// A client with this key.
fn with_key(base: &str, key: &str) -> Result<OpenAi> {
    let value = HeaderValue::try_from(format!("Bearer {key}"))?;
    let http = reqwest::Client::builder()
        .no_proxy()
        .default_headers(HeaderMap::from_iter([(AUTHORIZATION, value)]))
        .build()?;
    Ok(OpenAi::new(base)?.sending(http))
}

/// The status of a short chat, and what the header says of the limit of requests.
async fn ask(api: &OpenAi, model: &str) -> Result<(u16, Option<String>)> {
    let question = json!({"model": model, "messages": [{"role": "user", "content": "Ahoy"}], "max_tokens": 1});
    let answer = api.post("/v1/chat/completions", &question).await?;
    let limit = answer.headers().get("x-ratelimit-limit-requests");
    let limit = limit.map(|limit| String::from_utf8_lossy(limit.as_bytes()).into_owned());
    Ok((answer.status().as_u16(), limit))
}

/// Waits for these answers.
async fn await_answers(scenario: &Scenario, api: &OpenAi, what: &str, wanted: (u16, Option<&str>)) -> Result<()> {
    scenario
        .namespace()
        .await_condition(what, BROUGHT, async || {
            // While rules of the network change, a connection may be refused.
            let Ok((status, limit)) = ask(api, "guarded").await else {
                return Ok(None);
            };
            Ok(((status, limit.as_deref()) == wanted).then_some(()))
        })
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_and_limits_follow_their_secret_and_the_spec_without_a_restart() {
    let scenario = Scenario::start().await.unwrap();
    let deployment = scenario.model("guarded").set(
        "/spec/access",
        json!({"apiKeysSecretRef": {"name": "keys"}, "limits": {"requestsPerMinute": 500}}),
    );
    scenario.create(deployment).await.unwrap();
    let (message, _) = scenario
        .await_failure_within("guarded", ("Available", "DependencyMissing"), LOADED)
        .await
        .unwrap();
    assert!(
        message.contains("--api-keys=/access/keys: there is no key; create the Secret"),
        "{message}"
    );
    create(&scenario, &secret("keys", &[("alice", ALICE)])).await;
    scenario.await_ready_within("guarded", LOADED * 2).await.unwrap();
    let pods = scenario.ready_pods("guarded").await.unwrap();

    let cluster = testing::cluster().await.unwrap();
    let way = escadre::reach(cluster, scenario.namespace().name(), "guarded")
        .await
        .unwrap();
    let (nobody, alice) = (OpenAi::new(way.base()).unwrap(), with_key(way.base(), ALICE).unwrap());
    await_answers(&scenario, &alice, "an answer with the key", (200, Some("500")))
        .await
        .unwrap();
    assert_eq!(ask(&nobody, "guarded").await.unwrap().0, 401);

    scenario
        .patch("guarded", json!({"access": {"limits": {"requestsPerMinute": 300}}}))
        .await
        .unwrap();
    await_answers(&scenario, &alice, "the other limit", (200, Some("300")))
        .await
        .unwrap();

    let edit = Patch::Merge(json!({"stringData": {"alice": ALICE_LATER}}));
    let secrets = scenario.namespace().api::<Secret>();
    secrets.patch("keys", &PatchParams::default(), &edit).await.unwrap();
    await_answers(&scenario, &alice, "the old key to be refused", (401, None))
        .await
        .unwrap();
    let later = with_key(way.base(), ALICE_LATER).unwrap();
    assert_eq!(ask(&later, "guarded").await.unwrap(), (200, Some("300".to_owned())));
    assert_eq!(
        scenario.ready_pods("guarded").await.unwrap(),
        pods,
        "a pod was restarted"
    );

    // The operator has no key, and asks new pods all the same.
    let edit = json!({
        "restartToken": "2",
        "rollout": {"gates": {"probePrompt": {"prompt": "How many days are in a week?", "expectContains": "7"}}},
    });
    scenario.patch("guarded", edit).await.unwrap();
    scenario.await_ready_within("guarded", LOADED).await.unwrap();
    assert_ne!(scenario.ready_pods("guarded").await.unwrap(), pods);
}

/// A certificate for the loopback address, its key, and a client that trusts nobody else.
fn certified(base: &str) -> Result<(String, String, OpenAi)> {
    let certified = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()])?;
    let (certificate, key) = (certified.cert.pem(), certified.signing_key.serialize_pem());
    let trusted = reqwest::Certificate::from_pem(certificate.as_bytes())?;
    let http = reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only([trusted])
        .build()
        .context("no client")?;
    Ok((certificate, key, OpenAi::new(base)?.sending(http)))
}

#[tokio::test(flavor = "multi_thread")]
async fn api_is_served_over_tls_with_the_certificate_of_a_secret() {
    let scenario = Scenario::start().await.unwrap();
    let deployment = scenario
        .model("encrypted")
        .set("/spec/access", json!({"tls": {"secretRef": {"name": "certificate"}}}));
    scenario.create(deployment).await.unwrap();
    let cluster = testing::cluster().await.unwrap();
    let (message, _) = scenario
        .await_failure_within("encrypted", ("Available", "DependencyMissing"), LOADED)
        .await
        .unwrap();
    assert!(message.contains("--tls=/access/tls"), "{message}");
    let way = escadre::reach(cluster, scenario.namespace().name(), "encrypted")
        .await
        .unwrap();
    let base = way.base().replacen("http://", "https://", 1);
    let (certificate, key, api) = certified(&base).unwrap();
    create(
        &scenario,
        &secret("certificate", &[("tls.crt", &certificate), ("tls.key", &key)]),
    )
    .await;
    let status = scenario.await_ready_within("encrypted", LOADED * 2).await.unwrap();
    assert!(status.endpoint.unwrap().starts_with("https://encrypted."));
    let services = scenario.namespace().api::<Service>();
    let ports = services.get("encrypted").await.unwrap().spec.unwrap().ports.unwrap();
    assert_eq!(ports[0].app_protocol.as_deref(), Some("https"));
    let answer: Value = scenario
        .namespace()
        .await_condition("an answer over TLS", BROUGHT, async || {
            Ok(api.chat("encrypted", "Ahoy", &json!({"max_tokens": 2})).await.ok())
        })
        .await
        .unwrap();
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    let plain = OpenAi::new(way.base()).unwrap();
    assert!(plain.models().await.is_err(), "it answers without TLS");
}
