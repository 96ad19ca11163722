//! GGUF: the header of a file as plain values, after every structure rule was checked.
//!
//! # Guarantees
//! [`parse`] never panics, takes memory in proportion to the bytes that are there (never to a number that the file
//! states), and what it returns can be trusted by code that indexes: every range of a [`TensorInfo`] is inside the
//! file, ranges do not overlap, and element counts fit a `usize`.

mod types;
mod value;

pub use types::TensorType;
pub use value::{Array, Value};

use super::content::{self, Kind};
use super::reader::{Reader, Short};
use crate::{Reason, Refusal};
use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

/// The version of the format that is read. Version 2 differs in nothing that we need, but is no longer written.
const VERSION: u32 = 3;
/// More keys than any model has.
pub const MAX_KEYS: u64 = 100_000;
/// More tensors than any model has.
pub const MAX_TENSORS: u64 = 1_000_000;
/// Bytes of a key or a tensor name.
pub const MAX_NAME: u64 = 256;
/// The alignment of tensor data when the file does not say.
const DEFAULT_ALIGNMENT: u32 = 32;
/// The smallest encodings, to bound counts by the bytes that are left: a key is a length, a type and one byte of
/// value; a tensor is a length, a number of dimensions, one dimension, a type and an offset.
const SMALLEST_KEY: u64 = 8 + 4 + 1;
const SMALLEST_TENSOR: u64 = 8 + 4 + 8 + 4 + 8;

/// One tensor: where it lies and what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Unique in the file.
    pub name: String,
    /// 1 to 4 sizes, the fastest-moving first, each at least 1.
    pub dims: Vec<usize>,
    /// How values are packed.
    pub kind: TensorType,
    /// The bytes in the file.
    pub range: Range<usize>,
}

impl TensorInfo {
    /// How many values it has.
    pub fn elements(&self) -> usize {
        self.dims.iter().product()
    }
}

/// A parsed header.
#[derive(Debug, Clone, PartialEq)]
pub struct Gguf {
    /// All keys.
    pub metadata: BTreeMap<String, Value>,
    /// In file order.
    pub tensors: Vec<TensorInfo>,
}

impl Gguf {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// The tensor of a name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }
}

/// Parses a whole file that is in memory.
pub fn parse(file: &str, bytes: &[u8]) -> Result<Gguf, Refusal> {
    Parser::new(file, Reader::new(bytes), bytes.len()).parse(bytes)
}

/// Parses the front of a file of `length` bytes. `None`: the header is longer than that.
pub fn parse_front(file: &str, front: &[u8], length: usize) -> Result<Option<Gguf>, Refusal> {
    let mut parser = Parser::new(file, Reader::of_front(front, length), length);
    match parser.parse(front) {
        Err(_) if parser.reader.lacks_bytes() => Ok(None),
        parsed => parsed.map(Some),
    }
}

struct Parser<'a> {
    file: &'a str,
    reader: Reader<'a>,
    length: usize,
}

impl<'a> Parser<'a> {
    fn new(file: &'a str, reader: Reader<'a>, length: usize) -> Self {
        Self { file, reader, length }
    }

    fn refuse(&self, message: impl Into<String>) -> Refusal {
        Refusal::new(Reason::GgufInvalid, message).in_file(self.file)
    }

    fn short(&self, what: &str, short: Short) -> Refusal {
        let Short { wanted, left, at } = short;
        self.refuse(format!(
            "{what} at byte {at} needs {wanted} bytes, but the file of {} bytes has {left} left; it is truncated or \
             damaged, fetch it again",
            self.length
        ))
        .values(wanted, left)
    }

    fn parse(&mut self, bytes: &[u8]) -> Result<Gguf, Refusal> {
        self.magic(bytes)?;
        let tensor_count = self.u64("the number of tensors")?;
        let key_count = self.u64("the number of keys")?;
        self.check_count("keys", key_count, MAX_KEYS, SMALLEST_KEY)?;
        self.check_count("tensors", tensor_count, MAX_TENSORS, SMALLEST_TENSOR)?;
        let metadata = self.metadata(key_count)?;
        let alignment = self.alignment(&metadata)?;
        let tensors = self.tensors(tensor_count, alignment)?;
        Ok(Gguf { metadata, tensors })
    }

