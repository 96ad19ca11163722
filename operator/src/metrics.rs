//! Numbers about the operator and the objects in its care, in the `OpenMetrics` text format.
//!
//! Labels are closed sets. The one exception are the gauges of each `LlmDeployment`, by namespace and name: they are
//! made from the cache at every scrape, so there are as many as there are objects, and none of one that is gone.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use escadre_crds::LlmDeployment;
use escadre_crds::condition::ConditionType;
use kube::ResourceExt as _;
use kube::core::DeserializeGuard;
use kube::runtime::reflector::Store;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
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

/// What was put right.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Drift {
    /// The kind of object.
    pub kind: &'static str,
}

/// One call to the API server.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ApiCall {
    /// The verb, as RBAC names it.
    pub verb: &'static str,
    /// The resource, with its subresource, as RBAC names it.
    pub resource: String,
    /// The HTTP status; 0 when there was no answer.
    pub code: u16,
}

impl ApiCall {
    /// A call without an answer yet.
    pub fn new(verb: &'static str, resource: String) -> Self {
        Self {
            verb,
            resource,
            code: 0,
        }
    }
}

/// The objects in the operator's care.
type Objects = Store<DeserializeGuard<LlmDeployment>>;

/// All metrics of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    reconciles: Family<Outcome, Counter<u64, AtomicU64>>,
    durations: Family<Outcome, Histogram, fn() -> Histogram>,
    running: Gauge<i64, AtomicI64>,
    depth: Gauge<i64, AtomicI64>,
    writes: Family<Write, Counter<u64, AtomicU64>>,
    drift: Family<Drift, Counter<u64, AtomicU64>>,
    calls: Family<ApiCall, Counter<u64, AtomicU64>>,
    polls: Family<Outcome, Counter<u64, AtomicU64>>,
    leader: Gauge<i64, AtomicI64>,
    objects: Arc<OnceLock<Objects>>,
}

/// 1 ms to about half a minute: a pass is a few calls to the API server and to the pods.
fn pass_durations() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 16))
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let leader = Gauge::default();
        let objects = Arc::new(OnceLock::new());
        registry.register_collector(Box::new(EachObject {
            leader: leader.clone(),
            objects: Arc::clone(&objects),
        }));
        let own = registry.sub_registry_with_prefix("escadre_operator");
        own.register(
            "build",
            "The version of the operator; always 1",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        own.register(
            "leader",
            "Whether this operator holds the lease and so is the one that writes",
            leader.clone(),
        );
        let reconciles = Family::default();
        own.register("reconciles", "Passes over one object, by outcome", reconciles.clone());
        let durations = Family::new_with_constructor(pass_durations as fn() -> Histogram);
        own.register(
            "reconcile_duration_seconds",
            "Duration of one pass, by outcome",
            durations.clone(),
        );
        let running = Gauge::default();
        own.register("reconciles_running", "Objects that are worked on now", running.clone());
        let depth = Gauge::default();
        own.register(
            "queue_depth",
            "Objects that wait for a pass, because as many as may be are worked on",
            depth.clone(),
        );
        let writes = Family::default();
        own.register(
            "writes",
            "Writes that changed something, by verb and kind",
            writes.clone(),
        );
        let drift = Family::default();
        own.register(
            "drift_put_right",
            "Children that somebody else had changed and that were put right, by kind",
            drift.clone(),
        );
        let calls = Family::default();
        own.register(
            "api_requests",
            "Requests to the API server by verb, resource and HTTP status; status 0: no answer",
            calls.clone(),
        );
        let polls = Family::default();
        own.register(
            "status_polls",
            "Questions to the runtimes' status pages, by outcome",
            polls.clone(),
        );
        Self {
            registry,
            reconciles,
            durations,
            running,
            depth,
            writes,
            drift,
            calls,
            polls,
            leader,
            objects,
        }
    }
}

