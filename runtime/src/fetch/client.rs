//! HTTP as sources need it: redirects that never carry credentials to another host, and bounded retries.

use super::Request;
use super::access::Credentials;
use super::error::{FetchError, printable};
use crate::failure::Failure;
use crate::status::Board;
use reqwest::header::{HeaderMap, LOCATION, RETRY_AFTER};
use reqwest::{Response, StatusCode};
use std::time::Duration;
use tracing::warn;
use url::{Origin, Url};

/// More redirects than this are a loop.
const MAX_REDIRECTS: usize = 5;
/// A server that says nothing for this long is treated as gone.
const SILENCE: Duration = Duration::from_mins(1);
/// A connection that takes longer will not come.
const CONNECT: Duration = Duration::from_secs(20);
/// The longest wait that a server may ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_mins(5);
/// The most that a listing or another answer that is not a file may have.
const MAX_ANSWER_BYTES: u64 = 16 << 20;

/// How often and how fast something that may heal is tried again.
#[derive(Debug, Clone, Copy)]
pub struct RetryPolicy {
    /// Attempts in a row that bring nothing before giving up.
    pub attempts: u32,
    /// The first wait; each further one is twice as long.
    pub base: Duration,
    /// The longest wait.
    pub cap: Duration,
}

impl Default for RetryPolicy {
    /// Eight attempts within about a minute and a half: longer than a mirror's restart, shorter than a person's patience.
    fn default() -> Self {
        Self {
            attempts: 8,
            base: Duration::from_millis(500),
            cap: Duration::from_secs(30),
        }
    }
}

impl RetryPolicy {
    /// How long to wait after the `failures`-th failure in a row. `noise` in 0..=1 spreads clients that failed together.
    pub(crate) fn wait(&self, failures: u32, asked: Option<Duration>, noise: f64) -> Duration {
        let doubled = self
            .base
            .saturating_mul(1 << failures.saturating_sub(1).min(16))
            .min(self.cap);
        let spread = doubled.mul_f64(0.5 + noise.clamp(0.0, 1.0) / 2.0);
        asked.map_or(spread, |asked| asked.min(MAX_RETRY_AFTER))
    }
}

/// How an attempt ended that brought no answer.
#[derive(Debug)]
pub(crate) enum Attempt {
    /// It will not get better.
    Fatal(FetchError),
    /// It may get better.
    Retry { problem: String, after: Option<Duration> },
}

impl From<FetchError> for Attempt {
    fn from(error: FetchError) -> Self {
        Self::Fatal(error)
    }
}

/// A client for one source.
pub(crate) struct Client {
    http: reqwest::Client,
    credentials: Credentials,
    home: Origin,
    pub(crate) retry: RetryPolicy,
    /// Where people see that the source fails while it is tried again.
    board: Board,
}

