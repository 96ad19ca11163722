//! A real Kubernetes on this machine: finds or builds the programs, starts them, and cleans up after them.
//!
//! A cluster is one network namespace, one folder in the cache, one cgroup folder and the processes that were
//! started in them. It stays up when the command that started it ends. Needs root.

mod build;
mod certs;
mod cgroups;
mod client;
mod components;
mod control_plane;
mod debian;
mod forward;
mod images;
mod kwok;
mod lifecycle;
mod mounts;
mod network;
mod node;
mod paths;
mod process;
mod state;
mod toolchain;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use tokio::process::Command;

pub use build::{Programs, ensure as ensure_programs};
pub use certs::NODE_NAME;
pub use client::Inside;
pub use components::{Component, KUBERNETES_VERSION};
pub use debian::packaged_program;
pub use forward::{API_FORWARD, Forward, Target, serve as serve_forward};
pub use images::{Image, ImageFile};
pub use kwok::{FAKE_NODE_ANNOTATION, fake_node};
pub use lifecycle::{down, list, up};
pub use network::{FAKE_POD_RANGE, NODE_ADDRESS, Network, POD_RANGE, SERVICE_RANGE};
pub use paths::{Cache, tail};
pub use process::{ProcessId, Processes, Record};
pub use state::{Options, Phase, State, check_name};

pub(crate) use client::config_from;
pub(crate) use components::hex;
pub(crate) use process::own_program;

use certs::Certificates;
use process::Daemon;

/// Port of the API server inside the cluster's network.
pub(crate) const API_PORT: u16 = 6443;

/// Variables of the caller that would send a cluster's own traffic elsewhere.
pub(crate) const FOREIGN_VARIABLES: [&str; 9] = [
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
    "KUBERNETES_SERVICE_HOST",
];

/// A cluster of this machine that was started once; it may have died since.
#[derive(Debug, Clone)]
pub struct Cluster {
    cache: Cache,
    folder: PathBuf,
    state: State,
    programs: Programs,
}

impl Cluster {
    /// The cluster `name`, when it is up.
    pub fn attach(cache: &Cache, name: &str) -> Result<Self> {
        check_name(name)?;
        let folder = cache.clusters().join(name);
        match State::read(&folder)? {
            Some(state) if state.phase == Phase::Up => Ok(Self {
                cache: cache.clone(),
                folder,
                state,
                programs: Programs::default(),
            }),
            Some(_) => {
                bail!("the cluster {name} did not finish starting; run `escadre-testbed up --name {name}` again")
            }
            None => bail!("there is no cluster {name}; start it with `escadre-testbed up --name {name}`"),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.state.name
    }

    /// What is remembered about it.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its network namespace.
    pub fn network(&self) -> Network {
        Network::of(&self.state.name)
    }

    /// Its processes and logs.
    pub fn processes(&self) -> Processes {
        Processes::new(&self.folder, &self.state.identity)
    }

    /// Processes without which the cluster does not work, and that have ended.
    pub fn broken(&self) -> Vec<Record> {
        let mut dead = self.processes().dead();
        dead.retain(|record| is_essential(&record.name));
        dead
    }

    /// A kubeconfig that works inside the cluster's network (`exec`, pods with the host's network).
    pub fn inner_kubeconfig(&self) -> PathBuf {
        self.folder.join("kubeconfig-inside")
    }

    /// A kubeconfig that works on this machine, through a port of 127.0.0.1.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.join("kubeconfig")
    }

