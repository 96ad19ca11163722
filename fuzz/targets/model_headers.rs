//! Headers of weights: GGUF, safetensors, `model.safetensors.index.json`, and the specification of a model from GGUF and
//! from `config.json`. What an input is, its beginning says.
//!
//! What is accepted keeps the promises that code which indexes relies on.

#![no_main]

use escadre_fuzz::count_our_panics;
use escadre_runtime::model::spec::{ModelSpec, RopeFactors};
use escadre_verify::structure::{gguf, index, json, safetensors};
use libfuzzer_sys::fuzz_target;
use std::ops::Range;

fuzz_target!(init: count_our_panics(), |data: &[u8]| {
    match data.first() {
        Some(b'{') => side_files(data),
        Some(b'G') => read_gguf(data),
        _ => read_safetensors(data),
    }
});

fn side_files(data: &[u8]) {
    let _ = index::parse("model.safetensors.index.json", data, |_| true);
    if let Ok(config) = json::parse(data) {
        let _ = ModelSpec::from_config("config.json", &config);
    }
}

fn read_gguf(data: &[u8]) {
    let Ok(parsed) = gguf::parse("m.gguf", data) else {
        return;
    };
    let mut ranges = Vec::new();
    for tensor in &parsed.tensors {
        let block = tensor.kind.block_elements();
        assert!((1..=4).contains(&tensor.dims.len()) && tensor.dims.iter().all(|size| *size > 0));
        assert!(tensor.dims[0].is_multiple_of(block));
        assert_eq!(
            tensor.range.len(),
            tensor.elements() / block * tensor.kind.block_bytes()
        );
        ranges.push(tensor.range.clone());
    }
    check_ranges(ranges, data.len());
    let _ = ModelSpec::from_gguf("m.gguf", &parsed, 6, RopeFactors::default());
}

fn read_safetensors(data: &[u8]) {
    let Ok(tensors) = safetensors::parse("m.safetensors", data) else {
        return;
    };
    for tensor in &tensors {
        assert_eq!(
            tensor.range.len() as u64,
            tensor.elements() as u64 * tensor.kind.bytes()
        );
    }
    let ranges: Vec<_> = tensors.into_iter().map(|tensor| tensor.range).collect();
    let covered: usize = ranges.iter().map(Range::len).sum();
    let begin = ranges.first().map_or(data.len(), |range| range.start);
    assert_eq!(begin + covered, data.len(), "there are gaps");
    check_ranges(ranges, data.len());
}

/// They are inside the file and do not overlap.
fn check_ranges(mut ranges: Vec<Range<usize>>, length: usize) {
    ranges.sort_by_key(|range| range.start);
    assert!(
        ranges
            .iter()
            .all(|range| range.start <= range.end && range.end <= length)
    );
    assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start));
}