impl Client {
    /// A client that sends credentials to the origin of `home` and nowhere else.
    pub(crate) fn new(home: &Url, request: &Request, board: &Board) -> Result<Self, FetchError> {
        // Fails only when a provider is there already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = reqwest::Client::builder()
            .user_agent(concat!("escadre/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT)
            .read_timeout(SILENCE);
        let http = request
            .route
            .prepare(builder)?
            .build()
            .map_err(|error| FetchError::unavailable(home, crate::failure::chain(&error)))?;
        Ok(Self {
            http,
            credentials: request.credentials.clone(),
            home: home.origin(),
            retry: request.retry,
            board: board.clone(),
        })
    }

    /// One GET, redirects followed. The answer's status is a success, or says that there is no such range.
    pub(crate) async fn get(&self, url: &Url, headers: &HeaderMap) -> Result<Response, Attempt> {
        let mut at = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.http.get(at.clone()).headers(headers.clone());
            if at.origin() == self.home {
                request = self.credentials.authorize(request);
            }
            let response = request.send().await.map_err(|error| connection_problem(&error))?;
            if !is_redirect(response.status()) {
                return self.judge(&at, response);
            }
            at = redirect_target(&at, &response)?;
        }
        Err(Attempt::Fatal(FetchError::RedirectRefused {
            url: printable(url),
            to: printable(&at),
            problem: "more than 5 redirects in a row; check the source",
        }))
    }

    fn judge(&self, url: &Url, response: Response) -> Result<Response, Attempt> {
        let status = response.status();
        if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(response);
        }
        if status.is_server_error() || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT) {
            return Err(Attempt::Retry {
                problem: format!("it answered {status}"),
                after: retry_after(response.headers()),
            });
        }
        Err(Attempt::Fatal(match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if self.credentials.is_none() => {
                FetchError::SecretMissing {
                    url: printable(url),
                    status: status.as_u16(),
                }
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => FetchError::unavailable(
                url,
                format!(
                    "the source answered {status}: check that the credentials (token, or user and password) are valid and may read this model"
                ),
            ),
            StatusCode::NOT_FOUND | StatusCode::GONE => FetchError::unavailable(
                url,
                format!("the source answered {status}: check the name, the revision and the endpoint"),
            ),
            _ => FetchError::unavailable(url, format!("the source answered {status}")),
        }))
    }

    /// The JSON that a URL answers with, retried as [`RetryPolicy`] says.
    pub(crate) async fn json(&self, url: &Url) -> Result<serde_json::Value, FetchError> {
        let mut failures = 0;
        loop {
            let attempt = async { read_limited(url, self.get(url, &HeaderMap::new()).await?).await };
            match attempt.await {
                Ok(bytes) => {
                    self.board.update(|status| status.failure = None);
                    return serde_json::from_slice(&bytes).map_err(|error| {
                        FetchError::unavailable(url, format!("the answer is not JSON ({error}); check the endpoint"))
                    });
                }
                Err(Attempt::Fatal(error)) => return Err(error),
                Err(Attempt::Retry { problem, after }) => {
                    failures += 1;
                    if failures >= self.retry.attempts {
                        let problem = format!("{problem}, {failures} times; check that the endpoint can be reached");
                        return Err(FetchError::unavailable(url, problem));
                    }
                    self.pause(url, failures, &problem, after).await;
                }
            }
        }
    }

    /// Waits before the next attempt and says why.
    pub(crate) async fn pause(&self, url: &Url, failures: u32, problem: &str, asked: Option<Duration>) {
        let wait = self.retry.wait(failures, asked, rand::random());
        let trouble = FetchError::unavailable(
            url,
            format!(
                "{problem}; attempt {failures} of {} failed, it is tried again",
                self.retry.attempts
            ),
        );
        self.board
            .update(|status| status.failure = Some(Failure::from(trouble)));
        warn!(
            url = printable(url),
            problem,
            attempt = failures,
            wait_ms = wait.as_millis(),
            "source failed, trying again"
        );
        tokio::time::sleep(wait).await;
    }
}

async fn read_limited(url: &Url, mut response: Response) -> Result<Vec<u8>, Attempt> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| connection_problem(&error))? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() as u64 > MAX_ANSWER_BYTES {
            return Err(Attempt::Fatal(FetchError::SizeLimit {
                what: printable(url),
                limit: MAX_ANSWER_BYTES,
            }));
        }
    }
    Ok(bytes)
}

/// What a failed connection looks like to a person.
pub(crate) fn connection_problem(error: &reqwest::Error) -> Attempt {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    let problem = if error.is_timeout() {
        "it was silent for too long".to_owned()
    } else if error.is_connect() {
        format!("no connection ({cause})")
    } else {
        format!("the connection broke ({cause})")
    };
    Attempt::Retry { problem, after: None }
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

fn redirect_target(at: &Url, response: &Response) -> Result<Url, FetchError> {
    let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
    let target = location.and_then(|location| at.join(location).ok());
    let refuse = |to: String, problem| FetchError::RedirectRefused {
        url: printable(at),
        to,
        problem,
    };
    let Some(target) = target else {
        return Err(refuse(
            "nowhere".to_owned(),
            "the redirect names no URL; check the source",
        ));
    };
    if !matches!(target.scheme(), "http" | "https") {
        return Err(refuse(target.scheme().to_owned(), "only http and https are followed"));
    }
    if at.scheme() == "https" && target.scheme() == "http" {
        return Err(refuse(
            printable(&target),
            "a redirect from https to http is not followed",
        ));
    }
    Ok(target)
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_cap_and_a_server_may_ask_for_more() {
        let policy = RetryPolicy {
            attempts: 5,
            base: Duration::from_secs(1),
            cap: Duration::from_secs(10),
        };
        let waits: Vec<u64> = (1..=6)
            .map(|failures| policy.wait(failures, None, 1.0).as_secs())
            .collect();
        assert_eq!(waits, [1, 2, 4, 8, 10, 10]);
        assert_eq!(policy.wait(40, None, 0.0), Duration::from_secs(5));
        assert_eq!(policy.wait(1, Some(Duration::from_secs(42)), 0.0).as_secs(), 42);
        assert_eq!(policy.wait(1, Some(Duration::from_hours(9)), 0.0), MAX_RETRY_AFTER);
    }
}
