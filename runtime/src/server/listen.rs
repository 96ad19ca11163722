//! Accepts connections and ends them in the order that loses nobody's request.
//!
//! axum's own graceful shutdown stops accepting and closes idle connections at once. While endpoints are updated, a
//! terminating pod still gets connections, and idle ones are about to be used. So ending has [`Phase`]s.

use crate::failure::Failure;
use crate::metrics::Metrics;
use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::http::header::CONNECTION;
use axum::http::{HeaderValue, Version};
use axum::middleware::Next;
use axum::response::Response;
use futures::FutureExt;
use hyper::body::{Frame, SizeHint};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tracing::{debug, warn};

/// How a server ends, in order. Each phase keeps what the ones before it decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Everything is normal.
    Serving,
    /// Everything is accepted and answered, and every answer asks the client not to use the connection again.
    LastCall,
    /// No new connection is accepted; those that are open may still be used.
    Finishing,
    /// Idle connections are closed, others after their answer.
    Closing,
    /// Whatever is still open is cut.
    Cut,
}

/// What bounds a server's connections.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionLimits {
    /// Connections at the same time; further ones wait in the system's queue.
    pub connections: NonZeroUsize,
    /// How long the head of a request may take, and how long a connection may be idle. Longer than clients and load
    /// balancers keep idle connections, so that they close first and never find a closed one.
    pub header_timeout: Duration,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            connections: NonZeroUsize::new(1024).expect("1024 is not 0"),
            header_timeout: Duration::from_secs(75),
        }
    }
}

/// Counts answers that are not completely handed over.
#[derive(Debug, Clone)]
pub struct InFlight(Arc<watch::Sender<usize>>);

impl Default for InFlight {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(0)))
    }
}

impl InFlight {
    /// Returns when there are none.
    pub async fn none(&self) {
        // The sender is held by self, so the channel is open.
        let _ = self.0.subscribe().wait_for(|count| *count == 0).await;
    }

    fn enter(&self) -> InFlightGuard {
        self.0.send_modify(|count| *count += 1);
        InFlightGuard(self.clone())
    }
}

/// One answer; dropped with its body.
struct InFlightGuard(InFlight);

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| *count -= 1);
    }
}

/// Binds a port.
///
/// # Errors
/// `PortInUse`, naming the flag that chooses another.
pub async fn bind(host: IpAddr, port: u16, flag: &'static str) -> Result<TcpListener, Failure> {
    let address = SocketAddr::new(host, port);
    TcpListener::bind(address).await.map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => Failure::new(
            "PortInUse",
            format!("port {port} on {host} is in use by another process; choose another with {flag}"),
        ),
        _ => Failure::new(
            "PortUnavailable",
            format!("could not listen on {address}: {error}; choose another with {flag}"),
        ),
    })
}

/// A server for one port.
pub struct Server {
    /// The bound port.
    pub listener: TcpListener,
    /// What answers.
    pub router: Router,
    /// What bounds it.
    pub limits: ConnectionLimits,
    /// How far its end has come.
    pub phase: watch::Receiver<Phase>,
    /// Counts its answers.
    pub in_flight: InFlight,
    /// Where open connections are counted.
    pub metrics: Option<Arc<Metrics>>,
}

impl Server {
    /// Serves until the last connection has ended after [`Phase::Finishing`].
    pub async fn run(self) {
        let Self {
            listener,
            router,
            limits,
            mut phase,
            in_flight,
            metrics,
        } = self;
        let layer_state = (phase.clone(), in_flight);
        let router = router.layer(axum::middleware::from_fn_with_state(layer_state, track));
        let permits = Arc::new(Semaphore::new(limits.connections.get()));
        let mut connections = JoinSet::new();
        let ending = phase.clone();
        let mut start = |stream: TcpStream, permit: OwnedSemaphorePermit| {
            let connection = serve_connection(stream, router.clone(), limits.header_timeout, ending.clone());
            let metrics = metrics.clone();
            connections.spawn(async move {
                let _permit = permit;
                if let Some(metrics) = &metrics {
                    metrics.connections.inc();
                }
                connection.await;
                if let Some(metrics) = &metrics {
                    metrics.connections.dec();
                }
            });
            while connections.try_join_next().is_some() {}
        };
        loop {
            let accepted = tokio::select! {
                biased;
                () = reaches(&mut phase, Phase::Finishing) => break,
                accepted = accept(&listener, &permits) => accepted,
            };
            start(accepted.0, accepted.1);
        }
        // Those who connected before now must not see a reset.
        while let Some((stream, permit)) = accept(&listener, &permits).now_or_never() {
            start(stream, permit);
        }
        drop(listener);
        while connections.join_next().await.is_some() {}
    }
}

