//! Rollouts on a real node while the API misbehaves, the operator is killed again and again, without a moment to put
//! things right, and the node is drained: no request is lost. A binary of its own, since its operator is a process of the test.
//!
//! Short here; `make soak-rollouts` sets the variables for the long form.

use std::convert::Infallible;
use std::env;
use std::time::{Duration, Instant};

use anyhow::Result;
use escadre_crds::names;
use escadre_e2e::cluster::Cluster;
use escadre_e2e::faults::{Dice, FaultProxy, bad_weather};
use escadre_e2e::operator::{Operator, Start};
use escadre_e2e::rollouts::{Fleet, Model, WORKERS};
use escadre_e2e::scenario::Scenario;
use escadre_e2e::testing::{self, CONTEXT_VARIABLE};
use serde_json::json;

/// An operator lives at least so long: it has read the world and does its work.
const SHORTEST: Duration = Duration::from_secs(2);
/// What chance adds to that.
const LONGER: usize = 8000;
/// The share of calls that go wrong in each way that a call can.
const WEATHER: f64 = 0.05;

/// The node is drained in the middle of every so many rollouts.
const DRAINED: u64 = 2;
/// Until a rollout is on its way.
const UNDER_WAY: Duration = Duration::from_mins(2);

/// Drains the only node: the pods that go come back nowhere, and the budget keeps the last one. Then the node is free
/// again.
async fn drain_node(cluster: &Cluster, fleet: &Fleet<'_>) -> Result<()> {
    let start = Instant::now();
    while fleet.status().await?.rollout.is_none() {
        anyhow::ensure!(start.elapsed() < UNDER_WAY, "no rollout is on its way");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let node = cluster.output("kubectl", &["get", "nodes", "--output=name"]).await?;
    let node = node.trim().trim_start_matches("node/");
    let selector = format!("--pod-selector={}", names::LABEL_DEPLOYMENT);
    let drain = ["drain", node, "--delete-emptydir-data", "--timeout=15s", &selector];
    let refused = cluster.output("kubectl", &drain).await;
    cluster.output("kubectl", &["uncordon", node]).await?;
    let refused = refused.err().map(|error| format!("{error:#}")).unwrap_or_default();
    anyhow::ensure!(
        refused.contains("disruption budget"),
        "the budget kept no pod: {refused:?}"
    );
    Ok(())
}

fn variable(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text:?} is not a number"))
    })
}

/// Kills the operator at random moments and starts another at once.
struct Killer {
    cluster: &'static Cluster,
    start: Start,
    operator: Operator,
    dice: Dice,
    kills: u64,
}

impl Killer {
    async fn run(&mut self) -> Result<Infallible> {
        loop {
            let longer = u64::try_from(self.dice.below(LONGER))?;
            tokio::time::sleep(SHORTEST + Duration::from_millis(longer)).await;
            anyhow::ensure!(self.operator.is_alive(), "the operator ended");
            let next = self.start.start(self.cluster)?;
            std::mem::replace(&mut self.operator, next).kill();
            self.kills += 1;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rollouts_lose_no_request_while_the_operator_is_killed_in_bad_weather() {
    let seed = variable("ESCADRE_SOAK_SEED", 20_261_125);
    let rollouts = variable("ESCADRE_SOAK_ROLLOUTS", 2);
    let shared = testing::cluster().await.unwrap();
    let Ok(cluster) = shared.own() else {
        eprintln!("skipped: {CONTEXT_VARIABLE} names a cluster, and the operator is killed on the test bed only");
        return;
    };
    eprintln!("seed {seed}, {rollouts} rollouts");
    let scenario = Scenario::without_operator(shared).await.unwrap();
    let proxy = FaultProxy::start(cluster, seed).await.unwrap();
    let start = Start::new().namespace(scenario.namespace().name()).through(&proxy);
    let mut killer = Killer {
        cluster,
        operator: start.start(cluster).unwrap(),
        start,
        dice: Dice::new(seed),
        kills: 0,
    };
    let fleet = Fleet::start(&scenario, "soaked", WORKERS).await.unwrap();
    proxy.set_rules(bad_weather(WEATHER));
    let mut model = Model::First;
    for number in 1..=rollouts {
        model = model.other();
        let start = Instant::now();
        let update = async {
            fleet.edit(model, json!({})).await?;
            if number % DRAINED == 0 {
                drain_node(cluster, &fleet).await?;
            }
            fleet.await_rolled_out(model).await
        };
        tokio::select! {
            done = update => done.unwrap(),
            Err(error) = killer.run() => panic!("{error:#}"),
        }
        let took = start.elapsed();
        let lost = fleet.traffic.failures().unwrap();
        eprintln!(
            "rollout {number} in {:.1} s; {} kills, {} faults, {} requests lost",
            took.as_secs_f64(),
            killer.kills,
            proxy.faults(),
            lost.len()
        );
        assert!(lost.is_empty(), "seed {seed}, rollout {number}: {lost:#?}");
    }
    let summary = fleet.finish().await.unwrap();
    eprint!("seed {seed}: {}", summary.report());
    assert!(killer.kills > 0, "nobody was killed");
}
