//! The network namespace of a cluster: loopback, one bridge as the node's network, a default route, no way out.
//!
//! Every cluster has the same addresses, since no packet leaves its namespace. Processes enter with
//! `nsenter --net` (`ip netns exec` would hide `/sys/fs/cgroup`); threads of this program enter with [`Network::enter`].

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::process::Command;

/// The node's own address: API server, kubelet, cluster DNS.
pub const NODE_ADDRESS: &str = "10.99.0.1";
/// Range of Service addresses.
pub const SERVICE_RANGE: &str = "10.96.0.0/16";
/// The API server's Service address.
pub(crate) const API_SERVICE_ADDRESS: &str = "10.96.0.1";
/// Range of the real node's pods.
pub const POD_RANGE: &str = "10.244.0.0/24";
/// Range of the pods on fake nodes.
pub const FAKE_POD_RANGE: &str = "10.245.0.0/16";

/// One cluster's network namespace.
#[derive(Debug, Clone)]
pub struct Network {
    name: String,
}

impl Network {
    /// The namespace of the cluster `cluster`; it need not exist.
    pub fn of(cluster: &str) -> Self {
        Self {
            name: format!("escadre-{cluster}"),
        }
    }

    /// The file that names the namespace.
    pub fn file(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// Whether it is there.
    pub fn exists(&self) -> bool {
        self.file().exists()
    }

    /// Makes the namespace and brings its links up.
    pub(crate) async fn create(&self) -> Result<()> {
        ip(&["netns", "add", &self.name]).await?;
        let inside: [&[&str]; 6] = [
            &["link", "set", "lo", "up"],
            &["link", "add", "node0", "type", "bridge"],
            &["addr", "add", &format!("{NODE_ADDRESS}/24"), "dev", "node0"],
            &["link", "set", "node0", "up"],
            // Programs look for the default route to learn the node's address; nobody answers behind it.
            &[
                "route",
                "add",
                "default",
                "via",
                "10.99.0.254",
                "dev",
                "node0",
                "onlink",
            ],
            // Pods on fake nodes have addresses but no process: one server here can answer for all of them.
            &["route", "add", "local", FAKE_POD_RANGE, "dev", "lo"],
        ];
        for arguments in inside {
            let mut all = vec!["-n", self.name.as_str()];
            all.extend(arguments);
            ip(&all).await?;
        }
        self.inside(|| {
            fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("could not turn on forwarding")?;
            // Absent when the kernel has no bridge filter; the node then hides client addresses instead.
            let bridge_filter = Path::new(BRIDGE_FILTER);
            if bridge_filter.exists() {
                fs::write(bridge_filter, "1").context("could not turn on the bridge filter")?;
            }
            Ok(())
        })?
    }

    /// Removes the namespace; fine when there is none.
    pub(crate) async fn remove(&self) -> Result<()> {
        if self.exists() {
            ip(&["netns", "del", &self.name]).await?;
        }
        Ok(())
    }

    /// Moves the calling thread into the namespace, for the rest of its life.
    ///
    /// Sockets that it made before stay where they were made.
    pub fn enter(&self) -> Result<()> {
        let file = File::open(self.file())
            .with_context(|| format!("the cluster's network namespace {} does not exist", self.name))?;
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
            .with_context(|| format!("could not enter the network namespace {}", self.name))
    }

    /// Runs `work` on a thread inside the namespace.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    self.enter()?;
                    Ok(work())
                })
                .join()
                .map_err(|_| anyhow!("a thread inside the network namespace {} panicked", self.name))?
        })
    }

    /// A command that runs inside the namespace.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.file().display()))
            .arg("--")
            .arg(program);
        command
    }
}

const BRIDGE_FILTER: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";

/// Whether packets between two pods on one bridge pass the packet filter.
pub(crate) fn has_bridge_filter() -> bool {
    Path::new(BRIDGE_FILTER).exists()
}

async fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .await
        .context("could not run ip")?;
    if !output.status.success() {
        bail!(
            "`ip {}` failed: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}
