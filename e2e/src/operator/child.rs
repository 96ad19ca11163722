//! An operator as a child of a test: with its own arguments and its own rights, to be signalled and asked, and whose
//! exit status counts.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::process::Child;

use crate::cluster::{Cluster, tail};
use crate::escadre::program;

/// How long a process that was told to end may take.
const END: Duration = Duration::from_secs(40);

/// A running operator; killed when it is dropped.
#[derive(Debug)]
pub struct OperatorChild {
    child: Child,
    port: u16,
    cluster: Cluster,
    log: PathBuf,
}

impl OperatorChild {
    /// Starts one inside the cluster's network, with the rights of `kubeconfig` or, without it, the administrator's.
    /// Its admin server listens on `port` of the loopback device there.
    pub fn start(cluster: &Cluster, port: u16, kubeconfig: Option<&Path>, arguments: &[&str]) -> Result<Self> {
        let log = cluster.processes().log(&format!("child-operator-{port}"));
        let output = fs::File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("could not open {}", log.display()))?;
        let mut command = cluster.command(program("escadre-operator")?);
        command
            .arg(format!("--admin-address=127.0.0.1:{port}"))
            .args(arguments)
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(output)
            .kill_on_drop(true);
        if let Some(kubeconfig) = kubeconfig {
            command.env("KUBECONFIG", kubeconfig);
        }
        Ok(Self {
            child: command.spawn().context("could not start the operator")?,
            port,
            cluster: cluster.clone(),
            log,
        })
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let id = self.child.id().context("the operator has ended")?;
        let id = Pid::from_raw(i32::try_from(id)?).context("the operator has no process id")?;
        kill_process(id, signal).context("could not send a signal to the operator")
    }

    /// Waits until it has ended.
    pub async fn ended(&mut self) -> Result<ExitStatus> {
        let ended = tokio::time::timeout(END, self.child.wait()).await;
        Ok(ended.context("the operator does not end")??)
    }

    /// Tells it to end, and waits.
    pub async fn stop(mut self) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.ended().await
    }

    /// The end of its log.
    pub fn log(&self) -> String {
        tail(&self.log, 200)
    }

    /// Status and body of its admin server's answer; `None` while it does not listen.
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        let (port, path) = (self.port, path.to_owned());
        let asked = self.cluster.network().inside(move || {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
            write!(stream, "GET {path} HTTP/1.0\r\n\r\n").ok()?;
            let mut text = String::new();
            stream.read_to_string(&mut text).ok()?;
            let (head, body) = text.split_once("\r\n\r\n")?;
            Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
        });
        asked.ok().flatten()
    }

    /// Whether its `/readyz` says yes.
    pub fn is_ready(&self) -> bool {
        self.get("/readyz").is_some_and(|(status, _)| status == 200)
    }
}

/// A kubeconfig with a token of a service account, for use inside the cluster's network.
pub async fn account_kubeconfig(cluster: &Cluster, namespace: &str, account: &str) -> Result<PathBuf> {
    let arguments = ["create", "token", account, "--namespace", namespace, "--duration=1h"];
    let token = cluster.output("kubectl", &arguments).await?;
    let admin = fs::read(cluster.inner_kubeconfig()).context("could not read the cluster's kubeconfig")?;
    let mut config: Value = serde_json::from_slice(&admin).context("the cluster's kubeconfig is not JSON")?;
    config["users"] = json!([{"name": account, "user": {"token": token.trim()}}]);
    config["contexts"][0]["context"]["user"] = json!(account);
    config["contexts"][0]["context"]["namespace"] = json!(namespace);
    let file = cluster.folder().join(format!("kubeconfig-{namespace}-{account}"));
    fs::write(&file, serde_json::to_string_pretty(&config)?)
        .with_context(|| format!("could not write {}", file.display()))?;
    Ok(file)
}
