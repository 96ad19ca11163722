//! What a cluster's folder remembers: enough to use it, and to clean up after a run that was killed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use super::paths::write_atomically;
use super::process::ProcessId;

/// Longest name of a cluster: names of network devices and folders are made from it.
const LONGEST_NAME: usize = 40;

/// What a person or a test wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The cluster's name: lower-case letters, digits and `-`.
    pub name: String,
    /// Whether it has a real node; without one, pods run only on fake nodes.
    pub node: bool,
    /// Number of fake nodes.
    pub fake_nodes: u32,
    /// GPUs (`nvidia.com/gpu`) of each fake node.
    pub gpus: u32,
    /// The process for which the cluster lives; when it is gone, anybody may clean up.
    pub owner: Option<ProcessId>,
    /// An audit policy for the API server, which then writes `audit.log` in the cluster's folder.
    pub audit_policy: Option<PathBuf>,
}

impl Options {
    /// A cluster with a real node and no fake ones.
    pub fn named(name: &str) -> Result<Self> {
        check_name(name)?;
        Ok(Self {
            name: name.to_owned(),
            node: true,
            fake_nodes: 0,
            gpus: 8,
            owner: None,
            audit_policy: None,
        })
    }
}

/// How far the start has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// `up` has begun; a cluster that stays here was interrupted.
    Starting,
    /// Everything answered once.
    Up,
}

/// The file `state.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// The cluster's name.
    pub name: String,
    /// Marks its processes.
    pub identity: String,
    /// The machine's boot: process ids of another one mean nothing.
    pub boot: String,
    /// How far the start has come.
    pub phase: Phase,
    /// Whether it has a real node.
    pub node: bool,
    /// Number of fake nodes.
    pub fake_nodes: u32,
    /// The process for which it lives.
    pub owner: Option<ProcessId>,
}

impl State {
    pub(crate) fn starting(options: &Options) -> Result<Self> {
        Ok(Self {
            name: options.name.clone(),
            identity: kernel_identity("uuid")?,
            boot: kernel_identity("boot_id")?,
            phase: Phase::Starting,
            node: options.node,
            fake_nodes: options.fake_nodes,
            owner: options.owner,
        })
    }

    /// The state in a cluster's folder; `None` when the folder has none.
    pub(crate) fn read(folder: &Path) -> Result<Option<Self>> {
        let file = folder.join("state.json");
        if !file.exists() {
            return Ok(None);
        }
        let content = fs::read(&file).with_context(|| format!("could not read {}", file.display()))?;
        serde_json::from_slice(&content)
            .map(Some)
            .with_context(|| format!("{} is not a state file", file.display()))
    }

    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        write_atomically(&folder.join("state.json"), serde_json::to_vec_pretty(self)?)
    }

    /// Whether it was started before the machine's last boot.
    pub(crate) fn is_of_another_boot(&self) -> bool {
        kernel_identity("boot_id").is_ok_and(|boot| boot != self.boot)
    }
}

/// Rejects names from which no folder and no network namespace can be made.
pub fn check_name(name: &str) -> Result<()> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let edge = |byte: Option<u8>| byte.is_some_and(|byte| byte != b'-');
    if name.len() > LONGEST_NAME
        || !name.bytes().all(allowed)
        || !edge(name.bytes().next())
        || !edge(name.bytes().last())
    {
        bail!(
            "the cluster name {name:?} cannot be used: 1 to {LONGEST_NAME} lower-case letters, digits and `-`, with a letter or digit at both ends"
        );
    }
    Ok(())
}

fn kernel_identity(name: &str) -> Result<String> {
    let path = format!("/proc/sys/kernel/random/{name}");
    Ok(fs::read_to_string(&path)
        .with_context(|| format!("could not read {path}"))?
        .trim()
        .to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_make_no_folder_are_rejected() {
        for name in ["", "-a", "a-", "A", "a/b", "..", "a b", &"a".repeat(41)] {
            check_name(name).unwrap_err();
        }
        for name in ["a", "demo", "test-123", "9"] {
            check_name(name).unwrap();
        }
    }
}
