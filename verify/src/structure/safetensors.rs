//! safetensors: the header of a file as plain values, after every structure rule was checked.
//!
//! # Guarantees
//! [`parse`] never panics and never allocates by a number that the file states. Every range that it returns is
//! inside the file, ranges do not overlap and leave no gap, and shape times type is the range's length.

use super::content::{self, Kind};
use super::json;
use super::reader::Reader;
use crate::{Reason, Refusal};
use serde_json::Value;
use std::fmt;
use std::ops::Range;

/// Bytes of a header. The largest published models have about 10 MB.
pub const MAX_HEADER: u64 = 64 << 20;
/// Bytes of a tensor's name.
const MAX_NAME: usize = 512;
/// Dimensions of a tensor.
const MAX_RANK: usize = 8;

/// The type of one value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DataType {
    /// True or false, one byte.
    Bool,
    /// Unsigned, 8 bits.
    U8,
    /// Signed, 8 bits.
    I8,
    /// 8-bit float, 4 bits of exponent.
    F8E4M3,
    /// 8-bit float, 5 bits of exponent.
    F8E5M2,
    /// Signed, 16 bits.
    I16,
    /// Unsigned, 16 bits.
    U16,
    /// 16-bit float.
    F16,
    /// 16-bit float with the range of 32 bits.
    Bf16,
    /// Signed, 32 bits.
    I32,
    /// Unsigned, 32 bits.
    U32,
    /// 32-bit float.
    F32,
    /// 64-bit float.
    F64,
    /// Signed, 64 bits.
    I64,
    /// Unsigned, 64 bits.
    U64,
}

impl DataType {
    const NAMES: [(&'static str, Self, u64); 15] = [
        ("BOOL", Self::Bool, 1),
        ("U8", Self::U8, 1),
        ("I8", Self::I8, 1),
        ("F8_E4M3", Self::F8E4M3, 1),
        ("F8_E5M2", Self::F8E5M2, 1),
        ("I16", Self::I16, 2),
        ("U16", Self::U16, 2),
        ("F16", Self::F16, 2),
        ("BF16", Self::Bf16, 2),
        ("I32", Self::I32, 4),
        ("U32", Self::U32, 4),
        ("F32", Self::F32, 4),
        ("F64", Self::F64, 8),
        ("I64", Self::I64, 8),
        ("U64", Self::U64, 8),
    ];

    fn from_name(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|entry| entry.0 == name).map(|entry| entry.1)
    }

    fn entry(self) -> (&'static str, u64) {
        let entry = Self::NAMES.iter().find(|entry| entry.1 == self);
        entry.map_or(("", 0), |entry| (entry.0, entry.2))
    }

    /// Bytes of one value.
    pub fn bytes(self) -> u64 {
        self.entry().1
    }
}

impl fmt::Display for DataType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.entry().0)
    }
}

/// One tensor: where it lies and what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Unique in the file.
    pub name: String,
    /// Sizes, the slowest-moving first.
    pub shape: Vec<usize>,
    /// The type of a value.
    pub kind: DataType,
    /// The bytes in the file.
    pub range: Range<usize>,
}

impl TensorInfo {
    /// How many values it has.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Parses a whole file that is in memory. Tensors come in the order in which they lie in the file.
pub fn parse(file: &str, bytes: &[u8]) -> Result<Vec<TensorInfo>, Refusal> {
    read(file, &mut Reader::new(bytes), bytes, bytes.len())
}

/// Parses the front of a file of `length` bytes. `None`: the header is longer than that.
pub fn parse_front(file: &str, front: &[u8], length: usize) -> Result<Option<Vec<TensorInfo>>, Refusal> {
    let mut reader = Reader::of_front(front, length);
    match read(file, &mut reader, front, length) {
        Err(_) if reader.lacks_bytes() => Ok(None),
        read => read.map(Some),
    }
}

fn read(file: &str, reader: &mut Reader<'_>, bytes: &[u8], size: usize) -> Result<Vec<TensorInfo>, Refusal> {
    let refuse = |message: String| Refusal::new(Reason::SafetensorsInvalid, message).in_file(file);
    if let kind @ (Kind::Pickle | Kind::Zip | Kind::Gguf) = content::detect(bytes)
        && !header_is_json(reader.clone(), bytes)
    {
        return Err(Refusal::new(
            Reason::FormatRefused,
            format!("the content is {kind}, not safetensors; convert the model"),
        )
        .in_file(file));
    }
    let length = reader
        .u64()
        .map_err(|_| refuse("the file is too short for a header length".into()).values("8 bytes", size))?;
    if length > MAX_HEADER {
        return Err(refuse("the header is too long".into()).values(format!("at most {MAX_HEADER} bytes"), length));
    }
    let header = reader.take(length).map_err(|short| {
        refuse("the header is longer than the file; it is truncated or damaged, fetch it again".into())
            .values(format!("at most {} bytes", short.left), short.wanted)
    })?;
    if header.first() != Some(&b'{') {
        return Err(
            refuse("the header does not start with a JSON object".into()).values("{", content::first_bytes(header))
        );
    }
    let value = json::parse(header).map_err(|error| refuse(format!("the header {error}")))?;
    let Value::Object(entries) = value else {
        return Err(refuse("the header is no JSON object".into()));
    };
    let data = reader.position();
    let mut tensors = Vec::new();
    for (name, entry) in entries {
        if name == "__metadata__" {
            check_metadata(&entry).map_err(|error| refuse(format!("\"__metadata__\" {error}")))?;
        } else {
            let tensor = tensor(&name, &entry).map_err(|error| refuse(format!("tensor {name:?} {error}")))?;
            tensors.push(tensor);
        }
    }
    place(tensors, data, size).map_err(|(error, expected, got)| refuse(error).values(expected, got))
}

/// A header whose length happens to begin with the mark of another format is still a header.
fn header_is_json(mut reader: Reader<'_>, bytes: &[u8]) -> bool {
    reader
        .u64()
        .is_ok_and(|length| length <= reader.left() && bytes.get(8) == Some(&b'{'))
}

fn check_metadata(entry: &Value) -> Result<(), &'static str> {
    let map = entry.as_object().ok_or("is no object")?;
    let is_text = map.values().all(Value::is_string);
    is_text.then_some(()).ok_or("has a value that is no text")
}

