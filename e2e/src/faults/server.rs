//! What the proxy does with one request.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, header, request::Parts};
use axum::response::{IntoResponse as _, Response};
use axum::serve::ListenerExt as _;
use futures::{Stream, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::{Book, Call, Fault, Gate, Shared, Side, Verb, Written, certificate_file};
use crate::cluster::{Cluster, NODE_ADDRESS};

/// No object of Kubernetes is larger.
const BODY_LIMIT: usize = 8 << 20;
/// Time for the first half of a cut answer to leave: an error throws away what is still in the server's buffer.
const HALF_WAY: Duration = Duration::from_millis(20);
/// Headers that speak of one connection, and those that the next hop makes anew.
const OF_ONE_HOP: [HeaderName; 6] = [
    header::HOST,
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::ACCEPT_ENCODING,
    header::TE,
];

/// The API server, as two kinds of callers reach it.
#[derive(Debug, Clone)]
pub(super) struct Upstream {
    administrator: reqwest::Client,
    /// Shows no certificate: the `Authorization` header says who calls.
    bearer: reqwest::Client,
    url: String,
}

impl Upstream {
    pub(super) fn of(cluster: &Cluster) -> Result<Self> {
        // Fails only when another part of the program was first, which is as good.
        let _installed_before = rustls::crypto::ring::default_provider().install_default();
        let mut pem = certificate_file(cluster, "admin.crt")?;
        pem.extend(certificate_file(cluster, "admin.key")?);
        let identity = reqwest::Identity::from_pem(&pem).context("the administrator's certificate is wrong")?;
        let authority = reqwest::Certificate::from_pem(&certificate_file(cluster, "ca.crt")?)
            .context("the cluster's authority is wrong")?;
        let builder = || {
            reqwest::Client::builder()
                .no_proxy()
                .redirect(reqwest::redirect::Policy::none())
                .connect_timeout(Duration::from_secs(5))
                .tls_certs_only([authority.clone()])
        };
        Ok(Self {
            administrator: builder()
                .identity(identity)
                .build()
                .context("could not make an HTTP client")?,
            bearer: builder().build().context("could not make an HTTP client")?,
            url: format!("https://{NODE_ADDRESS}:{}", crate::cluster::API_PORT),
        })
    }

    async fn send(&self, parts: &Parts, body: Bytes) -> Result<reqwest::Response, reqwest::Error> {
        let client = if parts.headers.contains_key(header::AUTHORIZATION) {
            &self.bearer
        } else {
            &self.administrator
        };
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        client
            .request(parts.method.clone(), format!("{}{path}", self.url))
            .headers(end_to_end(&parts.headers))
            .body(body)
            .send()
            .await
    }
}

fn end_to_end(headers: &HeaderMap) -> HeaderMap {
    let mut headers = headers.clone();
    for name in &OF_ONE_HOP {
        headers.remove(name);
    }
    headers
}

#[derive(Debug, Clone)]
struct Proxy {
    shared: Arc<Shared>,
    upstream: Upstream,
}

pub(super) fn router(shared: Arc<Shared>, upstream: Upstream) -> Router {
    Router::new().fallback(handle).with_state(Proxy { shared, upstream })
}

pub(super) async fn serve(listener: TcpListener, router: Router) -> io::Result<()> {
    let listener = listener.tap_io(|stream| {
        let _latency_only = stream.set_nodelay(true);
    });
    axum::serve(listener, router).await
}

async fn handle(State(proxy): State<Proxy>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let call = Call::read(&parts.method, parts.uri.path(), parts.uri.query());
    let body = match to_bytes(body, BODY_LIMIT).await {
        Ok(body) => body,
        Err(error) => return failure(StatusCode::BAD_REQUEST, "BadRequest", &error.to_string()),
    };
    if !proxy.shared.passes().await {
        return lost();
    }
    let stop = proxy.shared.book().stop_here(&call);
    if stop == Some(Side::Before) {
        return proxy.shared.stop().await;
    }
    let fault = proxy.shared.book().judge(&call);
    match fault {
        Some(Fault::Delay(time)) => tokio::time::sleep(time).await,
        Some(Fault::Conflict) => {
            return failure(
                StatusCode::CONFLICT,
                "Conflict",
                "the fault proxy answers with a conflict",
            );
        }
        Some(Fault::TooManyRequests(seconds)) => return too_many(seconds),
        Some(Fault::ServerError) => {
            return failure(
                StatusCode::INTERNAL_SERVER_ERROR,
                "InternalError",
                "the fault proxy fails",
            );
        }
        Some(Fault::GoneAtOnce) => return failure(StatusCode::GONE, "Expired", "too old resource version"),
        Some(Fault::GoneAsEvent) => return gone_as_event(),
        Some(Fault::CutAnswer | Fault::EndWatch(_)) | None => {}
    }
    let object = call.name.clone().or_else(|| created_name(&call, &body));
    proxy.shared.book().count(&call);
    let answer = match proxy.upstream.send(&parts, body).await {
        Ok(answer) => answer,
        Err(error) => return failure(StatusCode::BAD_GATEWAY, "NoAnswer", &error.without_url().to_string()),
    };
    proxy.shared.book().note(&call, object, answer.status().as_u16());
    if stop == Some(Side::After) {
        return proxy.shared.stop().await;
    }
    // What was executed when everything froze must not tell its result.
    if !proxy.shared.passes().await {
        return lost();
    }
    pass_on(&proxy.shared, &call, answer, fault).await
}

impl Shared {
    /// Waits while frozen. `false`: the request was stopped, and is lost.
    async fn passes(&self) -> bool {
        let mut gate = self.gate.subscribe();
        if *gate.borrow() == Gate::Stopped {
            let _is_open = gate.wait_for(|gate| *gate != Gate::Stopped).await;
            return false;
        }
        gate.wait_for(|gate| *gate != Gate::Frozen)
            .await
            .is_ok_and(|gate| *gate == Gate::Open)
    }

    /// The world stops here; comes back when it goes on.
    async fn stop(&self) -> Response {
        self.gate.send_replace(Gate::Stopped);
        self.passes().await;
        lost()
    }
}

impl Book {
    fn stop_here(&mut self, call: &Call) -> Option<Side> {
        if !call.is_counted_write() {
            return None;
        }
        let (left, side) = self.stop?;
        self.stop = left.checked_sub(1).map(|left| (left, side));
        (left == 0).then_some(side)
    }

    fn judge(&mut self, call: &Call) -> Option<Fault> {
        let fault = self.rules.judge(call);
        self.faults += u64::from(fault.is_some());
        fault
    }

    fn count(&mut self, call: &Call) {
        *self.counts.entry((call.verb, call.resource.clone())).or_default() += 1;
    }

    fn note(&mut self, call: &Call, object: Option<String>, code: u16) {
        if call.is_counted_write() {
            self.written.push(Written {
                call: call.clone(),
                object,
                code,
                at: Instant::now(),
            });
        }
    }
}

/// The name of the object that a creation carries.
fn created_name(call: &Call, body: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Named {
        metadata: Name,
    }
    #[derive(serde::Deserialize)]
    struct Name {
        name: Option<String>,
    }
    if call.verb != Verb::Create {
        return None;
    }
    serde_json::from_slice::<Named>(body).ok()?.metadata.name
}

async fn pass_on(shared: &Arc<Shared>, call: &Call, answer: reqwest::Response, fault: Option<Fault>) -> Response {
    let status = answer.status();
    let mut headers = end_to_end(answer.headers());
    let body = if call.verb == Verb::Watch && status == StatusCode::OK {
        headers.remove(header::CONTENT_LENGTH);
        let end = match fault {
            Some(Fault::EndWatch(time)) => Some(tokio::time::Instant::now() + time),
            _ => None,
        };
        Body::from_stream(watch_stream(shared, answer, end))
    } else if fault == Some(Fault::CutAnswer) {
        match answer.bytes().await {
            Ok(bytes) => {
                headers.insert(header::CONTENT_LENGTH, bytes.len().max(2).into());
                cut_after(bytes.slice(..bytes.len() / 2))
            }
            Err(_) => cut_after(Bytes::new()),
        }
    } else {
        Body::from_stream(answer.bytes_stream())
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// Chunk by chunk, until the API server ends it, all watches are dropped, or its time has come.
fn watch_stream(
    shared: &Arc<Shared>,
    answer: reqwest::Response,
    end: Option<tokio::time::Instant>,
) -> impl Stream<Item = io::Result<Bytes>> + use<> {
    struct State<S> {
        chunks: S,
        drops: watch::Receiver<u64>,
        holds: watch::Receiver<bool>,
        end: Option<tokio::time::Instant>,
        is_over: bool,
    }
    let mut drops = shared.drops.subscribe();
    drops.mark_unchanged();
    let state = State {
        chunks: Box::pin(answer.bytes_stream()),
        drops,
        holds: shared.holds.subscribe(),
        end,
        is_over: false,
    };
    futures::stream::unfold(state, async |mut state| {
        if state.is_over {
            return None;
        }
        let at_end = async {
            match state.end {
                Some(end) => tokio::time::sleep_until(end).await,
                None => std::future::pending().await,
            }
        };
        let next = async {
            let chunk = state.chunks.next().await;
            let _released = state.holds.wait_for(|holds| !holds).await;
            chunk
        };
        let item = tokio::select! {
            chunk = next => chunk?.map_err(io::Error::other),
            () = at_end => return None,
            _ = state.drops.changed() => Err(io::Error::other("the fault proxy dropped the watch")),
        };
        state.is_over = item.is_err();
        Some((item, state))
    })
}

/// These bytes, and then the connection breaks.
fn cut_after(bytes: Bytes) -> Body {
    let first = futures::stream::once(async { Ok(bytes) });
    let cut = futures::stream::once(async {
        tokio::time::sleep(HALF_WAY).await;
        Err(io::Error::other("the fault proxy cut the answer"))
    });
    Body::from_stream(first.chain(cut))
}

fn lost() -> Response {
    cut_after(Bytes::new()).into_response()
}

fn status_object(code: StatusCode, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code.as_u16(),
    })
}

fn failure(code: StatusCode, reason: &str, message: &str) -> Response {
    (code, axum::Json(status_object(code, reason, message))).into_response()
}

fn too_many(seconds: u32) -> Response {
    let code = StatusCode::TOO_MANY_REQUESTS;
    let object = status_object(code, "TooManyRequests", "the fault proxy asks for patience");
    let retry = [(header::RETRY_AFTER, seconds.to_string())];
    (code, retry, axum::Json(object)).into_response()
}

fn gone_as_event() -> Response {
    let object = status_object(StatusCode::GONE, "Expired", "too old resource version");
    let event = format!("{}\n", json!({"type": "ERROR", "object": object}));
    ([(header::CONTENT_TYPE, "application/json")], event).into_response()
}
