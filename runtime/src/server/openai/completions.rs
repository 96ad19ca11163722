//! `POST /v1/completions`.

use super::answer::Kind;
use super::fields::{Fields, invalid, token_ids};
use super::generate::{Asked, Caller, answer};
use super::parameters::{HARMLESS, Parameters, answer_room, is_empty};
use super::traced::follow;
use crate::model::SpecialTokens;
use crate::server::body::json_object;
use crate::server::error::ApiError;
use crate::server::{App, Record, Served};
use crate::traffic::Attempt;
use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use serde_json::Value;
use std::sync::Arc;

/// How long an answer is when the request does not say: what OpenAI documents for this API, and not for chat.
const DEFAULT_MAX_TOKENS: usize = 16;

/// What is to be continued.
#[derive(Debug, PartialEq)]
enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

/// Continues a text.
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
    let prompt = parse_prompt(fields.required("prompt")?)?;
    let parameters = Parameters {
        logprobs: take_logprobs(&mut fields)?,
        ..Parameters::of(&mut fields, &served)?
    };
    take_unsupported(&mut fields, parameters.answers.get())?;
    fields.finish(&HARMLESS)?;
    let prompt = app.prepare(&served, move |served| tokens(served, prompt)).await?;
    let left = served.context_length.saturating_sub(prompt.len());
    let wanted = parameters.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS.min(left.max(1)));
    let room = answer_room(prompt.len(), Some(wanted), served.context_length, "prompt")?;
    let asked = Asked {
        prompt,
        parameters,
        room,
        reading: None,
        shown: vec![],
    };
    answer(&app, &served, Caller { attempt, record }, (Kind::Text, asked)).await
}

/// Fields of completions that this server does not have.
fn take_unsupported(fields: &mut Fields, answers: usize) -> Result<(), ApiError> {
    // The best of as many as are wanted are all of them.
    fields.neutral("best_of", |value| value == answers)?;
    fields.neutral("echo", |value| value == false)?;
    fields.neutral("suffix", is_empty)
}

/// More of the likeliest tokens cannot be asked for, as in OpenAI's API.
const MAX_LOGPROBS: usize = 5;

/// Whether it is told how likely tokens were, and with how many of the likeliest ones.
fn take_logprobs(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    match fields.count("logprobs", 0)? {
        Some(count) if count > MAX_LOGPROBS => Err(invalid("logprobs", &format!("must be at most {MAX_LOGPROBS}"))),
        wanted => Ok(wanted),
    }
}

fn parse_prompt(prompt: Value) -> Result<Prompt, ApiError> {
    let wrong = || {
        invalid(
            "prompt",
            "must be one text or one list of tokens, which may be the only item of a list",
        )
    };
    match prompt {
        Value::String(text) => Ok(Prompt::Text(text)),
        Value::Array(items) if items.len() == 1 && !items[0].is_number() => {
            items.into_iter().next().map_or_else(|| Err(wrong()), parse_prompt)
        }
        Value::Array(items) if !items.is_empty() => token_ids(&items).map(Prompt::Tokens).ok_or_else(wrong),
        _ => Err(wrong()),
    }
}

fn tokens(served: &Served, prompt: Prompt) -> Result<Vec<u32>, ApiError> {
    match prompt {
        Prompt::Text(text) => served.tokens(&text, SpecialTokens::Parse),
        Prompt::Tokens(ids) => served.check_tokens(&ids, "prompt").map(|()| ids),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn prompt_is_one_text_or_one_list_of_tokens() {
        for text in [json!("a"), json!(["a"])] {
            assert_eq!(parse_prompt(text).unwrap(), Prompt::Text("a".into()));
        }
        for ids in [json!([1, 2]), json!([[1, 2]])] {
            assert_eq!(parse_prompt(ids).unwrap(), Prompt::Tokens(vec![1, 2]));
        }
        assert_eq!(parse_prompt(json!([7])).unwrap(), Prompt::Tokens(vec![7]));
        for wrong in [
            json!(["a", "b"]),
            json!([]),
            json!([[]]),
            json!(5),
            json!([-1]),
            json!([[1], [2]]),
            json!({}),
        ] {
            assert!(parse_prompt(wrong).is_err());
        }
    }
}
