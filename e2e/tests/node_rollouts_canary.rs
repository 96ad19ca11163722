//! A canary walks over four real pods while the official client asks: stood still, given up, walked again to its end.
//! Always on the test bed: the requests go to the Service from inside the cluster's network.

#![expect(clippy::unwrap_used, reason = "a helper of tests fails the test")]

use std::collections::BTreeMap;
use std::time::Duration;

use escadre_crds::names;
use escadre_crds::v1alpha1::RolloutStatus;
use escadre_e2e::rollouts::{Fleet, Model, WORKERS};
use escadre_e2e::scenario::Scenario;
use escadre_e2e::testing::CONTEXT_VARIABLE;
use escadre_e2e::world::is_ready;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::ListParams;
use serde_json::{Value, json};

const NAME: &str = "canary";
const PODS: usize = 4;
/// New pods are loaded while two cores also answer the requests.
const STEP: Duration = Duration::from_mins(4);

/// Ready pods by revision.
async fn ready_by_revision(scenario: &Scenario) -> anyhow::Result<BTreeMap<String, usize>> {
    let ours = ListParams::default().labels(&names::selector(NAME));
    let mut counts = BTreeMap::new();
    for pod in scenario.namespace().api::<Pod>().list(&ours).await? {
        if pod.metadata.deletion_timestamp.is_none() && is_ready(&pod) {
            *counts.entry(pod.labels()[names::LABEL_REVISION].clone()).or_default() += 1;
        }
    }
    Ok(counts)
}

/// Waits until the step has its share, which must be that of the pods.
async fn await_step(scenario: &Scenario, fleet: &Fleet<'_>, step: i32, new_pods: usize) -> RolloutStatus {
    let percent = i32::try_from(new_pods * 100 / PODS).ok();
    let rollout = scenario
        .namespace()
        .await_condition(&format!("step {step} with {new_pods} new pods"), STEP, async || {
            let rollout = fleet.status().await?.rollout;
            Ok(rollout.filter(|one| (one.step, one.updated_percent) == (Some(step), percent)))
        })
        .await
        .unwrap();
    let pods = ready_by_revision(scenario).await.unwrap();
    assert_eq!(pods.get(&rollout.revision), Some(&new_pods), "{pods:?}");
    assert_eq!(pods.values().sum::<usize>(), PODS, "{pods:?}");
    rollout
}

/// Answers by each of the two models from now on, for a while.
async fn answers(fleet: &Fleet<'_>) -> (usize, usize) {
    let before = fleet.traffic.records().unwrap().len();
    tokio::time::sleep(Duration::from_secs(15)).await;
    let records = fleet.traffic.records().unwrap();
    let count = |model: Model| {
        let fingerprints = records[before..].iter().filter_map(|one| one.fingerprint.as_deref());
        fingerprints.filter(|one| model.answered(one)).count()
    };
    (count(Model::First), count(Model::Second))
}

fn steps(last_pause: &str) -> Value {
    json!({"canary": {"steps": [{"weight": 25, "pause": "5s"}, {"weight": 50, "pause": last_pause}]}})
}

#[tokio::test(flavor = "multi_thread")]
async fn canary_walks_stands_still_is_given_up_and_walks_to_its_end_under_load() {
    let scenario = Scenario::start().await.unwrap();
    if scenario.test_bed().is_err() {
        eprintln!("skipped: {CONTEXT_VARIABLE} names a cluster, and the traffic is sent inside the test bed");
        return;
    }
    let mut rollout = steps("1h");
    rollout["strategy"] = json!("Canary");
    let fleet = Fleet::start_with(&scenario, NAME, (PODS, WORKERS), rollout)
        .await
        .unwrap();
    let stable = scenario.ready_pods(NAME).await.unwrap();

    fleet.edit(Model::Second, json!({})).await.unwrap();
    await_step(&scenario, &fleet, 1, 1).await;
    await_step(&scenario, &fleet, 2, 2).await;
    let pause = json!({"rollout": {"paused": true}});
    scenario.patch(NAME, pause).await.unwrap();
    scenario.await_failure(NAME, "Progressing", "Paused").await.unwrap();
    let (first, second) = answers(&fleet).await;
    eprintln!("with two of four pods: {first} answers of the old model, {second} of the new one");
    assert!(first > 0 && second > 0, "{first} and {second}");

    fleet
        .edit(Model::First, json!({"rollout": {"paused": false}}))
        .await
        .unwrap();
    fleet.await_rolled_out(Model::First).await.unwrap();
    let back = scenario.await_ready_pods(NAME, PODS).await.unwrap();
    let kept = stable.iter().filter(|(pod, uid)| back.get(*pod) == Some(uid)).count();
    assert_eq!(kept, PODS / 2, "the pods that still served were kept");

    fleet.edit(Model::Second, json!({})).await.unwrap();
    await_step(&scenario, &fleet, 2, 2).await;
    scenario.patch(NAME, json!({"rollout": steps("1s")})).await.unwrap();
    fleet.await_rolled_out(Model::Second).await.unwrap();
    let summary = fleet.finish().await.unwrap();
    eprint!("{}", summary.report());
}
