//! What a reconciler may use: the client, the clock, the recorder, metrics, defaults. The only place that reads time.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::runtime::events::Recorder;

use crate::args::PullPolicy;
use crate::audit::Audit;
use crate::controllers::llm_deployment::dependencies::PodMonitorKind;
use crate::leader::Gate;
use crate::metrics::Metrics;
use crate::queue::Queue;
use crate::retry::Backoff;
use crate::world::World;

/// How long any one call to the API server may take. The client retries overload by itself within it.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// What a reconciler may use.
pub struct Context {
    /// The API server. Refuses every write while the gate is shut.
    pub client: Client,
    /// Whether this operator may write.
    pub gate: Gate,
    /// The one publisher of events of this process.
    pub recorder: Recorder,
    /// The record of decisions.
    pub audit: Audit,
    /// Numbers about the operator.
    pub metrics: Arc<Metrics>,
    /// The time.
    pub clock: Clock,
    /// What applies where an object says nothing.
    pub defaults: Defaults,
    /// What is known without asking.
    pub world: World,
    /// Who is worked on next.
    pub queue: Arc<Queue>,
    /// Failures in a row, by object.
    pub backoff: Backoff,
    /// Whether the cluster has the kind `PodMonitor`.
    pub pod_monitor_kind: PodMonitorKind,
}

/// The time, so that pure steps get it as an argument.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock;

impl Clock {
    /// Now.
    pub fn now(self) -> Timestamp {
        Timestamp::now()
    }
}

/// What applies where an object says nothing. Recorded in each revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Defaults {
    /// Image of the runtime.
    pub runtime_image: String,
    /// When nodes pull it.
    pub pull_policy: PullPolicy,
}
