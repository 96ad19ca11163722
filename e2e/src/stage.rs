//! What fault scenarios play on: a namespace with fake nodes whose pods have status pages, and an operator for this
//! namespace alone that talks through a fault proxy.

use std::time::Duration;

use anyhow::Result;
use escadre_crds::LlmDeployment;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::cluster::Cluster;
use crate::faults::FaultProxy;
use crate::fixtures::Deployment;
use crate::operator::{Operator, Start};
use crate::testing::{self, OwnCluster, TestNamespace};
use crate::world::World;
use crate::{escadre, status_pages};

/// Many operators and a control plane share two cores.
const SETTLED: Duration = Duration::from_mins(2);

/// A stage.
#[derive(Debug)]
pub struct Stage {
    cluster: Cluster,
    namespace: TestNamespace,
    /// Between the operators and the API server.
    pub proxy: FaultProxy,
}

impl Stage {
    /// On the cluster with fake nodes that the tests of this binary share.
    pub async fn shared(seed: u64) -> Result<Self> {
        static PREPARED: OnceCell<()> = OnceCell::const_new();
        let shared = testing::fake_nodes().await?;
        let cluster = shared.own()?;
        PREPARED.get_or_try_init(async || prepare(cluster).await).await?;
        Ok(Self {
            cluster: cluster.clone(),
            namespace: shared.namespace().await?,
            proxy: FaultProxy::start(cluster, seed).await?,
        })
    }

    /// On a cluster that this test alone uses, for faults that others would feel.
    pub async fn on(cluster: &OwnCluster, seed: u64) -> Result<Self> {
        prepare(cluster.cluster()).await?;
        Ok(Self {
            cluster: cluster.cluster().clone(),
            namespace: cluster.namespace().await?,
            proxy: FaultProxy::start(cluster.cluster(), seed).await?,
        })
    }

    /// The cluster.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The namespace.
    pub fn namespace(&self) -> &TestNamespace {
        &self.namespace
    }

    /// A node selector that only this stage's pods have use of: the fake nodes are shared.
    pub async fn reserve_node(&self, node: &str) -> Result<Value> {
        let key = format!("escadre.test/{}", self.namespace.name());
        let nodes: Api<Node> = Api::all(self.namespace.client().clone());
        let label = json!({"metadata": {"labels": {key.as_str(): "here"}}});
        nodes.patch(node, &PatchParams::default(), &Patch::Merge(label)).await?;
        Ok(json!({key.as_str(): "here"}))
    }

    /// Its deployments.
    pub fn deployments(&self) -> Api<LlmDeployment> {
        self.namespace.api()
    }

    /// Starts an operator for the namespace, through the proxy.
    pub fn operator(&self) -> Result<Operator> {
        self.start().start(&self.cluster)
    }

    /// Starts another version of the operator beside it: its default image is another one.
    pub fn operator_of_another_version(&self) -> Result<Operator> {
        self.start()
            .runtime_image("escadre.dev/runtime:another-version")
            .start(&self.cluster)
    }

    fn start(&self) -> Start {
        Start::new().namespace(self.namespace.name()).through(&self.proxy)
    }

    /// Creates a deployment, past the proxy.
    pub async fn create(&self, deployment: Deployment) -> Result<()> {
        self.namespace.create_deployment(deployment).await.map(drop)
    }

    /// Edits fields of a deployment's spec, past the proxy.
    pub async fn edit(&self, name: &str, spec: Value) -> Result<()> {
        self.namespace.edit_deployment(name, spec).await
    }

    /// Deletes a deployment, past the proxy.
    pub async fn delete(&self, name: &str) -> Result<()> {
        self.namespace.delete_deployment(name).await
    }

    /// How pods answer; see [`status_pages`].
    pub async fn answer(&self, answers: &[(&str, &str)]) -> Result<()> {
        status_pages::answer(self.namespace.client(), self.namespace.name(), answers).await
    }

    /// Everything of ours in the namespace.
    pub async fn look(&self) -> Result<World> {
        World::look(self.namespace.client(), self.namespace.name()).await
    }

    /// Waits until everything is as the specs want it.
    pub async fn settle(&self) -> Result<World> {
        self.namespace
            .await_condition("the world to settle", SETTLED, async || {
                let world = self.look().await?;
                let open = world.unsettled();
                anyhow::ensure!(open.is_empty(), "{}", open.join("; "));
                Ok(Some(world))
            })
            .await
    }

    /// Waits until everything is as the specs want it, and nothing has been written for `quiet`.
    pub async fn settle_quietly(&self, quiet: Duration) -> Result<World> {
        self.settle().await?;
        self.proxy.await_quiet(quiet, SETTLED).await?;
        self.look().await
    }
}

async fn prepare(cluster: &Cluster) -> Result<()> {
    escadre::install_resource(cluster).await?;
    status_pages::start(cluster).await
}
