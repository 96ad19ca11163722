//! What an answer has to be: `response_format` as OpenAI has it, and what vLLM adds (`structured_outputs`, and `guided_json`,
//! `guided_regex` and `guided_choice` of its older versions). Pure.

use super::fields::{Fields, NO_NAME, invalid, is_name};
use crate::grammar::Grammar;
use crate::server::error::ApiError;
use serde_json::Value;

/// More texts to choose from than this are a mistake.
const MAX_CHOICES: usize = 1_000;
/// A regular expression that is longer is a mistake.
const MAX_REGEX_BYTES: usize = 16 * 1024;

/// Takes the fields that say what an answer has to be. At most one of them may.
pub(super) fn take_grammar(fields: &mut Fields) -> Result<Option<Grammar>, ApiError> {
    let mut wanted: Vec<(&str, Grammar)> = Vec::new();
    if let Some(format) = fields.take("response_format") {
        wanted.extend(response_format(format)?.map(|grammar| ("response_format", grammar)));
    }
    for (name, parse) in [
        ("guided_json", schema as fn(&str, Value) -> Result<Grammar, ApiError>),
        ("guided_regex", regex),
        ("guided_choice", choice),
    ] {
        if let Some(value) = fields.take(name) {
            wanted.push((name, parse(name, value)?));
        }
    }
    if let Some(value) = fields.take("structured_outputs") {
        wanted.push(("structured_outputs", structured_outputs(value)?));
    }
    let mut wanted = wanted.into_iter();
    let first = wanted.next();
    match (&first, wanted.next()) {
        (Some((one, _)), Some((other, _))) => Err(invalid(
            other,
            &format!("and `{one}` contradict each other; leave one out"),
        )),
        _ => Ok(first.map(|(_, grammar)| grammar)),
    }
}

/// The format of a response (`text.format`), in which the schema is not wrapped.
pub(super) fn text_format(value: Value) -> Result<Option<Grammar>, ApiError> {
    const WRONG: &str =
        r#"must be {"type": "text"}, {"type": "json_object"} or {"type": "json_schema", "name": …, "schema": …}"#;
    format(value, ("text.format", WRONG), |format, _| {
        named_schema(format, "text.format")
    })
}

fn response_format(value: Value) -> Result<Option<Grammar>, ApiError> {
    const WRONG: &str = r#"must be {"type": "text"}, {"type": "json_object"} or {"type": "json_schema", "json_schema": {"name": …, "schema": …}}"#;
    format(value, ("response_format", WRONG), |mut format, wrong| {
        let Some(Value::Object(named)) = format.take("json_schema") else {
            return Err(wrong);
        };
        let grammar = named_schema(Fields::new(named), "response_format.json_schema")?;
        format.finish(&[])?;
        Ok(grammar)
    })
}

/// A format, whose schema the last argument takes; it is given the error that says what a format must be.
fn format(
    value: Value,
    (name, problem): (&str, &str),
    schema: impl FnOnce(Fields, ApiError) -> Result<Grammar, ApiError>,
) -> Result<Option<Grammar>, ApiError> {
    let wrong = || invalid(name, problem);
    let Value::Object(format) = value else {
        return Err(wrong());
    };
    let mut format = Fields::new(format);
    let grammar = match format.string("type").map_err(|_| wrong())?.as_deref() {
        Some("text") => None,
        Some("json_object") => Some(Grammar::JsonObject),
        Some("json_schema") => return schema(format, wrong()).map(Some),
        _ => return Err(wrong()),
    };
    format.finish(&[])?;
    Ok(grammar)
}

/// A schema as OpenAI's API wants it. It is followed whether it says `strict` or not.
fn named_schema(mut named: Fields, at: &str) -> Result<Grammar, ApiError> {
    let name = named.string("name")?.unwrap_or_default();
    if !is_name(&name) {
        return Err(invalid(format!("{at}.name"), NO_NAME));
    }
    named.string("description")?;
    named.boolean("strict")?;
    let Some(value) = named.take("schema") else {
        return Err(invalid(format!("{at}.schema"), "is missing"));
    };
    named.finish(&[])?;
    schema(&format!("{at}.schema"), value)
}

fn structured_outputs(value: Value) -> Result<Grammar, ApiError> {
    const WRONG: &str = "must be an object with one of `json`, `regex`, `choice` and `json_object: true`";
    let Value::Object(object) = value else {
        return Err(invalid("structured_outputs", WRONG));
    };
    let mut object = object.into_iter().filter(|(_, value)| !value.is_null());
    let (Some((name, value)), None) = (object.next(), object.next()) else {
        return Err(invalid("structured_outputs", WRONG));
    };
    match name.as_str() {
        "json" => schema("structured_outputs.json", value),
        "regex" => regex("structured_outputs.regex", value),
        "choice" => choice("structured_outputs.choice", value),
        "json_object" if value == true => Ok(Grammar::JsonObject),
        _ => Err(invalid("structured_outputs", WRONG)),
    }
}

