//! A tokenizer from the metadata of a GGUF file.

use super::alphabet::{ByteLevel, SPACE, byte_to_char, byte_token};
use super::bpe::{Bpe, Merges, SPLITTINGS, Splitting};
use super::special::{Special, Specials};
use super::spm::Spm;
use super::vocabulary::{Kind, Vocabulary};
use super::{Cutter, Tokenizer};
use escadre_verify::structure::gguf::{Array, Gguf, Value};
use escadre_verify::{Reason, Refusal};
use std::collections::HashMap;
use std::sync::Arc;
use tokenizers::utils::SysRegex;

/// The vocabulary part of a GGUF header.
struct Source<'a> {
    file: &'a str,
    gguf: &'a Gguf,
    tokens: &'a [String],
    kinds: Vec<Kind>,
}

impl Tokenizer {
    /// Builds the tokenizer that a file describes.
    ///
    /// # Errors
    /// `TokenizerInvalid`, naming the key, when the vocabulary is malformed or of an unknown kind.
    pub fn from_gguf(file: &str, gguf: &Gguf) -> Result<Self, Refusal> {
        let source = Source::new(file, gguf)?;
        let model = source.text("model")?;
        let (cutter, vocabulary, begins) = match model {
            "gpt2" => source.bpe()?,
            "llama" => source.spm()?,
            other => {
                return Err(source
                    .refuse("the kind of vocabulary is not supported")
                    .values("gpt2 or llama", format!("{other:?}")));
            }
        };
        let begin = source.id("bos_token_id")?;
        let end = source.id("eos_token_id")?;
        let begins = source.flag("add_bos_token")?.unwrap_or(begins);
        let ends = source.flag("add_eos_token")?.unwrap_or(false);
        Ok(Self {
            vocabulary: Arc::new(vocabulary),
            specials: source.specials()?,
            cutter,
            prefix: begin.filter(|_| begins).into_iter().collect(),
            suffix: end.filter(|_| ends).into_iter().collect(),
            begin,
            end,
        })
    }
}

impl<'a> Source<'a> {
    fn new(file: &'a str, gguf: &'a Gguf) -> Result<Self, Refusal> {
        let refuse = |message: &str| Refusal::new(Reason::TokenizerInvalid, message).in_file(file);
        let Some(Array::String(tokens)) = gguf.get("tokenizer.ggml.tokens").and_then(Value::as_array) else {
            return Err(refuse("\"tokenizer.ggml.tokens\" is missing or no list of texts"));
        };
        if tokens.is_empty() || u32::try_from(tokens.len()).is_err() {
            return Err(refuse("\"tokenizer.ggml.tokens\" has no usable length").values("1 to 2^32", tokens.len()));
        }
        let kinds = match gguf.get("tokenizer.ggml.token_type").and_then(Value::as_array) {
            None => vec![Kind::Normal; tokens.len()],
            Some(Array::Signed(codes)) => codes.iter().map(|&code| kind(code)).collect(),
            Some(Array::Unsigned(codes)) => codes
                .iter()
                .map(|&code| kind(i64::try_from(code).unwrap_or(0)))
                .collect(),
            Some(_) => return Err(refuse("\"tokenizer.ggml.token_type\" is no list of numbers")),
        };
        if kinds.len() != tokens.len() {
            return Err(
                refuse("\"tokenizer.ggml.token_type\" has another length than the tokens")
                    .values(tokens.len(), kinds.len()),
            );
        }
        Ok(Self {
            file,
            gguf,
            tokens,
            kinds,
        })
    }

    fn refuse(&self, message: impl Into<String>) -> Refusal {
        Refusal::new(Reason::TokenizerInvalid, message).in_file(self.file)
    }

