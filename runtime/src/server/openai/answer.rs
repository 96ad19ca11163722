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
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Answer {
    pub(super) text: String,
    pub(super) reasoning: String,
    pub(super) calls: Vec<Call>,
    /// When it is asked for how likely they were.
    pub(super) tokens: Option<Vec<AnswerToken>>,
    /// Absent until it has ended.
    pub(super) reason: Option<FinishReason>,
}

/// A call of a tool in an answer.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Call {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) arguments: String,
}

/// What the answers to a request cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Cost {
    pub(super) usage: Usage,
    /// Tokens of reasoning in them.
    pub(super) reasoning_tokens: usize,
}

/// A part of an answer in a stream.
#[derive(Debug, PartialEq)]
pub(super) struct Part {
    pub(super) said: Said,
    /// When it is asked for how likely they were.
    pub(super) tokens: Option<Vec<AnswerToken>>,
    /// Characters of the answer before this part.
    pub(super) offset: usize,
}

/// What a part of an answer says.
#[derive(Debug, PartialEq)]
pub(super) enum Said {
    Text(String),
    Reasoning(String),
    /// A call begins, the one with this number in the answer.
    Call {
        index: usize,
        id: String,
        name: String,
    },
    /// More of the arguments of a call.
    Arguments {
        index: usize,
        text: String,
    },
}

impl Answer {
    /// Takes the next part.
    pub(super) fn add(&mut self, part: Part) {
        match part.said {
            Said::Text(text) => self.text.push_str(&text),
            Said::Reasoning(text) => self.reasoning.push_str(&text),
            Said::Call { id, name, .. } => self.calls.push(Call {
                id,
                name,
                arguments: String::new(),
            }),
            Said::Arguments { text, .. } => {
                if let Some(call) = self.calls.last_mut() {
                    call.arguments.push_str(&text);
                }
            }
        }
        if let Some(tokens) = &mut self.tokens {
            tokens.extend(part.tokens.into_iter().flatten());
        }
    }
}

/// What ended an answer, as clients know it.
pub(super) fn finish_reason(reason: FinishReason, has_calls: bool) -> &'static str {
    match reason {
        FinishReason::Stop if has_calls => "tool_calls",
        reason => reason.into(),
    }
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
    fn new(index: usize, content: Content<'a>, finish_reason: Option<&'static str>) -> Self {
        Self {
            index,
            content,
            logprobs: None,
            finish_reason,
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
    /// Null in an answer that only calls.
    content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'a str>,
    refusal: Option<()>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<WireCall<'a>>,
}

#[derive(Serialize, Default)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<WireCall<'a>>,
}

/// A call, or in a stream a part of one.
#[derive(Serialize, Default)]
struct WireCall<'a> {
    /// Only in streams.
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    r#type: Option<&'static str>,
    function: WireFunction<'a>,
}

#[derive(Serialize, Default)]
struct WireFunction<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    arguments: &'a str,
}

impl<'a> WireCall<'a> {
    fn new(index: Option<usize>, id: &'a str, name: &'a str, arguments: &'a str) -> Self {
        Self {
            index,
            id: Some(id),
            r#type: Some("function"),
            function: WireFunction {
                name: Some(name),
                arguments,
            },
        }
    }
}

impl<'a> From<&'a Answer> for Message<'a> {
    fn from(answer: &'a Answer) -> Self {
        let calls = answer.calls.iter();
        Self {
            role: "assistant",
            content: (answer.calls.is_empty() || !answer.text.is_empty()).then_some(&answer.text),
            reasoning_content: (!answer.reasoning.is_empty()).then_some(&answer.reasoning),
            refusal: None,
            tool_calls: calls
                .map(|call| WireCall::new(None, &call.id, &call.name, &call.arguments))
                .collect(),
        }
    }
}

impl<'a> From<&'a Said> for Delta<'a> {
    fn from(said: &'a Said) -> Self {
        match said {
            Said::Text(text) => Self {
                content: Some(text),
                ..Self::default()
            },
            Said::Reasoning(text) => Self {
                reasoning_content: Some(text),
                ..Self::default()
            },
            Said::Call { index, id, name } => Self {
                tool_calls: vec![WireCall::new(Some(*index), id, name, "")],
                ..Self::default()
            },
            Said::Arguments { index, text } => Self {
                tool_calls: vec![WireCall {
                    index: Some(*index),
                    function: WireFunction {
                        name: None,
                        arguments: text,
                    },
                    ..WireCall::default()
                }],
                ..Self::default()
            },
        }
    }
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
        prompt_tokens_details: PromptDetails,
        completion_tokens_details: CompletionDetails,
    },
}

#[derive(Serialize)]
struct PromptDetails {
    cached_tokens: usize,
}

#[derive(Serialize)]
struct CompletionDetails {
    reasoning_tokens: usize,
}

impl WireUsage {
    fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }
}

impl From<Cost> for WireUsage {
    fn from(
        Cost {
            usage,
            reasoning_tokens,
        }: Cost,
    ) -> Self {
        let Usage {
            prompt_tokens,
            cached_tokens,
            completion_tokens,
        } = usage;
        Self::Tokens {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: PromptDetails { cached_tokens },
            completion_tokens_details: CompletionDetails { reasoning_tokens },
        }
    }
}