    /// A command inside the cluster's network, with `KUBECONFIG` and `PATH` set.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.network().command(program);
        for (name, value) in self.environment() {
            command.env(name, value);
        }
        for name in FOREIGN_VARIABLES {
            command.env_remove(name);
        }
        command
    }

    /// Runs a command inside the cluster's network and returns what it printed.
    pub async fn output(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let output = self
            .command(program)
            .args(arguments)
            .stdin(std::process::Stdio::null())
            .output()
            .await
            .with_context(|| format!("could not run {program}"))?;
        if !output.status.success() {
            bail!(
                "`{program} {}` failed ({}): {}",
                arguments.join(" "),
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        String::from_utf8(output.stdout).with_context(|| format!("{program} printed something that is not text"))
    }

    /// Starts a process of the caller's own inside the cluster's network; it ends with the cluster.
    ///
    /// The same program under the same name that still runs is left alone.
    pub fn start_process(&self, name: &str, program: &Path, arguments: Vec<String>) -> Result<()> {
        let network = self.network().file();
        self.start_daemon(&Daemon {
            name,
            program,
            arguments,
            environment: self.environment(),
            namespace: Some(&network),
        })
    }

    /// As [`Self::start_process`], with further variables in its environment.
    pub fn start_process_with(
        &self,
        name: &str,
        program: &Path,
        arguments: Vec<String>,
        variables: Vec<(&'static str, String)>,
    ) -> Result<()> {
        let network = self.network().file();
        let mut environment = self.environment();
        environment.extend(variables);
        self.start_daemon(&Daemon {
            name,
            program,
            arguments,
            environment,
            namespace: Some(&network),
        })
    }

    /// Ends a process of the caller's own: politely, and by SIGKILL after `patience` (at once when that is zero).
    pub fn stop_process(&self, name: &str, patience: Duration) {
        self.processes().stop(name, patience);
    }

    /// Ends one of the cluster's own programs by SIGKILL and starts it again, with the arguments that it had.
    pub fn restart_component(&self, component: Component) -> Result<()> {
        self.restart_component_with(component, &[])
    }

    /// As [`Self::restart_component`], with further arguments.
    pub fn restart_component_with(&self, component: Component, further: &[&str]) -> Result<()> {
        let name = component.name();
        let record = self
            .processes()
            .record(name)
            .with_context(|| format!("{name} does not run in this cluster"))?;
        let (program, arguments) = record.command.split_first().context("a process has no command")?;
        self.stop_process(name, Duration::ZERO);
        let further = further.iter().map(|argument| (*argument).to_owned());
        self.start_process(
            name,
            Path::new(program),
            arguments.iter().cloned().chain(further).collect(),
        )
    }

    /// Waits until something inside the cluster's network listens on `address`; `name` is the process that should.
    pub async fn await_listening(&self, name: &str, address: &str) -> Result<()> {
        self.wait(name, Duration::from_secs(20), async || {
            let connected = self
                .network()
                .inside(|| std::net::TcpStream::connect(address).is_ok())?;
            Ok(connected.then_some(()))
        })
        .await
    }

    /// Starts a process unless the same one runs already; another one of that name is ended first.
    fn start_daemon(&self, daemon: &Daemon<'_>) -> Result<()> {
        let processes = self.processes();
        if let Some(record) = processes.record(daemon.name) {
            let same = record
                .command
                .first()
                .is_some_and(|first| Path::new(first) == daemon.program)
                && record.command[1..] == daemon.arguments[..];
            if same && record.process.is_alive() {
                return Ok(());
            }
            processes.stop(daemon.name, Duration::from_secs(5));
        }
        processes.start(daemon).map(drop)
    }

    /// Starts one of the cluster's own programs inside its network.
    fn start_component(&self, component: Component, arguments: Vec<String>) -> Result<()> {
        let program = self.programs.file(component)?;
        let network = self.network().file();
        let environment = self.environment();
        self.start_daemon(&Daemon {
            name: component.name(),
            program,
            arguments,
            environment,
            namespace: Some(&network),
        })
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        let mut folders = vec![self.folder.join("bin")];
        if let Some(path) = std::env::var_os("PATH") {
            folders.extend(std::env::split_paths(&path));
        }
        folders.extend(["/usr/sbin", "/sbin"].map(PathBuf::from));
        let path = std::env::join_paths(folders)
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let text = |path: PathBuf| path.display().to_string();
        vec![
            ("PATH", path),
            ("KUBECONFIG", text(self.inner_kubeconfig())),
            ("CONTAINERD_ADDRESS", text(self.containerd_socket())),
            ("CONTAINERD_NAMESPACE", "k8s.io".to_owned()),
            // Helm's files of this cluster stay apart from those of the person.
            ("HELM_CACHE_HOME", text(self.folder.join("helm/cache"))),
            ("HELM_CONFIG_HOME", text(self.folder.join("helm/config"))),
            ("HELM_DATA_HOME", text(self.folder.join("helm/data"))),
            ("ESCADRE_CLUSTER", self.state.name.clone()),
        ]
    }

    fn certificates(&self) -> Certificates {
        Certificates::at(self.folder.join("certificates"))
    }

    fn containerd_socket(&self) -> PathBuf {
        self.folder.join("containerd.sock")
    }

    /// Links to the built programs, for `PATH`.
    fn link_programs(&self) -> Result<()> {
        let folder = self.folder.join("bin");
        fs::create_dir_all(&folder).context("could not make the program folder")?;
        for (component, file) in self.programs.iter() {
            let link = folder.join(component.name());
            if link.symlink_metadata().is_ok() {
                fs::remove_file(&link).with_context(|| format!("could not replace {}", link.display()))?;
            }
            std::os::unix::fs::symlink(file, &link).with_context(|| format!("could not link {}", link.display()))?;
        }
        Ok(())
    }

    /// Asks until there is an answer. Ends early, with its log, when a process of the cluster has died.
    async fn wait<T>(
        &self,
        what: &str,
        patience: Duration,
        mut check: impl AsyncFnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let deadline = Instant::now() + patience;
        loop {
            let answer = check().await;
            if let Ok(Some(found)) = answer {
                return Ok(found);
            }
            let dead = self.processes().dead();
            if let Some(dead) = dead
                .iter()
                .find(|record| record.name == what || is_essential(&record.name))
            {
                bail!(
                    "{} ended while we waited for {what}; the end of its log:\n{}",
                    dead.name,
                    tail(&self.processes().log(&dead.name), 20)
                );
            }
            if Instant::now() >= deadline {
                let last = answer.err().unwrap_or_else(|| anyhow!("not yet"));
                let logs = self.folder.join("logs");
                return Err(last.context(format!(
                    "waited {} s for {what} of the cluster {}; logs are in {}",
                    patience.as_secs(),
                    self.state.name,
                    logs.display()
                )));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Whether a cluster without this process is broken; a person's forward or mirror may come and go.
fn is_essential(process: &str) -> bool {
    process == "forward-api" || Component::ALL.iter().any(|component| component.name() == process)
}
