//! Reads a request's body: JSON, not too large, not too slow. Whatever is wrong is an [`ApiError`].

use super::error::{ApiError, Code};
use axum::body::Body;
use axum::extract::Request;
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, EXPECT};
use futures::StreamExt;
use serde_json::{Map, Value};
use std::time::Duration;

/// How long a body may take: enough for the largest one over a slow line.
const TIMEOUT: Duration = Duration::from_mins(1);
/// How much of a body that is too large is read and thrown away, so that the client reads our answer and not a reset.
const MAX_DISCARDED: u64 = 256 << 20;
/// How long that may take.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(10);

/// The JSON object of a request's body.
pub(crate) async fn json_object(request: Request, limit: usize) -> Result<Map<String, Value>, ApiError> {
    let (parts, body) = request.into_parts();
    check_content_type(&parts.headers)?;
    let read = tokio::time::timeout(TIMEOUT, read_limited(&parts.headers, body, limit));
    let bytes = read.await.map_err(|_| {
        ApiError::new(
            Code::RequestTimeout,
            format!("the body did not come within {} s", TIMEOUT.as_secs()),
        )
    })??;
    let value: Value = serde_json::from_slice(&bytes)
        .map_err(|error| ApiError::new(Code::InvalidJson, format!("the body is not valid JSON: {error}")))?;
    match value {
        Value::Object(object) => Ok(object),
        _ => Err(ApiError::new(Code::InvalidJson, "the body must be a JSON object")),
    }
}

fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let value = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if essence == "application/json" || essence.starts_with("application/") && essence.ends_with("+json") {
        return Ok(());
    }
    let message = format!("the body must be JSON, with the header `Content-Type: application/json` (got `{value}`)");
    Err(ApiError::new(Code::UnsupportedMediaType, message))
}

async fn read_limited(headers: &HeaderMap, body: Body, limit: usize) -> Result<Vec<u8>, ApiError> {
    let too_large = || {
        let message = format!("the body is larger than the {limit} bytes that this server takes");
        ApiError::new(Code::RequestTooLarge, message)
    };
    let announced: Option<u64> = headers
        .get(CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse().ok());
    let fits = announced.is_none_or(|announced| announced <= limit as u64);
    if !fits && headers.contains_key(EXPECT) {
        // The client waits for our word before it sends anything: nothing needs to be thrown away.
        return Err(too_large());
    }
    let mut stream = body.into_data_stream();
    let mut bytes = Vec::new();
    while fits && bytes.len() <= limit {
        let Some(chunk) = stream.next().await else {
            return Ok(bytes);
        };
        let chunk = chunk.map_err(|error| ApiError::new(Code::InvalidJson, format!("the body broke off: {error}")))?;
        bytes.extend_from_slice(&chunk);
    }
    drop(bytes);
    let discard = async {
        let mut discarded = 0;
        while let Some(Ok(chunk)) = stream.next().await {
            discarded += chunk.len() as u64;
            if discarded > MAX_DISCARDED {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(DISCARD_TIMEOUT, discard).await;
    Err(too_large())
}
