//! Requests to end: SIGTERM from the kubelet, SIGINT from a person.

use crate::failure::Failure;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Counts requests to end, from the moment it was made.
#[derive(Debug, Clone)]
pub struct Shutdown(watch::Receiver<Asked>);

/// How often the process was asked to end.
#[derive(Debug, Clone, Copy, Default)]
struct Asked {
    times: usize,
    by_person: usize,
}

/// Installs the handlers. Must be called before anything that takes time: without a handler the first process of a
/// container ignores SIGTERM.
pub fn install() -> Result<Shutdown, Failure> {
    let failure =
        |error: std::io::Error| Failure::new("Internal", format!("could not install a signal handler: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(failure)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failure)?;
    let (sender, receiver) = watch::channel(Asked::default());
    tokio::spawn(async move {
        while !sender.is_closed() {
            let by_person = tokio::select! {
                _ = terminate.recv() => 0,
                _ = interrupt.recv() => 1,
            };
            sender.send_modify(|asked| {
                asked.times += 1;
                asked.by_person += by_person;
            });
        }
    });
    Ok(Shutdown(receiver))
}

impl Shutdown {
    /// Returns when the process was asked to end.
    pub async fn requested(&mut self) {
        self.times(1).await;
    }

    /// Returns when the process was asked to end this many times.
    pub async fn times(&mut self, times: usize) {
        self.wait(|asked| asked.times >= times).await;
    }

    /// Returns when a person asked a second time, and so does not want to wait.
    pub async fn interrupted_again(&mut self) {
        self.wait(|asked| asked.by_person >= 2).await;
    }

    async fn wait(&mut self, is_enough: impl Fn(&Asked) -> bool) {
        if self.0.wait_for(|asked| is_enough(asked)).await.is_err() {
            // The task that counts has gone, which only happens with the runtime itself.
            std::future::pending::<()>().await;
        }
    }
}
