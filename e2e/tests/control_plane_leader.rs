//! Several operators of one installation: one acts, the next one takes over, whatever happens to the first.

#![expect(clippy::unwrap_used, reason = "a helper of tests fails the test")]

use std::time::Duration;

use escadre_crds::{LlmDeployment, names};
use escadre_e2e::cluster::Cluster;
use escadre_e2e::escadre;
use escadre_e2e::fixtures::Deployment;
use escadre_e2e::operator::OperatorChild;
use escadre_e2e::testing::{self, TestNamespace};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use rustix::process::Signal;
use serde_json::json;

const SOON: Duration = Duration::from_secs(30);

/// An operator that watches one namespace and elects in it, with times that make a test short.
fn operator(cluster: &Cluster, namespace: &TestNamespace, port: u16) -> OperatorChild {
    let watched = format!("--namespace={}", namespace.name());
    let elects = format!("--leader-election-namespace={}", namespace.name());
    let arguments = [
        "--runtime-image=escadre.dev/runtime:scenario",
        "--leader-election",
        "--lease-duration=3s",
        "--renew-deadline=2s",
        "--renew-interval=300ms",
        &watched,
        &elects,
    ];
    OperatorChild::start(cluster, port, None, &arguments).unwrap()
}

async fn start() -> (&'static Cluster, TestNamespace) {
    let cluster = testing::control_plane().await.unwrap();
    escadre::install_resource(cluster.own().unwrap()).await.unwrap();
    (cluster.own().unwrap(), cluster.namespace().await.unwrap())
}

async fn await_holder(namespace: &TestNamespace, what: &str, is_right: impl Fn(&str) -> bool) -> String {
    let leases: Api<Lease> = namespace.api();
    namespace
        .await_condition(what, SOON, async || {
            let lease = leases.get_opt("escadre-operator").await?;
            let holder = lease.and_then(|lease| lease.spec?.holder_identity).unwrap_or_default();
            Ok(is_right(&holder).then_some(holder))
        })
        .await
        .unwrap()
}

async fn await_ready(namespace: &TestNamespace, operator: &OperatorChild) {
    namespace
        .await_condition("the operator to be ready", SOON, async || {
            Ok(operator.is_ready().then_some(()))
        })
        .await
        .unwrap();
}

async fn create(namespace: &TestNamespace, name: &str, replicas: i64) {
    let deployment = Deployment::named(name).replicas(replicas);
    namespace.create_deployment(deployment).await.unwrap();
}

async fn await_pods(namespace: &TestNamespace, name: &str, count: usize) -> Vec<Pod> {
    let api: Api<Pod> = namespace.api();
    let selector = ListParams::default().labels(&names::selector(name));
    namespace
        .await_condition(&format!("{count} pods of {name}"), SOON, async || {
            let pods = api.list(&selector).await?.items;
            Ok((pods.len() == count).then_some(pods))
        })
        .await
        .unwrap()
}

#[tokio::test]
async fn graceful_stop_hands_over_and_the_follower_was_ready_and_idle() {
    let (cluster, namespace) = start().await;
    let mut first = operator(cluster, &namespace, 18181);
    let holder = await_holder(&namespace, "a leader", |holder| !holder.is_empty()).await;
    let second = operator(cluster, &namespace, 18182);
    await_ready(&namespace, &second).await;
    create(&namespace, "one", 1).await;
    let before = await_pods(&namespace, "one", 1).await;
    let (_, page) = second.get("/metrics").unwrap();
    assert!(page.contains("escadre_operator_leader 0"), "{page}");
    assert!(
        !page.contains("escadre_operator_writes_total{"),
        "a follower wrote:\n{page}"
    );
    let (_, page) = first.get("/metrics").unwrap();
    assert!(page.contains("escadre_operator_leader 1"), "{page}");
    let series = format!(
        "escadre_llmdeployment_replicas_wanted{{namespace=\"{}\",name=\"one\"}} 1",
        namespace.name()
    );
    assert!(page.contains(&series), "{page}");

    first.signal(Signal::TERM).unwrap();
    assert!(first.ended().await.unwrap().success(), "a graceful stop is a success");
    let next = await_holder(&namespace, "another leader", |next| !next.is_empty() && next != holder).await;
    assert_ne!(next, holder);
    create(&namespace, "two", 2).await;
    await_pods(&namespace, "two", 2).await;
    let after = await_pods(&namespace, "one", 1).await;
    assert_eq!(before[0].uid(), after[0].uid(), "a change of the leader touches no pod");
}

#[tokio::test]
async fn leader_that_stood_still_is_replaced_and_ends_when_it_wakes() {
    let (cluster, namespace) = start().await;
    let mut first = operator(cluster, &namespace, 18183);
    let holder = await_holder(&namespace, "a leader", |holder| !holder.is_empty()).await;
    create(&namespace, "still", 1).await;
    await_pods(&namespace, "still", 1).await;
    first.signal(Signal::STOP).unwrap();
    // What it will find to do when it wakes, with a lease that is not its own.
    let api: Api<LlmDeployment> = namespace.api();
    let edit = json!({"spec": {"replicas": 3}});
    api.patch("still", &PatchParams::default(), &Patch::Merge(edit))
        .await
        .unwrap();
    let _second = operator(cluster, &namespace, 18184);
    await_holder(&namespace, "another leader", |next| !next.is_empty() && next != holder).await;
    let pods = await_pods(&namespace, "still", 3).await;
    first.signal(Signal::CONT).unwrap();
    let status = first.ended().await.unwrap();
    assert_eq!(status.code(), Some(1), "who lost the lease must end with an error");
    let log = first.log();
    assert!(log.contains("leadership is lost"), "{log}");
    let mut uids: Vec<_> = pods.iter().map(Pod::uid).collect();
    let mut after: Vec<_> = await_pods(&namespace, "still", 3).await.iter().map(Pod::uid).collect();
    uids.sort();
    after.sort();
    assert_eq!(uids, after);
}

#[tokio::test]
async fn killed_leader_is_replaced_when_its_lease_has_run_out() {
    let (cluster, namespace) = start().await;
    let mut first = operator(cluster, &namespace, 18185);
    let holder = await_holder(&namespace, "a leader", |holder| !holder.is_empty()).await;
    let _second = operator(cluster, &namespace, 18186);
    first.signal(Signal::KILL).unwrap();
    assert!(!first.ended().await.unwrap().success());
    await_holder(&namespace, "another leader", |next| !next.is_empty() && next != holder).await;
    create(&namespace, "after", 1).await;
    await_pods(&namespace, "after", 1).await;
}

#[tokio::test]
async fn times_that_make_no_sense_are_refused_by_name() {
    let (cluster, _namespace) = start().await;
    let output = cluster
        .command(escadre::program("escadre-operator").unwrap())
        .args([
            "--leader-election",
            "--renew-deadline=30s",
            "--admin-address=127.0.0.1:18187",
        ])
        .output()
        .await
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && text.contains("--renew-deadline must be less"),
        "{text}"
    );
}
