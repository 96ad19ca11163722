//! `POST /tokenize` and `POST /detokenize`, as vLLM has them: what a text costs before it is sent.

use super::chat;
use super::fields::{Fields, invalid, token_ids};
use super::messages;
use super::tools::take_tools;
use crate::dialect::Conversation;
use crate::model::SpecialTokens;
use crate::server::body::json_object;
use crate::server::error::ApiError;
use crate::server::{App, Served};
use axum::Json;
use axum::extract::{Request, State};
use serde::Serialize;
use serde_json::{Value, json};
use std::sync::Arc;

/// What becomes tokens.
enum Source {
    /// A text, with or without what the model wants before every text.
    Text { text: String, with_prefix: bool },
    /// A conversation, with or without the beginning of the next answer.
    Chat(Conversation),
}

/// The tokens of a prompt.
#[derive(Serialize)]
pub(crate) struct Tokenized {
    count: usize,
    /// Tokens of prompt and answer together that the model takes.
    max_model_len: usize,
    tokens: Vec<u32>,
    /// Absent unless asked for; U+FFFD where the bytes of a token alone are no characters.
    token_strs: Option<Vec<String>>,
}

/// The tokens of a text or a conversation.
pub(crate) async fn tokenize(State(app): State<Arc<App>>, request: Request) -> Result<Json<Tokenized>, ApiError> {
    let served = app.served()?;
    let mut fields = Fields::new(json_object(request, app.max_body_bytes).await?);
    check_name(&mut fields, &served)?;
    let source = take_source(&mut fields)?;
    let wants_texts = fields.boolean("return_token_strs")?.unwrap_or(false);
    fields.finish(&[])?;
    let tokens = app.prepare(&served, move |served| tokens_of(served, source)).await?;
    Ok(Json(Tokenized {
        count: tokens.len(),
        max_model_len: served.context_length,
        token_strs: wants_texts.then(|| tokens.iter().map(|token| text_of(&served, &[*token])).collect()),
        tokens,
    }))
}

/// The text of tokens, control tokens among them.
pub(crate) async fn detokenize(State(app): State<Arc<App>>, request: Request) -> Result<Json<Value>, ApiError> {
    let served = app.served()?;
    let mut fields = Fields::new(json_object(request, app.max_body_bytes).await?);
    check_name(&mut fields, &served)?;
    let tokens = fields.required("tokens")?;
    fields.finish(&[])?;
    let tokens = take_tokens(&tokens)?;
    served.check_tokens(&tokens, "tokens")?;
    Ok(Json(json!({"prompt": text_of(&served, &tokens)})))
}

/// Here the model may be left out: there is one.
fn check_name(fields: &mut Fields, served: &Served) -> Result<(), ApiError> {
    if let Some(name) = fields.take("model") {
        served.check_name(name)?;
    }
    Ok(())
}

fn take_source(fields: &mut Fields) -> Result<Source, ApiError> {
    let text = fields.string("prompt")?;
    let messages = fields.take("messages");
    match (text, messages) {
        (Some(text), None) => Ok(Source::Text {
            text,
            with_prefix: fields.boolean("add_special_tokens")?.unwrap_or(true),
        }),
        (None, Some(messages)) => Ok(Source::Chat(Conversation {
            messages: messages::check(messages)?,
            tools: take_tools(fields)?.told,
            with_answer: fields.boolean("add_generation_prompt")?.unwrap_or(true),
            variables: chat::take_variables(fields)?,
        })),
        (Some(_), Some(_)) => Err(invalid("messages", "cannot be there together with `prompt`")),
        (None, None) => Err(invalid("prompt", "or `messages` is missing")),
    }
}

fn tokens_of(served: &Served, source: Source) -> Result<Vec<u32>, ApiError> {
    match source {
        Source::Text {
            text,
            with_prefix: true,
        } => served.tokens(&text, SpecialTokens::Parse),
        Source::Text { text, .. } => served.encode(&text, SpecialTokens::Parse),
        Source::Chat(conversation) => chat::render(served, conversation).map(|prompt| prompt.tokens),
    }
}

fn take_tokens(tokens: &Value) -> Result<Vec<u32>, ApiError> {
    let tokens = tokens.as_array().and_then(|tokens| token_ids(tokens));
    tokens.ok_or_else(|| invalid("tokens", "must be a list of token ids"))
}

fn text_of(served: &Served, tokens: &[u32]) -> String {
    let bytes = tokens.iter().filter_map(|token| served.tokenizer.token_bytes(*token));
    String::from_utf8_lossy(&bytes.collect::<Vec<_>>().concat()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(value: Value) -> Fields {
        let Value::Object(object) = value else { panic!() };
        Fields::new(object)
    }

    #[test]
    fn source_is_a_text_or_a_conversation() {
        let text = take_source(&mut fields(json!({"prompt": "a", "add_special_tokens": false}))).unwrap();
        assert!(matches!(text, Source::Text { text, with_prefix: false } if text == "a"));
        let messages = json!([{"role": "user", "content": "a"}]);
        let chat = take_source(&mut fields(json!({"messages": messages}))).unwrap();
        assert!(matches!(chat, Source::Chat(Conversation { with_answer: true, .. })));
        for bad in [
            json!({}),
            json!({"prompt": 1}),
            json!({"prompt": "a", "messages": messages}),
            json!({"messages": []}),
        ] {
            assert!(take_source(&mut fields(bad.clone())).is_err(), "{bad}");
        }
    }

    #[test]
    fn tokens_are_a_list_of_ids() {
        assert_eq!(take_tokens(&json!([0, 9])).unwrap(), [0, 9]);
        assert!(take_tokens(&json!([])).unwrap().is_empty());
        for bad in [
            json!([-1]),
            json!(["1"]),
            json!(1),
            json!([1.5]),
            json!([4_294_967_296_u64]),
        ] {
            assert!(take_tokens(&bad).is_err(), "{bad}");
        }
    }
}
