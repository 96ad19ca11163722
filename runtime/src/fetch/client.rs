//! HTTP as sources need it: redirects that never carry credentials to another host, and bounded retries.
//!
//! One client for all sources: what they differ in is how a request to the source itself is authorised.

use super::Request;
use super::access::Credentials;
use super::error::{FetchError, printable};
use super::oci::Permission;
use super::s3::Signer;
use crate::failure::Failure;
use crate::status::Board;
use reqwest::header::{HeaderMap, LOCATION, RETRY_AFTER};
use reqwest::{RequestBuilder, Response, StatusCode};
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
/// How much of a refusing answer is read for the source's own word for it.
const MAX_REFUSAL_BYTES: u64 = 16 << 10;

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

/// How requests to the source itself are authorised.
pub(crate) enum Authorization {
    /// By the same words in each.
    Fixed(Credentials),
    /// By what the registry asks for.
    Registry(Permission),
    /// By a signature of its own.
    Signed(Signer),
}

/// A client for one source.
pub(crate) struct Client {
    http: reqwest::Client,
    authorization: Authorization,
    home: Origin,
    pub(crate) retry: RetryPolicy,
    /// Where people see that the source fails while it is tried again.
    board: Board,
}

impl Client {
    /// A client that sends credentials to the origin of `home` and nowhere else.
    pub(crate) fn new(
        home: &Url,
        authorization: Authorization,
        request: &Request,
        board: &Board,
    ) -> Result<Self, FetchError> {
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
            authorization,
            home: home.origin(),
            retry: request.retry,
            board: board.clone(),
        })
    }

    /// One GET, redirects followed. The answer's status is a success, or says that there is no such range.
    pub(crate) async fn get(&self, url: &Url, headers: &HeaderMap) -> Result<Response, Attempt> {
        let mut at = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let response = self.ask(&at, headers).await?;
            if !is_redirect(response.status()) {
                return self.judge(&at, response).await;
            }
            at = redirect_target(&at, &response)?;
        }
        Err(Attempt::Fatal(FetchError::RedirectRefused {
            url: printable(url),
            to: printable(&at),
            problem: "more than 5 redirects in a row; check the source",
        }))
    }

    /// One request, with what the source itself asks for and nothing where it is another host.
    async fn ask(&self, url: &Url, headers: &HeaderMap) -> Result<Response, Attempt> {
        let request = |url: Url| self.http.get(url).headers(headers.clone());
        if url.origin() != self.home {
            return send(request(url.clone())).await;
        }
        match &self.authorization {
            Authorization::Fixed(credentials) => send(credentials.authorize(request(url.clone()))).await,
            Authorization::Signed(signer) => {
                let no_time = || FetchError::unavailable(url, "the clock says no time; set it");
                send(request(signer.sign(url).ok_or_else(no_time)?)).await
            }
            Authorization::Registry(permission) => {
                let response = send(permission.authorize(request(url.clone()))).await?;
                // A token is good for minutes, a download may take hours: any answer may ask for another one.
                if response.status() == StatusCode::UNAUTHORIZED
                    && permission.renew(&self.http, url, response.headers()).await?
                {
                    return send(permission.authorize(request(url.clone()))).await;
                }
                Ok(response)
            }
        }
    }

    /// The header of an answer to HEAD, whatever its status. Not there, or no answer: `None`.
    pub(crate) async fn header(&self, url: &Url, name: &str) -> Option<String> {
        let response = self.http.head(url.clone()).send().await.ok()?;
        Some(response.headers().get(name)?.to_str().ok()?.to_owned())
    }

    async fn judge(&self, url: &Url, response: Response) -> Result<Response, Attempt> {
        let status = response.status();
        if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(response);
        }
        let after = retry_after(response.headers());
        let body = read_limited(url, response, MAX_REFUSAL_BYTES).await.unwrap_or_default();
        let answered = match own_word(&body) {
            Some(word) => format!("answered {status} ({word})"),
            None => format!("answered {status}"),
        };
        if status.is_server_error() || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT) {
            let problem = format!("it {answered}");
            return Err(Attempt::Retry { problem, after });
        }
        let advice = match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if self.is_anonymous() => {
                return Err(Attempt::Fatal(FetchError::SecretMissing {
                    url: printable(url),
                    status: status.as_u16(),
                }));
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                ": check that the credentials (token, user and password, or keys) are valid and may read this model"
            }
            StatusCode::NOT_FOUND | StatusCode::GONE => ": check the name, the revision and the endpoint",
            _ => "",
        };
        Err(Attempt::Fatal(FetchError::unavailable(
            url,
            format!("the source {answered}{advice}"),
        )))
    }

    /// Whether nothing is sent that says who asks.
    fn is_anonymous(&self) -> bool {
        match &self.authorization {
            Authorization::Fixed(credentials) => credentials.is_none(),
            Authorization::Registry(permission) => !permission.has_login(),
            Authorization::Signed(_) => false,
        }
    }

    /// The JSON that a URL answers with.
    pub(crate) async fn json(&self, url: &Url) -> Result<serde_json::Value, FetchError> {
        let bytes = self.bytes(url, &HeaderMap::new()).await?;
        serde_json::from_slice(&bytes).map_err(|error| {
            FetchError::unavailable(url, format!("the answer is not JSON ({error}); check the endpoint"))
        })
    }

    /// The bytes that a URL answers with, retried as [`RetryPolicy`] says. For answers that are not files.
    pub(crate) async fn bytes(&self, url: &Url, headers: &HeaderMap) -> Result<Vec<u8>, FetchError> {
        let mut failures = 0;
        loop {
            let attempt = async { read_limited(url, self.get(url, headers).await?, MAX_ANSWER_BYTES).await };
            match attempt.await {
                Ok(bytes) => {
                    self.board.update(|status| status.failure = None);
                    return Ok(bytes);
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

async fn send(request: RequestBuilder) -> Result<Response, Attempt> {
    request.send().await.map_err(|error| connection_problem(&error))
}

/// The source's own word for why it refuses, such as `NoSuchBucket` or `MANIFEST_UNKNOWN`: from the XML of S3 or the
/// JSON of a registry. Nothing else of a body is repeated.
fn own_word(body: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(body).ok()?;
    let after = match text.split_once("<Code>") {
        Some((_, after)) => after,
        None => text.split_once("\"code\"")?.1.trim_start_matches([' ', ':', '"']),
    };
    let end = after.find(|symbol: char| !symbol.is_ascii_alphabetic() && symbol != '_');
    let word = &after[..end.unwrap_or(after.len())];
    (1..=64).contains(&word.len()).then_some(word)
}

/// The body of an answer, up to a limit.
pub(crate) async fn read_limited(url: &Url, mut response: Response, limit: u64) -> Result<Vec<u8>, Attempt> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| connection_problem(&error))? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() as u64 > limit {
            return Err(Attempt::Fatal(FetchError::SizeLimit {
                what: printable(url),
                limit,
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
    fn own_word_of_a_source_is_found_and_nothing_else_is_repeated() {
        for (body, word) in [
            (
                "<?xml?><Error><Code>NoSuchBucket</Code><Message>x</Message></Error>",
                Some("NoSuchBucket"),
            ),
            (
                r#"{"errors":[{"code": "MANIFEST_UNKNOWN","message":"m"}]}"#,
                Some("MANIFEST_UNKNOWN"),
            ),
            (r#"{"code":"Zm9v-secret"}"#, Some("Zm")),
            ("<Code></Code>", None),
            ("not found", None),
        ] {
            assert_eq!(own_word(body.as_bytes()), word, "{body}");
        }
    }

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
