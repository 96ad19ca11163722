//! Answers that are drawn at random from what grammars allow, judged by validators that know nothing of them.

use super::*;
use crate::model::Tokenizer;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

/// The token that ends an answer.
const END: u32 = 0;
/// Tokens of several bytes.
const LONG: [&str; 12] = [
    "\": ", ", ", "\", \"", "{\"", "\"}", "true", "false", "null", "aa", "12", "é", "日",
];

/// Control tokens of a model that marks its calls with them.
const MARKERS: [&str; 3] = ["[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"];

/// All bytes, some longer tokens, an end and some markers.
fn tokenizer() -> Arc<Tokenizer> {
    // The letters that byte-level vocabularies write bytes with.
    let mut next = 256;
    let letters: Vec<char> = (0..=255_u8)
        .map(|byte| {
            if matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..) {
                return char::from(byte);
            }
            next += 1;
            char::from_u32(next - 1).unwrap()
        })
        .collect();
    let spell = |text: &str| text.bytes().map(|byte| letters[usize::from(byte)]).collect::<String>();
    let bytes = letters.iter().map(char::to_string);
    let texts = bytes.chain(LONG.iter().map(|text| spell(text)));
    let vocabulary: serde_json::Map<String, Value> = (1..).zip(texts).map(|(id, text)| (text, json!(id))).collect();
    let special = |(id, content): (usize, &str)| {
        json!({
            "id": id, "content": content, "special": true, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false
        })
    };
    let added = std::iter::once((END as usize, "<end>")).chain((1 + vocabulary.len()..).zip(MARKERS));
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let file = json!({
        "version": "1.0", "normalizer": null, "pre_tokenizer": byte_level, "decoder": byte_level,
        "added_tokens": added.map(special).collect::<Vec<_>>(),
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    });
    Arc::new(Tokenizer::from_json("tokenizer.json", file.to_string().as_bytes(), &json!({})).unwrap())
}

pub(crate) fn grammars() -> Grammars {
    Grammars::new(tokenizer(), vec![END])
}

impl Grammars {
    /// The control token with this text.
    pub(crate) fn control(&self, text: &str) -> Option<u32> {
        self.tokenizer.control_token(text)
    }

    /// Whether a grammar takes this text as a whole answer. Markers in it are control tokens.
    pub(crate) fn takes(&self, grammar: &Grammar, text: &str) -> bool {
        let mut constraint = self.constraint(grammar).unwrap();
        let tokens = self.tokenizer.encode(text, crate::model::SpecialTokens::Parse).unwrap();
        tokens.into_iter().chain([END]).all(|token| {
            let ends = token == END && constraint.is_complete();
            ends || constraint.mask().unwrap().allows(token) && constraint.accept(token).is_ok()
        })
    }
}

/// Draws an answer; `None` when it is not at its end after `most` tokens.
fn draw(grammars: &Grammars, mut constraint: Constraint, dice: &mut StdRng, most: usize) -> Option<String> {
    let count = u32::try_from(grammars.tokenizer.vocabulary()).unwrap();
    let quote = (1..count).find(|token| grammars.tokenizer.token_bytes(*token) == Some(b"\""));
    let mut bytes = Vec::new();
    for _ in 0..most {
        if constraint.is_complete() {
            break;
        }
        let mask = constraint.mask().unwrap();
        let allowed: Vec<u32> = (0..count).filter(|token| mask.allows(*token)).collect();
        // Texts and lists come to an end more often than chance would have it.
        let preferred = [Some(END), quote]
            .into_iter()
            .flatten()
            .find(|token| allowed.contains(token));
        let token = match preferred {
            Some(token) if dice.random_bool(0.3) => token,
            _ => allowed[dice.random_range(0..allowed.len())],
        };
        if token == END {
            return Some(String::from_utf8(bytes).unwrap());
        }
        constraint.accept(token).unwrap();
        bytes.extend(grammars.tokenizer.token_bytes(token).unwrap());
    }
    constraint.is_complete().then(|| String::from_utf8(bytes).unwrap())
}

