//! Follows the folders of keys and limits: an edit takes effect without a restart.

use super::{Access, Keys, Limits};
use crate::watched;
use std::path::PathBuf;
use std::sync::Arc;
use tracing::info;

/// Reads the keys again and again, and replaces them when they have changed.
pub async fn watch_keys(access: Arc<Access>, folder: PathBuf) {
    let take = |keys: Keys| {
        let count = keys.count();
        if access.replace(keys) {
            info!(keys = count, "the API keys have changed");
        }
    };
    watched::follow("API keys", move || Keys::read(&folder), take).await;
}

/// Reads the limits again and again, and replaces them when they have changed.
pub async fn watch_limits(access: Arc<Access>, folder: PathBuf) {
    let take = |limits: Limits| {
        if access.limit(limits) {
            info!(
                requests_per_minute = limits.requests_per_minute,
                tokens_per_minute = limits.tokens_per_minute,
                "the limits have changed"
            );
        }
    };
    watched::follow("limits", move || Limits::read(&folder), take).await;
}
