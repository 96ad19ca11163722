//! The wiring: client, admin server and controller under one shutdown. Whatever ends unexpectedly ends the process.

use std::sync::Arc;

use anyhow::Context as _;
use futures::FutureExt as _;
use kube::Client;
use kube::runtime::events::{Recorder, Reporter};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::admin::{self, Readiness};
use crate::args::Args;
use crate::audit::Audit;
use crate::context::{Clock, Context, Defaults};
use crate::controllers::llm_deployment::{self, dependencies::PodMonitorKind};
use crate::kube_ext::gated::gated;
use crate::leader::{Election, Gate, LeaseName, Timing};
use crate::metrics::Metrics;
use crate::queue::Queue;
use crate::retry::Backoff;
use crate::world::World;
use crate::world::poller::Poller;

/// Runs the operator until `shutdown` completes, with the cluster that the environment names.
///
/// # Errors
/// When the cluster cannot be found, a port cannot be bound, or a part ends unexpectedly.
pub async fn run(args: Args, shutdown: impl Future<Output = ()> + Send + 'static) -> anyhow::Result<()> {
    choose_cryptography();
    let client = Client::try_default()
        .await
        .context("cannot find the cluster: no kubeconfig and no service account")?;
    run_with(client, args, shutdown).await
}

/// Runs the operator with a client that is already there.
///
/// # Errors
/// As [`run`].
pub async fn run_with(
    client: Client,
    args: Args,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    choose_cryptography();
    let listener = TcpListener::bind(args.admin_address).await.with_context(|| {
        format!(
            "cannot listen on {}; choose another --admin-address",
            args.admin_address
        )
    })?;
    let timing = args.election.timing().map_err(anyhow::Error::msg)?;
    let metrics = Arc::new(Metrics::default());
    let readiness = Readiness::default();
    let gate = if args.election.is_on {
        Gate::shut()
    } else {
        Gate::open()
    };
    let context = context(&client, &args, &gate, &metrics);
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        runtime_image = args.runtime_image,
        namespace = args.namespace.as_deref().unwrap_or("all"),
        leader_election = args.election.is_on,
        "operator starts"
    );

    let shutdown = shared(shutdown);
    let mut admin = tokio::spawn(admin::serve(
        listener,
        Arc::clone(&metrics),
        readiness.clone(),
        shutdown.clone(),
    ));
    // The lease is given back when the controller is done, not before.
    let (done, is_done) = oneshot::channel::<()>();
    let election = elect(&client, &args, timing, &gate, &metrics, is_done);
    let controller = control(context, &args, gate, readiness, shutdown.clone());
    let work = async {
        tokio::pin!(controller);
        tokio::select! {
            () = &mut controller => {}
            ended = &mut admin => {
                ended.context("the admin server broke")?.context("the admin server broke")?;
                anyhow::ensure!(shutdown.peek().is_some(), "the admin server ended without being told to");
                controller.await;
            }
        }
        anyhow::ensure!(shutdown.peek().is_some(), "the controller ended without being told to");
        // Nobody listens when there is no election.
        let _unheard = done.send(());
        Ok(())
    };
    tokio::try_join!(election, work)?;
    tracing::info!("operator ends");
    Ok(())
}

fn context(client: &Client, args: &Args, gate: &Gate, metrics: &Arc<Metrics>) -> Arc<Context> {
    let client = gated(client.clone(), gate.clone(), Arc::clone(metrics));
    let reporter = Reporter {
        controller: "escadre.dev/operator".to_owned(),
        instance: None,
    };
    Arc::new(Context {
        recorder: Recorder::new(client.clone(), reporter),
        audit: Audit::to_stdout(),
        client,
        gate: gate.clone(),
        metrics: Arc::clone(metrics),
        clock: Clock,
        defaults: Defaults {
            runtime_image: args.runtime_image.clone(),
            pull_policy: args.runtime_image_pull_policy,
        },
        world: World::new(Poller::new(Arc::clone(metrics))),
        queue: Queue::new(metrics.queue_depth()),
        backoff: Backoff::default(),
        pod_monitor_kind: PodMonitorKind::default(),
    })
}

/// Takes part in the election until `done`. Its error ends everything at once.
fn elect(
    client: &Client,
    args: &Args,
    timing: Timing,
    gate: &Gate,
    metrics: &Arc<Metrics>,
    done: oneshot::Receiver<()>,
) -> impl Future<Output = anyhow::Result<()>> + use<> {
    let election = args.election.is_on.then(|| {
        let namespace = args.election.lease_namespace.as_deref();
        let name = LeaseName {
            namespace: namespace.unwrap_or(client.default_namespace()).to_owned(),
            name: args.election.lease_name.clone(),
        };
        Election::new(client.clone(), name, timing, gate.clone(), Arc::clone(metrics))
    });
    if election.is_none() {
        metrics.leads(true);
    }
    async {
        let Some(election) = election else { return Ok(()) };
        election.run(done.map(drop)).await.context("leadership is lost")
    }
}

/// Runs the controller. A leader that is told to end finishes what it has begun; a follower has begun nothing.
async fn control(context: Arc<Context>, args: &Args, gate: Gate, readiness: Readiness, shutdown: Shutdown) {
    let scope = llm_deployment::Scope {
        namespace: args.namespace.clone(),
        ignores_policies: args.ignore_policies,
        concurrency: args.concurrency,
    };
    let controller = llm_deployment::run(context, &scope, readiness, shutdown.clone());
    let waits = async {
        shutdown.await;
        if gate.is_open() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = controller => {}
        () = waits => {}
    }
}

/// Both HTTP clients use rustls: one provider of cryptography for the process. An embedding program may have chosen
/// one already, which is as good.
fn choose_cryptography() {
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        tracing::debug!("a provider of cryptography was chosen already");
    }
}

type Shutdown = futures::future::Shared<futures::future::BoxFuture<'static, ()>>;

/// One shutdown that several parts can wait for.
fn shared(shutdown: impl Future<Output = ()> + Send + 'static) -> Shutdown {
    shutdown.boxed().shared()
}
