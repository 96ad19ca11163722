//! Methods of Python's texts, with what the engine leaves out: paying for results before they are made.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

/// Bytes that one unit of fuel pays for, as in the engine itself.
const BYTES_PER_FUEL: u64 = 64;
/// Digits of a width or a precision in `format`.
const MAX_DIGITS: usize = 3;
/// Bytes of a field of `format` that has such a width and such a precision.
const MAX_WIDTH: usize = 4000;

pub(super) fn call(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        match (method, args) {
            ("join", [items]) => charge_join(state, text, items)?,
            ("format", fields) => charge_format(state, text, fields)?,
            _ => {}
        }
    }
    unknown_method_callback(state, value, method, args)
}

/// Many items may be the same large text.
fn charge_join(state: &State, between: &str, items: &Value) -> Result<(), Error> {
    for item in items.try_iter()? {
        charge(state, between.len() + shown_bytes(&item, "join")?)?;
    }
    Ok(())
}

/// A field may be much wider than its text, and the same value may be in many fields.
fn charge_format(state: &State, text: &str, values: &[Value]) -> Result<(), Error> {
    let inside = text.split('{').skip(1).filter_map(|field| field.split('}').next());
    let digits = inside.flat_map(|field| field.split(|character: char| !character.is_ascii_digit()));
    if digits.map(str::len).max().is_some_and(|digits| digits > MAX_DIGITS) {
        return Err(invalid("format takes no numbers of more than three digits"));
    }
    // The engine would take the bracket for what fills the field, and look for its end behind it.
    if [":}<", ":}>", ":}^"].iter().any(|fill| text.contains(fill)) {
        return Err(invalid("format does not fill with brackets"));
    }
    let fields = text.matches('{').count();
    for value in values {
        let bytes = shown_bytes(value, "format")?;
        charge(state, fields.saturating_mul(bytes))?;
    }
    charge(state, fields.saturating_mul(MAX_WIDTH))
}

/// Bytes of a value's text, about. Lists and objects have none: a small one that holds itself twice, again and again, has
/// an endless one.
fn shown_bytes(value: &Value, method: &str) -> Result<usize, Error> {
    match value.kind() {
        ValueKind::Seq | ValueKind::Map | ValueKind::Iterable | ValueKind::Plain => {
            Err(invalid(&format!("{method} takes no {}", value.kind())))
        }
        _ => Ok(value.as_str().map_or(MAX_WIDTH, str::len)),
    }
}

fn charge(state: &State, bytes: usize) -> Result<(), Error> {
    state.consume_fuel(1 + bytes as u64 / BYTES_PER_FUEL)
}

fn invalid(message: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.to_owned())
}