    fn magic(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        match content::detect(bytes) {
            Kind::Gguf => {}
            Kind::Pickle | Kind::Zip => {
                content::require_weights(self.file, bytes)?;
            }
            Kind::Safetensors | Kind::Unknown => {
                return Err(self
                    .refuse("the file is not GGUF: it does not start with the format's mark")
                    .values("bytes 47 47 55 46", content::first_bytes(bytes)));
            }
        }
        self.reader.take(4).map_err(|short| self.short("the mark", short))?;
        let version = self.u32("the version")?;
        if version != VERSION {
            return Err(self
                .refuse("the version of the format is not supported; convert the model again")
                .values(VERSION, version));
        }
        Ok(())
    }

    fn u32(&mut self, what: &str) -> Result<u32, Refusal> {
        self.reader.u32().map_err(|short| self.short(what, short))
    }

    fn u64(&mut self, what: &str) -> Result<u64, Refusal> {
        self.reader.u64().map_err(|short| self.short(what, short))
    }

    fn check_count(&self, what: &str, count: u64, limit: u64, smallest: u64) -> Result<(), Refusal> {
        if count > limit {
            return Err(self
                .refuse(format!("too many {what}"))
                .values(format!("at most {limit}"), count));
        }
        if count.saturating_mul(smallest) > self.reader.left() {
            let fits = self.reader.left() / smallest;
            return Err(self
                .refuse(format!(
                    "more {what} than the file's {} bytes can hold; it is truncated or damaged, fetch it again",
                    self.length
                ))
                .values(format!("at most {fits}"), count));
        }
        Ok(())
    }

    fn name(&mut self, what: &str) -> Result<String, Refusal> {
        let length = self.u64(what)?;
        if length == 0 || length > MAX_NAME {
            return Err(self
                .refuse(format!("{what} has a length out of bounds"))
                .values(format!("1 to {MAX_NAME} bytes"), length));
        }
        let bytes = self.reader.take(length).map_err(|short| self.short(what, short))?;
        let text = std::str::from_utf8(bytes).map_err(|_| self.refuse(format!("{what} is not UTF-8")))?;
        Ok(text.to_owned())
    }

