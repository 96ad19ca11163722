//! Rollouts on fake nodes with real scheduling: how pods are replaced when there is room and when there is none, what
//! stops a rollout, and what brings the older revision back.

#![expect(clippy::unwrap_used, reason = "a helper of tests fails the test")]

use std::collections::BTreeSet;
use std::time::Duration;

use escadre_crds::v1alpha1::{LlmDeploymentStatus, RevisionOutcome, Strategy};
use escadre_crds::{LlmDeployment, names};
use escadre_e2e::fixtures::{self, Deployment};
use escadre_e2e::floor::Floor;
use escadre_e2e::stage::Stage;
use escadre_e2e::world::{World, condition, is_ready};
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};

const SEED: u64 = 20_261_125;
const SOON: Duration = Duration::from_mins(3);

/// Another model for `spec.model`.
fn second_model() -> Value {
    json!({"model": {"servedName": "second"}})
}

fn first_model() -> Value {
    json!({"model": {"servedName": null}})
}

/// Waits until the newest generation's status is as `is` wants it; calls it for every state that is seen.
async fn await_status(
    stage: &Stage,
    name: &str,
    what: &str,
    mut is: impl FnMut(&LlmDeployment, &World) -> bool,
) -> LlmDeploymentStatus {
    stage
        .namespace()
        .await_condition(what, SOON, async || {
            let world = stage.look().await?;
            let object = &world.deployments[name];
            let generation = object.metadata.generation;
            let status = object.status.clone().unwrap_or_default();
            let is_new = status.observed_generation == generation;
            Ok((is(object, &world) && is_new).then_some(status))
        })
        .await
        .unwrap()
}

fn has(object: &LlmDeployment, type_: &str, status: &str, reason: &str) -> bool {
    condition(object, type_).is_some_and(|(is, why, _)| (is, why) == (status, reason))
}

fn message(status: &LlmDeploymentStatus, type_: &str) -> String {
    let found = status.conditions.iter().find(|one| one.type_ == type_);
    found.unwrap().message.clone()
}

async fn await_serving(stage: &Stage, name: &str) -> LlmDeploymentStatus {
    await_status(stage, name, &format!("{name} is ready"), |object, _| {
        has(object, "Ready", "True", "Serving")
    })
    .await
}

fn ready_pods(world: &World, name: &str) -> usize {
    world.living(name).into_iter().filter(|pod| is_ready(pod)).count()
}

#[tokio::test]
async fn new_pods_come_first_history_is_kept_and_editing_back_uses_the_old_record() {
    let stage = Stage::shared(SEED).await.unwrap();
    let _operator = stage.operator().unwrap();
    stage.create(Deployment::named("surge").replicas(3)).await.unwrap();
    let first = await_serving(&stage, "surge").await;
    stage.edit("surge", second_model()).await.unwrap();
    let mut least = 3;
    let mut most = 0;
    let second = await_status(&stage, "surge", "the second model", |object, world| {
        least = least.min(ready_pods(world, "surge"));
        most = most.max(world.living("surge").len());
        has(object, "Ready", "True", "Serving")
    })
    .await;
    assert_eq!(least, 3, "never fewer than were asked for");
    assert!(most <= 4, "never more than one beyond: {most}");
    assert_ne!(second.served_revision, first.served_revision);
    assert_eq!(second.rollout, None);
    let outcome = |status: &LlmDeploymentStatus, name: &Option<String>| {
        let found = status.revisions.iter().find(|one| Some(&one.name) == name.as_ref());
        found.unwrap().outcome
    };
    assert_eq!(
        outcome(&second, &first.served_revision),
        Some(RevisionOutcome::Replaced)
    );
    assert_eq!(
        outcome(&second, &second.served_revision),
        Some(RevisionOutcome::Complete)
    );

    let records: Api<ControllerRevision> = stage.namespace().api();
    let name = names::revision_name("surge", &first.served_revision.clone().unwrap());
    let record = records.get(&name).await.unwrap();
    stage.edit("surge", first_model()).await.unwrap();
    let third = await_serving(&stage, "surge").await;
    assert_eq!(third.served_revision, first.served_revision);
    assert_eq!(records.get(&name).await.unwrap().uid(), record.uid());
}