/// Counts a pass for as long as it lives.
#[derive(Debug)]
pub struct Running(Gauge<i64, AtomicI64>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    /// Counts a pass that runs, until the value is dropped.
    pub fn runs(&self) -> Running {
        self.running.inc();
        Running(self.running.clone())
    }

    /// How many objects wait for a pass, for the queue to keep.
    pub fn queue_depth(&self) -> Gauge<i64, AtomicI64> {
        self.depth.clone()
    }

    /// Counts one pass.
    pub fn reconciled(&self, outcome: &'static str, duration: Duration) {
        let outcome = Outcome { outcome };
        self.reconciles.get_or_create(&outcome).inc();
        self.durations.get_or_create(&outcome).observe(duration.as_secs_f64());
    }

    /// Counts one write to the API server.
    pub fn wrote(&self, verb: &'static str, kind: &'static str) {
        self.writes.get_or_create(&Write { verb, kind }).inc();
    }

    /// Counts a child that somebody else had changed and that is put right.
    pub fn put_right(&self, kind: &'static str) {
        self.drift.get_or_create(&Drift { kind }).inc();
    }

    /// Counts one call to the API server.
    pub fn called(&self, call: &ApiCall) {
        self.calls.get_or_create(call).inc();
    }

    /// Counts one question to a runtime.
    pub fn polled(&self, outcome: &'static str) {
        self.polls.get_or_create(&Outcome { outcome }).inc();
    }

    /// Says whether this operator leads. Only the leader shows the gauges of the objects: a sum over all operators is
    /// right then.
    pub fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    /// From now on the gauges of the objects are made from this cache.
    pub fn show(&self, objects: Objects) {
        if self.objects.set(objects).is_err() {
            tracing::debug!("the objects are shown already");
        }
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

/// A list of metrics in Markdown, for the reference.
///
/// # Errors
/// As [`Metrics::render`].
pub fn reference() -> Result<String, std::fmt::Error> {
    let metrics = Metrics::default();
    // Families are shown once they have a member.
    metrics.reconciled("ok", Duration::ZERO);
    metrics.wrote("create", "Pod");
    metrics.called(&ApiCall::new("create", "pods".to_owned()));
    metrics.polled("ok");
    metrics.put_right("Service");
    let page = metrics.render()?;
    let mut text = String::from("| Metric | Type | Meaning |\n|---|---|---|\n");
    let kinds: std::collections::BTreeMap<&str, &str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .collect();
    for line in page.lines() {
        let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) else {
            continue;
        };
        let kind = kinds.get(name).copied().unwrap_or("unknown");
        let suffix = match kind {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        writeln!(text, "| `{name}{suffix}` | {kind} | {} |", help.trim_end_matches('.'))?;
    }
    Ok(text)
}

/// The gauges of each `LlmDeployment`.
#[derive(Debug)]
struct EachObject {
    leader: Gauge<i64, AtomicI64>,
    objects: Arc<OnceLock<Objects>>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Object {
    namespace: String,
    name: String,
}

/// Name, meaning and value of a gauge of one object.
type GaugeOf = (&'static str, &'static str, fn(&LlmDeployment) -> i64);

const GAUGES: [GaugeOf; 3] = [
    (
        "escadre_llmdeployment_replicas_wanted",
        "Pods that the spec of the LlmDeployment asks for; 0 while it is suspended",
        wanted,
    ),
    (
        "escadre_llmdeployment_replicas_ready",
        "Pods of the LlmDeployment that serve the wanted digest, by their own word",
        ready,
    ),
    (
        "escadre_llmdeployment_ready",
        "Whether the condition Ready of the LlmDeployment is True for its newest generation",
        is_ready,
    ),
];

fn wanted(object: &LlmDeployment) -> i64 {
    if object.spec.suspend {
        0
    } else {
        i64::from(object.spec.replicas)
    }
}

fn ready(object: &LlmDeployment) -> i64 {
    object
        .status
        .as_ref()
        .map_or(0, |status| i64::from(status.ready_replicas))
}

fn is_ready(object: &LlmDeployment) -> i64 {
    let name: &str = ConditionType::Ready.into();
    let holds = object.status.as_ref().is_some_and(|status| {
        status.conditions.iter().any(|condition| {
            condition.type_ == name
                && condition.status == "True"
                && condition.observed_generation == object.metadata.generation
        })
    });
    i64::from(holds)
}

impl Collector for EachObject {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let leads = self.leader.get() == 1;
        let objects = self.objects.get().filter(|_| leads).map(Store::state);
        for (name, help, value) in GAUGES {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for object in objects.iter().flatten() {
                let Ok(object) = &object.0 else { continue };
                let labels = Object {
                    namespace: object.namespace().unwrap_or_default(),
                    name: object.name_any(),
                };
                family.encode_family(&labels)?.encode_gauge(&value(object))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::runtime::reflector::store;
    use kube::runtime::watcher::Event;
    use serde_json::json;

    #[test]
    fn page_has_the_counts() {
        let metrics = Metrics::default();
        metrics.reconciled("ok", Duration::from_millis(3));
        metrics.wrote("create", "Pod");
        metrics.called(&ApiCall {
            code: 409,
            ..ApiCall::new("patch", "llmdeployments/status".to_owned())
        });
        let running = metrics.runs();
        let page = metrics.render().unwrap();
        for line in [
            "escadre_operator_reconciles_total{outcome=\"ok\"} 1",
            "escadre_operator_reconcile_duration_seconds_count{outcome=\"ok\"} 1",
            "escadre_operator_writes_total{verb=\"create\",kind=\"Pod\"} 1",
            "escadre_operator_api_requests_total{verb=\"patch\",resource=\"llmdeployments/status\",code=\"409\"} 1",
            "escadre_operator_reconciles_running 1",
            "escadre_operator_leader 0",
            concat!(
                "escadre_operator_build_info{version=\"",
                env!("CARGO_PKG_VERSION"),
                "\"} 1"
            ),
        ] {
            assert!(page.contains(line), "no `{line}` in:\n{page}");
        }
        drop(running);
        assert!(
            metrics
                .render()
                .unwrap()
                .contains("escadre_operator_reconciles_running 0")
        );
    }

    fn object(name: &str) -> DeserializeGuard<LlmDeployment> {
        serde_json::from_value(json!({
            "apiVersion": "escadre.dev/v1alpha1",
            "kind": "LlmDeployment",
            "metadata": {"name": name, "namespace": "shore", "generation": 3},
            "spec": {
                "replicas": 4,
                "model": {"source": "hf://a/b", "verification": {"digest": format!("sha256:{}", "a".repeat(64))}},
            },
            "status": {
                "readyReplicas": 2,
                "conditions": [{
                    "type": "Ready", "status": "True", "reason": "Serving", "message": "", "observedGeneration": 2,
                    "lastTransitionTime": "2026-01-01T00:00:00Z",
                }],
            },
        }))
        .unwrap()
    }

    #[test]
    fn gauges_of_objects_are_those_of_the_leader_and_go_with_the_object() {
        let metrics = Metrics::default();
        let (reader, mut writer) = store();
        writer.apply_watcher_event(&Event::Apply(object("chat")));
        metrics.show(reader);
        let line = "escadre_llmdeployment_replicas_wanted{namespace=\"shore\",name=\"chat\"} 4";
        assert!(!metrics.render().unwrap().contains(line), "only the leader shows it");
        metrics.leads(true);
        let page = metrics.render().unwrap();
        assert!(page.contains(line), "{page}");
        assert!(page.contains("escadre_llmdeployment_replicas_ready{namespace=\"shore\",name=\"chat\"} 2"));
        assert!(
            page.contains("escadre_llmdeployment_ready{namespace=\"shore\",name=\"chat\"} 0"),
            "an older generation's Ready does not count:\n{page}"
        );
        writer.apply_watcher_event(&Event::Delete(object("chat")));
        assert!(!metrics.render().unwrap().contains("chat"));
    }
}
