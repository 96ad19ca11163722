//! Clients of a cluster's API server, from this machine or from inside the cluster's network.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tokio::runtime::{Builder, Runtime};

use super::Cluster;

impl Cluster {
    /// A client with all rights, through a port of 127.0.0.1. Belongs to the async runtime that made it.
    pub async fn client(&self) -> Result<Client> {
        client_from(config_from(&self.kubeconfig(), None).await?)
    }

    /// A client for threads that are inside the cluster's network.
    pub async fn inner_client(&self) -> Result<Client> {
        client_from(config_from(&self.inner_kubeconfig(), None).await?)
    }

    /// An async runtime whose threads are all inside the cluster's network: what runs on it reaches pods and Services.
    pub fn inner_runtime(&self) -> Result<Runtime> {
        let network = self.network();
        network.inside(|| ())?;
        Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .on_thread_start(move || network.enter().expect("the namespace could be entered a moment ago"))
            .build()
            .context("could not start an async runtime inside the cluster's network")
    }
}

/// The configuration in a kubeconfig file, for its current or the named context.
pub(crate) async fn config_from(file: &Path, context: Option<&str>) -> Result<Config> {
    let kubeconfig = Kubeconfig::read_from(file).with_context(|| format!("could not read {}", file.display()))?;
    let options = KubeConfigOptions { context: context.map(str::to_owned), ..KubeConfigOptions::default() };
    Config::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .with_context(|| format!("{} does not describe a cluster", file.display()))
}

/// A client for a configuration of one of our own clusters: no proxy of the person's environment is in the way.
fn client_from(mut config: Config) -> Result<Client> {
    config.proxy_url = None;
    config.connect_timeout = Some(Duration::from_secs(5));
    Client::try_from(config).context("could not make a Kubernetes client")
}
