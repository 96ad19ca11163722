//! Tools for a model whose template knows none: told in a system message, in the way that most models know.

use super::probe::python_json;
use serde_json::{Value, json};

/// What a model is told before the list of the tools, and behind it.
const BEFORE: &str = "You can call the following functions, each of which is described by a line of JSON:\n<tools>";
const BEHIND: &str = "</tools>\nTo call a function, answer with its name and its arguments in this form:\n<tool_call>\n{\"name\": \"the name\", \"arguments\": {\"an argument\": \"its value\"}}\n</tool_call>";

/// Messages without calls and answers of tools in them, in which the same is said in words.
pub(super) fn rewrite(messages: Vec<Value>, tools: Option<Vec<Value>>) -> Vec<Value> {
    let mut rewritten: Vec<Value> = Vec::with_capacity(messages.len() + 1);
    let mut is_behind_answer = false;
    for message in messages {
        let is_answer = message["role"] == "tool";
        let text = text_of(&message);
        if !is_answer {
            let mut plain = message;
            if let Some(object) = plain.as_object_mut() {
                object.remove("tool_calls");
            }
            plain["content"] = Value::String(text);
            rewritten.push(plain);
        } else if is_behind_answer && let Some(last) = rewritten.last_mut() {
            // Templates want users and answers to take turns.
            let before = last["content"].as_str().unwrap_or_default();
            last["content"] = Value::String(format!("{before}\n{text}"));
        } else {
            rewritten.push(json!({"role": "user", "content": text}));
        }
        is_behind_answer = is_answer;
    }
    if let Some(tools) = tools {
        let lines: Vec<String> = tools.iter().map(|tool| python_json(&tool["function"])).collect();
        let told = format!("{BEFORE}\n{}\n{BEHIND}", lines.join("\n"));
        match rewritten.first_mut() {
            Some(first) if first["role"] == "system" => {
                let before = first["content"].as_str().unwrap_or_default();
                first["content"] = Value::String(format!("{before}\n\n{told}"));
            }
            _ => rewritten.insert(0, json!({"role": "system", "content": told})),
        }
    }
    rewritten
}

fn text_of(message: &Value) -> String {
    let content = message["content"].as_str().unwrap_or_default();
    if message["role"] == "tool" {
        return format!("<tool_response>\n{content}\n</tool_response>");
    }
    let calls = message["tool_calls"].as_array().into_iter().flatten();
    let calls = calls.map(|call| {
        let (name, arguments) = (&call["function"]["name"], &call["function"]["arguments"]);
        format!(
            "<tool_call>\n{{\"name\": {name}, \"arguments\": {}}}\n</tool_call>",
            python_json(arguments)
        )
    });
    let content = (!content.is_empty()).then(|| content.to_owned());
    content.into_iter().chain(calls).collect::<Vec<_>>().join("\n")
}
