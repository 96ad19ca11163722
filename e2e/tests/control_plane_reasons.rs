//! Reasons that need a scheduler and nodes, but no containers: each is produced by the real cluster, on fake nodes whose
//! pods have status pages.

#![expect(clippy::unwrap_used, reason = "a helper of tests fails the test")]

use std::time::Duration;

use escadre_crds::names;
use escadre_e2e::fixtures::{self, Deployment};
use escadre_e2e::stage::Stage;
use escadre_e2e::world::condition;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::scheduling::v1::PriorityClass;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;

const SEED: u64 = 20_261_124;
const SOON: Duration = Duration::from_mins(1);

/// Waits until a condition of a deployment has this status and reason; returns its message.
async fn await_reason(stage: &Stage, name: &str, (type_, status, reason): (&str, &str, &str)) -> String {
    let what = format!("{type_}={status} {reason} of {name}");
    stage
        .namespace()
        .await_condition(&what, SOON, async || {
            let conditions = stage
                .deployments()
                .get(name)
                .await?
                .status
                .unwrap_or_default()
                .conditions;
            let found = conditions.into_iter().find(|one| one.type_ == type_);
            Ok(found
                .filter(|found| (found.status.as_str(), found.reason.as_str()) == (status, reason))
                .map(|found| found.message))
        })
        .await
        .unwrap()
}

/// Slots of the pods that are not terminating.
async fn slots(stage: &Stage, name: &str) -> Vec<u32> {
    let api: Api<Pod> = stage.namespace().api();
    let list = api
        .list(&ListParams::default().labels(&names::selector(name)))
        .await
        .unwrap();
    let alive = list.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
    alive
        .filter_map(|pod| Some(names::parse_pod_name(name, &pod.name_any())?.1))
        .collect()
}

#[tokio::test]
async fn growth_beyond_the_gpus_is_said_in_the_schedulers_words_and_lowers_nothing() {
    let stage = Stage::shared(SEED).await.unwrap();
    let _operator = stage.operator().unwrap();
    let selector = stage.reserve_node("fake-17").await.unwrap();
    let deployment = Deployment::named("grown")
        .gpus(1)
        .replicas(8)
        .set("/spec/placement/nodeSelector", selector);
    stage.create(deployment).await.unwrap();
    await_reason(&stage, "grown", ("Ready", "True", "Serving")).await;
    stage.edit("grown", json!({"replicas": 9})).await.unwrap();
    let message = await_reason(&stage, "grown", ("CapacityAvailable", "False", "Unschedulable")).await;
    assert!(message.contains("Insufficient nvidia.com/gpu"), "{message}");
    let object = stage.deployments().get("grown").await.unwrap();
    assert_eq!(
        condition(&object, "Ready").unwrap().0,
        "True",
        "growth alone does not lower it"
    );
    assert_eq!(condition(&object, "Degraded").unwrap().1, "Unschedulable");
    let status = object.status.unwrap();
    assert_eq!((status.ready_replicas, status.replicas), (8, 9));
}

#[tokio::test]
async fn evicted_pod_is_named_replaced_and_removed() {
    let stage = Stage::shared(SEED).await.unwrap();
    let _operator = stage.operator().unwrap();
    stage.create(Deployment::named("evicted").replicas(1)).await.unwrap();
    await_reason(&stage, "evicted", ("Ready", "True", "Serving")).await;
    let api: Api<Pod> = stage.namespace().api();
    let list = api
        .list(&ListParams::default().labels(&names::selector("evicted")))
        .await
        .unwrap();
    let status =
        json!({"status": {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}});
    let name = list.items[0].name_any();
    api.patch_status(&name, &PatchParams::default(), &Patch::Merge(status))
        .await
        .unwrap();
    stage
        .namespace()
        .await_condition("a replacement in another slot", SOON, async || {
            Ok((slots(&stage, "evicted").await == [1]).then_some(()))
        })
        .await
        .unwrap();
    await_reason(&stage, "evicted", ("Ready", "True", "Serving")).await;
    let failure = stage
        .deployments()
        .get("evicted")
        .await
        .unwrap()
        .status
        .unwrap()
        .last_failure
        .unwrap();
    assert_eq!((failure.reason.as_deref(), failure.pod), (Some("Evicted"), Some(name)));
    assert!(failure.message.unwrap().contains("low on resource"));
}

