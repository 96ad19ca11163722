//! Takes an answer's text apart as it comes: reasoning, plain text, calls with their arguments.

use super::calls::{SHORT_ID, Syntax};
use super::{Dialect, REASONING};

/// A part of an answer; parts of the same kind follow each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Spoken {
    /// Of the reasoning.
    Reasoning(String),
    /// Of the answer's text.
    Content(String),
    /// A call of the tool with this name begins, with the identifier that the model gave it, if it does that.
    Call {
        /// One of the tools.
        name: String,
        /// Nine letters and digits.
        id: Option<String>,
    },
    /// Of the arguments of the last call, as JSON.
    Arguments(String),
}

/// Takes one answer apart.
#[derive(Debug, Clone)]
pub struct Splitter {
    state: State,
    /// Text that may be the beginning of something else, or is not followed by what it needs yet.
    held: String,
    syntax: Option<&'static Syntax>,
    tools: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing was said; reasoning may begin.
    Opening,
    Reasoning {
        is_begun: bool,
    },
    /// Between reasoning and text.
    Break,
    /// Nothing was said behind the reasoning.
    Beginning,
    Text,
    /// From where a call begins to its arguments.
    Head {
        is_first: bool,
    },
    Arguments(Nesting),
    /// Behind the arguments.
    Tail,
    /// Between two calls, or behind the last.
    Between,
    /// Nothing is expected any more.
    Plain,
}

/// Where in a JSON object it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Nesting {
    depth: usize,
    in_text: bool,
    is_escaped: bool,
}

/// Whether a text is at the beginning of another.
enum Begins {
    Yes,
    No,
    /// It is too short to tell.
    Perhaps,
}

fn begins(text: &str, with: &str) -> Begins {
    if text.starts_with(with) {
        Begins::Yes
    } else if with.starts_with(text) {
        Begins::Perhaps
    } else {
        Begins::No
    }
}

/// Bytes at the end of a text that may be the beginning of a marker, and white space before them.
fn to_be_held(text: &str, marker: &str) -> usize {
    let longest = marker.len().min(text.len() + 1) - 1;
    let begun = (1..=longest)
        .rev()
        .find(|length| marker.is_char_boundary(*length) && text.ends_with(&marker[..*length]))
        .unwrap_or(0);
    let before = &text[..text.len() - begun];
    text.len() - before.trim_end().len()
}

/// The identifier of a call of this tool whose text begins with its name, and how many bytes there are to the arguments;
/// or whether there may be such a call when more of the text comes.
fn calls_tool(text: &str, tool: &str, syntax: &Syntax) -> Result<(Option<String>, usize), bool> {
    let mut at = 0;
    let mut expect = |what: &str| match begins(&text[at..], what) {
        Begins::Yes => {
            at += what.len();
            Ok(at)
        }
        Begins::Perhaps => Err(true),
        Begins::No => Err(false),
    };
    expect(tool)?;
    let mut id = None;
    if let Some(marker) = syntax.id {
        let start = expect(marker)?;
        let given: String = text[start..].chars().take(SHORT_ID).collect();
        if !given.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(false);
        }
        if given.len() < SHORT_ID {
            return Err(true);
        }
        expect(&given)?;
        id = Some(given);
    }
    let length = expect(syntax.arguments)?;
    Ok((id, length))
}

impl Nesting {
    /// Bytes up to the end of the object and with it, if it ends here.
    fn end(&mut self, text: &str) -> Option<usize> {
        for (at, byte) in text.bytes().enumerate() {
            match byte {
                _ if self.is_escaped => self.is_escaped = false,
                b'\\' if self.in_text => self.is_escaped = true,
                b'"' => self.in_text = !self.in_text,
                b'{' | b'[' if !self.in_text => self.depth += 1,
                b'}' | b']' if !self.in_text => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return Some(at + 1);
                    }
                }
                _ => {}
            }
        }
        None
    }
}

