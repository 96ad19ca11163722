//! Fields of JSON objects: each is there and of its kind, or the refusal names it.

use crate::refusal::{Reason, Refusal};
use crate::structure::json::{self, JsonError};
use serde_json::{Map, Value};

/// An object of a document, and where it stands in it.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    object: &'a Map<String, Value>,
    at: &'static str,
    reason: Reason,
}

/// Parses a document as strictly as a security decision needs it.
pub(super) fn document(bytes: &[u8], what: &str, reason: Reason) -> Result<Value, Refusal> {
    json::parse_document(bytes).map_err(|error| {
        let reason = match error {
            JsonError::TooLarge(_) => Reason::BundleTooLarge,
            JsonError::DuplicateKey(_) => Reason::DuplicateKey,
            JsonError::Malformed(_) => reason,
        };
        Refusal::new(reason, format!("the {what} {error}; sign the model again"))
    })
}

impl<'a> Fields<'a> {
    /// The fields of `value`, which is `at` in its document. Refusals have this reason.
    pub(super) fn of(value: &'a Value, at: &'static str, reason: Reason) -> Result<Self, Refusal> {
        let Value::Object(object) = value else {
            return Err(Refusal::new(
                reason,
                format!("`{at}` is not an object; sign the model again"),
            ));
        };
        Ok(Self { object, at, reason })
    }

    /// A field that may be missing. Null counts as missing, as in the JSON form of protocol buffers.
    pub(super) fn get(self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|value| !value.is_null())
    }

    /// The names of the fields.
    pub(super) fn names(self) -> impl Iterator<Item = &'a str> {
        self.object.keys().map(String::as_str)
    }

    pub(super) fn need(self, name: &str) -> Result<&'a Value, Refusal> {
        self.get(name).ok_or_else(|| self.wrong(name, "is missing"))
    }

    pub(super) fn object(self, name: &'static str) -> Result<Self, Refusal> {
        Self::of(self.need(name)?, name, self.reason)
    }

    pub(super) fn text(self, name: &str) -> Result<&'a str, Refusal> {
        self.need(name)?
            .as_str()
            .ok_or_else(|| self.wrong(name, "is not a text"))
    }

    pub(super) fn list(self, name: &str) -> Result<&'a [Value], Refusal> {
        let list = self.need(name)?.as_array();
        list.map(Vec::as_slice).ok_or_else(|| self.wrong(name, "is not a list"))
    }

    pub(super) fn flag(self, name: &str) -> Result<bool, Refusal> {
        self.need(name)?
            .as_bool()
            .ok_or_else(|| self.wrong(name, "is not true or false"))
    }

    pub(super) fn bytes(self, name: &str) -> Result<Vec<u8>, Refusal> {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD
            .decode(self.text(name)?)
            .map_err(|_| self.wrong(name, "is not base64"))
    }

    pub(super) fn wrong(self, name: &str, how: &str) -> Refusal {
        Refusal::new(
            self.reason,
            format!("`{name}` in `{}` {how}; sign the model again", self.at),
        )
    }
}
