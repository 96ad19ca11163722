//! The cgroup folder of a node: `escadre-<name>` in every hierarchy, for cgroup v1, v2 and the mix of both.
//!
//! All containers of a node are below it, so ending what is in it ends exactly them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::process::{ProcessId, end};

/// Controllers that the kubelet needs to set limits.
const NEEDED: [&str; 3] = ["cpu", "memory", "pids"];

/// A node's folder in each mounted hierarchy.
#[derive(Debug, Clone)]
pub(crate) struct Cgroups {
    name: String,
}

#[derive(Debug, PartialEq, Eq)]
struct Hierarchy {
    mount: PathBuf,
    unified: bool,
}

impl Cgroups {
    pub(crate) fn of(cluster: &str) -> Self {
        Self {
            name: format!("escadre-{cluster}"),
        }
    }

    /// The kubelet's `cgroupRoot`.
    pub(crate) fn root(&self) -> String {
        format!("/{}", self.name)
    }

    /// Makes the folder in every hierarchy.
    pub(crate) fn create(&self) -> Result<()> {
        let hierarchies = hierarchies()?;
        if hierarchies.is_empty() {
            bail!("no cgroup hierarchy is mounted; a node needs one below /sys/fs/cgroup");
        }
        let only_unified = hierarchies.iter().all(|hierarchy| hierarchy.unified);
        for hierarchy in &hierarchies {
            let folder = hierarchy.mount.join(&self.name);
            if hierarchy.unified {
                // Beside v1 hierarchies the unified one has no controllers, and the kubelet does not look at it.
                if !only_unified {
                    continue;
                }
                enable_controllers(&hierarchy.mount)?;
                make(&folder)?;
                enable_controllers(&folder)?;
            } else {
                make(&folder)?;
                copy_cpuset(&hierarchy.mount, &folder)?;
            }
        }
        Ok(())
    }

    /// Kills every process below the folders and removes them; fine when there are none.
    pub(crate) fn remove(&self) -> Result<()> {
        let folders: Vec<PathBuf> = hierarchies()?
            .into_iter()
            .map(|hierarchy| hierarchy.mount.join(&self.name))
            .filter(|folder| folder.exists())
            .collect();
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let left: Vec<ProcessId> = folders
                .iter()
                .flat_map(|folder| pids_below(folder))
                .filter_map(ProcessId::of)
                .collect();
            if !left.is_empty() {
                end(&left, Duration::ZERO);
            }
            if folders.iter().all(|folder| remove_tree(folder)) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!(
                    "could not remove the cgroup folders of {}: something still runs in them",
                    self.name
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn make(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("could not make the cgroup {}", folder.display()))
}

/// A v1 cpuset is empty when made, and nothing can run in an empty one.
fn copy_cpuset(parent: &Path, folder: &Path) -> Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let source = parent.join(file);
        if source.exists() {
            let value = fs::read_to_string(&source).with_context(|| format!("could not read {}", source.display()))?;
            let target = folder.join(file);
            fs::write(&target, value.trim()).with_context(|| format!("could not write {}", target.display()))?;
        }
    }
    Ok(())
}

fn enable_controllers(folder: &Path) -> Result<()> {
    let read = |file: &str| fs::read_to_string(folder.join(file)).unwrap_or_default();
    let (available, enabled) = (read("cgroup.controllers"), read("cgroup.subtree_control"));
    for controller in available.split_whitespace() {
        if enabled.split_whitespace().any(|name| name == controller) {
            continue;
        }
        let result = fs::write(folder.join("cgroup.subtree_control"), format!("+{controller}"));
        if NEEDED.contains(&controller) {
            result.with_context(|| {
                format!(
                    "could not hand the cgroup controller {controller} down from {}: inside a container, first move \
                     its processes into a child cgroup",
                    folder.display()
                )
            })?;
        }
    }
    Ok(())
}

fn hierarchies() -> Result<Vec<Hierarchy>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("could not read the mounts")?;
    Ok(parse_hierarchies(&mounts))
}

fn parse_hierarchies(mounts: &str) -> Vec<Hierarchy> {
    mounts
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let unified = match right.split_whitespace().next()? {
                "cgroup" => false,
                "cgroup2" => true,
                _ => return None,
            };
            Some(Hierarchy {
                mount: PathBuf::from(left.split_whitespace().nth(4)?),
                unified,
            })
        })
        .collect()
}

fn folders_below(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn pids_below(folder: &Path) -> Vec<i32> {
    let mut pids: Vec<i32> = fs::read_to_string(folder.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.trim().parse().ok())
        .collect();
    pids.extend(folders_below(folder).iter().flat_map(|child| pids_below(child)));
    pids
}

/// Removes the folder and those below it; false when the kernel still holds one.
fn remove_tree(folder: &Path) -> bool {
    folders_below(folder).iter().all(|child| remove_tree(child)) && (fs::remove_dir(folder).is_ok() || !folder.exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_hierarchy_are_read() {
        let mounts = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        assert_eq!(
            parse_hierarchies(mounts),
            [
                Hierarchy {
                    mount: "/sys/fs/cgroup/cpu".into(),
                    unified: false
                },
                Hierarchy {
                    mount: "/sys/fs/cgroup/unified".into(),
                    unified: true
                },
            ]
        );
    }
}
