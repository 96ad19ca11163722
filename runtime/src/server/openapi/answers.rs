//! What answers look like: JSON schemas.

#![expect(clippy::needless_pass_by_value, reason = "each schema is built where it is used")]

use serde_json::{Value, json};

fn object(required: &[&str], properties: Value) -> Value {
    json!({"type": "object", "required": required, "properties": properties})
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

fn list(items: Value) -> Value {
    json!({"type": "array", "items": items})
}

fn maybe(schema: Value) -> Value {
    json!({"anyOf": [schema, {"type": "null"}]})
}

fn embeddings(text: &Value, count: &Value) -> Value {
    object(
        &["object", "data", "model", "usage"],
        json!({
            "object": {"const": "list"}, "model": text,
            "data": list(object(
                &["object", "index", "embedding"],
                json!({
                    "object": {"const": "embedding"}, "index": count,
                    "embedding": {"anyOf": [list(json!({"type": "number"})), text]}
                }),
            )),
            "usage": object(&["prompt_tokens", "total_tokens"], json!({"prompt_tokens": count, "total_tokens": count})),
        }),
    )
}

/// All schemas, by name.
pub(super) fn schemas() -> Value {
    let text = json!({"type": "string"});
    let count = json!({"type": "integer", "minimum": 0});
    let reason = json!({"enum": ["stop", "length", "tool_calls", null]});
    let function = object(&["arguments"], json!({"name": text, "arguments": text}));
    let call = object(
        &["function"],
        json!({"index": count, "id": text, "type": {"const": "function"}, "function": function}),
    );
    let head = |object: &str| json!({"id": text, "object": {"const": object}, "created": count, "model": text, "system_fingerprint": text});
    let envelope = |object_name: &str, choice: Value, usage: Value| {
        let mut properties = head(object_name);
        properties["choices"] = list(choice);
        properties["usage"] = usage;
        object(
            &["id", "object", "created", "model", "system_fingerprint", "choices"],
            properties,
        )
    };
    let message = object(
        &["role", "content"],
        json!({
            "role": {"const": "assistant"}, "content": maybe(text.clone()), "reasoning_content": text, "refusal": {"type": "null"},
            "tool_calls": list(call.clone())
        }),
    );
    let delta = json!({"type": "object", "properties": {
        "role": text, "content": text, "reasoning_content": text, "tool_calls": list(call)
    }});
    let choice = |name: &str, content: Value| {
        let mut properties = json!({"index": count, "finish_reason": reason, "logprobs": {"type": ["object", "null"]}});
        properties[name] = content;
        object(&["index", name, "finish_reason", "logprobs"], properties)
    };
    let details = |name: &str| object(&[name], json!({name: count}));
    json!({
        "Error": object(&["error"], json!({"error": object(
            &["message", "type", "param", "code"],
            json!({"message": text, "type": text, "param": maybe(text.clone()), "code": text}),
        )})),
        "Usage": object(
            &["prompt_tokens", "completion_tokens", "total_tokens"],
            json!({
                "prompt_tokens": count, "completion_tokens": count, "total_tokens": count,
                "prompt_tokens_details": details("cached_tokens"), "completion_tokens_details": details("reasoning_tokens")
            }),
        ),
        "ChatCompletion": envelope("chat.completion", choice("message", message), reference("Usage")),
        "ChatCompletionChunk": envelope("chat.completion.chunk", choice("delta", delta), maybe(reference("Usage"))),
        "Completion": envelope("text_completion", choice("text", text.clone()), maybe(reference("Usage"))),
        "Response": object(
            &["id", "object", "created_at", "status", "error", "incomplete_details", "model", "output", "usage"],
            json!({
                "id": text, "object": {"const": "response"}, "created_at": count, "model": text,
                "status": {"enum": ["in_progress", "completed", "incomplete", "failed"]},
                "output": list(object(&["id", "type", "status"], json!({"id": text, "type": {"enum": ["message", "reasoning", "function_call"]}}))),
                "usage": maybe(object(
                    &["input_tokens", "output_tokens", "total_tokens"],
                    json!({
                        "input_tokens": count, "output_tokens": count, "total_tokens": count,
                        "input_tokens_details": details("cached_tokens"), "output_tokens_details": details("reasoning_tokens")
                    }),
                )),
            }),
        ),
        "Embeddings": embeddings(&text, &count),
        "Model": object(
            &["id", "object", "created", "owned_by"],
            json!({"id": text, "object": {"const": "model"}, "created": count, "owned_by": text, "root": text, "max_model_len": count, "digest": text}),
        ),
        "ModelList": object(&["object", "data"], json!({"object": {"const": "list"}, "data": list(reference("Model"))})),
        "Tokens": object(
            &["count", "max_model_len", "tokens"],
            json!({"count": count, "max_model_len": count, "tokens": list(count.clone()), "token_strs": maybe(list(text.clone()))}),
        ),
        "Text": object(&["prompt"], json!({"prompt": text})),
    })
}
