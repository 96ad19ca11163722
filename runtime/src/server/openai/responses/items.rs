//! From the items of `input` to the messages of a chat. Pure.

use super::super::fields::{Fields, invalid};
use crate::server::error::{ApiError, Code};
use serde_json::{Map, Value, json};

/// The conversation: instructions first. Whatever messages have in common with those of a chat is checked there.
pub(super) fn messages(input: Value, instructions: Option<&str>) -> Result<Vec<Value>, ApiError> {
    let mut messages = Conversation::default();
    if let Some(text) = instructions {
        messages.push(json!({"role": "system", "content": text}));
    }
    match input {
        Value::String(text) => messages.push(json!({"role": "user", "content": text})),
        Value::Array(items) if !items.is_empty() => {
            for (index, item) in items.into_iter().enumerate() {
                messages.take(&format!("input[{index}]"), item)?;
            }
        }
        _ => {
            return Err(invalid(
                "input",
                "must be a text or a list of items, which is not empty",
            ));
        }
    }
    Ok(messages.finish())
}

#[derive(Default)]
struct Conversation {
    messages: Vec<Value>,
    /// What the next answer has thought.
    reasoning: Option<String>,
}

impl Conversation {
    fn push(&mut self, message: Value) {
        self.messages.push(message);
    }

    fn take(&mut self, at: &str, item: Value) -> Result<(), ApiError> {
        let Value::Object(item) = item else {
            return Err(invalid(at, "must be an object"));
        };
        let mut item = Fields::new(item);
        let kind = match item.take("type") {
            None => "message".to_owned(),
            Some(Value::String(kind)) => kind,
            Some(_) => return Err(invalid(format!("{at}.type"), "must be a string")),
        };
        // What answers have, and clients send back with them.
        item.take("id");
        item.take("status");
        match kind.as_str() {
            "message" => self.message(at, &mut item)?,
            "function_call" => self.call(at, &mut item)?,
            "function_call_output" => self.result(at, &mut item)?,
            "reasoning" => self.reasoning = thoughts(&mut item),
            _ => {
                let message = format!(
                    "`{at}.type`: items of the type `{}` are not supported by this server",
                    shown(&kind)
                );
                return Err(ApiError::new(Code::UnsupportedParameter, message).param(format!("{at}.type")));
            }
        }
        item.finish(&[]).map_err(|error| error.param(at.to_owned()))
    }

    fn message(&mut self, at: &str, item: &mut Fields) -> Result<(), ApiError> {
        let role = item.take("role").unwrap_or(Value::Null);
        let content = match item.take("content") {
            Some(Value::Array(parts)) => Value::Array(parts.into_iter().map(part).collect()),
            Some(content) => content,
            None => return Err(invalid(format!("{at}.content"), "is missing")),
        };
        // Only in answers that come back.
        item.take("phase");
        let mut message = Map::from_iter([("role".to_owned(), role.clone()), ("content".to_owned(), content)]);
        if role == "assistant" {
            let reasoning = self.reasoning.take();
            message.extend(reasoning.map(|text| ("reasoning_content".to_owned(), json!(text))));
        }
        self.push(Value::Object(message));
        Ok(())
    }

    /// Calls belong to the answer before them.
    fn call(&mut self, at: &str, item: &mut Fields) -> Result<(), ApiError> {
        let mut text = |name: &str| match item.take(name) {
            Some(Value::String(text)) => Ok(text),
            _ => Err(invalid(format!("{at}.{name}"), "must be a string")),
        };
        let (id, name, arguments) = (text("call_id")?, text("name")?, text("arguments")?);
        let call = json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
        match self.messages.last_mut() {
            Some(last) if last["role"] == "assistant" => match last["tool_calls"].as_array_mut() {
                Some(calls) => calls.push(call),
                None => last["tool_calls"] = json!([call]),
            },
            _ => {
                let mut message = json!({"role": "assistant", "content": null, "tool_calls": [call]});
                if let Some(text) = self.reasoning.take() {
                    message["reasoning_content"] = json!(text);
                }
                self.push(message);
            }
        }
        Ok(())
    }

