//! What a server has open: how its end knows when nothing is left to wait for.

use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Counts open connections, and answers that are not completely handed over.
#[derive(Debug, Clone)]
pub struct InFlight(Arc<watch::Sender<Open>>);

#[derive(Debug, Clone, Copy, Default)]
struct Open {
    answers: usize,
    connections: usize,
}

impl Default for InFlight {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Open::default())))
    }
}

impl InFlight {
    /// Returns when there are no answers.
    pub async fn none(&self) {
        self.until(|open| open.answers == 0).await;
    }

    /// Whether there are no answers now.
    pub fn is_none(&self) -> bool {
        self.0.borrow().answers == 0
    }

    /// Returns when there have been no answers for this long, or there is no connection left that could ask for one.
    pub async fn idle(&self, at_least: Duration) {
        loop {
            self.none().await;
            let change = self.until(|open| open.answers > 0 || open.connections == 0);
            if tokio::time::timeout(at_least, change).await.is_err() || self.0.borrow().connections == 0 {
                return;
            }
        }
    }

    async fn until(&self, is_so: impl FnMut(&Open) -> bool) {
        // The sender is held by self, so the channel is open.
        let _ = self.0.subscribe().wait_for(is_so).await;
    }

    /// Counts an answer until the guard is dropped.
    pub(crate) fn answer(&self) -> InFlightGuard {
        self.enter(|open| &mut open.answers)
    }

    /// Counts a connection until the guard is dropped.
    pub(crate) fn connection(&self) -> InFlightGuard {
        self.enter(|open| &mut open.connections)
    }

    fn enter(&self, count: fn(&mut Open) -> &mut usize) -> InFlightGuard {
        self.0.send_modify(|open| *count(open) += 1);
        InFlightGuard {
            in_flight: self.clone(),
            count,
        }
    }
}

/// One answer or connection.
pub(crate) struct InFlightGuard {
    in_flight: InFlight,
    count: fn(&mut Open) -> &mut usize,
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        self.in_flight.0.send_modify(|open| *(self.count)(open) -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    const SHORT: Duration = Duration::from_millis(100);
    const LONG: Duration = Duration::from_mins(1);

    #[tokio::test]
    async fn server_without_connections_is_idle_at_once() {
        let in_flight = InFlight::default();
        assert!(in_flight.idle(LONG).now_or_never().is_some());
        let connection = in_flight.connection();
        let idle = in_flight.idle(LONG);
        drop(connection);
        idle.await;
    }

    #[tokio::test]
    async fn idle_time_begins_with_the_end_of_the_last_answer() {
        let in_flight = InFlight::default();
        let _connection = in_flight.connection();
        let answer = in_flight.answer();
        assert!(tokio::time::timeout(2 * SHORT, in_flight.idle(SHORT)).await.is_err());
        drop(answer);
        assert!(in_flight.is_none());
        let began = tokio::time::Instant::now();
        in_flight.idle(SHORT).await;
        assert!(began.elapsed() >= SHORT);
    }
}
