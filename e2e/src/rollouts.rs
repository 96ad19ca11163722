//! What scenarios of rollouts start from: a deployment of two replicas that is asked without pause while its spec is
//! edited, and two models that it may serve.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use escadre_crds::{LlmDeployment, LlmDeploymentStatus};
use serde_json::{Value, json};

use crate::escadre::{
    self, MODEL_DIGEST, MODEL_FILE, MODEL_SOURCE, SECOND_MODEL_DIGEST, SECOND_MODEL_FILE, SECOND_MODEL_SOURCE,
};
use crate::scenario::Scenario;
use crate::traffic::{Record, Summary, Traffic};

/// Pods of the deployment.
pub const REPLICAS: usize = 2;
/// Workers that ask it. Enough for five streams to be open at each moment, also where short answers end within a few steps.
pub const WORKERS: u32 = 14;
/// A rollout: two downloads, loads and drains while two cores also answer the requests.
const ROLLED_OUT: Duration = Duration::from_mins(6);
/// Streams that must be open at each moment, so that none can be replaced unnoticed.
const OPEN: u64 = 5;

/// What the deployment may serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Model {
    /// As it was created.
    First,
    /// Another file with another digest.
    Second,
}

impl Model {
    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }

    /// Its digest.
    pub fn digest(self) -> &'static str {
        match self {
            Self::First => MODEL_DIGEST,
            Self::Second => SECOND_MODEL_DIGEST,
        }
    }

    /// The edit of a spec that asks for it.
    pub fn spec(self) -> Value {
        let (source, file) = match self {
            Self::First => (MODEL_SOURCE, MODEL_FILE),
            Self::Second => (SECOND_MODEL_SOURCE, SECOND_MODEL_FILE),
        };
        json!({"model": {"source": source, "files": [file], "verification": {"digest": self.digest()}}})
    }

    /// Whether it gave an answer with this fingerprint.
    pub fn answered(self, fingerprint: &str) -> bool {
        fingerprint.contains(&self.digest()["sha256:".len()..][..12])
    }
}

/// A deployment under traffic.
#[derive(Debug)]
pub struct Fleet<'a> {
    scenario: &'a Scenario,
    name: &'a str,
    /// Asks it.
    pub traffic: Traffic,
}

impl<'a> Fleet<'a> {
    /// Creates it with the first model, and asks it by that many workers once it is ready.
    pub async fn start(scenario: &'a Scenario, name: &'a str, workers: u32) -> Result<Self> {
        Self::start_with(scenario, name, (REPLICAS, workers), json!({})).await
    }

    /// As [`Self::start`], with so many pods and workers and with further fields of `spec.rollout`.
    pub async fn start_with(
        scenario: &'a Scenario,
        name: &'a str,
        (pods, workers): (usize, u32),
        rollout: Value,
    ) -> Result<Self> {
        escadre::add_second_model(&escadre::mirror_root(scenario.test_bed()?)?)?;
        let deployment = scenario
            .model(name)
            .set("/spec/replicas", json!(pods))
            .set("/spec/runtime/maxConcurrency", json!(8))
            // Longer than what is queued at one pod takes while two cores do everything.
            .set("/spec/drain/timeoutSeconds", json!(120))
            .set("/spec/disruption", json!({"minAvailable": 1}))
            .set(
                "/spec/rollout",
                merged(json!({"minReadySeconds": 2, "progressDeadline": "60s"}), rollout),
            );
        scenario.create(deployment).await?;
        scenario.await_ready(name).await?;
        scenario.await_ready_pods(name, pods).await?;
        Ok(Self {
            scenario,
            name,
            traffic: scenario.traffic(name, workers).await?,
        })
    }

    /// Edits the model alone, and waits until the deployment is ready with it. Returns how long that took.
    pub async fn update(&self, model: Model) -> Result<Duration> {
        self.update_with(model, json!({})).await
    }

    /// As [`Self::update`], with further fields of the spec in the same edit.
    pub async fn update_with(&self, model: Model, more: Value) -> Result<Duration> {
        let start = Instant::now();
        self.edit(model, more).await?;
        self.await_rolled_out(model).await?;
        Ok(start.elapsed())
    }

    /// Edits the model, and further fields of the spec.
    pub async fn edit(&self, model: Model, more: Value) -> Result<()> {
        self.scenario.patch(self.name, merged(model.spec(), more)).await
    }

    /// Waits until the deployment is ready with this model.
    pub async fn await_rolled_out(&self, model: Model) -> Result<()> {
        let status = self.scenario.await_ready_within(self.name, ROLLED_OUT).await?;
        anyhow::ensure!(
            status.served_digest.as_deref() == Some(model.digest()),
            "ready with {:?}, asked for {}",
            status.served_digest,
            model.digest()
        );
        Ok(())
    }

    /// Its status as it is.
    pub async fn status(&self) -> Result<LlmDeploymentStatus> {
        let object = self.scenario.namespace().api::<LlmDeployment>().get(self.name).await?;
        object.status.context("the deployment has no status")
    }

    /// Ends the traffic. An error unless every request was answered to its end, each by one of the two models, and
    /// streams were open all the time.
    pub async fn finish(self) -> Result<Summary> {
        self.finish_despite(|_| false).await
    }

    /// As [`Self::finish`], but for requests that may have failed.
    pub async fn finish_despite(self, may_fail: impl Fn(&Record) -> bool) -> Result<Summary> {
        let (summary, records) = self.traffic.stop().await?;
        let report = summary.report();
        let failures = records.iter().filter(|one| one.error.is_some() && !may_fail(one));
        let failures: Vec<&Record> = failures.take(3).collect();
        anyhow::ensure!(
            failures.is_empty(),
            "requests were lost: {report}the first of them: {failures:#?}"
        );
        let strange = summary
            .fingerprints
            .keys()
            .find(|one| !Model::First.answered(one) && !Model::Second.answered(one));
        anyhow::ensure!(strange.is_none(), "something else answered: {report}");
        anyhow::ensure!(
            summary.open_streams.least >= OPEN,
            "too few streams were open to show anything: {report}"
        );
        Ok(summary)
    }
}

/// An object with the fields of another.
fn merged(mut object: Value, more: Value) -> Value {
    if let (Value::Object(object), Value::Object(more)) = (&mut object, more) {
        object.extend(more);
    }
    object
}
