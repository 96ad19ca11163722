//! Operators as processes of a cluster: started with what a scenario needs, killed or stopped when it says so.
//!
//! The one place that knows the operator's command line.

mod child;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::cluster::{Cluster, tail};
use crate::escadre::program;
use crate::faults::FaultProxy;

pub use child::{OperatorChild, account_kubeconfig};

/// How long an operator may take to stop by itself.
const PATIENCE: Duration = Duration::from_secs(30);

/// How an operator is started.
#[derive(Debug, Clone, Default)]
pub struct Start {
    kubeconfig: Option<PathBuf>,
    namespace: Option<String>,
    program: Option<PathBuf>,
    admin: Option<String>,
    runtime_image: Option<String>,
}

impl Start {
    /// With the administrator's rights, for all namespaces.
    pub fn new() -> Self {
        Self::default()
    }

    /// Only for one namespace: scenarios share a control plane, each with an operator of its own.
    #[must_use]
    pub fn namespace(mut self, namespace: &str) -> Self {
        self.namespace = Some(namespace.to_owned());
        self
    }

    /// Through a fault proxy.
    #[must_use]
    pub fn through(mut self, proxy: &FaultProxy) -> Self {
        self.kubeconfig = Some(proxy.kubeconfig());
        self
    }

    /// Another build of the operator.
    #[must_use]
    pub fn program(mut self, program: &Path) -> Self {
        self.program = Some(program.to_owned());
        self
    }

    /// Where it serves health and metrics; any free port if this is not said.
    #[must_use]
    pub fn admin(mut self, address: &str) -> Self {
        self.admin = Some(address.to_owned());
        self
    }

    /// With this default image of the runtime, as another version of the operator would have.
    #[must_use]
    pub fn runtime_image(mut self, image: &str) -> Self {
        self.runtime_image = Some(image.to_owned());
        self
    }

    /// The command line.
    fn arguments(&self) -> Vec<String> {
        let admin = self.admin.as_deref().unwrap_or("127.0.0.1:0");
        let image = self.runtime_image.as_deref().unwrap_or("escadre.dev/runtime:scenario");
        let mut arguments = vec![format!("--admin-address={admin}"), format!("--runtime-image={image}")];
        arguments.extend(
            self.namespace
                .iter()
                .map(|namespace| format!("--namespace={namespace}")),
        );
        arguments
    }

    /// Starts it under a name of its own.
    pub fn start(&self, cluster: &Cluster) -> Result<Operator> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        self.start_as(cluster, &format!("operator-{}-{number}", std::process::id()))
    }

    /// Starts it under this name. It ends with the value that is returned.
    pub fn start_as(&self, cluster: &Cluster, name: &str) -> Result<Operator> {
        let program = match &self.program {
            Some(program) => program.clone(),
            None => program("escadre-operator")?,
        };
        let kubeconfig = self
            .kubeconfig
            .iter()
            .map(|file| ("KUBECONFIG", file.display().to_string()))
            .collect();
        cluster.start_process_with(name, &program, self.arguments(), kubeconfig)?;
        Ok(Operator {
            cluster: cluster.clone(),
            name: name.to_owned(),
        })
    }
}

/// A running operator; killed when it is dropped.
pub struct Operator {
    cluster: Cluster,
    name: String,
}

impl fmt::Debug for Operator {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Operator")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Operator {
    /// Its process id.
    pub fn pid(&self) -> Result<i32> {
        let record = self.cluster.processes().record(&self.name);
        Ok(record.context("the operator is not recorded")?.process.pid)
    }

    /// Whether it still runs.
    pub fn is_alive(&self) -> bool {
        let record = self.cluster.processes().record(&self.name);
        record.is_some_and(|record| record.process.is_alive())
    }

    /// Ends it by SIGKILL.
    pub fn kill(self) {
        drop(self);
    }

    /// Asks it to end, and waits.
    pub fn stop(self) {
        self.cluster.stop_process(&self.name, PATIENCE);
    }

    /// Lets it live as long as the cluster.
    pub fn keep(self) {
        std::mem::forget(self);
    }

    /// The end of what it logged.
    pub fn log(&self, lines: usize) -> String {
        tail(&self.cluster.processes().log(&self.name), lines)
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of {}\n{}", self.name, self.log(60));
        }
        self.cluster.stop_process(&self.name, Duration::ZERO);
    }
}
