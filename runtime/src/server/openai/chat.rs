//! `POST /v1/chat/completions`.

use super::answer::Kind;
use super::fields::{Fields, invalid};
use super::generate::answer;
use super::messages;
use super::parameters::{HARMLESS, Parameters, answer_room, is_empty};
use crate::model::{ChatInput, SpecialTokens, TemplateError};
use crate::server::body::json_object;
use crate::server::error::{ApiError, Code};
use crate::server::{App, Served};
use crate::traffic::Attempt;
use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use serde_json::Value;
use std::sync::Arc;

/// Answers a conversation.
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    Extension(attempt): Extension<Attempt>,
    request: Request,
) -> Result<Response, ApiError> {
    let served = app.served()?;
    let mut fields = Fields::new(json_object(request, app.max_body_bytes).await?);
    served.check_name(fields.required("model")?)?;
    let messages = messages::check(fields.required("messages")?)?;
    let parameters = Parameters {
        logprobs: take_logprobs(&mut fields)?,
        ..Parameters::of(&mut fields, &served)?
    };
    take_unsupported(&mut fields)?;
    fields.finish(&HARMLESS)?;
    let prompt = app
        .prepare(&served, move |served| render(served, messages, true))
        .await?;
    let room = answer_room(prompt.len(), parameters.max_tokens, served.context_length, "messages")?;
    answer(&app, &served, attempt, Kind::Chat, prompt, (parameters, room)).await
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
    fields.neutral("tools", is_empty)?;
    fields.neutral("functions", is_empty)?;
    fields.neutral("tool_choice", |value| value == "none" || value == "auto")?;
    fields.neutral("modalities", |value| *value == serde_json::json!(["text"]))
}

/// The tokens of a conversation, with or without the beginning of the next answer.
pub(super) fn render(served: &Served, messages: Value, with_answer: bool) -> Result<Vec<u32>, ApiError> {
    let Some(template) = &served.template else {
        let message = "this model has no chat template; use /v1/completions";
        return Err(ApiError::new(Code::TemplateError, message));
    };
    let input = ChatInput {
        messages,
        tools: None,
        add_generation_prompt: with_answer,
    };
    let text = template.render(&input).map_err(|error| {
        let message = match error {
            TemplateError::Raised(message) => format!("the model's chat template refuses these messages: {message}"),
            other => format!("the model's chat template failed on these messages: {other}"),
        };
        ApiError::new(Code::TemplateError, message).param("messages")
    })?;
    served.tokens(&text, SpecialTokens::Parse)
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
