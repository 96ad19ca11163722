//! Statements: the lists of files that signatures are about.
//!
//! What is accepted names files by paths that stay below a folder, and parts that make up whole files.

#![no_main]

use escadre_fuzz::count_our_panics;
use escadre_verify::signature::{FileHash, Manifest};
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: count_our_panics(), |data: &[u8]| {
    let Ok(manifest) = Manifest::parse(data) else {
        return;
    };
    let mut count = 0;
    for (name, hash) in manifest.files() {
        count += 1;
        assert!(!name.starts_with('/') && !name.contains(['\\', '\n', '\0']));
        assert!(name == "." || name.split('/').all(|part| !matches!(part, "" | "." | "..")));
        if let FileHash::Shards { size, bytes, sums } = hash {
            assert_eq!(sums.len() as u64, bytes.div_ceil(*size));
        }
    }
    assert!(count > 0);
});
