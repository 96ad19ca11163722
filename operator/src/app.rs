//! The wiring: client, admin server and controller under one shutdown. Whatever ends unexpectedly ends the process.

use std::sync::Arc;

use anyhow::Context as _;
use futures::FutureExt as _;
use kube::Client;
use kube::runtime::events::{Recorder, Reporter};
use tokio::net::TcpListener;

use crate::admin::{self, Readiness};
use crate::args::Args;
use crate::context::{Clock, Context, Defaults, LastAnswers};
use crate::controllers::llm_deployment::{self, dependencies::PodMonitorKind};
use crate::metrics::Metrics;
use crate::retry::Backoff;
use crate::runtime_status::StatusClient;

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
    let metrics = Arc::new(Metrics::default());
    let readiness = Readiness::default();
    let reporter = Reporter {
        controller: "escadre.dev/operator".to_owned(),
        instance: None,
    };
    let context = Arc::new(Context {
        recorder: Recorder::new(client.clone(), reporter),
        client,
        metrics: Arc::clone(&metrics),
        clock: Clock,
        defaults: Defaults {
            runtime_image: args.runtime_image.clone(),
            pull_policy: args.runtime_image_pull_policy,
        },
        status_client: StatusClient::new()?,
        last_answers: LastAnswers::default(),
        backoff: Backoff::default(),
        pod_monitor_kind: PodMonitorKind::default(),
    });
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        runtime_image = args.runtime_image,
        namespace = args.namespace.as_deref().unwrap_or("all"),
        "operator starts"
    );

    let shutdown = shared(shutdown);
    let mut admin = tokio::spawn(admin::serve(listener, metrics, readiness.clone(), shutdown.clone()));
    let namespace = args.namespace.as_deref();
    let controller = llm_deployment::run(context, namespace, args.concurrency, readiness, shutdown.clone());
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
    tracing::info!("operator ends");
    Ok(())
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