impl Dialect {
    /// For an answer of this model: with the names of the tools that may be called, and whether it begins inside the
    /// reasoning.
    pub fn splitter(&self, tools: Vec<String>, is_reasoning: bool) -> Splitter {
        let state = match (self.reasons, is_reasoning) {
            (true, true) => State::Reasoning { is_begun: false },
            (true, false) => State::Opening,
            (false, _) => State::Beginning,
        };
        Splitter {
            state,
            held: String::new(),
            syntax: self.calls.syntax().filter(|_| !tools.is_empty()),
            tools,
        }
    }
}

impl Splitter {
    /// Whether what comes next belongs to the reasoning.
    pub fn is_reasoning(&self) -> bool {
        matches!(self.state, State::Reasoning { .. })
    }

    /// Takes the next piece of text.
    pub fn push(&mut self, text: &str) -> Vec<Spoken> {
        self.held.push_str(text);
        let mut spoken = Vec::new();
        while self.step(&mut spoken) {}
        spoken
    }

    /// What is left when nothing follows. The beginning of a call that never came to its arguments is nothing.
    pub fn finish(&mut self) -> Vec<Spoken> {
        let rest = std::mem::take(&mut self.held);
        let spoken = match self.state {
            _ if rest.is_empty() => None,
            State::Reasoning { .. } => (!rest.trim().is_empty()).then_some(Spoken::Reasoning(rest)),
            State::Opening | State::Beginning | State::Text | State::Plain => Some(Spoken::Content(rest)),
            State::Head { is_first } => {
                let is_text = is_first && self.syntax.is_some_and(|syntax| syntax.trigger.is_none());
                is_text.then_some(Spoken::Content(rest))
            }
            State::Arguments(_) => Some(Spoken::Arguments(rest)),
            State::Break | State::Tail | State::Between => None,
        };
        spoken.into_iter().collect()
    }

    /// Does what can be done with what is held. Whether there may be more to do.
    fn step(&mut self, spoken: &mut Vec<Spoken>) -> bool {
        match self.state {
            State::Opening => self.opening(),
            State::Reasoning { is_begun } => self.reasoning(is_begun, spoken),
            State::Break => {
                let text = self.held.trim_start_matches('\n').len();
                self.held.drain(..self.held.len() - text);
                self.go_on_if(!self.held.is_empty(), State::Beginning)
            }
            State::Beginning => self.beginning(),
            State::Text => self.text(spoken),
            State::Head { is_first } => self.head(is_first, spoken),
            State::Arguments(nesting) => self.arguments(nesting, spoken),
            State::Tail => self.expect(|syntax| syntax.end, State::Between),
            State::Between => self.between(),
            State::Plain => {
                self.say(self.held.len(), Spoken::Content, spoken);
                false
            }
        }
    }

    fn go_on_if(&mut self, goes_on: bool, state: State) -> bool {
        if goes_on {
            self.state = state;
        }
        goes_on
    }

    /// Says so many bytes of what is held.
    fn say(&mut self, length: usize, kind: fn(String) -> Spoken, spoken: &mut Vec<Spoken>) {
        if length > 0 {
            spoken.push(kind(self.held.drain(..length).collect()));
        }
    }

    fn opening(&mut self) -> bool {
        match begins(self.held.trim_start(), REASONING.0) {
            Begins::Perhaps => false,
            Begins::No => self.go_on_if(true, State::Beginning),
            Begins::Yes => {
                let blank = self.held.len() - self.held.trim_start().len();
                self.held.drain(..blank + REASONING.0.len());
                self.go_on_if(true, State::Reasoning { is_begun: false })
            }
        }
    }

