//! Chat templates: from a list of messages to the text that the model was trained on.
//!
//! Templates are programs that come with a model. They run in a sandbox without input or output, with a budget that
//! pays for every instruction and for every 64 bytes that they create, so that neither a loop nor a string that
//! doubles itself can take the process down. They behave as in the library that models are published for: Python's
//! methods on values, `raise_exception`, `strftime_now`, `tojson`, blocks that swallow their line.

mod json;
mod methods;

use crate::deep_stack;
use escadre_verify::{Digest, Reason, Refusal};
use jiff::ZonedDateTime;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Value, context};
use std::error::Error as _;
use std::{fmt, io};

/// Work of one rendering: instructions, and units of 64 bytes of data. Bounds memory to 128 MiB.
const FUEL: u64 = 2 << 20;
/// Bytes of rendered text.
const MAX_OUTPUT: usize = 16 << 20;
/// Bytes of a template. The longest published ones have about 20 KiB.
const MAX_TEMPLATE: usize = 128 << 10;
/// The engine calls itself for expressions and values inside each other, of which a template can make as many as its text
/// and its work allow.
const STACK: usize = 512 << 20;
const NAME: &str = "chat";

/// What a chat template is rendered with.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatInput {
    /// A list of objects with `role` and `content`, as the client sent them.
    pub messages: serde_json::Value,
    /// A list of tool definitions.
    pub tools: Option<serde_json::Value>,
    /// Whether the text ends with the opening of the assistant's answer.
    pub add_generation_prompt: bool,
    /// Further variables, which cannot replace the others.
    pub variables: serde_json::Map<String, serde_json::Value>,
}

/// Why a conversation could not be rendered.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The template itself refused the conversation: the client's mistake.
    #[error("the chat template refused the conversation: {0}")]
    Raised(String),
    /// The work or the text grew over the limit.
    #[error("rendering the conversation takes more work or text than is allowed")]
    Limit,
    /// Anything else, such as an operation on a value of the wrong type.
    #[error("the chat template failed: {0}")]
    Other(String),
}

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    begin: String,
    end: String,
    digest: Digest,
    source: String,
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ChatTemplate")
            .field("digest", &self.digest)
            .finish_non_exhaustive()
    }
}

impl ChatTemplate {
    /// Compiles a template and renders sample conversations. `begin` and `end` are the texts of the model's begin
    /// and end tokens.
    ///
    /// # Errors
    /// `TemplateRefused` when it does not compile, exceeds its limits, or renders none of the samples.
    pub fn new(file: &str, text: &str, begin: String, end: String) -> Result<Self, Refusal> {
        Self::with_clock(file, text, (begin, end), ZonedDateTime::now)
    }

    fn with_clock(
        file: &str,
        text: &str,
        (begin, end): (String, String),
        now: fn() -> ZonedDateTime,
    ) -> Result<Self, Refusal> {
        let refuse = |message: String| Refusal::new(Reason::TemplateRefused, message).in_file(file);
        if text.len() > MAX_TEMPLATE {
            return Err(refuse("the chat template is too long".into())
                .values(format!("at most {MAX_TEMPLATE} bytes"), text.len()));
        }
        let environment = deep_stack::run(STACK, || environment(text, now).map_err(|error| error.to_string()))
            .unwrap_or_else(|error| Err(error.to_string()))
            .map_err(|error| refuse(format!("the chat template: {error}")))?;
        let template = Self {
            environment,
            begin,
            end,
            digest: Digest::of(text.as_bytes()),
            source: text.to_owned(),
        };
        template.probe().map_err(|error| refuse(error.to_string()))?;
        Ok(template)
    }

    /// SHA-256 of the template's text.
    pub fn digest(&self) -> String {
        self.digest.to_string()
    }

    /// Whether this is somewhere in the template's text.
    pub fn mentions(&self, text: &str) -> bool {
        self.source.contains(text)
    }

