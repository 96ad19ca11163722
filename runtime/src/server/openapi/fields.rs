//! Every field of a request: what it is, and what becomes of it. The page of the reference and the document that is served are
//! made of these tables, and a test asks a server about each line.

/// What becomes of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Support {
    /// It must be there.
    Required,
    /// It does what it says.
    Supported,
    /// Only the values that change nothing are taken; others are refused by name.
    Only,
    /// It is taken and has no effect.
    Harmless,
    /// It is refused by name.
    Refused,
}

/// A field of a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field {
    pub(super) name: &'static str,
    /// Its JSON schema, as text.
    pub(super) schema: &'static str,
    pub(super) support: Support,
    /// What it means, in Markdown; for [`Support::Only`] the values that are taken.
    pub(super) text: &'static str,
}

const fn field(name: &'static str, schema: &'static str, support: Support, text: &'static str) -> Field {
    Field {
        name,
        schema,
        support,
        text,
    }
}

const ANY: &str = "{}";
const TEXT: &str = r#"{"type": "string"}"#;
const FLAG: &str = r#"{"type": "boolean"}"#;
const OBJECT: &str = r#"{"type": "object"}"#;
const LIST: &str = r#"{"type": "array"}"#;
const COUNT: &str = r#"{"type": "integer", "minimum": 1}"#;
const UNIT: &str = r#"{"type": "number", "minimum": 0, "maximum": 1}"#;
const PENALTY: &str = r#"{"type": "number", "minimum": -2, "maximum": 2}"#;

use Support::{Harmless, Only, Refused, Required, Supported};

/// The name of the model.
pub(super) const MODEL: Field = field(
    "model",
    TEXT,
    Required,
    "the name that is served, or one of its aliases",
);

/// How tokens are drawn and answers delivered: everywhere that something is generated.
pub(super) const GENERATION: &[Field] = &[
    field(
        "temperature",
        r#"{"type": "number", "minimum": 0, "maximum": 2}"#,
        Supported,
        "0 takes the likeliest token; without it what the model's authors suggest, or 1",
    ),
    field(
        "top_p",
        UNIT,
        Supported,
        "the likeliest tokens that have this much of the probability together",
    ),
    field(
        "top_k",
        r#"{"type": "integer", "minimum": -1}"#,
        Supported,
        "so many of the likeliest tokens; 0 and -1 are all of them; as vLLM has it",
    ),
    field(
        "min_p",
        UNIT,
        Supported,
        "tokens that are at least this likely, compared with the likeliest; as vLLM has it",
    ),
    field(
        "frequency_penalty",
        PENALTY,
        Supported,
        "for each time that a token was drawn already",
    ),
    field(
        "presence_penalty",
        PENALTY,
        Supported,
        "for a token that was drawn already",
    ),
    field(
        "repetition_penalty",
        r#"{"type": "number"}"#,
        Supported,
        "for a token that was in the prompt or drawn already; as vLLM has it",
    ),
    field(
        "seed",
        r#"{"type": "integer"}"#,
        Supported,
        "the same request with the same seed is drawn alike",
    ),
    field(
        "stop",
        r#"{"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "maxItems": 16}]}"#,
        Supported,
        "texts that end the answer and are no part of it",
    ),
    field(
        "logit_bias",
        OBJECT,
        Supported,
        "ids of tokens (see `/tokenize`) and numbers from -100 to 100",
    ),
    field("stream", FLAG, Supported, "the answer comes in server-sent events"),
    field(
        "structured_outputs",
        OBJECT,
        Supported,
        "one of `json`, `regex`, `choice`, `json_object`; as vLLM has it; see [answers of a given form](../guides/structured-output.md)",
    ),
    field(
        "guided_json",
        OBJECT,
        Supported,
        "a JSON schema; as older versions of vLLM have it",
    ),
    field(
        "guided_regex",
        TEXT,
        Supported,
        "a regular expression; as older versions of vLLM have it",
    ),
    field(
        "guided_choice",
        LIST,
        Supported,
        "texts, of which the answer is one; as older versions of vLLM have it",
    ),
    field("user", TEXT, Harmless, ""),
    field("metadata", OBJECT, Harmless, "given back by `/v1/responses`"),
    field("safety_identifier", TEXT, Harmless, ""),
    field(
        "prompt_cache_key",
        TEXT,
        Harmless,
        "prompts that begin alike are found again without it",
    ),
    field("prompt_cache_retention", TEXT, Harmless, ""),
    field("store", FLAG, Only, "`false`: nothing is kept"),
    field("service_tier", TEXT, Only, "`auto`, `default`"),
];

/// Of chats and completions.
pub(super) const OLDER: &[Field] = &[
    field(
        "max_tokens",
        COUNT,
        Supported,
        "with the prompt no more than the context, otherwise 400 with the counts",
    ),
    field("max_completion_tokens", COUNT, Supported, "the newer name of the same"),
    field(
        "n",
        COUNT,
        Supported,
        "answers; at most as many as the server generates at the same time",
    ),
    field(
        "stream_options",
        OBJECT,
        Supported,
        "`include_usage`; `include_obfuscation` is taken and adds nothing",
    ),
    field(
        "response_format",
        OBJECT,
        Supported,
        "`text`, `json_object`, `json_schema`; see [answers of a given form](../guides/structured-output.md)",
    ),
];

