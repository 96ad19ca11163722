//! Accepts connections and ends them in the order that loses nobody's request.
//!
//! axum's own graceful shutdown stops accepting and closes idle connections at once. While endpoints are updated, a
//! terminating pod still gets connections, and idle ones are about to be used. So ending has [`Phase`]s.

use super::connection::{Connections, reaches};
use super::in_flight::InFlight;
use crate::failure::Failure;
use crate::metrics::Metrics;
use axum::Router;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tracing::warn;

/// Connections that the system keeps until we take them.
const QUEUE: usize = 1024;

/// How a server ends, in order. Each phase keeps what the ones before it decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Everything is normal.
    Serving,
    /// Everything is accepted and answered, and clients are asked not to use their connections again: over HTTP/1.1 with
    /// every answer, over HTTP/2 at once.
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
    /// Absent: connections are not encrypted.
    pub tls: Option<TlsAcceptor>,
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
            tls,
        } = self;
        let served = Connections {
            router,
            header_timeout: limits.header_timeout,
            phase: phase.clone(),
            in_flight: in_flight.clone(),
            tls,
        };
        let permits = Arc::new(Semaphore::new(limits.connections.get()));
        let mut connections = JoinSet::new();
        let mut start = |stream: TcpStream, permit: Option<OwnedSemaphorePermit>| {
            let connection = served.clone().serve(stream);
            let metrics = metrics.clone();
            let guard = in_flight.connection();
            connections.spawn(async move {
                let _guards = (permit, guard);
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
            start(accepted.0, Some(accepted.1));
        }
        // Those who connected before now must not see a reset, which is also what waiting for their turn would end in.
        for stream in close(listener) {
            start(stream, None);
        }
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

/// Closes the port and returns those who were connected already. Asks the system, which knows more than the runtime:
/// that learns of new connections only between tasks.
fn close(listener: TcpListener) -> Vec<TcpStream> {
    let Ok(listener) = listener.into_std() else {
        return Vec::new();
    };
    let is_left =
        |accepted: &io::Result<_>| !matches!(accepted, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
    std::iter::repeat_with(|| listener.accept())
        .take(QUEUE)
        .take_while(is_left)
        .filter_map(|accepted| {
            let (stream, _) = accepted.ok()?;
            stream.set_nonblocking(true).ok()?;
            TcpStream::from_std(stream).ok()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::{Body, to_bytes};
    use axum::routing::get;
    use futures::{StreamExt, stream};
    use hyper::body::Incoming;
    use hyper::client::conn::http2::{self, SendRequest};
    use hyper::{Request, Response};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use std::io::Write;
    use std::net::Ipv4Addr;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::Notify;
    use tokio::task::JoinHandle;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
    /// More than the system keeps on the way.
    const LARGE: usize = 16 << 20;
    const LONG: Duration = Duration::from_mins(1);
    const SHORT: Duration = Duration::from_millis(100);

    struct Started {
        address: SocketAddr,
        phase: watch::Sender<Phase>,
        in_flight: InFlight,
        /// Lets `/stream` end.
        end: Arc<Notify>,
    }

    async fn start(connections: usize, header_timeout: Duration) -> Started {
        let listener = bind(Ipv4Addr::LOCALHOST.into(), 0, "--port").await.unwrap();
        let address = listener.local_addr().unwrap();
        let phase = watch::Sender::new(Phase::Serving);
        let in_flight = InFlight::default();
        let end = Arc::new(Notify::new());
        let may_end = Arc::clone(&end);
        let stream = move || async move {
            let last = stream::once(async move {
                may_end.notified().await;
                Ok::<_, io::Error>("end")
            });
            Body::from_stream(stream::iter([Ok("begin, ")]).chain(last))
        };
        let server = Server {
            listener,
            router: Router::new()
                .route("/", get(|| async { "hello" }))
                .route("/large", get(|| async { "x".repeat(LARGE) }))
                .route("/stream", get(stream)),
            limits: ConnectionLimits {
                connections: NonZeroUsize::new(connections).unwrap(),
                header_timeout,
            },
            phase: phase.subscribe(),
            in_flight: in_flight.clone(),
            metrics: None,
            tls: None,
        };
        tokio::spawn(server.run());
        Started {
            address,
            phase,
            in_flight,
            end,
        }
    }

    impl Started {
        async fn connect(&self) -> TcpStream {
            TcpStream::connect(self.address).await.unwrap()
        }

        async fn connect_http2(&self) -> (SendRequest<Body>, JoinHandle<hyper::Result<()>>) {
            let stream = TokioIo::new(self.connect().await);
            let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
            (sender, tokio::spawn(connection))
        }
    }

    async fn send(connection: &mut SendRequest<Body>, path: &str) -> hyper::Result<Response<Incoming>> {
        let request = Request::get(format!("http://x{path}")).body(Body::empty()).unwrap();
        connection.send_request(request).await
    }

    async fn text(answer: Response<Incoming>) -> String {
        let bytes = to_bytes(Body::new(answer.into_body()), 1 << 20).await.unwrap();
        String::from_utf8(bytes.to_vec()).unwrap()
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
        String::from_utf8_lossy(&text).into_owned()
    }

    #[tokio::test]
    async fn head_that_never_ends_is_given_up() {
        let server = start(8, SHORT).await;
        for begin in ["", "P", "PRI * HTTP", "GET / HTTP/1.1\r\nhost: "] {
            let mut stream = server.connect().await;
            stream.write_all(begin.as_bytes()).await.unwrap();
            assert!(read(&mut stream).await.ends_with("[closed]"), "{begin}");
        }
    }

    #[tokio::test]
    async fn protocol_is_told_by_the_first_bytes_however_they_come() {
        let server = start(8, LONG).await;
        let mut http1 = server.connect().await;
        http1.write_all(b"P").await.unwrap();
        assert_eq!(read(&mut http1).await, "");
        http1.write_all(b"OST / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        assert!(read(&mut http1).await.starts_with("HTTP/1.1 405"));
        let mut http2 = server.connect().await;
        http2.write_all(b"PRI * HTTP/2.0\r\n").await.unwrap();
        assert_eq!(read(&mut http2).await, "");
        http2.write_all(b"\r\nSM\r\n\r\n").await.unwrap();
        let mut frame = [0; 9];
        http2.read_exact(&mut frame).await.unwrap();
        assert_eq!(frame[3], 4, "not SETTINGS");
    }

    #[tokio::test]
    async fn connection_beyond_the_limit_waits_for_its_turn() {
        let server = start(1, LONG).await;
        let mut first = server.connect().await;
        first.write_all(REQUEST).await.unwrap();
        assert!(read(&mut first).await.ends_with("hello"));
        let mut second = server.connect().await;
        second.write_all(REQUEST).await.unwrap();
        assert_eq!(read(&mut second).await, "");
        drop(first);
        assert!(read(&mut second).await.ends_with("hello"));
    }

    #[tokio::test]
    async fn idle_connection_of_http2_is_let_go() {
        let server = start(8, SHORT).await;
        let (mut sender, connection) = server.connect_http2().await;
        let stream = send(&mut sender, "/stream").await.unwrap();
        tokio::time::sleep(3 * SHORT).await;
        assert!(!connection.is_finished(), "a connection with an open answer was closed");
        server.end.notify_one();
        assert_eq!(text(stream).await, "begin, end");
        let ended = tokio::time::timeout(LONG, connection).await;
        ended.expect("the connection is open").unwrap().unwrap();
    }

    #[tokio::test]
    async fn answers_ask_for_the_connections_end_from_the_last_call_on() {
        let server = start(8, LONG).await;
        let mut idle = server.connect().await;
        idle.write_all(REQUEST).await.unwrap();
        assert!(read(&mut idle).await.ends_with("hello"));
        server.phase.send_replace(Phase::LastCall);
        idle.write_all(REQUEST).await.unwrap();
        let answer = read(&mut idle).await;
        assert!(
            answer.contains("connection: close") && answer.ends_with("hello[closed]"),
            "{answer}"
        );
    }

    #[tokio::test]
    async fn connection_of_http2_ends_with_its_streams_from_the_last_call_on() {
        let server = start(8, LONG).await;
        let (mut sender, _) = server.connect_http2().await;
        let stream = send(&mut sender, "/stream").await.unwrap();
        let (_idle_sender, idle) = server.connect_http2().await;
        server.phase.send_replace(Phase::LastCall);
        // Requests are answered until the client has heard of the end.
        let heard = async {
            while let Ok(answer) = send(&mut sender, "/").await {
                assert_eq!(text(answer).await, "hello");
            }
        };
        tokio::time::timeout(LONG, heard).await.expect("no GOAWAY came");
        // A new connection has its request answered before it hears the same.
        let (mut sender, second) = server.connect_http2().await;
        tokio::time::sleep(SHORT).await;
        assert_eq!(text(send(&mut sender, "/").await.unwrap()).await, "hello");
        second.await.unwrap().unwrap();
        server.end.notify_one();
        assert_eq!(text(stream).await, "begin, end");
        assert!(!idle.is_finished(), "a connection was closed before its first request");
        server.phase.send_replace(Phase::Closing);
        idle.await.unwrap().unwrap();
        let all_closed = tokio::time::timeout(LONG, server.in_flight.idle(2 * LONG));
        all_closed.await.expect("connections are left");
    }

    #[tokio::test]
    async fn idle_connection_lives_until_the_server_closes() {
        let server = start(8, LONG).await;
        let mut idle = server.connect().await;
        server.phase.send_replace(Phase::Finishing);
        idle.write_all(REQUEST).await.unwrap();
        assert!(read(&mut idle).await.contains("hello"));
        assert!(
            TcpStream::connect(server.address).await.is_err(),
            "a connection was accepted"
        );
    }

    #[tokio::test]
    async fn those_who_connected_before_the_port_is_closed_are_answered() {
        let server = start(1, LONG).await;
        let mut first = server.connect().await;
        first.write_all(REQUEST).await.unwrap();
        assert!(read(&mut first).await.ends_with("hello"));
        // Nothing runs between these lines, so that only the system knows of the connections; one is over the limit.
        let waiting = [(); 3].map(|()| {
            let mut stream = std::net::TcpStream::connect(server.address).unwrap();
            stream.write_all(REQUEST).unwrap();
            stream
        });
        drop(first);
        server.phase.send_replace(Phase::Finishing);
        for stream in waiting {
            stream.set_nonblocking(true).unwrap();
            let mut stream = TcpStream::from_std(stream).unwrap();
            let answer = read(&mut stream).await;
            assert!(answer.ends_with("hello[closed]"), "{answer}");
        }
    }

    #[tokio::test]
    async fn request_that_is_arriving_when_idle_connections_are_closed_is_answered() {
        let server = start(8, LONG).await;
        let mut stream = server.connect().await;
        stream.write_all(REQUEST).await.unwrap();
        assert!(read(&mut stream).await.ends_with("hello"));
        let (begin, rest) = REQUEST.split_at(10);
        stream.write_all(begin).await.unwrap();
        let mut idle = server.connect().await;
        idle.write_all(REQUEST).await.unwrap();
        assert!(read(&mut idle).await.ends_with("hello"));
        server.phase.send_replace(Phase::Closing);
        assert_eq!(read(&mut idle).await, "[closed]");
        stream.write_all(rest).await.unwrap();
        let answer = read(&mut stream).await;
        assert!(answer.ends_with("hello[closed]"), "{answer}");
    }

    #[tokio::test]
    async fn client_that_still_sends_reads_its_answer_and_no_reset() {
        let server = start(8, LONG).await;
        server.phase.send_replace(Phase::LastCall);
        let mut stream = server.connect().await;
        let large = b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n";
        stream
            .write_all(&[large, REQUEST.repeat(3000).as_slice()].concat())
            .await
            .unwrap();
        let answer = read(&mut stream).await;
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        assert_eq!(body.len(), LARGE + "[closed]".len());
    }
}
