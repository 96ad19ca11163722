//! A model update never costs a request: two replicas on a real node are asked by the official client, with streams open
//! at each moment, while good and bad revisions come. Always on the test bed: the requests go to the Service from inside
//! the cluster's network.

#![expect(clippy::unwrap_used, reason = "a helper of tests fails the test")]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result};
use escadre_crds::names;
use escadre_e2e::escadre::MODEL_DIGEST;
use escadre_e2e::rollouts::{Fleet, Model, REPLICAS, WORKERS};
use escadre_e2e::scenario::Scenario;
use escadre_e2e::testing::CONTEXT_VARIABLE;
use escadre_e2e::traffic::Record;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, SemaphorePermit};

/// Until a bad revision has been given up: it is loaded, watched, and nothing happens for its whole deadline.
const GIVEN_UP: Duration = Duration::from_mins(4);
/// Until pods that never served are gone.
const GONE: Duration = Duration::from_mins(1);

/// So many fleets at a time: their models and their traffic share two cores.
static FLEETS: Semaphore = Semaphore::const_new(2);

/// The scenario, once it is its turn; none, and said so, on a cluster whose network we are not in.
async fn scenario() -> Option<(Scenario, SemaphorePermit<'static>)> {
    let turn = FLEETS.acquire().await.unwrap();
    let scenario = Scenario::start().await.unwrap();
    if scenario.test_bed().is_err() {
        eprintln!("skipped: {CONTEXT_VARIABLE} names a cluster, and the traffic is sent inside the test bed");
        return None;
    }
    Some((scenario, turn))
}

#[tokio::test(flavor = "multi_thread")]
async fn three_updates_in_a_row_lose_no_request() {
    let Some((scenario, _turn)) = scenario().await else {
        return;
    };
    let fleet = Fleet::start(&scenario, "steady", WORKERS).await.unwrap();
    for model in [Model::Second, Model::First, Model::Second] {
        let took = fleet.update(model).await.unwrap();
        eprintln!("{model:?} was rolled out in {:.1} s", took.as_secs_f64());
    }
    let summary = fleet.finish().await.unwrap();
    eprint!("{}", summary.report());
    assert_eq!(summary.fingerprints.len(), 2, "both models answered");
}

/// An edit that asks for something that cannot serve.
struct Bad {
    name: &'static str,
    spec: Value,
    /// What puts right the fields that the edit back to the first model leaves alone.
    undo: Value,
    /// What the message must have.
    cause: &'static str,
}

fn bad(name: &'static str, spec: Value, undo: Value, cause: &'static str) -> Bad {
    Bad {
        name,
        spec,
        undo,
        cause,
    }
}

/// Edits the model to the second one, with a gate.
fn gated(name: &'static str, gates: &Value, cause: &'static str) -> Bad {
    let mut spec = Model::Second.spec();
    spec["rollout"] = json!({"gates": gates});
    bad(name, spec, json!({"rollout": {"gates": null}}), cause)
}

/// The stable revision, before a bad one came.
struct Stable {
    revision: String,
    pods: BTreeMap<String, String>,
}

impl Stable {
    async fn of(scenario: &Scenario, fleet: &Fleet<'_>, name: &str) -> Result<Self> {
        let revision = fleet.status().await?.current_revision;
        Ok(Self {
            revision: revision.context("there is no current revision")?,
            pods: scenario.ready_pods(name).await?,
        })
    }
}

