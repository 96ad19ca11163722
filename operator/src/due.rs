//! Waiting for what is due.

use tokio::time::{Instant, sleep_until};

/// Completes at `when`. `None`: never.
pub async fn due(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => std::future::pending().await,
    }
}
