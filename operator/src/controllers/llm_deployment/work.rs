//! The workers: each takes a deployment out of the queue, makes one pass over it and says when to look again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use escadre_crds::LlmDeployment;
use kube::Resource as _;
use kube::core::DeserializeGuard;
use kube::runtime::reflector::{self, ObjectRef};
use tokio::task::{JoinError, JoinSet};
use tracing::Instrument as _;

use super::watches::{self, Deployments};
use super::{Error, reconcile};
use crate::admin::Readiness;
use crate::context::Context;
use crate::queue::Pass;
use crate::world::cache::Key;

/// After a conflict: the watch brings the newer object in the meantime.
const CONFLICT: Duration = Duration::from_secs(1);

/// What is worked on, and how much of it at once.
#[derive(Clone, Debug)]
pub struct Scope {
    /// The only namespace. `None`: all.
    pub namespace: Option<String>,
    /// Whether policies are not looked at.
    pub ignores_policies: bool,
    /// How many deployments at once.
    pub concurrency: u16,
}

/// Watches and reconciles until `shutdown` completes, and then until running passes are done.
pub async fn run(ctx: Arc<Context>, scope: &Scope, readiness: Readiness, shutdown: impl Future<Output = ()>) {
    let (known, writer) = reflector::store();
    ctx.metrics.show(known.clone());
    let mut beside = watches::start(&ctx, scope, writer);
    beside.spawn({
        let ctx = Arc::clone(&ctx);
        async move { ctx.world.poller.run(&ctx.queue).await }
    });
    beside.spawn({
        let ctx = Arc::clone(&ctx);
        async move { ctx.queue.keep_time().await }
    });
    let mut shutdown = std::pin::pin!(shutdown);
    tokio::select! {
        () = seen(&ctx, &known) => readiness.set(),
        Some(ended) = beside.join_next() => return pass_on_panic(ended),
        () = &mut shutdown => return,
    }
    let mut workers = JoinSet::new();
    for _ in 0..scope.concurrency {
        workers.spawn(work(Arc::clone(&ctx), known.clone()));
    }
    let mut ends = false;
    loop {
        tokio::select! {
            ended = workers.join_next() => match ended {
                Some(ended) => pass_on_panic(ended),
                None => return,
            },
            Some(ended) = beside.join_next() => return pass_on_panic(ended),
            () = &mut shutdown, if !ends => {
                ends = true;
                ctx.queue.close();
            }
        }
    }
}

/// Waits until every watch has told the whole of its kind once.
async fn seen(ctx: &Context, known: &Deployments) {
    if known.wait_until_ready().await.is_err() {
        // The watch that writes has ended, which ends everything.
        std::future::pending::<()>().await;
    }
    ctx.world.wait_until_known().await;
}

fn pass_on_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        std::panic::resume_unwind(error.into_panic());
    }
}

/// Makes passes until there are none any more.
async fn work(ctx: Arc<Context>, known: Deployments) {
    loop {
        ctx.gate.opened().await;
        let Some(mut pass) = ctx.queue.next().await else { return };
        // Not before its turn: what is looked at is as new as can be.
        if let Some(object) = known.get(&reference(pass.key())) {
            measured(&ctx, &object, &mut pass).await;
        } else {
            ctx.world.statuses.forget(pass.key());
            ctx.world.furthest.forget(pass.key());
            ctx.backoff.forget(pass.key());
        }
    }
}

fn reference((namespace, name): &Key) -> ObjectRef<DeserializeGuard<LlmDeployment>> {
    ObjectRef::new(name).within(namespace)
}

/// One pass, with its numbers and its log line.
async fn measured(ctx: &Context, object: &DeserializeGuard<LlmDeployment>, pass: &mut Pass) {
    let _running = ctx.metrics.runs();
    let span = span(object);
    let started = Instant::now();
    let result = Box::pin(reconcile(object, ctx)).instrument(span.clone()).await;
    let outcome = match &result {
        Ok(_) => "ok",
        Err(error) => error.into(),
    };
    ctx.metrics.reconciled(outcome, started.elapsed());
    span.in_scope(|| go_on(ctx, result, pass));
}

/// Says when to look again.
fn go_on(ctx: &Context, result: Result<Option<Duration>, Error>, pass: &mut Pass) {
    match result {
        Ok(next_look) => {
            tracing::debug!(?next_look, "reconciled");
            ctx.backoff.forget(pass.key());
            if let Some(next_look) = next_look {
                pass.look_again(next_look);
            }
        }
        Err(error) if error.is_conflict() => {
            tracing::debug!("the object was changed meanwhile");
            pass.retry(CONFLICT);
        }
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "reconcile failed");
            // An object of a wrong form is as wrong the next time: only an edit helps.
            if !matches!(error, Error::Invalid { .. }) {
                pass.retry(ctx.backoff.failed(pass.key()));
            }
        }
    }
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
