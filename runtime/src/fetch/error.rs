//! Why a model could not be fetched. Each variant is one stable reason.

use crate::failure::Failure;
use escadre_verify::{Reason, Refusal};
use url::Url;

/// Why a model could not be fetched: its variant's name is the stable reason.
#[derive(Debug, thiserror::Error, strum::IntoStaticStr)]
pub enum FetchError {
    /// The source is not one that we know.
    #[error(
        "`{source_text}` is not a source: {problem}; write hf://owner/name, oci://registry/repository@sha256:…, s3://bucket/prefix, or https://… for a single file"
    )]
    InvalidSource {
        /// What was given.
        source_text: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The source cannot be reached, or does not have what was asked for.
    #[error("{url}: {problem}")]
    SourceUnavailable {
        /// What was asked for.
        url: String,
        /// What happened and what to check.
        problem: String,
    },
    /// The source wants credentials.
    #[error(
        "{url} answered {status}: the source needs credentials; set model.secretRef, or outside a cluster what `escadre-runtime fetch --help` says"
    )]
    SecretMissing {
        /// What was asked for.
        url: String,
        /// The status.
        status: u16,
    },
    /// There are credentials, and they cannot be used.
    #[error("the Secret of model.secretRef cannot be used: {problem}")]
    #[strum(serialize = "SecretMissing")]
    SecretUnusable {
        /// What is wrong and what to do; none of its values.
        problem: String,
    },
    /// The proxy or the certificates cannot be used.
    #[error("{what} cannot be used: {problem}")]
    #[strum(serialize = "InvalidSource")]
    RouteInvalid {
        /// Which of them.
        what: &'static str,
        /// What is wrong and what to do.
        problem: String,
    },
    /// The connection ended before the file did, again and again.
    #[error("{url}: got {got} of {expected} bytes in {attempts} attempts; check the source and what is in between")]
    DownloadIncomplete {
        /// The file.
        url: String,
        /// Bytes that came.
        got: u64,
        /// Bytes that were announced.
        expected: String,
        /// How often it was tried.
        attempts: u32,
    },
    /// The bytes are not those of the digest.
    #[error(
        "{what} has the digest {got}, expected {expected}: check the source, or approve this digest if the change is wanted"
    )]
    DigestMismatch {
        /// The model or the file.
        what: String,
        /// What was asked for.
        expected: String,
        /// What came.
        got: String,
    },
    /// The source sends us where we do not follow.
    #[error("{url} redirects to {to}: {problem}")]
    RedirectRefused {
        /// Who redirects.
        url: String,
        /// Where to.
        to: String,
        /// Why we do not follow.
        problem: &'static str,
    },
    /// More than was announced, or than any model has.
    #[error("{what} is larger than {limit} bytes, which is what the source announced or any model needs")]
    SizeLimit {
        /// The file or answer.
        what: String,
        /// The most that is taken.
        limit: u64,
    },
    /// A pointer to a file, and not the file.
    #[error("{url} is a git-lfs pointer and not the file itself; the mirror was filled without git-lfs: fill it again")]
    LfsPointer {
        /// The file.
        url: String,
    },
    /// A file name that leads out of the model's folder.
    #[error("the source names a file {path:?}: {problem}")]
    PathInvalid {
        /// The name.
        path: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Something in a form that is not taken.
    #[error("{what}: {problem}")]
    FormatRefused {
        /// What it is.
        what: String,
        /// Which form it has, and what to do.
        problem: String,
    },
    /// The store has no room.
    #[error("the store {store} has no room for the model: {problem}; make the volume larger")]
    CacheFull {
        /// The store.
        store: String,
        /// Numbers.
        problem: String,
    },
    /// The store cannot be read or written.
    #[error("could not {action} {path}: {problem}; check the volume")]
    StorageFault {
        /// What we were doing.
        action: &'static str,
        /// With which file.
        path: String,
        /// What the system said.
        problem: String,
    },
    /// The store's own rules were broken.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The process was asked to end.
    #[error("interrupted; what was downloaded is kept and resumed next time")]
    Interrupted,
}

impl FetchError {
    /// The stable reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.reason.into(),
            other => other.into(),
        }
    }

    /// A source that does not answer as it should.
    pub(crate) fn unavailable(url: &Url, problem: impl Into<String>) -> Self {
        Self::SourceUnavailable {
            url: printable(url),
            problem: problem.into(),
        }
    }

    /// Whether the bytes that were downloaded can never become right.
    pub(crate) fn spoils_download(&self) -> bool {
        matches!(
            self,
            Self::DigestMismatch { .. }
                | Self::LfsPointer { .. }
                | Self::SizeLimit { .. }
                | Self::PathInvalid { .. }
                | Self::FormatRefused { .. }
        ) || matches!(self, Self::Refused(refusal) if refusal.reason == Reason::PathInvalid)
    }
}

impl From<FetchError> for Failure {
    fn from(error: FetchError) -> Self {
        Self::new(error.reason(), error.to_string())
    }
}

/// A URL as it may be shown: without user, password and query, which may hold credentials.
pub(crate) fn printable(url: &Url) -> String {
    let mut url = url.clone();
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    url.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_in_a_url_are_not_shown() {
        let url = Url::parse("https://me:secret@host/a/b?signature=secret#x").unwrap();
        assert_eq!(printable(&url), "https://host/a/b");
    }
}