    fn get(&self, name: &str) -> Option<&'a Value> {
        self.gguf.get(&format!("tokenizer.ggml.{name}"))
    }

    fn text(&self, name: &str) -> Result<&'a str, Refusal> {
        let text = self.get(name).and_then(Value::as_str);
        text.ok_or_else(|| self.refuse(format!("\"tokenizer.ggml.{name}\" is missing or no text")))
    }

    fn flag(&self, name: &str) -> Result<Option<bool>, Refusal> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let flag = value.as_bool();
        flag.map(Some)
            .ok_or_else(|| self.refuse(format!("\"tokenizer.ggml.{name}\" is neither true nor false")))
    }

    /// A token id that must be in the vocabulary.
    fn id(&self, name: &str) -> Result<Option<u32>, Refusal> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let id = value.as_u64().filter(|&id| id < self.tokens.len() as u64);
        match id.and_then(|id| u32::try_from(id).ok()) {
            Some(id) => Ok(Some(id)),
            None => Err(self.refuse(format!("\"tokenizer.ggml.{name}\" is no token of the vocabulary"))),
        }
    }

    fn entries(&self) -> impl Iterator<Item = (u32, &'a str, Kind)> {
        let tokens = self.tokens.iter().zip(&self.kinds);
        (0..).zip(tokens).map(|(id, (text, &kind))| (id, text.as_str(), kind))
    }

    fn specials(&self) -> Result<Specials, Refusal> {
        let is_special = |kind| matches!(kind, Kind::Control | Kind::UserDefined | Kind::Unknown);
        let specials = self.entries().filter(|&(_, _, kind)| is_special(kind));
        let specials: Vec<_> = specials.map(|(id, text, kind)| Special::new(text, id, kind)).collect();
        let mut texts: Vec<_> = specials.iter().map(|special| special.text.as_str()).collect();
        texts.sort_unstable();
        match texts.windows(2).find(|pair| pair[0] == pair[1] && !pair[0].is_empty()) {
            Some(pair) => Err(self.refuse(format!("two special tokens have the text {:?}", pair[0]))),
            None => Ok(Specials::new(specials)),
        }
    }

    fn bpe(&self) -> Result<(Cutter, Vocabulary, bool), Refusal> {
        let splitting = self.splitting()?;
        let alphabet = ByteLevel::new();
        let mut vocabulary = Vocabulary::default();
        let mut ids: HashMap<&str, u32> = HashMap::with_capacity(self.tokens.len());
        let mut whole_words = HashMap::new();
        for (id, text, kind) in self.entries() {
            let bytes = match kind {
                Kind::Normal => alphabet.decode(text),
                _ => None,
            };
            vocabulary.push(bytes.as_deref().unwrap_or(text.as_bytes()), kind);
            if kind == Kind::Normal && ids.insert(text, id).is_some() {
                return Err(self.refuse(format!("two tokens have the text {text:?}")));
            }
            if let Some(bytes) = bytes.filter(|_| splitting.whole_words) {
                whole_words.insert(bytes, id);
            }
        }
        let mut bytes = Box::new([u32::MAX; 256]);
        for byte in 0..=255 {
            let text = byte_to_char(byte).to_string();
            bytes[usize::from(byte)] = ids.get(text.as_str()).copied().unwrap_or(u32::MAX);
        }
        let patterns = splitting.patterns.iter().map(|pattern| SysRegex::new(pattern));
        let patterns = patterns
            .collect::<Result<_, _>>()
            .map_err(|error| self.refuse(error.to_string()))?;
        let bpe = Bpe {
            patterns,
            bytes,
            merges: self.merges(&ids)?,
            whole_words,
        };
        Ok((Cutter::Bpe(Box::new(bpe)), vocabulary, splitting.begins))
    }

    fn splitting(&self) -> Result<&'static Splitting, Refusal> {
        let name = match self.get("pre") {
            None => "default",
            Some(_) => self.text("pre")?,
        };
        let known = SPLITTINGS.iter().find(|(names, _)| names.contains(&name));
        known.map(|(_, splitting)| splitting).ok_or_else(|| {
            let names: Vec<_> = SPLITTINGS.iter().flat_map(|(names, _)| names.iter().copied()).collect();
            self.refuse(format!(
                "the splitting {name:?} (\"tokenizer.ggml.pre\") is not known; known are: {}",
                names.join(", ")
            ))
        })
    }

    fn merges(&self, ids: &HashMap<&str, u32>) -> Result<Merges, Refusal> {
        let Some(Array::String(lines)) = self.get("merges").and_then(Value::as_array) else {
            return Err(self.refuse("\"tokenizer.ggml.merges\" is missing or no list of texts"));
        };
        let mut merges = HashMap::with_capacity(lines.len());
        for (rank, line) in (0..).zip(lines) {
            // Neither side is empty, so the space that separates them is never the first character.
            let at = line.char_indices().skip(1).find(|&(_, character)| character == ' ');
            let sides = at.map(|(at, _)| (&line[..at], &line[at + 1..]));
            let found = sides.and_then(|(left, right)| {
                let result = ids.get(format!("{left}{right}").as_str())?;
                Some(((*ids.get(left)?, *ids.get(right)?), *result))
            });
            let Some((pair, result)) = found else {
                return Err(self.refuse(format!(
                    "merge {rank} ({line:?}) names a token that is not in the vocabulary"
                )));
            };
            merges.entry(pair).or_insert((rank, result));
        }
        Ok(merges)
    }

    fn spm(&self) -> Result<(Cutter, Vocabulary, bool), Refusal> {
        let scores = match self.get("scores").and_then(Value::as_array) {
            Some(Array::Float(scores)) if scores.len() == self.tokens.len() => scores,
            _ => return Err(self.refuse("\"tokenizer.ggml.scores\" is missing or has another length than the tokens")),
        };
        let mut vocabulary = Vocabulary::default();
        let mut spm = Spm {
            pieces: HashMap::with_capacity(self.tokens.len()),
            bytes: [None; 256],
            unknown: self.id("unknown_token_id")?,
            space_prefix: self.flag("add_space_prefix")?.unwrap_or(true),
        };
        for ((id, text, kind), &score) in self.entries().zip(scores) {
            if !score.is_finite() {
                return Err(self.refuse(format!("the score of token {id} is not finite")));
            }
            match kind {
                Kind::Normal | Kind::UserDefined => {
                    vocabulary.push(text.replace(SPACE, " ").as_bytes(), kind);
                    spm.pieces.insert(text.to_owned(), (id, narrow(score)));
                }
                Kind::Byte => {
                    let byte = byte_token(text)
                        .ok_or_else(|| self.refuse(format!("byte token {id} ({text:?}) is malformed")))?;
                    vocabulary.push(&[byte], kind);
                    spm.bytes[usize::from(byte)] = Some(id);
                }
                Kind::Control | Kind::Unknown | Kind::Unused => vocabulary.push(text.as_bytes(), kind),
            }
        }
        Ok((Cutter::Spm(Box::new(spm)), vocabulary, true))
    }
}

