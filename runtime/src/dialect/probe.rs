//! Finds out what a template does with tools, by letting it render a conversation in which one was called.

use super::Calls;
use super::calls::{HERMES, LLAMA, MISTRAL, MISTRAL_NAMED, MISTRAL_NUMBERED};
use crate::model::{ChatInput, ChatTemplate};
use serde_json::{Map, Value, json};

/// Names that no template has in it.
const TOOL: &str = "escadre_probe";
const ARGUMENT: &str = "escadre_argument";

pub(super) fn calls(template: &ChatTemplate) -> Calls {
    let told = render(template, vec![user()], true).is_some_and(|text| text.contains(TOOL));
    if !told {
        return Calls::Untaught;
    }
    for arguments_are_text in [false, true] {
        let Some(call) = rendered_call(template, arguments_are_text) else {
            continue;
        };
        let syntax = if call.contains("[CALL_ID]") {
            &MISTRAL_NUMBERED
        } else if call.contains("[ARGS]") {
            &MISTRAL_NAMED
        } else if call.contains("[TOOL_CALLS]") {
            &MISTRAL
        } else if call.contains("<tool_call>") && call.contains("\"arguments\"") {
            &HERMES
        } else if call.contains("\"parameters\"") && call.contains("\"name\"") {
            &LLAMA
        } else {
            return Calls::Foreign;
        };
        return Calls::Taught {
            syntax,
            arguments_are_text,
        };
    }
    Calls::Foreign
}

/// What a template makes of an answer that calls, when its arguments come out as JSON.
fn rendered_call(template: &ChatTemplate, arguments_are_text: bool) -> Option<String> {
    let mut message = json!({"role": "assistant", "content": "", "tool_calls": [{
        "id": "aaaaaaaa1", "type": "function", "function": {"name": TOOL, "arguments": {ARGUMENT: 1}}
    }]});
    if arguments_are_text {
        arguments_to_text(&mut message);
    }
    let before = render(template, vec![user()], true)?;
    let text = render(template, vec![user(), message], true)?;
    // The part that the two have in common tells about the tools, with examples of calls in it.
    let common = before.chars().zip(text.chars()).take_while(|(one, other)| one == other);
    let common: usize = common.map(|(character, _)| character.len_utf8()).sum();
    let call = &text[common..];
    // Text that was taken for an object, or the other way round, comes out with its quotes escaped, or not at all.
    let arguments = call.contains(&format!("{{\"{ARGUMENT}\": 1}}"));
    (call.contains(TOOL) && arguments).then(|| call.to_owned())
}

fn user() -> Value {
    json!({"role": "user", "content": "Hello"})
}

fn render(template: &ChatTemplate, messages: Vec<Value>, with_tools: bool) -> Option<String> {
    let tool = json!([{"type": "function", "function": {
        "name": TOOL, "description": "none", "parameters": {"type": "object", "properties": {ARGUMENT: {"type": "integer"}}}
    }}]);
    let input = ChatInput {
        messages: Value::Array(messages),
        tools: with_tools.then_some(tool),
        add_generation_prompt: false,
        variables: Map::new(),
    };
    template.render(&input).ok()
}

/// Turns the arguments of an answer's calls into text.
pub(super) fn arguments_to_text(message: &mut Value) {
    let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut);
    for call in calls.into_iter().flatten() {
        let arguments = &mut call["function"]["arguments"];
        if !arguments.is_string() {
            *arguments = Value::String(python_json(arguments));
        }
    }
}

/// JSON with Python's spaces, as models know it.
pub(super) fn python_json(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("[{}]", items.iter().map(python_json).collect::<Vec<_>>().join(", ")),
        Value::Object(object) => {
            let members = object
                .iter()
                .map(|(name, value)| format!("{}: {}", Value::from(name.as_str()), python_json(value)));
            format!("{{{}}}", members.collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}