/// A random schema. What it refers to is in `$defs` of the outermost.
fn schema(dice: &mut StdRng, depth: usize) -> Value {
    let kinds = if depth == 0 { 8 } else { 13 };
    match dice.random_range(0..kinds) {
        0 => json!({"type": "boolean"}),
        1 => {
            let least = dice.random_range(-50..50);
            json!({"type": "integer", "minimum": least, "maximum": least + dice.random_range(0..1000)})
        }
        2 => {
            json!({"type": "number", "exclusiveMinimum": dice.random_range(-5..0), "maximum": dice.random_range(1..99)})
        }
        3 => {
            let least = dice.random_range(0..4);
            json!({"type": "string", "minLength": least, "maxLength": least + dice.random_range(0..8)})
        }
        4 => {
            let patterns = ["^[a-c]{1,4}$", "^x-[0-9]+$", "^(one|two)$"];
            json!({"type": "string", "pattern": patterns[dice.random_range(0..3)]})
        }
        5 => json!({"enum": ["red", 7, null, {"a": [1]}]}),
        6 => json!({"type": ["string", "null"], "maxLength": 5}),
        7 => json!({"const": [1, "é", {"b": false}]}),
        8 => {
            let least = dice.random_range(0..3);
            json!({"type": "array", "items": schema(dice, depth - 1), "minItems": least, "maxItems": least + 2})
        }
        9 | 10 => {
            let count = dice.random_range(1..4);
            let names: Vec<String> = (0..count).map(|index| format!("field {index}")).collect();
            let mut properties = serde_json::Map::new();
            for name in &names {
                properties.insert(name.clone(), schema(dice, depth - 1));
            }
            let required = &names[..dice.random_range(0..=names.len())];
            json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
        }
        11 => json!({"anyOf": [schema(dice, depth - 1), schema(dice, depth - 1)]}),
        _ => {
            let names = ["#/$defs/point", "#/$defs/tree"];
            json!({"$ref": names[dice.random_range(0..2)]})
        }
    }
}

fn root(dice: &mut StdRng) -> Value {
    let schema = schema(dice, 3);
    json!({
        "$defs": {
            "point": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"], "additionalProperties": false},
            "tree": {
                "type": "object", "required": ["of"], "additionalProperties": false,
                "properties": {"of": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2}}
            }
        },
        "allOf": [schema]
    })
}

#[test]
fn finished_answers_are_valid_by_their_schemas() {
    let grammars = grammars();
    let mut dice = StdRng::seed_from_u64(20_261_128);
    let (mut accepted, mut finished) = (0, 0);
    for _ in 0..500 {
        let schema = root(&mut dice);
        let validator = jsonschema::validator_for(&schema).unwrap();
        let Ok(constraint) = grammars.constraint(&Grammar::JsonSchema(schema.clone())) else {
            continue;
        };
        accepted += 1;
        if let Some(text) = draw(&grammars, constraint, &mut dice, 400) {
            finished += 1;
            let value: Value =
                serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text} of {schema}"));
            assert!(validator.is_valid(&value), "{text} is not valid by {schema}");
        }
    }
    assert!(accepted >= 450, "{accepted} of 500 schemas were accepted");
    assert!(finished >= 400, "{finished} of {accepted} answers came to an end");
}

#[test]
fn keywords_that_are_not_supported_are_named() {
    let grammars = grammars();
    for (keyword, value) in [
        ("not", json!({"type": "string"})),
        ("if", json!({"type": "string"})),
        ("uniqueItems", json!(true)),
        ("contains", json!({"type": "string"})),
        ("dependentRequired", json!({"a": ["b"]})),
    ] {
        let error = grammars
            .constraint(&Grammar::JsonSchema(json!({keyword: value})))
            .unwrap_err();
        assert!(error.to_string().contains(keyword), "{keyword}: {error}");
    }
}

