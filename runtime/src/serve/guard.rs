//! Who may ask: keys, limits and certificates from folders, which are followed while the process runs.

use crate::access::{Access, Keys, Limits, watch_keys, watch_limits};
use crate::args::AccessArgs;
use crate::failure::Failure;
use crate::server::Tls;
use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;
use tokio_rustls::TlsAcceptor;
use tracing::info;

/// Something in a folder cannot be used, or is not there yet.
fn unusable(option: &str, folder: &Path, error: &dyn Display) -> Failure {
    Failure::new("AccessUnusable", format!("{option}={}: {error}", folder.display()))
}

/// Who may ask. Goes on reading the keys and the limits.
pub(super) fn admit(args: &AccessArgs) -> Result<Arc<Access>, Failure> {
    let limits = match &args.limits {
        Some(folder) => Limits::read(folder).map_err(|error| unusable("--limits", folder, &error))?,
        None => Limits {
            requests_per_minute: args.requests_per_minute,
            tokens_per_minute: args.tokens_per_minute,
        },
    };
    let (keys, required) = match &args.api_keys {
        Some(folder) => (read_keys(folder)?, Some(args.require_key.unwrap_or(true))),
        None => (Keys::default(), None),
    };
    let access = Arc::new(Access::new(keys, required, limits));
    if let Some(folder) = &args.api_keys {
        tokio::spawn(watch_keys(Arc::clone(&access), folder.clone()));
    }
    if let Some(folder) = &args.limits {
        tokio::spawn(watch_limits(Arc::clone(&access), folder.clone()));
    }
    Ok(access)
}

/// The keys of a folder: at least one.
fn read_keys(folder: &Path) -> Result<Keys, Failure> {
    let keys = Keys::read(folder).map_err(|error| unusable("--api-keys", folder, &error))?;
    if keys.count() == 0 {
        let what =
            "there is no key; create the Secret with one entry for each client, or put a file for each client there";
        return Err(unusable("--api-keys", folder, &what));
    }
    info!(keys = keys.count(), "API keys are read");
    Ok(keys)
}

/// What encrypts connections with the certificate in a folder. Goes on reading it.
pub(super) fn encrypt(folder: &Path) -> Result<TlsAcceptor, Failure> {
    let tls = Tls::read(folder).map_err(|error| unusable("--tls", folder, &error))?;
    let acceptor = tls.acceptor().map_err(|error| unusable("--tls", folder, &error))?;
    tokio::spawn(tls.watch(folder.to_owned()));
    Ok(acceptor)
}
