//! Files of a Secret that are edited while the process runs.

use std::fmt::Display;
use std::time::Duration;
use tracing::warn;

/// How often files are read again. The kubelet itself takes longer to bring an edit into a pod.
const INTERVAL: Duration = Duration::from_secs(2);

/// Reads again and again, and hands over what was read. What cannot be used is said once and changes nothing; `what` names
/// it in the log.
pub(crate) async fn follow<T, E>(
    what: &'static str,
    read: impl Fn() -> Result<T, E> + Clone + Send + 'static,
    take: impl Fn(T),
) where
    T: Send + 'static,
    E: Display + Send + 'static,
{
    let mut problem = None;
    loop {
        tokio::time::sleep(INTERVAL).await;
        let text = match tokio::task::spawn_blocking(read.clone()).await {
            Ok(Ok(found)) => {
                problem = None;
                take(found);
                continue;
            }
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        if problem.as_ref() != Some(&text) {
            warn!(error = text, "{what} cannot be used; what was read before stays valid");
            problem = Some(text);
        }
    }
}
