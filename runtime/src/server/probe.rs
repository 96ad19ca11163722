//! `POST /probe` on the admin port: the operator asks a new pod a prompt before clients reach it, whatever keys and
//! certificates the API has. One at a time, and short: nobody serves clients this way.

use super::App;
use super::body::json_object;
use super::error::{ApiError, Code};
use super::openai::{Fields, invalid};
use super::routes;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use axum::{Json, Router};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tower_service::Service as _;

/// The largest question, in bytes.
const MAX_BYTES: usize = 64 << 10;
/// The longest answer, in tokens.
const MAX_TOKENS: usize = 256;
/// How long it is when the question does not say.
const DEFAULT_TOKENS: usize = 64;
/// When somebody else's probe will have ended.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Asks the model a prompt.
#[derive(Clone)]
pub struct Probe {
    app: Arc<App>,
    api: Router,
    turn: Arc<Semaphore>,
}

impl Probe {
    /// What asks this API.
    pub fn new(app: Arc<App>) -> Self {
        Self {
            api: routes::unguarded(Arc::clone(&app)),
            app,
            turn: Arc::new(Semaphore::new(1)),
        }
    }

    /// Answers `{"prompt": "…", "max_tokens": 64}` with `{"answer": "…"}`. A model without a chat template continues the prompt.
    pub(super) async fn ask(&self, request: Request) -> Response {
        match self.answer(request).await {
            Ok(answer) => answer,
            Err(error) => error.into_response(),
        }
    }

    async fn answer(&self, request: Request) -> Result<Response, ApiError> {
        let served = self.app.served()?;
        let _turn = self.turn.try_acquire().map_err(|_| {
            ApiError::new(Code::RateLimitExceeded, "another probe is being answered").retry_after(RETRY_AFTER)
        })?;
        let mut fields = Fields::new(json_object(request, MAX_BYTES).await?);
        let Value::String(prompt) = fields.required("prompt")? else {
            return Err(invalid("prompt", "must be a string"));
        };
        let tokens = fields.count("max_tokens", 1)?.unwrap_or(DEFAULT_TOKENS);
        if tokens > MAX_TOKENS {
            return Err(invalid("max_tokens", &format!("must be at most {MAX_TOKENS}")));
        }
        fields.finish(&[])?;
        let model = &served.name;
        let (path, pointer, question) = if served.dialect.is_some() {
            let messages = json!([{"role": "user", "content": prompt}]);
            let question = json!({"model": model, "messages": messages, "max_tokens": tokens, "temperature": 0});
            ("/v1/chat/completions", "/choices/0/message/content", question)
        } else {
            let question = json!({"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0});
            ("/v1/completions", "/choices/0/text", question)
        };
        let internal = || ApiError::new(Code::InternalError, "the prompt could not be asked");
        let request = Request::post(path)
            .header(CONTENT_TYPE, "application/json")
            .body(Body::from(question.to_string()))
            .map_err(|_| internal())?;
        let Ok(response) = self.api.clone().call(request).await;
        if !response.status().is_success() {
            return Ok(response);
        }
        let body = to_bytes(response.into_body(), usize::MAX)
            .await
            .map_err(|_| internal())?;
        let answer: Value = serde_json::from_slice(&body).map_err(|_| internal())?;
        let text = answer.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        Ok(Json(json!({"answer": text})).into_response())
    }
}
