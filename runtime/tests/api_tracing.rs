//! Spans of requests, as a collector of OpenTelemetry receives them.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod serving;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use prost::Message as _;
use serde_json::{Value, json};
use serving::{NAME, Process, client, question};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;

const CHAT: &str = "/v1/chat/completions";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";
/// Words that no span may have.
const SECRET: &str = "zanzibar";
const STOP: &str = "quixotic";
/// How long the process may take to end.
const END: Duration = Duration::from_secs(30);

/// What was received.
type Bodies = Arc<Mutex<Vec<Bytes>>>;

/// Takes spans.
struct Collector {
    bodies: Bodies,
    argument: String,
}

async fn take(State(bodies): State<Bodies>, headers: HeaderMap, body: Bytes) {
    assert_eq!(headers["content-type"], "application/x-protobuf");
    bodies.lock().unwrap().push(body);
}

impl Collector {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let bodies = Bodies::default();
        let router = Router::new()
            .route("/v1/traces", post(take))
            .with_state(Arc::clone(&bodies));
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            bodies,
            argument: format!("--otlp-endpoint=http://127.0.0.1:{port}"),
        }
    }

    /// Everything, as it came.
    fn raw(&self) -> Vec<u8> {
        self.bodies.lock().unwrap().concat()
    }

    fn requests(&self) -> Vec<ExportTraceServiceRequest> {
        let bodies = self.bodies.lock().unwrap();
        let decoded = bodies.iter().cloned().map(ExportTraceServiceRequest::decode);
        decoded.collect::<Result<_, _>>().unwrap()
    }

    /// The resource that sent them.
    fn resource(&self) -> Vec<KeyValue> {
        let resource = self.requests()[0].resource_spans[0].resource.clone();
        resource.unwrap().attributes
    }

    /// The spans, by their request's identifier.
    fn span(&self, request_id: &str) -> Option<Span> {
        let requests = self.requests().into_iter();
        let scopes = requests.flat_map(|request| request.resource_spans);
        let spans = scopes.flat_map(|resource| resource.scope_spans);
        let mut spans = spans.flat_map(|scope| scope.spans);
        spans.find(|span| attribute(&span.attributes, "escadre.request.id") == json!(request_id))
    }
}

fn plain(value: Option<AnyValue>) -> Value {
    match value.and_then(|value| value.value) {
        None => Value::Null,
        Some(Any::StringValue(text)) => json!(text),
        Some(Any::BoolValue(value)) => json!(value),
        Some(Any::IntValue(number)) => json!(number),
        Some(Any::DoubleValue(number)) => json!(number),
        Some(Any::ArrayValue(array)) => array.values.into_iter().map(|value| plain(Some(value))).collect(),
        Some(other) => panic!("{other:?}"),
    }
}

/// An attribute; null when it is not there.
fn attribute(attributes: &[KeyValue], key: &str) -> Value {
    let mut found = attributes.iter().filter(|one| one.key == key);
    let value = found.next().map(|one| plain(one.value.clone()));
    assert!(found.next().is_none(), "{key} is there twice");
    value.unwrap_or_default()
}

