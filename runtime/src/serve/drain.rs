//! The end of a server: from the request to end until the last connection is closed.

use crate::server::InFlight;
use crate::server::listen::Phase;
use crate::server::signals::Shutdown;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{info, warn};

/// How long a connection that was just accepted has for its request to arrive.
const SETTLE: Duration = Duration::from_millis(500);
/// How long what has nothing left to say may take to say it.
pub(super) const LAST_WORDS: Duration = Duration::from_secs(2);

/// How a server ends.
pub(super) struct Drain {
    pub(super) phase: watch::Sender<Phase>,
    pub(super) in_flight: InFlight,
    pub(super) endpoint_delay: Duration,
    pub(super) timeout: Duration,
}

impl Drain {
    /// Ends the server whose task is `api`. Never takes longer than both times and a few seconds.
    pub(super) async fn run(self, shutdown: &mut Shutdown, api: JoinHandle<()>) {
        info!(
            delay_seconds = self.endpoint_delay.as_secs_f64(),
            "asked to end, still accepting connections"
        );
        self.phase.send_replace(Phase::LastCall);
        tokio::select! {
            () = tokio::time::sleep(self.endpoint_delay) => {}
            () = shutdown.times(2) => info!("asked again, not waiting for endpoints"),
        }
        self.phase.send_replace(Phase::Finishing);
        let deadline = Instant::now() + self.timeout;
        info!(
            timeout_seconds = self.timeout.as_secs_f64(),
            "no longer accepting connections, finishing answers"
        );
        tokio::time::sleep(SETTLE.min(self.timeout)).await;
        let is_finished = tokio::select! {
            () = self.in_flight.none() => true,
            () = tokio::time::sleep_until(deadline) => false,
            () = shutdown.interrupted_again() => false,
        };
        if is_finished {
            self.phase.send_replace(Phase::Closing);
        } else {
            warn!("answers did not finish in time, cutting them");
            self.phase.send_replace(Phase::Cut);
        }
        let mut api = api;
        if tokio::time::timeout(LAST_WORDS, &mut api).await.is_err() {
            self.phase.send_replace(Phase::Cut);
            let _ = tokio::time::timeout(LAST_WORDS, api).await;
        }
    }
}
