//! Any text, in vocabularies of every kind. The first two bytes of an input choose the vocabulary and how often the text is
//! repeated, so that work that grows faster than the text is seen.
//!
//! Every vocabulary here has a token for every byte: a text comes back as it was.

#![no_main]

use escadre_fuzz::{count_our_panics, gpt2, llama, tokenizer_json};
use escadre_runtime::model::{SpecialTokens, Tokenizer};
use libfuzzer_sys::{Corpus, fuzz_target};
use std::sync::LazyLock;

/// Of a text that is repeated.
const MAX_BYTES: usize = 32 << 10;
const SPLITTINGS: [&str; 7] = ["default", "gpt-2", "smollm", "llama-bpe", "dbrx", "qwen2", "tekken"];

static VOCABULARIES: LazyLock<Vec<Tokenizer>> = LazyLock::new(|| {
    let byte_level = SPLITTINGS.iter().map(|splitting| gpt2(splitting));
    [llama(), tokenizer_json()].into_iter().chain(byte_level).collect()
});

fuzz_target!(init: count_our_panics(), |data: &[u8]| -> Corpus {
    let Some((&[vocabulary, times], text)) = data.split_first_chunk() else {
        return Corpus::Reject;
    };
    let Ok(text) = std::str::from_utf8(text) else {
        return Corpus::Reject;
    };
    let times = (1 << (times % 16)).min(MAX_BYTES / text.len().max(1)).max(1);
    let text = text.repeat(times);
    let index = usize::from(vocabulary) % VOCABULARIES.len();
    let is_llama = index == 0;
    for special in [SpecialTokens::Parse, SpecialTokens::AsText] {
        check(&VOCABULARIES[index], &text, special, is_llama);
    }
    Corpus::Keep
});

fn check(tokenizer: &Tokenizer, text: &str, special: SpecialTokens, is_llama: bool) {
    let ids = tokenizer
        .encode(text, special)
        .expect("there is a token for every byte");
    let mut bytes = Vec::new();
    let mut decoder = tokenizer.decoder(&ids);
    let mut decoded = String::new();
    for id in ids {
        assert!(
            special == SpecialTokens::Parse || !tokenizer.is_control(id),
            "a text became a control token"
        );
        bytes.extend_from_slice(tokenizer.token_bytes(id).expect("it is in the vocabulary"));
        decoded.push_str(&decoder.push(id));
    }
    decoded.push_str(&decoder.finish());
    assert_eq!(decoded, String::from_utf8_lossy(&bytes));
    if is_llama {
        // Spaces are put in front of texts, and are written as a character that is a space itself when it is read.
        let plain = |text: &str| text.replace([' ', '\u{2581}'], "");
        assert_eq!(plain(&decoded), plain(text));
    } else {
        assert_eq!(decoded, text);
    }
}
