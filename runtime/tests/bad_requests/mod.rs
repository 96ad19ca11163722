//! What clients get wrong in the fields of their requests: what is added to a good request, the code of the error, and
//! the field that it names.

#![expect(clippy::too_many_lines, reason = "tables")]

use serde_json::{Value, json};

pub(crate) type Mistake = (Value, &'static str, &'static str);

const INVALID: &str = "invalid_value";
const UNKNOWN: &str = "unknown_parameter";
const UNSUPPORTED: &str = "unsupported_parameter";
const GRAMMAR: &str = "invalid_grammar";

/// Of chats and of plain completions.
pub(crate) fn shared() -> Vec<Mistake> {
    vec![
        (json!({"tempurature": 1}), UNKNOWN, "tempurature"),
        (json!({"\u{202e}typo": 1}), UNKNOWN, "\u{202e}typo"),
        (json!({"model": 5}), INVALID, "model"),
        (json!({"model": null}), INVALID, "model"),
        (json!({"model": ["smol"]}), INVALID, "model"),
        (json!({"temperature": 9}), INVALID, "temperature"),
        (json!({"temperature": -0.1}), INVALID, "temperature"),
        (json!({"temperature": "NaN"}), INVALID, "temperature"),
        (json!({"temperature": true}), INVALID, "temperature"),
        (json!({"temperature": 1e308}), INVALID, "temperature"),
        (json!({"top_p": 1.1}), INVALID, "top_p"),
        (json!({"top_p": "1"}), INVALID, "top_p"),
        (json!({"min_p": -1}), INVALID, "min_p"),
        (json!({"top_k": -2}), INVALID, "top_k"),
        (json!({"top_k": 1.5}), INVALID, "top_k"),
        (json!({"frequency_penalty": 2.5}), INVALID, "frequency_penalty"),
        (json!({"presence_penalty": -3}), INVALID, "presence_penalty"),
        (json!({"repetition_penalty": "a"}), INVALID, "repetition_penalty"),
        (json!({"seed": 1.5}), INVALID, "seed"),
        (json!({"seed": "7"}), INVALID, "seed"),
        (json!({"seed": 1e30}), INVALID, "seed"),
        (json!({"n": 0}), INVALID, "n"),
        (json!({"n": 200}), INVALID, "n"),
        (json!({"n": 1.5}), INVALID, "n"),
        (json!({"max_tokens": 0}), INVALID, "max_tokens"),
        (json!({"max_tokens": -1}), INVALID, "max_tokens"),
        (json!({"max_tokens": "10"}), INVALID, "max_tokens"),
        (json!({"max_tokens": 1e20}), INVALID, "max_tokens"),
        (
            json!({"max_tokens": 3, "max_completion_tokens": 4}),
            INVALID,
            "max_tokens",
        ),
        (json!({"stop": ""}), INVALID, "stop"),
        (json!({"stop": [""]}), INVALID, "stop"),
        (json!({"stop": 5}), INVALID, "stop"),
        (json!({"stop": [null]}), INVALID, "stop"),
        (json!({"stop": vec!["x"; 10_000]}), INVALID, "stop"),
        (json!({"stop": "x".repeat(100_000)}), INVALID, "stop"),
        (json!({"stream": "yes"}), INVALID, "stream"),
        (json!({"stream": 1}), INVALID, "stream"),
        (
            json!({"stream_options": {"include_usage": true}}),
            INVALID,
            "stream_options",
        ),
        (json!({"stream": true, "stream_options": []}), INVALID, "stream_options"),
        (json!({"stream": true, "stream_options": {"typo": 1}}), UNKNOWN, "typo"),
        (json!({"logit_bias": {"1": 101}}), INVALID, "logit_bias"),
        (json!({"logit_bias": {"1": "a"}}), INVALID, "logit_bias"),
        (json!({"logit_bias": {"-1": 1}}), INVALID, "logit_bias"),
        (json!({"logit_bias": {"99999999": 1}}), INVALID, "logit_bias"),
        (json!({"logit_bias": [1, 2]}), INVALID, "logit_bias"),
        (json!({"service_tier": "priority"}), UNSUPPORTED, "service_tier"),
        (json!({"store": true}), UNSUPPORTED, "store"),
        (json!({"response_format": "json"}), INVALID, "response_format"),
        (json!({"response_format": {}}), INVALID, "response_format"),
        (json!({"response_format": {"type": "xml"}}), INVALID, "response_format"),
        (
            json!({"response_format": {"type": "json_schema"}}),
            INVALID,
            "response_format",
        ),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}}),
            INVALID,
            "response_format.json_schema.name",
        ),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": 5}}}),
            INVALID,
            "response_format.json_schema.schema",
        ),
        (json!({"guided_json": "{"}), INVALID, "guided_json"),
        (json!({"guided_regex": ["a"]}), INVALID, "guided_regex"),
        (json!({"guided_choice": []}), INVALID, "guided_choice"),
        (
            json!({"guided_choice": ["a"], "guided_regex": "a"}),
            INVALID,
            "guided_choice",
        ),
        (
            json!({"structured_outputs": {"grammar": "root ::= x"}}),
            INVALID,
            "structured_outputs",
        ),
        (json!({"guided_regex": "("}), GRAMMAR, ""),
        (json!({"guided_json": {"$ref": "#/$defs/none"}}), GRAMMAR, ""),
        (
            json!({"guided_json": {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}}),
            GRAMMAR,
            "",
        ),
        (
            json!({"guided_json": {"type": "array", "items": {"type": "string"}, "uniqueItems": true}}),
            GRAMMAR,
            "",
        ),
        (
            json!({"guided_json": {"enum": vec!["a value that is not short"; 5_000]}}),
            GRAMMAR,
            "",
        ),
    ]
}

