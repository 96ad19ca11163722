//! `/v1/responses`: the same answers as chats give, in the items and events of the newer API.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod serving;

use serde_json::{Value, json};
use serving::{NAME, Process, post, question};

const RESPONSES: &str = "/v1/responses";

fn body(more: &Value) -> Value {
    let mut body = json!({"model": NAME, "input": "What is a sail?", "temperature": 0, "max_output_tokens": 24});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

async fn ask(process: &Process, more: &Value) -> Value {
    serving::ask(process, RESPONSES, &body(more)).await
}

/// The events of a stream: each with its name, which its data repeats.
async fn stream(process: &Process, more: &Value) -> Vec<Value> {
    let mut body = body(more);
    body["stream"] = true.into();
    let (status, text) = post(process, RESPONSES, &body).await;
    assert_eq!(status, 200, "{text}");
    let blocks = text.split("\n\n").filter(|block| block.starts_with("event: "));
    let events: Vec<Value> = blocks
        .map(|block| {
            let (name, data) = block.strip_prefix("event: ").unwrap().split_once("\ndata: ").unwrap();
            let event: Value = serde_json::from_str(data).unwrap();
            assert_eq!(event["type"], name);
            event
        })
        .collect();
    for (number, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], number, "{events:?}");
    }
    events
}

fn tool() -> Value {
    json!({"type": "function", "name": "clock", "description": "The time.", "strict": true, "parameters": {
        "type": "object", "properties": {"zone": {"type": "integer", "minimum": -12, "maximum": 12}},
        "required": ["zone"], "additionalProperties": false
    }})
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_are_what_chats_say() {
    let process = Process::ready(&["--max-context=1024"]);
    text_is_that_of_a_chat(&process).await;
    events_build_the_response(&process).await;
    calls_and_their_results_are_items(&process).await;
    mistakes_are_named(&process).await;
}

async fn text_is_that_of_a_chat(process: &Process) {
    let chat = question("What is a sail?", &json!({"max_tokens": 24}));
    let (_, chat) = post(process, "/v1/chat/completions", &chat).await;
    let chat: Value = serde_json::from_str(&chat).unwrap();
    let text = &chat["choices"][0]["message"]["content"];
    for input in [
        json!("What is a sail?"),
        json!([{"role": "user", "content": "What is a sail?"}]),
        json!([{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "What is a sail?"}]}]),
    ] {
        let response = ask(process, &json!({"input": input, "metadata": {"a": "b"}})).await;
        assert_eq!(response["output"][0]["content"][0]["text"], *text, "{response}");
        assert_eq!(response["usage"]["total_tokens"], chat["usage"]["total_tokens"]);
        assert_eq!(
            (&response["status"], &response["store"]),
            (&json!("incomplete"), &json!(false))
        );
        assert_eq!(response["incomplete_details"]["reason"], "max_output_tokens");
        assert_eq!(response["metadata"], json!({"a": "b"}));
    }
    let schema = json!({"type": "object", "properties": {"masts": {"enum": [1, 2]}}, "required": ["masts"], "additionalProperties": false});
    let format = json!({"format": {"type": "json_schema", "name": "ship", "schema": schema, "strict": true}});
    let response = ask(process, &json!({"text": format, "instructions": "Answer in JSON."})).await;
    assert_eq!((&response["status"], &response["text"]), (&json!("completed"), &format));
    let value: Value = serde_json::from_str(response["output"][0]["content"][0]["text"].as_str().unwrap()).unwrap();
    assert!(jsonschema::is_valid(&schema, &value), "{value}");
}

