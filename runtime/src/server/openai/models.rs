//! `GET /v1/models` and `GET /v1/models/{id}`.

use crate::server::error::ApiError;
use crate::server::{App, Served};
use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};
use std::sync::Arc;

/// The models that can be asked: one, by each of its names.
pub(crate) async fn list(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    let served = app.served()?;
    Ok(Json(json!({
        "object": "list",
        "data": served.names().map(|name| describe(&served, name)).collect::<Vec<_>>(),
    })))
}

/// One model.
pub(crate) async fn retrieve(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    let served = app.served()?;
    served.check_name(Value::String(id.clone()))?;
    Ok(Json(describe(&served, &id)))
}

fn describe(served: &Served, name: &str) -> Value {
    json!({
        "id": name,
        // Which model an alias stands for, as vLLM says it.
        "root": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "escadre",
        "max_model_len": served.context_length,
        "digest": served.digest,
    })
}