#[tokio::test]
async fn history_limit_drops_the_oldest_records() {
    let stage = Stage::shared(SEED).await.unwrap();
    let _operator = stage.operator().unwrap();
    let limited = Deployment::named("limited")
        .replicas(1)
        .set("/spec/rollout/revisionHistoryLimit", json!(1));
    stage.create(limited).await.unwrap();
    let mut served = vec![await_serving(&stage, "limited").await.served_revision.unwrap()];
    for token in ["one", "two"] {
        stage.edit("limited", json!({"restartToken": token})).await.unwrap();
        served.push(await_serving(&stage, "limited").await.served_revision.unwrap());
    }
    let wanted: BTreeSet<String> = served[1..].iter().cloned().collect();
    await_status(&stage, "limited", "two records", |object, world| {
        let kept: BTreeSet<String> = world
            .revisions
            .iter()
            .map(|one| one.labels()[names::LABEL_REVISION].clone())
            .collect();
        let told = object.status.iter().flat_map(|status| &status.revisions);
        let told: BTreeSet<String> = told.map(|one| one.name.clone()).collect();
        kept == wanted && told == wanted
    })
    .await;
}

#[tokio::test]
async fn full_node_is_rolled_in_place_one_by_one() {
    let stage = Stage::shared(SEED).await.unwrap();
    let _operator = stage.operator().unwrap();
    let selector = stage.reserve_node("fake-16").await.unwrap();
    let full = Deployment::named("full")
        .replicas(8)
        .gpus(1)
        .set("/spec/placement/nodeSelector", selector);
    stage.create(full).await.unwrap();
    await_serving(&stage, "full").await;
    stage.edit("full", second_model()).await.unwrap();
    let mut least = 8;
    let mut chosen = None;
    await_status(&stage, "full", "the second model in place", |object, world| {
        least = least.min(ready_pods(world, "full"));
        let rollout = object.status.as_ref().and_then(|status| status.rollout.as_ref());
        chosen = rollout.and_then(|rollout| rollout.strategy_chosen).or(chosen);
        has(object, "Ready", "True", "Serving")
    })
    .await;
    assert_eq!(chosen, Some(Strategy::InPlace));
    assert!(least >= 7, "never two less: {least}");
}

#[tokio::test]
async fn node_that_is_drained_in_mid_rollout_costs_what_its_budget_allows() {
    let stage = Stage::shared(SEED).await.unwrap();
    let _operator = stage.operator().unwrap();
    let selector = stage.reserve_node("fake-13").await.unwrap();
    stage.reserve_node("fake-14").await.unwrap();
    let moved = Deployment::named("moved")
        .replicas(6)
        .set("/spec/placement/nodeSelector", selector)
        .set("/spec/disruption", json!({"minAvailable": 5}));
    stage.create(moved).await.unwrap();
    await_serving(&stage, "moved").await;
    let floor = Floor::watch(stage.namespace().api(), names::LABEL_DEPLOYMENT);
    await_status(&stage, "moved", "the watch to see all pods", |_, _| {
        floor.now().get("moved") == Some(&6)
    })
    .await;
    floor.begin();
    stage.edit("moved", second_model()).await.unwrap();
    await_status(&stage, "moved", "the first new pod", |object, _| {
        let rollout = object.status.as_ref().and_then(|status| status.rollout.as_ref());
        rollout.and_then(|rollout| rollout.updated_percent) > Some(0)
    })
    .await;
    let pod_selector = format!("--pod-selector={}=moved", names::LABEL_DEPLOYMENT);
    let drain = [
        "drain",
        "fake-13",
        "--delete-emptydir-data",
        "--timeout=60s",
        &pod_selector,
    ];
    stage.cluster().output("kubectl", &drain).await.unwrap();
    await_status(
        &stage,
        "moved",
        "the second model on the other node",
        |object, world| {
            let node = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
            let on_the_other = world
                .living("moved")
                .into_iter()
                .all(|pod| node(pod).as_deref() == Some("fake-14"));
            has(object, "Ready", "True", "Serving") && on_the_other
        },
    )
    .await;
    stage
        .cluster()
        .output("kubectl", &["uncordon", "fake-13"])
        .await
        .unwrap();
    let least = floor.least()["moved"];
    // One less by the budget, and one more when an eviction and a deletion cross.
    assert!(least >= 4, "only {least} of 6 were ready");
}

