//! `escadre-runtime serve`: bind, load and verify, warm up, answer, and end without losing a request.
//!
//! Both ports are bound before anything is loaded, so that a port in use is known at once and probes and the status
//! page answer during a long load. The signal handler is there before both.

mod drain;
mod guard;
mod load;
mod overlay;

use crate::args::ServeArgs;
use crate::cgroup;
use crate::failure::{Failure, chain};
use crate::fetch::{model_path, resolved_revision};
use crate::metrics::Metrics;
use crate::server::admin::{self, Admin};
use crate::server::listen::{self, ConnectionLimits, Phase, Server};
use crate::server::signals::Shutdown;
use crate::server::{App, InFlight, Probe, router, signals};
use crate::status::{Board, Stage};
use crate::threads;
use crate::trace::Tracer;
use crate::traffic::Traffic;
use drain::Drain;
use escadre_verify::Digest;
use load::Plan;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::info;

/// How long a cluster may take to take a pod's address out of use.
const CLUSTER_ENDPOINT_DELAY: Duration = Duration::from_secs(5);

/// Runs the subcommand until the process is asked to end, or fails.
pub async fn run(args: ServeArgs) -> Result<(), Failure> {
    let shutdown = signals::install()?;
    let tracer = Tracer::start(&args.tracing, &args.identity)
        .map_err(|error| Failure::new("TracingUnusable", format!("--otlp-endpoint: {}", chain(&error))))?;
    let result = serve(&args, shutdown, tracer.clone()).await;
    // Where it has not been done before.
    end_traces(tracer.as_ref()).await;
    result
}

/// Sends the last spans.
async fn end_traces(tracer: Option<&Tracer>) {
    if let Some(tracer) = tracer {
        tracer.end().await;
    }
}

async fn serve(args: &ServeArgs, mut shutdown: Shutdown, tracer: Option<Tracer>) -> Result<(), Failure> {
    let place = Place::of(args)?;
    let servers = Servers::start(args, &place, tracer.clone()).await?;
    let board = servers.board.clone();
    let mut engine = load::start(servers.plan.clone(), board.clone(), Arc::clone(&servers.app.metrics))?;
    let served = tokio::select! {
        served = engine.served() => served,
        () = shutdown.requested() => {
            info!("asked to end while loading");
            return Ok(());
        }
    };
    let served = served.inspect_err(|failure| board.fail(failure))?;
    let way_in = served.engine.clone();
    let (name, digest) = (served.name.clone(), served.digest);
    servers.app.begin_serving(served);
    board.update(|status| {
        status.served_digest = Some(digest);
        status.stage = Stage::Ready;
        status.load = None;
    });
    info!(model = name, %digest, "ready");
    tokio::select! {
        () = shutdown.requested() => {}
        failure = engine.ended() => {
            board.fail(&failure);
            return Err(failure);
        }
    }
    board.update(|status| status.stage = Stage::Draining);
    let drain = Drain {
        phase: servers.phase,
        in_flight: servers.in_flight,
        endpoint_delay: args.endpoint_delay.unwrap_or(place.endpoint_delay),
        timeout: args.drain_timeout,
    };
    drain.run(&mut shutdown, servers.api).await;
    way_in.drain();
    let _ = tokio::time::timeout(drain::LAST_WORDS, engine.ended()).await;
    servers.pages_phase.send_replace(Phase::Cut);
    let pages = tokio::time::timeout(drain::LAST_WORDS, servers.pages);
    let _ = tokio::join!(pages, end_traces(tracer.as_ref()));
    info!("ended");
    Ok(())
}

/// Both ports, open and answering, while the model is not there yet.
struct Servers {
    board: Board,
    app: Arc<App>,
    plan: Plan,
    phase: watch::Sender<Phase>,
    in_flight: InFlight,
    api: JoinHandle<()>,
    pages_phase: watch::Sender<Phase>,
    pages: JoinHandle<()>,
}

