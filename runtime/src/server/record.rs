//! What is known of a request while it is answered, and the line that is logged when its answer has ended. Never what was
//! asked or answered.

use super::error::Code;
use super::guarded::{Guard, Guarded};
use crate::access::Client;
use crate::context::random_id;
use crate::trace::{Ended, RequestSpan, Tracer};
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;
use tracing::info;

/// By which a request is found again, in both directions.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// W3C Trace Context.
const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");
/// Longer identifiers of clients are not taken over.
const MAX_ID: usize = 128;
/// Longer paths are cut in the log.
const MAX_PATH: usize = 200;

/// A request. Handlers find it among the request's extensions.
#[derive(Debug, Default)]
pub(crate) struct Record {
    client: OnceLock<Arc<Client>>,
    prompt_tokens: AtomicUsize,
    completion_tokens: AtomicUsize,
    span: RequestSpan,
}

impl Record {
    /// Notes who asks.
    pub(super) fn admitted(&self, client: Arc<Client>) {
        let _ = self.client.set(client);
    }

    /// Who asks; absent before that is known.
    pub(crate) fn client(&self) -> Option<&Arc<Client>> {
        self.client.get()
    }

    /// Its span.
    pub(crate) fn span(&self) -> &RequestSpan {
        &self.span
    }

    /// Notes the tokens of the prompt.
    pub(crate) fn prompt(&self, tokens: usize) {
        self.prompt_tokens.fetch_add(tokens, Ordering::Relaxed);
    }

    /// Notes tokens of an answer.
    pub(crate) fn completion(&self, tokens: usize) {
        self.completion_tokens.fetch_add(tokens, Ordering::Relaxed);
    }
}

/// Gives each request a record and an identifier, and logs it when its answer has ended. One that generates has a span,
/// too, if there is a tracer.
pub(super) async fn keep(State(tracer): State<Option<Tracer>>, mut request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    let trace = trace_id(request.headers()).map(str::to_owned);
    let span = tracer.map(|tracer| tracer.begin(&request, &id, trace.is_some()));
    let record = Record {
        span: span.unwrap_or_default(),
        ..Record::default()
    };
    let mut line = Line {
        id,
        trace: trace.or_else(|| record.span.trace_id()),
        method: request.method().clone(),
        path: request.uri().path().chars().take(MAX_PATH).collect(),
        started: Instant::now(),
        status: 0,
        error: None,
        is_complete: false,
        record: Arc::new(record),
    };
    request.extensions_mut().insert(Arc::clone(&line.record));
    let mut response = next.run(request).await;
    line.status = response.status().as_u16();
    line.error = response.extensions().get::<Code>().map(Into::into);
    if let Ok(id) = HeaderValue::from_str(&line.id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response.map(|body| Body::new(Guarded::new(body, line)))
}

/// The client's own identifier, or a new one.
fn request_id(headers: &HeaderMap) -> String {
    let own = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok());
    own.filter(|id| (1..=MAX_ID).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic()))
        .map_or_else(|| random_id("req_"), str::to_owned)
}

/// The trace that a request belongs to, 32 hex digits.
fn trace_id(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(TRACE_PARENT)?.to_str().ok()?;
    let mut parts = value.split('-');
    let (version, trace, parent) = (parts.next()?, parts.next()?, parts.next()?);
    let is_hex = |text: &str, length: usize| {
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        text.len() == length && text.bytes().all(is_digit) && text.bytes().any(|byte| byte != b'0')
    };
    (version.len() == 2 && version != "ff" && is_hex(trace, 32) && is_hex(parent, 16)).then_some(trace)
}

/// A line of the log.
struct Line {
    id: String,
    trace: Option<String>,
    method: Method,
    path: String,
    started: Instant,
    status: u16,
    error: Option<&'static str>,
    is_complete: bool,
    record: Arc<Record>,
}

impl Guard for Line {
    fn complete(&mut self) {
        self.is_complete = true;
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let count = |tokens: &AtomicUsize| Some(tokens.load(Ordering::Relaxed)).filter(|tokens| *tokens > 0);
        let prompt_tokens = count(&self.record.prompt_tokens);
        let completion_tokens = count(&self.record.completion_tokens);
        self.record.span.end(Ended {
            status: self.status,
            error: self.error,
            is_complete: self.is_complete,
            input_tokens: prompt_tokens,
            output_tokens: completion_tokens,
        });
        info!(
            target: "escadre_runtime::access",
            request_id = self.id,
            trace_id = self.trace,
            method = %self.method,
            path = self.path,
            status = self.status,
            client = self.record.client().map(|client| client.name()).filter(|name| !name.is_empty()),
            prompt_tokens,
            completion_tokens,
            seconds = self.started.elapsed().as_secs_f64(),
            "{}", if self.is_complete { "request" } else { "request given up" }
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_str(value).unwrap())])
    }

    #[test]
    fn identifiers_of_clients_are_taken_over_when_they_are_harmless() {
        assert_eq!(request_id(&headers(REQUEST_ID, "abc-1")), "abc-1");
        for bad in ["", "a b", &"x".repeat(129)] {
            assert!(request_id(&headers(REQUEST_ID, bad)).starts_with("req_"), "{bad}");
        }
        assert_ne!(request_id(&HeaderMap::new()), request_id(&HeaderMap::new()));
    }

    #[test]
    fn traces_are_those_of_the_standard() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        let of = |value: &str| trace_id(&headers(TRACE_PARENT, value)).map(str::to_owned);
        assert_eq!(of(&format!("00-{trace}-00f067aa0ba902b7-01")).as_deref(), Some(trace));
        for bad in [
            String::new(),
            trace.to_owned(),
            format!("ff-{trace}-00f067aa0ba902b7-01"),
            format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
            format!("00-{}-00f067aa0ba902b7-01", trace.to_uppercase()),
            format!("00-{trace}-0000000000000000-01"),
        ] {
            assert_eq!(of(&bad), None, "{bad}");
        }
    }
}
