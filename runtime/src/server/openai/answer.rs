//! The answers' wire form: chat and plain completions, whole and in chunks. Pure.

use super::logprobs::{AnswerToken, WireLogprobs};
use crate::engine::{FinishReason, Usage};
use serde::Serialize;

/// Which of the two APIs is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Text,
}

impl Kind {
    /// How identifiers of its answers begin.
    pub(super) fn id_prefix(self) -> &'static str {
        match self {
            Self::Chat => "chatcmpl-",
            Self::Text => "cmpl-",
        }
    }
}

/// One of the answers to a request.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Answer {
    pub(super) text: String,
    /// When it is asked for how likely they were.
    pub(super) tokens: Option<Vec<AnswerToken>>,
    pub(super) reason: FinishReason,
}

/// A part of an answer in a stream.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) text: String,
    /// When it is asked for how likely they were.
    pub(super) tokens: Option<Vec<AnswerToken>>,
    /// Characters of the answer before this part.
    pub(super) offset: usize,
}

/// What every part of one answer repeats.
#[derive(Debug, Clone)]
pub(super) struct Envelope {
    pub(super) kind: Kind,
    pub(super) id: String,
    pub(super) created: i64,
    pub(super) model: String,
    pub(super) fingerprint: String,
    /// Whether chunks have a member for usage, which is null in all but the last.
    pub(super) include_usage: bool,
}

#[derive(Serialize)]
struct Wire<'a> {
    id: &'a str,
    object: &'static str,
    created: i64,
    model: &'a str,
    system_fingerprint: &'a str,
    choices: Vec<Choice<'a>>,
    #[serde(skip_serializing_if = "WireUsage::is_absent")]
    usage: WireUsage,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: usize,
    #[serde(flatten)]
    content: Content<'a>,
    logprobs: Option<WireLogprobs<'a>>,
    finish_reason: Option<&'static str>,
}

impl<'a> Choice<'a> {
    fn new(index: usize, content: Content<'a>, reason: Option<FinishReason>) -> Self {
        Self {
            index,
            content,
            logprobs: None,
            finish_reason: reason.map(Into::into),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Content<'a> {
    Message(Message<'a>),
    Delta(Delta<'a>),
    Text(&'a str),
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: &'a str,
    refusal: Option<()>,
}

#[derive(Serialize, Default)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
}

/// The member `usage`, which may also be absent, or there and null.
#[derive(Serialize)]
#[serde(untagged)]
enum WireUsage {
    Absent,
    Null(()),
    Tokens {
        prompt_tokens: usize,
        completion_tokens: usize,
        total_tokens: usize,
    },
}

impl WireUsage {
    fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }
}

impl From<Usage> for WireUsage {
    fn from(usage: Usage) -> Self {
        let Usage {
            prompt_tokens,
            completion_tokens,
        } = usage;
        Self::Tokens {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
        }
    }
}

impl Envelope {
    /// The whole answer.
    pub(super) fn whole(&self, answers: &[Answer], usage: Usage) -> String {
        let object = match self.kind {
            Kind::Chat => "chat.completion",
            Kind::Text => "text_completion",
        };
        let choices = (0..).zip(answers).map(|(index, answer)| {
            let content = match self.kind {
                Kind::Chat => Content::Message(Message {
                    role: "assistant",
                    content: &answer.text,
                    refusal: None,
                }),
                Kind::Text => Content::Text(&answer.text),
            };
            Choice {
                logprobs: self.logprobs(answer.tokens.as_deref(), 0),
                ..Choice::new(index, content, Some(answer.reason))
            }
        });
        self.wire(object, choices.collect(), usage.into())
    }

    /// The first chunk of an answer in a stream, if it has one of its own: who speaks.
    pub(super) fn opening(&self, index: usize) -> Option<String> {
        let delta = Delta {
            role: Some("assistant"),
            content: Some(""),
        };
        (self.kind == Kind::Chat).then(|| self.chunk(Choice::new(index, Content::Delta(delta), None)))
    }

    /// A chunk with a part of an answer.
    pub(super) fn part_chunk(&self, index: usize, part: &Part) -> String {
        let content = match self.kind {
            Kind::Chat => Content::Delta(Delta {
                content: Some(&part.text),
                ..Delta::default()
            }),
            Kind::Text => Content::Text(&part.text),
        };
        self.chunk(Choice {
            logprobs: self.logprobs(part.tokens.as_deref(), part.offset),
            ..Choice::new(index, content, None)
        })
    }

    fn logprobs<'a>(&self, tokens: Option<&'a [AnswerToken]>, offset: usize) -> Option<WireLogprobs<'a>> {
        tokens.map(|tokens| WireLogprobs::new(self.kind, tokens, offset))
    }

    /// The chunk that says what ended an answer.
    pub(super) fn finish_chunk(&self, index: usize, reason: FinishReason) -> String {
        let content = match self.kind {
            Kind::Chat => Content::Delta(Delta::default()),
            Kind::Text => Content::Text(""),
        };
        self.chunk(Choice::new(index, content, Some(reason)))
    }

    /// The chunk with the usage, when it was asked for.
    pub(super) fn usage_chunk(&self, usage: Usage) -> Option<String> {
        self.include_usage
            .then(|| self.wire(self.chunk_object(), vec![], usage.into()))
    }

    fn chunk(&self, choice: Choice<'_>) -> String {
        let usage = if self.include_usage {
            WireUsage::Null(())
        } else {
            WireUsage::Absent
        };
        self.wire(self.chunk_object(), vec![choice], usage)
    }

    fn chunk_object(&self) -> &'static str {
        match self.kind {
            Kind::Chat => "chat.completion.chunk",
            Kind::Text => "text_completion",
        }
    }