/// A JSON schema, which some clients send as a text.
fn schema(name: &str, value: Value) -> Result<Grammar, ApiError> {
    let value = match value {
        Value::String(text) => serde_json::from_str(&text).unwrap_or(Value::Null),
        value => value,
    };
    match value {
        Value::Object(_) | Value::Bool(_) => Ok(Grammar::JsonSchema(value)),
        _ => Err(invalid(name, "must be a JSON schema: an object or a boolean")),
    }
}

fn regex(name: &str, value: Value) -> Result<Grammar, ApiError> {
    match value {
        Value::String(pattern) if !pattern.is_empty() && pattern.len() <= MAX_REGEX_BYTES => {
            Ok(Grammar::Regex(pattern))
        }
        _ => Err(invalid(
            name,
            &format!("must be a regular expression of 1 to {MAX_REGEX_BYTES} bytes"),
        )),
    }
}

fn choice(name: &str, value: Value) -> Result<Grammar, ApiError> {
    let wrong = || {
        invalid(
            name,
            &format!("must be a list of 1 to {MAX_CHOICES} texts, none of them empty"),
        )
    };
    let Value::Array(items) = value else {
        return Err(wrong());
    };
    let text = |item| match item {
        Value::String(text) if !text.is_empty() => Some(text),
        _ => None,
    };
    let choices: Option<Vec<String>> = items.into_iter().map(text).collect();
    choices
        .filter(|choices| (1..=MAX_CHOICES).contains(&choices.len()))
        .map(Grammar::Choice)
        .ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn take(value: Value) -> Result<Option<Grammar>, ApiError> {
        let Value::Object(object) = value else { panic!() };
        let mut fields = Fields::new(object);
        let grammar = take_grammar(&mut fields)?;
        fields.finish(&[])?;
        Ok(grammar)
    }

    #[test]
    fn each_way_to_say_it_is_understood() {
        let schema = json!({"type": "integer"});
        for (request, grammar) in [
            (json!({}), None),
            (json!({"response_format": {"type": "text"}}), None),
            (
                json!({"response_format": {"type": "json_object"}}),
                Some(Grammar::JsonObject),
            ),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": true}}}),
                Some(Grammar::JsonSchema(schema.clone())),
            ),
            (
                json!({"guided_json": schema}),
                Some(Grammar::JsonSchema(schema.clone())),
            ),
            (
                json!({"guided_json": "{\"type\": \"integer\"}"}),
                Some(Grammar::JsonSchema(schema.clone())),
            ),
            (json!({"guided_regex": "a+"}), Some(Grammar::Regex("a+".into()))),
            (
                json!({"guided_choice": ["a", "b"]}),
                Some(Grammar::Choice(vec!["a".into(), "b".into()])),
            ),
            (
                json!({"structured_outputs": {"json": schema}}),
                Some(Grammar::JsonSchema(schema.clone())),
            ),
            (
                json!({"structured_outputs": {"regex": "a+", "json": null}}),
                Some(Grammar::Regex("a+".into())),
            ),
            (
                json!({"structured_outputs": {"choice": ["a"]}}),
                Some(Grammar::Choice(vec!["a".into()])),
            ),
            (
                json!({"structured_outputs": {"json_object": true}}),
                Some(Grammar::JsonObject),
            ),
        ] {
            assert_eq!(take(request.clone()).unwrap(), grammar, "{request}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (request, param) in [
            (json!({"response_format": "json"}), "response_format"),
            (json!({"response_format": {"type": "xml"}}), "response_format"),
            (json!({"response_format": {"type": "json_schema"}}), "response_format"),
            (json!({"response_format": {"type": "text", "typo": 1}}), "typo"),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}),
                "response_format.json_schema.name",
            ),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}}),
                "response_format.json_schema.schema",
            ),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": []}}}),
                "response_format.json_schema.schema",
            ),
            (json!({"guided_json": "{"}), "guided_json"),
            (json!({"guided_regex": ""}), "guided_regex"),
            (json!({"guided_choice": []}), "guided_choice"),
            (json!({"guided_choice": ["a", 1]}), "guided_choice"),
            (json!({"guided_choice": [""]}), "guided_choice"),
            (json!({"guided_choice": ["a"], "guided_regex": "a"}), "guided_choice"),
            (json!({"structured_outputs": {}}), "structured_outputs"),
            (json!({"structured_outputs": {"grammar": "x"}}), "structured_outputs"),
            (
                json!({"structured_outputs": {"regex": "a", "json": {}}}),
                "structured_outputs",
            ),
        ] {
            let body = serde_json::to_value(take(request.clone()).unwrap_err().body()).unwrap();
            assert_eq!(body["error"]["param"], param, "{request} {body}");
        }
    }
}
