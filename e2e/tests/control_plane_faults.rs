//! The API misbehaves, people meddle, pods lie: the operator ends where the specs want it, and does no harm on the way.

#![expect(clippy::unwrap_used, reason = "a helper of tests fails the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use escadre_crds::names;
use escadre_e2e::faults::{self, Fault, Rule, Verb};
use escadre_e2e::fixtures::{self, Deployment};
use escadre_e2e::stage::Stage;
use escadre_e2e::world::{World, condition, versions};
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;

const SEED: u64 = 20_261_124;
const SOON: Duration = Duration::from_mins(1);
/// Longer than several looks of the operator at its pods.
const WHILE: Duration = Duration::from_secs(10);

/// Create, grow, edit, shrink, delete; waits after each.
async fn tour(stage: &Stage) {
    for name in ["north", "south", "west"] {
        stage.create(Deployment::named(name).replicas(2)).await.unwrap();
    }
    stage.settle().await.unwrap();
    stage.edit("north", json!({"replicas": 5})).await.unwrap();
    stage
        .edit("south", json!({"model": {"servedName": "second-name"}}))
        .await
        .unwrap();
    stage.settle().await.unwrap();
    stage.edit("north", json!({"replicas": 1})).await.unwrap();
    stage.delete("west").await.unwrap();
    let world = stage.settle().await.unwrap();
    assert_eq!(world.living("north").len(), 1);
    assert!(!world.deployments.contains_key("west"));
}

#[tokio::test]
async fn refused_failed_and_cut_calls_converge() {
    let stage = Stage::shared(SEED).await.unwrap();
    stage.proxy.set_rules(faults::bad_weather(0.1));
    let operator = stage.operator().unwrap();
    tour(&stage).await;
    // One call in ten; an operator that sees many changes at once makes few calls in a tour.
    for _ in 0..3 {
        if stage.proxy.faults() > 20 {
            break;
        }
        for name in ["north", "south"] {
            stage.delete(name).await.unwrap();
        }
        stage.settle().await.unwrap();
        tour(&stage).await;
    }
    let faults = stage.proxy.faults();
    assert!(faults > 20, "only {faults} faults");
    assert!(operator.is_alive());
    // When the weather is good again, nothing is left to do.
    stage.proxy.set_rules(Vec::new());
    stage.settle_quietly(WHILE).await.unwrap();
}

#[tokio::test]
async fn dropped_ended_and_gone_watches_converge() {
    let stage = Stage::shared(SEED).await.unwrap();
    let watches = [Verb::Watch];
    stage.proxy.set_rules(vec![
        Rule::always(Fault::GoneAtOnce).verbs(&watches).chance(0.2),
        Rule::always(Fault::GoneAsEvent).verbs(&watches).chance(0.2),
        Rule::always(Fault::EndWatch(Duration::from_secs(1)))
            .verbs(&watches)
            .chance(0.3),
    ]);
    let operator = stage.operator().unwrap();
    let drops = async {
        loop {
            tokio::time::sleep(Duration::from_secs(2)).await;
            stage.proxy.drop_watches();
        }
    };
    tokio::select! {
        () = tour(&stage) => {}
        () = drops => {}
    }
    assert!(stage.proxy.faults() > 3, "{} faults", stage.proxy.faults());
    assert!(operator.is_alive());
}

#[tokio::test]
async fn stale_caches_make_no_double_pods() {
    let stage = Stage::shared(SEED).await.unwrap();
    let _operator = stage.operator().unwrap();
    stage.create(Deployment::named("stale").replicas(2)).await.unwrap();
    stage.settle().await.unwrap();
    // From here on the operator sees the past; one of its pods is gone, and one more is wanted.
    stage.proxy.hold_watches();
    let pods: Api<Pod> = stage.namespace().api();
    let world = stage.look().await.unwrap();
    let killed = world.living("stale")[0].name_any();
    pods.delete(&killed, &DeleteParams::default()).await.unwrap();
    stage.edit("stale", json!({"replicas": 3})).await.unwrap();
    tokio::time::sleep(WHILE).await;
    assert!(stage.look().await.unwrap().living("stale").len() <= 3);
    stage.proxy.release_watches();
    stage.settle().await.unwrap();
}

#[tokio::test]
async fn frozen_api_delays_and_breaks_nothing() {
    let stage = Stage::shared(SEED).await.unwrap();
    let operator = stage.operator().unwrap();
    stage.create(Deployment::named("frozen").replicas(2)).await.unwrap();
    stage.settle().await.unwrap();
    stage.proxy.freeze();
    stage.edit("frozen", json!({"replicas": 3})).await.unwrap();
    // Longer than the operator's patience with one call.
    tokio::time::sleep(Duration::from_secs(35)).await;
    assert!(operator.is_alive());
    stage.proxy.thaw();
    stage.settle().await.unwrap();
}

