//! Requests without pause from the official OpenAI client inside a cluster's network, with a record of each:
//! `e2e/clients/traffic.py`. `make clients` installs what it needs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout};

use crate::cluster::{Cache, Cluster};
use crate::escadre::source_tree;

/// Until every worker has had an answer, beside other tests on two cores.
const FLOWING: Duration = Duration::from_mins(2);
/// Until the open requests have ended; longer than the client's own timeout.
const ENDED: Duration = Duration::from_secs(150);

/// One request.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Record {
    /// `stream`, `long`, `whole`, `fresh`, `idle` or `knock`.
    pub kind: String,
    /// Seconds of the clock.
    pub started: f64,
    /// Seconds of the clock.
    pub ended: f64,
    /// Whether the answer began.
    pub begun: bool,
    /// Pieces of the answer.
    pub chunks: u64,
    /// Why the answer ended: `stop`, `length`.
    pub finish: Option<String>,
    /// Which model answered.
    pub fingerprint: Option<String>,
    /// What went wrong.
    pub error: Option<String>,
}

/// What came of all requests.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// How many there were.
    pub requests: u64,
    /// Those that did not end as they should.
    pub failed: u64,
    /// Those of them whose answer had begun.
    pub cut: u64,
    /// Answers by the model that gave them.
    pub fingerprints: BTreeMap<String, u64>,
    /// Requests by their kind.
    pub kinds: BTreeMap<String, u64>,
    /// Failures by their text.
    pub errors: BTreeMap<String, u64>,
    /// Streams that were open at the same time.
    pub open_streams: OpenStreams,
}

/// Streams that were open at the same time, looked at many times a second.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct OpenStreams {
    /// The fewest.
    pub least: u64,
    /// On average.
    pub average: f64,
}

impl Summary {
    /// What a person wants to know, in a few lines.
    pub fn report(&self) -> String {
        let open = &self.open_streams;
        let mut text = format!(
            "{} requests, {} failed, {} of them cut; open streams: {} at least, {} on average\n",
            self.requests, self.failed, self.cut, open.least, open.average
        );
        for (name, count) in self.fingerprints.iter().chain(&self.errors) {
            writeln!(text, "  {count} {name}").expect("writing to a string cannot fail");
        }
        text
    }
}

/// Running requests; ended when it is dropped.
#[derive(Debug)]
pub struct Traffic {
    child: Child,
    output: Lines<BufReader<ChildStdout>>,
    records: PathBuf,
}

impl Traffic {
    /// Sends requests to the API at `base` (an address inside the cluster's network, with `/v1`), and waits until all
    /// workers have had an answer.
    pub async fn start(cluster: &Cluster, base: &str, model: &str, workers: u32) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let records = cluster.folder().join(format!("traffic-{number}.jsonl"));
        let python = Cache::from_environment()?.folder("clients")?.join("python/bin/python");
        anyhow::ensure!(python.is_file(), "{} is missing; run `make clients`", python.display());
        let mut child = cluster
            .command(python)
            .arg(source_tree().join("e2e/clients/traffic.py"))
            .args([base, model])
            .arg(&records)
            .arg(workers.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("could not start the traffic")?;
        let output = child.stdout.take().context("the traffic has no output")?;
        let mut traffic = Self {
            child,
            output: BufReader::new(output).lines(),
            records,
        };
        let line = traffic.line(FLOWING).await?;
        anyhow::ensure!(line == "flowing", "the traffic said {line:?}");
        Ok(traffic)
    }

    /// The requests that have ended so far.
    pub fn records(&self) -> Result<Vec<Record>> {
        read(&self.records)
    }

    /// The requests that have ended so far, and not as they should.
    pub fn failures(&self) -> Result<Vec<Record>> {
        let mut records = self.records()?;
        records.retain(|record| record.error.is_some());
        Ok(records)
    }

    /// Lets open requests finish. What came of all, and each of them.
    pub async fn stop(mut self) -> Result<(Summary, Vec<Record>)> {
        let id = self.child.id().context("the traffic has ended before its time")?;
        let id = Pid::from_raw(i32::try_from(id)?).context("the traffic has no process id")?;
        kill_process(id, Signal::TERM).context("could not end the traffic")?;
        let line = self.line(ENDED).await?;
        let summary = serde_json::from_str(&line).with_context(|| format!("the traffic ended with {line:?}"))?;
        Ok((summary, self.records()?))
    }

    async fn line(&mut self, deadline: Duration) -> Result<String> {
        let line = tokio::time::timeout(deadline, self.output.next_line()).await;
        let line = line.with_context(|| format!("the traffic said nothing for {} s", deadline.as_secs()))?;
        line?.context("the traffic ended; its messages are above")
    }
}

fn read(file: &Path) -> Result<Vec<Record>> {
    let text = std::fs::read_to_string(file).with_context(|| format!("could not read {}", file.display()))?;
    // The last line may be half written.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let lines = whole.lines();
    lines
        .map(|line| serde_json::from_str(line).with_context(|| format!("{line:?} is no record of a request")))
        .collect()
}
