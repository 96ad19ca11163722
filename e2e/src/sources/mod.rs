//! Real sources of models on the loopback device, a registry and object storage, and our `fetch` against them.
//!
//! Needs no cluster. Each server ends with the test that started it, even when that is killed.

mod cutting_proxy;
mod object_storage;
mod registry;
mod token_service;

pub use cutting_proxy::CuttingProxy;
pub use object_storage::{KEYS, ObjectStorage, REGION};
pub use registry::{LOGIN, Layer, Protection, Registry};

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::cluster::{Cache, Component, ensure_programs, tail};
use crate::escadre::{digest, program};

/// How long a server may take to listen on a busy machine.
const START: Duration = Duration::from_secs(30);

/// A server on the loopback device.
#[derive(Debug)]
struct Server {
    child: Child,
    watchdog: Child,
    address: SocketAddr,
    log: PathBuf,
}

impl Server {
    /// Starts the program with what `arguments` makes of its address, and waits until it listens.
    async fn start(
        component: Component,
        folder: &Path,
        arguments: impl FnOnce(SocketAddr) -> Result<Vec<String>>,
    ) -> Result<Self> {
        let programs = ensure_programs(&Cache::from_environment()?, &[component]).await?;
        let address = free_address()?;
        let log = folder.join(format!("{}.log", component.name()));
        let output = std::fs::File::create(&log).context("could not make a log")?;
        let child = Command::new(programs.file(component)?)
            .args(arguments(address)?)
            .current_dir(folder)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("could not start {}", component.name()))?;
        // Ends the server when this process is gone, however that came about.
        let watchdog = Command::new("sh")
            .args([
                "-c",
                "read -r _; kill -KILL \"$0\" 2>/dev/null",
                &child.id().to_string(),
            ])
            .stdin(Stdio::piped())
            .spawn()
            .context("could not start a shell")?;
        let mut server = Self {
            child,
            watchdog,
            address,
            log,
        };
        server.await_listening().await?;
        Ok(server)
    }

    async fn await_listening(&mut self) -> Result<()> {
        let deadline = Instant::now() + START;
        while TcpStream::connect(self.address).is_err() {
            let ended = self.child.try_wait().context("could not ask for the server")?;
            ensure!(
                ended.is_none() && Instant::now() < deadline,
                "the server does not listen on {}:\n{}",
                self.address,
                tail(&self.log, 25)
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for process in [&mut self.watchdog, &mut self.child] {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("could not find a free port")?;
    Ok(listener.local_addr()?)
}

/// How a run of `escadre-runtime fetch` ended.
#[derive(Debug)]
pub struct Fetched {
    /// Whether it said that it succeeded.
    pub success: bool,
    /// All that it logged.
    pub log: String,
    /// What it left for the operator when it failed: reason and message.
    pub failure: Value,
}

impl Fetched {
    /// The stable reason; empty when there is none.
    pub fn reason(&self) -> &str {
        self.failure["reason"].as_str().unwrap_or_default()
    }

    /// What people are told; empty when nothing is.
    pub fn message(&self) -> &str {
        self.failure["message"].as_str().unwrap_or_default()
    }
}

/// Runs the program as the operator would: credentials come as variables of a Secret's keys.
pub async fn fetch(store: &Path, arguments: &[&str], secret: &[(&str, &str)]) -> Result<Fetched> {
    let word = tempfile::NamedTempFile::new().context("could not make a file for the last word")?;
    let mut command = tokio::process::Command::new(program("escadre-runtime")?);
    command
        .args(["fetch", "--admin-port=0", "--host=127.0.0.1", "--log-format=json"])
        .arg(format!("--store={}", store.display()))
        .args(arguments)
        .env_clear()
        .env("ESCADRE_TERMINATION_LOG", word.path())
        .kill_on_drop(true);
    if !secret.is_empty() {
        command.arg("--credentials");
    }
    for (key, value) in secret {
        command.env(format!("{}{key}", escadre_crds::names::ENV_SECRET_PREFIX), value);
    }
    let output = tokio::time::timeout(Duration::from_mins(3), command.output())
        .await
        .context("fetch does not end")?
        .context("could not run fetch")?;
    let failure = std::fs::read(word.path()).context("could not read the last word")?;
    Ok(Fetched {
        success: output.status.success(),
        log: String::from_utf8_lossy(&output.stderr).into_owned(),
        failure: serde_json::from_slice(&failure).unwrap_or_default(),
    })
}

/// The model digest of files: of one its own, of several that of the lines which `sha256sum` prints for them.
pub fn model_digest(files: &[(&str, &[u8])]) -> String {
    let mut sorted = files.to_vec();
    sorted.sort_unstable();
    match sorted.as_slice() {
        [(_, content)] => digest(content),
        several => {
            let lines = several.iter().map(|(name, content)| {
                let digest = digest(content);
                format!("{}  {name}\n", digest.trim_start_matches("sha256:"))
            });
            digest(lines.collect::<Vec<_>>().concat().as_bytes())
        }
    }
}

/// Where a store keeps a model.
pub fn stored(store: &Path, model: &str) -> PathBuf {
    store.join("sha256").join(model.trim_start_matches("sha256:"))
}

/// The names in a folder, sorted.
pub fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("could not read {}", folder.display()))?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let mut names: Vec<String> = names.collect::<Result<_>>()?;
    names.sort();
    Ok(names)
}
