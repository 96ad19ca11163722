//! The API's routes, what is counted about them, and answers to everything else.

use super::App;
use super::admission::{admit, count_request};
use super::error::{ApiError, Code};
use super::openai::{
    create_chat_completion, create_completion, create_embeddings, create_response, detokenize, list_models,
    retrieve_model, tokenize,
};
use super::openapi;
use super::record::keep;
use crate::metrics::{Answered, Route};
use crate::trace::Tracer;
use crate::traffic::Attempt;
use axum::extract::{Request, State};
use axum::http::{Method, Uri};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use std::sync::Arc;

/// The API.
pub fn router(app: Arc<App>) -> Router {
    generating()
        .route_layer(from_fn(count_request))
        .route_layer(from_fn_with_state(Arc::clone(&app), follow))
        .route("/openapi.json", get(async || Json(openapi::document())))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .route("/v1/models", get(list_models))
        // A name may have slashes.
        .route("/v1/models/{*id}", get(retrieve_model))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(from_fn_with_state(Arc::clone(&app), admit))
        .layer(from_fn_with_state(Arc::clone(&app), count))
        .layer(from_fn_with_state(app.tracer.clone(), keep))
        .with_state(app)
}

/// What generates, for whoever is not asked who he is. Nobody's request, so it has no span.
pub(super) fn unguarded(app: Arc<App>) -> Router {
    generating()
        .layer(from_fn_with_state(Arc::clone(&app), follow))
        .layer(from_fn_with_state(None::<Tracer>, keep))
        .with_state(app)
}

fn generating() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/chat/completions", post(create_chat_completion))
        .route("/v1/completions", post(create_completion))
        .route("/v1/responses", post(create_response))
        .route("/v1/embeddings", post(create_embeddings))
}

async fn not_found(uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(200).collect();
    let message = format!(
        "there is nothing at {path}; this server has /v1/models, /v1/chat/completions, /v1/completions, /v1/responses, /v1/embeddings, /openapi.json, /tokenize and /detokenize"
    );
    ApiError::new(Code::NotFound, message)
}

async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    ApiError::new(Code::MethodNotAllowed, format!("{} does not take {method}", uri.path()))
}

async fn count(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let route = match request.uri().path() {
        "/v1/chat/completions" => Route::ChatCompletions,
        "/v1/completions" => Route::Completions,
        "/v1/responses" => Route::Responses,
        "/v1/embeddings" => Route::Embeddings,
        "/tokenize" => Route::Tokenize,
        "/detokenize" => Route::Detokenize,
        path if path.starts_with("/v1/models") => Route::Models,
        _ => Route::Other,
    };
    let response = next.run(request).await;
    let answered = Answered {
        route,
        code: response.status().as_u16(),
    };
    app.metrics.http_requests.get_or_create(&answered).inc();
    response
}

/// Follows a request to generate. Before the model is there, the only answer is one that says so, and it does not count.
async fn follow(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let is_ready = app.served().is_ok();
    let attempt = Attempt::new(Arc::clone(&app.traffic));
    request.extensions_mut().insert(attempt.clone());
    let response = next.run(request).await;
    if is_ready && response.status().is_server_error() {
        attempt.failed();
    }
    response
}
