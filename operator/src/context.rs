//! What a reconciler may use: the client, the clock, the recorder, metrics, defaults. The only place that reads time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::runtime::events::Recorder;

use crate::args::PullPolicy;
use crate::controllers::llm_deployment::dependencies::PodMonitorKind;
use crate::metrics::Metrics;
use crate::retry::Backoff;
use crate::runtime_status::{Said, StatusClient};

/// How long any one call to the API server may take. The client retries overload by itself within it.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// What a reconciler may use.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// The one publisher of events of this process.
    pub recorder: Recorder,
    /// Numbers about the operator.
    pub metrics: Arc<Metrics>,
    /// The time.
    pub clock: Clock,
    /// What applies where an object says nothing.
    pub defaults: Defaults,
    /// Asks the runtimes.
    pub status_client: StatusClient,
    /// The last good answer of each pod, by UID.
    pub last_answers: LastAnswers,
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

/// The last good answer of each pod. One lost answer of a busy process must not take a deployment's `Ready` away,
/// while the pod's own readiness probe still succeeds.
#[derive(Debug, Default)]
pub struct LastAnswers(Mutex<HashMap<String, (Timestamp, Said)>>);

/// How long an answer may stand in for a lost one: a few polls.
const ANSWER_LIFETIME: Duration = Duration::from_secs(45);

impl LastAnswers {
    /// Keeps an answer, and forgets those that are too old to be used.
    pub fn keep(&self, pod_uid: &str, said: &Said, now: Timestamp) {
        let mut answers = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        answers.retain(|_, (when, _)| now.duration_since(*when).unsigned_abs() <= ANSWER_LIFETIME);
        answers.insert(pod_uid.to_owned(), (now, said.clone()));
    }

    /// The last answer, when it is young enough.
    pub fn recall(&self, pod_uid: &str, now: Timestamp) -> Option<Said> {
        let answers = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (when, said) = answers.get(pod_uid)?;
        (now.duration_since(*when).unsigned_abs() <= ANSWER_LIFETIME).then(|| said.clone())
    }
}
