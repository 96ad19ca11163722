//! One connection from its first byte to its end, over HTTP/1.1, or over HTTP/2 when the client begins with it.
//!
//! The protocols end differently. Over HTTP/2 a client is told which requests were taken and repeats the others
//! elsewhere, so it is told at the last call. Over HTTP/1.1 only an answer can say that it is the connection's last,
//! and a connection that is closed between answers may just be carrying a request: that comes as late as possible.

use super::guarded::{Guard, Guarded};
use super::in_flight::{InFlight, InFlightGuard};
use super::listen::Phase;
use super::stream::Stream;
use super::tls::Wire;
use axum::Router;
use axum::http::header::CONNECTION;
use axum::http::{HeaderValue, Request, Version};
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::{HttpService, Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tracing::debug;

/// Requests at the same time over one connection of HTTP/2; further ones wait in the client.
const STREAMS: u32 = 128;
/// The largest head of a request over HTTP/2, in bytes.
const HEAD_BYTES: u32 = 16 << 10;
/// How long a connection of HTTP/2 may be silent until the client is asked whether it is there, and how long it has
/// to say so.
const PING: Duration = Duration::from_secs(20);

/// What serves the connections of one server.
#[derive(Clone)]
pub(super) struct Connections {
    pub(super) router: Router,
    /// How long the head of a request may take, and how long a connection may be idle.
    pub(super) header_timeout: Duration,
    pub(super) phase: watch::Receiver<Phase>,
    pub(super) in_flight: InFlight,
    /// Absent: connections are not encrypted.
    pub(super) tls: Option<TlsAcceptor>,
}

impl Connections {
    /// Serves one to its end.
    pub(super) async fn serve(mut self, tcp: TcpStream) {
        // Tokens are small and must leave at once.
        let _ = tcp.set_nodelay(true);
        let wire = match self.tls.take() {
            None => Wire::Plain(tcp),
            Some(tls) => match self.accept(&tls, tcp).await {
                Some(wire) => wire,
                None => return,
            },
        };
        let activity = Activity::default();
        let mut stream = Stream::new(wire, activity.clone());
        let protocol = tokio::select! {
            biased;
            protocol = tokio::time::timeout(self.header_timeout, stream.begins_http2()) => protocol,
            () = reaches(&mut self.phase, Phase::Closing) => return,
        };
        let ended = match protocol {
            Ok(Ok(true)) => self.serve_http2(stream, activity).await,
            Ok(Ok(false)) => self.serve_http1(stream, activity).await,
            Ok(Err(error)) => return debug!(%error, "connection broke before its first request"),
            Err(_) => return debug!("connection without a request"),
        };
        if let Err(error) = ended {
            debug!(error = &error as &dyn std::error::Error, "connection ended");
        }
    }

    /// Comes to TLS with the client, unless that takes too long.
    async fn accept(&mut self, tls: &TlsAcceptor, tcp: TcpStream) -> Option<Wire> {
        let accepted = tokio::select! {
            biased;
            accepted = tokio::time::timeout(self.header_timeout, tls.accept(tcp)) => accepted,
            () = reaches(&mut self.phase, Phase::Closing) => return None,
        };
        match accepted {
            Ok(Ok(stream)) => return Some(Wire::Tls(Box::new(stream))),
            Ok(Err(error)) => debug!(%error, "connection did not come to TLS"),
            Err(_) => debug!("connection did not come to TLS in time"),
        }
        None
    }

    async fn serve_http1(self, stream: Stream, activity: Activity) -> hyper::Result<()> {
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.header_timeout)
            .serve_connection(TokioIo::new(stream), self.service(&activity));
        let mut connection = pin!(connection);
        let (mut phase, mut cut) = (self.phase.clone(), self.phase);
        let closing = async {
            reaches(&mut phase, Phase::Closing).await;
            activity.rests().await;
        };
        tokio::select! {
            // First, so that a request that is here already is seen before the connection is taken for idle.
            biased;
            ended = connection.as_mut() => return ended,
            () = closing => connection.as_mut().graceful_shutdown(),
            () = reaches(&mut cut, Phase::Cut) => return Ok(()),
        }
        tokio::select! {
            ended = connection => ended,
            () = reaches(&mut cut, Phase::Cut) => Ok(()),
        }
    }

    async fn serve_http2(self, stream: Stream, activity: Activity) -> hyper::Result<()> {
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS)
            .max_header_list_size(HEAD_BYTES)
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING)
            .serve_connection(TokioIo::new(stream), self.service(&activity));
        let mut connection = pin!(connection);
        let (mut phase, mut cut) = (self.phase.clone(), self.phase.clone());
        let last_call = async {
            reaches(&mut phase, Phase::LastCall).await;
            // A new connection is for a request, which comes here or finds that nobody serves it.
            tokio::select! {
                () = activity.begins() => {}
                () = reaches(&mut phase, Phase::Closing) => {}
            }
        };
        tokio::select! {
            biased;
            ended = connection.as_mut() => return ended,
            () = last_call => {}
            () = activity.idle(self.header_timeout) => {}
        }
        connection.as_mut().graceful_shutdown();
        tokio::select! {
            ended = connection => ended,
            () = reaches(&mut cut, Phase::Cut) => Ok(()),
        }
    }

    /// Answers, counts the answer until its body is handed over, and asks for the end of the connection when the
    /// server is ending.
    fn service(
        &self,
        activity: &Activity,
    ) -> impl HttpService<Incoming, ResBody = Guarded<Guards>, Error = Infallible, Future: Send + 'static> + use<> {
        let router = TowerToHyperService::new(self.router.clone());
        let (phase, in_flight, activity) = (self.phase.clone(), self.in_flight.clone(), activity.clone());
        service_fn(move |request: Request<Incoming>| {
            let guards = Guards(in_flight.answer(), activity.answer());
            let version = request.version();
            let (phase, answer) = (phase.clone(), router.call(request));
            async move {
                let mut response: Response = answer.await?;
                if *phase.borrow() >= Phase::LastCall && version <= Version::HTTP_11 {
                    response
                        .headers_mut()
                        .insert(CONNECTION, HeaderValue::from_static("close"));
                }
                Ok(response.map(|inner| Guarded::new(inner, guards)))
            }
        })
    }
}

