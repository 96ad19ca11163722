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
/// How long idle connections are kept after the last answer, within the time for draining. A request can be on its way
/// when an idle connection is closed, and is then lost; many clients send the next one right after an answer, and those
/// of OpenAI let go of a connection that was idle for 5 s, so that after a little more nobody is likely to send.
const IDLE: Duration = Duration::from_secs(6);
/// How long what has nothing left to say may take to say it. The operator leaves 10 s after the time for draining,
/// which must be enough for the four of these that can follow it.
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
        let hurry = shutdown.clone();
        let is_finished = tokio::select! {
            biased;
            () = self.nobody_asks(hurry) => true,
            () = tokio::time::sleep_until(deadline) => self.in_flight.is_none(),
            () = shutdown.interrupted_again() => false,
        };
        if is_finished {
            self.phase.send_replace(Phase::Closing);
            // A request that came just now has its time too.
            let last = deadline.max(Instant::now() + LAST_WORDS);
            tokio::select! {
                () = self.in_flight.idle(LAST_WORDS) => {}
                () = tokio::time::sleep_until(last) => {}
                () = shutdown.interrupted_again() => {}
            }
        } else {
            warn!("answers did not finish in time, cutting them");
        }
        self.phase.send_replace(Phase::Cut);
        let _ = tokio::time::timeout(LAST_WORDS, api).await;
    }

    /// Returns when everything is answered and no other request is to be expected.
    async fn nobody_asks(&self, mut shutdown: Shutdown) {
        // Nobody waits for endpoints where there is no other server to turn to, and whoever asks twice does not wait.
        let keep = if self.endpoint_delay.is_zero() {
            Duration::ZERO
        } else {
            IDLE
        };
        tokio::select! {
            () = self.in_flight.idle(keep) => {}
            () = shutdown.times(2) => self.in_flight.none().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::signals;

    #[tokio::test]
    async fn request_that_comes_when_idle_connections_are_closed_is_not_cut() {
        let phase = watch::Sender::new(Phase::Serving);
        let in_flight = InFlight::default();
        let (mut seen, open) = (phase.subscribe(), in_flight.clone());
        let connection = in_flight.connection();
        let api = tokio::spawn(async move {
            seen.wait_for(|phase| *phase == Phase::Closing).await.unwrap();
            let answer = open.answer();
            tokio::time::sleep(LAST_WORDS + SETTLE).await;
            assert_eq!(*seen.borrow(), Phase::Closing);
            drop((answer, connection));
        });
        let drain = Drain {
            phase,
            in_flight,
            endpoint_delay: Duration::ZERO,
            timeout: Duration::from_mins(1),
        };
        let (ended, result) = tokio::sync::oneshot::channel();
        let api = tokio::spawn(async move {
            let _ = ended.send(api.await.is_ok());
        });
        let mut shutdown = signals::install().unwrap();
        drain.run(&mut shutdown, api).await;
        assert!(result.await.unwrap(), "it was cut");
    }
}