/// A tensor whose offsets are still relative to the data section.
struct Entry {
    name: String,
    shape: Vec<usize>,
    kind: DataType,
    begin: u64,
    end: u64,
}

fn tensor(name: &str, entry: &Value) -> Result<Entry, String> {
    check_name(name)?;
    let map = entry.as_object().ok_or("is no object")?;
    if let Some(key) = map
        .keys()
        .find(|key| !["dtype", "shape", "data_offsets"].contains(&key.as_str()))
    {
        return Err(format!("has the unknown field {key:?}"));
    }
    let dtype = map.get("dtype").and_then(Value::as_str).ok_or("has no \"dtype\"")?;
    let kind = DataType::from_name(dtype).ok_or_else(|| format!("has the unknown type {dtype:?}"))?;
    let shape = numbers(map.get("shape"), MAX_RANK).ok_or("has no valid \"shape\"")?;
    let offsets = numbers(map.get("data_offsets"), 2).ok_or("has no valid \"data_offsets\"")?;
    let &[begin, end] = offsets.as_slice() else {
        return Err("must have two \"data_offsets\"".into());
    };
    if let Some(size) = shape.iter().find(|&&size| size == 0) {
        return Err(format!("has a dimension of {size}"));
    }
    let bytes = shape
        .iter()
        .try_fold(kind.bytes(), |product, &size| product.checked_mul(size))
        .filter(|&bytes| i64::try_from(bytes).is_ok())
        .ok_or_else(|| format!("has more values than can be counted: {shape:?}"))?;
    if end.checked_sub(begin) != Some(bytes) {
        return Err(format!(
            "has offsets {begin} to {end}, but shape {shape:?} of {kind} takes {bytes} bytes"
        ));
    }
    let shape = shape.into_iter().map(usize::try_from).collect::<Result<_, _>>();
    Ok(Entry {
        name: name.to_owned(),
        shape: shape.map_err(|_| "has a dimension that is too large")?,
        kind,
        begin,
        end,
    })
}

fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > MAX_NAME {
        return Err(format!("has a name of {} bytes, not 1 to {MAX_NAME}", name.len()));
    }
    if name.contains(['/', '\\', '\0']) || name.contains("..") {
        return Err("has a name with path parts".to_owned());
    }
    Ok(())
}

fn numbers(value: Option<&Value>, limit: usize) -> Option<Vec<u64>> {
    let values = value?.as_array().filter(|values| values.len() <= limit)?;
    values.iter().map(Value::as_u64).collect()
}

type Misplaced = (String, String, String);

