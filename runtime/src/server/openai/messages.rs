//! The messages of a chat, checked and brought into the form that templates expect. Pure.

use super::fields::{Fields, invalid};
use crate::server::error::{ApiError, Code};
use serde_json::{Map, Value, json};

/// More messages than any conversation has.
const MAX_MESSAGES: usize = 10_000;

/// Checks the messages. Parts of text become one text and the arguments of calls become objects, since templates expect
/// that.
pub(super) fn check(messages: Value) -> Result<Vec<Value>, ApiError> {
    let Value::Array(messages) = messages else {
        return Err(invalid("messages", "must be a list"));
    };
    if messages.is_empty() || messages.len() > MAX_MESSAGES {
        return Err(invalid(
            "messages",
            &format!("must have from 1 to {MAX_MESSAGES} messages"),
        ));
    }
    let mut called = Vec::new();
    let checked = messages.into_iter().enumerate();
    checked
        .map(|(index, message)| check_message(&format!("messages[{index}]"), message, &mut called))
        .collect()
}

/// Checks a message; `called` are the identifiers of the calls in the last answer.
fn check_message(at: &str, message: Value, called: &mut Vec<String>) -> Result<Value, ApiError> {
    let Value::Object(message) = message else {
        return Err(invalid(at, "must be an object"));
    };
    let mut fields = Fields::new(message);
    let role = match fields.take("role") {
        // OpenAI's newer name for the same role; templates know the older one.
        Some(Value::String(role)) if role == "developer" => "system".to_owned(),
        Some(Value::String(role)) if ["system", "user", "assistant", "tool"].contains(&role.as_str()) => role,
        Some(Value::String(role)) if role == "function" => {
            return Err(unsupported(&format!("{at}.role"), "functions are called `tools` here"));
        }
        _ => {
            return Err(invalid(
                format!("{at}.role"),
                "must be system, developer, user, assistant or tool",
            ));
        }
    };
    let calls = match role.as_str() {
        "assistant" => take_calls(&mut fields, at)?,
        _ => vec![],
    };
    let content = match fields.take("content") {
        Some(Value::String(text)) => json!(text),
        Some(Value::Array(parts)) => json!(join_parts(parts, &format!("{at}.content"))?),
        // An answer that only calls.
        None if !calls.is_empty() => Value::Null,
        _ => {
            return Err(invalid(
                format!("{at}.content"),
                "must be a string or a list of text parts",
            ));
        }
    };
    let mut checked = Map::from_iter([("role".to_owned(), json!(role)), ("content".to_owned(), content)]);
    match role.as_str() {
        "tool" => {
            let id = take_text(&mut fields, "tool_call_id", at)?;
            let Some(id) = id.filter(|id| called.contains(id)) else {
                let problem = "must be the id of one of the `tool_calls` in the answer before it";
                return Err(invalid(format!("{at}.tool_call_id"), problem));
            };
            checked.insert("tool_call_id".to_owned(), json!(id));
        }
        "assistant" => {
            let reasoning = take_text(&mut fields, "reasoning_content", at)?;
            checked.extend(reasoning.map(|text| ("reasoning_content".to_owned(), json!(text))));
            *called = calls
                .iter()
                .filter_map(|call| call["id"].as_str())
                .map(str::to_owned)
                .collect();
        }
        _ => called.clear(),
    }
    if !calls.is_empty() {
        checked.insert("tool_calls".to_owned(), json!(calls));
    }
    let name = take_text(&mut fields, "name", at)?;
    checked.extend(name.map(|name| ("name".to_owned(), json!(name))));
    // Clients send an answer back as they got it, with empty members.
    for member in ["tool_calls", "function_call", "annotations", "refusal", "audio"] {
        match fields.take(member) {
            Some(value) if !super::parameters::is_empty(&value) => {
                return Err(unsupported(
                    &format!("{at}.{member}"),
                    "is not supported by this server",
                ));
            }
            _ => {}
        }
    }
    fields.finish(&[]).map_err(|error| error.param(at.to_owned()))?;
    Ok(Value::Object(checked))
}

fn take_text(fields: &mut Fields, name: &str, at: &str) -> Result<Option<String>, ApiError> {
    match fields.take(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(invalid(format!("{at}.{name}"), "must be a string")),
    }
}

/// The calls of an answer, with their arguments as objects.
fn take_calls(fields: &mut Fields, at: &str) -> Result<Vec<Value>, ApiError> {
    let at = format!("{at}.tool_calls");
    match fields.take("tool_calls") {
        None => Ok(vec![]),
        Some(Value::Array(calls)) => {
            let calls = calls.into_iter().enumerate();
            calls
                .map(|(index, call)| check_call(&format!("{at}[{index}]"), call))
                .collect()
        }
        Some(_) => Err(invalid(at, "must be a list")),
    }
}