    fn wire(&self, object: &'static str, choices: Vec<Choice<'_>>, usage: WireUsage) -> String {
        let wire = Wire {
            id: &self.id,
            object,
            created: self.created,
            model: &self.model,
            system_fingerprint: &self.fingerprint,
            choices,
            usage,
        };
        serde_json::to_string(&wire).expect("strings and numbers are always JSON")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn envelope(kind: Kind, include_usage: bool) -> Envelope {
        Envelope {
            kind,
            id: "id-1".into(),
            created: 7,
            model: "m".into(),
            fingerprint: "fp_x".into(),
            include_usage,
        }
    }

    fn answer(text: &str, reason: FinishReason) -> Answer {
        Answer {
            text: text.into(),
            tokens: None,
            reason,
        }
    }

    fn part(text: &str) -> Part {
        Part {
            text: text.into(),
            tokens: None,
            offset: 0,
        }
    }

    fn parse(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    const USAGE: Usage = Usage {
        prompt_tokens: 3,
        completion_tokens: 4,
    };

    #[test]
    fn whole_chat_answer_is_that_of_openai() {
        assert_eq!(
            parse(&envelope(Kind::Chat, false).whole(&[answer("hi", FinishReason::Stop)], USAGE)),
            json!({
                "id": "id-1", "object": "chat.completion", "created": 7, "model": "m", "system_fingerprint": "fp_x",
                "choices": [{
                    "index": 0, "message": {"role": "assistant", "content": "hi", "refusal": null},
                    "logprobs": null, "finish_reason": "stop"
                }],
                "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
            })
        );
    }

    #[test]
    fn whole_plain_answer_is_that_of_openai() {
        let answers = [answer("hi", FinishReason::Length), answer("ho", FinishReason::Stop)];
        let answer = parse(&envelope(Kind::Text, false).whole(&answers, USAGE));
        assert_eq!(answer["object"], "text_completion");
        assert_eq!(
            answer["choices"],
            json!([
                {"index": 0, "text": "hi", "logprobs": null, "finish_reason": "length"},
                {"index": 1, "text": "ho", "logprobs": null, "finish_reason": "stop"},
            ])
        );
    }

    #[test]
    fn stream_has_usage_only_when_asked_and_then_only_in_the_end() {
        let without = envelope(Kind::Chat, false);
        assert!(parse(&without.part_chunk(0, &part("a"))).get("usage").is_none());
        assert_eq!(without.usage_chunk(USAGE), None);
        let with = envelope(Kind::Chat, true);
        assert_eq!(parse(&with.part_chunk(0, &part("a")))["usage"], Value::Null);
        let last = parse(&with.usage_chunk(USAGE).unwrap());
        assert_eq!(
            (&last["choices"], &last["usage"]["total_tokens"]),
            (&json!([]), &json!(7))
        );
    }

    #[test]
    fn stream_begins_with_the_role_and_ends_with_the_reason() {
        let chat = envelope(Kind::Chat, false);
        let opening = parse(&chat.opening(0).unwrap());
        assert_eq!(opening["object"], "chat.completion.chunk");
        assert_eq!(
            opening["choices"][0]["delta"],
            json!({"role": "assistant", "content": ""})
        );
        assert_eq!(
            parse(&chat.part_chunk(2, &part("x")))["choices"][0],
            json!({"index": 2, "delta": {"content": "x"}, "logprobs": null, "finish_reason": null})
        );
        let finish = parse(&chat.finish_chunk(0, FinishReason::Stop));
        assert_eq!(
            finish["choices"][0],
            json!({"index": 0, "delta": {}, "logprobs": null, "finish_reason": "stop"})
        );
        assert_eq!(envelope(Kind::Text, false).opening(0), None);
    }
}
