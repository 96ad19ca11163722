//! What was measured, against what was wanted: printed, and kept as JSON and as a page.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;

use anyhow::{Context as _, Result};
use escadre_e2e::cluster::KUBERNETES_VERSION;
use serde::Serialize;
use serde_json::json;

use crate::Settings;

/// Seconds from the first apply on; absent when it did not come before the deadline.
#[derive(Debug, Clone, Copy, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Times {
    /// All pods were created.
    pub(crate) created: Option<f64>,
    /// All owners were ready.
    pub(crate) ready: Option<f64>,
    pub(crate) pods_at_deadline: usize,
    pub(crate) ready_at_deadline: usize,
}

/// Everything that is measured. Absent: not measured.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    /// Deployments of Kubernetes, controller manager and scheduler as they come.
    pub(crate) plain_default: Option<Times>,
    /// The same with more QPS for both.
    pub(crate) plain_raised: Option<Times>,
    /// `LlmDeployment`s, controller manager and scheduler as they come.
    pub(crate) ours: Option<Times>,
    /// MiB, before there was anything.
    pub(crate) memory_empty: Option<f64>,
    /// MiB at most, until after the mass rollout.
    pub(crate) memory_rollout: Option<f64>,
    /// But for events and leases.
    pub(crate) writes_per_deployment: Option<f64>,
    pub(crate) writes_by_kind: Vec<(String, u64)>,
    /// Seconds.
    pub(crate) edit_at_rest: Option<f64>,
    pub(crate) edit_at_rest_median: Option<f64>,
    pub(crate) edit_in_rollout: Option<f64>,
    pub(crate) edit_in_rollout_median: Option<f64>,
    /// MiB more than before the strangers came.
    pub(crate) memory_strangers: Option<f64>,
    /// But for leases.
    pub(crate) idle_writes: Option<usize>,
    pub(crate) idle_reads: Vec<(String, u64)>,
    /// MiB.
    pub(crate) idle_memory: Option<f64>,
    /// Per cent of one core.
    pub(crate) idle_processor: Option<f64>,
    pub(crate) idle_pods: Option<usize>,
    /// Seconds since the pod that waits longest was asked.
    pub(crate) oldest_poll: Option<f64>,
    /// What went otherwise than planned.
    pub(crate) notes: Vec<String>,
    #[serde(skip)]
    deployments: usize,
    #[serde(skip)]
    idle: usize,
    #[serde(skip)]
    strangers: (usize, usize),
}

/// One bar.
#[derive(Debug, Clone, Serialize)]
struct Bar {
    #[serde(rename = "bar")]
    name: String,
    wanted: String,
    measured: String,
    met: bool,
}

impl Bar {
    /// At most `limit`; nothing measured is a miss.
    fn at_most(name: String, limit: f64, unit: &str, measured: Option<f64>) -> Self {
        let digits = if limit < 10.0 { 2 } else { 1 };
        Self {
            name,
            wanted: format!("≤ {limit} {unit}").trim_end().to_owned(),
            measured: measured.map_or_else(
                || "not reached".to_owned(),
                |value| format!("{value:.digits$} {unit}").trim_end().to_owned(),
            ),
            met: measured.is_some_and(|value| value <= limit),
        }
    }
}