/// Plays bad revisions one after the other on a deployment under traffic. Each is played, also when one before it did
/// not go as it should.
async fn play(name: &str, revisions: Vec<Bad>) {
    let Some((scenario, _turn)) = scenario().await else {
        return;
    };
    let fleet = Fleet::start(&scenario, name, WORKERS).await.unwrap();
    let mut wrong = Vec::new();
    for bad in revisions {
        let failed_before = fleet.traffic.failures().unwrap().len();
        if let Err(error) = is_rolled_back(&scenario, &fleet, name, &bad).await {
            wrong.push(format!("{}: {error:#}", bad.name));
        }
        let failed = fleet.traffic.failures().unwrap().len() - failed_before;
        if failed > 0 {
            wrong.push(format!("{}: {failed} requests failed", bad.name));
        }
    }
    match fleet.finish().await {
        Ok(summary) => eprint!("{name}: {}", summary.report()),
        Err(error) => wrong.push(format!("{error:#}")),
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The bad revision comes, is named and goes; the stable one serves as before, and an edit back is all it takes.
async fn is_rolled_back(scenario: &Scenario, fleet: &Fleet<'_>, name: &str, bad: &Bad) -> Result<()> {
    let stable = Stable::of(scenario, fleet, name).await?;
    scenario.patch(name, bad.spec.clone()).await?;
    let judged = judge(scenario, name, bad, &stable).await;
    // In any case, so that the next one starts from the stable revision.
    let took = fleet.update_with(Model::First, bad.undo.clone()).await?;
    judged?;
    eprintln!("{}: ready {:.1} s after the edit back", bad.name, took.as_secs_f64());
    anyhow::ensure!(scenario.ready_pods(name).await? == stable.pods, "pods were replaced");
    Ok(())
}

async fn judge(scenario: &Scenario, name: &str, bad: &Bad, stable: &Stable) -> Result<()> {
    let (message, status) = scenario
        .await_failure_within(name, ("Progressing", "RolledBack"), GIVEN_UP)
        .await?;
    eprintln!("{}: {message}", bad.name);
    anyhow::ensure!(message.contains(bad.cause), "no word of {:?}: {message}", bad.cause);
    let failed = status.failed_revision.context("no failed revision is named")?;
    anyhow::ensure!(
        status.target_revision.as_ref() == Some(&failed),
        "{failed} failed, and {:?} was asked for",
        status.target_revision
    );
    anyhow::ensure!(
        status.current_revision.as_ref() == Some(&stable.revision),
        "{:?} is current, and {} serves",
        status.current_revision,
        stable.revision
    );
    anyhow::ensure!(status.served_digest.as_deref() == Some(MODEL_DIGEST));
    let ours = ListParams::default().labels(&format!("{}={failed}", names::LABEL_REVISION));
    scenario
        .namespace()
        .await_condition("pods of the failed revision to be gone", GONE, async || {
            let pods = scenario.namespace().api::<Pod>().list(&ours).await?;
            Ok(pods.items.is_empty().then_some(()))
        })
        .await?;
    let pods = scenario.ready_pods(name).await?;
    anyhow::ensure!(pods.len() == REPLICAS, "ready are only {pods:?}");
    anyhow::ensure!(pods == stable.pods, "pods of the stable revision were replaced");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn revision_that_never_starts_is_rolled_back_and_loses_no_request() {
    let wrong = format!("sha256:{}", "5f".repeat(32));
    play(
        "starting",
        vec![
            bad(
                "wrong digest",
                json!({"model": {"verification": {"digest": wrong}}}),
                json!({}),
                "5f5f5f5f5f5f",
            ),
            bad(
                "missing file",
                json!({"model": {"files": ["absent.gguf"]}}),
                json!({}),
                "model.files",
            ),
            bad(
                "absent image",
                json!({"runtime": {"image": "escadre.dev/runtime:absent"}}),
                json!({"runtime": {"image": null}}),
                "escadre.dev/runtime:absent",
            ),
            bad(
                "absent device",
                json!({"resources": {"gpu": {"count": 1, "resourceName": "example.com/nothing"}}}),
                json!({"resources": {"gpu": null}}),
                "example.com/nothing",
            ),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn revision_that_starts_and_fails_is_rolled_back_and_loses_no_request() {
    play(
        "failing",
        vec![
            bad(
                "unknown option",
                json!({"runtime": {"args": ["--threads=many"]}}),
                json!({"runtime": {"args": null}}),
                "many",
            ),
            bad(
                "too little memory",
                json!({"resources": {"memory": "96Mi"}}),
                json!({"resources": {"memory": "1Gi"}}),
                "memory",
            ),
            gated(
                "wrong answer",
                &json!({"probePrompt": {"prompt": "Name a ship.", "expectContains": "qwertzuiop"}}),
                "qwertzuiop",
            ),
            gated(
                "too slow",
                // It fails after twenty requests. So long that a few come to the new pod of a machine that has much to do:
                // without any it would pass.
                &json!({"maxTimeToFirstToken": "1ms", "window": "2m"}),
                "first token",
            ),
        ],
    )
    .await;
}

/// A process runs so long among requests before it ends.
const LIFE: Duration = Duration::from_secs(30);
/// Connections to a pod whose process has ended are tried until kube-proxy knows of it.
const NOTICED: Duration = Duration::from_secs(5);

/// Ends the process of each ready pod that is not a stable one after its life, and remembers when.
async fn end_processes(scenario: &Scenario, name: &str, stable: &Stable, ended: &mut Vec<f64>) -> Result<Infallible> {
    let mut ready_since: BTreeMap<String, Instant> = BTreeMap::new();
    loop {
        let mut ready = scenario.ready_pods(name).await?;
        ready.retain(|pod, _| !stable.pods.contains_key(pod));
        ready_since.retain(|uid, _| ready.values().any(|one| one == uid));
        for uid in ready.into_values() {
            let since = *ready_since.entry(uid.clone()).or_insert_with(Instant::now);
            if since.elapsed() < LIFE {
                continue;
            }
            ready_since.remove(&uid);
            let entry = format!("{}={uid}", names::ENV_POD_UID);
            anyhow::ensure!(
                scenario.test_bed()?.processes().kill_with(&entry) > 0,
                "no process of {uid}"
            );
            ended.push(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs_f64());
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn revision_that_ends_among_requests_is_rolled_back_and_the_stable_one_loses_none() {
    let Some((scenario, _turn)) = scenario().await else {
        return;
    };
    let name = "ending";
    let fleet = Fleet::start(&scenario, name, WORKERS).await.unwrap();
    let stable = Stable::of(&scenario, &fleet, name).await.unwrap();
    // So long that the revision is still judged when its process ends.
    let gates = json!({"maxErrorRate": 1, "window": "10m"});
    let bad = gated("ends among requests", &gates, "CrashLoop");
    scenario.patch(name, bad.spec.clone()).await.unwrap();
    let mut ended = Vec::new();
    tokio::select! {
        judged = judge(&scenario, name, &bad, &stable) => judged.unwrap(),
        Err(error) = end_processes(&scenario, name, &stable, &mut ended) => panic!("{error:#}"),
    }
    assert!(ended.len() >= 3, "it was given up after {ended:?}");
    fleet.update_with(Model::First, bad.undo.clone()).await.unwrap();
    let is_of_the_ended = |record: &Record| {
        let is_stable = record
            .fingerprint
            .as_deref()
            .is_some_and(|one| Model::First.answered(one));
        let mut since = ended.iter().map(|when| record.ended - when);
        !is_stable && since.any(|seconds| (-0.5..NOTICED.as_secs_f64()).contains(&seconds))
    };
    let summary = fleet.finish_despite(is_of_the_ended).await.unwrap();
    eprint!(
        "{name}, whose process was ended {} times: {}",
        ended.len(),
        summary.report()
    );
}
