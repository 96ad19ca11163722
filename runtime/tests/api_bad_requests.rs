//! What clients do wrong, each with the answer that tells them, in the form that OpenAI's clients read.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod bad_requests;
mod serving;

use axum::body::Body;
use bad_requests::{chats, completions, detokenize, shared, tokenize};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use serving::{NAME, Process, client, patched_model, question};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const CHAT: &str = "/v1/chat/completions";

async fn post(process: &Process, path: &str, content_type: &str, body: impl Into<reqwest::Body>) -> Response {
    let request = client()
        .post(process.api(path))
        .header("content-type", content_type)
        .body(body);
    request.send().await.unwrap()
}

async fn expect(response: Response, status: u16, code: &str) -> Value {
    assert_eq!(response.status(), status);
    assert_eq!(response.headers()["content-type"], "application/json");
    let body: Value = response.json().await.unwrap();
    let error = &body["error"];
    assert_eq!(error["code"], code, "{body}");
    assert!(
        error["message"].as_str().is_some_and(|message| message.len() > 10),
        "{body}"
    );
    assert!(error["type"].is_string() && error.get("param").is_some(), "{body}");
    error.clone()
}

/// One process for all of it: each case costs milliseconds, a start costs seconds.
#[tokio::test]
async fn every_mistake_gets_its_own_error_and_the_server_goes_on() {
    let process = Process::ready(&["--max-context=512", "--max-concurrency=8"]);
    // Somebody else's answer, which must not notice.
    let body = question("Tell me of the sea.", &json!({"max_tokens": 400}));
    let (_, alone) = serving::post(&process, CHAT, &body).await;
    let other = serving::post(&process, CHAT, &body);
    let mistakes = async {
        bodies_that_cannot_be_read(&process).await;
        let count = fields_that_are_wrong(&process).await;
        assert!(count >= 150, "{count}");
        connections_that_break(&process).await;
    };
    let ((status, beside), ()) = futures::join!(other, mistakes);
    let text = |answer: &str| serde_json::from_str::<Value>(answer).unwrap()["choices"][0]["message"].clone();
    assert_eq!((status, text(&beside)), (200, text(&alone)));
    requests_that_are_too_long(&process).await;
    routes_that_are_not_there(&process).await;
    let answer = client()
        .post(process.api(CHAT))
        .json(&question("Hi", &json!({"max_tokens": 1})))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
}

async fn bodies_that_cannot_be_read(process: &Process) {
    for body in [
        "",
        "hello",
        "{\"model\": ",
        "[]",
        "{\"model\": \"smol\"} trailing",
        "{\"a\": \"\u{1}\"}",
        "null",
        "NaN",
        "{\"temperature\": NaN}",
        "{\"temperature\": 1e999}",
        "{\"temperature\": +1}",
        "{'model': 'smol'}",
        "{\"a\": \"\\ud800\"}",
        "{\"a\": \"\\udc00\\ud800\"}",
        "\u{feff}{}",
        "{\"a\": 1,}",
    ] {
        expect(post(process, CHAT, "application/json", body).await, 400, "invalid_json").await;
    }
    expect(
        post(process, CHAT, "application/json", vec![0xff, 0xfe]).await,
        400,
        "invalid_json",
    )
    .await;
    let nested = "[".repeat(100_000);
    expect(
        post(process, CHAT, "application/json", nested).await,
        400,
        "invalid_json",
    )
    .await;
    for content_type in ["text/plain", "application/x-www-form-urlencoded", ""] {
        expect(
            post(process, CHAT, content_type, "{}").await,
            415,
            "unsupported_media_type",
        )
        .await;
    }
    let declared = question("Hi", &json!({"max_tokens": 1})).to_string();
    let answer = post(process, CHAT, "application/json; charset=utf-8", declared).await;
    assert_eq!(answer.status(), StatusCode::OK);
}