impl Report {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self {
            deployments: settings.deployments,
            idle: settings.idle.max(settings.deployments),
            strangers: (settings.secrets, settings.pods),
            ..Self::default()
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "counts are small")]
    fn bars(&self) -> Vec<Bar> {
        let many = self.deployments;
        let all = self.idle;
        let (secrets, pods) = self.strangers;
        let ours = self.ours.unwrap_or_default();
        let milliseconds = |seconds: Option<f64>| seconds.map(|seconds| seconds * 1000.0);
        vec![
            Bar::at_most(
                format!("{many} deployments of 2 pods: all pods created"),
                60.0,
                "s",
                ours.created,
            ),
            Bar::at_most(
                format!("{many} deployments of 2 pods: all Ready"),
                240.0,
                "s",
                ours.ready,
            ),
            Bar::at_most(
                "memory of the operator until then, at most".to_owned(),
                150.0,
                "MiB",
                self.memory_rollout,
            ),
            Bar::at_most(
                "writes for each of them, Events aside".to_owned(),
                7.0,
                "",
                self.writes_per_deployment,
            ),
            Bar::at_most(
                format!("one edit among {many} at rest → first pod write, p99"),
                250.0,
                "ms",
                milliseconds(self.edit_at_rest),
            ),
            Bar::at_most(
                format!("the same while the {many} roll, p99"),
                2000.0,
                "ms",
                milliseconds(self.edit_in_rollout),
            ),
            Bar::at_most(
                format!("{secrets} Secrets and {pods} pods of others: memory grows"),
                20.0,
                "MiB",
                self.memory_strangers,
            ),
            Bar::at_most(
                format!("{all} idle: writes but for the lease"),
                0.0,
                "",
                self.idle_writes.map(|count| count as f64),
            ),
            Bar::at_most(
                format!("{all} idle: longest time since a pod was asked"),
                60.0,
                "s",
                self.oldest_poll,
            ),
            Bar::at_most(format!("{all} idle: memory"), 250.0, "MiB", self.idle_memory),
            Bar::at_most(
                format!("{all} idle: processor, of one core"),
                3.0,
                "%",
                self.idle_processor,
            ),
        ]
    }

    /// Prints the tables, keeps them unless this was a trial, and ends with the count of bars.
    pub(crate) fn finish(&self, settings: &Settings) -> Result<()> {
        let bars = self.bars();
        let mut text = format!(
            "\n{}\n{}\n{}\n",
            self.yardstick_table(),
            bar_table(&bars),
            self.details()
        );
        if settings.is_trial() {
            text.push_str("\na trial with a smaller workload: nothing is kept\n");
        } else {
            let file = self.keep(settings, &bars)?;
            writeln!(text, "\nkept in {file}")?;
        }
        let met = bars.iter().filter(|bar| bar.met).count();
        writeln!(text, "{met} met, {} missed", bars.len() - met)?;
        std::io::stdout()
            .write_all(text.as_bytes())
            .context("could not write to standard output")
    }

    fn yardstick_table(&self) -> String {
        let mut table =
            String::from("| seconds after the first apply | all pods created | all ready |\n|---|---|---|\n");
        let rows = [
            ("LlmDeployment, controllers of Kubernetes at default QPS", self.ours),
            ("plain Deployment, default QPS", self.plain_default),
            (
                "plain Deployment, QPS 2000 on controller manager and scheduler",
                self.plain_raised,
            ),
        ];
        for (name, times) in rows {
            let Some(times) = times else { continue };
            let cell = |time: Option<f64>, count: usize| {
                time.map_or_else(
                    || format!("not reached ({count} at the deadline)"),
                    |time| format!("{time:.1}"),
                )
            };
            table.extend([format!(
                "| {name} | {} | {} |\n",
                cell(times.created, times.pods_at_deadline),
                cell(times.ready, times.ready_at_deadline)
            )]);
        }
        table
    }

    /// Writes the JSON of this run and the page of the newest one. Returns the JSON's path.
    fn keep(&self, settings: &Settings, bars: &[Bar]) -> Result<String> {
        let date = command("date", &["+%Y-%m-%d"]);
        let version = command("git", &["describe", "--always", "--dirty"]);
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let processor = processor();
        let record = json!({
            "date": date,
            "machine": {"cpu": processor, "cores": cores, "kernel": command("uname", &["-r"])},
            "versions": {"kubernetes": KUBERNETES_VERSION, "escadre": version},
            "workload": {
                "nodes": settings.nodes, "deployments": settings.deployments, "idle": settings.idle,
                "idleSeconds": settings.idle_seconds, "edits": settings.edits,
                "secrets": settings.secrets, "pods": settings.pods,
            },
            "measured": self,
            "bars": bars,
        });
        let file = settings.results.join(format!("operator-{date}.json"));
        let text = serde_json::to_string_pretty(&record)?;
        fs::write(&file, format!("{text}\n")).with_context(|| format!("could not write {}", file.display()))?;
        let head = format!(
            "{date}, {cores} cores ({processor}), Kubernetes {KUBERNETES_VERSION}, {} simulated nodes, Escadre {version}:",
            settings.nodes
        );
        let page = format!(
            "{PAGE_TOP}\n{head}\n\n{}\n{}\n{}",
            self.yardstick_table(),
            bar_table(bars),
            self.details()
        );
        let target = settings.results.join("operator.md");
        fs::write(&target, page).with_context(|| format!("could not write {}", target.display()))?;
        Ok(file.display().to_string())
    }

    fn details(&self) -> String {
        let mut text = String::from("Writes of the mass rollout, by kind: ");
        let list = |kinds: &[(String, u64)]| {
            let kinds: Vec<String> = kinds.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
            if kinds.is_empty() {
                "none".to_owned()
            } else {
                kinds.join(", ")
            }
        };
        text.push_str(&list(&self.writes_by_kind));
        text.push_str(".\nReads of the idle time: ");
        text.push_str(&list(&self.idle_reads));
        text.push_str(".\n");
        let numbers = [
            ("Median of an edit at rest, seconds", self.edit_at_rest_median),
            (
                "median of an edit during a mass rollout, seconds",
                self.edit_in_rollout_median,
            ),
            ("memory of the operator without any deployment, MiB", self.memory_empty),
        ];
        let numbers: Vec<String> = numbers
            .into_iter()
            .filter_map(|(name, value)| value.map(|value| format!("{name}: {value:.3}")))
            .collect();
        text.push_str(&numbers.join("; "));
        text.push_str(".\n");
        for note in &self.notes {
            text.extend(["\n", note, "\n"]);
        }
        text
    }
}

