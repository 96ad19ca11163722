//! Calls of tools, with the real model: its own template knows none, and templates of other models are laid over it.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod serving;

use serde_json::{Value, json};
use serving::{NAME, Process, events, post, question};
use std::path::Path;

const CHAT: &str = "/v1/chat/completions";

/// A template in which tools are told and calls are written in some model's way. `CALL` is what an answer's call looks like.
const TEMPLATE: &str = "{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content or '' }}{% for call in message.tool_calls or [] %}CALL{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
const CALLS: [(&str, &str); 5] = [
    (
        "hermes",
        "<tool_call>\n{\"name\": \"{{ call.function.name }}\", \"arguments\": {{ call.function.arguments | tojson }}}\n</tool_call>",
    ),
    (
        "mistral",
        "[TOOL_CALLS][{\"name\": \"{{ call.function.name }}\", \"arguments\": {{ call.function.arguments | tojson }}}]",
    ),
    (
        "numbered",
        "[TOOL_CALLS]{{ call.function.name }}[CALL_ID]{{ call.id }}[ARGS]{{ call.function.arguments | tojson }}",
    ),
    (
        "named",
        "[TOOL_CALLS]{{ call.function.name }}[ARGS]{{ call.function.arguments | tojson }}",
    ),
    (
        "llama",
        "{\"name\": \"{{ call.function.name }}\", \"parameters\": {{ call.function.arguments | tojson }}}",
    ),
];

async fn ask(process: &Process, body: &Value) -> Value {
    serving::ask(process, CHAT, body).await
}

fn parameters() -> Value {
    json!({
        "type": "object", "additionalProperties": false, "required": ["city", "unit"],
        "properties": {"city": {"type": "string", "maxLength": 16}, "unit": {"enum": ["celsius", "fahrenheit"]}}
    })
}

fn tools() -> Value {
    let clock = json!({"type": "object", "properties": {"zone": {"type": "integer", "minimum": -12, "maximum": 12}}, "required": ["zone"], "additionalProperties": false});
    json!([
        {"type": "function", "function": {"name": "get_weather", "description": "The weather of a city.", "parameters": parameters(), "strict": true}},
        {"type": "function", "function": {"name": "get_weather_map", "parameters": parameters()}},
        {"type": "function", "function": {"name": "clock", "description": "The time.", "parameters": clock}},
    ])
}

