//! The yardstick: the same number of pods by `apps/v1` Deployments, made by the controllers of Kubernetes.

use std::time::Instant;

use anyhow::Result;
use escadre_e2e::cluster::{Cluster, Component};
use escadre_e2e::testing::OwnCluster;
use kube::api::{ApiResource, DynamicObject};

use crate::measure::Tally;
use crate::report::{Report, Times};
use crate::{Settings, load};

/// Far above what two cores can do.
const RAISED: [&str; 2] = ["--kube-api-qps=2000", "--kube-api-burst=4000"];

pub(crate) async fn measure(settings: &Settings, report: &mut Report) -> Result<()> {
    report.plain_default = Some(one(settings, "plain", &[]).await?);
    report.plain_raised = Some(one(settings, "raised", &RAISED).await?);
    Ok(())
}

async fn one(settings: &Settings, label: &str, flags: &[&str]) -> Result<Times> {
    let nodes = settings.nodes.to_string();
    let own = OwnCluster::start(label, &["--control-plane-only", "--kwok-nodes", &nodes]).await?;
    if !flags.is_empty() {
        for component in [Component::KubeControllerManager, Component::KubeScheduler] {
            own.cluster().restart_component_with(component, flags)?;
        }
    }
    eprintln!("{} plain Deployments of two pods, {label}", settings.deployments);
    let settings = settings.clone();
    let cluster = own.cluster().clone();
    let inside = own.cluster().inside()?;
    let times = inside.run(async move { apply(&cluster, &settings).await }).await??;
    own.stop().await?;
    Ok(times)
}

async fn apply(cluster: &Cluster, settings: &Settings) -> Result<Times> {
    let client = cluster.inner_client().await?;
    load::namespaces(&client, "plain").await?;
    let deployments = ApiResource {
        group: "apps".to_owned(),
        version: "v1".to_owned(),
        api_version: "apps/v1".to_owned(),
        kind: "Deployment".to_owned(),
        plural: "deployments".to_owned(),
    };
    let tally = Tally::start(&client, "bench=plain", &deployments, is_ready);
    let start = Instant::now();
    let wanted = (settings.deployments * 2, settings.deployments);
    let (applied, (created, ready)) = tokio::join!(
        load::plain(&client, "plain", settings.deployments),
        tally.until(start, wanted, settings.yardstick_deadline())
    );
    applied?;
    Ok(Times {
        created,
        ready,
        pods_at_deadline: tally.pods(),
        ready_at_deadline: tally.ready(),
    })
}

fn is_ready(deployment: &DynamicObject) -> bool {
    deployment.data["status"]["readyReplicas"].as_i64() == Some(2)
}
