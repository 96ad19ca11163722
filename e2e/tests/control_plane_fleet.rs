//! Every deployment of a fleet is edited at once on nodes whose every GPU is taken. A binary of its own, since it takes
//! them all.
//!
//! Short here; `make bench-fleet` sets the variables for the long form, with plain Deployments on the same nodes as the
//! yardstick.

#![expect(clippy::unwrap_used, reason = "a helper of tests fails the test")]

use std::collections::BTreeMap;
use std::env;
use std::time::{Duration, Instant};

use escadre_crds::{LlmDeployment, names};
use escadre_e2e::fixtures::{self, Deployment};
use escadre_e2e::floor::Floor;
use escadre_e2e::stage::Stage;
use escadre_e2e::testing::OwnCluster;
use escadre_e2e::world::condition;
use futures::stream::{self, TryStreamExt as _};
use k8s_openapi::api::apps::v1::Deployment as PlainDeployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};

const PODS: usize = 4;
const GPUS_OF_A_NODE: usize = 8;
/// Requests that wait at once.
const AT_ONCE: usize = 16;
/// Between two looks at everything, each of which costs the API server something.
const LOOK: Duration = Duration::from_secs(2);
/// Longer than any fleet takes that makes progress.
const DEADLINE: Duration = Duration::from_mins(20);
/// The label of the plain pods by which they are told apart.
const PLAIN: &str = "app";

/// What a fleet showed.
struct Measured {
    seconds: f64,
    least_ready: usize,
}

fn name(number: usize) -> String {
    format!("fleet-{number:03}")
}

/// Does it for all of the fleet, some at once.
async fn all<F: Future<Output = anyhow::Result<()>>>(size: usize, action: impl Fn(usize) -> F) {
    let actions = (0..size).map(|number| Ok(action(number)));
    stream::iter(actions)
        .try_buffer_unordered(AT_ONCE)
        .try_for_each(async |()| Ok(()))
        .await
        .unwrap();
}

