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
        client_from(&self.kubeconfig()).await
    }

    /// A client for threads that are inside the cluster's network.
    pub async fn inner_client(&self) -> Result<Client> {
        client_from(&self.inner_kubeconfig()).await
    }

    /// Threads inside the cluster's network, for async code that must reach pods and Services.
    #[expect(
        clippy::missing_panics_doc,
        reason = "only a thread of the runtime can panic, and only if the cluster goes away"
    )]
    pub fn inside(&self) -> Result<Inside> {
        let network = self.network();
        // Here an error can still be returned; on the threads it cannot.
        network.inside(|| ())?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .on_thread_start(move || network.enter().expect("the namespace could be entered a moment ago"))
            .build()
            .context("could not start an async runtime inside the cluster's network")?;
        Ok(Inside { runtime: Some(runtime) })
    }
}

/// An async runtime whose threads are inside a cluster's network.
#[derive(Debug)]
pub struct Inside {
    runtime: Option<Runtime>,
}

impl Inside {
    /// Runs a future inside. Clients must be made in it as well: they belong to the runtime that made them.
    pub async fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Result<T> {
        let runtime = self.runtime.as_ref().context("the runtime has ended")?;
        // Spawned, never `block_on`: that would poll on the caller's thread, which is outside.
        runtime
            .spawn(work)
            .await
            .context("work inside the cluster's network panicked")
    }
}

impl Inside {
    /// Lets a future run inside until this value is dropped.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) -> Result<()> {
        let runtime = self.runtime.as_ref().context("the runtime has ended")?;
        runtime.spawn(work);
        Ok(())
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // An ordinary drop waits, which async callers must not.
            runtime.shutdown_background();
        }
    }
}

/// The configuration in the kubeconfig file of one of our own clusters.
pub(crate) async fn config_from(file: &Path) -> Result<Config> {
    let kubeconfig = Kubeconfig::read_from(file).with_context(|| format!("could not read {}", file.display()))?;
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .with_context(|| format!("{} does not describe a cluster", file.display()))?;
    // A proxy of the person's environment leads away from this machine.
    config.proxy_url = None;
    config.connect_timeout = Some(Duration::from_secs(5));
    Ok(config)
}

async fn client_from(file: &Path) -> Result<Client> {
    Client::try_from(config_from(file).await?).context("could not make a Kubernetes client")
}
