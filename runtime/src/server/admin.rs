//! The admin port: probes, the status page, metrics. Never behind authentication, never on the API's port.

use super::listen::{ConnectionLimits, Phase, Server, bind as bind_port};
use super::{InFlight, Probe};
use crate::failure::Failure;
use crate::metrics::{CONTENT_TYPE, Metrics};
use crate::status::{Board, Stage};
use crate::traffic::Traffic;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE as CONTENT_TYPE_HEADER;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// What the pages show.
#[derive(Clone)]
pub struct Admin {
    /// The status page.
    pub board: Board,
    /// Metrics; a process that serves no model has none.
    pub metrics: Option<Arc<Metrics>>,
    /// How requests went; shown as long as a model is served.
    pub traffic: Option<Arc<Traffic>>,
    /// What asks the model a prompt, where one is served.
    pub probe: Option<Probe>,
    /// How far the API's end has come: it is ready as long as it accepts connections.
    pub phase: watch::Receiver<Phase>,
}

/// Binds the admin port.
pub async fn bind(host: IpAddr, port: u16) -> Result<TcpListener, Failure> {
    bind_port(host, port, "--admin-port").await
}

/// The pages.
pub fn router(admin: Admin) -> Router {
    Router::new()
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .route("/startupz", get(started))
        .route("/status", get(status))
        .route("/metrics", get(metrics))
        .route("/probe", post(probe))
        .with_state(admin)
}

/// Serves the pages of a process that serves no model, until the task is aborted.
pub async fn serve_status(listener: TcpListener, board: Board) {
    let (_keep, phase) = watch::channel(Phase::Serving);
    let admin = Admin {
        board,
        metrics: None,
        traffic: None,
        probe: None,
        phase: phase.clone(),
    };
    serve(listener, admin, phase).await;
}

/// Serves the pages until `until` reaches [`Phase::Finishing`].
pub async fn serve(listener: TcpListener, admin: Admin, until: watch::Receiver<Phase>) {
    let server = Server {
        listener,
        router: router(admin),
        limits: ConnectionLimits::default(),
        phase: until,
        in_flight: InFlight::default(),
        metrics: None,
        tls: None,
    };
    server.run().await;
}

/// Alive unless it has failed: a load that makes progress must never be killed.
async fn live(State(admin): State<Admin>) -> Response {
    let stage = admin.board.stage();
    verdict(stage != Stage::Failed, stage)
}

async fn ready(State(admin): State<Admin>) -> Response {
    let stage = admin.board.stage();
    let accepts = *admin.phase.borrow() < Phase::Finishing;
    let is_ready = match stage {
        Stage::Ready | Stage::Draining => accepts && admin.board.snapshot().served_digest.is_some(),
        Stage::Fetching | Stage::Verifying | Stage::Loading | Stage::WarmingUp | Stage::Failed => false,
    };
    verdict(is_ready, stage)
}

async fn started(State(admin): State<Admin>) -> Response {
    let stage = admin.board.stage();
    verdict(matches!(stage, Stage::Ready | Stage::Draining), stage)
}

fn verdict(is_well: bool, stage: Stage) -> Response {
    let code = if is_well {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (code, format!("{stage:?}\n")).into_response()
}

async fn status(State(admin): State<Admin>) -> Response {
    let mut page = admin.board.snapshot();
    if page.served_digest.is_some() {
        page.traffic = admin.traffic.map(|traffic| traffic.summary(Instant::now()));
    }
    Json(page).into_response()
}

async fn metrics(State(admin): State<Admin>) -> Response {
    let Some(metrics) = &admin.metrics else {
        return StatusCode::NOT_FOUND.into_response();
    };
    metrics.take_over(&admin.board.snapshot());
    ([(CONTENT_TYPE_HEADER, CONTENT_TYPE)], metrics.text()).into_response()
}

async fn probe(State(admin): State<Admin>, request: Request) -> Response {
    match &admin.probe {
        Some(probe) => probe.ask(request).await,
        None => StatusCode::NOT_FOUND.into_response(),
    }
}