impl Servers {
    async fn start(args: &ServeArgs, place: &Place, tracer: Option<Tracer>) -> Result<Self, Failure> {
        let access = guard::admit(&args.access)?;
        let tls = args.access.tls.as_deref().map(guard::encrypt).transpose()?;
        let api_listener = listen::bind(place.host, args.port, "--port").await?;
        let pages_listener = admin::bind(place.host, args.admin_port).await?;
        let plan = plan(args, place);
        info!(
            host = %place.host,
            port = bound_port(&api_listener),
            admin_port = bound_port(&pages_listener),
            memory_limit = plan.memory_limit,
            "ports are open, loading the model"
        );
        let board = Board::new(args.identity.clone(), Stage::Verifying);
        board.update(|status| {
            status.model.served_name = Some(plan.served_name.clone());
            status.model.digest = place.digest;
            status.model.resolved_revision.clone_from(&place.resolved_revision);
            status.memory.limit_bytes = plan.memory_limit;
        });
        let metrics = Arc::new(Metrics::new(&plan.served_name));
        let preparers = threads::count(args.threads).get().div_ceil(2);
        let traffic = Arc::new(Traffic::default());
        let app = App::new(
            Arc::clone(&metrics),
            Arc::clone(&traffic),
            access,
            args.max_body_bytes,
            preparers,
        );
        let app = Arc::new(app.traced(tracer));
        let (phase, in_flight) = (watch::Sender::new(Phase::Serving), InFlight::default());
        let shown = Admin {
            board: board.clone(),
            metrics: Some(Arc::clone(&metrics)),
            traffic: Some(traffic),
            probe: Some(Probe::new(Arc::clone(&app))),
            phase: phase.subscribe(),
        };
        let server = Server {
            listener: api_listener,
            router: router(Arc::clone(&app)),
            limits: ConnectionLimits {
                connections: args.max_connections,
                ..ConnectionLimits::default()
            },
            phase: phase.subscribe(),
            in_flight: in_flight.clone(),
            metrics: Some(metrics),
            tls,
        };
        let pages_phase = watch::Sender::new(Phase::Serving);
        Ok(Self {
            pages: tokio::spawn(admin::serve(pages_listener, shown, pages_phase.subscribe())),
            api: tokio::spawn(server.run()),
            board,
            app,
            plan,
            phase,
            in_flight,
            pages_phase,
        })
    }
}

/// What is to be loaded, within what the process may use.
fn plan(args: &ServeArgs, place: &Place) -> Plan {
    let container = cgroup::read().memory.into_iter().chain(cgroup::machine_memory()).min();
    Plan {
        path: place.model.clone(),
        digest: place.digest,
        served_name: args.served_name.clone().unwrap_or_else(|| name_of(&place.model)),
        aliases: args.aliases.clone(),
        max_context: args.max_context,
        concurrency: args.max_concurrency.get(),
        queue_wait: args.max_queue_wait,
        kv_type: args.kv_cache_dtype,
        quantize: args.quantize,
        device: args.device,
        inter_token_latency: args.inter_token_latency,
        format: args.format.wanted(),
        pooling: args.pooling,
        overlay: args.overlay.clone(),
        threads: args.threads,
        memory_limit: args.memory_limit.or(container),
        requirements: Arc::new(args.requirements.clone()),
    }
}

/// The port that the system chose when it was asked for any.
fn bound_port(listener: &TcpListener) -> u16 {
    listener.local_addr().map_or(0, |address| address.port())
}

/// What follows from whether a store or a file is served.
struct Place {
    model: PathBuf,
    digest: Option<Digest>,
    resolved_revision: Option<String>,
    host: IpAddr,
    endpoint_delay: Duration,
}

impl Place {
    fn of(args: &ServeArgs) -> Result<Self, Failure> {
        match (&args.store, &args.model, args.digest) {
            (Some(store), _, Some(digest)) => Ok(Self {
                model: model_path(store, &digest),
                digest: Some(digest),
                resolved_revision: resolved_revision(store, &digest),
                host: args.host.unwrap_or(Ipv4Addr::UNSPECIFIED.into()),
                endpoint_delay: CLUSTER_ENDPOINT_DELAY,
            }),
            (_, Some(model), digest) => Ok(Self {
                model: model.clone(),
                digest,
                resolved_revision: None,
                host: args.host.unwrap_or(Ipv4Addr::LOCALHOST.into()),
                endpoint_delay: Duration::ZERO,
            }),
            _ => Err(Failure::new(
                "InvalidArguments",
                "name --model, or --store and --digest",
            )),
        }
    }
}

/// The name of a model that was given none: that of its file or folder.
fn name_of(model: &Path) -> String {
    let name = if model.is_dir() {
        model.file_name()
    } else {
        model.file_stem()
    };
    name.map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
}
