//! Follows the folder of keys: an edit of the Secret takes effect without a restart.

use super::{Access, KeyError, Keys};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tracing::{info, warn};

/// How often the folder is read again. The kubelet itself takes longer to bring an edit into the pod.
const INTERVAL: Duration = Duration::from_secs(2);

/// Reads the folder again and again, and replaces the keys when they have changed. While the folder has something in it
/// that is no key, or cannot be read, the keys from before stay valid.
pub async fn watch(access: Arc<Access>, folder: PathBuf) {
    let mut problem = None;
    loop {
        tokio::time::sleep(INTERVAL).await;
        let path = folder.clone();
        let read = tokio::task::spawn_blocking(move || Keys::read(&path)).await;
        match read {
            Ok(Ok(keys)) => {
                problem = None;
                let count = keys.count();
                if access.replace(keys) {
                    info!(keys = count, "the API keys have changed");
                }
            }
            Ok(Err(error)) => note(&mut problem, &error),
            Err(error) => warn!(%error, "the API keys could not be read"),
        }
    }
}

/// Says a problem once, not every time.
fn note(problem: &mut Option<String>, error: &KeyError) {
    let text = error.to_string();
    if problem.as_ref() != Some(&text) {
        warn!(
            error = text,
            "the API keys cannot be used; those from before stay valid"
        );
        *problem = Some(text);
    }
}