async fn events_build_the_response(process: &Process) {
    let whole = ask(process, &json!({})).await;
    let events = stream(process, &json!({})).await;
    let kinds: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(
        (kinds[0], kinds[1], kinds[2], kinds[3]),
        (
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added"
        )
    );
    let deltas = events
        .iter()
        .filter(|event| event["type"] == "response.output_text.delta");
    let text: String = deltas.map(|event| event["delta"].as_str().unwrap()).collect();
    assert_eq!(text, whole["output"][0]["content"][0]["text"].as_str().unwrap());
    let last = events.last().unwrap();
    assert_eq!(last["type"], "response.incomplete");
    assert_eq!(last["response"]["output"][0]["content"], whole["output"][0]["content"]);
    assert_eq!(
        last["response"]["usage"]["output_tokens"],
        whole["usage"]["output_tokens"]
    );
    let done = events
        .iter()
        .find(|event| event["type"] == "response.output_item.done")
        .unwrap();
    assert_eq!(done["item"], last["response"]["output"][0]);
}

async fn calls_and_their_results_are_items(process: &Process) {
    let more =
        json!({"tools": [tool()], "tool_choice": {"type": "function", "name": "clock"}, "max_output_tokens": 80});
    let response = ask(process, &more).await;
    let call = &response["output"][0];
    assert_eq!(
        (&call["type"], &call["name"]),
        (&json!("function_call"), &json!("clock")),
        "{response}"
    );
    let arguments: Value = serde_json::from_str(call["arguments"].as_str().unwrap()).unwrap();
    assert!(jsonschema::is_valid(&tool()["parameters"], &arguments));
    let events = stream(process, &more).await;
    let done = events
        .iter()
        .find(|event| event["type"] == "response.function_call_arguments.done")
        .unwrap();
    assert_eq!(done["arguments"], call["arguments"]);
    let input = json!([
        {"role": "user", "content": "What time is it?"},
        call,
        {"type": "function_call_output", "call_id": call["call_id"], "output": "noon"},
    ]);
    let next = ask(
        process,
        &json!({"input": input, "tools": [tool()], "tool_choice": "none"}),
    )
    .await;
    assert_eq!(next["output"][0]["type"], "message", "{next}");
}

async fn mistakes_are_named(process: &Process) {
    for (more, code, param) in [
        (json!({"input": null}), "invalid_value", "input"),
        (
            json!({"input": [{"role": "king", "content": "a"}]}),
            "invalid_value",
            "input[0].role",
        ),
        (
            json!({"input": [{"type": "web_search_call"}]}),
            "unsupported_parameter",
            "input[0].type",
        ),
        (json!({"store": true}), "unsupported_parameter", "store"),
        (
            json!({"previous_response_id": "resp_1"}),
            "unsupported_parameter",
            "previous_response_id",
        ),
        (json!({"background": true}), "unsupported_parameter", "background"),
        (json!({"truncation": "auto"}), "unsupported_parameter", "truncation"),
        (
            json!({"include": ["reasoning.encrypted_content"]}),
            "unsupported_parameter",
            "include",
        ),
        (
            json!({"reasoning": {"effort": "high"}}),
            "unsupported_parameter",
            "reasoning",
        ),
        (
            json!({"tools": [{"type": "web_search"}]}),
            "unsupported_parameter",
            "tools[0].type",
        ),
        (
            json!({"tools": [{"type": "function", "name": "a b"}]}),
            "invalid_value",
            "tools[0].name",
        ),
        (
            json!({"text": {"format": {"type": "json_schema", "schema": {}}}}),
            "invalid_value",
            "text.format.name",
        ),
        (json!({"max_output_tokens": 0}), "invalid_value", "max_output_tokens"),
        (json!({"max_tokens": 5}), "unknown_parameter", "max_tokens"),
        (json!({"n": 2}), "invalid_value", "n"),
        (json!({"messages": []}), "unknown_parameter", "messages"),
        (json!({"typo": 1}), "unknown_parameter", "typo"),
    ] {
        let (status, text) = post(process, RESPONSES, &body(&more)).await;
        let error: Value = serde_json::from_str(&text).unwrap();
        let got = (
            status,
            error["error"]["code"].as_str(),
            error["error"]["param"].as_str(),
        );
        assert_eq!(got, (400, Some(code), Some(param)), "{more} {text}");
    }
    let (status, text) = post(process, RESPONSES, &body(&json!({"input": "word ".repeat(2000)}))).await;
    assert!(status == 400 && text.contains("context_length_exceeded"), "{text}");
}
