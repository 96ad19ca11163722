//! `https://…`: one file, whose digest is the model's digest.

use super::listing::{Content, Listing, RemoteFile};
use escadre_verify::Digest;
use url::Url;

/// The one file of the source.
pub(crate) fn list(url: Url, name: String, digest: Digest) -> Listing {
    Listing {
        files: vec![RemoteFile {
            url,
            name,
            bytes: None,
            sha256: Some(digest),
            content: Content::File,
            is_immutable: false,
        }],
        resolved_revision: None,
    }
}