#[tokio::test]
async fn idle_world_is_written_to_by_nobody() {
    let stage = Stage::shared(SEED).await.unwrap();
    let _operator = stage.operator().unwrap();
    for number in 0..5 {
        let name = format!("idle-{number}");
        stage.create(Deployment::named(&name).replicas(number)).await.unwrap();
    }
    let before = versions(&stage.settle_quietly(WHILE).await.unwrap());
    stage.proxy.forget();
    tokio::time::sleep(Duration::from_mins(1)).await;
    let written: Vec<String> = stage.proxy.written().iter().map(|one| one.call.to_string()).collect();
    assert_eq!(written, Vec::<String>::new());
    assert_eq!(versions(&stage.look().await.unwrap()), before);
}

/// Without an election, as a mistake in an upgrade would have it.
#[tokio::test]
async fn two_versions_at_once_make_no_double_pods_and_do_not_fight() {
    let stage = Stage::shared(SEED).await.unwrap();
    let older = stage.operator().unwrap();
    let _newer = stage.operator_of_another_version().unwrap();
    for number in 0..6 {
        let name = format!("twice-{number}");
        stage.create(Deployment::named(&name).replicas(3)).await.unwrap();
    }
    stage.settle().await.unwrap();
    let made = |stage: &Stage| {
        let is_made = |one: &&escadre_e2e::faults::Written| {
            one.call.verb == Verb::Create && one.call.resource == "pods" && one.code == 201
        };
        stage.proxy.written().iter().filter(is_made).count()
    };
    assert_eq!(made(&stage), 18);
    for number in 0..6 {
        stage
            .edit(&format!("twice-{number}"), json!({"replicas": 1}))
            .await
            .unwrap();
    }
    stage.settle().await.unwrap();
    for number in 0..6 {
        stage
            .edit(&format!("twice-{number}"), json!({"replicas": 2}))
            .await
            .unwrap();
    }
    stage.settle().await.unwrap();
    assert_eq!(made(&stage), 24);
    for number in 0..6 {
        let edit = json!({"model": {"servedName": "edited"}});
        stage.edit(&format!("twice-{number}"), edit).await.unwrap();
    }
    // A fight would never be quiet.
    let world = stage.settle_quietly(WHILE).await.unwrap();
    assert_eq!(made(&stage), 36);
    for number in 0..6 {
        let pods = world.living(&format!("twice-{number}"));
        let containers = pods
            .iter()
            .flat_map(|pod| pod.spec.iter().flat_map(|spec| &spec.containers));
        let images: BTreeSet<_> = containers.map(|container| &container.image).collect();
        assert_eq!(images.len(), 1, "one revision has several images: {images:?}");
    }
    let before = versions(&world);
    older.kill();
    tokio::time::sleep(WHILE).await;
    assert_eq!(versions(&stage.look().await.unwrap()), before);
}

#[tokio::test]
async fn foreign_pod_with_our_labels_is_left_alone() {
    let stage = Stage::shared(SEED).await.unwrap();
    let _operator = stage.operator().unwrap();
    stage.create(Deployment::named("ours").replicas(1)).await.unwrap();
    let world = stage.settle().await.unwrap();
    let labels = world.living("ours")[0].labels().clone();
    let mut foreign = fixtures::pod("foreign", "escadre.dev/pause:1");
    foreign["metadata"]["labels"] = json!(labels);
    let pods: Api<Pod> = stage.namespace().api();
    let foreign: Pod = serde_json::from_value(foreign).unwrap();
    let made = pods.create(&PostParams::default(), &foreign).await.unwrap();
    // Also when the number of pods changes both ways.
    for replicas in [3_i32, 1] {
        stage.edit("ours", json!({"replicas": replicas})).await.unwrap();
        stage
            .namespace()
            .await_condition("the foreign pod not to be counted", SOON, async || {
                let status = stage.deployments().get("ours").await?.status;
                let is_counted =
                    status.is_some_and(|status| (status.replicas, status.ready_replicas) == (replicas, replicas));
                let living = stage.look().await?.living("ours").len();
                Ok((is_counted && living == usize::try_from(replicas)?).then_some(()))
            })
            .await
            .unwrap();
    }
    let found = pods.get("foreign").await.unwrap();
    assert_eq!(found.uid(), made.uid());
    assert_eq!(found.metadata.deletion_timestamp, None);
    assert_eq!(found.labels(), &labels);
}

#[tokio::test]
async fn edited_service_is_put_right() {
    let stage = Stage::shared(SEED).await.unwrap();
    let _operator = stage.operator().unwrap();
    stage.create(Deployment::named("edited").replicas(1)).await.unwrap();
    stage.settle().await.unwrap();
    let services: Api<Service> = stage.namespace().api();
    let selector = services.get("edited").await.unwrap().spec.unwrap().selector;
    let patch = json!({"spec": {"selector": {names::LABEL_DEPLOYMENT: "another"}}});
    services
        .patch("edited", &PatchParams::default(), &Patch::Merge(patch))
        .await
        .unwrap();
    stage
        .namespace()
        .await_condition("the selector to be right again", SOON, async || {
            let found = services.get("edited").await?.spec.and_then(|spec| spec.selector);
            Ok((found == selector).then_some(()))
        })
        .await
        .unwrap();
    services.delete("edited", &DeleteParams::default()).await.unwrap();
    stage.settle().await.unwrap();
}