#[track_caller]
fn has(span: &Span, expected: &[(&str, Value)]) {
    for (key, value) in expected {
        assert_eq!(attribute(&span.attributes, key), *value, "{key} in {span:#?}");
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Asks with an identifier, and perhaps as a part of a trace.
async fn ask(process: &Process, path: &str, (id, flags): (&str, Option<&str>), body: &Value) -> (u16, String) {
    let request = client().post(process.api(path)).header("x-request-id", id).json(body);
    let request = match flags {
        Some(flags) => request.header("traceparent", format!("00-{TRACE}-{PARENT}-{flags}")),
        None => request,
    };
    let answer = request.send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

/// Ends the process, by which the last spans are sent. Returns its log.
fn end(mut process: Process) -> String {
    process.terminate();
    let (status, log) = process.wait(END);
    assert!(status.success(), "{log}");
    log
}

fn secret_question(more: &Value) -> Value {
    let mut body = question(
        &format!("Say {SECRET}."),
        &json!({"max_tokens": 6, "seed": 7, "stop": [STOP]}),
    );
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_request_has_a_span_by_the_conventions_and_no_text() {
    let collector = Collector::start().await;
    let process = Process::ready(&[
        "--max-context=512",
        "--pod-uid=uid-7",
        "--pod-name=m-0",
        &collector.argument,
    ]);
    let (status, text) = ask(
        &process,
        CHAT,
        ("whole", Some("01")),
        &secret_question(&json!({"top_p": 0.5})),
    )
    .await;
    assert_eq!(status, 200, "{text}");
    let answer: Value = serde_json::from_str(&text).unwrap();
    // Token 2 would end an answer.
    let more = json!({"n": 2, "stream": true, "logit_bias": {"2": -100}});
    let mut plain = json!({"model": NAME, "prompt": SECRET, "max_tokens": 3});
    plain.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let (status, text) = ask(&process, "/v1/completions", ("streamed", None), &plain).await;
    assert_eq!(status, 200, "{text}");
    let input = json!({"model": NAME, "input": SECRET, "max_output_tokens": 4});
    let (status, text) = ask(&process, "/v1/responses", ("response", None), &input).await;
    assert_eq!(status, 200, "{text}");
    let response: Value = serde_json::from_str(&text).unwrap();
    let (status, _) = ask(
        &process,
        CHAT,
        ("wrong", Some("01")),
        &secret_question(&json!({"model": SECRET})),
    )
    .await;
    assert_eq!(status, 404);
    let (status, _) = ask(&process, CHAT, ("unsampled", Some("00")), &secret_question(&json!({}))).await;
    assert_eq!(status, 200);
    let (status, _) = ask(
        &process,
        "/tokenize",
        ("tokens", Some("01")),
        &json!({"prompt": SECRET}),
    )
    .await;
    assert_eq!(status, 200);
    let log = end(process);

    let resource = collector.resource();
    assert_eq!(attribute(&resource, "service.instance.id"), "uid-7");
    assert_eq!(attribute(&resource, "k8s.pod.name"), "m-0");
    is_whole(&collector.span("whole").unwrap(), &answer);
    is_streamed(&collector.span("streamed").unwrap(), &log);
    is_response(&collector.span("response").unwrap(), &response);
    is_wrong(&collector.span("wrong").unwrap());
    assert!(collector.span("unsampled").is_none());
    assert!(collector.span("tokens").is_none());
    let said = answer["choices"][0]["message"]["content"].as_str().unwrap();
    let raw = collector.raw();
    // A shorter answer can be part of a name.
    for text in [SECRET, STOP, said].into_iter().filter(|text| text.len() >= STOP.len()) {
        let is_there = raw.windows(text.len()).any(|part| part == text.as_bytes());
        assert!(!is_there, "{text:?} was sent");
    }
}

/// The span of the stream, of whose trace the log has a line.
fn is_streamed(streamed: &Span, log: &str) {
    assert_eq!(streamed.name, format!("text_completion {NAME}"));
    assert!(streamed.parent_span_id.is_empty(), "{streamed:#?}");
    assert!(log.contains(&hex(&streamed.trace_id)), "the log has the trace: {log}");
    has(
        streamed,
        &[
            ("gen_ai.request.stream", json!(true)),
            ("gen_ai.request.choice.count", json!(2)),
            ("gen_ai.usage.output_tokens", json!(6)),
            ("gen_ai.response.finish_reasons", json!(["length", "length"])),
            ("error.type", Value::Null),
        ],
    );
    let waited = attribute(&streamed.attributes, "gen_ai.response.time_to_first_chunk");
    assert!(waited.as_f64().unwrap() > 0.0, "{waited}");
}

/// The span of the response that was answered at once.
fn is_response(responded: &Span, response: &Value) {
    has(
        responded,
        &[
            ("gen_ai.operation.name", json!("chat")),
            ("gen_ai.request.max_tokens", json!(4)),
            ("gen_ai.response.id", response["id"].clone()),
            ("gen_ai.usage.input_tokens", response["usage"]["input_tokens"].clone()),
            ("gen_ai.usage.output_tokens", response["usage"]["output_tokens"].clone()),
        ],
    );
}

/// The span of the chat with a model that nobody serves.
fn is_wrong(wrong: &Span) {
    assert_eq!(wrong.name, "chat");
    has(
        wrong,
        &[
            ("error.type", json!("model_not_found")),
            ("http.response.status_code", json!(404)),
            ("gen_ai.request.model", Value::Null),
        ],
    );
}

/// The span of the chat that was answered at once.
fn is_whole(span: &Span, answer: &Value) {
    assert_eq!(span.name, format!("chat {NAME}"));
    assert_eq!(span.kind, SpanKind::Server as i32);
    assert_eq!(
        (hex(&span.trace_id), hex(&span.parent_span_id)),
        (TRACE.into(), PARENT.into())
    );
    assert!(span.end_time_unix_nano > span.start_time_unix_nano);
    let status = span.status.clone().unwrap_or_default();
    assert_eq!(status.code, StatusCode::Unset as i32);
    has(
        span,
        &[
            ("gen_ai.operation.name", json!("chat")),
            ("gen_ai.provider.name", json!("escadre")),
            ("gen_ai.request.model", json!(NAME)),
            ("gen_ai.response.model", json!(NAME)),
            ("gen_ai.response.id", answer["id"].clone()),
            ("gen_ai.request.max_tokens", json!(6)),
            ("gen_ai.request.temperature", json!(0.0)),
            ("gen_ai.request.top_p", json!(0.5)),
            ("gen_ai.request.seed", json!(7)),
            ("gen_ai.request.top_k", Value::Null),
            ("gen_ai.request.stream", Value::Null),
            ("gen_ai.usage.input_tokens", answer["usage"]["prompt_tokens"].clone()),
            (
                "gen_ai.usage.output_tokens",
                answer["usage"]["completion_tokens"].clone(),
            ),
            (
                "gen_ai.response.finish_reasons",
                json!([answer["choices"][0]["finish_reason"]]),
            ),
            ("http.request.method", json!("POST")),
            ("url.path", json!(CHAT)),
            ("http.response.status_code", json!(200)),
            ("error.type", Value::Null),
        ],
    );
    let events: Vec<&str> = span.events.iter().map(|event| event.name.as_str()).collect();
    assert_eq!(events, ["escadre.started", "escadre.first_token"]);
    let times = span.events.iter().map(|event| event.time_unix_nano);
    assert!(times.is_sorted(), "{span:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_without_a_trace_are_sampled_by_the_rate() {
    let collector = Collector::start().await;
    let process = Process::ready(&["--max-context=512", "--trace-sampling=0", &collector.argument]);
    for (id, flags) in [("alone", None), ("followed", Some("01"))] {
        let (status, text) = ask(&process, CHAT, (id, flags), &secret_question(&json!({}))).await;
        assert_eq!(status, 200, "{text}");
    }
    end(process);
    assert!(collector.span("alone").is_none());
    assert!(collector.span("followed").is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn collector_that_is_away_disturbs_nobody_and_is_told_once() {
    // Nobody listens there any more.
    let port = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let argument = format!("--otlp-endpoint=http://127.0.0.1:{port}");
    let mut process = Process::ready(&["--max-context=512", &argument]);
    for round in 0..2 {
        let (status, text) = ask(&process, CHAT, ("any", None), &secret_question(&json!({}))).await;
        assert_eq!(status, 200, "{text}");
        if round == 0 {
            process.wait_for_line("does not take spans");
        }
    }
    let log = end(process);
    assert_eq!(log.matches("does not take spans").count(), 1, "{log}");
}

#[test]
fn address_of_something_else_is_refused_at_the_start() {
    let model = format!("--model={}", serving::model().display());
    let args = [
        "serve",
        &model,
        "--otlp-endpoint=collector:4318",
        "--port=0",
        "--admin-port=0",
    ];
    let (status, text) = Process::spawn(&args, None).wait(END);
    assert!(!status.success() && text.contains("http://collector:4318"), "{text}");
}
