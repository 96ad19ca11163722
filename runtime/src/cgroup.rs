//! What the container may use: processors and memory, from its cgroup (version 1 and 2).
//!
//! Reading and deciding are apart: [`Files`] holds the texts, [`limits`] is pure.

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

/// A limit above this is none: version 1 writes "unlimited" as the largest multiple of the page size.
const UNLIMITED: u64 = 1 << 60;

/// The limits of one cgroup. `None` is unlimited, or not known.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Limits {
    /// Processors, as time per time; may be a fraction.
    pub cpu: Option<f64>,
    /// Processors that the process may run on.
    pub cpuset: Option<usize>,
    /// Memory in bytes.
    pub memory: Option<u64>,
}

impl Limits {
    /// Threads that can run at the same time, given how many the system offers.
    pub fn threads(&self, available: NonZeroUsize) -> NonZeroUsize {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the value was clamped to the range of small positive numbers"
        )]
        let quota = self.cpu.map(|cpu| cpu.ceil().clamp(1.0, 65_536.0) as usize);
        let least = [quota, self.cpuset]
            .into_iter()
            .flatten()
            .fold(available.get(), usize::min);
        NonZeroUsize::new(least).unwrap_or(NonZeroUsize::MIN)
    }

    /// The tighter one of each limit.
    fn tightest(self, other: Self) -> Self {
        Self {
            cpu: least(self.cpu, other.cpu, f64::min),
            cpuset: least(self.cpuset, other.cpuset, usize::min),
            memory: least(self.memory, other.memory, u64::min),
        }
    }
}

fn least<T>(one: Option<T>, other: Option<T>, min: fn(T, T) -> T) -> Option<T> {
    match (one, other) {
        (Some(one), Some(other)) => Some(min(one, other)),
        (one, other) => one.or(other),
    }
}

/// The texts of one cgroup's files; absent where a file is.
#[derive(Debug, Clone, Default)]
pub struct Files {
    /// Version 2 `cpu.max`: quota or `max`, and period.
    pub cpu_max: Option<String>,
    /// Version 1 `cpu.cfs_quota_us`: -1 is unlimited.
    pub cfs_quota: Option<String>,
    /// Version 1 `cpu.cfs_period_us`.
    pub cfs_period: Option<String>,
    /// `cpuset.cpus.effective`, or `cpuset.cpus` of version 1.
    pub cpus: Option<String>,
    /// `memory.max` of version 2, `memory.limit_in_bytes` of version 1.
    pub memory: Option<String>,
}

/// The limits that the texts say. What cannot be understood is no limit.
pub fn limits(files: &Files) -> Limits {
    let version_2 = files.cpu_max.as_deref().and_then(|text| {
        let mut words = text.split_whitespace();
        ratio(words.next()?, words.next()?)
    });
    let version_1 = || ratio(files.cfs_quota.as_deref()?.trim(), files.cfs_period.as_deref()?.trim());
    let memory = files.memory.as_deref().and_then(|text| text.trim().parse().ok());
    Limits {
        cpu: version_2.or_else(version_1),
        cpuset: files.cpus.as_deref().and_then(count_cpus),
        memory: memory.filter(|bytes| *bytes < UNLIMITED),
    }
}

fn ratio(quota: &str, period: &str) -> Option<f64> {
    let (quota, period): (u32, u32) = (quota.parse().ok()?, period.parse().ok()?);
    (quota > 0 && period > 0).then(|| f64::from(quota) / f64::from(period))
}

/// How many processors a list such as `0-3,8` names.
fn count_cpus(text: &str) -> Option<usize> {
    let mut count = 0;
    for range in text.trim().split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        count += last.checked_sub(first)?.checked_add(1)?;
    }
    (count > 0).then_some(count)
}

/// The limits of this process's own cgroup and of those around it.
pub fn read() -> Limits {
    let membership = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    read_below(Path::new("/sys/fs/cgroup"), &membership)
}

