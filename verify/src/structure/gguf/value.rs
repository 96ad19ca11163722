//! Typed metadata values of a GGUF header.

use crate::structure::reader::{Reader, Short};

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Unsigned, 8 bits.
    U8(u8),
    /// Signed, 8 bits.
    I8(i8),
    /// Unsigned, 16 bits.
    U16(u16),
    /// Signed, 16 bits.
    I16(i16),
    /// Unsigned, 32 bits.
    U32(u32),
    /// Signed, 32 bits.
    I32(i32),
    /// Unsigned, 64 bits.
    U64(u64),
    /// Signed, 64 bits.
    I64(i64),
    /// Float, 32 bits.
    F32(f32),
    /// Float, 64 bits.
    F64(f64),
    /// True or false.
    Bool(bool),
    /// UTF-8 text.
    String(String),
    /// Values of one type; never of arrays.
    Array(Array),
}

/// An array of metadata values of one type.
#[derive(Debug, Clone, PartialEq)]
pub enum Array {
    /// Unsigned integers of any width.
    Unsigned(Vec<u64>),
    /// Signed integers of any width.
    Signed(Vec<i64>),
    /// Floats of any width; 64 bits keep every value.
    Float(Vec<f64>),
    /// True or false.
    Bool(Vec<bool>),
    /// UTF-8 texts.
    String(Vec<String>),
}

/// What is wrong with a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ValueError {
    Short(Short),
    Rule(String),
}

impl From<Short> for ValueError {
    fn from(short: Short) -> Self {
        Self::Short(short)
    }
}

impl Value {
    /// Any integer that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::U8(value) => Some(value.into()),
            Self::U16(value) => Some(value.into()),
            Self::U32(value) => Some(value.into()),
            Self::U64(value) => Some(value),
            Self::I8(value) => value.try_into().ok(),
            Self::I16(value) => value.try_into().ok(),
            Self::I32(value) => value.try_into().ok(),
            Self::I64(value) => value.try_into().ok(),
            Self::F32(_) | Self::F64(_) | Self::Bool(_) | Self::String(_) | Self::Array(_) => None,
        }
    }

    /// Any float.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Self::F32(value) => Some(value.into()),
            Self::F64(value) => Some(value),
            _ => None,
        }
    }

    /// True or false.
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Self::Bool(value) => Some(value),
            _ => None,
        }
    }

    /// Text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// An array.
    pub fn as_array(&self) -> Option<&Array> {
        match self {
            Self::Array(array) => Some(array),
            _ => None,
        }
    }

    /// The type's name in error texts.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::U8(_) => "u8",
            Self::I8(_) => "i8",
            Self::U16(_) => "u16",
            Self::I16(_) => "i16",
            Self::U32(_) => "u32",
            Self::I32(_) => "i32",
            Self::U64(_) => "u64",
            Self::I64(_) => "i64",
            Self::F32(_) => "f32",
            Self::F64(_) => "f64",
            Self::Bool(_) => "bool",
            Self::String(_) => "string",
            Self::Array(_) => "array",
        }
    }
}

const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// Reads a type and a value of it.
pub(super) fn read(reader: &mut Reader<'_>) -> Result<Value, ValueError> {
    let code = reader.u32()?;
    if code == ARRAY {
        return Ok(Value::Array(read_array(reader)?));
    }
    Ok(match code {
        0 => Value::U8(reader.u8()?),
        1 => Value::I8(reader.u8()?.cast_signed()),
        2 => Value::U16(reader.u16()?),
        3 => Value::I16(reader.u16()?.cast_signed()),
        4 => Value::U32(reader.u32()?),
        5 => Value::I32(reader.u32()?.cast_signed()),
        6 => Value::F32(f32::from_bits(reader.u32()?)),
        7 => Value::Bool(read_bool(reader)?),
        STRING => Value::String(read_string(reader)?),
        10 => Value::U64(reader.u64()?),
        11 => Value::I64(reader.u64()?.cast_signed()),
        12 => Value::F64(f64::from_bits(reader.u64()?)),
        other => return Err(ValueError::Rule(format!("has the unknown type {other}"))),
    })
}

fn read_bool(reader: &mut Reader<'_>) -> Result<bool, ValueError> {
    match reader.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(ValueError::Rule(format!("is neither true nor false, but {other}"))),
    }
}

fn read_string(reader: &mut Reader<'_>) -> Result<String, ValueError> {
    let length = reader.u64()?;
    let bytes = reader.take(length)?;
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(ValueError::Rule("is not UTF-8".to_owned())),
    }
}

/// The smallest bytes that one element can take, so that a count is compared with the file before it is believed.
fn smallest_element(code: u32) -> Option<u64> {
    match code {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        STRING | 10..=12 => Some(8),
        _ => None,
    }
}

fn read_array(reader: &mut Reader<'_>) -> Result<Array, ValueError> {
    let code = reader.u32()?;
    if code == ARRAY {
        return Err(ValueError::Rule("is an array of arrays".to_owned()));
    }
    let smallest =
        smallest_element(code).ok_or_else(|| ValueError::Rule(format!("is an array of the unknown type {code}")))?;
    let count = reader.u64()?;
    let wanted = count.saturating_mul(smallest);
    if wanted > reader.left() {
        return Err(ValueError::Short(Short {
            wanted,
            left: reader.left(),
            at: reader.position() as u64,
        }));
    }
    let count = usize::try_from(count).map_err(|_| ValueError::Rule("is too long".to_owned()))?;
    read_elements(reader, code, count)
}

fn read_elements(reader: &mut Reader<'_>, code: u32, count: usize) -> Result<Array, ValueError> {
    fn many<T>(count: usize, mut one: impl FnMut() -> Result<T, ValueError>) -> Result<Vec<T>, ValueError> {
        (0..count).map(|_| one()).collect()
    }
    Ok(match code {
        0 => Array::Unsigned(many(count, || Ok(reader.u8()?.into()))?),
        1 => Array::Signed(many(count, || Ok(reader.u8()?.cast_signed().into()))?),
        2 => Array::Unsigned(many(count, || Ok(reader.u16()?.into()))?),
        3 => Array::Signed(many(count, || Ok(reader.u16()?.cast_signed().into()))?),
        4 => Array::Unsigned(many(count, || Ok(reader.u32()?.into()))?),
        5 => Array::Signed(many(count, || Ok(reader.u32()?.cast_signed().into()))?),
        6 => Array::Float(many(count, || Ok(f32::from_bits(reader.u32()?).into()))?),
        7 => Array::Bool(many(count, || read_bool(reader))?),
        10 => Array::Unsigned(many(count, || Ok(reader.u64()?))?),
        11 => Array::Signed(many(count, || Ok(reader.u64()?.cast_signed()))?),
        12 => Array::Float(many(count, || Ok(f64::from_bits(reader.u64()?)))?),
        _ => Array::String(many(count, || read_string(reader))?),
    })
}