#[tokio::test]
async fn last_pod_is_not_stopped_for_a_new_one_without_a_node() {
    let stage = Stage::shared(SEED).await.unwrap();
    let _operator = stage.operator().unwrap();
    let selector = stage.reserve_node("fake-15").await.unwrap();
    let pods: Api<Pod> = stage.namespace().api();
    let mut foreign = fixtures::gpu_pod("foreign", 7);
    foreign["spec"]["nodeSelector"] = selector.clone();
    let foreign = serde_json::from_value(foreign).unwrap();
    pods.create(&PostParams::default(), &foreign).await.unwrap();
    let last = Deployment::named("last")
        .replicas(1)
        .gpus(1)
        .set("/spec/placement/nodeSelector", selector);
    stage.create(last).await.unwrap();
    await_serving(&stage, "last").await;
    stage.edit("last", second_model()).await.unwrap();
    let blocked = await_status(&stage, "last", "to be blocked", |object, world| {
        assert_eq!(ready_pods(world, "last"), 1);
        has(object, "Progressing", "False", "Blocked")
    })
    .await;
    let words = message(&blocked, "Progressing");
    assert!(
        words.contains("Insufficient nvidia.com/gpu") && words.contains("nothing is stopped"),
        "{words}"
    );
    assert_eq!(blocked.available_replicas, 1);
    pods.delete("foreign", &DeleteParams::default()).await.unwrap();
    await_serving(&stage, "last").await;
}

#[tokio::test]
async fn revision_that_finds_no_node_is_rolled_back_and_the_cause_is_told() {
    let stage = Stage::shared(SEED).await.unwrap();
    let _operator = stage.operator().unwrap();
    let stuck = Deployment::named("stuck")
        .replicas(2)
        .set("/spec/rollout/progressDeadline", json!("12s"));
    stage.create(stuck).await.unwrap();
    let before = await_serving(&stage, "stuck").await;
    let nowhere = json!({"placement": {"nodeSelector": {"no": "node"}}});
    stage.edit("stuck", nowhere.clone()).await.unwrap();
    let after = await_status(&stage, "stuck", "to be rolled back", |object, world| {
        assert_eq!(ready_pods(world, "stuck"), 2);
        has(object, "Ready", "False", "RolledBack") && world.living("stuck").len() == 2
    })
    .await;
    let words = message(&after, "Progressing");
    assert!(
        words.contains("ProgressDeadlineExceeded") && words.contains("Unschedulable") && words.contains("restartToken"),
        "{words}"
    );
    assert_eq!(after.failed_revision, after.target_revision);
    assert_eq!(after.current_revision, before.current_revision);
    assert_eq!(after.served_revision, before.served_revision);
    assert_eq!(after.revisions[0].reason.as_deref(), Some("ProgressDeadlineExceeded"));
    let object = stage.deployments().get("stuck").await.unwrap();
    assert!(has(&object, "Stalled", "True", "RolledBack"));
    assert!(has(&object, "Available", "True", "Serving"));

    // The same edit is not tried again; with a token it is, and an edit back is well at once.
    stage.edit("stuck", json!({"replicas": 3})).await.unwrap();
    await_status(&stage, "stuck", "three stable pods", |object, world| {
        has(object, "Ready", "False", "RolledBack") && ready_pods(world, "stuck") == 3
    })
    .await;
    stage.edit("stuck", json!({"restartToken": "again"})).await.unwrap();
    await_status(&stage, "stuck", "another try", |object, _| {
        let status = object.status.as_ref().unwrap();
        status.failed_revision.is_none() && status.rollout.is_some()
    })
    .await;
    let back = json!({"placement": null, "restartToken": null});
    stage.edit("stuck", back).await.unwrap();
    let healed = await_serving(&stage, "stuck").await;
    assert_eq!(healed.failed_revision, None);
    assert_eq!(healed.served_revision, before.served_revision);
}

#[tokio::test]
async fn new_pods_that_answer_with_errors_or_too_late_do_not_pass_the_gate() {
    let stage = Stage::shared(SEED).await.unwrap();
    let _operator = stage.operator().unwrap();
    let gated = |name: &str, gates: Value| Deployment::named(name).replicas(2).set("/spec/rollout/gates", gates);
    stage
        .create(gated("errors", json!({"maxErrorRate": 0.05, "window": "20s"})))
        .await
        .unwrap();
    stage
        .create(gated("late", json!({"maxTimeToFirstToken": "500ms", "window": "20s"})))
        .await
        .unwrap();
    stage
        .create(gated("unused", json!({"maxErrorRate": 0.05, "window": "5s"})))
        .await
        .unwrap();
    for name in ["errors", "late", "unused"] {
        await_serving(&stage, name).await;
    }
    stage.answer(&[("errors", "failing"), ("late", "slow")]).await.unwrap();
    for name in ["errors", "late", "unused"] {
        stage.edit(name, second_model()).await.unwrap();
    }
    for (name, words) in [("errors", "30 of 60 requests"), ("late", "3.000 s")] {
        let status = await_status(&stage, name, "to be rolled back", |object, world| {
            assert!(ready_pods(world, name) >= 2);
            has(object, "Ready", "False", "RolledBack") && world.living(name).len() == 2
        })
        .await;
        assert_eq!(status.revisions[0].reason.as_deref(), Some("GateFailed"));
        let message = message(&status, "Progressing");
        assert!(message.contains(words), "{message}");
    }
    await_serving(&stage, "unused").await;
}

