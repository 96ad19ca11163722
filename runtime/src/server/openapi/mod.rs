//! The description of the API in the format of `OpenAPI`, which is served, and the page of the reference: both are made of the
//! same tables.

mod answers;
mod fields;

use fields::{
    CHAT, COMPLETION, CONVERSATION, DETOKENIZE, EMBEDDING, Field, GENERATION, MODEL, OLDER, RESPONSE, Support, TOKENIZE,
};
use serde_json::{Map, Value, json};
use std::fmt::Write as _;

/// A route that takes JSON.
struct Route {
    path: &'static str,
    summary: &'static str,
    /// Its own fields first.
    fields: &'static [&'static [Field]],
    answer: &'static str,
    /// What its stream consists of; absent: it has none.
    chunk: Option<&'static str>,
}

const ROUTES: [Route; 6] = [
    Route {
        path: "/v1/chat/completions",
        summary: "Answers a conversation",
        fields: &[&[MODEL], CHAT, CONVERSATION, OLDER, GENERATION],
        answer: "ChatCompletion",
        chunk: Some("ChatCompletionChunk"),
    },
    Route {
        path: "/v1/completions",
        summary: "Continues a text",
        fields: &[&[MODEL], COMPLETION, OLDER, GENERATION],
        answer: "Completion",
        chunk: Some("Completion"),
    },
    Route {
        path: "/v1/responses",
        summary: "Answers a conversation; nothing is kept",
        fields: &[&[MODEL], RESPONSE, CONVERSATION, GENERATION],
        answer: "Response",
        chunk: None,
    },
    Route {
        path: "/v1/embeddings",
        summary: "A vector of length 1 for each text, made as the model says",
        fields: &[&[MODEL], EMBEDDING],
        answer: "Embeddings",
        chunk: None,
    },
    Route {
        path: "/tokenize",
        summary: "The tokens of a text or a conversation, as vLLM has it",
        fields: &[TOKENIZE],
        answer: "Tokens",
        chunk: None,
    },
    Route {
        path: "/detokenize",
        summary: "The text of tokens, as vLLM has it",
        fields: &[DETOKENIZE],
        answer: "Text",
        chunk: None,
    },
];

impl Route {
    fn fields(&self) -> impl Iterator<Item = &'static Field> {
        self.fields.iter().copied().flatten()
    }
}

/// What a request may be answered with beside what it asks for.
const ERRORS: [(&str, &str); 10] = [
    (
        "400",
        "a field is wrong, unknown or unsupported, or the prompt is too long; `param` names the field",
    ),
    ("401", "an API key is needed, or it is a wrong one"),
    ("404", "the model has another name"),
    ("408", "the body came too slowly"),
    ("413", "the body is too large"),
    ("415", "the body is not declared as JSON"),
    (
        "429",
        "the queue is full, or the key's limit is used up; `Retry-After` says when to come back",
    ),
    ("500", "a fault of the server"),
    (
        "503",
        "the model is being loaded, or the server is ending; `Retry-After` says when to come back",
    ),
    ("405", "the path takes another method"),
];

/// The document.
pub fn document() -> Value {
    let mut paths = Map::new();
    for route in &ROUTES {
        paths.insert(route.path.to_owned(), json!({"post": operation(route)}));
    }
    let get = |summary: &str, answer: &str| json!({"get": {"summary": summary, "responses": responses(answer, None)}});
    paths.insert(
        "/v1/models".to_owned(),
        get("The model, by each of its names", "ModelList"),
    );
    let mut model = get("One model", "Model");
    model["get"]["parameters"] =
        json!([{"name": "model", "in": "path", "required": true, "schema": {"type": "string"}}]);
    paths.insert("/v1/models/{model}".to_owned(), model);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Escadre", "version": env!("CARGO_PKG_VERSION"), "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "description": "An OpenAI-compatible API. A field that would change the answer and is not supported is refused by its name; null counts as absent."
        },
        "paths": paths,
        "components": {
            "schemas": answers::schemas(),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "Only where API keys are configured"}}
        },
        "security": [{"key": []}, {}],
    })
}

