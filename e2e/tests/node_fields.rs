//! Fields whose effect only a kubelet and a running model can show: credentials that come later, files that are laid
//! over the model, arguments and variables of the process.

use std::collections::BTreeMap;

use escadre_crds::names;
use escadre_e2e::scenario::{LOADED, Scenario};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{ListParams, PostParams};
use serde_json::json;

/// What the kubelet says of a pod whose container it cannot make, as reason and message.
async fn waiting(scenario: &Scenario, name: &str) -> anyhow::Result<Option<(String, String)>> {
    let pods: Api<Pod> = scenario.namespace().api();
    let pods = pods.list(&ListParams::default().labels(&names::selector(name))).await?;
    let statuses = pods
        .items
        .into_iter()
        .filter_map(|pod| pod.status?.init_container_statuses)
        .flatten();
    let waiting = statuses.filter_map(|status| status.state?.waiting);
    Ok(waiting
        .map(|waiting| (waiting.reason.unwrap_or_default(), waiting.message.unwrap_or_default()))
        .find(|(reason, _)| reason == "CreateContainerConfigError"))
}

#[tokio::test(flavor = "multi_thread")]
async fn secret_that_appears_later_is_used_without_an_edit() {
    let scenario = Scenario::start().await.unwrap();
    let deployment = scenario
        .model("later")
        .set("/spec/model/secretRef", json!({"name": "hub-token"}));
    scenario.create(deployment).await.unwrap();
    let (_, message) = scenario
        .namespace()
        .await_condition("the kubelet to miss the Secret", LOADED, async || {
            waiting(&scenario, "later").await
        })
        .await
        .unwrap();
    assert_eq!(message, "secret \"hub-token\" not found");

    let secrets: Api<Secret> = scenario.namespace().api();
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some("hub-token".to_owned()),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([("token".to_owned(), ByteString(b"hf_seven".to_vec()))])),
        ..Secret::default()
    };
    secrets.create(&PostParams::default(), &secret).await.unwrap();
    scenario.await_ready("later").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn template_of_the_spec_is_what_the_model_reads() {
    let scenario = Scenario::start().await.unwrap();
    // Sixty words before every message: the count of prompt tokens shows which template was used.
    let template = format!(
        "{{% for message in messages %}}{} {{{{ message.content }}}}{{% endfor %}}",
        "anchor ".repeat(60)
    );
    let deployment = scenario
        .model("laid")
        .set(
            "/spec/files",
            json!([{"path": "chat_template.jinja", "inline": template}]),
        )
        .set("/spec/model/format", json!("GGUF"))
        .set(
            "/spec/runtime",
            json!({"maxContext": 1024, "args": ["--max-connections=9"], "env": [{"name": "TZ", "value": "UTC"}]}),
        );
    scenario.create(deployment).await.unwrap();
    scenario.await_ready("laid").await.unwrap();
    let (api, _way) = scenario.api("laid").await.unwrap();
    let answer = api.chat("laid", "Ahoy", &json!({"max_tokens": 2})).await.unwrap();
    let tokens = answer["usage"]["prompt_tokens"].as_u64().unwrap();
    assert!(tokens > 60, "{tokens} tokens: the model's own template was used");
}
