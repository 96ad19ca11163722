//! `oci://registry/repository@sha256:…`: a model in a registry of container images.
//!
//! Guarantees: the manifest's bytes have the digest under which it was asked for, or that is told as the resolved
//! revision where a tag was asked for; each layer has a digest that is checked while it is downloaded.

mod auth;
mod docker_config;
mod manifest;
mod reference;

pub(crate) use auth::Permission;
pub use docker_config::DockerConfig;
pub(crate) use reference::Reference;

use super::client::Client;
use super::error::{FetchError, printable};
use super::listing::{Listing, RemoteFile, check_count, choose};
use escadre_verify::Digest;
use globset::GlobSet;
use manifest::{ACCEPT, Found, Layer, Manifest};
use reference::Version;
use reqwest::header::{ACCEPT as ACCEPT_HEADER, HeaderMap, HeaderValue};
use url::Url;

/// Finds the manifest and lists the layers that `filter` chooses, and archives, whose names are not known yet.
pub(crate) async fn list(client: &Client, reference: &Reference, filter: &GlobSet) -> Result<Listing, FetchError> {
    let base = reference.base()?;
    let (manifest, digest, url) = read_manifest(client, reference, &base, &reference.version).await?;
    let (layers, seen) = match manifest.resolve(&url)? {
        Found::Layers(layers, seen) => (layers, seen),
        Found::Manifest(inner) => {
            let version = Version::Digest(inner);
            let (manifest, _, url) = read_manifest(client, reference, &base, &version).await?;
            match manifest.resolve(&url)? {
                Found::Layers(layers, seen) => (layers, seen),
                Found::Manifest(_) => {
                    return Err(FetchError::FormatRefused {
                        what: printable(&url),
                        problem: "it is an index in an index; name the manifest of the model by its digest".to_owned(),
                    });
                }
            }
        }
    };
    check_count(&url, "artifact", layers.len())?;
    let mut found = Vec::new();
    for layer in layers {
        found.push(remote_file(reference, &base, layer)?);
    }
    Ok(Listing {
        files: choose(&url, "artifact", seen, found, filter)?,
        resolved_revision: Some(digest.to_string()),
    })
}

fn remote_file(reference: &Reference, base: &Url, layer: Layer) -> Result<RemoteFile, FetchError> {
    Ok(RemoteFile {
        url: address(reference, base, "blobs", &layer.digest.to_string())?,
        name: layer.name,
        bytes: Some(layer.bytes),
        sha256: Some(layer.digest),
        content: layer.content,
        is_immutable: true,
    })
}

/// The manifest, its digest and its address.
async fn read_manifest(
    client: &Client,
    reference: &Reference,
    base: &Url,
    version: &Version,
) -> Result<(Manifest, Digest, Url), FetchError> {
    let url = address(reference, base, "manifests", &version.to_string())?;
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT_HEADER, HeaderValue::from_static(ACCEPT));
    let bytes = client.bytes(&url, &headers).await?;
    let digest = Digest::of(&bytes);
    if let Version::Digest(expected) = version
        && *expected != digest
    {
        return Err(FetchError::DigestMismatch {
            what: format!("the manifest {}", printable(&url)),
            expected: expected.to_string(),
            got: digest.to_string(),
        });
    }
    let manifest = serde_json::from_slice(&bytes).map_err(|error| {
        FetchError::unavailable(&url, format!("the answer is no manifest ({error}); check the registry"))
    })?;
    Ok((manifest, digest, url))
}

fn address(reference: &Reference, base: &Url, kind: &str, name: &str) -> Result<Url, FetchError> {
    let path = format!("{}/{kind}/{name}", reference.repository);
    base.join(&path).map_err(|error| FetchError::InvalidSource {
        source_text: format!("oci://{}/{}", reference.registry, reference.repository),
        problem: error.to_string(),
    })
}