/// Offsets must cover the data section without gap and overlap.
fn place(mut entries: Vec<Entry>, data: usize, length: usize) -> Result<Vec<TensorInfo>, Misplaced> {
    entries.sort_by_key(|entry| entry.begin);
    let available = (length - data) as u64;
    let mut expected = 0;
    let mut tensors = Vec::with_capacity(entries.len());
    for entry in entries {
        let Entry {
            name,
            shape,
            kind,
            begin,
            end,
        } = entry;
        if begin != expected {
            let message = format!("tensor {name:?} does not follow the one before it");
            return Err((message, format!("offset {expected}"), begin.to_string()));
        }
        if end > available {
            let message = format!("tensor {name:?} ends behind the file; it is truncated or damaged, fetch it again");
            return Err((message, format!("at most {available} bytes of data"), end.to_string()));
        }
        expected = end;
        let index = |offset: u64| data + usize::try_from(offset).expect("offsets inside a slice fit usize");
        tensors.push(TensorInfo {
            name,
            shape,
            kind,
            range: index(begin)..index(end),
        });
    }
    if expected != available {
        let message = "there are bytes behind the last tensor".to_owned();
        return Err((message, format!("{expected} bytes of data"), available.to_string()));
    }
    Ok(tensors)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.resize(bytes.len() + data, 7);
        bytes
    }

    const VALID: &str = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[2,2],"data_offsets":[4,20]},"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}"#;

    #[test]
    fn valid_files_give_ranges_in_file_order() {
        let bytes = file(VALID, 20);
        let tensors = parse("m.safetensors", &bytes).unwrap();
        let data = bytes.len() - 20;
        assert_eq!(tensors[0].name, "a");
        assert_eq!(tensors[0].kind, DataType::Bf16);
        assert_eq!(tensors[0].range, data..data + 4);
        assert_eq!(tensors[1].shape, [2, 2]);
        assert_eq!(tensors[1].range, data + 4..data + 20);
    }

    #[test]
    fn front_of_a_file_suffices_when_the_header_is_in_it() {
        let bytes = file(VALID, 20);
        let whole = parse("m", &bytes).unwrap();
        for end in 0..=bytes.len() {
            let found = parse_front("m", &bytes[..end], bytes.len()).unwrap();
            assert_eq!(found, (end >= bytes.len() - 20).then(|| whole.clone()), "{end}");
        }
    }

    #[test]
    fn hostile_headers_are_refused_by_name() {
        let one = |dtype: &str, shape: &str, offsets: &str| {
            format!(r#"{{"t":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
        };
        let table = [
            (one("F32", "[2]", "[0,4]"), 8, "takes 8 bytes"),
            (one("F32", "[2]", "[4,12]"), 12, "does not follow"),
            (one("F32", "[2]", "[0,8]"), 4, "ends behind the file"),
            (one("F32", "[2]", "[0,8]"), 9, "bytes behind the last tensor"),
            (one("F32", "[0]", "[0,0]"), 0, "dimension of 0"),
            (one("F32", "[-1]", "[0,0]"), 0, "no valid \"shape\""),
            (one("F32", "[9223372036854775807,8]", "[0,8]"), 8, "can be counted"),
            (one("Q9", "[2]", "[0,8]"), 8, "unknown type"),
            (one("F32", "[2]", "[8,0]"), 8, "takes 8 bytes"),
            (one("F32", "[2]", "[0]"), 8, "two \"data_offsets\""),
            (r#"{"../t":{}}"#.into(), 0, "path parts"),
            (r#"{"t":{},"t":{}}"#.into(), 0, "occurs twice"),
            (r#"{"t":3}"#.into(), 0, "is no object"),
            (r#"{"__metadata__":{"a":1}}"#.into(), 0, "no text"),
            (" {}".into(), 0, "does not start"),
            ("[]".into(), 0, "does not start"),
            ("{".into(), 0, "not acceptable JSON"),
        ];
        for (header, data, part) in table {
            let refusal = parse("m.safetensors", &file(&header, data)).unwrap_err();
            assert_eq!(refusal.reason, Reason::SafetensorsInvalid, "{header}");
            assert!(refusal.to_string().contains(part), "{header}: {refusal}");
        }
    }

    #[test]
    fn lengths_are_compared_with_the_file_before_they_are_believed() {
        for bytes in [
            &[][..],
            &[1, 2, 3],
            &u64::MAX.to_le_bytes(),
            &[&9_u64.to_le_bytes()[..], b"{}"].concat(),
        ] {
            let refusal = parse("m", bytes).unwrap_err();
            assert_eq!(refusal.reason, Reason::SafetensorsInvalid);
        }
    }

    #[test]
    fn pickles_are_named_as_such() {
        let refusal = parse("model.safetensors", b"\x80\x02}q\x00.........").unwrap_err();
        assert_eq!(refusal.reason, Reason::FormatRefused);
    }

    #[test]
    fn no_mutation_panics() {
        let valid = file(VALID, 20);
        let mut state = 42_u64;
        let mut next = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            usize::try_from(state >> 33).unwrap()
        };
        for _ in 0..20_000 {
            let mut bytes = valid.clone();
            for _ in 0..=next() % 4 {
                let at = next() % bytes.len();
                bytes[at] = u8::try_from(next() % 256).unwrap();
            }
            bytes.truncate(next() % (bytes.len() * 4) + 1);
            if let Ok(tensors) = parse("m", &bytes) {
                assert!(tensors.iter().all(|tensor| tensor.range.end <= bytes.len()));
            }
        }
    }
}
