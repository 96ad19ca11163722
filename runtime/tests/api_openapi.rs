//! The description of the API is true: every field that it names is known and does what it says, and answers are what it says.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod serving;

use serde_json::{Map, Value, json};
use serving::{NAME, Process, events, get, post};

async fn document(process: &Process) -> Value {
    get(process.api("/openapi.json")).await
}

fn good(path: &str) -> Value {
    match path {
        "/v1/chat/completions" => {
            json!({"model": NAME, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1})
        }
        "/v1/completions" => json!({"model": NAME, "prompt": "Hi", "max_tokens": 1}),
        "/v1/responses" => json!({"model": NAME, "input": "Hi", "max_output_tokens": 1}),
        "/v1/embeddings" => json!({"model": NAME, "input": "Hi"}),
        "/tokenize" => json!({"model": NAME, "prompt": "Hi"}),
        "/detokenize" => json!({"model": NAME, "tokens": [1]}),
        other => panic!("nothing is known of {other}"),
    }
}

/// A request with this field besides, and with nothing that contradicts it.
fn with(path: &str, name: &str, value: Value) -> Value {
    let mut body = good(path);
    match name {
        "max_completion_tokens" => drop(body.as_object_mut().unwrap().remove("max_tokens")),
        "messages" if path == "/tokenize" => drop(body.as_object_mut().unwrap().remove("prompt")),
        "stream_options" => body["stream"] = true.into(),
        _ => {}
    }
    body[name] = value;
    body
}

/// Whether an answer is an error about this field.
async fn blames(process: &Process, path: &str, name: &str, value: Value) -> Result<(), String> {
    let (status, text) = post(process, path, &with(path, name, value)).await;
    let param = serde_json::from_str::<Value>(&text)
        .map(|error| error["error"]["param"].clone())
        .unwrap_or_default();
    let is_meant = param
        .as_str()
        .is_some_and(|param| param == name || param.starts_with(&format!("{name}.")));
    let is_known = !text.contains("unknown_parameter");
    if status == 400 && is_meant && is_known {
        Ok(())
    } else {
        Err(format!("{path} {name}: {status} {text}"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_field_is_what_the_document_says() {
    let process = Process::ready(&["--max-context=512", "--pooling=mean"]);
    let document = document(&process).await;
    let mut count = 0;
    let posts = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .filter_map(|(path, item)| Some((path, item.get("post")?)));
    for (path, operation) in posts {
        let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
        for (name, property) in schema["properties"].as_object().unwrap() {
            count += 1;
            // No field is both an object and a number.
            let wrong = if property["type"] == "object" {
                json!(5)
            } else {
                json!({"wrong": [1]})
            };
            if property["x-support"] == "harmless" {
                let (status, text) = post(&process, path, &with(path, name, json!("anything"))).await;
                assert_eq!(status, 200, "{path} {name}: {text}");
            } else {
                blames(&process, path, name, wrong).await.unwrap();
            }
        }
        for name in schema["x-refused"].as_array().unwrap() {
            let name = name.as_str().unwrap();
            let (status, text) = post(&process, path, &with(path, name, json!("x"))).await;
            let error: Value = serde_json::from_str(&text).unwrap();
            assert_eq!((status, &error["error"]["param"]), (400, &json!(name)), "{path} {text}");
        }
        for name in schema["required"].as_array().unwrap() {
            blames(&process, path, name.as_str().unwrap(), Value::Null)
                .await
                .unwrap();
        }
    }
    assert!(count > 100, "{count}");
}

/// Whether a value is what the document says under this name.
fn check(document: &Value, name: &str, value: &Value) {
    let mut schema = Map::from_iter([("$ref".to_owned(), json!(format!("#/components/schemas/{name}")))]);
    schema.insert("components".to_owned(), document["components"].clone());
    let validator = jsonschema::validator_for(&Value::Object(schema)).unwrap();
    let errors: Vec<String> = validator.iter_errors(value).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "{name}: {errors:?} in {value}");
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_what_the_document_says() {
    let process = Process::ready(&["--max-context=512", "--pooling=mean"]);
    let document = document(&process).await;
    let tool = json!([{"type": "function", "function": {"name": "f"}}]);
    let mut called = with("/v1/chat/completions", "tools", tool);
    called["tool_choice"] = "required".into();
    called["max_tokens"] = 40.into();
    for (path, body) in [
        ("/v1/chat/completions", good("/v1/chat/completions")),
        (
            "/v1/chat/completions",
            with("/v1/chat/completions", "logprobs", json!(true)),
        ),
        ("/v1/chat/completions", called),
        ("/v1/completions", good("/v1/completions")),
        ("/v1/responses", good("/v1/responses")),
        ("/tokenize", with("/tokenize", "return_token_strs", json!(true))),
        ("/detokenize", good("/detokenize")),
    ] {
        let answers = &document["paths"][path]["post"]["responses"]["200"]["content"];
        let name = |kind: &str| {
            answers[kind]["schema"]["$ref"]
                .as_str()?
                .rsplit('/')
                .next()
                .map(str::to_owned)
        };
        let (status, text) = post(&process, path, &body).await;
        assert_eq!(status, 200, "{text}");
        check(
            &document,
            &name("application/json").unwrap(),
            &serde_json::from_str(&text).unwrap(),
        );
        let (_, text) = post(&process, path, &with(path, "typo", json!(1))).await;
        check(&document, "Error", &serde_json::from_str(&text).unwrap());
        let Some(chunk) = name("text/event-stream") else {
            continue;
        };
        let mut streamed = body;
        streamed["stream"] = true.into();
        streamed["stream_options"] = json!({"include_usage": true});
        let (_, text) = post(&process, path, &streamed).await;
        for event in events(&text).iter().filter(|event| *event != "[DONE]") {
            check(&document, &chunk, &serde_json::from_str(event).unwrap());
        }
    }
    for (path, name) in [
        ("/v1/models".to_owned(), "ModelList"),
        (format!("/v1/models/{NAME}"), "Model"),
    ] {
        let answer = get(process.api(&path)).await;
        check(&document, name, &answer);
    }
}
