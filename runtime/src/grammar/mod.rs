//! Answers that follow a grammar: which tokens may come next. The grammars themselves are `llguidance`'s.

mod tokens;

use crate::deep_stack;
use crate::model::Tokenizer;
use llguidance::api::TopLevelGrammar;
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{InferenceCapabilities, SimpleVob};
use llguidance::{JsonCompileOptions, Matcher, ParserFactory};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::fmt::{self, Debug, Formatter};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// States that the lexer of one grammar may have, each 1 to 2 KiB: what a hostile pattern costs at most.
const MAX_LEXER_STATES: usize = 20_000;
/// Bytes of a schema at most.
const MAX_SCHEMA_BYTES: usize = 64 * 1024;
/// The compiler follows references by calling itself, so that a long chain of them needs a deep stack. Memory is given to it
/// only as far as it is used.
const COMPILER_STACK: usize = 256 << 20;
/// Grammars that are kept compiled.
const KEPT: usize = 64;
/// A grammar whose source is longer than this is compiled each time.
const MAX_KEPT_BYTES: usize = 64 * 1024;

/// What an answer has to be.
#[derive(Debug, Clone, PartialEq)]
pub enum Grammar {
    /// Any JSON object.
    JsonObject,
    /// JSON that is valid by this schema, an object or a boolean.
    JsonSchema(Value),
    /// A text that a regular expression matches as a whole.
    Regex(String),
    /// One of these texts, of which there is at least one.
    Choice(Vec<String>),
    /// Several of them, put together.
    Composed {
        /// Rules in the variant of Lark's notation that llguidance reads; `start` is the first. `@name` stands for a part.
        lark: String,
        /// The parts with their names; none of them is composed itself.
        parts: Vec<(String, Grammar)>,
    },
}

impl Grammar {
    fn compile(&self) -> TopLevelGrammar {
        match self {
            Self::JsonObject => json_grammar(json!({"type": "object"})),
            Self::JsonSchema(schema) => json_grammar(schema.clone()),
            Self::Regex(pattern) => TopLevelGrammar::from_regex(pattern),
            Self::Choice(choices) => {
                let quoted = choices.iter().map(|choice| Value::from(choice.as_str()).to_string());
                let alternatives = quoted.collect::<Vec<_>>().join(" | ");
                TopLevelGrammar::from_lark(format!("start: {alternatives}"))
            }
            Self::Composed { lark, parts } => {
                let mut whole = TopLevelGrammar::from_lark(lark.clone());
                for (name, part) in parts {
                    whole
                        .grammars
                        .extend(part.compile().grammars.into_iter().map(|mut grammar| {
                            grammar.name = Some(name.clone());
                            grammar
                        }));
                }
                whole
            }
        }
    }

    /// Bytes of the schemas in it.
    fn schema_bytes(&self) -> usize {
        match self {
            Self::JsonSchema(schema) => schema.to_string().len(),
            Self::Composed { parts, .. } => parts.iter().map(|(_, part)| part.schema_bytes()).sum(),
            Self::JsonObject | Self::Regex(_) | Self::Choice(_) => 0,
        }
    }

    /// What tells grammars apart.
    fn key(&self) -> String {
        match self {
            Self::JsonObject => "object".to_owned(),
            Self::JsonSchema(schema) => format!("schema {schema}"),
            Self::Regex(pattern) => format!("regex {pattern}"),
            Self::Choice(choices) => format!("choice {choices:?}"),
            Self::Composed { lark, parts } => {
                let parts = parts.iter().map(|(name, part)| format!("@{name} {}", part.key()));
                format!("composed {lark}{}", parts.collect::<Vec<_>>().join("\n"))
            }
        }
    }
}

fn json_grammar(schema: Value) -> TopLevelGrammar {
    // `true` and `{}` take anything; only an object can carry the options.
    let mut schema = if schema == true { json!({}) } else { schema };
    if schema.is_object() {
        // One way to write spaces: a small model that may write any number of them does not always come to an end.
        let options = JsonCompileOptions {
            whitespace_flexible: false,
            item_separator: ", ".to_owned(),
            key_separator: ": ".to_owned(),
            ..JsonCompileOptions::default()
        };
        options.apply_to(&mut schema);
    }
    TopLevelGrammar::from_json_schema(schema)
}

/// Why a grammar cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// It is wrong, says something that is not supported, or is too large.
    #[error("{0}")]
    Refused(String),
    /// It came to a place where nothing can follow and nothing may end.
    #[error("it allows no token where it came to")]
    Stuck,
    /// It turned out to be too complex while an answer followed it.
    #[error("the grammar became too complex to be followed: {0}")]
    TooComplex(String),
}

/// Compiles grammars for one model's tokens.
pub struct Grammars {
    tokenizer: Arc<Tokenizer>,
    end_tokens: Arc<[u32]>,
    /// Made when the first grammar comes: it takes some tenths of a second and some megabytes.
    factory: OnceLock<Result<ParserFactory, GrammarError>>,
    /// The one that was used last comes last.
    kept: Mutex<VecDeque<(String, Matcher)>>,
}

