//! Measures the operator at fleet size on simulated nodes, beside the Deployments of Kubernetes itself.
//!
//! `dev/bench-operator.sh` builds what it needs and says how it is used. Three clusters, one after the other: plain
//! Deployments at the default QPS of the controller manager, the same with its QPS raised, and Escadre.

mod fleet;
mod load;
mod measure;
mod report;
mod yardstick;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;

use report::Report;

/// What is measured, and with how many.
#[derive(Debug, Clone, Parser)]
struct Settings {
    /// The operator to measure.
    #[arg(
        long,
        env = "ESCADRE_BENCH_OPERATOR",
        default_value = "target/release/escadre-operator"
    )]
    operator: PathBuf,
    /// The folder that keeps results.
    #[arg(long, env = "ESCADRE_BENCH_RESULTS", default_value = "docs/benchmarks")]
    results: PathBuf,
    /// Simulated nodes.
    #[arg(long, env = "ESCADRE_BENCH_NODES", default_value_t = 250)]
    nodes: u32,
    /// Deployments that are applied at once, of two pods each.
    #[arg(long, env = "ESCADRE_BENCH_DEPLOYMENTS", default_value_t = 1000)]
    deployments: usize,
    /// Deployments that idle.
    #[arg(long, env = "ESCADRE_BENCH_IDLE", default_value_t = 5000)]
    idle: usize,
    /// How long they are watched idling, in seconds.
    #[arg(long, env = "ESCADRE_BENCH_IDLE_SECONDS", default_value_t = 120)]
    idle_seconds: u64,
    /// Edits whose delay is measured, idle and again during a mass rollout.
    #[arg(long, env = "ESCADRE_BENCH_EDITS", default_value_t = 100)]
    edits: usize,
    /// Secrets that are not ours.
    #[arg(long, env = "ESCADRE_BENCH_SECRETS", default_value_t = 8000)]
    secrets: usize,
    /// Pods that are not ours.
    #[arg(long, env = "ESCADRE_BENCH_PODS", default_value_t = 20_000)]
    pods: usize,
    /// Seconds after which the yardstick is not waited for any longer; 0 leaves it out.
    #[arg(long, env = "ESCADRE_BENCH_YARDSTICK_SECONDS", default_value_t = 240)]
    yardstick_seconds: u64,
}

impl Settings {
    fn yardstick_deadline(&self) -> Duration {
        Duration::from_secs(self.yardstick_seconds)
    }

    /// The workload is cut down: figures are a trial and no record.
    fn is_trial(&self) -> bool {
        self.nodes < 250 || self.deployments < 1000 || self.idle < 5000 || self.secrets < 8000 || self.pods < 20_000
    }
}

fn main() -> ExitCode {
    match run(&Settings::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(settings: &Settings) -> Result<()> {
    anyhow::ensure!(
        settings.operator.is_file(),
        "{} is not there; build it with `cargo build --release --bin escadre-operator`, or name another with --operator",
        settings.operator.display()
    );
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("could not start the async runtime")?;
    runtime.block_on(async {
        let mut report = Report::new(settings);
        if settings.yardstick_seconds > 0 {
            yardstick::measure(settings, &mut report).await?;
        }
        fleet::measure(settings, &mut report).await?;
        report.finish(settings)
    })
}
