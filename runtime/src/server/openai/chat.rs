//! `POST /v1/chat/completions`.

use super::answer::Kind;
use super::fields::{Fields, invalid};
use super::generate::{Asked, Caller, answer};
use super::messages;
use super::parameters::{HARMLESS, Parameters, answer_room, is_empty};
use super::telling::Reading;
use super::tools::{ToolUse, take_tools};
use super::traced::follow;
use crate::dialect::{Conversation, Dialect, DialectError, Wanted};
use crate::model::{SpecialTokens, TemplateError};
use crate::server::body::json_object;
use crate::server::error::{ApiError, Code};
use crate::server::{App, Record, Served};
use crate::traffic::Attempt;
use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use serde_json::{Map, Value};
use std::sync::Arc;

/// Answers a conversation.
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    Extension(attempt): Extension<Attempt>,
    Extension(record): Extension<Arc<Record>>,
    request: Request,
) -> Result<Response, ApiError> {
    let served = app.served()?;
    let mut fields = Fields::new(json_object(request, app.max_body_bytes).await?);
    let model = served.check_name(fields.required("model")?)?;
    follow(&record, &model, &fields);
    let messages = messages::check(fields.required("messages")?)?;
    let tools = take_tools(&mut fields)?;
    let parameters = Parameters {
        logprobs: take_logprobs(&mut fields)?,
        ..Parameters::of(&mut fields, &served)?
    };
    let variables = take_variables(&mut fields)?;
    take_unsupported(&mut fields)?;
    fields.finish(&HARMLESS)?;
    let asked = ask(&app, &served, messages, tools, (parameters, variables)).await?;
    answer(&app, &served, Caller { attempt, record }, (Kind::Chat, asked)).await
}

/// What is asked by a conversation: its prompt, and how the answer is held to what is wanted and read.
pub(super) async fn ask(
    app: &App,
    served: &Arc<Served>,
    messages: Vec<Value>,
    tools: ToolUse,
    (mut parameters, variables): (Parameters, Map<String, Value>),
) -> Result<Asked, ApiError> {
    let ToolUse {
        told,
        callable,
        choice,
        parallel,
    } = tools;
    let conversation = Conversation {
        messages,
        tools: told,
        with_answer: true,
        variables,
    };
    let rendered = app.prepare(served, move |served| render(served, conversation)).await?;
    let Prompt { tokens, is_reasoning } = rendered;
    let room = answer_room(tokens.len(), parameters.max_tokens, served.context_length, "messages")?;
    let (mut reading, mut shown) = (None, vec![]);
    let has_more = |dialect: &&Dialect| dialect.reasons() || !callable.is_empty();
    if let Some(dialect) = served.dialect.as_ref().filter(has_more) {
        parameters.grammar = dialect.grammar(Wanted {
            tools: &callable,
            choice,
            parallel,
            content: parameters.grammar.take(),
            is_reasoning,
        });
        shown = dialect.controls(!callable.is_empty());
        let names = callable.into_iter().map(|tool| tool.name).collect();
        reading = Some(Reading {
            splitter: dialect.splitter(names, is_reasoning),
            has_short_ids: dialect.has_short_ids(),
        });
    }
    Ok(Asked {
        prompt: tokens,
        parameters,
        room,
        reading,
        shown,
    })
}

/// Takes the variables that a request sets for the model's template, as vLLM has them.
pub(super) fn take_variables(fields: &mut Fields) -> Result<Map<String, Value>, ApiError> {
    match fields.take("chat_template_kwargs") {
        None => Ok(Map::new()),
        Some(Value::Object(variables)) => Ok(variables),
        Some(_) => Err(invalid("chat_template_kwargs", "must be an object")),
    }
}

/// More of the likeliest tokens cannot be asked for, as in OpenAI's API.
const MAX_TOP_LOGPROBS: usize = 20;

/// Whether it is told how likely tokens were, and with how many of the likeliest ones.
fn take_logprobs(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let wanted = fields.boolean("logprobs")?.unwrap_or(false);
    let top = fields.count("top_logprobs", 0)?;
    if top.is_some_and(|top| top > MAX_TOP_LOGPROBS) {
        return Err(invalid("top_logprobs", &format!("must be at most {MAX_TOP_LOGPROBS}")));
    }
    if !wanted && top.is_some_and(|top| top > 0) {
        return Err(invalid("top_logprobs", "is only allowed with `logprobs: true`"));
    }
    Ok(wanted.then_some(top.unwrap_or(0)))
}

/// Fields of chats that this server does not have.
fn take_unsupported(fields: &mut Fields) -> Result<(), ApiError> {
    fields.neutral("functions", is_empty)?;
    fields.neutral("function_call", |value| value == "none" || value == "auto")?;
    fields.neutral("modalities", |value| *value == serde_json::json!(["text"]))
}

/// A conversation as the model reads it.
pub(super) struct Prompt {
    pub(super) tokens: Vec<u32>,
    /// Whether the answer begins inside the reasoning.
    is_reasoning: bool,
}

/// The tokens of a conversation.
pub(super) fn render(served: &Served, conversation: Conversation) -> Result<Prompt, ApiError> {
    let Some(dialect) = &served.dialect else {
        let message = "this model has no chat template; use /v1/completions";
        return Err(ApiError::new(Code::TemplateError, message));
    };
    let rendered = dialect.render(conversation).map_err(|error| match error {
        DialectError::Foreign => ApiError::new(Code::UnsupportedParameter, error.to_string()).param("tools"),
        DialectError::Template(error) => {
            let message = match error {
                TemplateError::Raised(message) => {
                    format!("the model's chat template refuses these messages: {message}")
                }
                other => format!("the model's chat template failed on these messages: {other}"),
            };
            ApiError::new(Code::TemplateError, message).param("messages")
        }
    })?;
    Ok(Prompt {
        tokens: served.tokens(&rendered.text, SpecialTokens::Parse)?,
        is_reasoning: rendered.is_reasoning,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn likelihoods_are_told_when_they_are_asked_for() {
        let take = |value: Value| {
            let Value::Object(object) = value else { panic!() };
            take_logprobs(&mut Fields::new(object))
        };
        assert_eq!(take(json!({})).unwrap(), None);
        assert_eq!(take(json!({"logprobs": false, "top_logprobs": 0})).unwrap(), None);
        assert_eq!(take(json!({"logprobs": true})).unwrap(), Some(0));
        assert_eq!(take(json!({"logprobs": true, "top_logprobs": 20})).unwrap(), Some(20));
        for bad in [
            json!({"logprobs": true, "top_logprobs": 21}),
            json!({"logprobs": true, "top_logprobs": -1}),
            json!({"top_logprobs": 1}),
            json!({"logprobs": 1}),
        ] {
            assert!(take(bad.clone()).is_err(), "{bad}");
        }
    }
}