#[test]
fn texts_match_their_pattern_or_are_one_of_the_choices() {
    let grammars = grammars();
    let mut dice = StdRng::seed_from_u64(1);
    for _ in 0..20 {
        let constraint = grammars
            .constraint(&Grammar::Regex("[a-f]{2,5}(-[0-9]+)?".into()))
            .unwrap();
        let text = draw(&grammars, constraint, &mut dice, 100).unwrap();
        let letters = text.split('-').next().unwrap();
        assert!(
            (2..=5).contains(&letters.len()) && letters.chars().all(|letter| ('a'..='f').contains(&letter)),
            "{text}"
        );
        let choices = ["yes", "no", "it \"depends\"\n", "ja/nein 日"]
            .map(str::to_owned)
            .to_vec();
        let constraint = grammars.constraint(&Grammar::Choice(choices.clone())).unwrap();
        let text = draw(&grammars, constraint, &mut dice, 100).unwrap();
        assert!(choices.contains(&text), "{text}");
    }
    let constraint = grammars.constraint(&Grammar::JsonObject).unwrap();
    let text = draw(&grammars, constraint, &mut dice, 2000).unwrap();
    // Not as a value: numbers may be larger than any that fits one.
    assert!(
        text.starts_with('{') && serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok(),
        "{text}"
    );
}

#[test]
fn grammars_that_are_wrong_or_too_large_are_refused() {
    let grammars = grammars();
    let mut deep = json!({"type": "string"});
    // As deep as JSON may be.
    for _ in 0..60 {
        deep = json!({"type": "array", "items": deep});
    }
    let endless = json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}});
    for grammar in [
        Grammar::Regex("(".into()),
        Grammar::JsonSchema(json!({"type": "strin"})),
        Grammar::JsonSchema(json!({"$ref": "#/nowhere"})),
        Grammar::JsonSchema(json!({"$ref": "https://example.com/schema.json"})),
        Grammar::JsonSchema(json!({"type": "string", "pattern": "("})),
        Grammar::JsonSchema(json!(false)),
        Grammar::JsonSchema(json!({"description": "a".repeat(MAX_SCHEMA_BYTES)})),
    ] {
        let refused = grammars
            .constraint(&grammar)
            .is_err_and(|error| !error.to_string().is_empty());
        assert!(refused, "{grammar:?}");
    }
    // Whatever becomes of these, it comes soon.
    let letter = (1..257).find(|token| grammars.tokenizer.token_bytes(*token) == Some(b"a"));
    let mut chain = json!({"$ref": "#/$defs/0", "$defs": {"1500": {"type": "boolean"}}});
    for number in 0..1500 {
        chain["$defs"][number.to_string()] = json!({"$ref": format!("#/$defs/{}", number + 1)});
    }
    for grammar in [
        Grammar::JsonSchema(chain),
        Grammar::JsonSchema(deep),
        Grammar::JsonSchema(endless),
        Grammar::Regex("(a|b)*a(a|b){18}".into()),
        Grammar::Regex("((a{1,1000}){1,1000}){1,1000}".into()),
    ] {
        let Ok(mut constraint) = grammars.constraint(&grammar) else {
            continue;
        };
        for _ in 0..64 {
            if constraint.mask().is_err() || constraint.accept(letter.unwrap()).is_err() {
                break;
            }
        }
    }
}

#[test]
fn compiled_grammars_are_kept_and_copies_go_their_own_way() {
    let grammars = grammars();
    let grammar = Grammar::Choice(vec!["ab".into(), "cd".into()]);
    let mut one = grammars.constraint(&grammar).unwrap();
    let token = |text: &[u8]| {
        (1..257)
            .find(|token| grammars.tokenizer.token_bytes(*token) == Some(text))
            .unwrap()
    };
    one.accept(token(b"a")).unwrap();
    let mut copy = one.clone();
    copy.accept(token(b"b")).unwrap();
    assert!(copy.is_complete() && !one.is_complete());
    assert!(copy.mask().unwrap().allows(END) && !copy.mask().unwrap().allows(token(b"b")));
    let mut other = grammars.constraint(&grammar).unwrap();
    assert!(
        other.mask().unwrap().allows(token(b"c")),
        "a new answer begins at the beginning"
    );
    assert!(one.accept(token(b"c")).is_err());
    for number in 0..2 * KEPT {
        grammars
            .constraint(&Grammar::Choice(vec![format!("{number}")]))
            .unwrap();
    }
    assert_eq!(grammars.kept.lock().unwrap().len(), KEPT);
}