/// Waits until every member of the fleet is as it should be; says from time to time how many are.
async fn await_all<K>(api: &Api<K>, size: usize, is: impl Fn(&K) -> bool) -> f64
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let start = Instant::now();
    let mut said = Instant::now();
    loop {
        let list = api.list(&ListParams::default()).await.unwrap();
        let done = list.iter().filter(|one| is(one)).count();
        let seconds = start.elapsed().as_secs_f64();
        if done == size {
            return seconds;
        }
        assert!(
            start.elapsed() < DEADLINE,
            "{done} of {size} after {seconds:.0} s; one that is not there: {:#?}",
            list.iter().find(|one| !is(one))
        );
        if said.elapsed() > Duration::from_secs(10) {
            eprintln!("  {seconds:>4.0} s: {done} of {size}");
            said = Instant::now();
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn serves(object: &LlmDeployment) -> bool {
    let ready = condition(object, "Ready")
        .is_some_and(|(status, _, generation)| status == "True" && generation == object.metadata.generation);
    ready && object.status.as_ref().is_some_and(|status| status.rollout.is_none())
}

async fn ours(stage: &Stage, size: usize) -> Measured {
    let _operator = stage.operator().unwrap();
    let floor = Floor::watch(stage.namespace().api(), names::LABEL_DEPLOYMENT);
    let replicas = i64::try_from(PODS).unwrap();
    all(size, async |number| {
        stage
            .create(Deployment::named(&name(number)).replicas(replicas).gpus(1))
            .await
    })
    .await;
    await_all(&stage.deployments(), size, serves).await;
    assert!(floor.now().values().all(|ready| *ready == PODS), "{:?}", floor.now());
    floor.begin();
    all(size, async |number| {
        stage
            .edit(&name(number), json!({"model": {"servedName": "second"}}))
            .await
    })
    .await;
    let seconds = await_all(&stage.deployments(), size, serves).await;
    let least_ready = least(&floor, size);
    let pods: Api<Pod> = stage.namespace().api();
    let list = pods.list(&ListParams::default()).await.unwrap();
    let mut revisions: BTreeMap<&str, usize> = BTreeMap::new();
    for pod in list.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
        *revisions.entry(&pod.labels()[names::LABEL_REVISION]).or_default() += 1;
    }
    assert_eq!(revisions.len(), 1, "pods of the old revision are left: {revisions:?}");
    all(size, async |number| stage.delete(&name(number)).await).await;
    await_empty(&pods).await;
    Measured { seconds, least_ready }
}

fn least(floor: &Floor, size: usize) -> usize {
    let least = floor.least();
    assert_eq!(least.len(), size);
    least.into_values().min().unwrap()
}

async fn await_empty(pods: &Api<Pod>) {
    let start = Instant::now();
    while !pods
        .list_metadata(&ListParams::default().limit(1))
        .await
        .unwrap()
        .items
        .is_empty()
    {
        assert!(start.elapsed() < DEADLINE, "pods are left");
        tokio::time::sleep(LOOK).await;
    }
}

fn plain(name: &str) -> Value {
    let pod = fixtures::gpu_pod(name, 1);
    json!({
        "metadata": {"name": name},
        "spec": {
            "replicas": PODS,
            "selector": {"matchLabels": {PLAIN: name}},
            // The only way that is left to it on nodes that are full.
            "strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
            "template": {"metadata": pod["metadata"], "spec": pod["spec"]},
        },
    })
}

fn is_rolled_out(deployment: &PlainDeployment) -> bool {
    let Some(status) = &deployment.status else { return false };
    let all = i32::try_from(PODS).ok();
    status.observed_generation == deployment.metadata.generation
        && [status.replicas, status.updated_replicas, status.available_replicas]
            .iter()
            .all(|count| *count == all)
}

async fn yardstick(stage: &Stage, size: usize) -> Measured {
    let deployments: Api<PlainDeployment> = stage.namespace().api();
    let floor = Floor::watch(stage.namespace().api(), PLAIN);
    all(size, async |number| {
        let deployment = serde_json::from_value(plain(&name(number)))?;
        deployments.create(&PostParams::default(), &deployment).await?;
        Ok(())
    })
    .await;
    await_all(&deployments, size, is_rolled_out).await;
    floor.begin();
    let edit = json!({"spec": {"template": {"metadata": {"annotations": {"model": "second"}}}}});
    all(size, async |number| {
        deployments
            .patch(&name(number), &PatchParams::default(), &Patch::Merge(&edit))
            .await?;
        Ok(())
    })
    .await;
    let seconds = await_all(&deployments, size, is_rolled_out).await;
    let least_ready = least(&floor, size);
    all(size, async |number| {
        deployments.delete(&name(number), &DeleteParams::background()).await?;
        Ok(())
    })
    .await;
    await_empty(&stage.namespace().api()).await;
    Measured { seconds, least_ready }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fleet_that_holds_every_gpu_is_rolled_at_once_and_keeps_its_floor() {
    let long = env::var("ESCADRE_FLEET").ok();
    let size = long.as_deref().map_or(16, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("ESCADRE_FLEET={text:?} is not a number"))
    });
    let nodes = (size * PODS).div_ceil(GPUS_OF_A_NODE);
    assert_eq!(
        nodes * GPUS_OF_A_NODE,
        size * PODS,
        "a fleet of {size} leaves GPUs free"
    );
    let own = OwnCluster::start("full", &["--control-plane-only", "--kwok-nodes", &nodes.to_string()])
        .await
        .unwrap();
    let stage = Stage::on(&own, 0).await.unwrap();
    let ours = ours(&stage, size).await;
    eprintln!(
        "{size} deployments of {PODS} pods on {nodes} full nodes: rolled out in {:.1} s, at least {} of {PODS} ready",
        ours.seconds, ours.least_ready
    );
    assert!(
        ours.least_ready >= PODS - 1,
        "the floor was not kept: {}",
        ours.least_ready
    );
    if long.is_some() {
        let plain = yardstick(&stage, size).await;
        let version = stage.namespace().client().apiserver_version().await.unwrap();
        let record = json!({
            "kubernetes": version.git_version, "deployments": size, "pods": PODS, "nodes": nodes,
            "escadre": {"seconds": ours.seconds, "leastReady": ours.least_ready},
            "deployment": {"seconds": plain.seconds, "leastReady": plain.least_ready},
        });
        println!("record: {record}");
    }
    own.stop().await.unwrap();
}
