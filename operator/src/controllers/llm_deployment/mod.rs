//! The controller of `LlmDeployment`: observe, validate, plan, build, apply, status; nothing else happens here.

pub mod apply;
pub mod build;
pub mod dependencies;
pub mod diagnose;
pub mod events;
#[cfg(test)]
mod fixtures;
pub mod observe;
pub mod plan;
pub mod revision;
pub mod status;
mod surroundings;
pub mod validate;
mod watches;
mod work;

use std::time::Duration;

use escadre_crds::{LlmDeployment, names};
use kube::Resource;
use kube::core::{DeserializeGuard, error_boundary::InvalidObject};

use crate::context::Context;
use crate::world::cache::{Key, place};
use build::Children;
use plan::Plan;
use validate::{Rejected, Valid};
pub use work::{Scope, run};

/// When a pod that was not asked yet should have been asked.
const ASKED: Duration = Duration::from_secs(5);

/// Why a pass failed: one variant for each step that can fail.
#[derive(Debug, thiserror::Error, strum::IntoStaticStr)]
pub enum Error {
    /// The object is not an `LlmDeployment` that this version understands.
    #[error("object {name} does not have the form of an LlmDeployment")]
    Invalid {
        /// Its name.
        name: String,
        /// What does not fit.
        #[source]
        source: Box<InvalidObject>,
    },
    /// A read failed.
    #[error("could not observe the world")]
    Observe(#[source] observe::Error),
    /// A write failed.
    #[error("could not apply the children")]
    Apply(#[source] Box<apply::Error>),
    /// Status could not be written.
    #[error("could not write status")]
    Status(#[source] status::Error),
}

impl Error {
    /// Whether somebody else changed the object meanwhile.
    fn is_conflict(&self) -> bool {
        match self {
            Self::Invalid { .. } | Self::Observe(_) => false,
            Self::Apply(error) => error.is_conflict(),
            Self::Status(error) => error.is_conflict(),
        }
    }
}

/// How a pass went.
pub struct Outcome {
    /// Why the spec cannot be followed.
    pub rejected: Option<Rejected>,
    /// What was done, for the spec or, when it cannot be followed, for what was asked before. `None`: nothing was.
    pub work: Option<Work>,
}

/// What was done.
pub struct Work {
    /// What was wanted.
    pub valid: Valid,
    /// What was planned.
    pub plan: Plan,
    /// What was written, or why not.
    pub applied: Result<Children<apply::Applied>, apply::Error>,
}

impl Outcome {
    fn into_next_look(self, next_look: Option<Duration>) -> Result<Option<Duration>, Error> {
        match self.work.map(|work| work.applied) {
            Some(Err(error)) => Err(Error::Apply(Box::new(error))),
            Some(Ok(_)) | None => Ok(next_look),
        }
    }
}

/// Drives one `LlmDeployment` one step towards its spec. Returns when to look again, when nothing is heard of it before.
async fn reconcile(object: &DeserializeGuard<LlmDeployment>, ctx: &Context) -> Result<Option<Duration>, Error> {
    let object = object.0.as_ref().map_err(|source| Error::Invalid {
        name: source.metadata.name.clone().unwrap_or_default(),
        source: Box::new(source.clone()),
    })?;
    if object.meta().deletion_timestamp.is_some() {
        // Children go by their owner references; making new ones would keep the object from going.
        return Ok(None);
    }
    let newest = ctx.world.statuses.newest(object);
    let object = newest.as_ref().unwrap_or(object);
    let observed = observe::observe(ctx, object).await.map_err(Error::Observe)?;
    let (rejected, valid) = match validate::validate(object, &observed) {
        Ok(valid) => (None, Some(valid)),
        Err(rejected) => {
            let held = validate::held(object, &observed, &rejected);
            (Some(rejected), held)
        }
    };
    let work = match valid {
        Some(valid) => Some(Box::pin(work(ctx, &place(object), valid, &observed)).await?),
        None => None,
    };
    let outcome = Outcome { rejected, work };
    if observed.is_incomplete() {
        // The answer wakes us; until then status would take back what an operator before us said truly.
        return outcome.into_next_look(Some(ASKED));
    }
    let next_look = status::write(ctx, object, &observed, &outcome)
        .await
        .map_err(Error::Status)?;
    outcome.into_next_look(next_look)
}

/// Plans, builds and writes.
async fn work(ctx: &Context, key: &Key, mut valid: Valid, observed: &observe::Observed) -> Result<Work, Error> {
    let plan = plan::next(&valid, observed, ctx.world.furthest.of(key), ctx.clock.now());
    let plan = observe::read_records(ctx, &mut valid, plan)
        .await
        .map_err(Error::Observe)?;
    ctx.world
        .furthest
        .keep(key, plan.best.map(|best| (plan.goal.clone(), best)));
    ctx.world.poller.watch_closely(&plan.watch);
    for pod in &plan.probe {
        if let Some(prompt) = valid.rollout.probe() {
            ctx.world.poller.probe(&pod.uid, prompt);
        }
    }
    let children = build::build(&valid, &plan);
    count_drift(ctx, &valid, &children);
    let applied = Box::pin(apply::apply(ctx, children)).await;
    Ok(Work { valid, plan, applied })
}

/// Counts what is put right although the spec did not change: somebody else changed it.
fn count_drift(ctx: &Context, valid: &Valid, children: &Children<build::Built>) {
    use kube::ResourceExt as _;
    if let (Some(before), Some(wanted)) = (&valid.service_before, &children.service)
        && before.annotations().get(names::ANNOTATION_APPLIED) == wanted.annotations().get(names::ANNOTATION_APPLIED)
    {
        ctx.metrics.put_right("Service");
    }
    for _ in &children.relabel_pods {
        ctx.metrics.put_right("Pod");
    }
}
