//! How likely the tokens of an answer were, in the wire form of both APIs. Pure.

use super::answer::Kind;
use crate::engine::{Logprobs, ScoredToken};
use crate::model::Tokenizer;
use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};

/// What OpenAI's API gives for a token that is not possible at all; JSON has no infinities.
const IMPOSSIBLE: f32 = -9999.0;

/// A token as clients see it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct TokenText {
    /// Its text; U+FFFD where its bytes alone are no characters.
    pub(super) text: String,
    pub(super) bytes: Vec<u8>,
    pub(super) logprob: f32,
}

/// A token of an answer and the likeliest ones in its place.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct AnswerToken {
    pub(super) drawn: TokenText,
    pub(super) likeliest: Vec<TokenText>,
}

impl AnswerToken {
    pub(super) fn new(logprobs: &Logprobs, tokenizer: &Tokenizer) -> Self {
        let text = |scored: &ScoredToken| {
            let bytes = tokenizer.token_bytes(scored.token).unwrap_or_default();
            TokenText {
                text: String::from_utf8_lossy(bytes).into_owned(),
                bytes: bytes.to_vec(),
                logprob: scored.logprob.max(IMPOSSIBLE),
            }
        };
        Self {
            drawn: text(&logprobs.drawn),
            likeliest: logprobs.likeliest.iter().map(text).collect(),
        }
    }
}

/// The member `logprobs` of a choice.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum WireLogprobs<'a> {
    Chat {
        content: Vec<ChatToken<'a>>,
        refusal: Option<()>,
    },
    Text {
        tokens: Vec<&'a str>,
        token_logprobs: Vec<f32>,
        top_logprobs: Vec<ByText<'a>>,
        text_offset: Vec<usize>,
    },
}

#[derive(Serialize)]
pub(super) struct ChatToken<'a> {
    #[serde(flatten)]
    token: ChatText<'a>,
    top_logprobs: Vec<ChatText<'a>>,
}

#[derive(Serialize)]
struct ChatText<'a> {
    token: &'a str,
    logprob: f32,
    bytes: &'a [u8],
}

impl<'a> From<&'a TokenText> for ChatText<'a> {
    fn from(token: &'a TokenText) -> Self {
        Self {
            token: &token.text,
            logprob: token.logprob,
            bytes: &token.bytes,
        }
    }
}

/// An object of texts and logarithms of probabilities, the likeliest first. Of tokens with the same text, which are parts
/// of characters, it has the likeliest.
pub(super) struct ByText<'a>(Vec<&'a TokenText>);

impl Serialize for ByText<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (index, token) in self.0.iter().enumerate() {
            if self.0[..index].iter().all(|before| before.text != token.text) {
                map.serialize_entry(&token.text, &token.logprob)?;
            }
        }
        map.end()
    }
}

impl<'a> WireLogprobs<'a> {
    /// Of tokens whose text begins `offset` characters after the start of the answer.
    pub(super) fn new(kind: Kind, tokens: &'a [AnswerToken], offset: usize) -> Self {
        match kind {
            Kind::Chat => Self::Chat {
                content: tokens
                    .iter()
                    .map(|token| ChatToken {
                        token: (&token.drawn).into(),
                        top_logprobs: token.likeliest.iter().map(Into::into).collect(),
                    })
                    .collect(),
                refusal: None,
            },
            Kind::Text => {
                let starts = tokens.iter().scan(offset, |start, token| {
                    let at = *start;
                    *start += token.drawn.text.chars().count();
                    Some(at)
                });
                // The token of the answer is always among them.
                let by_text = |token: &'a AnswerToken| {
                    let mut all: Vec<&TokenText> = token.likeliest.iter().collect();
                    if all.iter().all(|other| other.bytes != token.drawn.bytes) {
                        all.push(&token.drawn);
                    }
                    ByText(all)
                };
                Self::Text {
                    tokens: tokens.iter().map(|token| token.drawn.text.as_str()).collect(),
                    token_logprobs: tokens.iter().map(|token| token.drawn.logprob).collect(),
                    top_logprobs: tokens.iter().map(by_text).collect(),
                    text_offset: starts.collect(),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn text(text: &str, logprob: f32) -> TokenText {
        TokenText {
            text: text.to_owned(),
            bytes: text.as_bytes().to_vec(),
            logprob,
        }
    }

    fn wire(kind: Kind, tokens: &[AnswerToken], offset: usize) -> Value {
        serde_json::to_value(WireLogprobs::new(kind, tokens, offset)).unwrap()
    }

    #[test]
    fn both_apis_get_what_openai_gives() {
        let tokens = [
            AnswerToken {
                drawn: text("é", -0.5),
                likeliest: vec![text("é", -0.5), text("b", -1.5)],
            },
            AnswerToken {
                drawn: text("c", -2.0),
                likeliest: vec![text("d", -0.25)],
            },
        ];
        assert_eq!(
            wire(Kind::Chat, &tokens, 3),
            json!({
                "content": [
                    {"token": "é", "logprob": -0.5, "bytes": [195, 169], "top_logprobs": [
                        {"token": "é", "logprob": -0.5, "bytes": [195, 169]},
                        {"token": "b", "logprob": -1.5, "bytes": [98]}
                    ]},
                    {"token": "c", "logprob": -2.0, "bytes": [99], "top_logprobs": [
                        {"token": "d", "logprob": -0.25, "bytes": [100]}
                    ]}
                ],
                "refusal": null
            })
        );
        assert_eq!(
            wire(Kind::Text, &tokens, 3),
            json!({
                "tokens": ["é", "c"],
                "token_logprobs": [-0.5, -2.0],
                "top_logprobs": [{"é": -0.5, "b": -1.5}, {"d": -0.25, "c": -2.0}],
                "text_offset": [3, 4]
            })
        );
    }

    #[test]
    fn parts_of_characters_are_told_once() {
        let part = |byte: u8, logprob: f32| TokenText {
            text: "\u{fffd}".into(),
            bytes: vec![byte],
            logprob,
        };
        let token = AnswerToken {
            drawn: part(200, -3.0),
            likeliest: vec![part(201, -1.0)],
        };
        assert_eq!(
            wire(Kind::Text, &[token], 0)["top_logprobs"],
            json!([{"\u{fffd}": -1.0}])
        );
    }
}