impl Grammars {
    /// For a model that ends an answer with one of these tokens.
    pub fn new(tokenizer: Arc<Tokenizer>, end_tokens: Vec<u32>) -> Self {
        Self {
            tokenizer,
            end_tokens: end_tokens.into(),
            factory: OnceLock::new(),
            kept: Mutex::default(),
        }
    }

    /// What holds one answer to a grammar. Takes some milliseconds or more, but not without bound.
    ///
    /// # Errors
    /// When the grammar is refused.
    pub fn constraint(&self, grammar: &Grammar) -> Result<Constraint, GrammarError> {
        let key = grammar.key();
        match self.find(&key) {
            Some(matcher) => Ok(self.hold(matcher)),
            None => self.compile(grammar, key),
        }
    }

    fn hold(&self, matcher: Matcher) -> Constraint {
        Constraint {
            matcher,
            end_tokens: Arc::clone(&self.end_tokens),
        }
    }

    fn find(&self, key: &str) -> Option<Matcher> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let at = kept.iter().position(|(other, _)| other == key)?;
        let found = kept.remove(at)?;
        let matcher = found.1.deep_clone();
        kept.push_back(found);
        Some(matcher)
    }

    fn compile(&self, grammar: &Grammar, key: String) -> Result<Constraint, GrammarError> {
        let factory = self
            .factory
            .get_or_init(|| self.factory())
            .as_ref()
            .map_err(Clone::clone)?;
        if grammar.schema_bytes() > MAX_SCHEMA_BYTES {
            let message = format!("schemas may have at most {MAX_SCHEMA_BYTES} bytes together");
            return Err(GrammarError::Refused(message));
        }
        let matcher = deep_stack::run(COMPILER_STACK, || {
            Matcher::new(factory.create_parser(grammar.compile()))
        })
        .map_err(|error| GrammarError::Refused(format!("it could not be compiled: {error}")))?;
        if let Some(problem) = matcher.get_error() {
            return Err(GrammarError::Refused(problem));
        }
        // One that cannot even begin is refused here, and not in the middle of a step.
        self.hold(matcher.deep_clone()).mask()?;
        if key.len() <= MAX_KEPT_BYTES {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.push_back((key, matcher.deep_clone()));
            if kept.len() > KEPT {
                kept.pop_front();
            }
        }
        Ok(self.hold(matcher))
    }

    fn factory(&self) -> Result<ParserFactory, GrammarError> {
        let unusable =
            |error: &dyn fmt::Display| GrammarError::Refused(format!("this model's tokens cannot follow one: {error}"));
        let end = self
            .end_tokens
            .first()
            .ok_or_else(|| unusable(&"none of them ends an answer"))?;
        let tokens = tokens::environment(&self.tokenizer, *end);
        let slices = SlicedBiasComputer::general_slices();
        let mut factory =
            ParserFactory::new(&tokens, InferenceCapabilities::default(), &slices).map_err(|error| unusable(&error))?;
        factory.quiet();
        let limits = factory.limits_mut();
        limits.max_lexer_states = MAX_LEXER_STATES;
        limits.verbose_errors = false;
        Ok(factory)
    }
}

/// Holds one answer to a grammar.
pub struct Constraint {
    matcher: Matcher,
    end_tokens: Arc<[u32]>,
}

impl Constraint {
    /// Which tokens may come next.
    ///
    /// # Errors
    /// When it takes more work than is allowed.
    pub fn mask(&mut self) -> Result<Mask, GrammarError> {
        let mut allowed = self.matcher.compute_mask_or_eos().map_err(too_complex)?;
        // The parser knows one end token; a model may have several.
        if let Some((first, others)) = self.end_tokens.split_first() {
            let may_end = allowed.len() > *first as usize && allowed.is_allowed(*first);
            let known = allowed.len();
            for other in others
                .iter()
                .map(|other| *other as usize)
                .filter(|other| *other < known)
            {
                allowed.set(other, may_end);
            }
        }
        if allowed.is_zero() {
            return Err(GrammarError::Stuck);
        }
        Ok(Mask(allowed))
    }

    /// Takes a token of the answer, one that the last mask allows.
    ///
    /// # Errors
    /// When it is not allowed, or takes more work than is.
    pub fn accept(&mut self, token: u32) -> Result<(), GrammarError> {
        if self.end_tokens.contains(&token) {
            return Ok(());
        }
        self.matcher.consume_token(token).map_err(too_complex)
    }

    /// Whether nothing can follow.
    pub fn is_complete(&self) -> bool {
        self.matcher.is_stopped()
    }
}

/// One for another answer, as far as this one.
impl Clone for Constraint {
    fn clone(&self) -> Self {
        Self {
            matcher: self.matcher.deep_clone(),
            end_tokens: Arc::clone(&self.end_tokens),
        }
    }
}

impl Debug for Constraint {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Constraint").finish_non_exhaustive()
    }
}

fn too_complex(error: impl fmt::Display) -> GrammarError {
    GrammarError::TooComplex(error.to_string())
}

/// Which tokens may come next.
#[derive(Debug, Clone)]
pub struct Mask(SimpleVob);

impl Mask {
    /// Whether a token may. Ids outside the vocabulary may not.
    pub fn allows(&self, token: u32) -> bool {
        (token as usize) < self.0.len() && self.0.is_allowed(token)
    }
}

#[cfg(test)]
pub(crate) mod tests;