/// Returns when the server's end has come this far, or its owner is gone.
pub(super) async fn reaches(phase: &mut watch::Receiver<Phase>, far: Phase) {
    let _ = phase.wait_for(|phase| *phase >= far).await;
}

/// What happens on one connection.
#[derive(Debug, Clone)]
pub(super) struct Activity(Arc<watch::Sender<Current>>);

#[derive(Debug, Default)]
struct Current {
    /// Whether there ever was a request.
    has_begun: bool,
    /// Whether bytes came that are not answered.
    is_arriving: bool,
    answers: usize,
}

impl Default for Activity {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Current::default())))
    }
}

impl Activity {
    /// Bytes came.
    pub(super) fn arrives(&self) {
        self.0
            .send_if_modified(|current| !std::mem::replace(&mut current.is_arriving, true));
    }

    /// Counts an answer until the guard is dropped.
    fn answer(&self) -> ActivityGuard {
        self.0.send_modify(|current| {
            current.has_begun = true;
            current.answers += 1;
        });
        ActivityGuard(self.clone())
    }

    /// Returns when there was a request.
    async fn begins(&self) {
        self.until(|current| current.has_begun).await;
    }

    /// Returns when every byte that came is answered.
    async fn rests(&self) {
        self.until(|current| current.answers == 0 && !current.is_arriving).await;
    }

    /// Returns when there have been no answers for this long.
    async fn idle(&self, at_least: Duration) {
        loop {
            self.until(|current| current.answers == 0).await;
            let next = self.until(|current| current.answers > 0);
            if tokio::time::timeout(at_least, next).await.is_err() {
                return;
            }
        }
    }

    async fn until(&self, is_so: impl FnMut(&Current) -> bool) {
        // The sender is held by self, so the channel is open.
        let _ = self.0.subscribe().wait_for(is_so).await;
    }
}

/// Counts an answer until its body is handed over.
struct Guards(
    #[expect(dead_code, reason = "held")] InFlightGuard,
    #[expect(dead_code, reason = "held")] ActivityGuard,
);

impl Guard for Guards {}

/// One answer.
struct ActivityGuard(Activity);

impl Drop for ActivityGuard {
    fn drop(&mut self) {
        self.0.0.send_modify(|current| {
            current.answers -= 1;
            current.is_arriving = false;
        });
    }
}
