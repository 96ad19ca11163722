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

use std::sync::Arc;
use std::time::{Duration, Instant};

use escadre_crds::{LlmDeployment, names};
use futures::StreamExt as _;
use kube::Resource;
use kube::core::{DeserializeGuard, error_boundary::InvalidObject};
use kube::runtime::controller::{Action, Config, Controller};
use kube::runtime::reflector::{self, ObjectRef};
use kube::runtime::watcher;
use tracing::Instrument as _;

use crate::admin::Readiness;
use crate::context::Context;
use crate::turns::Purpose;
use crate::world::cache::place;
use build::Children;
use plan::Plan;
use validate::{Rejected, Valid};
use watches::{children, deployment_of};

/// Changes that come together are worked on together.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// The controller starts a pass for so many objects that ask for one; how many work is decided by the turns. It looks at
/// each of them whenever anything happens: more would cost more than their order is worth.
const CANDIDATES: u16 = 1024;
/// When a pod that was not asked yet should have been asked.
const ASKED: Duration = Duration::from_secs(5);
/// After a conflict: the watch brings the newer object in the meantime.
const CONFLICT: Duration = Duration::from_secs(1);

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

/// How a pass went.
pub enum Outcome {
    /// The spec cannot be followed.
    Rejected(Rejected),
    /// Everything was written.
    Applied {
        /// What was wanted.
        valid: Box<Valid>,
        /// What was planned.
        plan: Plan,
        /// What was written.
        children: Box<Children<apply::Applied>>,
    },
    /// A write failed.
    Failed {
        /// What was wanted.
        valid: Box<Valid>,
        /// What failed.
        error: Box<apply::Error>,
    },
}

impl Outcome {
    fn into_action(self, next_look: Option<Duration>) -> Result<Action, Error> {
        match self {
            Self::Failed { error, .. } => Err(Error::Apply(error)),
            Self::Rejected(_) | Self::Applied { .. } => {
                Ok(next_look.map_or_else(Action::await_change, Action::requeue))
            }
        }
    }
}

