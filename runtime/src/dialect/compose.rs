//! The grammar of an answer that may reason, call tools, or be held to something else.

use super::calls::{SHORT_ID, Syntax};
use super::{Dialect, REASONING, Tool};
use crate::grammar::Grammar;
use serde_json::Value;
use std::fmt::Write as _;

/// More calls in one answer are a model that does not come to an end.
const MAX_CALLS: usize = 32;

/// Whether tools are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// If the model wants to.
    Auto,
    /// In any case.
    Required,
}

/// What an answer may be.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted<'a> {
    /// What may be called. Empty: nothing.
    pub tools: &'a [Tool],
    /// Whether it has to be.
    pub choice: Choice,
    /// Whether there may be several calls.
    pub parallel: bool,
    /// What the answer has to be unless it calls. Absent: any text.
    pub content: Option<Grammar>,
    /// Whether it begins inside the reasoning.
    pub is_reasoning: bool,
}

impl Dialect {
    /// The grammar of such an answer; absent when it may be anything.
    pub fn grammar(&self, wanted: Wanted<'_>) -> Option<Grammar> {
        let syntax = self.calls.syntax().filter(|_| !wanted.tools.is_empty());
        if syntax.is_none() && (wanted.content.is_none() || !self.reasons) {
            return wanted.content;
        }
        let mut lark = Lark {
            dialect: self,
            text: String::new(),
            parts: Vec::new(),
        };
        lark.compose(syntax, wanted);
        Some(Grammar::Composed {
            lark: lark.text,
            parts: lark.parts,
        })
    }
}

/// A grammar that is being written.
struct Lark<'a> {
    dialect: &'a Dialect,
    text: String,
    parts: Vec<(String, Grammar)>,
}

impl Lark<'_> {
    fn compose(&mut self, syntax: Option<&Syntax>, wanted: Wanted<'_>) {
        let Wanted {
            tools,
            choice,
            parallel,
            content,
            is_reasoning,
        } = wanted;
        let reasoning = match (self.dialect.reasons, is_reasoning) {
            (false, _) => "",
            (true, true) => "reasoned BREAK? ",
            (true, false) => "(reasoning BREAK?)? ",
        };
        let mut bodies = Vec::new();
        if choice == Choice::Auto || syntax.is_none() {
            bodies.push(if content.is_some() { "@content" } else { "TEXT?" });
        }
        if let Some(syntax) = syntax {
            bodies.push(match (choice, syntax.trigger) {
                (Choice::Auto, Some(_)) => "until_calls calls",
                (Choice::Required, Some(_)) => "trigger calls",
                (_, None) => "calls",
            });
        }
        // Text that begins as calls do, where nothing else shows where they begin, would be ambiguous.
        let text = match syntax {
            Some(Syntax { trigger: None, .. }) => r"/[^{](.|\n)*/",
            _ => r"/(.|\n)+/",
        };
        self.rule("start", &format!("{reasoning}({})", bodies.join(" | ")));
        self.rule("TEXT", text);
        if self.dialect.reasons {
            let (begin, end) = REASONING;
            let begin = self.literal(begin);
            self.rule("reasoning", &format!("{begin} reasoned"));
            self.until("reasoned", end);
            self.rule("BREAK", r"/\n{1,4}/");
        }
        if let Some(syntax) = syntax {
            if let (Choice::Auto, Some(trigger)) = (choice, syntax.trigger) {
                self.until("until_calls", trigger);
            } else if let Some(trigger) = syntax.trigger {
                let trigger = self.literal(trigger);
                self.rule("trigger", &trigger);
            }
            self.calls(syntax, tools, parallel);
        }
        self.parts
            .extend(content.map(|content| ("content".to_owned(), content)));
    }

    fn rule(&mut self, name: &str, body: &str) {
        writeln!(self.text, "{name}: {body}").expect("writing to a string cannot fail");
    }

    /// Any text up to a marker and with it.
    fn until(&mut self, name: &str, marker: &str) {
        match self.dialect.control(marker) {
            Some(token) => self.rule(name, &format!(r"/(.|\n)+/? <[{token}]>")),
            None => self.rule(&format!("{name}[suffix={}]", quoted(marker)), r"/(.|\n)*/"),
        }
    }

    /// A text, in which the markers that are control tokens of this model are those.
    fn literal(&self, text: &str) -> String {
        let mut rest = text;
        let mut parts = Vec::new();
        loop {
            let next = self.dialect.controls.iter();
            let next = next.filter_map(|(marker, token)| Some((rest.find(marker)?, *marker, *token)));
            let Some((at, marker, token)) = next.min_by_key(|(at, ..)| *at) else {
                break;
            };
            if at > 0 {
                parts.push(quoted(&rest[..at]));
            }
            parts.push(format!("<[{token}]>"));
            rest = &rest[at + marker.len()..];
        }
        if !rest.is_empty() {
            parts.push(quoted(rest));
        }
        parts.join(" ")
    }

    fn calls(&mut self, syntax: &Syntax, tools: &[Tool], parallel: bool) {
        let more = syntax.next.filter(|_| parallel).map(|next| {
            let next = self.literal(next);
            format!("({next} call){{0,{}}}", MAX_CALLS - 1)
        });
        let (open, close) = (self.literal(syntax.open), self.literal(syntax.close));
        self.rule("calls", &format!("{open} call {} {close}", more.unwrap_or_default()));
        let names: Vec<String> = (0..tools.len()).map(|number| format!("call_{number}")).collect();
        self.rule("call", &names.join(" | "));
        let (mut arguments, end) = (self.literal(syntax.arguments), self.literal(syntax.end));
        if let Some(marker) = syntax.id {
            arguments = format!("{} /[a-zA-Z0-9]{{{SHORT_ID}}}/ {arguments}", self.literal(marker));
        }
        for ((number, name), tool) in names.iter().enumerate().zip(tools) {
            let tool_name = quoted(&tool.name);
            self.rule(name, &format!("{tool_name} {arguments} @arguments_{number} {end}"));
            let schema = Grammar::JsonSchema(tool.parameters.clone());
            self.parts.push((format!("arguments_{number}"), schema));
        }
    }
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}
