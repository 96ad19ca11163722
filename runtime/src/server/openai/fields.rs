//! Takes fields out of a request's object, so that whatever is left over is known to be unknown. Pure.

use crate::server::error::{ApiError, Code};
use serde_json::{Map, Value};
use std::ops::RangeInclusive;

/// The fields of a request that were not taken yet.
#[derive(Debug)]
pub(crate) struct Fields(Map<String, Value>);

impl Fields {
    /// The fields of this object. Those that are null count as absent, as OpenAI's API has it.
    pub(crate) fn new(mut object: Map<String, Value>) -> Self {
        object.retain(|_, value| !value.is_null());
        Self(object)
    }

    /// A field that was not taken yet.
    pub(crate) fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    /// Takes a field as it is.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name)
    }

    /// Adds a field, as if the client had sent it.
    pub(crate) fn put(&mut self, name: &str, value: Value) {
        self.0.insert(name.to_owned(), value);
    }

    /// Takes a field that must be there.
    pub(crate) fn required(&mut self, name: &'static str) -> Result<Value, ApiError> {
        self.take(name)
            .ok_or_else(|| ApiError::new(Code::InvalidValue, format!("`{name}` is missing")).param(name))
    }

    /// Takes a string.
    pub(crate) fn string(&mut self, name: &'static str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(invalid(name, "must be a string")),
        }
    }

    /// Takes a boolean.
    pub(crate) fn boolean(&mut self, name: &'static str) -> Result<Option<bool>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(_) => Err(invalid(name, "must be true or false")),
        }
    }

    /// Takes a number.
    pub(crate) fn number(&mut self, name: &'static str, range: RangeInclusive<f64>) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        let number = value.as_f64().filter(|number| range.contains(number));
        #[expect(clippy::cast_possible_truncation, reason = "the range is small")]
        number.map(|number| Some(number as f32)).ok_or_else(|| {
            invalid(
                name,
                &format!("must be a number from {} to {}", range.start(), range.end()),
            )
        })
    }

    /// Takes a whole number of at least `least`.
    pub(crate) fn count(&mut self, name: &'static str, least: u64) -> Result<Option<usize>, ApiError> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        let count = value.as_u64().filter(|count| *count >= least);
        count
            .and_then(|count| usize::try_from(count).ok())
            .map(Some)
            .ok_or_else(|| invalid(name, &format!("must be a whole number of at least {least}")))
    }

    /// Takes a field that is known but not supported; only values that change nothing are accepted.
    pub(crate) fn neutral(&mut self, name: &'static str, is_neutral: impl Fn(&Value) -> bool) -> Result<(), ApiError> {
        match self.take(name) {
            Some(value) if !is_neutral(&value) => {
                let message = format!("`{name}` is not supported by this server with this value; leave it out");
                Err(ApiError::new(Code::UnsupportedParameter, message).param(name))
            }
            _ => Ok(()),
        }
    }

    /// Ends the taking: what is left is refused by name, except what cannot change an answer.
    pub(crate) fn finish(self, harmless: &[&str]) -> Result<(), ApiError> {
        match self.0.into_iter().find(|(name, _)| !harmless.contains(&name.as_str())) {
            None => Ok(()),
            Some((name, _)) => {
                let shown: String = name.chars().take(100).collect();
                let message = format!("`{shown}` is not a field that this server knows; leave it out");
                Err(ApiError::new(Code::UnknownParameter, message).param(shown))
            }
        }
    }
}

/// What a name must be that is none by [`is_name`].
pub(crate) const NO_NAME: &str = "must be 1 to 64 letters, digits, _ and -";

/// Whether a text can be the name of a function or a schema, as OpenAI has it.
pub(crate) fn is_name(text: &str) -> bool {
    let is_letter = |letter: u8| letter.is_ascii_alphanumeric() || letter == b'_' || letter == b'-';
    (1..=64).contains(&text.len()) && text.bytes().all(is_letter)
}

/// A field with a wrong value.
pub(crate) fn invalid(name: impl Into<String>, problem: &str) -> ApiError {
    let name = name.into();
    ApiError::new(Code::InvalidValue, format!("`{name}` {problem}")).param(name)
}

/// Ids of tokens. Absent when something else is among them.
pub(super) fn token_ids(items: &[Value]) -> Option<Vec<u32>> {
    let ids = items.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()));
    ids.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fields(value: Value) -> Fields {
        let Value::Object(object) = value else { panic!() };
        Fields::new(object)
    }

    #[test]
    fn unknown_field_is_refused_by_name_and_null_is_absent() {
        let error = fields(json!({"user": "me", "typo": 1})).finish(&["user"]).unwrap_err();
        assert_eq!(
            error,
            ApiError::new(
                Code::UnknownParameter,
                "`typo` is not a field that this server knows; leave it out"
            )
            .param("typo")
        );
        fields(json!({"typo": null})).finish(&[]).unwrap();
    }

    #[test]
    fn values_out_of_range_are_refused() {
        assert!(fields(json!({"t": 2.5})).number("t", 0.0..=2.0).is_err());
        assert!(fields(json!({"t": "1"})).number("t", 0.0..=2.0).is_err());
        assert_eq!(fields(json!({"t": 1})).number("t", 0.0..=2.0).unwrap(), Some(1.0));
        for bad in [json!(0), json!(-1), json!(1.5), json!("3"), json!(1e30)] {
            assert!(fields(json!({"n": bad})).count("n", 1).is_err());
        }
    }

    #[test]
    fn unsupported_field_is_accepted_with_the_value_that_changes_nothing() {
        let is_one = |value: &Value| value.as_u64() == Some(1);
        fields(json!({"n": 1})).neutral("n", is_one).unwrap();
        fields(json!({})).neutral("n", is_one).unwrap();
        assert!(fields(json!({"n": 2})).neutral("n", is_one).is_err());
    }
}