    fn result(&mut self, at: &str, item: &mut Fields) -> Result<(), ApiError> {
        let Some(Value::String(id)) = item.take("call_id") else {
            return Err(invalid(format!("{at}.call_id"), "must be a string"));
        };
        let content = match item.take("output") {
            Some(Value::Array(parts)) => Value::Array(parts.into_iter().map(part).collect()),
            Some(output) => output,
            None => return Err(invalid(format!("{at}.output"), "is missing")),
        };
        self.push(json!({"role": "tool", "tool_call_id": id, "content": content}));
        Ok(())
    }

    fn finish(self) -> Vec<Value> {
        self.messages
    }
}

/// A part of a content, as chats have it.
fn part(part: Value) -> Value {
    match part["type"].as_str() {
        Some("input_text" | "output_text") => json!({"type": "text", "text": part["text"]}),
        _ => part,
    }
}

/// The text of reasoning, when it is there in the clear.
fn thoughts(item: &mut Fields) -> Option<String> {
    item.take("summary");
    item.take("encrypted_content");
    let content = item.take("content")?;
    let parts = content.as_array()?.iter().filter_map(|part| part["text"].as_str());
    let text: String = parts.collect();
    (!text.is_empty()).then_some(text)
}

fn shown(text: &str) -> String {
    text.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_become_messages() {
        let input = json!([
            {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": [{"type": "output_text", "text": "b", "annotations": []}]},
            {"type": "function_call", "id": "fc_1", "call_id": "1", "name": "f", "arguments": "{}", "status": "completed"},
            {"type": "function_call", "call_id": "2", "name": "g", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "1", "output": "one"},
            {"type": "function_call_output", "call_id": "2", "output": [{"type": "input_text", "text": "two"}]},
        ]);
        let call =
            |id: &str, name: &str| json!({"id": id, "type": "function", "function": {"name": name, "arguments": "{}"}});
        assert_eq!(
            messages(input, Some("be brief")).unwrap(),
            [
                json!({"role": "system", "content": "be brief"}),
                json!({"role": "user", "content": [{"type": "text", "text": "a"}]}),
                json!({"role": "assistant", "content": [{"type": "text", "text": "b"}], "reasoning_content": "hm", "tool_calls": [call("1", "f"), call("2", "g")]}),
                json!({"role": "tool", "tool_call_id": "1", "content": "one"}),
                json!({"role": "tool", "tool_call_id": "2", "content": [{"type": "text", "text": "two"}]}),
            ]
        );
        assert_eq!(
            messages(json!("hi"), None).unwrap(),
            [json!({"role": "user", "content": "hi"})]
        );
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        for (input, param) in [
            (json!(5), "input"),
            (json!([]), "input"),
            (json!(["a"]), "input[0]"),
            (json!([{"type": 5}]), "input[0].type"),
            (json!([{"type": "computer_call"}]), "input[0].type"),
            (json!([{"role": "user"}]), "input[0].content"),
            (json!([{"role": "user", "content": "a", "typo": 1}]), "input[0]"),
            (
                json!([{"type": "function_call", "call_id": "1", "name": "f", "arguments": {}}]),
                "input[0].arguments",
            ),
            (
                json!([{"type": "function_call", "name": "f", "arguments": "{}"}]),
                "input[0].call_id",
            ),
            (
                json!([{"type": "function_call_output", "output": "x"}]),
                "input[0].call_id",
            ),
            (
                json!([{"type": "function_call_output", "call_id": "1"}]),
                "input[0].output",
            ),
        ] {
            let body = serde_json::to_value(messages(input.clone(), None).unwrap_err().body()).unwrap();
            assert_eq!(body["error"]["param"], param, "{input} {body}");
        }
    }
}
