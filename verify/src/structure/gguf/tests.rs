use super::*;

/// Writes headers field by field, so that a test can break any of them.
#[derive(Default, Clone)]
struct Builder {
    keys: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    data: usize,
    alignment: usize,
}

fn text(value: &str) -> Vec<u8> {
    [&(value.len() as u64).to_le_bytes(), value.as_bytes()].concat()
}

fn key(name: &str, code: u32, value: &[u8]) -> Vec<u8> {
    [&text(name)[..], &code.to_le_bytes(), value].concat()
}

fn tensor(name: &str, dims: &[u64], code: u32, offset: u64) -> Vec<u8> {
    let mut bytes = text(name);
    bytes.extend(u32::try_from(dims.len()).unwrap().to_le_bytes());
    for dim in dims {
        bytes.extend(dim.to_le_bytes());
    }
    bytes.extend(code.to_le_bytes());
    bytes.extend(offset.to_le_bytes());
    bytes
}

impl Builder {
    fn valid() -> Self {
        let strings = [&8_u32.to_le_bytes()[..], &2_u64.to_le_bytes(), &text("a"), &text("bc")].concat();
        Self {
            keys: vec![
                key("general.architecture", 8, &text("llama")),
                key("llama.block_count", 4, &30_u32.to_le_bytes()),
                key("tokens", 9, &strings),
                key("general.alignment", 4, &32_u32.to_le_bytes()),
            ],
            tensors: vec![tensor("a", &[32, 3], 3, 0), tensor("b", &[5], 0, 64)],
            data: 64 + 20,
            alignment: 32,
        }
    }

    fn with_tensor(bytes: Vec<u8>, data: usize) -> Vec<u8> {
        let mut builder = Self::valid();
        builder.tensors = vec![bytes];
        builder.data = data;
        builder.build()
    }

    fn with_key(bytes: Vec<u8>) -> Vec<u8> {
        let mut builder = Self::valid();
        builder.keys.push(bytes);
        builder.build()
    }

    fn build(&self) -> Vec<u8> {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.keys.len() as u64).to_le_bytes());
        bytes.extend(self.keys.concat());
        bytes.extend(self.tensors.concat());
        bytes.resize(bytes.len().next_multiple_of(self.alignment), 0);
        bytes.resize(bytes.len() + self.data, 1);
        bytes
    }
}

#[test]
fn valid_files_give_typed_keys_and_ranges() {
    let bytes = Builder::valid().build();
    let gguf = parse("m.gguf", &bytes).unwrap();
    let data = bytes.len() - 84;
    assert_eq!(gguf.get("general.architecture").and_then(Value::as_str), Some("llama"));
    assert_eq!(gguf.get("llama.block_count").and_then(Value::as_u64), Some(30));
    let tokens = Array::String(vec!["a".into(), "bc".into()]);
    assert_eq!(gguf.get("tokens").and_then(Value::as_array), Some(&tokens));
    let first = gguf.tensor("a").unwrap();
    assert_eq!((first.kind, first.elements()), (TensorType::Q4_1, 96));
    assert_eq!(first.range, data..data + 60);
    assert_eq!(gguf.tensor("b").unwrap().range, data + 64..data + 84);
}

#[test]
fn padding_behind_the_last_tensor_is_allowed() {
    let mut bytes = Builder::valid().build();
    bytes.resize(bytes.len() + 12, 0);
    assert!(parse("m", &bytes).is_ok());
    bytes.push(0);
    assert!(
        parse("m", &bytes)
            .unwrap_err()
            .to_string()
            .contains("behind the last tensor")
    );
}

