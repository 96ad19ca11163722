//! One file: streamed to disk with its hash, resumed where it broke off.

use super::client::{Attempt, Client, connection_problem};
use super::error::{FetchError, printable};
use super::listing::RemoteFile;
use super::store::{PartialFile, Store, hash_file};
use escadre_verify::{Digest, Hasher};
use reqwest::header::{CONTENT_RANGE, ETAG, HeaderMap, HeaderValue, IF_RANGE, RANGE};
use reqwest::{Response, StatusCode};
use std::io::SeekFrom;
use tokio::fs::File;
use tokio::io::{AsyncSeekExt, AsyncWriteExt};

/// Larger than any file of any model (16 TiB): where a source that never ends is cut.
const MAX_FILE_BYTES: u64 = 1 << 44;
/// How every pointer of git-lfs starts.
const LFS_START: &[u8] = b"version https://git-lfs.github.com/spec/";
/// Pointers are a few lines.
const LFS_MAX_BYTES: u64 = 1024;

/// The state of one file's download.
pub(crate) struct Download<'a> {
    client: &'a Client,
    store: &'a Store,
    remote: &'a RemoteFile,
    file: File,
    hasher: Hasher,
    bytes: u64,
    etag: Option<String>,
    /// The first bytes, in which a pointer is recognised.
    head: Vec<u8>,
}

impl<'a> Download<'a> {
    /// Goes on with the part of the file that is there, or begins it. What is there is hashed again.
    pub(crate) async fn begin(
        client: &'a Client,
        store: &'a Store,
        remote: &'a RemoteFile,
    ) -> Result<Self, FetchError> {
        let path = store.partial();
        let known = store.partial_of(&remote.name);
        let (hasher, bytes) = if known.is_some() {
            let path = path.clone();
            let hashed = tokio::task::spawn_blocking(move || hash_file(&path)).await;
            hashed.ok().and_then(Result::ok).unwrap_or_default()
        } else {
            <(Hasher, u64)>::default()
        };
        let file = File::options()
            .create(true)
            .truncate(bytes == 0)
            .write(true)
            .read(true)
            .open(&path)
            .await
            .map_err(|error| store.fault("open", &path, &error))?;
        let mut download = Self {
            client,
            store,
            remote,
            file,
            hasher,
            bytes,
            etag: known.and_then(|known| known.etag),
            head: Vec::new(),
        };
        if download.bytes > 0 && download.etag.is_none() && !remote.is_immutable {
            // Without a validator the source cannot say whether the rest belongs to the same file.
            download.restart().await?;
        }
        Ok(download)
    }

    /// Bytes that are there.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Downloads the rest and gives the file its name in the quarantine. `progress` receives the file's bytes so far.
    pub(crate) async fn finish(mut self, progress: &mut (dyn FnMut(u64) + Send)) -> Result<Digest, FetchError> {
        let mut failures = 0;
        let mut attempts = 0;
        loop {
            let before = self.bytes;
            attempts += 1;
            match self.attempt(progress).await {
                Ok(()) => break,
                Err(Attempt::Fatal(error)) => return Err(error),
                Err(Attempt::Retry { problem, after }) => {
                    // Whatever brought bytes was no failure: a slow link may break a hundred times.
                    failures = if self.bytes > before { 1 } else { failures + 1 };
                    if failures >= self.client.retry.attempts {
                        return Err(self.give_up(&problem, attempts));
                    }
                    self.client.pause(&self.remote.url, failures, &problem, after).await;
                }
            }
        }
        self.seal().await
    }

    fn give_up(&self, problem: &str, attempts: u32) -> FetchError {
        if self.bytes == 0 {
            let problem = format!("{problem}, {attempts} times; check that the source can be reached");
            return FetchError::unavailable(&self.remote.url, problem);
        }
        FetchError::DownloadIncomplete {
            url: printable(&self.remote.url),
            got: self.bytes,
            expected: self
                .remote
                .bytes
                .map_or_else(|| "an unknown number of".to_owned(), |bytes| bytes.to_string()),
            attempts,
        }
    }

