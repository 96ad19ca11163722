//! A length of time as text, in the form of the Gateway API (GEP-2257): `500ms`, `30s`, `1h30m`.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// What the schema takes.
const PATTERN: &str = "^([0-9]{1,5}(h|m|s|ms)){1,4}$";

/// A length of time. The text is kept as it was written, so that nothing that reads it back sees a change.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(transparent)]
pub struct Span(String);

impl Span {
    /// A span from its text.
    pub fn from_text(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// The length; `None` when the text has another form, which the schema refuses.
    pub fn duration(&self) -> Option<Duration> {
        let mut rest = self.0.as_str();
        let mut total = Duration::ZERO;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit())?;
            let number: u32 = rest[..digits].parse().ok()?;
            rest = &rest[digits..];
            let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
            let one = match &rest[..unit] {
                "h" => Duration::from_hours(1),
                "m" => Duration::from_mins(1),
                "s" => Duration::from_secs(1),
                "ms" => Duration::from_millis(1),
                _ => return None,
            };
            total = total.checked_add(one.checked_mul(number)?)?;
            rest = &rest[unit..];
        }
        (!self.0.is_empty()).then_some(total)
    }
}

impl Default for Span {
    fn default() -> Self {
        Self::from_text("0s")
    }
}

impl fmt::Display for Span {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl JsonSchema for Span {
    fn schema_name() -> Cow<'static, str> {
        "Span".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": 32,
            "x-kubernetes-validations": [{
                "rule": format!("self.matches('{PATTERN}')"),
                "message": "must be a length of time like 500ms, 30s, 10m or 1h30m",
            }],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time() {
        let seconds = |text: &str| Span::from_text(text).duration().map(|length| length.as_secs_f64());
        assert_eq!(seconds("500ms"), Some(0.5));
        assert_eq!(seconds("30s"), Some(30.0));
        assert_eq!(seconds("1h30m"), Some(5400.0));
        assert_eq!(seconds("99999h"), Some(359_996_400.0));
        for text in ["", "30", "s", "1.5h", "-1s", "1d", "1 s", "99999999999s"] {
            assert_eq!(seconds(text), None, "{text}");
        }
    }
}
