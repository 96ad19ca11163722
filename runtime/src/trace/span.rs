//! The span of one request to the model.

use super::Tracer;
use crate::context::wall_clock;
use axum::extract::Request;
use axum::http::Method;
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{Span as _, SpanBuilder, SpanKind, Status};
use opentelemetry::{Array, Context, KeyValue, StringValue, Value};
use opentelemetry_http::HeaderExtractor;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::Span;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Who answers, in the conventions' words.
const PROVIDER: &str = "escadre";
/// What went wrong when the client did not wait for the end.
const CANCELLED: &str = "cancelled";

/// The span of a request. One that is not followed, or not sampled, takes notes and forgets them.
#[derive(Debug, Default)]
pub(crate) struct RequestSpan(Option<Mutex<Open>>);

/// A span that has not ended.
#[derive(Debug)]
struct Open {
    span: Span,
    operation: &'static str,
    arrived: Instant,
    is_streamed: bool,
    /// What went wrong after the answer had begun.
    failure: Option<&'static str>,
}

/// How a request ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ended {
    /// The HTTP status; 0 when there was none.
    pub(crate) status: u16,
    /// The code of the error that was the answer.
    pub(crate) error: Option<&'static str>,
    /// The client took the whole answer.
    pub(crate) is_complete: bool,
    /// Tokens of the prompt.
    pub(crate) input_tokens: Option<usize>,
    /// Tokens of the answers.
    pub(crate) output_tokens: Option<usize>,
}

/// What a request asks for, in the conventions' words. Absent: it asks nothing of the model.
fn operation(method: &Method, path: &str) -> Option<&'static str> {
    match path {
        _ if method != Method::POST => None,
        "/v1/chat/completions" | "/v1/responses" => Some("chat"),
        "/v1/completions" => Some("text_completion"),
        "/v1/embeddings" => Some("embeddings"),
        _ => None,
    }
}

/// Numbers of tokens and the like.
fn count(number: usize) -> Value {
    Value::I64(i64::try_from(number).unwrap_or(i64::MAX))
}

impl Tracer {
    /// Begins the span of a request, under the one that its headers name if `has_parent`.
    pub(crate) fn begin(&self, request: &Request, id: &str, has_parent: bool) -> RequestSpan {
        let path = request.uri().path();
        let Some(operation) = operation(request.method(), path) else {
            return RequestSpan::default();
        };
        let parent = if has_parent {
            TraceContextPropagator::new().extract_with_context(&Context::new(), &HeaderExtractor(request.headers()))
        } else {
            Context::new()
        };
        let span = SpanBuilder::from_name(operation)
            .with_kind(SpanKind::Server)
            .with_attributes([
                KeyValue::new("gen_ai.operation.name", operation),
                KeyValue::new("gen_ai.provider.name", PROVIDER),
                KeyValue::new("http.request.method", request.method().as_str().to_owned()),
                KeyValue::new("url.path", path.to_owned()),
                KeyValue::new("escadre.request.id", id.to_owned()),
            ])
            .start_with_context(&self.tracer, &parent);
        RequestSpan(span.is_recording().then(|| {
            Mutex::new(Open {
                span,
                operation,
                arrived: Instant::now(),
                is_streamed: false,
                failure: None,
            })
        }))
    }
}

impl RequestSpan {
    fn with<T>(&self, work: impl FnOnce(&mut Open) -> T) -> Option<T> {
        let open = self.0.as_ref()?;
        // What a panicking thread left behind is still a span.
        Some(work(&mut open.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    /// The trace that it belongs to.
    pub(crate) fn trace_id(&self) -> Option<String> {
        self.with(|open| open.span.span_context().trace_id().to_string())
    }

    /// Notes which model is asked, whether the answer is streamed, and numbers of the request.
    pub(crate) fn asked(&self, model: &str, is_streamed: bool, numbers: impl IntoIterator<Item = KeyValue>) {
        self.with(|open| {
            open.span.update_name(format!("{} {model}", open.operation));
            open.span
                .set_attribute(KeyValue::new("gen_ai.request.model", model.to_owned()));
            open.span.set_attributes(numbers);
            open.is_streamed = is_streamed;
            if is_streamed {
                open.span.set_attribute(KeyValue::new("gen_ai.request.stream", true));
            }
        });
    }

    /// Notes who answers, and by which identifier, if the answer has one.
    pub(crate) fn answers(&self, model: &str, id: Option<&str>) {
        self.with(|open| {
            let told = [("gen_ai.response.model", Some(model)), ("gen_ai.response.id", id)];
            let told = told.into_iter();
            open.span
                .set_attributes(told.filter_map(|(key, value)| Some(KeyValue::new(key, value?.to_owned()))));
        });
    }

    /// Notes the first token of a request that left the queue at `started`.
    pub(crate) fn first_token(&self, started: Option<Instant>) {
        self.with(|open| {
            let now = Instant::now();
            if let Some(started) = started {
                open.span
                    .add_event_with_timestamp("escadre.started", wall_clock(started), vec![]);
            }
            open.span
                .add_event_with_timestamp("escadre.first_token", wall_clock(now), vec![]);
            if open.is_streamed {
                let waited = now.duration_since(open.arrived).as_secs_f64();
                open.span
                    .set_attribute(KeyValue::new("gen_ai.response.time_to_first_chunk", waited));
            }
        });
    }

    /// Notes what ended the answers, and how many tokens of the prompt did not have to be computed.
    pub(crate) fn answered(&self, reasons: impl Iterator<Item = &'static str>, cached_tokens: usize) {
        self.with(|open| {
            let reasons: Vec<StringValue> = reasons.map(StringValue::from).collect();
            open.span.set_attributes([
                KeyValue::new("gen_ai.response.finish_reasons", Value::Array(Array::String(reasons))),
                KeyValue::new("gen_ai.usage.cache_read.input_tokens", count(cached_tokens)),
            ]);
        });
    }

    /// Notes what went wrong after the request had been taken.
    pub(crate) fn failed(&self, code: &'static str) {
        self.with(|open| open.failure = Some(code));
    }

    /// Ends it. Later notes are lost.
    pub(crate) fn end(&self, ended: Ended) {
        self.with(|open| {
            let Ended {
                status,
                error,
                is_complete,
                input_tokens,
                output_tokens,
            } = ended;
            let counts = [
                ("gen_ai.usage.input_tokens", input_tokens),
                ("gen_ai.usage.output_tokens", output_tokens),
            ];
            let counts = counts.into_iter();
            open.span
                .set_attributes(counts.filter_map(|(key, tokens)| Some(KeyValue::new(key, count(tokens?)))));
            if status > 0 {
                open.span
                    .set_attribute(KeyValue::new("http.response.status_code", i64::from(status)));
            }
            let problem = match open.failure.or(error) {
                Some(code) => Some(Value::from(code)),
                None if status >= 400 => Some(Value::from(status.to_string())),
                None => (!is_complete).then(|| Value::from(CANCELLED)),
            };
            // Mistakes of clients are no failures of a server, as the conventions for HTTP have it.
            if status >= 500 || (status < 400 && open.failure.is_some()) {
                open.span.set_status(Status::error(""));
            }
            if let Some(problem) = problem {
                open.span.set_attribute(KeyValue::new("error.type", problem));
            }
            open.span.end();
        });
    }
}