async fn fields_that_are_wrong(process: &Process) -> usize {
    let completion = json!({"model": NAME, "prompt": "Hi"});
    let chats = [shared(), chats()].concat();
    let completions = [shared(), completions()].concat();
    let mut count = 0;
    for (path, good, mistakes) in [
        (CHAT, question("Hi", &json!({})), chats),
        ("/v1/completions", completion.clone(), completions),
        ("/tokenize", completion, tokenize()),
        ("/detokenize", json!({"model": NAME, "tokens": [1]}), detokenize()),
    ] {
        for (more, code, param) in mistakes {
            let mut body = good.clone();
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let response = post(process, path, "application/json", body.to_string()).await;
            let shown: String = more.to_string().chars().take(300).collect();
            assert_eq!(response.status(), 400, "{path} {shown}");
            let error = expect(response, 400, code).await;
            let named = error["param"].as_str().unwrap_or_default();
            assert_eq!(named, param, "{path} {shown}: {error}");
            count += 1;
        }
    }
    let other = question("Hi", &json!({"model": "gpt-4o"})).to_string();
    let error = expect(
        post(process, CHAT, "application/json", other).await,
        404,
        "model_not_found",
    )
    .await;
    assert!(error["message"].as_str().unwrap().contains(NAME), "{error}");
    count
}

/// What is sent on a connection of its own, and how the answer must begin. Nothing: the connection is closed.
async fn connections_that_break(process: &Process) {
    let good = question("Hi", &json!({"max_tokens": 1})).to_string();
    let head = |length: usize| {
        format!("POST {CHAT} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n")
    };
    let whole = format!("{}{good}", head(good.len()));
    let is_bad = "HTTP/1.1 400";
    for (sent, answers) in [
        ("\r\n\r\n".to_owned(), vec![]),
        ("GARBAGE\r\n\r\n".to_owned(), vec![is_bad]),
        ("GET / HTTP/9.9\r\n\r\n".to_owned(), vec![is_bad]),
        (
            format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(100_000)),
            vec!["HTTP/1.1 4"],
        ),
        (
            format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(1 << 20)),
            vec!["HTTP/1.1 431"],
        ),
        (
            format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(5_000)),
            vec!["HTTP/1.1 431"],
        ),
        (format!("{}{good}", head(good.len() + 100)), vec![is_bad]),
        (head(good.len()), vec![is_bad]),
        (
            format!(
                "POST {CHAT} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
            ),
            vec![is_bad],
        ),
        (
            format!("POST {CHAT} HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n"),
            vec![is_bad],
        ),
        // Whoever closes is taken to be gone, and nothing is computed for nobody.
        (whole.clone(), vec![]),
        // The beginning of HTTP/2, and then something else.
        (
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nGARBAGE THAT IS LONG ENOUGH".to_owned(),
            vec![],
        ),
    ] {
        let got = say(process, &sent, true).await;
        let shown: String = sent.chars().take(120).collect();
        assert_eq!(got.matches("HTTP/1.1 ").count(), answers.len(), "{shown}: {got}");
        for answer in answers {
            assert!(got.contains(answer), "{shown}: {got}");
        }
    }
    // Several requests at once are answered one after the other.
    let last = whole.replace("Host: a", "Host: a\r\nConnection: close");
    let got = say(process, &format!("{whole}{whole}{last}"), false).await;
    assert_eq!(got.matches("HTTP/1.1 200").count(), 3, "{got}");
    // One that says nothing more does not keep others from being answered.
    let mut slow = TcpStream::connect(("127.0.0.1", process.port)).await.unwrap();
    slow.write_all(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nX")
        .await
        .unwrap();
    let answer = post(process, CHAT, "application/json", good).await;
    assert_eq!(answer.status(), StatusCode::OK);
    streams_that_are_reset(process).await;
}

/// A connection of HTTP/2 without TLS.
async fn connect_http2(process: &Process) -> SendRequest<Body> {
    let connection = TcpStream::connect(("127.0.0.1", process.port)).await.unwrap();
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(connection))
        .await
        .unwrap();
    tokio::spawn(connection);
    sender
}

/// HTTP/2: streams that are given up leave their neighbours alone, and many at once end their connection only.
async fn streams_that_are_reset(process: &Process) {
    let chat = |more: Value| {
        hyper::Request::post(process.api(CHAT))
            .header("content-type", "application/json")
            .body(Body::from(question("Tell me of the sea.", &more).to_string()))
            .unwrap()
    };
    let long = || chat(json!({"max_tokens": 400, "stream": true}));
    let mut sender = connect_http2(process).await;
    for _ in 0..3 {
        let given_up = sender.send_request(long()).await.unwrap();
        assert_eq!(given_up.status(), 200);
        let neighbour = sender.send_request(chat(json!({"max_tokens": 1})));
        drop(given_up);
        assert_eq!(neighbour.await.unwrap().status(), 200);
    }
    for _ in 0..500 {
        // The request is on its way, and its stream is reset at once.
        let sent = tokio::time::timeout(Duration::ZERO, sender.send_request(long())).await;
        if sent.is_ok_and(|answer| answer.is_err()) || sender.ready().await.is_err() {
            break;
        }
    }
    let mut next = connect_http2(process).await;
    let answer = next.send_request(chat(json!({"max_tokens": 1}))).await.unwrap();
    assert_eq!(answer.status(), 200);
}

