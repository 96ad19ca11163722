//! The wire form of a response and its items. Pure.

use super::super::answer::{Answer, Call, Cost};
use crate::context::random_id;
use crate::engine::FinishReason;
use serde_json::{Value, json};

/// What a response repeats of its request, and what it is known by.
pub(super) struct Frame {
    pub(super) id: String,
    pub(super) created_at: i64,
    pub(super) model: String,
    pub(super) instructions: Option<String>,
    pub(super) max_output_tokens: Option<usize>,
    pub(super) metadata: Value,
    pub(super) parallel_tool_calls: bool,
    pub(super) temperature: f32,
    pub(super) top_p: f32,
    /// The form of the text.
    pub(super) text: Value,
    pub(super) tools: Value,
    pub(super) tool_choice: Value,
}

impl Frame {
    /// The response with what there is of it. `reason`: what ended it; absent while it is in progress.
    pub(super) fn response(&self, output: &[Value], reason: Option<FinishReason>, cost: Option<Cost>) -> Value {
        let (status, details) = match reason {
            None => ("in_progress", Value::Null),
            Some(FinishReason::Stop) => ("completed", Value::Null),
            Some(FinishReason::Length) => ("incomplete", json!({"reason": "max_output_tokens"})),
        };
        json!({
            "id": self.id, "object": "response", "created_at": self.created_at, "status": status,
            "error": null, "incomplete_details": details, "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens, "metadata": self.metadata, "model": self.model,
            "output": output, "parallel_tool_calls": self.parallel_tool_calls, "previous_response_id": null,
            "reasoning": {"effort": null, "summary": null}, "store": false,
            "temperature": shortest(self.temperature), "text": self.text,
            "tool_choice": self.tool_choice, "tools": self.tools, "top_p": shortest(self.top_p),
            "truncation": "disabled", "usage": cost.map(usage),
        })
    }
}

/// A number of 32 bits with as few digits as tell it apart.
fn shortest(number: f32) -> Value {
    serde_json::from_str(&number.to_string()).unwrap_or(Value::Null)
}

fn usage(
    Cost {
        usage,
        reasoning_tokens,
    }: Cost,
) -> Value {
    json!({
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    })
}

/// The items of an answer.
pub(super) fn output(answer: &Answer) -> Vec<Value> {
    let status = status(answer.reason);
    let mut items = Vec::new();
    if !answer.reasoning.is_empty() {
        items.push(reasoning(&random_id("rs_"), status, Some(&answer.reasoning)));
    }
    if !answer.text.is_empty() || answer.calls.is_empty() {
        items.push(message(&random_id("msg_"), status, Some(&answer.text)));
    }
    items.extend(answer.calls.iter().map(|one| call(&random_id("fc_"), status, one)));
    items
}

/// The status of an item whose answer was ended by this.
pub(super) fn status(reason: Option<FinishReason>) -> &'static str {
    match reason {
        Some(FinishReason::Length) => "incomplete",
        _ => "completed",
    }
}

/// Reasoning; without a text while it begins.
pub(super) fn reasoning(id: &str, status: &str, text: Option<&str>) -> Value {
    let content = text.map(|text| json!({"type": "reasoning_text", "text": text}));
    json!({"id": id, "type": "reasoning", "status": status, "summary": [], "content": content.into_iter().collect::<Value>()})
}

/// A message; without a text while it begins.
pub(super) fn message(id: &str, status: &str, text: Option<&str>) -> Value {
    let content = text.map(text_part);
    json!({"id": id, "type": "message", "status": status, "role": "assistant", "content": content.into_iter().collect::<Value>()})
}

/// The part of a message that is its text.
pub(super) fn text_part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

/// A call.
pub(super) fn call(id: &str, status: &str, call: &Call) -> Value {
    json!({
        "id": id, "type": "function_call", "status": status,
        "call_id": call.id, "name": call.name, "arguments": call.arguments,
    })
}
