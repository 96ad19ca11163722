//! Hands spans to the collector, with the same client and TLS as everything else.

use crate::failure::chain;
use async_trait::async_trait;
use bytes::Bytes;
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::runtime::Handle;
use tracing::{info, warn};
use url::Url;

/// How long a collector may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// How long it may take for everything.
const ANSWER: Duration = Duration::from_secs(10);
/// Longer answers are not read.
const MAX_ANSWER: usize = 64 << 10;

/// Sends what the exporter has encoded. A collector that cannot be reached is told once, until it is back.
#[derive(Debug)]
pub(super) struct Sender {
    http: reqwest::Client,
    /// The thread that exports has no runtime of its own.
    runtime: Handle,
    is_away: AtomicBool,
}

impl Sender {
    pub(super) fn new(address: &Url) -> Result<Self, reqwest::Error> {
        // Fails only when a provider is there already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT)
            .timeout(ANSWER);
        let builder = if address.scheme() == "https" {
            builder
        } else {
            // Never used, and so not looked for: an image may have none.
            builder.tls_certs_only([])
        };
        Ok(Self {
            http: builder.build()?,
            runtime: Handle::current(),
            is_away: AtomicBool::new(false),
        })
    }

    /// Says that spans are lost, or that they arrive again, when that is news.
    fn judge(&self, problem: Option<&str>) {
        let was_away = self.is_away.swap(problem.is_some(), Ordering::Relaxed);
        match problem {
            Some(problem) if !was_away => {
                warn!(
                    problem,
                    "the collector does not take spans, which are lost until it does; answers do not wait for it"
                );
            }
            None if was_away => info!("the collector takes spans again"),
            Some(_) | None => {}
        }
    }
}

#[async_trait]
impl HttpClient for Sender {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let sent = self.runtime.spawn(send(self.http.clone(), request)).await;
        let sent = sent.unwrap_or_else(|error| Err(Box::new(error)));
        match &sent {
            Ok(answer) if answer.status().is_success() => self.judge(None),
            Ok(answer) => self.judge(Some(&format!("it answers {}", answer.status()))),
            Err(error) => self.judge(Some(&chain(error.as_ref()))),
        }
        sent
    }
}

/// One request. The body of the answer says nothing that is needed, and is read so that the connection can be used again.
async fn send(http: reqwest::Client, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
    let answer = http.execute(reqwest::Request::try_from(request)?).await;
    // Addresses may have passwords.
    let mut answer = answer.map_err(reqwest::Error::without_url)?;
    let mut told = Response::new(Bytes::new());
    *told.status_mut() = answer.status();
    told.headers_mut().clone_from(answer.headers());
    let mut read = 0;
    while read < MAX_ANSWER
        && let Ok(Some(part)) = answer.chunk().await
    {
        read += part.len();
    }
    Ok(told)
}