    fn metadata(&mut self, count: u64) -> Result<BTreeMap<String, Value>, Refusal> {
        let mut metadata = BTreeMap::new();
        for index in 0..count {
            let key = self.name(&format!("key {index}"))?;
            let value = value::read(&mut self.reader).map_err(|error| self.bad_value(&key, error))?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(self.refuse(format!("key {key:?} occurs twice")));
            }
        }
        Ok(metadata)
    }

    fn bad_value(&self, key: &str, error: value::ValueError) -> Refusal {
        let what = format!("the value of {key:?}");
        match error {
            value::ValueError::Short(short) => self.short(&what, short),
            value::ValueError::Rule(rule) => self.refuse(format!("{what} {rule}")),
        }
    }

    fn alignment(&self, metadata: &BTreeMap<String, Value>) -> Result<u64, Refusal> {
        let alignment = match metadata.get("general.alignment") {
            None => DEFAULT_ALIGNMENT,
            Some(Value::U32(alignment)) => *alignment,
            Some(other) => {
                return Err(self
                    .refuse("\"general.alignment\" has the wrong type")
                    .values("u32", other.type_name()));
            }
        };
        if !alignment.is_power_of_two() || !(8..=65_536).contains(&alignment) {
            return Err(self
                .refuse("\"general.alignment\" is out of bounds")
                .values("a power of two from 8 to 65536", alignment));
        }
        Ok(u64::from(alignment))
    }

    fn tensors(&mut self, count: u64, alignment: u64) -> Result<Vec<TensorInfo>, Refusal> {
        let mut headers = Vec::new();
        let mut names = HashSet::new();
        for index in 0..count {
            let header = self.tensor(index)?;
            if !names.insert(header.name.clone()) {
                return Err(self.refuse(format!("tensor {:?} occurs twice", header.name)));
            }
            headers.push(header);
        }
        self.place(headers, alignment)
    }

    fn tensor(&mut self, index: u64) -> Result<Header, Refusal> {
        let name = self.name(&format!("the name of tensor {index}"))?;
        let rank = self.u32(&format!("tensor {name:?}"))?;
        if !(1..=4).contains(&rank) {
            return Err(self
                .refuse(format!("tensor {name:?} has a wrong number of dimensions"))
                .values("1 to 4", rank));
        }
        let mut dims = Vec::with_capacity(4);
        for _ in 0..rank {
            let dim = self.u64(&format!("a dimension of tensor {name:?}"))?;
            let fits = usize::try_from(dim).ok().filter(|&dim| dim > 0);
            dims.push(fits.ok_or_else(|| {
                self.refuse(format!("tensor {name:?} has a dimension out of bounds"))
                    .values("at least 1", dim)
            })?);
        }
        let code = self.u32(&format!("the type of tensor {name:?}"))?;
        let kind = TensorType::from_code(code)
            .ok_or_else(|| self.refuse(format!("tensor {name:?} has the unknown type {code}")))?;
        let offset = self.u64(&format!("the offset of tensor {name:?}"))?;
        let bytes = self.size(&name, &dims, kind)?;
        Ok(Header {
            name,
            dims,
            kind,
            offset,
            bytes,
        })
    }

    fn size(&self, name: &str, dims: &[usize], kind: TensorType) -> Result<u64, Refusal> {
        if !dims[0].is_multiple_of(kind.block_elements()) {
            return Err(self
                .refuse(format!(
                    "a row of tensor {name:?} is not a whole number of {kind} blocks"
                ))
                .values(format!("a multiple of {}", kind.block_elements()), dims[0]));
        }
        dims.iter()
            .try_fold(1_u64, |product, &dim| product.checked_mul(dim as u64))
            .filter(|&elements| i64::try_from(elements).is_ok())
            .and_then(|elements| (elements / kind.block_elements() as u64).checked_mul(kind.block_bytes() as u64))
            .ok_or_else(|| self.refuse(format!("tensor {name:?} has more values than can be counted: {dims:?}")))
    }

    /// Offsets must be the running sum of the padded sizes: no gap in which bytes could hide, no overlap.
    fn place(&self, headers: Vec<Header>, alignment: u64) -> Result<Vec<TensorInfo>, Refusal> {
        let length = self.length as u64;
        let data = (self.reader.position() as u64).next_multiple_of(alignment);
        let mut expected = 0_u64;
        let mut end = data;
        let mut tensors = Vec::with_capacity(headers.len());
        for header in headers {
            let name = &header.name;
            if header.offset != expected {
                return Err(self
                    .refuse(format!("tensor {name:?} does not follow the one before it"))
                    .values(format!("offset {expected}"), header.offset));
            }
            let start = data.checked_add(header.offset);
            let stop = start.and_then(|start| start.checked_add(header.bytes));
            let (Some(start), Some(stop)) = (start, stop) else {
                return Err(self.refuse(format!("tensor {name:?} ends behind every possible file")));
            };
            if stop > length {
                return Err(self
                    .refuse(format!(
                        "the file is truncated: tensor {name:?} ends at byte {stop}, the file has {length} bytes; \
                         fetch it again"
                    ))
                    .values(format!("at least {stop} bytes"), length));
            }
            end = stop;
            expected = header
                .bytes
                .checked_next_multiple_of(alignment)
                .and_then(|padded| expected.checked_add(padded))
                .ok_or_else(|| self.refuse(format!("tensor {name:?} is too large")))?;
            tensors.push(header.placed(to_index(start)..to_index(stop)));
        }
        let limit = end.next_multiple_of(alignment).max(data);
        if length > limit {
            return Err(self
                .refuse("there are bytes behind the last tensor")
                .values(format!("at most {limit} bytes"), length));
        }
        Ok(tensors)
    }
}

/// An offset that was compared with the length of a slice.
fn to_index(offset: u64) -> usize {
    usize::try_from(offset).expect("offsets inside a slice fit usize")
}

struct Header {
    name: String,
    dims: Vec<usize>,
    kind: TensorType,
    offset: u64,
    bytes: u64,
}

impl Header {
    fn placed(self, range: Range<usize>) -> TensorInfo {
        let Self {
            name,
            dims,
            kind,
            offset: _,
            bytes: _,
        } = self;
        TensorInfo {
            name,
            dims,
            kind,
            range,
        }
    }
}

#[cfg(test)]
mod tests;