/// Drives one `LlmDeployment` one step towards its spec.
async fn reconcile(object: Arc<DeserializeGuard<LlmDeployment>>, ctx: Arc<Context>) -> Result<Action, Error> {
    let object = object.0.as_ref().map_err(|source| Error::Invalid {
        name: source.metadata.name.clone().unwrap_or_default(),
        source: Box::new(source.clone()),
    })?;
    if object.meta().deletion_timestamp.is_some() {
        // Children go by their owner references; making new ones would keep the object from going.
        ctx.world
            .statuses
            .forget(object.meta().uid.as_deref().unwrap_or_default());
        return Ok(Action::await_change());
    }
    ctx.world.wait_until_known().await;
    let newest = ctx.world.statuses.newest(object);
    let object = newest.as_ref().unwrap_or(object);
    let observed = observe::observe(&ctx, object).await.map_err(Error::Observe)?;
    let outcome = match validate::validate(object, &observed) {
        Err(rejected) => Outcome::Rejected(rejected),
        Ok(mut valid) => {
            let plan = plan::next(&valid, &observed, ctx.clock.now());
            let plan = observe::read_record(&ctx, &mut valid, plan)
                .await
                .map_err(Error::Observe)?;
            let children = build::build(&valid, &plan);
            count_drift(&ctx, &valid, &children);
            let valid = Box::new(valid);
            match Box::pin(apply::apply(&ctx, children)).await {
                Ok(children) => Outcome::Applied {
                    valid,
                    plan,
                    children: Box::new(children),
                },
                Err(error) => Outcome::Failed {
                    valid,
                    error: Box::new(error),
                },
            }
        }
    };
    if observed.is_incomplete() {
        // The answer wakes us; until then status would take back what an operator before us said truly.
        return outcome.into_action(Some(ASKED));
    }
    let next_look = status::write(&ctx, object, &observed, &outcome)
        .await
        .map_err(Error::Status)?;
    outcome.into_action(next_look)
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

/// One pass when its turn has come, with its numbers and its log line.
async fn measured(
    object: Arc<DeserializeGuard<LlmDeployment>>,
    ctx: Arc<Context>,
    known: Deployments,
) -> Result<Action, Error> {
    if ctx.gate.opened().await {
        // What we were handed is as old as the wait was long.
        return Ok(Action::requeue(Duration::ZERO));
    }
    let waits = ctx.metrics.waits();
    let turn = ctx.turns.take(place(&*object), purpose(&object, &ctx)).await;
    drop(waits);
    // Both are looked at again, or by the next process, when there is something to do.
    let (Some(_turn), Some(object)) = (turn, known.get(&ObjectRef::from_obj(&*object))) else {
        return Ok(Action::await_change());
    };
    let name = key(&object);
    let span = span(&object);
    let _running = ctx.metrics.runs();
    let started = Instant::now();
    let result = Box::pin(reconcile(object, Arc::clone(&ctx)).instrument(span)).await;
    let outcome = match &result {
        Ok(_) => {
            ctx.backoff.succeeded(&name);
            "ok"
        }
        Err(error) => error.into(),
    };
    ctx.metrics.reconciled(outcome, started.elapsed());
    result
}

/// An edit is a spec of which status says nothing yet.
fn purpose(object: &DeserializeGuard<LlmDeployment>, ctx: &Context) -> Purpose {
    let Ok(object) = &object.0 else {
        return Purpose::Progress;
    };
    let newest = ctx.world.statuses.newest(object);
    if is_edit(newest.as_ref().unwrap_or(object)) {
        Purpose::Edit
    } else {
        Purpose::Progress
    }
}

fn is_edit(object: &LlmDeployment) -> bool {
    let observed = object.status.as_ref().and_then(|status| status.observed_generation);
    observed != object.metadata.generation
}

/// Every log line of a pass says of which object and generation it speaks.
fn span(object: &DeserializeGuard<LlmDeployment>) -> tracing::Span {
    let meta = object.meta();
    tracing::info_span!(
        "reconcile",
        object = meta.name,
        namespace = meta.namespace,
        generation = meta.generation
    )
}

fn key(object: &DeserializeGuard<LlmDeployment>) -> String {
    format!(
        "{}/{}",
        object.meta().namespace.as_deref().unwrap_or_default(),
        object.meta().name.as_deref().unwrap_or_default()
    )
}

/// What to do after a failed pass.
#[expect(clippy::needless_pass_by_value, reason = "the controller's signature")]
fn error_policy(object: Arc<DeserializeGuard<LlmDeployment>>, error: &Error, ctx: Arc<Context>) -> Action {
    let is_conflict = match error {
        Error::Invalid { .. } => return Action::await_change(),
        Error::Observe(_) => false,
        Error::Apply(error) => error.is_conflict(),
        Error::Status(error) => error.is_conflict(),
    };
    if is_conflict {
        return Action::requeue(CONFLICT);
    }
    Action::requeue(ctx.backoff.failed(&key(&object)))
}

/// Watches and reconciles until `shutdown` completes, and then until running passes are done.
pub async fn run(
    ctx: Arc<Context>,
    namespace: Option<&str>,
    readiness: Readiness,
    shutdown: impl Future<Output = ()> + Clone + Send + Sync + 'static,
) {
    let (wake, woken) = tokio::sync::mpsc::unbounded_channel();
    let (reader, writer) = reflector::store();
    let deployments = watches::deployments(&ctx, namespace, writer);
    ctx.metrics.show(reader.clone());
    let seen = async {
        if reader.wait_until_ready().await.is_ok() {
            ctx.world.wait_until_known().await;
            readiness.set();
        }
        std::future::pending::<()>().await;
    };
    let poll = Arc::clone(&ctx.world.poller).run(wake.clone(), shutdown.clone());
    let woken = futures::stream::unfold(woken, async |mut woken| Some((woken.recv().await?, woken)));
    let close = {
        let (ctx, shutdown) = (Arc::clone(&ctx), shutdown.clone());
        async move {
            shutdown.await;
            ctx.turns.close();
        }
    };
    let (known, handed) = (reader.clone(), reader.clone());
    let work = Controller::for_stream(deployments, reader.clone())
        .watches_stream(watches::pods(&ctx, namespace, &wake), |pod| deployment_of(&pod))
        .watches_stream(children(&ctx, namespace, &wake, |world| &world.services), |child| {
            deployment_of(&child)
        })
        .watches_stream(children(&ctx, namespace, &wake, |world| &world.revisions), |child| {
            deployment_of(&child)
        })
        .watches_stream(children(&ctx, namespace, &wake, |world| &world.budgets), |child| {
            deployment_of(&child)
        })
        .watches_stream(children(&ctx, namespace, &wake, |world| &world.snapshots), |child| {
            deployment_of(&child)
        })
        .watches_stream(watches::config_maps(&ctx, namespace), move |config_map| {
            dependencies::users_of_config_map(&known, &config_map)
        })
        .reconcile_on(woken)
        .with_config(Config::default().concurrency(CANDIDATES).debounce(DEBOUNCE))
        .graceful_shutdown_on(shutdown)
        .run(
            move |object, ctx| measured(object, ctx, handed.clone()),
            error_policy,
            Arc::clone(&ctx),
        )
        .for_each(async |result| log(&result));
    tokio::select! {
        () = seen => {}
        () = async { tokio::join!(poll, work, close); } => {}
    }
}

/// The deployments that the watch has told.
type Deployments = reflector::Store<DeserializeGuard<LlmDeployment>>;
type Passed = (ObjectRef<DeserializeGuard<LlmDeployment>>, Action);
type NotPassed = kube::runtime::controller::Error<Error, watcher::Error>;

fn log(result: &Result<Passed, NotPassed>) {
    use kube::runtime::controller::Error as ControllerError;
    match result {
        Ok((object, action)) => tracing::debug!(%object, ?action, "reconciled"),
        Err(ControllerError::ObjectNotFound(object)) => tracing::debug!(%object, "object is gone"),
        Err(ControllerError::ReconcilerFailed(error, object)) => {
            let is_conflict = match error {
                Error::Apply(error) => error.is_conflict(),
                Error::Status(error) => error.is_conflict(),
                Error::Invalid { .. } | Error::Observe(_) => false,
            };
            if is_conflict {
                tracing::debug!(%object, "the object was changed meanwhile");
            } else {
                tracing::warn!(%object, error = error as &dyn std::error::Error, "reconcile failed");
            }
        }
        Err(error) => tracing::warn!(error = error as &dyn std::error::Error, "watch failed"),
    }
}