impl Envelope {
    /// The whole answer.
    pub(super) fn whole(&self, answers: &[Answer], cost: Cost) -> String {
        let object = match self.kind {
            Kind::Chat => "chat.completion",
            Kind::Text => "text_completion",
        };
        let choices = (0..).zip(answers).map(|(index, answer)| {
            let content = match self.kind {
                Kind::Chat => Content::Message(answer.into()),
                Kind::Text => Content::Text(&answer.text),
            };
            let reason = answer
                .reason
                .map(|reason| finish_reason(reason, !answer.calls.is_empty()));
            Choice {
                logprobs: self.logprobs(answer.tokens.as_deref(), 0),
                ..Choice::new(index, content, reason)
            }
        });
        self.wire(object, choices.collect(), cost.into())
    }

    /// The first chunk of an answer in a stream, if it has one of its own: who speaks.
    pub(super) fn opening(&self, index: usize) -> Option<String> {
        let delta = Delta {
            role: Some("assistant"),
            content: Some(""),
            ..Delta::default()
        };
        (self.kind == Kind::Chat).then(|| self.chunk(Choice::new(index, Content::Delta(delta), None)))
    }

    /// A chunk with a part of an answer.
    pub(super) fn part_chunk(&self, index: usize, part: &Part) -> String {
        let content = match (self.kind, &part.said) {
            (Kind::Text, Said::Text(text)) => Content::Text(text),
            (_, said) => Content::Delta(said.into()),
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
    pub(super) fn finish_chunk(&self, index: usize, reason: FinishReason, has_calls: bool) -> String {
        let content = match self.kind {
            Kind::Chat => Content::Delta(Delta::default()),
            Kind::Text => Content::Text(""),
        };
        self.chunk(Choice::new(index, content, Some(finish_reason(reason, has_calls))))
    }

    /// The chunk with the usage, when it was asked for.
    pub(super) fn usage_chunk(&self, cost: Cost) -> Option<String> {
        self.include_usage
            .then(|| self.wire(self.chunk_object(), vec![], cost.into()))
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
            reason: Some(reason),
            ..Answer::default()
        }
    }

    fn part(text: &str) -> Part {
        said(Said::Text(text.into()))
    }

    fn said(said: Said) -> Part {
        Part {
            said,
            tokens: None,
            offset: 0,
        }
    }

    fn parse(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    const COST: Cost = Cost {
        usage: Usage {
            prompt_tokens: 3,
            cached_tokens: 2,
            completion_tokens: 4,
        },
        reasoning_tokens: 1,
    };

    #[test]
    fn whole_chat_answer_is_that_of_openai() {
        assert_eq!(
            parse(&envelope(Kind::Chat, false).whole(&[answer("hi", FinishReason::Stop)], COST)),
            json!({
                "id": "id-1", "object": "chat.completion", "created": 7, "model": "m", "system_fingerprint": "fp_x",
                "choices": [{
                    "index": 0, "message": {"role": "assistant", "content": "hi", "refusal": null},
                    "logprobs": null, "finish_reason": "stop"
                }],
                "usage": {
                    "prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7,
                    "prompt_tokens_details": {"cached_tokens": 2}, "completion_tokens_details": {"reasoning_tokens": 1}
                }
            })
        );
    }

    #[test]
    fn whole_plain_answer_is_that_of_openai() {
        let answers = [answer("hi", FinishReason::Length), answer("ho", FinishReason::Stop)];
        let answer = parse(&envelope(Kind::Text, false).whole(&answers, COST));
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
        assert_eq!(without.usage_chunk(COST), None);
        let with = envelope(Kind::Chat, true);
        assert_eq!(parse(&with.part_chunk(0, &part("a")))["usage"], Value::Null);
        let last = parse(&with.usage_chunk(COST).unwrap());
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
        let finish = parse(&chat.finish_chunk(0, FinishReason::Stop, false));
        assert_eq!(
            finish["choices"][0],
            json!({"index": 0, "delta": {}, "logprobs": null, "finish_reason": "stop"})
        );
        assert_eq!(envelope(Kind::Text, false).opening(0), None);
    }

    #[test]
    fn calls_and_reasoning_are_those_that_clients_know() {
        let parts = || {
            [
                Said::Reasoning("hm".into()),
                Said::Call {
                    index: 0,
                    id: "c1".into(),
                    name: "f".into(),
                },
                Said::Arguments {
                    index: 0,
                    text: "{}".into(),
                },
            ]
        };
        let chat = envelope(Kind::Chat, false);
        let delta = |part| parse(&chat.part_chunk(0, &said(part)))["choices"][0]["delta"].clone();
        assert_eq!(
            parts().map(delta),
            [
                json!({"reasoning_content": "hm"}),
                json!({"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}]}),
                json!({"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}),
            ]
        );
        let mut answer = answer("", FinishReason::Stop);
        for part in parts() {
            answer.add(said(part));
        }
        let whole = parse(&chat.whole(&[answer], COST));
        assert_eq!(
            whole["choices"][0],
            json!({
                "index": 0, "logprobs": null, "finish_reason": "tool_calls",
                "message": {
                    "role": "assistant", "content": null, "reasoning_content": "hm", "refusal": null,
                    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
                }
            })
        );
        let finish = |reason| parse(&chat.finish_chunk(0, reason, true))["choices"][0]["finish_reason"].clone();
        assert_eq!(finish(FinishReason::Stop), "tool_calls");
        assert_eq!(finish(FinishReason::Length), "length");
    }
}