fn with_tools(choice: &Value, more: &Value) -> Value {
    let mut body = question(
        "How warm is it in Paris?",
        &json!({"max_tokens": 160, "tools": tools(), "tool_choice": choice}),
    );
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// The calls of an answer, of which each is valid.
fn calls(choice: &Value) -> Vec<(String, Value)> {
    let calls = choice["message"]["tool_calls"].as_array().unwrap();
    calls
        .iter()
        .map(|call| {
            assert_eq!(call["type"], "function");
            let name = call["function"]["name"].as_str().unwrap();
            let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
            let tools = tools();
            let tool = tools
                .as_array()
                .unwrap()
                .iter()
                .find(|tool| tool["function"]["name"] == name);
            assert!(
                jsonschema::is_valid(&tool.unwrap()["function"]["parameters"], &arguments),
                "{call}"
            );
            (name.to_owned(), arguments)
        })
        .collect()
}

/// What the chunks of a stream give together: text, and the name and arguments of each call.
fn streamed(events: &[String]) -> (String, Vec<(String, String)>) {
    let (mut text, mut calls) = (String::new(), Vec::<(String, String)>::new());
    for event in events.iter().filter(|event| *event != "[DONE]") {
        let event: Value = serde_json::from_str(event).unwrap();
        let delta = &event["choices"][0]["delta"];
        text.push_str(delta["content"].as_str().unwrap_or_default());
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            let index = usize::try_from(call["index"].as_u64().unwrap()).unwrap();
            if let Some(name) = call["function"]["name"].as_str() {
                assert_eq!((index, call["type"].as_str()), (calls.len(), Some("function")));
                assert!(!call["id"].as_str().unwrap().is_empty());
                calls.push((name.to_owned(), String::new()));
            }
            calls[index].1.push_str(call["function"]["arguments"].as_str().unwrap());
        }
    }
    (text, calls)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_without_tools_of_its_own_calls_them() {
    let process = Process::ready(&["--max-context=2048", "--max-concurrency=8"]);
    every_choice_is_followed(&process).await;
    streams_say_the_same(&process).await;
    conversations_go_on(&process).await;
    mistakes_are_named(&process).await;
}

async fn every_choice_is_followed(process: &Process) {
    for seed in 0..2 {
        let drawn = json!({"temperature": 0.9, "seed": seed});
        let required = ask(process, &with_tools(&json!("required"), &drawn)).await;
        let choice = &required["choices"][0];
        if choice["finish_reason"] == "tool_calls" {
            assert!(!calls(choice).is_empty());
            assert_eq!(choice["message"]["content"], Value::Null, "{choice}");
        }
        let mut single = with_tools(&json!("required"), &drawn);
        single["parallel_tool_calls"] = false.into();
        let single = ask(process, &single).await;
        assert_eq!(calls(&single["choices"][0]).len(), 1, "{single}");
        assert_eq!(single["choices"][0]["finish_reason"], "tool_calls");
        let named = json!({"type": "function", "function": {"name": "clock"}});
        let named = ask(process, &with_tools(&named, &drawn)).await;
        assert!(
            matches!(calls(&named["choices"][0]).as_slice(), [(name, _)] if name == "clock"),
            "{named}"
        );
        let auto = ask(process, &with_tools(&json!("auto"), &drawn)).await;
        let message = &auto["choices"][0]["message"];
        assert!(
            message["content"].is_string() || message["tool_calls"].is_array(),
            "{auto}"
        );
        assert!(
            !message["content"].as_str().unwrap_or_default().contains("<tool_call>"),
            "{auto}"
        );
    }
    let none = ask(process, &with_tools(&json!("none"), &json!({"temperature": 0}))).await;
    let plain = ask(
        process,
        &question(
            "How warm is it in Paris?",
            &json!({"max_tokens": 160, "temperature": 0}),
        ),
    )
    .await;
    assert_eq!(none["choices"][0]["message"], plain["choices"][0]["message"]);
}

async fn streams_say_the_same(process: &Process) {
    for choice in ["required", "auto"] {
        for more in [
            json!({"temperature": 0}),
            json!({"temperature": 1, "seed": 3, "logprobs": true}),
        ] {
            let body = with_tools(&json!(choice), &more);
            let whole = ask(process, &body).await;
            let message = &whole["choices"][0]["message"];
            let mut stream = body;
            stream["stream"] = true.into();
            let (_, stream) = post(process, CHAT, &stream).await;
            let (text, calls) = streamed(&events(&stream));
            assert_eq!(text, message["content"].as_str().unwrap_or_default());
            let expected = message["tool_calls"].as_array().into_iter().flatten();
            let expected = expected
                .map(|call| ["name", "arguments"].map(|name| call["function"][name].as_str().unwrap().to_owned()));
            let expected: Vec<(String, String)> = expected.map(|[name, arguments]| (name, arguments)).collect();
            assert_eq!(calls, expected);
        }
    }
}

async fn conversations_go_on(process: &Process) {
    let mut body = with_tools(
        &json!("required"),
        &json!({"temperature": 0, "parallel_tool_calls": false}),
    );
    let answer = ask(process, &body).await;
    let message = answer["choices"][0]["message"].clone();
    let id = message["tool_calls"][0]["id"].clone();
    let messages = body["messages"].as_array_mut().unwrap();
    messages.push(message);
    messages.push(json!({"role": "tool", "tool_call_id": id, "content": "21 degrees"}));
    body["tool_choice"] = "auto".into();
    let before = answer["usage"]["prompt_tokens"].as_u64().unwrap();
    let next = ask(process, &body).await;
    assert!(
        next["usage"]["prompt_tokens"].as_u64().unwrap() > before + 20,
        "the call and its result are read: {next}"
    );
    // A call that was cut can be sent back as it is.
    body["max_tokens"] = 14.into();
    body["tool_choice"] = "required".into();
    let cut = ask(process, &body).await;
    assert_eq!(cut["choices"][0]["finish_reason"], "length", "{cut}");
    let messages = body["messages"].as_array_mut().unwrap();
    messages.push(cut["choices"][0]["message"].clone());
    ask(process, &body).await;
    // Text that is held to something, unless a tool is called.
    let more = json!({"temperature": 0, "response_format": {"type": "json_object"}});
    let held = ask(process, &with_tools(&json!("auto"), &more)).await;
    let choice = &held["choices"][0];
    if let (Some(text), "stop") = (
        choice["message"]["content"].as_str(),
        choice["finish_reason"].as_str().unwrap(),
    ) {
        assert!(serde_json::from_str::<Value>(text).unwrap().is_object(), "{held}");
    }
}

async fn mistakes_are_named(process: &Process) {
    let bad_schema = json!([{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}}}}]);
    for (more, code, param) in [
        (json!({"tools": "clock"}), "invalid_value", json!("tools")),
        (
            json!({"tools": [{"type": "retrieval"}]}),
            "unsupported_parameter",
            json!("tools[0].type"),
        ),
        (json!({"tools": bad_schema}), "invalid_grammar", Value::Null),
        (
            json!({"tool_choice": {"type": "function", "function": {"name": "none"}}}),
            "invalid_value",
            json!("tool_choice"),
        ),
        (
            json!({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}),
            "invalid_value",
            json!("messages[0].tool_call_id"),
        ),
    ] {
        let (status, text) = post(process, CHAT, &with_tools(&json!("auto"), &more)).await;
        let error: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (status, &error["error"]["code"], &error["error"]["param"]),
            (400, &json!(code), &param),
            "{text}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_format_of_calls_is_written_and_read() {
    let folder = tempfile::tempdir().unwrap();
    for (name, call) in CALLS {
        let overlay = folder.path().join(name);
        lay_over(&overlay, &TEMPLATE.replace("CALL", call));
        let overlay = format!("--overlay={}", overlay.display());
        let process = Process::ready(&["--max-context=2048", &overlay]);
        let body = with_tools(
            &json!("required"),
            &json!({"temperature": 0, "parallel_tool_calls": false, "model": NAME}),
        );
        let answer = ask(&process, &body).await;
        assert_eq!(calls(&answer["choices"][0]).len(), 1, "{name}: {answer}");
        let id = answer["choices"][0]["message"]["tool_calls"][0]["id"].as_str().unwrap();
        let is_short = ["mistral", "numbered", "named"].contains(&name);
        assert_eq!(id.len() == 9, is_short, "{name}: {id}");
        for seed in 0..2 {
            let body = with_tools(&json!("auto"), &json!({"temperature": 1, "seed": seed}));
            let answer = ask(&process, &body).await;
            let message = &answer["choices"][0]["message"];
            if message["tool_calls"].is_array() && answer["choices"][0]["finish_reason"] == "tool_calls" {
                calls(&answer["choices"][0]);
            }
        }
    }
}

fn lay_over(folder: &Path, template: &str) {
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join("chat_template.jinja"), template).unwrap();
}
