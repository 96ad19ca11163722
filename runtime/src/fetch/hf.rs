//! `hf://owner/name`: a repository of a model hub, or of a mirror that speaks its protocol.

use super::client::Client;
use super::error::{FetchError, printable};
use super::listing::{Content, Listing, RemoteFile, Seen, check_count, choose};
use escadre_verify::Digest;
use globset::GlobSet;
use serde::Deserialize;
use url::Url;

/// A repository at a revision.
pub(crate) struct Repository<'a> {
    pub(crate) endpoint: &'a Url,
    pub(crate) owner: &'a str,
    pub(crate) name: &'a str,
    pub(crate) revision: &'a str,
}

/// The part of the hub's answer that is used.
#[derive(Deserialize)]
struct RevisionInfo {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    #[serde(default)]
    size: Option<u64>,
    #[serde(default)]
    lfs: Option<LargeFile>,
}

#[derive(Deserialize)]
struct LargeFile {
    #[serde(default, alias = "oid")]
    sha256: Option<String>,
}

impl Repository<'_> {
    /// Resolves the revision to a commit and lists the files that `filter` chooses.
    pub(crate) async fn list(&self, client: &Client, filter: &GlobSet) -> Result<Listing, FetchError> {
        let mut url = join(
            self.endpoint,
            &["api", "models", self.owner, self.name, "revision", self.revision],
        )?;
        url.set_query(Some("blobs=true"));
        let answer = client.json(&url).await?;
        let info: RevisionInfo = serde_json::from_value(answer).map_err(|error| {
            FetchError::unavailable(&url, format!("the answer is not a hub's ({error}); check the endpoint"))
        })?;
        self.choose(&url, info, filter)
    }

    fn choose(&self, url: &Url, info: RevisionInfo, filter: &GlobSet) -> Result<Listing, FetchError> {
        let commit = info.sha;
        if commit.len() < 7 || commit.len() > 64 || !commit.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(FetchError::unavailable(
                url,
                "the answer names no commit; check the endpoint",
            ));
        }
        check_count(url, "repository", info.siblings.len())?;
        let mut found = Vec::new();
        for sibling in info.siblings {
            let sha256 = sibling.lfs.and_then(|lfs| lfs.sha256);
            found.push(RemoteFile {
                url: self.file_url(&commit, &sibling.rfilename)?,
                name: sibling.rfilename,
                bytes: sibling.size,
                sha256: sha256.and_then(|hex| format!("sha256:{hex}").parse::<Digest>().ok()),
                content: Content::File,
                is_immutable: false,
            });
        }
        let files = choose(url, "repository", Seen::default(), found, filter)?;
        Ok(Listing {
            files,
            resolved_revision: Some(commit),
        })
    }

    fn file_url(&self, commit: &str, path: &str) -> Result<Url, FetchError> {
        let mut parts = vec![self.owner, self.name, "resolve", commit];
        parts.extend(path.split('/'));
        join(self.endpoint, &parts)
    }
}

/// Adds path segments, each percent-encoded as a whole, so that a revision such as `refs/pr/1` stays one segment.
fn join(base: &Url, parts: &[&str]) -> Result<Url, FetchError> {
    let mut url = base.clone();
    url.path_segments_mut()
        .map_err(|()| FetchError::InvalidSource {
            source_text: printable(base),
            problem: "the endpoint is no base URL".to_owned(),
        })?
        .pop_if_empty()
        .extend(parts);
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::super::source::file_filter;
    use super::*;

    fn choose(siblings: &serde_json::Value) -> Result<Listing, FetchError> {
        let endpoint = Url::parse("http://mirror:8000/hub/").unwrap();
        let repository = Repository {
            endpoint: &endpoint,
            owner: "o",
            name: "n",
            revision: "main",
        };
        let info = serde_json::json!({"sha": "0123456789abcdef0123456789abcdef01234567", "siblings": siblings});
        repository.choose(
            &endpoint,
            serde_json::from_value(info).unwrap(),
            &file_filter(&[], None).unwrap(),
        )
    }

    #[test]
    fn chosen_files_have_the_commit_in_their_url() {
        let digest = Digest::of(b"w");
        let siblings = serde_json::json!([
            {"rfilename": "model file.gguf", "size": 5, "lfs": {"sha256": digest.hex(), "size": 5}},
            {"rfilename": "README.md"}
        ]);
        let listing = choose(&siblings).unwrap();
        assert_eq!(listing.files.len(), 1);
        assert_eq!(
            listing.files[0].url.as_str(),
            "http://mirror:8000/hub/o/n/resolve/0123456789abcdef0123456789abcdef01234567/model%20file.gguf"
        );
        assert_eq!(
            (listing.files[0].bytes, listing.files[0].sha256),
            (Some(5), Some(digest))
        );
    }

    #[test]
    fn listing_without_a_chosen_file_shows_what_there_is() {
        let error = choose(&serde_json::json!([{"rfilename": "pytorch_model.bin"}])).unwrap_err();
        assert_eq!(error.reason(), "SourceUnavailable");
        assert!(error.to_string().contains("pytorch_model.bin"), "{error}");
    }

    #[test]
    fn revision_is_one_segment() {
        let endpoint = Url::parse("http://mirror").unwrap();
        assert_eq!(
            join(&endpoint, &["a", "refs/pr/1"]).unwrap().as_str(),
            "http://mirror/a/refs%2Fpr%2F1"
        );
    }
}
