//! What the operator makes of a resource, judged by a real API server. No pod runs here: what needs running pods is in
//! `node_*`.

#![expect(clippy::unwrap_used, reason = "a helper of tests fails the test")]

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use escadre_crds::{LlmDeployment, names};
use escadre_e2e::escadre;
use escadre_e2e::fixtures::Deployment;
use escadre_e2e::testing::TestNamespace;
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;

const SOON: Duration = Duration::from_secs(30);
/// Longer than two of the operator's looks at pods that are not settled: a needless write would show.
const QUIET: Duration = Duration::from_secs(5);

/// Pods of a deployment that are not being deleted, by name.
async fn pods(namespace: &TestNamespace, name: &str) -> Result<BTreeMap<String, Pod>> {
    let api: Api<Pod> = namespace.api();
    let list = api.list(&ListParams::default().labels(&names::selector(name))).await?;
    Ok(list
        .into_iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_none())
        .map(|pod| (pod.name_any(), pod))
        .collect())
}

async fn await_pods(namespace: &TestNamespace, name: &str, count: usize) -> BTreeMap<String, Pod> {
    let what = format!("{count} pods of {name}");
    namespace
        .await_condition(&what, SOON, async || {
            Ok(Some(pods(namespace, name).await?).filter(|pods| pods.len() == count))
        })
        .await
        .unwrap()
}

async fn await_reason(namespace: &TestNamespace, name: &str, condition: &str, reason: &str) -> String {
    let api: Api<LlmDeployment> = namespace.api();
    namespace
        .await_condition(&format!("{condition} of {name} to say {reason}"), SOON, async || {
            let object = api.get(name).await?;
            let generation = object.metadata.generation;
            Ok(object.status.and_then(|status| {
                status
                    .conditions
                    .into_iter()
                    .find(|one| one.type_ == condition && one.reason == reason && one.observed_generation == generation)
                    .map(|one| one.message)
            }))
        })
        .await
        .unwrap()
}

#[tokio::test]
async fn resource_becomes_pods_service_and_revision_that_it_owns() {
    let namespace = escadre::operated_namespace().await.unwrap();
    let deployment = namespace
        .create_deployment(Deployment::named("chat").replicas(2))
        .await
        .unwrap();
    let pods = await_pods(&namespace, "chat", 2).await;

    let revisions: Api<ControllerRevision> = namespace.api();
    let revisions = revisions.list(&ListParams::default()).await.unwrap().items;
    assert_eq!(revisions.len(), 1);
    let revision = &revisions[0].labels()[names::LABEL_REVISION];
    assert_eq!(
        pods.keys().cloned().collect::<Vec<_>>(),
        [
            names::pod_name("chat", revision, 0),
            names::pod_name("chat", revision, 1)
        ]
    );
    let services: Api<Service> = namespace.api();
    let service = services.get("chat").await.unwrap();
    let owners = pods
        .values()
        .map(|pod| &pod.metadata)
        .chain([&revisions[0].metadata, &service.metadata]);
    for owner in owners.map(|metadata| &metadata.owner_references.as_ref().unwrap()[0]) {
        assert_eq!(
            (Some(&owner.uid), owner.controller),
            (deployment.metadata.uid.as_ref(), Some(true))
        );
    }
    let port = &service.spec.as_ref().unwrap().ports.as_ref().unwrap()[0];
    assert_eq!((port.name.as_deref(), port.port), (Some(names::PORT_HTTP), 80));

    let api: Api<LlmDeployment> = namespace.api();
    let status = namespace
        .await_condition("the endpoint in status", SOON, async || {
            Ok(api.get("chat").await?.status.filter(|status| status.endpoint.is_some()))
        })
        .await
        .unwrap();
    assert_eq!(
        status.endpoint,
        Some(format!("http://chat.{}.svc:80/v1", namespace.name()))
    );
    assert_eq!(status.served_digest, None, "nothing runs, so nothing is served");
}

