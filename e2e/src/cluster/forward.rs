//! Makes something inside a cluster's network answer on a port of this machine.
//!
//! One small process a forward: its listening socket is made outside, then the whole process moves into the
//! namespace, so that what it accepts outside it connects inside.

use std::fmt;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::Service;
use kube::{Api, Client};
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};

use super::paths::write_atomically;
use super::process::Daemon;
use super::{Cluster, own_program};

/// The forward that the cluster's own kubeconfig leads through; no other may take its name.
pub const API_FORWARD: &str = "api-server";

/// Where a forward leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// An address inside the cluster's network.
    Address(SocketAddr),
    /// A Service; its address is looked up for every connection, so it may be made anew.
    Service {
        /// Namespace of the Service.
        namespace: String,
        /// Its name.
        name: String,
        /// Its port.
        port: u16,
    },
}

impl FromStr for Target {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let Some(service) = text.strip_prefix("svc/") else {
            return text
                .parse()
                .map(Self::Address)
                .with_context(|| format!("{text:?} is neither ADDRESS:PORT nor svc/NAMESPACE/NAME:PORT"));
        };
        let parts = service
            .split_once('/')
            .and_then(|(namespace, rest)| Some((namespace, rest.rsplit_once(':')?)));
        let Some((namespace, (name, port))) = parts else {
            bail!("{text:?} is not svc/NAMESPACE/NAME:PORT")
        };
        let port = port.parse().with_context(|| format!("{port:?} is not a port"))?;
        Ok(Self::Service {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            port,
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(formatter),
            Self::Service { namespace, name, port } => write!(formatter, "svc/{namespace}/{name}:{port}"),
        }
    }
}

/// A forward that runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Forward {
    /// Its name, unique in the cluster.
    pub name: String,
    /// The address on this machine.
    pub listen: SocketAddr,
    /// Where it leads, as text.
    pub target: String,
}

impl Cluster {
    /// Makes `target` answer on `listen` of this machine (port 0: any free one) until the cluster ends.
    ///
    /// The same forward that runs already is kept, with its port.
    pub async fn forward(&self, name: &str, listen: &str, target: &Target) -> Result<Forward> {
        let file = self.forward_file(name);
        std::fs::create_dir_all(self.folder.join("forwards")).context("could not make the folder of forwards")?;
        let daemon_name = format!("forward-{name}");
        let arguments = [
            "forward",
            "--foreground",
            "--name",
            self.name(),
            "--as",
            name,
            "--listen",
            listen,
            "--inner-kubeconfig",
            &self.inner_kubeconfig().display().to_string(),
            "--ready-file",
            &file.display().to_string(),
            &target.to_string(),
        ]
        .map(str::to_owned)
        .to_vec();
        let runs = self
            .processes()
            .record(&daemon_name)
            .is_some_and(|record| record.process.is_alive() && record.command.get(1..) == Some(&arguments[..]));
        if !runs {
            let _missing = std::fs::remove_file(&file);
            let program = own_program()?;
            let environment = Vec::new();
            self.start_daemon(&Daemon {
                name: &daemon_name,
                program: &program,
                arguments,
                environment,
                namespace: None,
            })?;
        }
        let result = self
            .wait(&daemon_name, Duration::from_secs(20), async || Ok(read(&file)))
            .await;
        if result.is_err() {
            // A forward that cannot start (its port is in use) must not make the whole cluster look broken.
            self.processes().stop(&daemon_name, Duration::ZERO);
        }
        result
    }

    /// All forwards of the cluster.
    pub fn forwards(&self) -> Vec<Forward> {
        std::fs::read_dir(self.folder.join("forwards"))
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| read(&entry.path()))
            .collect()
    }

    fn forward_file(&self, name: &str) -> PathBuf {
        self.folder.join("forwards").join(format!("{name}.json"))
    }
}

fn read(file: &Path) -> Option<Forward> {
    serde_json::from_slice(&std::fs::read(file).ok()?).ok()
}

/// Serves one forward until the process is ended. Must be called on the main thread of a process that has no other.
pub fn serve(
    network: &super::Network,
    forward: &mut Forward,
    target: Target,
    inner_kubeconfig: &Path,
    ready_file: Option<&Path>,
) -> Result<()> {
    let listener = StdTcpListener::bind(forward.listen).with_context(|| {
        format!(
            "could not listen on {}: is another program or cluster using that port?",
            forward.listen
        )
    })?;
    listener
        .set_nonblocking(true)
        .context("could not prepare the listening socket")?;
    forward.listen = listener.local_addr().context("could not read the listening address")?;
    // From here on every new socket, also those of the threads to come, is inside.
    network.enter()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("could not start an async runtime")?;
    runtime.block_on(async {
        let listener = TcpListener::from_std(listener).context("could not use the listening socket")?;
        if let Some(file) = ready_file {
            write_atomically(file, serde_json::to_vec_pretty(forward)?)?;
        }
        accept(listener, target, inner_kubeconfig).await
    })
}

async fn accept(listener: TcpListener, target: Target, inner_kubeconfig: &Path) -> Result<()> {
    let client = match target {
        Target::Address(_) => None,
        Target::Service { .. } => {
            let config = super::client::config_from(inner_kubeconfig).await?;
            Some(Client::try_from(config).context("could not make a Kubernetes client")?)
        }
    };
    loop {
        let (mut outside, _) = listener.accept().await.context("could not accept a connection")?;
        let (target, client) = (target.clone(), client.clone());
        // Ends by itself with either side of the connection.
        tokio::spawn(async move {
            let _latency_only = outside.set_nodelay(true);
            let copied = async {
                let mut inside = connect(&target, client).await?;
                inside.set_nodelay(true).context("could not set a socket option")?;
                tokio::io::copy_bidirectional(&mut outside, &mut inside)
                    .await
                    .context("the connection broke")
            };
            if let Err(error) = copied.await {
                eprintln!("{target}: {error:#}");
            }
        });
    }
}

async fn connect(target: &Target, client: Option<Client>) -> Result<TcpStream> {
    let address = match (target, client) {
        (Target::Address(address), _) => address.to_string(),
        (Target::Service { namespace, name, port }, Some(client)) => {
            let services: Api<Service> = Api::namespaced(client, namespace);
            let service = services
                .get(name)
                .await
                .with_context(|| format!("could not find the Service {namespace}/{name}"))?;
            let address = service.spec.and_then(|spec| spec.cluster_ip).unwrap_or_default();
            format!("{address}:{port}")
        }
        (Target::Service { .. }, None) => bail!("a Service needs a client"),
    };
    tokio::time::timeout(Duration::from_secs(10), TcpStream::connect(&address))
        .await
        .with_context(|| format!("{address} did not answer in 10 s"))?
        .with_context(|| format!("could not connect to {address}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_and_written() {
        for text in ["10.99.0.1:6443", "svc/team-a/chat:80"] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
        for text in ["", "chat:80", "svc/chat:80", "svc/a/b", "svc/a/b:x"] {
            text.parse::<Target>().unwrap_err();
        }
    }
}
