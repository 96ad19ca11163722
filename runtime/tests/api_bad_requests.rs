//! What clients do wrong, each with the answer that tells them, in the form that OpenAI's clients read.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod serving;

use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use serving::{NAME, Process, client, patched_model, question};

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
    let process = Process::ready(&["--max-context=512"]);
    bodies_that_cannot_be_read(&process).await;
    fields_that_are_wrong(&process).await;
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

async fn fields_that_are_wrong(process: &Process) {
    for (more, code, param) in [
        (json!({"tempurature": 1}), "unknown_parameter", "tempurature"),
        (json!({"temperature": 9}), "invalid_value", "temperature"),
        (json!({"n": 200}), "invalid_value", "n"),
        (
            json!({"tools": [{"type": "function"}]}),
            "unsupported_parameter",
            "tools",
        ),
        (
            json!({"response_format": {"type": "xml"}}),
            "invalid_value",
            "response_format",
        ),
        (json!({"logprobs": 1}), "invalid_value", "logprobs"),
        (json!({"messages": null}), "invalid_value", "messages"),
        (json!({"messages": []}), "invalid_value", "messages"),
        (json!({"model": 5}), "invalid_value", "model"),
        (json!({"max_tokens": 0}), "invalid_value", "max_tokens"),
        (json!({"stop": ""}), "invalid_value", "stop"),
    ] {
        let body = question("Hi", &more).to_string();
        let error = expect(post(process, CHAT, "application/json", body).await, 400, code).await;
        assert_eq!(error["param"], param, "{error}");
    }
    let other = question("Hi", &json!({"model": "gpt-4o"})).to_string();
    let error = expect(
        post(process, CHAT, "application/json", other).await,
        404,
        "model_not_found",
    )
    .await;
    assert!(error["message"].as_str().unwrap().contains(NAME), "{error}");
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