    /// One request for what is missing.
    async fn attempt(&mut self, progress: &mut (dyn FnMut(u64) + Send)) -> Result<(), Attempt> {
        if self.bytes > 0 && self.remote.bytes == Some(self.bytes) {
            return Ok(());
        }
        let mut response = self.client.get(&self.remote.url, &self.range_headers()).await?;
        let status = response.status();
        let continues = self.continues(&response);
        if !continues && self.bytes > 0 {
            self.restart().await?;
        }
        if status == StatusCode::RANGE_NOT_SATISFIABLE || (status == StatusCode::PARTIAL_CONTENT && !continues) {
            let problem = "the part that is there is not a part of the file".to_owned();
            return Err(Attempt::Retry { problem, after: None });
        }
        let announced = response.content_length().map(|rest| self.bytes.saturating_add(rest));
        let expected = self.expected(announced)?;
        self.etag = strong_etag(response.headers());
        self.store.note_partial(&PartialFile {
            name: self.remote.name.clone(),
            etag: self.etag.clone(),
        })?;
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) => self.append(&chunk, expected).await?,
                Ok(None) => break,
                Err(error) => {
                    self.flush().await?;
                    return Err(connection_problem(&error));
                }
            }
            progress(self.bytes);
        }
        self.flush().await?;
        if expected.is_some_and(|expected| self.bytes < expected) {
            let problem = format!("the body ended after {} bytes", self.bytes);
            return Err(Attempt::Retry { problem, after: None });
        }
        Ok(())
    }

    fn range_headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if self.bytes == 0 || (self.etag.is_none() && !self.remote.is_immutable) {
            return headers;
        }
        if let Ok(range) = HeaderValue::from_str(&format!("bytes={}-", self.bytes)) {
            headers.insert(RANGE, range);
        }
        if let Some(Ok(etag)) = self.etag.as_deref().map(HeaderValue::from_str) {
            headers.insert(IF_RANGE, etag);
        }
        headers
    }

    /// Whether the answer is the rest of what is there: the source's own words, not our hope. Storage that does not
    /// know `If-Range` sends the rest of another file, under the validator of that file.
    fn continues(&self, response: &Response) -> bool {
        if response.status() != StatusCode::PARTIAL_CONTENT {
            return self.bytes == 0;
        }
        let range = response
            .headers()
            .get(CONTENT_RANGE)
            .and_then(|value| value.to_str().ok());
        let start = range.and_then(|range| range.strip_prefix("bytes ")?.split_once('-')?.0.parse().ok());
        let is_other = strong_etag(response.headers())
            .zip(self.etag.as_ref())
            .is_some_and(|(theirs, ours)| theirs != *ours);
        start == Some(self.bytes) && (!is_other || self.remote.is_immutable)
    }

    /// How long the file will be. The listing and the answer must agree.
    fn expected(&self, announced: Option<u64>) -> Result<Option<u64>, Attempt> {
        if let (Some(listed), Some(announced)) = (self.remote.bytes, announced)
            && listed != announced
            && announced > LFS_MAX_BYTES
        {
            let problem =
                format!("the listing says {listed} bytes and the answer {announced}; the source contradicts itself");
            return Err(Attempt::Fatal(FetchError::unavailable(&self.remote.url, problem)));
        }
        Ok(announced.or(self.remote.bytes))
    }

    async fn append(&mut self, chunk: &[u8], expected: Option<u64>) -> Result<(), FetchError> {
        let limit = expected.unwrap_or(MAX_FILE_BYTES);
        if self.bytes + chunk.len() as u64 > limit {
            return Err(FetchError::SizeLimit {
                what: printable(&self.remote.url),
                limit,
            });
        }
        let missing = LFS_START.len().saturating_sub(self.head.len());
        if self.bytes == self.head.len() as u64 {
            self.head.extend_from_slice(&chunk[..missing.min(chunk.len())]);
        }
        self.hasher.update(chunk);
        let written = self.file.write_all(chunk).await;
        written.map_err(|error| self.store.fault("write", &self.store.partial(), &error))?;
        self.bytes += chunk.len() as u64;
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), FetchError> {
        let flushed = self.file.flush().await;
        flushed.map_err(|error| self.store.fault("write", &self.store.partial(), &error))
    }

    /// Begins the file anew.
    async fn restart(&mut self) -> Result<(), FetchError> {
        let emptied = async {
            self.file.set_len(0).await?;
            self.file.seek(SeekFrom::Start(0)).await
        };
        emptied
            .await
            .map_err(|error| self.store.fault("write", &self.store.partial(), &error))?;
        self.hasher = Hasher::new();
        self.bytes = 0;
        self.etag = None;
        self.head.clear();
        Ok(())
    }

    /// Checks the whole file and moves it from its partial name.
    async fn seal(self) -> Result<Digest, FetchError> {
        if self.bytes <= LFS_MAX_BYTES && self.head == LFS_START {
            return Err(FetchError::LfsPointer {
                url: printable(&self.remote.url),
            });
        }
        let synced = self.file.sync_all().await;
        synced.map_err(|error| self.store.fault("sync", &self.store.partial(), &error))?;
        let digest = self.hasher.finish();
        if let Some(expected) = self.remote.sha256.filter(|expected| *expected != digest) {
            return Err(FetchError::DigestMismatch {
                what: self.remote.name.clone(),
                expected: expected.to_string(),
                got: digest.to_string(),
            });
        }
        self.store.finish_file(self.remote)?;
        Ok(digest)
    }
}

/// The validator that allows a range to be asked for; a weak one does not.
fn strong_etag(headers: &HeaderMap) -> Option<String> {
    let etag = headers.get(ETAG)?.to_str().ok()?;
    etag.starts_with('"').then(|| etag.to_owned())
}
