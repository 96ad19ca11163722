//! Processes that outlive the command which started them, and that only their own cluster ends.
//!
//! A process is known by its id *and* its start time, so a reused id is never taken for it. Every process also
//! carries the cluster's identity in its environment: one that was started by a run that was killed before it
//! could note the id is found by that.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use super::FOREIGN_VARIABLES;
use super::paths::write_atomically;

/// Environment variable that marks a process as part of a cluster.
pub(crate) const IDENTITY_VARIABLE: &str = "ESCADRE_CLUSTER_IDENTITY";

/// One process, for as long as the machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessId {
    /// Process id.
    pub pid: i32,
    /// Start time in clock ticks since the machine started.
    pub start_ticks: u64,
}

impl ProcessId {
    /// The process with this id now; `None` when there is none or it has ended.
    pub fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The program's name is in parentheses and may itself hold any character.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let state = *fields.first()?;
        // The first thread can be gone while others still end and hold the process's ports.
        let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
        if state == "X" || (state == "Z" && threads <= 1) {
            return None;
        }
        Some(Self {
            pid,
            start_ticks: fields.get(19)?.parse().ok()?,
        })
    }

    /// This process.
    pub fn own() -> Option<Self> {
        Self::of(i32::try_from(std::process::id()).ok()?)
    }

    /// Whether it still runs.
    pub fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Sends a signal to exactly this process; nothing happens when it is gone.
    fn signal(self, signal: Signal) {
        let Some(pid) = Pid::from_raw(self.pid) else { return };
        // The handle is opened before the check, so the check speaks of the process that gets the signal.
        if let Ok(handle) = pidfd_open(pid, PidfdFlags::empty())
            && self.is_alive()
        {
            let _gone = pidfd_send_signal(&handle, signal);
        }
    }
}

/// A started process and where it writes.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Name, unique in its cluster.
    pub name: String,
    /// The process.
    pub process: ProcessId,
    /// Program and arguments.
    pub command: Vec<String>,
}

/// The processes of one cluster: their records, logs and identity.
#[derive(Debug, Clone)]
pub struct Processes {
    folder: PathBuf,
    identity: String,
}

/// What to start.
#[derive(Debug)]
pub(crate) struct Daemon<'a> {
    pub(crate) name: &'a str,
    pub(crate) program: &'a Path,
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: Vec<(&'static str, String)>,
    /// Network namespace file; `None` starts it in the namespace of the caller.
    pub(crate) namespace: Option<&'a Path>,
}

impl Processes {
    /// Those of the cluster in `folder` with the given identity.
    pub(crate) fn new(folder: &Path, identity: &str) -> Self {
        Self {
            folder: folder.to_owned(),
            identity: identity.to_owned(),
        }
    }

    /// The log file of a process.
    pub fn log(&self, name: &str) -> PathBuf {
        self.folder.join("logs").join(format!("{name}.log"))
    }

    /// Names of all logs, sorted.
    pub fn log_names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.folder.join("logs"))
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".log").map(str::to_owned))
            .collect();
        names.sort();
        names
    }

    /// Starts a process in a session of its own, with its output in its log.
    pub(crate) fn start(&self, daemon: &Daemon<'_>) -> Result<Record> {
        let name = daemon.name;
        let log = self.log(name);
        fs::create_dir_all(self.folder.join("logs")).context("could not make the log folder")?;
        fs::create_dir_all(self.folder.join("processes")).context("could not make the process folder")?;
        let output = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("could not open {}", log.display()))?;
        // `setsid` and `nsenter` replace themselves with the program, so the id stays.
        let mut command = Command::new("setsid");
        if let Some(namespace) = daemon.namespace {
            command.arg("nsenter").arg(format!("--net={}", namespace.display()));
        }
        command
            .arg(daemon.program)
            .args(&daemon.arguments)
            .envs(daemon.environment.iter().map(|(name, value)| (*name, value.as_str())))
            .env(IDENTITY_VARIABLE, &self.identity)
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        for foreign in FOREIGN_VARIABLES {
            command.env_remove(foreign);
        }
        let child = command.spawn().with_context(|| format!("could not start {name}"))?;
        let pid = i32::try_from(child.id()).context("a process id is out of range")?;
        let process =
            ProcessId::of(pid).with_context(|| format!("{name} ended at once:\n{}", super::paths::tail(&log, 20)))?;
        let mut words = vec![daemon.program.display().to_string()];
        words.extend(daemon.arguments.iter().cloned());
        let record = Record {
            name: name.to_owned(),
            process,
            command: words,
        };
        write_atomically(&self.record_file(name), serde_json::to_vec_pretty(&record)?)?;
        Ok(record)
    }

    /// All records, sorted by name.
    pub fn records(&self) -> Vec<Record> {
        let mut records: Vec<Record> = fs::read_dir(self.folder.join("processes"))
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "json"))
            .filter_map(|entry| serde_json::from_slice(&fs::read(entry.path()).ok()?).ok())
            .collect();
        records.sort_by(|one: &Record, other| one.name.cmp(&other.name));
        records
    }

    /// The record of one process.
    pub fn record(&self, name: &str) -> Option<Record> {
        serde_json::from_slice(&fs::read(self.record_file(name)).ok()?).ok()
    }

    /// Records whose process has ended.
    pub fn dead(&self) -> Vec<Record> {
        self.records()
            .into_iter()
            .filter(|record| !record.process.is_alive())
            .collect()
    }

    /// Ends one process, politely first, and forgets it.
    pub(crate) fn stop(&self, name: &str, patience: Duration) {
        if let Some(record) = self.record(name) {
            end(&[record.process], patience);
            let _missing = fs::remove_file(self.record_file(name));
        }
    }

    /// Ends every process of the cluster: the recorded ones and those that only carry its identity.
    pub(crate) fn stop_all(&self, patience: Duration) {
        let recorded: Vec<ProcessId> = self.records().iter().map(|record| record.process).collect();
        end(&recorded, patience);
        // Children of ended processes (container shims) and processes of a killed run.
        end(&self.marked(), Duration::ZERO);
    }

    /// Kills the processes that have this entry in their environment, without a moment to put things right. Returns how
    /// many there were.
    pub fn kill_with(&self, entry: &str) -> usize {
        let processes = with_entry(entry);
        for process in &processes {
            process.signal(Signal::KILL);
        }
        processes.len()
    }

    /// Running processes that carry the cluster's identity in their environment.
    fn marked(&self) -> Vec<ProcessId> {
        with_entry(&format!("{IDENTITY_VARIABLE}={}", self.identity))
    }

    fn record_file(&self, name: &str) -> PathBuf {
        self.folder.join("processes").join(format!("{name}.json"))
    }
}

