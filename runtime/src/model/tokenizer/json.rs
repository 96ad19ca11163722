//! A tokenizer from `tokenizer.json`, through the crate `tokenizers`.
//!
//! Added tokens are taken out of the file and split off by our own code, because the crate decides once per
//! tokenizer, not per text, whether control tokens are recognised.

use super::alphabet::{ByteLevel, SPACE, byte_token};
use super::special::{Special, Specials};
use super::vocabulary::{Kind, Vocabulary};
use super::{Cutter, Tokenizer, TokenizerError};
use escadre_verify::structure::json;
use escadre_verify::{Reason, Refusal};
use serde_json::Value;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// More tokens than any vocabulary has.
const MAX_ID: u64 = 1 << 22;

/// The crate's tokenizer without added tokens.
pub(super) struct Json(tokenizers::Tokenizer);

impl Json {
    pub(super) fn encode(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
        let encoding = self
            .0
            .encode_fast(text, false)
            .map_err(|error| TokenizerError(error.to_string()))?;
        ids.extend_from_slice(encoding.get_ids());
        Ok(())
    }
}

impl Tokenizer {
    /// Builds the tokenizer of a `tokenizer.json`; `config` is the content of `tokenizer_config.json`, or null.
    ///
    /// # Errors
    /// `TokenizerInvalid`, saying what is malformed or not supported.
    pub fn from_json(file: &str, bytes: &[u8], config: &Value) -> Result<Self, Refusal> {
        build(bytes, config).map_err(|message| Refusal::new(Reason::TokenizerInvalid, message).in_file(file))
    }
}

fn build(bytes: &[u8], config: &Value) -> Result<Tokenizer, String> {
    let mut file = json::parse(bytes).map_err(|error| format!("it {error}"))?;
    let specials = added_tokens(&file)?;
    let writing = Writing::find(&file["decoder"])
        .ok_or("its decoder is not supported; supported are byte-level and byte-fallback ones")?;
    let begins = token_of_template(&file["post_processor"], <[Value]>::first);
    let ends = token_of_template(&file["post_processor"], <[Value]>::last);
    let map = file.as_object_mut().ok_or("it is no JSON object")?;
    for key in ["added_tokens", "post_processor", "truncation", "padding"] {
        map.remove(key);
    }
    // The crate was not written for hostile files; what is left of them must not end the process.
    let parsed = catch_unwind(AssertUnwindSafe(|| {
        serde_json::from_value::<tokenizers::Tokenizer>(file)
    }));
    let inner = match parsed {
        Ok(Ok(inner)) => inner,
        Ok(Err(error)) => return Err(format!("it is malformed: {error}")),
        Err(_) => return Err("it is malformed".to_owned()),
    };
    let vocabulary = vocabulary(&inner, &specials, &writing)?;
    let specials = Specials::new(specials);
    let named = |key: &str| {
        let text = config[key].as_str().or_else(|| config[key]["content"].as_str())?;
        specials.find(text)
    };
    let begin = begins
        .as_deref()
        .and_then(|text| specials.find(text))
        .or_else(|| named("bos_token"));
    let begins = begins.is_some() || config["add_bos_token"].as_bool().unwrap_or(false);
    let end = named("eos_token");
    let always_ends = config["add_eos_token"].as_bool().unwrap_or(false);
    let suffix = ends
        .as_deref()
        .and_then(|text| specials.find(text))
        .or_else(|| end.filter(|_| always_ends));
    Ok(Tokenizer {
        vocabulary: Arc::new(vocabulary),
        cutter: Cutter::Json(Box::new(Json(inner))),
        prefix: begin.filter(|_| begins).into_iter().collect(),
        suffix: suffix.into_iter().collect(),
        begin,
        end,
        specials,
    })
}

fn added_tokens(file: &Value) -> Result<Vec<Special>, String> {
    let empty = Vec::new();
    let entries = file["added_tokens"].as_array().unwrap_or(&empty);
    let special = |entry: &Value| {
        let id = entry["id"].as_u64().filter(|&id| id < MAX_ID)?;
        let flag = |name: &str| entry[name].as_bool().unwrap_or(false);
        Some(Special {
            text: entry["content"].as_str()?.to_owned(),
            id: u32::try_from(id).ok()?,
            kind: if flag("special") {
                Kind::Control
            } else {
                Kind::UserDefined
            },
            strip_left: flag("lstrip"),
            strip_right: flag("rstrip"),
        })
    };
    let specials = entries
        .iter()
        .map(|entry| special(entry).ok_or_else(|| format!("an added token is malformed: {entry}")));
    specials.collect()
}

/// The text of a token in the template for a single text: of the one that `which` gives.
fn token_of_template(processor: &Value, which: fn(&[Value]) -> Option<&Value>) -> Option<String> {
    match processor["type"].as_str()? {
        "TemplateProcessing" => {
            let part = which(processor["single"].as_array()?)?;
            part["SpecialToken"]["id"].as_str().map(str::to_owned)
        }
        "Sequence" => {
            let mut processors = processor["processors"].as_array()?.iter();
            processors.find_map(|processor| token_of_template(processor, which))
        }
        _ => None,
    }
}

