//! `oci://registry/repository:tag` and `oci://registry/repository@sha256:…`. Pure.

use super::super::error::FetchError;
use escadre_verify::Digest;
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;
use url::Url;

/// The name under which Docker's hub is known, and the host that answers for it.
const DOCKER_HUB: (&str, &str) = ("docker.io", "registry-1.docker.io");
/// The longest name of a repository.
const MAX_REPOSITORY: usize = 255;

/// An artifact in a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reference {
    /// Host, and port where there is one.
    pub(crate) registry: String,
    pub(crate) repository: String,
    pub(crate) version: Version,
}

/// Which manifest of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Version {
    Tag(String),
    Digest(Digest),
}

impl FromStr for Reference {
    type Err = &'static str;

    /// Reads what follows `oci://`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (registry, path) = text
            .split_once('/')
            .filter(|(registry, _)| !registry.is_empty())
            .ok_or("it names no registry and repository")?;
        if !is_host(registry) {
            return Err("its registry is no host name with or without a port");
        }
        let (named, digest) = match path.split_once('@') {
            Some((named, digest)) => (named, Some(digest)),
            None => (path, None),
        };
        let (repository, tag) = match named.split_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (named, None),
        };
        if !is_repository(repository) {
            return Err("its repository has not only a-z, 0-9, and `.`, `_`, `-` or `/` between them");
        }
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err("its tag has not 1 to 128 letters, digits, `.`, `_` and `-`");
        }
        let version = match (digest, tag) {
            // A tag beside a digest is a remark for people.
            (Some(digest), _) => Version::Digest(
                digest
                    .parse()
                    .map_err(|_| "its digest is not `sha256:` and 64 hex digits")?,
            ),
            (None, Some(tag)) => Version::Tag(tag.to_owned()),
            (None, None) => return Err("it has neither a digest (@sha256:…) nor a tag (:v1)"),
        };
        Ok(Self {
            registry: registry.to_owned(),
            repository: repository.to_owned(),
            version,
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => formatter.write_str(tag),
            Self::Digest(digest) => write!(formatter, "{digest}"),
        }
    }
}

impl Reference {
    /// The base of the registry's API: https, but on the machine itself.
    pub(crate) fn base(&self) -> Result<Url, FetchError> {
        let host = if self.registry == DOCKER_HUB.0 {
            DOCKER_HUB.1
        } else {
            &self.registry
        };
        let scheme = if is_loopback(host) { "http" } else { "https" };
        Url::parse(&format!("{scheme}://{host}/v2/")).map_err(|error| FetchError::InvalidSource {
            source_text: format!("oci://{}", self.registry),
            problem: format!("its registry is no host name ({error})"),
        })
    }
}

/// Whether a host is this machine.
fn is_loopback(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    name == "localhost" || name.parse::<Ipv4Addr>().is_ok_and(|address| address.is_loopback())
}

fn is_host(text: &str) -> bool {
    let (name, port) = match text.split_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (text, None),
    };
    let is_name = !name.is_empty()
        && name.len() <= 253
        && name.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        });
    is_name && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

/// The rule of the OCI distribution specification, but for how separators are doubled.
fn is_repository(text: &str) -> bool {
    text.len() <= MAX_REPOSITORY
        && text.split('/').all(|part| {
            let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
            let bytes = part.as_bytes();
            bytes.first().is_some_and(|byte| is_plain(*byte))
                && bytes.last().is_some_and(|byte| is_plain(*byte))
                && !part.contains("..")
                && bytes.iter().all(|byte| is_plain(*byte) || b"._-".contains(byte))
        })
}

fn is_tag(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && !text.starts_with(['.', '-'])
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn references_are_read() {
        let tagged: Reference = "ghcr.io/org/team/model_a.v2:v1.0".parse().unwrap();
        assert_eq!(tagged.registry, "ghcr.io");
        assert_eq!(tagged.repository, "org/team/model_a.v2");
        assert_eq!(tagged.version, Version::Tag("v1.0".into()));
        for text in [format!("h:5000/m@{DIGEST}"), format!("h:5000/m:v1@{DIGEST}")] {
            let pinned: Reference = text.parse().unwrap();
            assert_eq!((pinned.registry.as_str(), pinned.repository.as_str()), ("h:5000", "m"));
            assert_eq!(pinned.version, Version::Digest(DIGEST.parse().unwrap()));
        }
    }

    #[test]
    fn what_is_no_reference_says_why() {
        for (text, words) in [
            ("model:v1", "no registry"),
            ("/model:v1", "no registry"),
            ("me@h/model:v1", "no host name"),
            ("h:99999/model:v1", "no host name"),
            ("h/model", "neither a digest"),
            ("h/Model:v1", "its repository"),
            ("h/a/../b:v1", "its repository"),
            ("h/a//b:v1", "its repository"),
            ("h/a?x=1:v1", "its repository"),
            ("h/a:", "its tag"),
            ("h/a:v 1", "its tag"),
            ("h/a@sha256:12", "its digest"),
            ("h/a@sha512:12", "its digest"),
        ] {
            assert!(text.parse::<Reference>().unwrap_err().contains(words), "{text}");
        }
    }

    #[test]
    fn only_this_machine_is_asked_without_tls() {
        for (registry, base) in [
            ("ghcr.io", "https://ghcr.io/v2/"),
            ("docker.io", "https://registry-1.docker.io/v2/"),
            ("localhost:5000", "http://localhost:5000/v2/"),
            ("127.0.0.1:5000", "http://127.0.0.1:5000/v2/"),
            ("localhost.example.com", "https://localhost.example.com/v2/"),
            ("127.0.0.1.example.com", "https://127.0.0.1.example.com/v2/"),
        ] {
            let reference: Reference = format!("{registry}/m:v1").parse().unwrap();
            assert_eq!(reference.base().unwrap().as_str(), base);
        }
    }
}
