//! One scenario on a cluster whose pods really run: Escadre installed, a model to serve, a namespace, and what can be
//! asked of an `LlmDeployment` in it.
//!
//! On the test bed everything is installed here. A cluster that a person named must have Escadre already; models then
//! come from the mirror in `ESCADRE_TEST_ENDPOINT`, which has the model under `fixture-owner/smollm2`, or from the
//! public hub.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use escadre_crds::examples::{SMOLLM2_COMMIT, SMOLLM2_SOURCE};
use escadre_crds::{LlmDeployment, LlmDeploymentStatus, names};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::{DeleteParams, ListParams};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::client::OpenAi;
use crate::cluster::Cluster;
use crate::escadre::{self, MODEL_DIGEST, MODEL_FILE, MODEL_SOURCE, Reached};
use crate::fixtures::Deployment;
use crate::testing::{self, TestCluster, TestNamespace};
use crate::traffic::Traffic;
use crate::world::is_ready;

/// Names the URL of a mirror that a named cluster can reach.
pub const ENDPOINT_VARIABLE: &str = "ESCADRE_TEST_ENDPOINT";

/// Fetching, loading and warming up the model, beside other tests on two cores.
pub const LOADED: Duration = Duration::from_mins(3);
/// From the readiness of a pod until the Service leads to it, on a busy node.
const WAY: Duration = Duration::from_secs(30);
/// Long enough for the fetcher to give up a source after its own retries.
const NAMED: Duration = Duration::from_secs(150);

/// Where the model comes from.
#[derive(Debug, Clone)]
enum Source {
    Mirror(String),
    Hub,
}

/// A namespace of a cluster on which Escadre runs.
#[derive(Debug)]
pub struct Scenario {
    cluster: &'static TestCluster,
    source: Source,
    namespace: TestNamespace,
}

impl Scenario {
    /// Starts the shared cluster at the first call, or uses the one that the person named.
    pub async fn start() -> Result<Self> {
        Self::on(testing::cluster().await?).await
    }

    /// On this cluster, the only one of the test binary.
    pub async fn on(cluster: &'static TestCluster) -> Result<Self> {
        Self::with(cluster, async |cluster| escadre::install_chart(cluster).await).await
    }

    /// On this cluster of the test bed, the only one of the test binary, with everything but an operator: the test has
    /// its own.
    pub async fn without_operator(cluster: &'static TestCluster) -> Result<Self> {
        Self::with(cluster, async |cluster| {
            escadre::install_resource(cluster).await?;
            escadre::load_image(cluster, "runtime").await
        })
        .await
    }

    async fn with(cluster: &'static TestCluster, install: impl AsyncFnOnce(&Cluster) -> Result<()>) -> Result<Self> {
        static SOURCE: OnceCell<Source> = OnceCell::const_new();
        let source = SOURCE
            .get_or_try_init(async || match cluster {
                TestCluster::Own(own) => {
                    install(own.cluster()).await?;
                    let root = escadre::mirror_root(own.cluster())?;
                    escadre::start_mirror(own.cluster(), &root, 8000, None)
                        .await
                        .map(Source::Mirror)
                }
                TestCluster::Named { .. } => {
                    anyhow::Ok(std::env::var(ENDPOINT_VARIABLE).map_or(Source::Hub, Source::Mirror))
                }
            })
            .await?;
        Ok(Self {
            cluster,
            source: source.clone(),
            namespace: cluster.namespace().await?,
        })
    }