/// How a vocabulary writes bytes.
enum Writing {
    ByteLevel(Box<ByteLevel>),
    Spaces,
}

impl Writing {
    fn find(decoder: &Value) -> Option<Self> {
        match decoder["type"].as_str()? {
            "ByteLevel" => Some(Self::ByteLevel(Box::new(ByteLevel::new()))),
            "ByteFallback" | "Metaspace" => Some(Self::Spaces),
            "Sequence" => decoder["decoders"].as_array()?.iter().find_map(Self::find),
            _ => None,
        }
    }

    fn bytes(&self, text: &str) -> (Vec<u8>, Kind) {
        match self {
            Self::ByteLevel(alphabet) => (alphabet.decode(text).unwrap_or_else(|| text.into()), Kind::Normal),
            Self::Spaces => match byte_token(text) {
                Some(byte) => (vec![byte], Kind::Byte),
                None => (text.replace(SPACE, " ").into_bytes(), Kind::Normal),
            },
        }
    }
}

fn vocabulary(inner: &tokenizers::Tokenizer, specials: &[Special], writing: &Writing) -> Result<Vocabulary, String> {
    let mut tokens = BTreeMap::new();
    for (text, id) in inner.get_vocab(false) {
        if u64::from(id) >= MAX_ID {
            return Err(format!("the id {id} of token {text:?} is out of bounds"));
        }
        if tokens.insert(id, writing.bytes(&text)).is_some() {
            return Err(format!("two tokens have the id {id}"));
        }
    }
    for special in specials {
        tokens.insert(special.id, (special.text.clone().into_bytes(), special.kind));
    }
    let mut vocabulary = Vocabulary::default();
    for (id, (bytes, kind)) in tokens {
        while vocabulary.len() < id as usize {
            vocabulary.push(b"", Kind::Unused);
        }
        vocabulary.push(&bytes, kind);
    }
    if vocabulary.len() == 0 {
        return Err("it has no tokens".to_owned());
    }
    Ok(vocabulary)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::SpecialTokens;
    use serde_json::json;

    fn file() -> Value {
        json!({
            "version": "1.0",
            "added_tokens": [
                {"id": 0, "content": "<s>", "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false},
                {"id": 5, "content": "<tool>", "special": false, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false},
            ],
            "normalizer": null,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}], "pair": [], "special_tokens": {}},
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "vocab": {"a": 1, "b": 2, "ab": 3, "Ġ": 4}, "merges": ["a b"]},
        })
    }

    fn tokenizer(file: &Value) -> Result<Tokenizer, Refusal> {
        Tokenizer::from_json(
            "tokenizer.json",
            file.to_string().as_bytes(),
            &json!({"eos_token": "<s>"}),
        )
    }

    #[test]
    fn added_tokens_are_split_off_as_the_caller_says() {
        let tokenizer = tokenizer(&file()).unwrap();
        assert_eq!(
            tokenizer.encode("ab<tool> a", SpecialTokens::AsText).unwrap(),
            [3, 5, 4, 1]
        );
        assert_eq!(tokenizer.encode("<s>b", SpecialTokens::Parse).unwrap(), [0, 2]);
        assert!(!tokenizer.encode("<s>b", SpecialTokens::AsText).unwrap().contains(&0));
        assert_eq!((tokenizer.prefix(), tokenizer.suffix()), (&[0][..], &[][..]));
        assert_eq!(tokenizer.token_bytes(4), Some(&b" "[..]));
        assert_eq!((tokenizer.vocabulary(), tokenizer.end_text().as_str()), (6, "<s>"));
    }

    #[test]
    fn what_stands_behind_a_text_is_what_the_template_or_the_configuration_says() {
        let mut ending = file();
        let end = json!({"SpecialToken": {"id": "<tool>", "type_id": 0}});
        ending["post_processor"]["single"].as_array_mut().unwrap().push(end);
        assert_eq!(tokenizer(&ending).unwrap().suffix(), [5]);
        let config = json!({"eos_token": "<s>", "add_eos_token": true});
        let tokenizer = Tokenizer::from_json("t", file().to_string().as_bytes(), &config);
        assert_eq!(tokenizer.unwrap().suffix(), [0]);
    }

    #[test]
    fn malformed_files_are_refused() {
        let mut decoder = file();
        decoder["decoder"] = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
        let mut added = file();
        added["added_tokens"][0]["id"] = json!(1_u64 << 40);
        let mut model = file();
        model["model"]["merges"] = json!(["a c"]);
        for file in [decoder, added, model, json!({}), json!([])] {
            assert_eq!(tokenizer(&file).unwrap_err().reason, Reason::TokenizerInvalid);
        }
        let refusal = Tokenizer::from_json("t", b"{", &Value::Null).unwrap_err();
        assert_eq!(refusal.reason, Reason::TokenizerInvalid);
    }
}
