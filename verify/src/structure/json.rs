//! JSON as strictly as a security decision needs it: one document, no duplicate keys, bounded depth and size.

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::cell::Cell;
use std::fmt;

/// Bytes of a document.
pub const MAX_BYTES: usize = 64 << 20;
/// Objects and arrays inside each other.
pub const MAX_DEPTH: usize = 64;

/// What is wrong with a document. Its text is a sentence without its subject, such as `is not acceptable JSON: …`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// More bytes than [`MAX_BYTES`].
    #[error("is {0} bytes long, more than {MAX_BYTES}")]
    TooLarge(usize),
    /// An object has a key twice.
    #[error("is not acceptable JSON: {0}")]
    DuplicateKey(String),
    /// It is not one JSON document, or it is nested too deep.
    #[error("{0}")]
    Malformed(String),
}

/// Parses one document. The error is a sentence without its subject, such as `is not acceptable JSON: …`.
pub fn parse(bytes: &[u8]) -> Result<Value, String> {
    parse_document(bytes).map_err(|error| error.to_string())
}

/// Parses one document, and says of which kind a fault is.
pub fn parse_document(bytes: &[u8]) -> Result<Value, JsonError> {
    if bytes.len() > MAX_BYTES {
        return Err(JsonError::TooLarge(bytes.len()));
    }
    if bytes.starts_with(b"\xef\xbb\xbf") {
        return Err(JsonError::Malformed("starts with a byte order mark".to_owned()));
    }
    let duplicate = Cell::new(false);
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Strict {
        depth: 0,
        duplicate: &duplicate,
    }
    .deserialize(&mut deserializer)
    .and_then(|value| deserializer.end().map(|()| value));
    value.map_err(|error| {
        if duplicate.get() {
            JsonError::DuplicateKey(error.to_string())
        } else {
            JsonError::Malformed(format!("is not acceptable JSON: {error}"))
        }
    })
}

/// Builds a value and refuses what `serde_json::Value` would silently accept.
#[derive(Clone, Copy)]
struct Strict<'a> {
    depth: usize,
    /// Set when a key occurs twice.
    duplicate: &'a Cell<bool>,
}

impl Strict<'_> {
    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        if self.depth == MAX_DEPTH {
            return Err(E::custom(format_args!("nested deeper than {MAX_DEPTH}")));
        }
        Ok(Self {
            depth: self.depth + 1,
            ..self
        })
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut values = Vec::new();
        while let Some(value) = sequence.next_element_seed(inner)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            if map.contains_key(&key) {
                self.duplicate.set(true);
                return Err(A::Error::custom(format_args!("key {key:?} occurs twice")));
            }
            let value = access.next_value_seed(inner)?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_documents_are_read() {
        let value = parse(br#"{"a": [1, -2, 2.5, true, null, "x"]}"#).unwrap();
        assert_eq!(value, serde_json::json!({"a": [1, -2, 2.5, true, null, "x"]}));
    }

    #[test]
    fn lax_documents_are_refused() {
        let deep = [b"[".repeat(65), b"]".repeat(65)].concat();
        let very_deep = b"[".repeat(1 << 20);
        let table: [&[u8]; 7] = [
            b"{\"a\":1,\"a\":2}",
            b"{} {}",
            b"\xef\xbb\xbf{}",
            b"{\"a\":}",
            b"",
            &deep,
            &very_deep,
        ];
        for bytes in table {
            assert!(parse(bytes).is_err(), "{:?}", &bytes[..bytes.len().min(20)]);
        }
        assert!(parse(&[b"[".repeat(64), b"]".repeat(64)].concat()).is_ok());
    }

    #[test]
    fn kind_of_a_fault_is_told() {
        let kind = |bytes: &[u8]| parse_document(bytes).unwrap_err();
        assert!(matches!(kind(b"{\"a\":1,\"\\u0061\":2}"), JsonError::DuplicateKey(_)));
        assert!(matches!(kind(b"{} {}"), JsonError::Malformed(_)));
        assert_eq!(kind(&vec![b' '; MAX_BYTES + 1]), JsonError::TooLarge(MAX_BYTES + 1));
    }
}