fn operation(route: &Route) -> Value {
    let known = route.fields().filter(|field| field.support != Support::Refused);
    let properties: Map<String, Value> = known.map(|field| (field.name.to_owned(), property(field))).collect();
    let of = |support: Support| -> Vec<&str> {
        let some = route.fields().filter(|field| field.support == support);
        some.map(|field| field.name).collect()
    };
    json!({
        "summary": route.summary,
        "requestBody": {"required": true, "content": {"application/json": {"schema": {
            "type": "object", "required": of(Support::Required), "properties": properties, "additionalProperties": false,
            // Known fields of OpenAI's API that are refused by name.
            "x-refused": of(Support::Refused),
        }}}},
        "responses": responses(route.answer, route.chunk),
    })
}

fn property(field: &Field) -> Value {
    let mut schema: Value = serde_json::from_str(field.schema).unwrap_or_default();
    schema["description"] = text(field).into();
    schema["x-support"] = word(field.support).into();
    schema
}

fn text(field: &Field) -> String {
    match field.support {
        Support::Only => format!("only {}", field.text),
        _ => field.text.to_owned(),
    }
}

fn word(support: Support) -> &'static str {
    match support {
        Support::Required => "required",
        Support::Supported => "supported",
        Support::Only => "only",
        Support::Harmless => "harmless",
        Support::Refused => "refused",
    }
}

fn responses(answer: &str, chunk: Option<&str>) -> Value {
    let reference = |name: &str| json!({"schema": {"$ref": format!("#/components/schemas/{name}")}});
    let mut content = json!({"application/json": reference(answer)});
    if let Some(chunk) = chunk {
        content["text/event-stream"] = reference(chunk);
    }
    let mut responses = json!({"200": {"description": "The answer", "content": content}});
    for (status, meaning) in ERRORS {
        responses[status] = json!({"description": meaning, "content": {"application/json": reference("Error")}});
    }
    responses
}

/// The page of the reference, in Markdown.
pub fn page() -> String {
    let mut page = String::from(
        "<!-- Written by `make generate-api`; edit runtime/src/server/openapi/ instead. -->\n\
         # The API, field by field\n\n\
         Each server describes itself at `/openapi.json`. A field that would change the answer and is not supported is refused by its\n\
         name (400, `unsupported_parameter` or `unknown_parameter`); null counts as absent everywhere. *Only* means that the named\n\
         values are taken, which change nothing; *harmless* that the field is taken and has no effect.\n",
    );
    for route in &ROUTES {
        write_route(&mut page, route);
    }
    page.push_str("\n## `GET /v1/models`, `GET /v1/models/{model}`\n\nThe model, by each of its names, with its digest and its context.\n");
    page.push_str("\n## Errors\n\nEvery error has the body `{\"error\": {\"message\", \"type\", \"param\", \"code\"}}`, in streams too.\n\n| Status | |\n|---|---|\n");
    let mut errors = ERRORS;
    errors.sort_unstable();
    for (status, meaning) in errors {
        line(&mut page, status, meaning);
    }
    page
}

fn write_route(page: &mut String, route: &Route) {
    // Writing to a string cannot fail.
    let _ = write!(
        page,
        "\n## `POST {}`\n\n{}.\n\n| Field | | |\n|---|---|---|\n",
        route.path, route.summary
    );
    for field in route.fields() {
        let _ = writeln!(page, "| `{}` | {} | {} |", field.name, word(field.support), field.text);
    }
}

fn line(page: &mut String, name: &str, text: &str) {
    let _ = writeln!(page, "| {name} | {text} |");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_of_the_reference_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/api.md");
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            written == page(),
            "docs/reference/api.md is not up to date; run `make generate-api`"
        );
    }

    #[test]
    fn fields_have_schemas_and_come_once() {
        for route in &ROUTES {
            let mut names: Vec<&str> = route.fields().map(|field| field.name).collect();
            let count = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), count, "{}", route.path);
            for field in route.fields() {
                assert!(
                    serde_json::from_str::<Value>(field.schema).is_ok_and(|schema| schema.is_object()),
                    "{}",
                    field.name
                );
            }
        }
    }
}
