//! Waiting for a condition with a deadline, and what a person needs to see when it did not come.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::{ApiResource, DynamicObject, ListParams, LogParams};
use kube::{Api, Client, ResourceExt as _};

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(100);
/// Log lines of each container in a dump.
const LOG_LINES: i64 = 40;

/// Looks until `check` finds something. After `deadline` the error says what was waited for, and shows the objects,
/// events and logs of `namespace`.
///
/// An error of `check` does not end the waiting (the API server may be restarting); the last one is reported.
pub async fn await_condition<T>(
    client: &Client,
    namespace: &str,
    what: &str,
    deadline: Duration,
    mut check: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let end = Instant::now() + deadline;
    loop {
        // A check that hangs must not outlive the deadline.
        let left = end.saturating_duration_since(Instant::now()).max(INTERVAL);
        let last = match tokio::time::timeout(left, check()).await {
            Ok(Ok(Some(found))) => return Ok(found),
            Ok(Ok(None)) => anyhow!("the condition was not met"),
            Ok(Err(error)) => error,
            Err(_) => anyhow!("the last look did not come back in time"),
        };
        if Instant::now() >= end {
            let dump = dump(client, namespace).await;
            return Err(last.context(format!("waited {} s for {what}\n{dump}", deadline.as_secs())));
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Objects, events and logs of a namespace as text; what cannot be read is said in its place.
pub async fn dump(client: &Client, namespace: &str) -> String {
    let mut text = format!("--- namespace {namespace}\n");
    dump_deployments(client, namespace, &mut text).await;
    dump_events(client, namespace, &mut text).await;
    dump_pods(client, namespace, &mut text).await;
    text.push_str("--- end\n");
    text
}

/// `LlmDeployment` as the API server knows it, without the types of this version.
pub fn llm_deployments() -> ApiResource {
    ApiResource {
        group: "escadre.dev".to_owned(),
        version: "v1alpha1".to_owned(),
        api_version: "escadre.dev/v1alpha1".to_owned(),
        kind: "LlmDeployment".to_owned(),
        plural: "llmdeployments".to_owned(),
    }
}

async fn dump_deployments(client: &Client, namespace: &str, text: &mut String) {
    let deployments: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &llm_deployments());
    match deployments.list(&ListParams::default()).await {
        Ok(list) => {
            for mut deployment in list {
                deployment.metadata.managed_fields = None;
                line(text, &format!("LlmDeployment {}:", deployment.name_any()));
                line(text, &serde_json::to_string_pretty(&deployment).unwrap_or_default());
            }
        }
        // A test of something else has no such kind.
        Err(kube::Error::Api(status)) if status.is_not_found() => {}
        Err(error) => line(text, &format!("could not list LlmDeployments: {error}")),
    }
}

async fn dump_events(client: &Client, namespace: &str, text: &mut String) {
    let events: Api<Event> = Api::namespaced(client.clone(), namespace);
    match events.list(&ListParams::default()).await {
        Ok(list) => {
            for event in list {
                line(
                    text,
                    &format!(
                        "event {} {}/{} {}: {}",
                        event.type_.unwrap_or_default(),
                        event.involved_object.kind.unwrap_or_default(),
                        event.involved_object.name.unwrap_or_default(),
                        event.reason.unwrap_or_default(),
                        event.message.unwrap_or_default()
                    ),
                );
            }
        }
        Err(error) => line(text, &format!("could not list events: {error}")),
    }
}

async fn dump_pods(client: &Client, namespace: &str, text: &mut String) {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let list = match pods.list(&ListParams::default()).await {
        Ok(list) => list,
        Err(error) => return line(text, &format!("could not list pods: {error}")),
    };
    for pod in list {
        line(text, &format!("Pod {}:", pod.name_any()));
        line(text, &serde_json::to_string_pretty(&pod.status).unwrap_or_default());
        let Some(spec) = &pod.spec else { continue };
        for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
            let parameters = LogParams {
                container: Some(container.name.clone()),
                tail_lines: Some(LOG_LINES),
                ..LogParams::default()
            };
            let log = pods.logs(&pod.name_any(), &parameters).await;
            line(text, &format!("log of {}/{}:", pod.name_any(), container.name));
            line(text, &log.unwrap_or_else(|error| format!("({error})")));
        }
    }
}

fn line(text: &mut String, content: &str) {
    writeln!(text, "{content}").expect("writing to a string cannot fail");
}
