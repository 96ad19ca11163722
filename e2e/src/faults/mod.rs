//! The fault proxy: stands between a client and a cluster's API server, counts what passes, and breaks it on purpose.
//!
//! It listens on loopback inside the cluster's network, without TLS; a client gets there with [`FaultProxy::kubeconfig`].
//! Requests with an `Authorization` header keep it, so that the rights of a service account stay real; others go on with
//! the administrator's certificate. What happens to a request is decided by [`Rule`]s with a fixed seed, and by hand:
//! freezing everything, dropping or holding watches, stopping at the nth write.

mod call;
mod rules;
mod server;

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::json;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::watch;

pub use call::{Call, Verb};
pub use rules::{Dice, Fault, Rule, bad_weather};

use crate::cluster::{Cluster, Inside};
use rules::Rules;
use server::Upstream;

/// On which side of the execution of a write the world stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The API server never sees the write.
    Before,
    /// The API server executes it; the answer does not come.
    After,
}

/// One write that reached the API server.
#[derive(Debug, Clone)]
pub struct Written {
    /// The write.
    pub call: Call,
    /// The object's name; for a creation it is taken from the body.
    pub object: Option<String>,
    /// The HTTP status of the answer.
    pub code: u16,
    /// When the answer came.
    pub at: Instant,
}

/// What passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gate {
    /// Everything.
    Open,
    /// Nothing; what waits goes on later.
    Frozen,
    /// Nothing; what waits is lost.
    Stopped,
}

#[derive(Debug)]
struct Book {
    rules: Rules,
    counts: BTreeMap<(Verb, String), u64>,
    written: Vec<Written>,
    faults: u64,
    /// Writes that still pass, and on which side of the next one the world stops.
    stop: Option<(u64, Side)>,
}

#[derive(Debug)]
struct Shared {
    book: Mutex<Book>,
    gate: watch::Sender<Gate>,
    /// Changes when all watches are dropped.
    drops: watch::Sender<u64>,
    holds: watch::Sender<bool>,
}

impl Shared {
    fn book(&self) -> MutexGuard<'_, Book> {
        // The book is valid at any time, also after a panic of a test.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running proxy; ends when it is dropped.
#[derive(Debug)]
pub struct FaultProxy {
    shared: Arc<Shared>,
    address: SocketAddr,
    folder: TempDir,
    /// Holds the threads that serve.
    _inside: Inside,
}

impl FaultProxy {
    /// Starts a proxy before the API server of `cluster`. Nothing goes wrong until rules are set.
    pub async fn start(cluster: &Cluster, seed: u64) -> Result<Self> {
        let shared = Arc::new(Shared {
            book: Mutex::new(Book {
                rules: Rules::new(seed),
                counts: BTreeMap::new(),
                written: Vec::new(),
                faults: 0,
                stop: None,
            }),
            gate: watch::Sender::new(Gate::Open),
            drops: watch::Sender::new(0),
            holds: watch::Sender::new(false),
        });
        let inside = cluster.inside()?;
        let upstream = Upstream::of(cluster)?;
        let router = server::router(Arc::clone(&shared), upstream);
        let address = inside
            .run(async move {
                let listener = TcpListener::bind(("127.0.0.1", 0))
                    .await
                    .context("could not listen on loopback")?;
                let address = listener.local_addr().context("could not read the listening address")?;
                // Ends with its runtime.
                tokio::spawn(server::serve(listener, router));
                anyhow::Ok(address)
            })
            .await??;
        let folder = tempfile::tempdir().context("could not make a folder for a kubeconfig")?;
        let proxy = Self {
            shared,
            address,
            folder,
            _inside: inside,
        };
        proxy.write_kubeconfig()?;
        Ok(proxy)
    }

