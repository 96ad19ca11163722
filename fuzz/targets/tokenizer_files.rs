//! Vocabularies as hostile models bring them: the metadata of a GGUF file, or a `tokenizer.json`. Those that are accepted
//! encode and decode some texts.

#![no_main]

use escadre_fuzz::count_our_panics;
use escadre_runtime::model::{SpecialTokens, Tokenizer};
use escadre_verify::structure::gguf;
use libfuzzer_sys::fuzz_target;
use serde_json::json;

const TEXTS: [&str; 5] = [
    "",
    "Hello, world! 1234 it's",
    "  \n\t a\u{a0}b \u{2581}c<end><tool> aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab",
    "日本語 e\u{301} 👩‍👩‍👧 \u{feff}\u{202e}\0",
    "{\"a\": [1, 2.5e-3, null]}",
];

fuzz_target!(init: count_our_panics(), |data: &[u8]| {
    let tokenizer = if data.starts_with(b"GGUF") {
        let Ok(gguf) = gguf::parse("m.gguf", data) else {
            return;
        };
        Tokenizer::from_gguf("m.gguf", &gguf)
    } else {
        let config = json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "add_bos_token": true});
        Tokenizer::from_json("tokenizer.json", data, &config)
    };
    if let Ok(tokenizer) = tokenizer {
        use_it(&tokenizer);
    }
});

fn use_it(tokenizer: &Tokenizer) {
    let vocabulary = tokenizer.vocabulary();
    assert!(tokenizer.prefix().iter().all(|id| (*id as usize) < vocabulary));
    let mut decoder = tokenizer.decoder(tokenizer.prefix());
    for text in TEXTS {
        for special in [SpecialTokens::Parse, SpecialTokens::AsText] {
            let Ok(ids) = tokenizer.encode(text, special) else {
                continue;
            };
            for id in ids {
                assert!(
                    tokenizer.token_bytes(id).is_some(),
                    "token {id} of {vocabulary} in {text:?}"
                );
                decoder.push(id);
            }
        }
    }
    decoder.finish();
}