#[tokio::test]
async fn deleted_pod_comes_back_and_replicas_are_followed_both_ways() {
    let namespace = escadre::operated_namespace().await.unwrap();
    namespace
        .create_deployment(Deployment::named("fleet").replicas(1))
        .await
        .unwrap();
    let first = await_pods(&namespace, "fleet", 1).await;
    let (name, pod) = first.first_key_value().unwrap();

    let api: Api<Pod> = namespace.api();
    api.delete(
        name,
        &DeleteParams {
            grace_period_seconds: Some(0),
            ..DeleteParams::default()
        },
    )
    .await
    .unwrap();
    namespace
        .await_condition("another pod in its place", SOON, async || {
            let pods = pods(&namespace, "fleet").await?;
            Ok(pods
                .values()
                .next()
                .filter(|new| new.metadata.uid != pod.metadata.uid)
                .map(drop))
        })
        .await
        .unwrap();

    namespace
        .edit_deployment("fleet", json!({"replicas": 3}))
        .await
        .unwrap();
    await_pods(&namespace, "fleet", 3).await;
    namespace
        .edit_deployment("fleet", json!({"replicas": 1}))
        .await
        .unwrap();
    await_pods(&namespace, "fleet", 1).await;
    namespace
        .edit_deployment("fleet", json!({"replicas": 0}))
        .await
        .unwrap();
    await_pods(&namespace, "fleet", 0).await;
    await_reason(&namespace, "fleet", "Available", "ScaledToZero").await;
}

#[tokio::test]
async fn suspended_resource_has_no_pods_and_keeps_its_service() {
    let namespace = escadre::operated_namespace().await.unwrap();
    namespace.create_deployment(Deployment::named("paused")).await.unwrap();
    await_pods(&namespace, "paused", 1).await;
    namespace
        .edit_deployment("paused", json!({"suspend": true}))
        .await
        .unwrap();
    await_pods(&namespace, "paused", 0).await;
    await_reason(&namespace, "paused", "Ready", "Suspended").await;
    let services: Api<Service> = namespace.api();
    assert!(services.get_opt("paused").await.unwrap().is_some());
}

#[tokio::test]
async fn edited_model_is_a_new_revision_and_the_old_pods_go() {
    let namespace = escadre::operated_namespace().await.unwrap();
    namespace.create_deployment(Deployment::named("edited")).await.unwrap();
    let old = await_pods(&namespace, "edited", 1).await;
    namespace
        .edit_deployment("edited", json!({"model": {"servedName": "second-name"}}))
        .await
        .unwrap();
    let new = namespace
        .await_condition("a pod of the new revision alone", SOON, async || {
            let pods = pods(&namespace, "edited").await?;
            Ok(Some(pods).filter(|pods| pods.len() == 1 && pods.keys().ne(old.keys())))
        })
        .await
        .unwrap();
    let arguments = new.values().next().unwrap().spec.as_ref().unwrap().containers[0]
        .args
        .clone()
        .unwrap();
    assert!(
        arguments.contains(&"--served-name=second-name".to_owned()),
        "{arguments:?}"
    );
    let revision = &new.values().next().unwrap().labels()[names::LABEL_REVISION];
    let revisions: Api<ControllerRevision> = namespace.api();
    assert!(
        revisions
            .get_opt(&names::revision_name("edited", revision))
            .await
            .unwrap()
            .is_some()
    );
}

#[tokio::test]
async fn spare_gpu_is_asked_for_and_missing_one_is_named_with_the_schedulers_words() {
    let namespace = escadre::operated_namespace().await.unwrap();
    namespace
        .create_deployment(Deployment::named("gpu").gpus(1))
        .await
        .unwrap();
    let pods = await_pods(&namespace, "gpu", 1).await;
    let container = &pods.values().next().unwrap().spec.as_ref().unwrap().containers[0];
    let limits = container.resources.as_ref().unwrap().limits.as_ref().unwrap();
    assert_eq!(limits["nvidia.com/gpu"].0, "1");
    // There is no node at all here.
    let message = await_reason(&namespace, "gpu", "CapacityAvailable", "Unschedulable").await;
    assert!(message.contains("no nodes available"), "{message}");
    await_reason(&namespace, "gpu", "Ready", "Unschedulable").await;
}