/// The machine's memory in bytes, where the system tells.
pub fn machine_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// As [`read`], for a hierarchy that is mounted at `mount` and the text of `/proc/self/cgroup`.
fn read_below(mount: &Path, membership: &str) -> Limits {
    let mut found = Limits::default();
    for line in membership.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let hierarchy = if controllers.is_empty() {
            // Version 2, or its empty sibling on a system that mixes both.
            mount.to_owned()
        } else {
            mount.join(controllers)
        };
        for folder in ancestors(&hierarchy, path) {
            found = found.tightest(limits(&read_files(&folder)));
        }
    }
    found
}

/// The folder of a cgroup and those above it, up to where the hierarchy is mounted. In a container the path may be
/// that of the host, which is not there: the mount itself is then the container's own cgroup.
fn ancestors(hierarchy: &Path, path: &str) -> Vec<PathBuf> {
    let mut folders = vec![hierarchy.to_owned()];
    for part in path.split('/').filter(|part| !part.is_empty() && *part != "..") {
        let next = folders[folders.len() - 1].join(part);
        if !next.is_dir() {
            break;
        }
        folders.push(next);
    }
    folders
}

fn read_files(folder: &Path) -> Files {
    let text = |name: &str| fs::read_to_string(folder.join(name)).ok();
    Files {
        cpu_max: text("cpu.max"),
        cfs_quota: text("cpu.cfs_quota_us"),
        cfs_period: text("cpu.cfs_period_us"),
        cpus: text("cpuset.cpus.effective").or_else(|| text("cpuset.cpus")),
        memory: text("memory.max").or_else(|| text("memory.limit_in_bytes")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EIGHT: NonZeroUsize = NonZeroUsize::new(8).unwrap();

    #[expect(clippy::unnecessary_wraps, reason = "every field is optional")]
    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn version_2_limits_are_understood() {
        let files = Files {
            cpu_max: some("150000 100000\n"),
            cpus: some("0-2,7\n"),
            memory: some("536870912\n"),
            ..Files::default()
        };
        let found = limits(&files);
        assert_eq!(
            (found.cpu, found.cpuset, found.memory),
            (Some(1.5), Some(4), Some(512 << 20))
        );
        assert_eq!(found.threads(EIGHT).get(), 2);
    }

    #[test]
    fn version_1_limits_are_understood() {
        let files = Files {
            cfs_quota: some("50000\n"),
            cfs_period: some("100000\n"),
            memory: some("1073741824\n"),
            ..Files::default()
        };
        let found = limits(&files);
        assert_eq!((found.cpu, found.memory), (Some(0.5), Some(1 << 30)));
        assert_eq!(found.threads(EIGHT).get(), 1);
    }

    #[test]
    fn unlimited_and_nonsense_are_no_limit() {
        for (cpu, memory) in [
            ("max 100000", "max"),
            ("", ""),
            ("1 0", "-1"),
            ("x y", "9223372036854771712"),
        ] {
            let files = Files {
                cpu_max: some(cpu),
                cfs_quota: some("-1"),
                cfs_period: some("100000"),
                cpus: some("3-1"),
                memory: some(memory),
            };
            assert_eq!(limits(&files), Limits::default(), "{cpu:?} {memory:?}");
        }
        assert_eq!(Limits::default().threads(EIGHT), EIGHT);
    }

    #[test]
    fn limit_of_a_group_around_ours_counts() {
        let mount = tempfile::tempdir().unwrap();
        let pod = mount.path().join("kubepods/pod1");
        fs::create_dir_all(pod.join("container")).unwrap();
        fs::write(pod.join("memory.max"), "1000\n").unwrap();
        fs::write(pod.join("container/memory.max"), "max\n").unwrap();
        fs::write(pod.join("container/cpu.max"), "200000 100000\n").unwrap();
        let found = read_below(mount.path(), "0::/kubepods/pod1/container\n");
        assert_eq!((found.memory, found.cpu), (Some(1000), Some(2.0)));
    }

    #[test]
    fn path_of_the_host_falls_back_to_the_mount() {
        let mount = tempfile::tempdir().unwrap();
        fs::create_dir(mount.path().join("memory")).unwrap();
        fs::write(mount.path().join("memory/memory.limit_in_bytes"), "4096\n").unwrap();
        let found = read_below(mount.path(), "5:memory:/docker/abc\n0::/\n");
        assert_eq!(found.memory, Some(4096));
    }
}