#[tokio::test]
async fn preempted_pod_waits_for_room_and_serves_again() {
    let stage = Stage::shared(SEED).await.unwrap();
    let _operator = stage.operator().unwrap();
    let selector = stage.reserve_node("fake-18").await.unwrap();
    let priority = format!("urgent-{}", stage.namespace().name());
    let classes: Api<PriorityClass> = Api::all(stage.namespace().client().clone());
    let class = serde_json::from_value(json!({"metadata": {"name": priority}, "value": 1000})).unwrap();
    classes.create(&PostParams::default(), &class).await.unwrap();

    let deployment = Deployment::named("modest")
        .gpus(1)
        .replicas(8)
        .set("/spec/placement/nodeSelector", selector.clone());
    stage.create(deployment).await.unwrap();
    await_reason(&stage, "modest", ("Ready", "True", "Serving")).await;
    let mut urgent = fixtures::gpu_pod("urgent", 1);
    urgent["spec"]["priorityClassName"] = json!(priority);
    urgent["spec"]["nodeSelector"] = selector;
    let api: Api<Pod> = stage.namespace().api();
    api.create(&PostParams::default(), &serde_json::from_value(urgent).unwrap())
        .await
        .unwrap();
    await_reason(&stage, "modest", ("CapacityAvailable", "False", "Unschedulable")).await;
    let status = stage.deployments().get("modest").await.unwrap().status.unwrap();
    assert_eq!(
        status.replicas, 8,
        "the one that was pushed out has a successor that waits"
    );

    api.delete("urgent", &DeleteParams::default()).await.unwrap();
    await_reason(&stage, "modest", ("Degraded", "False", "Serving")).await;
    stage.settle().await.unwrap();
    classes.delete(&priority, &DeleteParams::default()).await.unwrap();
}

#[tokio::test]
async fn priority_class_that_does_not_exist_is_a_refused_pod() {
    let stage = Stage::shared(SEED).await.unwrap();
    let _operator = stage.operator().unwrap();
    let deployment = Deployment::named("classless").set("/spec/placement/priorityClassName", json!("absent"));
    stage.create(deployment).await.unwrap();
    let message = await_reason(&stage, "classless", ("Available", "False", "PodRefused")).await;
    assert!(message.contains("absent"), "{message}");
}

#[tokio::test]
async fn ready_pod_whose_page_cannot_be_read_is_unreachable_and_does_not_count() {
    let stage = Stage::shared(SEED).await.unwrap();
    let _operator = stage.operator().unwrap();
    stage.answer(&[("mute", "silent")]).await.unwrap();
    stage.create(Deployment::named("mute")).await.unwrap();
    let message = await_reason(&stage, "mute", ("Ready", "False", "RuntimeUnreachable")).await;
    assert!(message.contains("9090"), "{message}");
    stage.answer(&[]).await.unwrap();
    await_reason(&stage, "mute", ("Ready", "True", "Serving")).await;
}

#[tokio::test]
async fn foreign_pod_behind_the_service_is_left_alone_and_reported() {
    let stage = Stage::shared(SEED).await.unwrap();
    let _operator = stage.operator().unwrap();
    stage.create(Deployment::named("joined")).await.unwrap();
    await_reason(&stage, "joined", ("Ready", "True", "Serving")).await;
    let mut intruder = fixtures::pod("intruder", "escadre.dev/pause:1");
    intruder["metadata"]["labels"] = json!({
        names::LABEL_DEPLOYMENT: "joined",
        names::LABEL_COMPONENT: names::COMPONENT_RUNTIME,
    });
    let api: Api<Pod> = stage.namespace().api();
    api.create(&PostParams::default(), &serde_json::from_value(intruder).unwrap())
        .await
        .unwrap();
    let message = await_reason(&stage, "joined", ("Degraded", "True", "ForeignPod")).await;
    assert!(
        message.contains("intruder") && message.contains("delete it"),
        "{message}"
    );
    let there = api.get("intruder").await.unwrap();
    assert!(there.metadata.deletion_timestamp.is_none(), "it is left alone");
    api.delete("intruder", &DeleteParams::default()).await.unwrap();
    await_reason(&stage, "joined", ("Degraded", "False", "Serving")).await;
}