    fn write_kubeconfig(&self) -> Result<()> {
        // JSON is YAML.
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "faults", "cluster": {"server": self.url()}}],
            "users": [{"name": "faults", "user": {}}],
            "contexts": [{"name": "faults", "context": {"cluster": "faults", "user": "faults"}}],
            "current-context": "faults",
        });
        fs::write(self.kubeconfig(), config.to_string()).context("could not write a kubeconfig")
    }

    /// Where it listens, inside the cluster's network.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A kubeconfig that leads through it, for programs inside the cluster's network.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    /// From now on these rules hold, the first that fits a call before the others; none: nothing goes wrong.
    pub fn set_rules(&self, rules: Vec<Rule>) {
        self.shared.book().rules.set(rules);
    }

    /// Requests that reached the API server, by verb and resource.
    pub fn counts(&self) -> BTreeMap<(Verb, String), u64> {
        self.shared.book().counts.clone()
    }

    /// Requests of one verb on one resource that reached the API server.
    pub fn count(&self, verb: Verb, resource: &str) -> u64 {
        let key = (verb, resource.to_owned());
        self.shared.book().counts.get(&key).copied().unwrap_or_default()
    }

    /// Writes that reached the API server, in the order of their answers. Leases are left out.
    pub fn written(&self) -> Vec<Written> {
        self.shared.book().written.clone()
    }

    /// When the first write since `start` on a resource was answered, of objects whose name begins with `prefix`.
    pub fn first_write_since(&self, start: Instant, resource: &str, prefix: &str) -> Option<Instant> {
        let book = self.shared.book();
        let recent = book.written.iter().rev().take_while(|one| one.at >= start);
        let fitting = recent.filter(|one| {
            one.call.resource == resource && one.object.as_ref().is_some_and(|name| name.starts_with(prefix))
        });
        fitting.last().map(|one| one.at)
    }

    /// How many calls were made to go wrong by a rule.
    pub fn faults(&self) -> u64 {
        self.shared.book().faults
    }

    /// Starts counting anew.
    pub fn forget(&self) {
        let mut book = self.shared.book();
        book.counts.clear();
        book.written.clear();
        book.faults = 0;
    }

    /// Nothing passes any more, until [`Self::thaw`]; what waits goes on then. Open watches are held too.
    pub fn freeze(&self) {
        self.shared.gate.send_replace(Gate::Frozen);
        self.hold_watches();
    }

    /// Everything passes again.
    pub fn thaw(&self) {
        self.shared.gate.send_replace(Gate::Open);
        self.release_watches();
    }

    /// Breaks every open watch.
    pub fn drop_watches(&self) {
        self.shared.drops.send_modify(|drops| *drops += 1);
    }

    /// Open and new watches stay open and say nothing: caches grow stale. Other calls pass.
    pub fn hold_watches(&self) {
        self.shared.holds.send_replace(true);
    }

    /// Watches say what they held back.
    pub fn release_watches(&self) {
        self.shared.holds.send_replace(false);
    }

    /// Stops the world at the `number`th write from now (the first is 1): nothing passes any more, in either direction.
    pub fn stop_at_write(&self, number: u64, side: Side) {
        self.shared.book().stop = Some((number.saturating_sub(1), side));
    }

    /// Waits until the write of [`Self::stop_at_write`] has come.
    pub async fn stopped(&self) {
        let mut gate = self.shared.gate.subscribe();
        // The sender lives as long as this value.
        let _is_stopped = gate.wait_for(|gate| *gate == Gate::Stopped).await;
    }

    /// Whether the world stands still.
    pub fn is_stopped(&self) -> bool {
        *self.shared.gate.borrow() == Gate::Stopped
    }

    /// Lets everything pass again, after [`Self::stop_at_write`], also when its write has not come. What had been
    /// stopped is lost.
    pub fn resume(&self) {
        self.shared.book().stop = None;
        self.drop_watches();
        self.shared.gate.send_replace(Gate::Open);
    }

    /// Waits until nothing but leases was written for `quiet`.
    pub async fn await_quiet(&self, quiet: Duration, deadline: Duration) -> Result<()> {
        let end = Instant::now() + deadline;
        loop {
            let last = self.shared.book().written.last().map(|written| written.at);
            if last.is_none_or(|last| last.elapsed() >= quiet) {
                return Ok(());
            }
            if Instant::now() >= end {
                let written = self.written();
                let tail: Vec<String> = written.iter().rev().take(10).map(|one| one.call.to_string()).collect();
                anyhow::bail!(
                    "still writing after {} s, last of all: {}",
                    deadline.as_secs(),
                    tail.join("; ")
                );
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

fn certificate_file(cluster: &Cluster, name: &str) -> Result<Vec<u8>> {
    let file: &Path = &cluster.folder().join("certificates").join(name);
    fs::read(file).with_context(|| format!("could not read {}", file.display()))
}
