//! Every error of the API, as OpenAI's clients expect it.

use axum::Json;
use axum::http::header::{CONNECTION, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use std::borrow::Cow;
use std::time::Duration;

/// What is wrong, in one word for programs. The status and the type follow from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Code {
    /// The body is not JSON.
    InvalidJson,
    /// A field is missing, of the wrong type, or out of its range.
    InvalidValue,
    /// A field that nobody knows.
    UnknownParameter,
    /// A field that would change the answer in a way that this server cannot.
    UnsupportedParameter,
    /// The model has another name.
    ModelNotFound,
    /// Prompt and answer are longer than the context.
    ContextLengthExceeded,
    /// What the answer has to be cannot be followed: it is wrong, unsupported or too complex.
    InvalidGrammar,
    /// The chat template does not take these messages.
    TemplateError,
    /// No such path.
    NotFound,
    /// The path takes another method.
    MethodNotAllowed,
    /// The body is larger than allowed.
    RequestTooLarge,
    /// The body is not declared as JSON.
    UnsupportedMediaType,
    /// The body came too slowly.
    RequestTimeout,
    /// There is no API key, or a wrong one.
    InvalidApiKey,
    /// The client has used up what it may use in a minute.
    RateLimitExceeded,
    /// The queue is full.
    QueueFull,
    /// The model is not loaded yet.
    ModelLoading,
    /// The process is ending.
    ShuttingDown,
    /// Our own fault.
    InternalError,
}

impl Code {
    /// The HTTP status and OpenAI's name for the family of errors.
    fn status(self) -> (StatusCode, &'static str) {
        const INVALID: &str = "invalid_request_error";
        const SERVER: &str = "server_error";
        match self {
            Self::InvalidJson
            | Self::InvalidValue
            | Self::UnknownParameter
            | Self::UnsupportedParameter
            | Self::ContextLengthExceeded
            | Self::InvalidGrammar
            | Self::TemplateError => (StatusCode::BAD_REQUEST, INVALID),
            Self::ModelNotFound | Self::NotFound => (StatusCode::NOT_FOUND, INVALID),
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, INVALID),
            Self::RequestTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, INVALID),
            Self::UnsupportedMediaType => (StatusCode::UNSUPPORTED_MEDIA_TYPE, INVALID),
            Self::RequestTimeout => (StatusCode::REQUEST_TIMEOUT, INVALID),
            Self::InvalidApiKey => (StatusCode::UNAUTHORIZED, INVALID),
            Self::QueueFull | Self::RateLimitExceeded => (StatusCode::TOO_MANY_REQUESTS, "rate_limit_error"),
            Self::ModelLoading | Self::ShuttingDown => (StatusCode::SERVICE_UNAVAILABLE, SERVER),
            Self::InternalError => (StatusCode::INTERNAL_SERVER_ERROR, SERVER),
        }
    }

    /// Whether what is left of the body was not read, so that the connection cannot be used again.
    fn ends_connection(self) -> bool {
        matches!(self, Self::RequestTooLarge | Self::RequestTimeout)
    }
}

/// An error of the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    code: Code,
    message: String,
    param: Option<Cow<'static, str>>,
    retry_after: Option<Duration>,
}

/// The body: `{"error": {…}}`.
#[derive(Serialize)]
pub(crate) struct ErrorBody<'a> {
    error: ErrorObject<'a>,
}

#[derive(Serialize)]
struct ErrorObject<'a> {
    message: &'a str,
    r#type: &'static str,
    param: Option<&'a str>,
    code: &'static str,
}

impl ApiError {
    /// An error; the message says what is wrong and what to do.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            param: None,
            retry_after: None,
        }
    }

    /// Whether it is our own fault.
    pub(crate) fn is_ours(&self) -> bool {
        self.code.status().0.is_server_error()
    }

    /// What is wrong.
    pub(crate) fn code(&self) -> Code {
        self.code
    }

    /// Names the field of the request.
    #[must_use]
    pub fn param(mut self, param: impl Into<Cow<'static, str>>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// Calls a field by another name, wherever it occurs.
    #[must_use]
    pub(crate) fn renamed(self, from: &str, to: &str) -> Self {
        Self {
            message: self.message.replace(from, to),
            param: self.param.map(|param| Cow::Owned(param.replace(from, to))),
            ..self
        }
    }

    /// Says when another try is worth it.
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// The body, for an answer or an event of a stream.
    pub(crate) fn body(&self) -> ErrorBody<'_> {
        ErrorBody {
            error: ErrorObject {
                message: &self.message,
                r#type: self.code.status().1,
                param: self.param.as_deref(),
                code: self.code.into(),
            },
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.code.status().0, Json(self.body())).into_response();
        // For whoever follows the request.
        response.extensions_mut().insert(self.code);
        let headers = response.headers_mut();
        if let Some(after) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
        }
        if self.code == Code::InvalidApiKey {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.code.ends_connection() {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn body_is_that_of_openai() {
        let error = ApiError::new(Code::UnknownParameter, "no").param("foo");
        assert_eq!(
            serde_json::to_value(error.body()).unwrap(),
            serde_json::json!({"error": {"message": "no", "type": "invalid_request_error", "param": "foo", "code": "unknown_parameter"}})
        );
    }

    #[test]
    fn full_queue_says_when_to_come_back() {
        let response = ApiError::new(Code::QueueFull, "full")
            .retry_after(Duration::from_secs(7))
            .into_response();
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()[RETRY_AFTER], "7");
    }
}