/// Sends a text, closes that direction or not, and reads to the end.
async fn say(process: &Process, text: &str, closes: bool) -> String {
    let mut connection = TcpStream::connect(("127.0.0.1", process.port)).await.unwrap();
    // The server may close before it has read everything.
    let _ = connection.write_all(text.as_bytes()).await;
    if closes {
        let _ = connection.shutdown().await;
    }
    let mut got = Vec::new();
    let end = tokio::time::timeout(Duration::from_mins(1), connection.read_to_end(&mut got)).await;
    let _ = end.expect("the connection is closed in the end");
    String::from_utf8_lossy(&got).into_owned()
}

async fn requests_that_are_too_long(process: &Process) {
    let long = question(&"word ".repeat(600), &json!({})).to_string();
    let error = expect(
        post(process, CHAT, "application/json", long).await,
        400,
        "context_length_exceeded",
    )
    .await;
    assert!(error["message"].as_str().unwrap().contains("512"), "{error}");
    let greedy = question("Hi", &json!({"max_tokens": 510})).to_string();
    expect(
        post(process, CHAT, "application/json", greedy).await,
        400,
        "context_length_exceeded",
    )
    .await;
    // With its length announced, and in chunks of unknown number.
    let huge = vec![b' '; 100 << 20];
    let error = expect(
        post(process, CHAT, "application/json", huge).await,
        413,
        "request_too_large",
    )
    .await;
    assert!(error["message"].as_str().unwrap().contains("8388608"), "{error}");
    let chunks = futures::stream::iter((0..20).map(|_| Ok::<_, std::io::Error>(vec![b' '; 1 << 20])));
    let chunked = reqwest::Body::wrap_stream(chunks);
    expect(
        post(process, CHAT, "application/json", chunked).await,
        413,
        "request_too_large",
    )
    .await;
}

async fn routes_that_are_not_there(process: &Process) {
    let missing = client().get(process.api("/v1/nothing")).send().await.unwrap();
    expect(missing, 404, "not_found").await;
    let wrong_method = client().get(process.api(CHAT)).send().await.unwrap();
    expect(wrong_method, 405, "method_not_allowed").await;
    let admin = client().get(process.api("/metrics")).send().await.unwrap();
    expect(admin, 404, "not_found").await;
}

#[tokio::test]
async fn template_that_raises_is_the_clients_error_with_the_templates_words() {
    let folder = tempfile::tempdir().unwrap();
    let (original, raising) = raising_template();
    let model = patched_model(folder.path(), original.as_bytes(), raising.as_bytes());
    let model = format!("--model={}", model.display());
    let mut process = Process::start(&[&model, "--served-name", NAME]);
    process.wait_for_line("\"ready\"");
    let fine = client()
        .post(process.api(CHAT))
        .json(&question("Hi", &json!({"max_tokens": 1})))
        .send()
        .await
        .unwrap();
    assert_eq!(fine.status(), StatusCode::OK);
    let body = question("please raise", &json!({})).to_string();
    let error = expect(
        post(&process, CHAT, "application/json", body).await,
        400,
        "template_error",
    )
    .await;
    assert!(error["message"].as_str().unwrap().contains("no such word"), "{error}");
}

/// The model's own template, and one of the same length that raises when it reads a certain word.
fn raising_template() -> (String, String) {
    let bytes = std::fs::read(serving::model()).unwrap();
    let start = bytes
        .windows(8)
        .position(|window| window == b"{% for m")
        .expect("the model has a template");
    let length = u64::from_le_bytes(bytes[start - 8..start].try_into().unwrap());
    let original = String::from_utf8(bytes[start..start + usize::try_from(length).unwrap()].to_vec()).unwrap();
    let mut raising = "{% for m in messages %}{% if 'raise' in m.content %}{{ raise_exception('no such word') }}{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}".to_owned();
    assert!(
        raising.len() <= original.len(),
        "the template is only {} bytes long",
        original.len()
    );
    // A comment of the right length.
    let padding = original.len() - raising.len();
    assert!(padding == 0 || padding >= 4);
    if padding > 0 {
        raising.extend(["{#", &" ".repeat(padding - 4), "#}"]);
    }
    (original, raising)
}