/// The next connection, when there may be one more.
async fn accept(listener: &TcpListener, permits: &Arc<Semaphore>) -> (TcpStream, OwnedSemaphorePermit) {
    loop {
        let permit = Arc::clone(permits).acquire_owned().await;
        let permit = permit.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, _)) => return (stream, permit),
            Err(error) => {
                // A client that went away, or too many open files: neither may end the server or spin.
                warn!(
                    error = &error as &dyn std::error::Error,
                    "could not accept a connection"
                );
                drop(permit);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_connection(stream: TcpStream, router: Router, timeout: Duration, mut phase: watch::Receiver<Phase>) {
    // Tokens are small and must leave at once.
    let _ = stream.set_nodelay(true);
    let mut closing = phase.clone();
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(timeout)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = reaches(&mut closing, Phase::Closing) => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection => ended,
                () = reaches(&mut phase, Phase::Cut) => Ok(()),
            }
        }
    };
    if let Err(error) = ended {
        debug!(error = &error as &dyn std::error::Error, "connection ended");
    }
}

/// Returns when the server's end has come this far, or its owner is gone.
async fn reaches(phase: &mut watch::Receiver<Phase>, far: Phase) {
    let _ = phase.wait_for(|phase| *phase >= far).await;
}

/// Counts the answer until its body is handed over, and asks for the connection's end when the server is ending.
async fn track(
    State((phase, in_flight)): State<(watch::Receiver<Phase>, InFlight)>,
    request: Request,
    next: Next,
) -> Response {
    let guard = in_flight.enter();
    let version = request.version();
    let mut response = next.run(request).await;
    if *phase.borrow() >= Phase::LastCall && version <= Version::HTTP_11 {
        response
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response.map(|inner| Body::new(Tracked { inner, _guard: guard }))
}

/// A body that is counted while it exists.
struct Tracked {
    inner: Body,
    _guard: InFlightGuard,
}

impl HttpBody for Tracked {
    type Data = bytes::Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.inner).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;
    use std::net::Ipv4Addr;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";

    async fn start(connections: usize, header_timeout: Duration) -> (SocketAddr, watch::Sender<Phase>) {
        let listener = bind(Ipv4Addr::LOCALHOST.into(), 0, "--port").await.unwrap();
        let address = listener.local_addr().unwrap();
        let phase = watch::Sender::new(Phase::Serving);
        let server = Server {
            listener,
            router: Router::new().route("/", get(|| async { "hello" })),
            limits: ConnectionLimits {
                connections: NonZeroUsize::new(connections).unwrap(),
                header_timeout,
            },
            phase: phase.subscribe(),
            in_flight: InFlight::default(),
            metrics: None,
        };
        tokio::spawn(server.run());
        (address, phase)
    }

    /// Reads until the connection is closed, or nothing came for a while.
    async fn read(stream: &mut TcpStream) -> String {
        let mut text = Vec::new();
        let quiet = Duration::from_millis(300);
        while let Ok(Ok(read)) = tokio::time::timeout(quiet, stream.read_buf(&mut text)).await {
            if read == 0 {
                text.extend_from_slice(b"[closed]");
                break;
            }
        }
        String::from_utf8(text).unwrap()
    }

    #[tokio::test]
    async fn head_that_never_ends_is_given_up() {
        let (address, _phase) = start(8, Duration::from_millis(100)).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: ").await.unwrap();
        assert!(read(&mut stream).await.ends_with("[closed]"));
    }

    #[tokio::test]
    async fn connection_beyond_the_limit_waits_for_its_turn() {
        let (address, _phase) = start(1, Duration::from_mins(1)).await;
        let mut first = TcpStream::connect(address).await.unwrap();
        first.write_all(REQUEST).await.unwrap();
        assert!(read(&mut first).await.ends_with("hello"));
        let mut second = TcpStream::connect(address).await.unwrap();
        second.write_all(REQUEST).await.unwrap();
        assert_eq!(read(&mut second).await, "");
        drop(first);
        assert!(read(&mut second).await.ends_with("hello"));
    }

    #[tokio::test]
    async fn answers_ask_for_the_connections_end_from_the_last_call_on() {
        let (address, phase) = start(8, Duration::from_mins(1)).await;
        let mut idle = TcpStream::connect(address).await.unwrap();
        idle.write_all(REQUEST).await.unwrap();
        assert!(read(&mut idle).await.ends_with("hello"));
        phase.send_replace(Phase::LastCall);
        idle.write_all(REQUEST).await.unwrap();
        let answer = read(&mut idle).await;
        assert!(
            answer.contains("connection: close") && answer.ends_with("hello[closed]"),
            "{answer}"
        );
    }

    #[tokio::test]
    async fn idle_connection_lives_until_the_server_closes() {
        let (address, phase) = start(8, Duration::from_mins(1)).await;
        let mut idle = TcpStream::connect(address).await.unwrap();
        phase.send_replace(Phase::Finishing);
        idle.write_all(REQUEST).await.unwrap();
        assert!(read(&mut idle).await.contains("hello"));
        assert!(TcpStream::connect(address).await.is_err(), "a connection was accepted");
    }
}
