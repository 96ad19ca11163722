//! How a model writes what is not plain text: calls of tools, and reasoning before the answer.
//!
//! No model is known here by its name. What it writes, its own chat template shows when it renders a conversation in
//! which a tool was called. A model whose template knows no tools is told about them in a system message.

mod calls;
mod compose;
mod probe;
mod splitter;
mod untaught;

pub use calls::SHORT_ID;
pub use compose::{Choice, Wanted};
pub use splitter::{Splitter, Spoken};

use crate::model::{ChatInput, ChatTemplate, TemplateError};
use calls::Syntax;
use serde_json::Value;

/// A tool that may be called.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    /// Letters, digits, `_` and `-`.
    pub name: String,
    /// The JSON schema of its arguments, which are an object.
    pub parameters: Value,
    /// As its client described it.
    pub definition: Value,
}

/// How one model reads and writes.
#[derive(Debug)]
pub struct Dialect {
    template: ChatTemplate,
    calls: Calls,
    reasons: bool,
    /// Markers that are control tokens of this model, with their ids.
    controls: Vec<(&'static str, u32)>,
}

/// How a model calls tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Calls {
    /// As its template says.
    Taught {
        syntax: &'static Syntax,
        /// Whether the template takes the arguments of calls as text, not as an object.
        arguments_are_text: bool,
    },
    /// Its template knows no tools.
    Untaught,
    /// Its template writes calls in a way that is not known here.
    Foreign,
}

/// What surrounds reasoning.
const REASONING: (&str, &str) = ("<think>", "</think>");

/// A conversation to be rendered, as the API takes it: the arguments of calls are objects.
#[derive(Debug, Clone, PartialEq)]
pub struct Conversation {
    /// Objects with `role` and `content`, answers also with `tool_calls`.
    pub messages: Vec<Value>,
    /// What may be called. Empty: nothing.
    pub tools: Vec<Tool>,
    /// Whether the text ends with the opening of the next answer.
    pub with_answer: bool,
    /// Further variables of the template.
    pub variables: serde_json::Map<String, Value>,
}

/// Why a conversation cannot be rendered.
#[derive(Debug, thiserror::Error)]
pub enum DialectError {
    /// The template writes calls in a way that is not known here.
    #[error("this model's chat template writes calls of tools in a way that this server cannot read")]
    Foreign,
    /// The template's own error.
    #[error(transparent)]
    Template(#[from] TemplateError),
}

/// A rendered conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// What the model reads.
    pub text: String,
    /// Whether the answer begins inside the reasoning, because the template has opened it.
    pub is_reasoning: bool,
}

impl Dialect {
    /// What a template shows of its model's way to write. `control` gives the id of a control token by its text.
    pub fn of(template: ChatTemplate, control: impl Fn(&str) -> Option<u32>) -> Self {
        let calls = probe::calls(&template);
        let reasons = template.mentions(REASONING.0) && template.mentions(REASONING.1);
        let markers = calls.syntax().map_or(&[][..], |syntax| syntax.markers);
        let reasoning = if reasons { &[REASONING.0, REASONING.1][..] } else { &[] };
        let controls = markers
            .iter()
            .chain(reasoning)
            .filter_map(|marker| Some((*marker, control(marker)?)))
            .collect();
        Self {
            template,
            calls,
            reasons,
            controls,
        }
    }

    /// Renders a conversation with the model's template.
    ///
    /// # Errors
    /// When the template refuses it, or writes calls in a way that is not known here.
    pub fn render(&self, conversation: Conversation) -> Result<Rendered, DialectError> {
        let Conversation {
            mut messages,
            tools,
            with_answer,
            variables,
        } = conversation;
        let uses_tools = !tools.is_empty() || messages.iter().any(|message| message.get("tool_calls").is_some());
        let mut definitions = (!tools.is_empty()).then(|| tools.iter().map(|tool| tool.definition.clone()).collect());
        match self.calls {
            Calls::Foreign if uses_tools => return Err(DialectError::Foreign),
            Calls::Untaught => {
                messages = untaught::rewrite(messages, definitions.take());
            }
            Calls::Taught {
                arguments_are_text: true,
                ..
            } => messages.iter_mut().for_each(probe::arguments_to_text),
            _ => {}
        }
        let text = self.template.render(&ChatInput {
            messages: Value::Array(messages),
            tools: definitions.map(Value::Array),
            add_generation_prompt: with_answer,
            variables,
        })?;
        let is_reasoning = self.reasons && with_answer && text.trim_end().ends_with(REASONING.0);
        Ok(Rendered { text, is_reasoning })
    }

    /// Control tokens that are part of what the model says, so that they have to be seen in its answers.
    pub fn controls(&self, with_tools: bool) -> Vec<u32> {
        let is_reasoning = |marker: &str| marker == REASONING.0 || marker == REASONING.1;
        let seen = self.controls.iter();
        let seen = seen.filter(|(marker, _)| with_tools || is_reasoning(marker));
        seen.map(|(_, token)| *token).collect()
    }

    /// Whether an answer may begin with reasoning.
    pub fn reasons(&self) -> bool {
        self.reasons
    }

    /// Whether its template wants identifiers of calls to have nine letters and digits.
    pub fn has_short_ids(&self) -> bool {
        self.calls.syntax().is_some_and(|syntax| syntax.has_short_ids)
    }

    fn control(&self, marker: &str) -> Option<u32> {
        let found = self.controls.iter().find(|(other, _)| *other == marker);
        found.map(|(_, token)| *token)
    }
}

impl Calls {
    fn syntax(self) -> Option<&'static Syntax> {
        match self {
            Self::Taught { syntax, .. } => Some(syntax),
            Self::Untaught => Some(&calls::HERMES),
            Self::Foreign => None,
        }
    }
}

#[cfg(test)]
mod tests;
