//! A model's tokens, as the parser of grammars wants them.

use crate::model::Tokenizer;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use std::sync::Arc;

/// All tokens with their bytes. Control tokens are marked, so that no text of a grammar is ever taken for one.
pub(super) fn environment(tokenizer: &Tokenizer, end: u32) -> TokEnv {
    let count = u32::try_from(tokenizer.vocabulary()).unwrap_or(u32::MAX);
    let words: Vec<Vec<u8>> = (0..count)
        .map(|token| {
            let bytes = tokenizer.token_bytes(token).unwrap_or_default();
            if tokenizer.is_control(token) {
                [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat()
            } else {
                bytes.to_vec()
            }
        })
        .collect();
    let trie = TokTrie::from(&TokRxInfo::new(count, end), &words);
    Arc::new(ApproximateTokEnv::new(trie))
}
