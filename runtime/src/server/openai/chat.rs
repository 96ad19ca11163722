//! `POST /v1/chat/completions`.

use super::answer::Kind;
use super::fields::Fields;
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
    let parameters = Parameters::of(&mut fields, &served)?;
    take_unsupported(&mut fields)?;
    fields.finish(&HARMLESS)?;
    let prompt = app.prepare(&served, move |served| render(served, messages)).await?;
    let room = answer_room(prompt.len(), parameters.max_tokens, served.context_length, "messages")?;
    answer(&app, &served, attempt, Kind::Chat, prompt, (parameters, room)).await
}

/// Fields of chats that this server does not have.
fn take_unsupported(fields: &mut Fields) -> Result<(), ApiError> {
    fields.neutral("logprobs", |value| value == false)?;
    fields.neutral("top_logprobs", |value| value == 0)?;
    fields.neutral("tools", is_empty)?;
    fields.neutral("functions", is_empty)?;
    fields.neutral("tool_choice", |value| value == "none" || value == "auto")?;
    fields.neutral("response_format", |value| value["type"] == "text")?;
    fields.neutral("modalities", |value| *value == serde_json::json!(["text"]))
}

fn render(served: &Served, messages: Value) -> Result<Vec<u32>, ApiError> {
    let Some(template) = &served.template else {
        let message = "this model has no chat template; use /v1/completions";
        return Err(ApiError::new(Code::TemplateError, message));
    };
    let input = ChatInput {
        messages,
        tools: None,
        add_generation_prompt: true,
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