#[test]
fn hostile_headers_are_refused_by_field() {
    let array = |code: u32, count: u64| key("x", 9, &[&code.to_le_bytes()[..], &count.to_le_bytes()].concat());
    let mut twice = Builder::valid();
    twice.tensors[1] = tensor("a", &[5], 0, 64);
    let mut odd_alignment = Builder::valid();
    odd_alignment.keys[3] = key("general.alignment", 4, &24_u32.to_le_bytes());
    let mut no_alignment = Builder::valid();
    no_alignment.keys[3] = key("general.alignment", 4, &0_u32.to_le_bytes());
    let mut typed_alignment = Builder::valid();
    typed_alignment.keys[3] = key("general.alignment", 10, &32_u64.to_le_bytes());
    let table = [
        (Builder::with_tensor(tensor("t", &[], 0, 0), 4), "number of dimensions"),
        (
            Builder::with_tensor(tensor("t", &[1; 5], 0, 0), 4),
            "number of dimensions",
        ),
        (
            Builder::with_tensor(tensor("t", &[0], 0, 0), 4),
            "dimension out of bounds",
        ),
        (
            Builder::with_tensor(tensor("t", &[8, 0], 0, 0), 4),
            "dimension out of bounds",
        ),
        (
            Builder::with_tensor(tensor("t", &[1 << 62, 1 << 62], 0, 0), 4),
            "can be counted",
        ),
        (Builder::with_tensor(tensor("t", &[1 << 61], 0, 0), 4), "truncated"),
        (
            Builder::with_tensor(tensor("t", &[u64::MAX], 0, 0), 4),
            "can be counted",
        ),
        (
            Builder::with_tensor(tensor("t", &[33], 3, 0), 40),
            "whole number of Q4_1 blocks",
        ),
        (Builder::with_tensor(tensor("t", &[1], 4, 0), 4), "unknown type 4"),
        (Builder::with_tensor(tensor("t", &[1], 0, 32), 36), "does not follow"),
        (
            Builder::with_tensor(tensor("t", &[1], 0, u64::MAX), 36),
            "does not follow",
        ),
        (Builder::with_tensor(tensor("t", &[9], 0, 0), 35), "truncated"),
        (Builder::with_tensor(tensor("", &[1], 0, 0), 4), "length out of bounds"),
        (
            Builder::with_tensor(tensor(&"t".repeat(257), &[1], 0, 0), 4),
            "length out of bounds",
        ),
        (Builder::with_key(key("tokens", 4, &[0; 4])), "occurs twice"),
        (Builder::with_key(key("x", 13, &[0; 4])), "unknown type 13"),
        (Builder::with_key(key("x", 7, &[2])), "neither true nor false"),
        (
            Builder::with_key(key("x", 8, &[1, 0, 0, 0, 0, 0, 0, 0, 0xff])),
            "not UTF-8",
        ),
        (
            Builder::with_key(key("x", 8, &u64::MAX.to_le_bytes())),
            "truncated or damaged",
        ),
        (Builder::with_key(array(9, 1)), "array of arrays"),
        (Builder::with_key(array(99, 1)), "array of the unknown type 99"),
        (Builder::with_key(array(0, u64::MAX)), "truncated or damaged"),
        (Builder::with_key(array(8, 1 << 40)), "truncated or damaged"),
        (twice.build(), "\"a\" occurs twice"),
        (odd_alignment.build(), "power of two"),
        (no_alignment.build(), "power of two"),
        (typed_alignment.build(), "wrong type"),
    ];
    for (bytes, part) in table {
        let refusal = parse("m.gguf", &bytes).unwrap_err();
        assert_eq!(refusal.reason, Reason::GgufInvalid, "{part}");
        assert_eq!(refusal.file.as_deref(), Some("m.gguf"));
        assert!(refusal.to_string().contains(part), "{part}: {refusal}");
    }
}

#[test]
fn hostile_fixed_fields_are_refused() {
    let valid = Builder::valid().build();
    let patch = |at: usize, value: &[u8]| {
        let mut bytes = valid.clone();
        bytes[at..at + value.len()].copy_from_slice(value);
        bytes
    };
    let table = [
        (patch(4, &2_u32.to_le_bytes()), "version of the format"),
        (patch(4, &3_u32.to_be_bytes()), "version of the format"),
        (patch(8, &u64::MAX.to_le_bytes()), "too many tensors"),
        (patch(8, &999_999_u64.to_le_bytes()), "more tensors than"),
        (patch(16, &100_001_u64.to_le_bytes()), "too many keys"),
        (patch(16, &99_999_u64.to_le_bytes()), "more keys than"),
        (b"GGML".to_vec(), "not GGUF"),
        (b"GGUF".to_vec(), "truncated or damaged"),
        (Vec::new(), "not GGUF"),
    ];
    for (bytes, part) in table {
        let refusal = parse("m.gguf", &bytes).unwrap_err();
        assert_eq!(refusal.reason, Reason::GgufInvalid, "{part}");
        assert!(refusal.to_string().contains(part), "{part}: {refusal}");
    }
}

#[test]
fn a_pickle_is_named_as_such() {
    assert_eq!(
        parse("m.gguf", b"\x80\x02abc").unwrap_err().reason,
        Reason::FormatRefused
    );
}

#[test]
fn every_cut_is_refused() {
    let bytes = Builder::valid().build();
    for length in 0..bytes.len() {
        let refusal = parse("m", &bytes[..length]).unwrap_err();
        assert_eq!(refusal.reason, Reason::GgufInvalid, "cut at {length}");
    }
}

#[test]
fn no_mutation_panics() {
    let valid = Builder::valid().build();
    let mut state = 7_u64;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(state >> 33).unwrap()
    };
    let extremes = [0, 1, 2, 0x7f, 0x80, 0xff];
    for _ in 0..50_000 {
        let mut bytes = valid.clone();
        for _ in 0..=next() % 4 {
            let at = next() % bytes.len();
            bytes[at] = extremes[next() % extremes.len()];
        }
        if let Ok(gguf) = parse("m", &bytes) {
            for tensor in gguf.tensors {
                assert!(bytes.get(tensor.range.clone()).is_some());
                assert!(tensor.elements() > 0);
            }
        }
    }
}

#[test]
fn front_of_a_file_suffices_when_the_header_is_in_it() {
    let bytes = Builder::valid().build();
    let whole = parse("m", &bytes).unwrap();
    let header = whole.tensors[0].range.start;
    for end in 0..=bytes.len() {
        let found = parse_front("m", &bytes[..end], bytes.len());
        match found {
            // The mark itself is wanted at once.
            Err(refusal) => assert!(end < 4, "{end}: {refusal}"),
            Ok(None) => assert!(end < header, "{end}"),
            Ok(Some(found)) => assert_eq!(found, whole, "{end}"),
        }
    }
    assert!(parse_front("m", &bytes[..header], bytes.len()).unwrap().is_some());
    // What is wrong with the whole is said with the front at hand.
    let refusal = parse_front("m", &bytes[..header], bytes.len() - 1).unwrap_err();
    assert_eq!(refusal, parse("m", &bytes[..bytes.len() - 1]).unwrap_err());
}