#[tokio::test]
async fn settled_world_is_left_alone() {
    let namespace = escadre::operated_namespace().await.unwrap();
    namespace
        .create_deployment(Deployment::named("idle").replicas(2))
        .await
        .unwrap();
    await_pods(&namespace, "idle", 2).await;
    await_reason(&namespace, "idle", "CapacityAvailable", "Unschedulable").await;
    let before = versions(&namespace).await;
    // The operator looks again on a foreign change of a child, and finds nothing to write.
    let api: Api<LlmDeployment> = namespace.api();
    let label = json!({"metadata": {"labels": {"team": "navy"}}});
    api.patch("idle", &PatchParams::default(), &Patch::Merge(label))
        .await
        .unwrap();
    tokio::time::sleep(QUIET).await;
    let mut after = versions(&namespace).await;
    after.remove("llm/idle");
    let mut before = before;
    before.remove("llm/idle");
    assert_eq!(before, after);
    let object = api.get("idle").await.unwrap();
    let managers = object.metadata.managed_fields.unwrap();
    let times: Vec<_> = managers
        .iter()
        .filter(|entry| entry.manager.as_deref() == Some(names::STATUS_MANAGER))
        .filter_map(|entry| entry.time.as_ref().map(|time| time.0))
        .collect();
    let labelled = managers
        .iter()
        .filter(|entry| entry.subresource.is_none())
        .filter_map(|entry| entry.time.as_ref().map(|time| time.0))
        .max()
        .unwrap();
    assert!(
        times.iter().all(|time| *time <= labelled),
        "status was written again without a reason"
    );
}

/// Resource versions of everything in the namespace that is ours.
async fn versions(namespace: &TestNamespace) -> BTreeMap<String, String> {
    let mut versions = BTreeMap::new();
    let all = ListParams::default();
    let mut add = |kind: &str, name: String, version: Option<String>| {
        versions.insert(format!("{kind}/{name}"), version.unwrap_or_default());
    };
    for one in namespace.api::<Pod>().list(&all).await.unwrap() {
        add("pod", one.name_any(), one.resource_version());
    }
    for one in namespace.api::<Service>().list(&all).await.unwrap() {
        add("service", one.name_any(), one.resource_version());
    }
    for one in namespace.api::<ControllerRevision>().list(&all).await.unwrap() {
        add("revision", one.name_any(), one.resource_version());
    }
    for one in namespace.api::<LlmDeployment>().list(&all).await.unwrap() {
        add("llm", one.name_any(), one.resource_version());
    }
    versions
}

#[tokio::test]
async fn deleted_resource_leaves_nothing() {
    let namespace = escadre::operated_namespace().await.unwrap();
    namespace
        .create_deployment(Deployment::named("gone").replicas(2))
        .await
        .unwrap();
    await_pods(&namespace, "gone", 2).await;
    let api: Api<LlmDeployment> = namespace.api();
    api.delete("gone", &DeleteParams::default()).await.unwrap();
    namespace
        .await_condition("everything to be gone", Duration::from_mins(1), async || {
            Ok(versions(&namespace).await.is_empty().then_some(()))
        })
        .await
        .unwrap();
}

/// An API server that has not heard of a new quota yet lets pods through.
async fn await_refused_pods(namespace: &TestNamespace) {
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "probe"},
        "spec": {"containers": [{"name": "probe", "image": "escadre.dev/absent"}]}
    }))
    .unwrap();
    let dry_run = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    namespace
        .await_condition("pods to be refused", SOON, async || {
            match namespace.api::<Pod>().create(&dry_run, &pod).await {
                Err(kube::Error::Api(status)) if status.message.contains("exceeded quota") => Ok(Some(())),
                _ => Ok(None),
            }
        })
        .await
        .unwrap();
}

#[tokio::test]
async fn pod_that_the_quota_refuses_is_said_in_the_servers_words() {
    let namespace = escadre::operated_namespace().await.unwrap();
    let quota = serde_json::from_value(json!({
        "metadata": {"name": "none"},
        "spec": {"hard": {"pods": "0"}}
    }))
    .unwrap();
    namespace
        .api::<k8s_openapi::api::core::v1::ResourceQuota>()
        .create(&PostParams::default(), &quota)
        .await
        .unwrap();
    await_refused_pods(&namespace).await;
    namespace.create_deployment(Deployment::named("refused")).await.unwrap();
    let message = await_reason(&namespace, "refused", "Available", "PodRefused").await;
    assert!(message.contains("quota"), "{message}");
}