/// Of chats alone.
pub(crate) fn chats() -> Vec<Mistake> {
    let user = json!({"role": "user", "content": "Hi"});
    let call =
        |arguments: &str| json!({"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}});
    let called = |arguments: &str| json!({"role": "assistant", "tool_calls": [call(arguments)]});
    let wrong_call = |arguments: Value| json!({"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}]});
    let function = |function: Value| json!({"tools": [{"type": "function", "function": function}]});
    vec![
        // Whether this becomes too complex depends on what is drawn: here always the same.
        (
            json!({"guided_regex": "(((a{0,999}){0,999}){0,999}){0,999}"}),
            GRAMMAR,
            "",
        ),
        (json!({"messages": null}), INVALID, "messages"),
        (json!({"messages": []}), INVALID, "messages"),
        (json!({"messages": "Hi"}), INVALID, "messages"),
        (json!({"messages": {}}), INVALID, "messages"),
        (json!({"messages": ["Hi"]}), INVALID, "messages[0]"),
        (json!({"messages": [null]}), INVALID, "messages[0]"),
        (json!({"messages": [{}]}), INVALID, "messages[0].role"),
        (
            json!({"messages": [user, {"role": "king", "content": "Hi"}]}),
            INVALID,
            "messages[1].role",
        ),
        (
            json!({"messages": [{"role": "function", "content": "Hi"}]}),
            UNSUPPORTED,
            "messages[0].role",
        ),
        (json!({"messages": [{"role": "user"}]}), INVALID, "messages[0].content"),
        (
            json!({"messages": [{"role": "user", "content": null}]}),
            INVALID,
            "messages[0].content",
        ),
        (
            json!({"messages": [{"role": "user", "content": 5}]}),
            INVALID,
            "messages[0].content",
        ),
        (
            json!({"messages": [{"role": "user", "content": {}}]}),
            INVALID,
            "messages[0].content",
        ),
        (
            json!({"messages": [{"role": "user", "content": ["Hi"]}]}),
            INVALID,
            "messages[0].content",
        ),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "text"}]}]}),
            INVALID,
            "messages[0].content",
        ),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}),
            UNSUPPORTED,
            "messages[0].content",
        ),
        (
            json!({"messages": [{"role": "user", "content": "Hi", "typo": 1}]}),
            UNKNOWN,
            "messages[0]",
        ),
        (
            json!({"messages": [{"role": "user", "content": "Hi", "name": 5}]}),
            INVALID,
            "messages[0].name",
        ),
        (
            json!({"messages": [{"role": "user", "content": "Hi", "tool_calls": [call("{}")]}]}),
            UNSUPPORTED,
            "messages[0].tool_calls",
        ),
        (
            json!({"messages": [{"role": "assistant", "content": null}]}),
            INVALID,
            "messages[0].content",
        ),
        (
            json!({"messages": [{"role": "assistant", "tool_calls": {}}]}),
            INVALID,
            "messages[0].tool_calls",
        ),
        (
            json!({"messages": [{"role": "assistant", "tool_calls": ["f"]}]}),
            INVALID,
            "messages[0].tool_calls[0]",
        ),
        (
            json!({"messages": [{"role": "assistant", "tool_calls": [{}]}]}),
            INVALID,
            "messages[0].tool_calls[0].id",
        ),
        (
            json!({"messages": [wrong_call(json!({}))]}),
            INVALID,
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            json!({"messages": [wrong_call(json!(5))]}),
            INVALID,
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            json!({"messages": [{"role": "tool", "content": "x"}]}),
            INVALID,
            "messages[0].tool_call_id",
        ),
        (
            json!({"messages": [{"role": "tool", "content": "x", "tool_call_id": 1}]}),
            INVALID,
            "messages[0].tool_call_id",
        ),
        (
            json!({"messages": [called("{}"), {"role": "tool", "content": "x", "tool_call_id": "2"}]}),
            INVALID,
            "messages[1].tool_call_id",
        ),
        (
            json!({"messages": [called("{}"), user, {"role": "tool", "content": "x", "tool_call_id": "1"}]}),
            INVALID,
            "messages[2].tool_call_id",
        ),
        (json!({"messages": vec![user.clone(); 10_001]}), INVALID, "messages"),
        (json!({"logprobs": 1}), INVALID, "logprobs"),
        (json!({"top_logprobs": 2}), INVALID, "top_logprobs"),
        (json!({"logprobs": true, "top_logprobs": 21}), INVALID, "top_logprobs"),
        (json!({"logprobs": true, "top_logprobs": -1}), INVALID, "top_logprobs"),
        (json!({"tools": "f"}), INVALID, "tools"),
        (json!({"tools": [null]}), INVALID, "tools[0]"),
        (json!({"tools": vec![json!({}); 200]}), INVALID, "tools"),
        (json!({"tools": [{"type": "function"}]}), INVALID, "tools[0].function"),
        (
            json!({"tools": [{"type": "custom", "custom": {"name": "f"}}]}),
            UNSUPPORTED,
            "tools[0].type",
        ),
        (function(json!({})), INVALID, "tools[0].function.name"),
        (function(json!({"name": "a b"})), INVALID, "tools[0].function.name"),
        (
            function(json!({"name": "x".repeat(65)})),
            INVALID,
            "tools[0].function.name",
        ),
        (
            function(json!({"name": "f", "description": 1})),
            INVALID,
            "tools[0].function.description",
        ),
        (
            function(json!({"name": "f", "strict": "yes"})),
            INVALID,
            "tools[0].function.strict",
        ),
        (
            function(json!({"name": "f", "parameters": "{}"})),
            INVALID,
            "tools[0].function.parameters",
        ),
        (
            function(json!({"name": "f", "parameters": {"type": "string"}})),
            INVALID,
            "tools[0].function.parameters.type",
        ),
        (
            function(json!({"name": "f", "parameters": {"properties": {"a": {"pattern": "(", "type": "string"}}}})),
            GRAMMAR,
            "",
        ),
        (json!({"tool_choice": "required"}), INVALID, "tool_choice"),
        (json!({"tool_choice": "f"}), INVALID, "tool_choice"),
        (json!({"tool_choice": {"type": "function"}}), INVALID, "tool_choice"),
        (
            json!({"tool_choice": {"type": "function", "function": {"name": "f"}}}),
            INVALID,
            "tool_choice",
        ),
        (json!({"parallel_tool_calls": "no"}), INVALID, "parallel_tool_calls"),
        (json!({"functions": [{"name": "f"}]}), UNSUPPORTED, "functions"),
        (json!({"function_call": {"name": "f"}}), UNSUPPORTED, "function_call"),
        (json!({"modalities": ["audio"]}), UNSUPPORTED, "modalities"),
        (json!({"chat_template_kwargs": []}), INVALID, "chat_template_kwargs"),
        (json!({"reasoning_effort": "high"}), UNKNOWN, "reasoning_effort"),
        (json!({"prompt": "Hi"}), UNKNOWN, "prompt"),
    ]
}

