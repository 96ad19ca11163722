//! `GET /v1/models` and `GET /v1/models/{id}`.

use crate::server::error::ApiError;
use crate::server::{App, Served};
use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};
use std::sync::Arc;

/// The models that can be asked: one.
pub(crate) async fn list(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    let served = app.served()?;
    Ok(Json(json!({"object": "list", "data": [describe(&served)]})))
}

/// One model.
pub(crate) async fn retrieve(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    let served = app.served()?;
    served.check_name(Value::String(id))?;
    Ok(Json(describe(&served)))
}

fn describe(served: &Served) -> Value {
    json!({
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "escadre",
        "max_model_len": served.context_length,
        "digest": served.digest,
    })
}