/// Edits a label of a pod (`null` takes it away), and waits until all pods are as they were.
async fn edit_label(label: &str, value: serde_json::Value) {
    let stage = Stage::shared(SEED).await.unwrap();
    let _operator = stage.operator().unwrap();
    stage.create(Deployment::named("labels").replicas(2)).await.unwrap();
    let labelled = |world: &World| -> BTreeMap<String, BTreeMap<String, String>> {
        let pods = world.living("labels");
        pods.iter().map(|pod| (pod.name_any(), pod.labels().clone())).collect()
    };
    let wanted = labelled(&stage.settle().await.unwrap());
    let pods: Api<Pod> = stage.namespace().api();
    let patch = json!({"metadata": {"labels": {label: value}}});
    let first = wanted.first_key_value().unwrap().0;
    pods.patch(first, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .unwrap();
    stage
        .namespace()
        .await_condition(
            &format!("the pods' labels after an edit of {label}"),
            SOON,
            async || {
                let world = stage.look().await?;
                Ok((labelled(&world) == wanted && world.unsettled().is_empty()).then_some(()))
            },
        )
        .await
        .unwrap();
    let all = pods.list(&ListParams::default()).await.unwrap();
    assert_eq!(all.items.len(), 2, "a pod without its label is left behind");
}

#[tokio::test]
async fn edited_slot_of_a_pod_is_put_right() {
    edit_label(names::LABEL_SLOT, json!("seven")).await;
}

#[tokio::test]
async fn removed_revision_of_a_pod_is_put_right() {
    edit_label(names::LABEL_REVISION, json!(null)).await;
}

#[tokio::test]
async fn removed_component_of_a_pod_is_put_right() {
    edit_label(names::LABEL_COMPONENT, json!(null)).await;
}

#[tokio::test]
async fn edited_deployment_of_a_pod_is_put_right() {
    edit_label(names::LABEL_DEPLOYMENT, json!("another")).await;
}

#[tokio::test]
async fn removed_manager_of_a_pod_is_put_right() {
    edit_label(names::LABEL_MANAGED_BY, json!(null)).await;
}

#[tokio::test]
async fn namespace_that_goes_in_mid_download_ends_cleanly() {
    let stage = Stage::shared(SEED).await.unwrap();
    let operator = stage.operator().unwrap();
    stage.answer(&[("all", "fetching")]).await.unwrap();
    stage.create(Deployment::named("fetching").replicas(2)).await.unwrap();
    stage
        .namespace()
        .await_condition("the download to be seen", SOON, async || {
            let object = stage.deployments().get("fetching").await?;
            Ok(condition(&object, "Ready")
                .filter(|(_, reason, _)| *reason == "Downloading")
                .map(drop))
        })
        .await
        .unwrap();
    let namespaces: Api<Namespace> = Api::all(stage.namespace().client().clone());
    let name = stage.namespace().name();
    namespaces.delete(name, &DeleteParams::default()).await.unwrap();
    stage
        .namespace()
        .await_condition("the namespace to be gone", SOON, async || {
            Ok(namespaces.get_opt(name).await?.is_none().then_some(()))
        })
        .await
        .unwrap();
    stage.proxy.await_quiet(WHILE, SOON).await.unwrap();
    assert!(operator.is_alive());
}

#[tokio::test]
async fn pods_that_do_not_say_the_digest_never_make_ready_true() {
    let stage = Stage::shared(SEED).await.unwrap();
    let _operator = stage.operator().unwrap();
    let wrong = [
        "wrong-digest",
        "no-digest",
        "other-pod",
        "silent",
        "error",
        "nonsense",
        "fetching",
    ];
    let answers: Vec<(&str, &str)> = wrong.iter().map(|answer| (*answer, *answer)).collect();
    stage.answer(&answers).await.unwrap();
    for name in wrong.iter().chain(&["right"]) {
        stage.create(Deployment::named(name).replicas(2)).await.unwrap();
    }
    let is_ready = async |name: &str| {
        let object = stage.deployments().get(name).await?;
        anyhow::Ok(condition(&object, "Ready").is_some_and(|(status, ..)| status == "True"))
    };
    stage
        .namespace()
        .await_condition("the right one to be ready", SOON, async || {
            Ok(is_ready("right").await?.then_some(()))
        })
        .await
        .unwrap();
    let end = tokio::time::Instant::now() + WHILE;
    while tokio::time::Instant::now() < end {
        for name in wrong {
            assert!(!is_ready(name).await.unwrap(), "{name} is ready");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // One pod of two is enough to spoil it, and once all are right, all are ready.
    stage.answer(&[]).await.unwrap();
    let world = stage.settle().await.unwrap();
    let pod = world.living("right")[0].name_any();
    stage.answer(&[(&pod, "wrong-digest")]).await.unwrap();
    stage
        .namespace()
        .await_condition("the right one not to be ready any more", SOON * 2, async || {
            Ok((!is_ready("right").await?).then_some(()))
        })
        .await
        .unwrap();
}
