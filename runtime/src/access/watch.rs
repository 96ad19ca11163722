//! Follows the folder of keys: an edit of the Secret takes effect without a restart.

use super::{Access, Keys};
use crate::watched;
use std::path::PathBuf;
use std::sync::Arc;
use tracing::info;

/// Reads the folder again and again, and replaces the keys when they have changed.
pub async fn watch(access: Arc<Access>, folder: PathBuf) {
    let take = |keys: Keys| {
        let count = keys.count();
        if access.replace(keys) {
            info!(keys = count, "the API keys have changed");
        }
    };
    watched::follow("API keys", move || Keys::read(&folder), take).await;
}
