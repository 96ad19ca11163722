//! The operator itself: a mass rollout, single edits, a world full of strangers, and thousands of deployments at rest.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use escadre_crds::LlmDeployment;
use escadre_e2e::cluster::Cluster;
use escadre_e2e::faults::{FaultProxy, Verb};
use escadre_e2e::operator::{Operator, Start};
use escadre_e2e::testing::OwnCluster;
use escadre_e2e::wait::llm_deployments;
use escadre_e2e::{escadre, status_pages};
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use kube::api::{DynamicObject, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;

use crate::measure::{Tally, median, memory, p99, processor_seconds};
use crate::report::{Report, Times};
use crate::{Settings, load};

const FLEET: &str = "fleet";
/// Twice the bar: later it is a miss in any case.
const ALL_READY: Duration = Duration::from_mins(8);
/// Nothing was written for this long: the world is at rest.
const QUIET: Duration = Duration::from_secs(10);
const COMES_TO_REST: Duration = Duration::from_mins(3);
/// An edit without a pod write after this long counts as having taken it.
const EDIT_PATIENCE: Duration = Duration::from_secs(20);

/// Between edits at rest: the rollout of one is over before the next.
const PAUSE: Duration = Duration::from_millis(500);
/// For edits during a rollout: later ones would meet a world at rest, or say nothing new.
const LONG_ENOUGH: Duration = Duration::from_secs(90);

struct Fleet {
    settings: Settings,
    client: Client,
    proxy: FaultProxy,
    operator: Operator,
    tally: Tally,
}

pub(crate) async fn measure(settings: &Settings, report: &mut Report) -> Result<()> {
    let nodes = settings.nodes.to_string();
    let own = OwnCluster::start("fleet", &["--control-plane-only", "--kwok-nodes", &nodes]).await?;
    let cluster = own.cluster().clone();
    escadre::install_resource(&cluster).await?;
    status_pages::start(&cluster).await?;
    // Nothing goes wrong here: the proxy counts.
    let proxy = FaultProxy::start(&cluster, 0).await?;
    let operator = settings.operator.canonicalize().context("the operator is not there")?;
    let operator = Start::new().program(&operator).through(&proxy).start(&cluster)?;
    let inside = cluster.inside()?;
    let (settings, mut taken) = (settings.clone(), report.clone());
    *report = inside
        .run(async move {
            let fleet = Fleet::new(&cluster, settings, proxy, operator).await?;
            fleet.measure(&mut taken).await.map(|()| taken)
        })
        .await??;
    own.stop().await
}

impl Fleet {
    async fn new(cluster: &Cluster, settings: Settings, proxy: FaultProxy, operator: Operator) -> Result<Self> {
        let client = cluster.inner_client().await?;
        load::namespaces(&client, FLEET).await?;
        let ours = "app.kubernetes.io/component=runtime";
        let tally = Tally::start(&client, ours, &llm_deployments(), is_ready);
        let fleet = Self {
            settings,
            client,
            proxy,
            operator,
            tally,
        };
        tokio::time::sleep(Duration::from_secs(5)).await;
        anyhow::ensure!(
            fleet.operator.is_alive(),
            "the operator ended:\n{}",
            fleet.operator.log(20)
        );
        Ok(fleet)
    }

    async fn measure(&self, report: &mut Report) -> Result<()> {
        self.apply_at_once(report).await?;
        self.edit_at_rest(report).await?;
        self.edit_in_a_rollout(report).await?;
        self.be_among_strangers(report).await?;
        self.idle(report).await
    }

    fn pid(&self) -> Result<i32> {
        self.operator.pid()
    }

    fn api(&self, number: usize) -> Api<LlmDeployment> {
        Api::namespaced(self.client.clone(), &load::namespace_of(FLEET, number))
    }

    /// Writes but for leases and events.
    fn writes(&self) -> usize {
        self.proxy.written().iter().filter(|one| !one.call.is_event()).count()
    }

    async fn rest(&self) -> Result<()> {
        self.proxy.await_quiet(QUIET, COMES_TO_REST).await
    }

    async fn apply_at_once(&self, report: &mut Report) -> Result<()> {
        let count = self.settings.deployments;
        eprintln!("{count} LlmDeployments of two pods");
        report.memory_empty = Some(memory(self.pid()?)?.0);
        self.proxy.forget();
        let start = Instant::now();
        let (applied, (created, ready)) = tokio::join!(
            load::llm_deployments(&self.client, FLEET, 0..count, 2),
            self.tally.until(start, (count * 2, count), ALL_READY)
        );
        applied?;
        report.ours = Some(Times {
            created,
            ready,
            pods_at_deadline: self.tally.pods(),
            ready_at_deadline: self.tally.ready(),
        });
        if let Err(error) = self.rest().await {
            report.notes.push(format!(
                "after the mass rollout the operator did not come to rest: {error:#}"
            ));
        }
        report.memory_rollout = Some(memory(self.pid()?)?.1);
        report.writes_per_deployment = Some(ratio(self.writes(), count));
        report.writes_by_kind = self
            .proxy
            .counts()
            .into_iter()
            .filter(|((verb, _), _)| verb.is_write())
            .map(|((verb, on), times)| (format!("{verb} {on}"), times))
            .collect();
        Ok(())
    }

    /// Seconds from an edit until the first write on a pod of that deployment.
    async fn edit(&self, number: usize, served: &str) -> Result<f64> {
        let name = load::name(number);
        let api = self.api(number);
        let patch = Patch::Merge(json!({"spec": {"model": {"servedName": served}}}));
        let start = Instant::now();
        api.patch(&name, &PatchParams::default(), &patch)
            .await
            .context("could not edit a deployment")?;
        let prefix = format!("{name}-");
        while start.elapsed() < EDIT_PATIENCE {
            if let Some(at) = self.proxy.first_write_since(start, "pods", &prefix) {
                return Ok(at.duration_since(start).as_secs_f64());
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(EDIT_PATIENCE.as_secs_f64())
    }

    async fn edit_at_rest(&self, report: &mut Report) -> Result<()> {
        let edits = self.settings.edits.min(self.settings.deployments);
        eprintln!("{edits} single edits at rest");
        let mut delays = Vec::new();
        for number in 0..edits {
            delays.push(self.edit(number, "edited-at-rest").await?);
            tokio::time::sleep(PAUSE).await;
        }
        (report.edit_at_rest, report.edit_at_rest_median) = (p99(&delays), median(&delays));
        Ok(())
    }

    /// Most of the fleet gets another revision at once; meanwhile others are edited one by one.
    async fn edit_in_a_rollout(&self, report: &mut Report) -> Result<()> {
        let count = self.settings.deployments;
        let edits = self.settings.edits.min(count / 2);
        eprintln!("{edits} single edits while {} deployments roll", count - edits);
        self.rest().await.ok();
        let roll = futures::stream::iter(edits..count)
            .map(|number| {
                let api = self.api(number);
                Ok::<_, anyhow::Error>(async move {
                    let patch = Patch::Merge(json!({"spec": {"model": {"servedName": "rolled"}}}));
                    api.patch(&load::name(number), &PatchParams::default(), &patch).await?;
                    Ok(())
                })
            })
            .try_buffer_unordered(32)
            .try_for_each(async |()| Ok(()));
        let all_accepted = AtomicBool::new(false);
        let roll = roll.inspect(|_| all_accepted.store(true, Ordering::Relaxed));
        // The delays while edits of the fleet still arrive, and those after.
        let single = async {
            let (mut arriving, mut rolling) = (Vec::new(), Vec::new());
            // Once the rollout has begun.
            tokio::time::sleep(Duration::from_millis(500)).await;
            let begun = Instant::now();
            for number in 0..edits {
                let is_rolling = all_accepted.load(Ordering::Relaxed);
                if begun.elapsed() > LONG_ENOUGH || (is_rolling && self.tally.ready() == count) {
                    break;
                }
                let delay = self.edit(number, "edited-in-a-rollout").await?;
                if is_rolling { &mut rolling } else { &mut arriving }.push(delay);
            }
            anyhow::Ok((arriving, rolling))
        };
        let (rolled, delays) = tokio::join!(roll, single);
        rolled.context("could not edit the fleet")?;
        let (arriving, rolling) = delays?;
        report.notes.push(format!(
            "{} single edits were made while the edits of the fleet still arrived (median {:.0} ms, p99 {:.0} ms), {} after, of \
             which the bar speaks.",
            arriving.len(),
            median(&arriving).unwrap_or_default() * 1000.0,
            p99(&arriving).unwrap_or_default() * 1000.0,
            rolling.len(),
        ));
        (report.edit_in_rollout, report.edit_in_rollout_median) = (p99(&rolling), median(&rolling));
        let start = Instant::now();
        self.tally.until(start, (0, count), ALL_READY).await;
        self.rest().await.ok();
        Ok(())
    }

    async fn be_among_strangers(&self, report: &mut Report) -> Result<()> {
        let (secrets, pods) = (self.settings.secrets, self.settings.pods);
        eprintln!("{secrets} Secrets and {pods} pods of others");
        let before = memory(self.pid()?)?.0;
        load::namespace(&self.client, "strangers").await?;
        load::unrelated(&self.client, "strangers", secrets, pods).await?;
        tokio::time::sleep(QUIET).await;
        report.memory_strangers = Some(memory(self.pid()?)?.0 - before);
        Ok(())
    }

    async fn idle(&self, report: &mut Report) -> Result<()> {
        let (first, all) = (
            self.settings.deployments,
            self.settings.idle.max(self.settings.deployments),
        );
        eprintln!("{} more deployments of one pod, so that {all} idle", all - first);
        let start = Instant::now();
        let (applied, (_, ready)) = tokio::join!(
            load::llm_deployments(&self.client, FLEET, first..all, 1),
            self.tally.until(start, (0, all), ALL_READY)
        );
        applied?;
        if ready.is_none() {
            report.notes.push(format!(
                "only {} of {all} idle deployments became ready",
                self.tally.ready()
            ));
        }
        if let Err(error) = self.rest().await {
            report
                .notes
                .push(format!("the idle fleet did not come to rest: {error:#}"));
        }
        let seconds = self.settings.idle_seconds;
        eprintln!("{seconds} s at rest");
        self.proxy.forget();
        let (from, used) = (Instant::now(), processor_seconds(self.pid()?)?);
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        let share = (processor_seconds(self.pid()?)? - used) / from.elapsed().as_secs_f64();
        report.idle_writes = Some(self.proxy.written().len());
        report.idle_processor = Some(share * 100.0);
        report.idle_memory = Some(memory(self.pid()?)?.0);
        report.idle_reads = self
            .proxy
            .counts()
            .into_iter()
            .filter(|((verb, _), _)| matches!(verb, Verb::Get | Verb::List))
            .map(|((verb, on), times)| (format!("{verb} {on}"), times))
            .collect();
        let polls = status_pages::polls().await?;
        report.idle_pods = Some(polls.pods);
        report.oldest_poll = Some(polls.oldest_seconds);
        Ok(())
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts are small")]
fn ratio(one: usize, other: usize) -> f64 {
    one as f64 / other.max(1) as f64
}

/// Ready for the newest generation.
fn is_ready(deployment: &DynamicObject) -> bool {
    let conditions = deployment.data["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|condition| {
        condition["type"] == "Ready"
            && condition["status"] == "True"
            && condition["observedGeneration"].as_i64() == deployment.metadata.generation
    })
}
