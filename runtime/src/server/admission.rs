//! Lets in those who may ask, and tells them what they have left.

use super::App;
use super::error::{ApiError, Code};
use super::record::Record;
use crate::access::{Refusal, Standing, Stranger};
use axum::Extension;
use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::sync::Arc;
use std::time::Duration;

/// Finds out who asks, and notes it.
pub(super) async fn admit(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Arc<Record>>,
    request: Request,
    next: Next,
) -> Response {
    let client = match app.access.client(key(request.headers())) {
        Ok(client) => client,
        Err(stranger) => return stranger_error(stranger).into_response(),
    };
    record.admitted(Arc::clone(&client));
    let mut response = next.run(request).await;
    if let Some(standing) = client.standing() {
        tell(standing, response.headers_mut());
    }
    response
}

/// Takes a request that generates from what its client has left.
pub(super) async fn count_request(Extension(record): Extension<Arc<Record>>, request: Request, next: Next) -> Response {
    match record.client().map_or(Ok(()), |client| client.take_request()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => limit_error(refusal).into_response(),
    }
}

/// The key of a request: what follows `Bearer`. Another kind of credentials is a wrong key.
fn key(headers: &HeaderMap) -> Option<&[u8]> {
    const SCHEME: &[u8] = b"bearer ";
    let value = headers.get(AUTHORIZATION)?.as_bytes();
    let (scheme, key) = value.split_at_checked(SCHEME.len()).unwrap_or((value, &[]));
    let key = if scheme.eq_ignore_ascii_case(SCHEME) {
        key
    } else {
        value
    };
    Some(key.trim_ascii())
}

fn stranger_error(stranger: Stranger) -> ApiError {
    let message = match stranger {
        Stranger::NoKey => "an API key is needed: send the header `Authorization: Bearer` with your key",
        Stranger::WrongKey => "this API key is not valid here; ask whoever runs this server for one",
    };
    ApiError::new(Code::InvalidApiKey, message)
}

/// What a client is told that has used up its allowance.
pub(super) fn limit_error(refusal: Refusal) -> ApiError {
    let Refusal { of, limit, retry_after } = refusal;
    match retry_after {
        Some(after) => {
            let message = format!("the limit of {limit} {of} per minute is used up; try again later");
            ApiError::new(Code::RateLimitExceeded, message).retry_after(after)
        }
        None => ApiError::new(
            Code::RateLimitExceeded,
            format!("this request needs more than the limit of {limit} {of} per minute; make it smaller"),
        ),
    }
}

fn tell(standing: Standing, headers: &mut HeaderMap) {
    let mut say = |name: &'static str, value: String| {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    };
    if let Some(left) = standing.requests {
        say("x-ratelimit-limit-requests", left.limit.to_string());
        say("x-ratelimit-remaining-requests", left.remaining.to_string());
        say("x-ratelimit-reset-requests", duration(left.reset));
    }
    if let Some(left) = standing.tokens {
        say("x-ratelimit-limit-tokens", left.limit.to_string());
        say("x-ratelimit-remaining-tokens", left.remaining.to_string());
        say("x-ratelimit-reset-tokens", duration(left.reset));
    }
}

/// As OpenAI writes it: `12ms`, `3.5s`, `6m0s`.
fn duration(duration: Duration) -> String {
    let (seconds, millis) = (duration.as_secs(), duration.subsec_millis());
    match (seconds, millis) {
        (0, millis) => format!("{millis}ms"),
        (60.., _) => format!("{}m{}s", seconds / 60, seconds % 60),
        (seconds, 0) => format!("{seconds}s"),
        (seconds, millis) => format!("{seconds}.{millis:03}").trim_end_matches('0').to_owned() + "s",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_is_what_follows_bearer() {
        let of = |value: &str| {
            let headers = HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_str(value).unwrap())]);
            key(&headers).map(|key| String::from_utf8(key.to_vec()).unwrap())
        };
        assert_eq!(key(&HeaderMap::new()), None);
        assert_eq!(of("Bearer abc").unwrap(), "abc");
        assert_eq!(of("bearer  abc ").unwrap(), "abc");
        assert_eq!(of("Basic abc").unwrap(), "Basic abc");
        assert_eq!(of("Bearer").unwrap(), "Bearer");
        assert_eq!(of("Bearer ").unwrap(), "");
    }

    #[test]
    fn times_are_written_as_clients_read_them() {
        for (millis, text) in [
            (0, "0ms"),
            (12, "12ms"),
            (1000, "1s"),
            (3_500, "3.5s"),
            (360_000, "6m0s"),
            (61_900, "1m1s"),
        ] {
            assert_eq!(duration(Duration::from_millis(millis)), text);
        }
    }
}
