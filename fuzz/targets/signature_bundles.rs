//! Signature files, judged with a key and with a certificate that are trusted.
//!
//! What is accepted lists the files of one of the seeds: only those were signed.

#![no_main]

use escadre_fuzz::count_our_panics;
use escadre_verify::{Signature, Trust};
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

static TRUST: LazyLock<[Trust; 2]> = LazyLock::new(|| {
    let key = include_bytes!("../../verify/tests/signed/p256.pem");
    let authority = include_bytes!("../../verify/tests/signed/ca.pem");
    [
        Trust::keys(key).expect("the key is usable"),
        Trust::authorities(authority).expect("the certificate is usable"),
    ]
});

fuzz_target!(init: count_our_panics(), |data: &[u8]| {
    // When the certificates of the seeds are valid.
    let now = SystemTime::UNIX_EPOCH + Duration::from_hours(504_000);
    for trust in &*TRUST {
        if let Ok(manifest) = Signature::verify(data, trust, now) {
            assert!(manifest.files().all(|(name, _)| NAMES.contains(&name)));
        }
    }
});

/// The files that the seeds name.
const NAMES: [&str; 5] = [
    "config.json",
    "model.safetensors",
    "notes/read me.txt",
    "tokenizer/merges.txt",
    ".",
];
