//! The filter `tojson` as models expect it: Python's `json.dumps` with its spaces and without escaping for HTML.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};
use std::fmt::Write as _;

/// Values inside each other. The client's own are bounded before; a template can build others.
const MAX_DEPTH: usize = 128;
/// Bytes that one unit of fuel pays for, as in the engine itself.
const BYTES_PER_FUEL: u64 = 64;

#[expect(clippy::needless_pass_by_value, reason = "filters get their options by value")]
pub(super) fn tojson(state: &State, value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent = match options.get::<Option<Value>>("indent")? {
        Some(value) if !value.is_none() => Some(indentation(&value)?),
        _ => None,
    };
    let separators = options.get::<Option<Vec<String>>>("separators")?;
    let (item, key) = match separators.as_deref() {
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(invalid("separators must be two texts")),
    };
    let mut writer = Writer {
        out: String::new(),
        indent,
        item,
        key,
        is_sorted: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        is_ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        state,
    };
    options.assert_all_used()?;
    writer.value(value, 0)?;
    Ok(Value::from_safe_string(writer.out))
}

fn invalid(message: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("tojson: {message}"))
}

fn indentation(value: &Value) -> Result<String, Error> {
    if let Some(text) = value.as_str() {
        return Ok(text.to_owned());
    }
    let spaces = usize::try_from(value.clone()).ok().filter(|&spaces| spaces <= 64);
    Ok(" ".repeat(spaces.ok_or_else(|| invalid("indent must be 0 to 64"))?))
}

struct Writer<'a, 'template, 'env> {
    out: String,
    indent: Option<String>,
    item: String,
    key: String,
    is_sorted: bool,
    is_ascii: bool,
    state: &'a State<'template, 'env>,
}

impl Writer<'_, '_, '_> {
    /// Pays for every value while it is written: a list that holds itself twice is small, but its text is not.
    fn charge(&self, bytes: usize) -> Result<(), Error> {
        self.state.consume_fuel(1 + bytes as u64 / BYTES_PER_FUEL)
    }

    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(invalid("the value is nested too deeply"));
        }
        match value.kind() {
            ValueKind::None => self.plain("null"),
            ValueKind::Bool => self.plain(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.plain(&value.to_string()),
            ValueKind::String => self.text(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => self.list(value, depth),
            ValueKind::Map => self.map(value, depth),
            _ => Err(invalid("the value has no JSON form")),
        }
    }

    fn plain(&mut self, text: &str) -> Result<(), Error> {
        self.charge(text.len())?;
        self.out.push_str(text);
        Ok(())
    }

    fn text(&mut self, text: &str) -> Result<(), Error> {
        self.charge(text.len())?;
        self.out.push('"');
        for character in text.chars() {
            match character {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                control if control < ' ' => self.escape(control),
                other if self.is_ascii && !other.is_ascii() => self.escape(other),
                other => self.out.push(other),
            }
        }
        self.out.push('"');
        Ok(())
    }

    fn escape(&mut self, character: char) {
        for unit in character.encode_utf16(&mut [0; 2]) {
            // Writing to a string cannot fail.
            let _ = write!(self.out, "\\u{unit:04x}");
        }
    }

    fn list(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        let mut is_empty = true;
        self.out.push('[');
        for item in value.try_iter()? {
            self.separate(&mut is_empty, depth)?;
            self.value(&item, depth + 1)?;
        }
        self.close(is_empty, depth, ']');
        Ok(())
    }

    fn map(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        let mut keys: Vec<_> = value.try_iter()?.collect();
        if self.is_sorted {
            keys.sort();
        }
        let mut is_empty = true;
        self.out.push('{');
        for key in keys {
            self.separate(&mut is_empty, depth)?;
            match key.as_str() {
                Some(text) => self.text(text)?,
                None => self.text(&key.to_string())?,
            }
            let separator = self.key.clone();
            self.plain(&separator)?;
            self.value(&value.get_item(&key)?, depth + 1)?;
        }
        self.close(is_empty, depth, '}');
        Ok(())
    }

    fn separate(&mut self, is_empty: &mut bool, depth: usize) -> Result<(), Error> {
        if !std::mem::take(is_empty) {
            let separator = self.item.clone();
            self.plain(&separator)?;
        }
        self.line(depth + 1)
    }

    fn close(&mut self, is_empty: bool, depth: usize, bracket: char) {
        if !is_empty {
            // A closing bracket is paid for by the values before it.
            let _ = self.line(depth);
        }
        self.out.push(bracket);
    }

    fn line(&mut self, depth: usize) -> Result<(), Error> {
        let Some(indent) = &self.indent else {
            return Ok(());
        };
        self.charge(indent.len() * depth)?;
        self.out.push('\n');
        for _ in 0..depth {
            self.out.push_str(indent);
        }
        Ok(())
    }
}
