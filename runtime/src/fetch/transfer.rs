//! Brings what a source listed into quarantine: file by file, archives unpacked, what is there already only hashed.

use super::blocking;
use super::client::Client;
use super::download::Download;
use super::error::FetchError;
use super::listing::{Compression, Content, Listing, RemoteFile, Seen, named_twice};
use super::store::{Store, UnpackedFile, hash_file};
use super::unpack::unpack;
use crate::status::{Board, Meter};
use escadre_verify::Digest;
use globset::GlobSet;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tracing::info;

/// How often progress is logged.
const LOG_EVERY: Duration = Duration::from_secs(5);

/// One listing on its way into one store.
pub(crate) struct Transfer<'a> {
    pub(crate) client: &'a Client,
    pub(crate) store: &'a Store,
    pub(crate) listing: &'a Listing,
    pub(crate) filter: &'a GlobSet,
    pub(crate) board: &'a Board,
}

/// The model's files as far as they are there.
#[derive(Default)]
struct Arrived {
    digests: BTreeMap<String, Digest>,
    /// What archives had, for the error when none of it was chosen.
    seen: Seen,
}

impl Arrived {
    fn add(&mut self, name: &str, digest: Digest) -> Result<(), FetchError> {
        match self.digests.insert(name.to_owned(), digest) {
            None => Ok(()),
            Some(_) => Err(named_twice(name)),
        }
    }

    fn add_unpacked(&mut self, files: &BTreeMap<String, UnpackedFile>) -> Result<(), FetchError> {
        files.iter().try_for_each(|(name, file)| self.add(name, file.sha256))
    }
}

impl Transfer<'_> {
    /// Downloads every file that is not in quarantine already. Returns the digest of each file of the model.
    pub(crate) async fn run(&self) -> Result<BTreeMap<String, Digest>, FetchError> {
        let files = &self.listing.files;
        let total = files
            .iter()
            .try_fold(0_u64, |sum, file| Some(sum.saturating_add(file.bytes?)));
        self.board.update(|status| {
            status
                .model
                .resolved_revision
                .clone_from(&self.listing.resolved_revision);
            status.model.bytes = total;
            status.verification.files = Some(files.len());
        });
        let mut arrived = Arrived::default();
        let mut missing = Vec::new();
        let mut done = 0;
        for file in files {
            match self.find(file, &mut arrived).await? {
                Some(bytes) => done += bytes,
                None => missing.push(file),
            }
        }
        self.download(missing, done, total, &mut arrived).await?;
        let Arrived { digests, seen } = arrived;
        if digests.is_empty()
            && let Some(file) = files.first()
        {
            return Err(seen.nothing_chosen(&file.url, "artifact"));
        }
        self.board
            .update(|status| status.verification.files = Some(digests.len()));
        Ok(digests)
    }

    /// Takes what an earlier run brought. Returns its length; `None` when it must be downloaded.
    async fn find(&self, file: &RemoteFile, arrived: &mut Arrived) -> Result<Option<u64>, FetchError> {
        match file.content {
            Content::File => {
                let Some((digest, bytes)) = hash(self.store.place(file)).await else {
                    return Ok(None);
                };
                let is_right = file.bytes.is_none_or(|expected| expected == bytes)
                    && file.sha256.is_none_or(|expected| expected == digest);
                if !is_right {
                    return Ok(None);
                }
                arrived.add(&file.name, digest)?;
                Ok(Some(bytes))
            }
            Content::Archive(compression) => {
                let bytes = file.bytes.unwrap_or_default();
                let Some(files) = self.store.unpacked(file) else {
                    // One that was downloaded, and not unpacked to its end.
                    let found = hash(self.store.place(file)).await;
                    let is_whole = found.is_some_and(|(digest, _)| Some(digest) == file.sha256);
                    if is_whole {
                        self.take_out(file, compression, arrived).await?;
                    }
                    return Ok(is_whole.then_some(bytes));
                };
                for (name, known) in &files {
                    let found = hash(self.store.quarantined(name)).await;
                    if found != Some((known.sha256, known.bytes)) {
                        return Ok(None);
                    }
                }
                arrived.add_unpacked(&files)?;
                Ok(Some(bytes))
            }
        }
    }

    async fn download(
        &self,
        missing: Vec<&RemoteFile>,
        mut done: u64,
        total: Option<u64>,
        arrived: &mut Arrived,
    ) -> Result<(), FetchError> {
        let mut meter: Option<Meter> = None;
        let mut next_log = Instant::now();
        for file in missing {
            let download = Download::begin(self.client, self.store, file).await?;
            if let Some(total) = total {
                self.store.check_space(total.saturating_sub(done + download.bytes()))?;
            }
            let start = done + download.bytes();
            let meter = meter.get_or_insert_with(|| Meter::new(Instant::now(), start, total));
            let mut file_bytes = download.bytes();
            let mut report = |bytes| {
                file_bytes = bytes;
                let progress = meter.progress(Instant::now(), done + bytes);
                self.board.update(|status| {
                    status.download = Some(progress);
                    status.failure = None;
                });
                if Instant::now() >= next_log {
                    next_log = Instant::now() + LOG_EVERY;
                    info!(
                        file = file.name,
                        bytes_done = progress.bytes_done,
                        bytes_total = progress.bytes_total,
                        bytes_per_second = progress.bytes_per_second,
                        remaining_seconds = progress.remaining_seconds,
                        "downloading"
                    );
                }
            };
            let digest = download.finish(&mut report).await?;
            done += file_bytes;
            info!(file = file.name, bytes = file_bytes, %digest, "downloaded");
            match file.content {
                Content::File => arrived.add(&file.name, digest)?,
                Content::Archive(compression) => self.take_out(file, compression, arrived).await?,
            }
        }
        Ok(())
    }

    async fn take_out(
        &self,
        archive: &RemoteFile,
        compression: Compression,
        arrived: &mut Arrived,
    ) -> Result<(), FetchError> {
        let (store, remote, filter) = (self.store.clone(), archive.clone(), self.filter.clone());
        let unpacked = blocking(move || unpack(&store, &remote, compression, &filter)).await?;
        info!(archive = archive.name, files = unpacked.files.len(), "unpacked");
        arrived.seen.extend(unpacked.seen);
        arrived.add_unpacked(&unpacked.files)
    }
}

/// The digest and length of a file that an earlier run brought.
async fn hash(path: PathBuf) -> Option<(Digest, u64)> {
    let hashed = tokio::task::spawn_blocking(move || hash_file(&path)).await.ok()?.ok()?;
    Some((hashed.0.finish(), hashed.1))
}