#[tokio::test]
async fn canary_goes_by_steps_stands_when_paused_and_is_given_up_by_an_edit_back() {
    let stage = Stage::shared(SEED).await.unwrap();
    let _operator = stage.operator().unwrap();
    let steps = json!([{"replicas": 1, "pause": "5s"}, {"replicas": 2, "pause": "1h"}]);
    let canary = Deployment::named("canary")
        .replicas(4)
        .set("/spec/rollout/strategy", json!("Canary"))
        .set("/spec/rollout/canary/steps", steps);
    stage.create(canary).await.unwrap();
    let first = await_serving(&stage, "canary").await;
    stage.edit("canary", second_model()).await.unwrap();
    let at = async |percent: i32, step: i32| {
        let what = format!("{percent} % in step {step}");
        await_status(&stage, "canary", &what, |object, world| {
            assert!(ready_pods(world, "canary") >= 4);
            let rollout = object.status.as_ref().and_then(|status| status.rollout.clone());
            rollout.is_some_and(|rollout| (rollout.updated_percent, rollout.step) == (Some(percent), Some(step)))
        })
        .await
    };
    at(25, 1).await;
    at(50, 2).await;
    stage
        .edit("canary", json!({"rollout": {"paused": true}}))
        .await
        .unwrap();
    await_status(&stage, "canary", "to be paused", |object, _| {
        has(object, "Progressing", "False", "Paused") && has(object, "Available", "True", "Serving")
    })
    .await;
    let back = json!({"model": {"servedName": null}, "rollout": {"paused": false}});
    stage.edit("canary", back).await.unwrap();
    let healed = await_status(&stage, "canary", "the first model", |object, world| {
        assert!(ready_pods(world, "canary") >= 4);
        has(object, "Ready", "True", "Serving")
    })
    .await;
    assert_eq!(healed.served_revision, first.served_revision);
    stage
        .edit("canary", json!({"model": {"servedName": "third"}}))
        .await
        .unwrap();
    at(50, 2).await;
    let short = json!({"rollout": {"canary": {"steps": [{"replicas": 1}, {"replicas": 2}]}}});
    stage.edit("canary", short).await.unwrap();
    await_serving(&stage, "canary").await;
}

#[tokio::test]
async fn stable_pods_are_healed_while_the_spec_cannot_be_followed() {
    let stage = Stage::shared(SEED).await.unwrap();
    let _operator = stage.operator().unwrap();
    stage.create(Deployment::named("healed").replicas(2)).await.unwrap();
    let before = await_serving(&stage, "healed").await;
    let missing = json!({"files": [{"path": "chat_template.jinja", "configMapRef": {"name": "missing", "key": "t"}}]});
    stage.edit("healed", missing).await.unwrap();
    await_status(&stage, "healed", "the missing ConfigMap", |object, _| {
        has(object, "Accepted", "False", "DependencyMissing")
    })
    .await;
    let pods: Api<Pod> = stage.namespace().api();
    let victim = stage.look().await.unwrap().living("healed")[0].name_any();
    pods.delete(&victim, &DeleteParams::default().grace_period(0))
        .await
        .unwrap();
    let status = await_status(&stage, "healed", "two ready pods again", |_, world| {
        let living = world.living("healed");
        ready_pods(world, "healed") == 2 && living.iter().all(|pod| pod.uid().is_some())
    })
    .await;
    assert_eq!(status.current_revision, before.current_revision);
}

#[tokio::test]
async fn recreate_never_has_two_revisions_at_once() {
    let stage = Stage::shared(SEED).await.unwrap();
    let _operator = stage.operator().unwrap();
    let recreated = Deployment::named("recreated")
        .replicas(2)
        .set("/spec/rollout/strategy", json!("Recreate"));
    stage.create(recreated).await.unwrap();
    await_serving(&stage, "recreated").await;
    stage.edit("recreated", second_model()).await.unwrap();
    await_status(&stage, "recreated", "the second model", |object, world| {
        let revisions: BTreeSet<_> = world
            .pods
            .iter()
            .map(|pod| pod.labels()[names::LABEL_REVISION].clone())
            .collect();
        assert!(revisions.len() <= 1, "{revisions:?}");
        has(object, "Ready", "True", "Serving")
    })
    .await;
}