    /// Renders a conversation.
    pub fn render(&self, input: &ChatInput) -> Result<String, TemplateError> {
        deep_stack::run(STACK, || self.render_here(input))
            .unwrap_or_else(|error| Err(TemplateError::Other(error.to_string())))
    }

    fn render_here(&self, input: &ChatInput) -> Result<String, TemplateError> {
        let variables = Value::from(Serde(&input.variables));
        let context = context! {
            messages => Value::from(Serde(&input.messages)),
            tools => input.tools.as_ref().map(|tools| Value::from(Serde(tools))),
            documents => Value::from(()),
            add_generation_prompt => input.add_generation_prompt,
            bos_token => &self.begin,
            eos_token => &self.end,
            ..variables
        };
        let mut output = Bounded::default();
        let template = self.environment.get_template(NAME).map_err(|error| classify(&error))?;
        let rendered = template.render_captured_to(context, &mut output).map(drop);
        if output.is_full {
            return Err(TemplateError::Limit);
        }
        rendered.map_err(|error| classify(&error))?;
        String::from_utf8(output.bytes).map_err(|error| TemplateError::Other(error.to_string()))
    }

    /// A template may refuse a conversation, but it must render one of the simplest, and stay within its limits.
    fn probe(&self) -> Result<(), TemplateError> {
        let system = serde_json::json!({"role": "system", "content": "Be brief."});
        let user = serde_json::json!({"role": "user", "content": "Hello"});
        let assistant = serde_json::json!({"role": "assistant", "content": "Hi"});
        let conversations = [vec![user.clone()], vec![system, user.clone(), assistant, user]];
        let mut first_error = None;
        let mut works = false;
        for messages in conversations {
            let input = ChatInput {
                messages: serde_json::Value::Array(messages),
                tools: None,
                add_generation_prompt: true,
                variables: serde_json::Map::new(),
            };
            match self.render(&input) {
                Ok(_) => works = true,
                Err(TemplateError::Limit) => return Err(TemplateError::Limit),
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        match first_error {
            Some(error) if !works => Err(error),
            _ => Ok(()),
        }
    }
}

fn environment(text: &str, now: fn() -> ZonedDateTime) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
    environment.set_syntax(syntax);
    environment.set_fuel(Some(FUEL));
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(methods::call);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", move |format: &str| strftime(format, &now()));
    environment.add_filter("tojson", json::tojson);
    environment.add_template_owned(NAME, text.to_owned())?;
    Ok(environment)
}

/// What `raise_exception` was called with; found again in the chain of sources.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct RaisedByTemplate(String);

fn raise_exception(message: &Value) -> Result<Value, Error> {
    // The text of a list that holds itself twice, again and again, is endless.
    let message = match message.kind() {
        ValueKind::Seq | ValueKind::Map | ValueKind::Iterable | ValueKind::Plain => message.kind().to_string(),
        _ => message.to_string(),
    };
    let error = Error::new(ErrorKind::InvalidOperation, "raise_exception was called");
    Err(error.with_source(RaisedByTemplate(message)))
}

fn strftime(format: &str, now: &ZonedDateTime) -> Result<String, Error> {
    jiff::fmt::strtime::format(format, now)
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {error}")))
}

fn classify(error: &Error) -> TemplateError {
    if error.kind() == ErrorKind::OutOfFuel {
        return TemplateError::Limit;
    }
    let mut source = error.source();
    while let Some(inner) = source {
        if let Some(raised) = inner.downcast_ref::<RaisedByTemplate>() {
            return TemplateError::Raised(raised.0.clone());
        }
        if let Some(inner) = inner.downcast_ref::<Error>()
            && inner.kind() == ErrorKind::OutOfFuel
        {
            return TemplateError::Limit;
        }
        source = inner.source();
    }
    TemplateError::Other(error.to_string())
}

/// Text that stops growing at the limit.
#[derive(Default)]
struct Bounded {
    bytes: Vec<u8>,
    is_full: bool,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > MAX_OUTPUT {
            self.is_full = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