/// What chats and responses have in common.
pub(super) const CONVERSATION: &[Field] = &[
    field("tools", LIST, Supported, "functions; see [tools](../guides/tools.md)"),
    field(
        "tool_choice",
        ANY,
        Supported,
        "`auto`, `none`, `required`, or one function",
    ),
    field(
        "parallel_tool_calls",
        FLAG,
        Supported,
        "whether there may be several calls in one answer; true without it",
    ),
    field(
        "chat_template_kwargs",
        OBJECT,
        Supported,
        "variables for the model's template, such as `enable_thinking`; as vLLM has it",
    ),
];

/// `POST /v1/chat/completions` alone.
pub(super) const CHAT: &[Field] = &[
    field(
        "messages",
        LIST,
        Required,
        "roles `system`, `developer`, `user`, `assistant`, `tool`; contents are texts or lists of parts of type `text`",
    ),
    field(
        "logprobs",
        FLAG,
        Supported,
        "how likely tokens were by the model itself, before bias, penalties, temperature and form",
    ),
    field(
        "top_logprobs",
        r#"{"type": "integer", "minimum": 0, "maximum": 20}"#,
        Supported,
        "with so many of the likeliest tokens",
    ),
    field("modalities", LIST, Only, "`[\"text\"]`"),
    field("functions", LIST, Only, "an empty list; the newer name is `tools`"),
    field(
        "function_call",
        ANY,
        Only,
        "`none`, `auto`; the newer name is `tool_choice`",
    ),
    field("audio", OBJECT, Refused, ""),
    field("prediction", OBJECT, Refused, ""),
    field("reasoning_effort", TEXT, Refused, "see `chat_template_kwargs`"),
    field("verbosity", TEXT, Refused, ""),
    field("web_search_options", OBJECT, Refused, ""),
];

/// `POST /v1/completions` alone.
pub(super) const COMPLETION: &[Field] = &[
    field("prompt", ANY, Required, "one text or one list of tokens"),
    field(
        "logprobs",
        r#"{"type": "integer", "minimum": 0, "maximum": 5}"#,
        Supported,
        "how likely tokens were, with so many of the likeliest",
    ),
    field("best_of", COUNT, Only, "as many as `n`"),
    field("echo", FLAG, Only, "`false`"),
    field("suffix", TEXT, Only, "an empty text"),
];

/// `POST /v1/responses` alone.
pub(super) const RESPONSE: &[Field] = &[
    field(
        "input",
        ANY,
        Required,
        "a text, or items of the types `message`, `function_call`, `function_call_output` and `reasoning`",
    ),
    field("instructions", TEXT, Supported, "a system message before the input"),
    field(
        "max_output_tokens",
        COUNT,
        Supported,
        "with the prompt no more than the context, otherwise 400 with the counts",
    ),
    field(
        "text",
        OBJECT,
        Supported,
        "`format`: `text`, `json_object`, `json_schema`; `verbosity`: only `medium`",
    ),
    field(
        "reasoning",
        OBJECT,
        Only,
        "an object whose members are null; see `chat_template_kwargs`",
    ),
    field("background", FLAG, Only, "`false`"),
    field("include", LIST, Only, "an empty list"),
    field("top_logprobs", r#"{"type": "integer"}"#, Only, "0"),
    field("truncation", TEXT, Only, "`disabled`: nothing is cut silently"),
    field("context_management", LIST, Only, "an empty list"),
    field(
        "previous_response_id",
        TEXT,
        Refused,
        "nothing is kept: send the whole conversation",
    ),
    field(
        "conversation",
        ANY,
        Refused,
        "nothing is kept: send the whole conversation",
    ),
    field("max_tool_calls", COUNT, Refused, ""),
    field("prompt", OBJECT, Refused, ""),
    field(
        "stream_options",
        OBJECT,
        Supported,
        "`include_usage` and `include_obfuscation` are taken and add nothing",
    ),
];

/// `POST /v1/embeddings`.
pub(super) const EMBEDDING: &[Field] = &[
    field(
        "input",
        ANY,
        Required,
        "a text, a list of tokens, or up to 2048 of them in a list; longer than the context is 400 with the counts",
    ),
    field(
        "encoding_format",
        r#"{"enum": ["float", "base64"]}"#,
        Supported,
        "numbers, or their 32 bits in Base64, little-endian",
    ),
    field(
        "dimensions",
        COUNT,
        Supported,
        "so many of the first numbers, made to length 1 again: for models that were trained for it",
    ),
    field("user", TEXT, Harmless, ""),
];

/// `POST /tokenize`.
pub(super) const TOKENIZE: &[Field] = &[
    field("model", TEXT, Supported, "may be left out"),
    field("prompt", TEXT, Supported, "a text; either this or `messages`"),
    field(
        "add_special_tokens",
        FLAG,
        Supported,
        "of a text: with what the model wants before every text; true without it",
    ),
    field("messages", LIST, Supported, "a conversation, by the model's template"),
    field("return_token_strs", FLAG, Supported, "the text of each token, too"),
];

/// `POST /detokenize`.
pub(super) const DETOKENIZE: &[Field] = &[
    field("model", TEXT, Supported, "may be left out"),
    field("tokens", LIST, Required, "ids"),
];
