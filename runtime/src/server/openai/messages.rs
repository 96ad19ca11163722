//! The messages of a chat, checked and brought into the form that templates expect. Pure.

use super::fields::{Fields, invalid};
use crate::server::error::{ApiError, Code};
use serde_json::{Map, Value, json};

/// More messages than any conversation has.
const MAX_MESSAGES: usize = 10_000;

/// Checks the messages. Parts of text become one text, since templates expect one.
pub(super) fn check(messages: Value) -> Result<Value, ApiError> {
    let Value::Array(messages) = messages else {
        return Err(invalid("messages", "must be a list"));
    };
    if messages.is_empty() || messages.len() > MAX_MESSAGES {
        return Err(invalid(
            "messages",
            &format!("must have from 1 to {MAX_MESSAGES} messages"),
        ));
    }
    let checked = messages
        .into_iter()
        .enumerate()
        .map(|(index, message)| check_message(index, message));
    checked.collect::<Result<Vec<_>, _>>().map(Value::Array)
}

fn check_message(index: usize, message: Value) -> Result<Value, ApiError> {
    let at = |field: &str| format!("messages[{index}]{field}");
    let Value::Object(message) = message else {
        return Err(invalid(at(""), "must be an object"));
    };
    let mut fields = Fields::new(message);
    let role = match fields.take("role") {
        // OpenAI's newer name for the same role; templates know the older one.
        Some(Value::String(role)) if role == "developer" => "system".to_owned(),
        Some(Value::String(role)) if ["system", "user", "assistant"].contains(&role.as_str()) => role,
        Some(Value::String(role)) if role == "tool" || role == "function" => {
            return Err(unsupported(at(".role"), "tools are not supported by this server"));
        }
        _ => return Err(invalid(at(".role"), "must be system, developer, user or assistant")),
    };
    let content = match fields.take("content") {
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => join_parts(parts, &at(".content"))?,
        _ => return Err(invalid(at(".content"), "must be a string or a list of text parts")),
    };
    let mut checked = Map::from_iter([("role".to_owned(), json!(role)), ("content".to_owned(), json!(content))]);
    if let Some(name) = fields.string("name")? {
        checked.insert("name".to_owned(), json!(name));
    }
    // Clients send an answer back as they got it, with empty members.
    for name in ["tool_calls", "annotations", "refusal"] {
        match fields.take(name) {
            Some(value) if !super::parameters::is_empty(&value) => {
                return Err(unsupported(at(&format!(".{name}")), "is not supported by this server"));
            }
            _ => {}
        }
    }
    fields.finish(&[]).map_err(|error| error.param(at("")))?;
    Ok(Value::Object(checked))
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
                    at.to_owned(),
                    "may only have parts of text: this model reads nothing else",
                ));
            }
        }
    }
    Ok(text)
}

fn unsupported(at: String, problem: &str) -> ApiError {
    ApiError::new(Code::UnsupportedParameter, format!("`{at}`: {problem}")).param(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_out_as_templates_expect_them() {
        let checked = check(json!([
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": "c", "refusal": null, "tool_calls": [], "annotations": []},
        ]));
        let expected = json!([
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "ab"},
            {"role": "assistant", "content": "c"},
        ]);
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
            (
                json!([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
                "messages[0].content",
            ),
            (
                json!([{"role": "assistant", "content": "x", "tool_calls": [{}]}]),
                "messages[0].tool_calls",
            ),
            (json!([{"role": "tool", "content": "x"}]), "messages[0].role"),
            (json!([{"role": "user", "content": "x", "typo": 1}]), "messages[0]"),
        ] {
            let error = serde_json::to_value(check(messages).unwrap_err().body()).unwrap();
            assert_eq!(error["error"]["param"], param, "{error}");
        }
    }
}
