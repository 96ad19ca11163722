//! Numbers about the operator itself, in the `OpenMetrics` text format. Labels are closed sets: no object names.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// How one pass ended.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Outcome {
    /// `ok`, or the name of the error.
    pub outcome: &'static str,
}

/// What was written.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Write {
    /// The verb.
    pub verb: &'static str,
    /// The kind of object.
    pub kind: &'static str,
}

/// All metrics of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    reconciles: Family<Outcome, Counter<u64, AtomicU64>>,
    durations: Histogram,
    writes: Family<Write, Counter<u64, AtomicU64>>,
    polls: Family<Outcome, Counter<u64, AtomicU64>>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("escadre_operator");
        let reconciles = Family::default();
        // 1 ms to about half a minute: a pass is a few calls to the API server and to the pods.
        let durations = Histogram::new(exponential_buckets(0.001, 2.0, 16));
        let writes = Family::default();
        let polls = Family::default();
        registry.register("reconciles", "Passes over one object, by outcome", reconciles.clone());
        registry.register("reconcile_duration_seconds", "Duration of one pass", durations.clone());
        registry.register("writes", "Writes to the API server, by verb and kind", writes.clone());
        registry.register(
            "status_polls",
            "Questions to the runtimes' status pages, by outcome",
            polls.clone(),
        );
        Self {
            registry,
            reconciles,
            durations,
            writes,
            polls,
        }
    }
}

impl Metrics {
    /// Counts one pass.
    pub fn reconciled(&self, outcome: &'static str, duration: Duration) {
        self.reconciles.get_or_create(&Outcome { outcome }).inc();
        self.durations.observe(duration.as_secs_f64());
    }

    /// Counts one write to the API server.
    pub fn wrote(&self, verb: &'static str, kind: &'static str) {
        self.writes.get_or_create(&Write { verb, kind }).inc();
    }

    /// Counts one question to a runtime.
    pub fn polled(&self, outcome: &'static str) {
        self.polls.get_or_create(&Outcome { outcome }).inc();
    }

    /// The page for `/metrics`.
    ///
    /// # Errors
    /// When a value cannot be written as text; it does not happen with the types used here.
    pub fn render(&self) -> Result<String, std::fmt::Error> {
        let mut page = String::new();
        text::encode(&mut page, &self.registry)?;
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_has_the_counts() {
        let metrics = Metrics::default();
        metrics.reconciled("ok", Duration::from_millis(3));
        metrics.wrote("create", "Pod");
        let page = metrics.render().unwrap();
        assert!(page.contains("escadre_operator_reconciles_total{outcome=\"ok\"} 1"));
        assert!(page.contains("escadre_operator_writes_total{verb=\"create\",kind=\"Pod\"} 1"));
    }
}