/// Of plain completions alone.
pub(crate) fn completions() -> Vec<Mistake> {
    vec![
        (json!({"prompt": null}), INVALID, "prompt"),
        (json!({"prompt": 5}), INVALID, "prompt"),
        (json!({"prompt": ["a", "b"]}), INVALID, "prompt"),
        (json!({"prompt": [99_999_999]}), INVALID, "prompt"),
        (json!({"prompt": [-1]}), INVALID, "prompt"),
        (json!({"logprobs": 6}), INVALID, "logprobs"),
        (json!({"logprobs": true}), INVALID, "logprobs"),
        (json!({"echo": true}), UNSUPPORTED, "echo"),
        (json!({"suffix": "end"}), UNSUPPORTED, "suffix"),
        (json!({"best_of": 3}), UNSUPPORTED, "best_of"),
        (json!({"messages": []}), UNKNOWN, "messages"),
        (json!({"tools": []}), UNKNOWN, "tools"),
    ]
}

/// Of the count of tokens.
pub(crate) fn tokenize() -> Vec<Mistake> {
    vec![
        (json!({"prompt": 5}), INVALID, "prompt"),
        (json!({"prompt": null}), INVALID, "prompt"),
        (json!({"prompt": "a", "messages": []}), INVALID, "messages"),
        (json!({"add_special_tokens": 1}), INVALID, "add_special_tokens"),
        (json!({"return_token_strs": "yes"}), INVALID, "return_token_strs"),
        (json!({"typo": 1}), UNKNOWN, "typo"),
    ]
}

/// Of text from tokens.
pub(crate) fn detokenize() -> Vec<Mistake> {
    vec![
        (json!({"tokens": null}), INVALID, "tokens"),
        (json!({"tokens": "1"}), INVALID, "tokens"),
        (json!({"tokens": [-1]}), INVALID, "tokens"),
        (json!({"tokens": [99_999_999]}), INVALID, "tokens"),
        (json!({"typo": 1}), UNKNOWN, "typo"),
    ]
}
