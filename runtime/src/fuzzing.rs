//! What fuzz targets need and nobody else may use; only there when `cargo fuzz` builds. See `fuzz/` in the repository.

use crate::engine::{Admission, Engine, QueueLimits};
use std::sync::Arc;
use std::time::Duration;

/// The way into an engine that has ended: requests are read, checked and prepared as always, and then refused.
pub fn ended_engine() -> Engine {
    let limits = QueueLimits {
        requests: 8,
        tokens: 1 << 20,
        concurrency: 4,
        wait: Duration::from_mins(1),
    };
    Engine::new(Arc::new(Admission::new(limits))).0
}