    fn reasoning(&mut self, mut is_begun: bool, spoken: &mut Vec<Spoken>) -> bool {
        if !is_begun {
            let blank = self.held.len() - self.held.trim_start().len();
            self.held.drain(..blank);
            is_begun = !self.held.is_empty();
            self.state = State::Reasoning { is_begun };
        }
        let (_, end) = REASONING;
        if let Some(at) = self.held.find(end) {
            let said = self.held[..at].trim_end().len();
            self.say(said, Spoken::Reasoning, spoken);
            self.held.drain(..at - said + end.len());
            return self.go_on_if(true, State::Break);
        }
        let said = self.held.len() - to_be_held(&self.held, end);
        self.say(said, Spoken::Reasoning, spoken);
        false
    }

    fn beginning(&mut self) -> bool {
        if self.held.is_empty() {
            return false;
        }
        let state = match self.syntax {
            Some(Syntax { trigger: Some(_), .. }) => State::Text,
            Some(syntax) if self.held.starts_with(&syntax.open[..1]) => State::Head { is_first: true },
            None | Some(_) => State::Plain,
        };
        self.go_on_if(true, state)
    }

    fn text(&mut self, spoken: &mut Vec<Spoken>) -> bool {
        let Some(trigger) = self.syntax.and_then(|syntax| syntax.trigger) else {
            return self.go_on_if(true, State::Plain);
        };
        if let Some(at) = self.held.find(trigger) {
            let said = self.held[..at].trim_end().len();
            self.say(said, Spoken::Content, spoken);
            self.held.drain(..at - said);
            return self.go_on_if(true, State::Head { is_first: true });
        }
        let said = self.held.len() - to_be_held(&self.held, trigger);
        self.say(said, Spoken::Content, spoken);
        false
    }

    fn head(&mut self, is_first: bool, spoken: &mut Vec<Spoken>) -> bool {
        let Some(syntax) = self.syntax else {
            return self.go_on_if(true, State::Plain);
        };
        let lead = match (is_first, syntax.next) {
            (false, Some(next)) => next.to_owned(),
            _ => [syntax.trigger.unwrap_or_default(), syntax.open].concat(),
        };
        match begins(&self.held, &lead) {
            Begins::Perhaps => return false,
            Begins::No => return self.go_on_if(true, State::Plain),
            Begins::Yes => {}
        }
        let behind = &self.held[lead.len()..];
        let mut may_come = false;
        for tool in &self.tools {
            match calls_tool(behind, tool, syntax) {
                Ok((id, length)) => {
                    let name = tool.clone();
                    spoken.push(Spoken::Call { name, id });
                    self.held.drain(..lead.len() + length);
                    return self.go_on_if(true, State::Arguments(Nesting::default()));
                }
                Err(may) => may_come |= may,
            }
        }
        self.go_on_if(!may_come, State::Plain)
    }

    fn arguments(&mut self, mut nesting: Nesting, spoken: &mut Vec<Spoken>) -> bool {
        if self.held.is_empty() {
            return false;
        }
        let end = nesting.end(&self.held);
        self.say(end.unwrap_or(self.held.len()), Spoken::Arguments, spoken);
        self.state = match end {
            Some(_) => State::Tail,
            None => State::Arguments(nesting),
        };
        end.is_some()
    }

    fn expect(&mut self, what: fn(&Syntax) -> &'static str, then: State) -> bool {
        let expected = self.syntax.map_or("", what);
        match begins(&self.held, expected) {
            Begins::Perhaps => false,
            Begins::No => self.go_on_if(true, State::Plain),
            Begins::Yes => {
                self.held.drain(..expected.len());
                self.go_on_if(true, then)
            }
        }
    }

    fn between(&mut self) -> bool {
        if self.held.is_empty() {
            return false;
        }
        match self
            .syntax
            .and_then(|syntax| syntax.next)
            .map(|next| begins(&self.held, next))
        {
            Some(Begins::Perhaps) => false,
            Some(Begins::Yes) => self.go_on_if(true, State::Head { is_first: false }),
            Some(Begins::No) | None => self.expect(|syntax| syntax.close, State::Plain),
        }
    }
}
