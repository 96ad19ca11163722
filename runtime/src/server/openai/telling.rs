//! From the pieces that the engine gives to the parts that a client is told. Pure.

use super::answer::{Part, Said};
use super::logprobs::AnswerToken;
use crate::context::random_id;
use crate::dialect::{SHORT_ID, Splitter, Spoken};

/// How an answer's text is taken apart.
#[derive(Debug, Clone)]
pub(super) struct Reading {
    pub(super) splitter: Splitter,
    /// Whether identifiers of calls have nine letters and digits.
    pub(super) has_short_ids: bool,
}

/// Tells one answer.
#[derive(Debug, Clone)]
pub(super) struct Teller {
    /// Absent: all of it is text.
    reading: Option<Reading>,
    calls: usize,
    /// Tokens of the reasoning.
    reasoning_tokens: usize,
    /// Characters that were told.
    told: usize,
    /// Tokens of text that is held back.
    held: Vec<AnswerToken>,
}

impl Teller {
    pub(super) fn new(reading: Option<Reading>) -> Self {
        Self {
            reading,
            calls: 0,
            reasoning_tokens: 0,
            told: 0,
            held: Vec::new(),
        }
    }

    /// Whether it has called a tool.
    pub(super) fn has_calls(&self) -> bool {
        self.calls > 0
    }

    /// How many tokens the reasoning had.
    pub(super) fn reasoning_tokens(&self) -> usize {
        self.reasoning_tokens
    }

    /// Takes the next piece, for which so many tokens were drawn; they come with it when somebody wants to know them.
    pub(super) fn push(&mut self, text: String, drawn: usize, tokens: Option<Vec<AnswerToken>>) -> Vec<Part> {
        let spoken = match &mut self.reading {
            None => vec![Spoken::Content(text)],
            Some(reading) => {
                let is_reasoning = reading.splitter.is_reasoning();
                let spoken = reading.splitter.push(&text);
                if is_reasoning || reading.splitter.is_reasoning() {
                    self.reasoning_tokens += drawn;
                }
                spoken
            }
        };
        self.tell(spoken, tokens)
    }

    /// What is left when no piece follows.
    pub(super) fn finish(&mut self, with_tokens: bool) -> Vec<Part> {
        let mut spoken = self
            .reading
            .as_mut()
            .map(|reading| reading.splitter.finish())
            .unwrap_or_default();
        if spoken.is_empty() && !self.held.is_empty() {
            spoken.push(Spoken::Content(String::new()));
        }
        self.tell(spoken, with_tokens.then(Vec::new))
    }

    fn tell(&mut self, spoken: Vec<Spoken>, tokens: Option<Vec<AnswerToken>>) -> Vec<Part> {
        let with_tokens = tokens.is_some();
        self.held.extend(tokens.into_iter().flatten());
        let parts = spoken.into_iter().map(|spoken| {
            let said = self.said(spoken);
            let offset = self.told;
            if let Said::Text(text) = &said {
                self.told += text.chars().count();
            }
            Part {
                said,
                // All that came with the text go with its first part.
                tokens: with_tokens.then(|| std::mem::take(&mut self.held)),
                offset,
            }
        });
        parts.collect()
    }

    fn said(&mut self, spoken: Spoken) -> Said {
        match spoken {
            Spoken::Content(text) => Said::Text(text),
            Spoken::Reasoning(text) => Said::Reasoning(text),
            Spoken::Call { name, id } => {
                self.calls += 1;
                Said::Call {
                    index: self.calls - 1,
                    id: id.unwrap_or_else(|| self.id()),
                    name,
                }
            }
            Spoken::Arguments(text) => Said::Arguments {
                index: self.calls.saturating_sub(1),
                text,
            },
        }
    }

    fn id(&self) -> String {
        if self.reading.as_ref().is_some_and(|reading| reading.has_short_ids) {
            random_id("").chars().take(SHORT_ID).collect()
        } else {
            random_id("call_")
        }
    }
}