/// Running processes that have this entry in their environment.
///
/// A process that is just changing its program shows an empty environment for a moment: it is looked at again. Some
/// have an empty one for good, so the looks are bounded.
fn with_entry(entry: &str) -> Vec<ProcessId> {
    let own = ProcessId::own();
    let (mut found, mut undecided) = (Vec::new(), numbers_in_proc().collect::<Vec<i32>>());
    for _ in 0..10 {
        undecided.retain(|pid| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            if environment.split(|byte| *byte == 0).any(|one| one == entry.as_bytes()) {
                found.extend(ProcessId::of(*pid).filter(|process| Some(*process) != own));
            }
            // Kernel threads and ended processes have no program.
            environment.is_empty() && fs::read_link(format!("/proc/{pid}/exe")).is_ok()
        });
        if undecided.is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    found
}

fn numbers_in_proc() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Asks the processes to end, kills those that are left after `patience`, and waits until all are gone.
pub(crate) fn end(processes: &[ProcessId], patience: Duration) {
    if !patience.is_zero() {
        for process in processes {
            process.signal(Signal::TERM);
        }
        if wait_for_end(processes, patience) {
            return;
        }
    }
    for process in processes {
        process.signal(Signal::KILL);
    }
    // A killed process can only be delayed by the kernel.
    wait_for_end(processes, Duration::from_secs(10));
}

fn wait_for_end(processes: &[ProcessId], patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        if !processes.iter().any(|process| process.is_alive()) {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// This program's own file, for the processes that a cluster starts from it.
///
/// A test binary is another program: there it is the `escadre-testbed` that was built beside it.
pub(crate) fn own_program() -> Result<PathBuf> {
    const NAME: &str = "escadre-testbed";
    let current = std::env::current_exe().context("could not find this program's own file")?;
    if current.file_stem().is_some_and(|stem| stem == NAME) {
        return Ok(current);
    }
    current
        .ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join(NAME))
        .find(|file| file.is_file())
        .ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                "escadre-testbed is not built beside this program",
            )
        })
        .with_context(|| format!("run `cargo build -p escadre-e2e` first ({})", current.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_process_is_alive_and_a_wrong_start_time_is_not() {
        let own = ProcessId::own().unwrap();
        assert!(own.is_alive());
        assert!(
            !ProcessId {
                start_ticks: own.start_ticks + 1,
                ..own
            }
            .is_alive()
        );
    }

    #[test]
    fn started_process_is_recorded_marked_and_ended() {
        let folder = tempfile::tempdir().unwrap();
        let processes = Processes::new(folder.path(), "test-identity-of-process-rs");
        let record = processes
            .start(&Daemon {
                name: "sleeper",
                program: Path::new("sleep"),
                arguments: vec!["600".to_owned()],
                environment: Vec::new(),
                namespace: None,
            })
            .unwrap();
        assert!(record.process.is_alive());
        assert!(processes.dead().is_empty());
        // What a killed run leaves: the process without its record.
        fs::remove_file(processes.record_file("sleeper")).unwrap();
        processes.stop_all(Duration::from_secs(5));
        assert!(!record.process.is_alive());
    }
}