fn kind(code: i64) -> Kind {
    match code {
        2 => Kind::Unknown,
        3 => Kind::Control,
        4 => Kind::UserDefined,
        5 => Kind::Unused,
        6 => Kind::Byte,
        _ => Kind::Normal,
    }
}

#[expect(clippy::cast_possible_truncation, reason = "files have scores in f32")]
fn narrow(score: f64) -> f32 {
    score as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::SpecialTokens;

    fn strings(values: &[&str]) -> Value {
        Value::Array(Array::String(values.iter().map(|&value| value.to_owned()).collect()))
    }

    fn gguf(entries: &[(&str, Value)]) -> Gguf {
        let metadata = entries
            .iter()
            .map(|(key, value)| (format!("tokenizer.ggml.{key}"), value.clone()));
        Gguf {
            metadata: metadata.collect(),
            tensors: Vec::new(),
        }
    }

    fn valid() -> Vec<(&'static str, Value)> {
        vec![
            ("model", Value::String("gpt2".into())),
            ("pre", Value::String("smollm".into())),
            ("tokens", strings(&["a", "b", "ab", "<end>", "Ġ"])),
            ("token_type", Value::Array(Array::Signed(vec![1, 1, 1, 3, 1]))),
            ("merges", strings(&["a b"])),
            ("eos_token_id", Value::U32(3)),
        ]
    }

    #[test]
    fn a_small_vocabulary_works() {
        let tokenizer = Tokenizer::from_gguf("m", &gguf(&valid())).unwrap();
        assert_eq!(
            tokenizer.encode("ab b<end>", SpecialTokens::Parse).unwrap(),
            [2, 4, 1, 3]
        );
        assert!(tokenizer.encode("<end>", SpecialTokens::AsText).unwrap().is_empty());
        assert_eq!(tokenizer.end_text(), "<end>");
        assert_eq!(tokenizer.begin_text(), "");
        assert!(tokenizer.prefix().is_empty() && tokenizer.is_control(3));
    }

    #[test]
    fn malformed_vocabularies_are_refused_by_key() {
        let table = [
            ("model", Value::String("bert".into()), "kind of vocabulary"),
            ("pre", Value::String("viking".into()), "\"viking\""),
            ("tokens", strings(&[]), "tokens"),
            ("tokens", strings(&["a", "b", "ab", "<end>"]), "token_type"),
            ("tokens", strings(&["a", "b", "a", "<end>", "Ġ"]), "two tokens"),
            ("token_type", Value::Array(Array::Signed(vec![1, 1, 1, 3, 3])), ""),
            ("merges", strings(&["a c"]), "merge 0"),
            ("merges", strings(&["ab"]), "merge 0"),
            ("merges", strings(&[" ab"]), "merge 0"),
            ("eos_token_id", Value::U32(5), "eos_token_id"),
            ("eos_token_id", Value::I32(-1), "eos_token_id"),
            ("add_bos_token", Value::U32(1), "add_bos_token"),
        ];
        for (key, value, part) in table {
            let mut entries = valid();
            entries.retain(|entry| entry.0 != key);
            entries.push((key, value));
            let result = Tokenizer::from_gguf("m", &gguf(&entries));
            if part.is_empty() {
                assert!(result.is_ok());
                continue;
            }
            let refusal = result.unwrap_err();
            assert_eq!(refusal.reason, Reason::TokenizerInvalid);
            assert!(refusal.to_string().contains(part), "{refusal}");
        }
    }
}