fn check_call(at: &str, call: Value) -> Result<Value, ApiError> {
    let wrong = |field: &str, problem: &str| invalid(format!("{at}{field}"), problem);
    let Value::Object(call) = call else {
        return Err(wrong("", "must be an object"));
    };
    let mut fields = Fields::new(call);
    let Some(id) = take_text(&mut fields, "id", at)?.filter(|id| !id.is_empty()) else {
        return Err(wrong(".id", "is missing"));
    };
    if !matches!(fields.take("type"), Some(Value::String(kind)) if kind == "function") {
        return Err(wrong(".type", "must be \"function\""));
    }
    let Some(Value::Object(function)) = fields.take("function") else {
        return Err(wrong(".function", "must be an object"));
    };
    // Some clients send the place of a call back, which they had from a stream.
    fields.take("index");
    fields.finish(&[]).map_err(|error| error.param(at.to_owned()))?;
    let mut function = Fields::new(function);
    let Some(name) = take_text(&mut function, "name", &format!("{at}.function"))? else {
        return Err(wrong(".function.name", "is missing"));
    };
    let arguments = match function.take("arguments") {
        // What a call without arguments sometimes has.
        Some(Value::String(text)) if text.trim().is_empty() => Value::Object(Map::new()),
        // An answer that was cut comes back with half an object: it stays the text that it is.
        Some(Value::String(text)) => {
            let object = serde_json::from_str(&text).ok().filter(Value::is_object);
            object.unwrap_or(Value::String(text))
        }
        _ => return Err(wrong(".function.arguments", "must be a string")),
    };
    function
        .finish(&[])
        .map_err(|error| error.param(format!("{at}.function")))?;
    Ok(json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}))
}

fn join_parts(parts: Vec<Value>, at: &str) -> Result<String, ApiError> {
    let mut text = String::new();
    for part in parts {
        match (part["type"].as_str(), part["text"].as_str()) {
            (Some("text"), Some(piece)) => text.push_str(piece),
            (Some("text") | None, _) => {
                return Err(invalid(
                    at,
                    "must have parts like {\"type\": \"text\", \"text\": \"…\"}",
                ));
            }
            (Some(_), _) => {
                return Err(unsupported(
                    at,
                    "may only have parts of text: this model reads nothing else",
                ));
            }
        }
    }
    Ok(text)
}

fn unsupported(at: &str, problem: &str) -> ApiError {
    ApiError::new(Code::UnsupportedParameter, format!("`{at}`: {problem}")).param(at.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(id: &str, arguments: &str) -> Value {
        json!({"id": id, "type": "function", "function": {"name": "f", "arguments": arguments}})
    }

    #[test]
    fn messages_come_out_as_templates_expect_them() {
        let checked = check(json!([
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": "c", "refusal": null, "tool_calls": [], "annotations": []},
        ]));
        let expected = [
            json!({"role": "system", "content": "be brief"}),
            json!({"role": "user", "content": "ab"}),
            json!({"role": "assistant", "content": "c"}),
        ];
        assert_eq!(checked.unwrap(), expected);
    }

    #[test]
    fn calls_come_with_objects_and_their_results_with_ids() {
        let checked = check(json!([
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": null, "reasoning_content": "r", "tool_calls": [call("1", "{\"x\": [1]}"), call("2", "")]},
            {"role": "tool", "tool_call_id": "2", "content": "two"},
            {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "one"}]},
        ]));
        let function = |arguments: Value| json!({"name": "f", "arguments": arguments});
        let calls = json!([
            {"id": "1", "type": "function", "function": function(json!({"x": [1]}))},
            {"id": "2", "type": "function", "function": function(json!({}))},
        ]);
        let expected = [
            json!({"role": "user", "content": "a"}),
            json!({"role": "assistant", "content": null, "reasoning_content": "r", "tool_calls": calls}),
            json!({"role": "tool", "content": "two", "tool_call_id": "2"}),
            json!({"role": "tool", "content": "one", "tool_call_id": "1"}),
        ];
        assert_eq!(checked.unwrap(), expected);
    }

    #[test]
    fn wrong_messages_are_refused_with_their_place() {
        for (messages, param) in [
            (json!("hi"), "messages"),
            (json!([]), "messages"),
            (json!(["hi"]), "messages[0]"),
            (
                json!([{"role": "user", "content": "x"}, {"role": "king", "content": "x"}]),
                "messages[1].role",
            ),
            (json!([{"role": "user"}]), "messages[0].content"),
            (json!([{"role": "assistant"}]), "messages[0].content"),
            (
                json!([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
                "messages[0].content",
            ),
            (
                json!([{"role": "assistant", "content": "x", "tool_calls": [{}]}]),
                "messages[0].tool_calls[0].id",
            ),
            (
                json!([{"role": "assistant", "content": "x", "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": {}}}]}]),
                "messages[0].tool_calls[0].function.arguments",
            ),
            (
                json!([{"role": "user", "content": "x", "tool_calls": [call("1", "{}")]}]),
                "messages[0].tool_calls",
            ),
            (json!([{"role": "tool", "content": "x"}]), "messages[0].tool_call_id"),
            (
                json!([{"role": "assistant", "tool_calls": [call("1", "{}")]}, {"role": "tool", "content": "x", "tool_call_id": "2"}]),
                "messages[1].tool_call_id",
            ),
            (json!([{"role": "function", "content": "x"}]), "messages[0].role"),
            (json!([{"role": "user", "content": "x", "typo": 1}]), "messages[0]"),
        ] {
            let error = serde_json::to_value(check(messages).unwrap_err().body()).unwrap();
            assert_eq!(error["error"]["param"], param, "{error}");
        }
    }
}