    /// The cluster, when it is one of the test bed; an error on one that a person named.
    pub fn test_bed(&self) -> Result<&'static Cluster> {
        self.cluster.own()
    }

    /// Its namespace.
    pub fn namespace(&self) -> &TestNamespace {
        &self.namespace
    }

    /// The small real model, with a short drain so that tests end soon.
    pub fn model(&self, name: &str) -> Deployment {
        let deployment = Deployment::named(name)
            .set("/spec/model/files", json!([MODEL_FILE]))
            .set("/spec/runtime/maxContext", json!(1024))
            .set("/spec/drain/timeoutSeconds", json!(30))
            // No CPU is asked for: many of these pods share the two cores of a test machine.
            .set("/spec/resources/memory", json!("1Gi"));
        match &self.source {
            Source::Mirror(url) => deployment.model(MODEL_SOURCE, MODEL_DIGEST).endpoint(url),
            Source::Hub => deployment
                .model(SMOLLM2_SOURCE, MODEL_DIGEST)
                .set("/spec/model/revision", json!(SMOLLM2_COMMIT)),
        }
    }

    /// Creates a deployment.
    pub async fn create(&self, deployment: Deployment) -> Result<()> {
        self.namespace.create_deployment(deployment).await.map(drop)
    }

    /// Edits fields of a deployment's spec.
    pub async fn patch(&self, name: &str, spec: Value) -> Result<()> {
        self.namespace.edit_deployment(name, spec).await
    }

    /// Deletes a deployment.
    pub async fn delete(&self, name: &str) -> Result<()> {
        self.namespace.delete_deployment(name).await
    }

    /// Deletes a pod as `kubectl delete pod` does.
    pub async fn delete_pod(&self, name: &str) -> Result<()> {
        let deleted = self.namespace.api::<Pod>().delete(name, &DeleteParams::default()).await;
        deleted.map(drop).context("could not delete the pod")
    }

    /// Waits until `Ready` is true for the newest generation.
    pub async fn await_ready(&self, name: &str) -> Result<LlmDeploymentStatus> {
        self.await_ready_within(name, LOADED).await
    }

    /// As [`Self::await_ready`], for at most `deadline`.
    pub async fn await_ready_within(&self, name: &str, deadline: Duration) -> Result<LlmDeploymentStatus> {
        self.await_condition(name, ("Ready", "True", None), deadline).await
    }

    /// Waits until a condition is `False` with `reason` for the newest generation; returns its message and the status.
    pub async fn await_failure(
        &self,
        name: &str,
        condition: &str,
        reason: &str,
    ) -> Result<(String, LlmDeploymentStatus)> {
        self.await_failure_within(name, (condition, reason), NAMED).await
    }

    /// As [`Self::await_failure`], for at most `deadline`.
    pub async fn await_failure_within(
        &self,
        name: &str,
        (condition, reason): (&str, &str),
        deadline: Duration,
    ) -> Result<(String, LlmDeploymentStatus)> {
        let status = self
            .await_condition(name, (condition, "False", Some(reason)), deadline)
            .await?;
        let found = status.conditions.iter().find(|one| one.type_ == condition);
        let message = found.map(|one| one.message.clone()).unwrap_or_default();
        Ok((message, status))
    }

    /// Waits for (type, status, reason) in the newest generation's conditions.
    async fn await_condition(
        &self,
        name: &str,
        (condition, wanted, reason): (&str, &str, Option<&str>),
        deadline: Duration,
    ) -> Result<LlmDeploymentStatus> {
        let api: Api<LlmDeployment> = self.namespace.api();
        let what = format!("{condition}={wanted} {} of {name}", reason.unwrap_or_default());
        self.namespace
            .await_condition(&what, deadline, async || {
                let object = api.get(name).await?;
                let generation = object.metadata.generation;
                Ok(object.status.filter(|status| {
                    status.conditions.iter().any(|one| {
                        one.type_ == condition
                            && one.status == wanted
                            && one.observed_generation == generation
                            && reason.is_none_or(|reason| one.reason == reason)
                    })
                }))
            })
            .await
    }

    /// Ready serving pods by name, with their UIDs.
    pub async fn ready_pods(&self, name: &str) -> Result<BTreeMap<String, String>> {
        let parameters = ListParams::default().labels(&names::selector(name));
        let list = self.namespace.api::<Pod>().list(&parameters).await?;
        Ok(list
            .into_iter()
            .filter(|pod| pod.metadata.deletion_timestamp.is_none() && is_ready(pod))
            .map(|pod| (pod.name_any(), pod.uid().unwrap_or_default()))
            .collect())
    }

    /// Waits until that many pods are ready.
    pub async fn await_ready_pods(&self, name: &str, count: usize) -> Result<BTreeMap<String, String>> {
        self.namespace
            .await_condition(&format!("{count} ready pods of {name}"), LOADED, async || {
                Ok(Some(self.ready_pods(name).await?).filter(|pods| pods.len() == count))
            })
            .await
    }

    /// Requests to a deployment's Service from inside the cluster's network, by that many workers.
    pub async fn traffic(&self, name: &str, workers: u32) -> Result<Traffic> {
        let service = self.namespace.api::<Service>().get(name).await;
        let service = service.with_context(|| format!("could not find the Service {name}"))?;
        let address = service.spec.and_then(|spec| spec.cluster_ip);
        let address = address.with_context(|| format!("the Service {name} has no address"))?;
        Traffic::start(self.test_bed()?, &format!("http://{address}/v1"), name, workers).await
    }

    /// A client of a deployment's API, and what keeps the way to it open. Returns when the Service leads to a pod: the
    /// node's rules follow its readiness a moment later.
    pub async fn api(&self, name: &str) -> Result<(OpenAi, Reached)> {
        let reached = escadre::reach(self.cluster, self.namespace.name(), name).await?;
        let api = OpenAi::new(reached.base())?;
        self.namespace
            .await_condition("the Service to lead to a pod", WAY, async || {
                Ok(api.models().await.ok())
            })
            .await?;
        Ok((api, reached))
    }
}
