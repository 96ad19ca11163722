//! What the span of a request says about it: the model, and numbers. No text that a client sent.

use super::fields::Fields;
use crate::server::Record;
use opentelemetry::{KeyValue, Value};

/// Fields with whole numbers, by the names that the conventions for generative AI have. The first that is there counts.
const COUNTS: [(&str, &[&str]); 5] = [
    (
        "gen_ai.request.max_tokens",
        &["max_completion_tokens", "max_tokens", "max_output_tokens"],
    ),
    ("gen_ai.request.choice.count", &["n"]),
    ("gen_ai.request.seed", &["seed"]),
    ("gen_ai.request.top_k", &["top_k"]),
    ("gen_ai.embeddings.dimension.count", &["dimensions"]),
];
/// Fields with other numbers.
const NUMBERS: [(&str, &str); 4] = [
    ("gen_ai.request.temperature", "temperature"),
    ("gen_ai.request.top_p", "top_p"),
    ("gen_ai.request.frequency_penalty", "frequency_penalty"),
    ("gen_ai.request.presence_penalty", "presence_penalty"),
];

/// Notes in the span of a request what it asks for. The model is one that is served.
pub(super) fn follow(record: &Record, model: &str, fields: &Fields) {
    let is_streamed = fields.get("stream").is_some_and(|stream| stream == true);
    record.span().asked(model, is_streamed, numbers(fields));
}

/// The numbers of a request, as far as they are numbers.
fn numbers(fields: &Fields) -> impl Iterator<Item = KeyValue> {
    let counts = COUNTS.into_iter().filter_map(|(key, names)| {
        let value = names.iter().find_map(|name| fields.get(name)?.as_i64())?;
        Some(KeyValue::new(key, Value::I64(value)))
    });
    let counts =
        counts.filter(|count| count.key.as_str() != "gen_ai.request.choice.count" || count.value != Value::I64(1));
    let numbers = NUMBERS.into_iter().filter_map(|(key, name)| {
        let value = fields.get(name)?.as_f64()?;
        Some(KeyValue::new(key, Value::F64(value)))
    });
    counts.chain(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn noted(value: serde_json::Value) -> Vec<(String, String)> {
        let serde_json::Value::Object(object) = value else {
            panic!()
        };
        let fields = Fields::new(object);
        let noted = numbers(&fields).map(|one| (one.key.to_string(), one.value.to_string()));
        noted.collect()
    }

    #[test]
    fn numbers_are_noted_by_the_names_of_the_conventions() {
        let asked = json!({"max_tokens": 5, "max_completion_tokens": 5, "n": 2, "seed": -3, "top_k": 40, "temperature": 0, "top_p": 0.5});
        let expected = [
            ("max_tokens", "5"),
            ("choice.count", "2"),
            ("seed", "-3"),
            ("top_k", "40"),
            ("temperature", "0"),
            ("top_p", "0.5"),
        ];
        let expected = expected.map(|(key, value)| (format!("gen_ai.request.{key}"), value.to_owned()));
        assert_eq!(noted(asked), expected);
    }

    #[test]
    fn text_is_never_noted() {
        let asked = json!({
            "messages": [{"role": "user", "content": "secret"}], "stop": "secret", "seed": "secret", "temperature": "secret",
            "max_tokens": "secret", "n": 1, "user": "secret"
        });
        assert_eq!(noted(asked), []);
    }
}