const PAGE_TOP: &str = "\
# The operator at fleet size

`make bench-operator` measures it and writes this page. etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kwok
with the simulated nodes, the operator (release build) and the measuring program share the cores of one machine. All calls of
the operator pass the test bed's fault proxy, which counts them and does nothing else; that costs the operator time and the
yardstick nothing. A server in the cluster's network answers `/status` on every pod's address. The yardstick is the same
number of pods by `apps/v1` Deployments, each on a fresh cluster of the same size. Results of each run are kept beside this
page as JSON.
";

fn bar_table(bars: &[Bar]) -> String {
    let mut table = String::from("| Bar | Wanted | Measured | |\n|---|---|---|---|\n");
    for bar in bars {
        let met = if bar.met { "met" } else { "missed" };
        table.extend([format!(
            "| {} | {} | {} | {met} |\n",
            bar.name, bar.wanted, bar.measured
        )]);
    }
    table
}

fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("model name"));
    line.and_then(|line| line.split_once(": "))
        .map_or("unknown", |(_, name)| name)
        .to_owned()
}

fn command(program: &str, arguments: &[&str]) -> String {
    let output = std::process::Command::new(program).args(arguments).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    text.unwrap_or_else(|_| "unknown".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_measured_is_a_miss() {
        assert!(!Bar::at_most("a".to_owned(), 1.0, "s", None).met);
        assert!(Bar::at_most("a".to_owned(), 1.0, "s", Some(1.0)).met);
        assert!(!Bar::at_most("a".to_owned(), 0.0, "", Some(1.0)).met);
    }

    #[test]
    fn tables_are_tables() {
        let bar = Bar::at_most("pods".to_owned(), 60.0, "s", Some(12.34));
        assert!(bar_table(&[bar]).ends_with("| pods | ≤ 60 s | 12.3 s | met |\n"));
    }
}
