//! `escadre-runtime fetch`: brings a model into a store, or says why it cannot.
//!
//! Guarantees: the final name `<store>/sha256/<digest>/` exists only for a model whose every byte was hashed and whose
//! digest is the one that was asked for; credentials go to the source's own host only; what is there is not downloaded
//! again.

mod access;
mod client;
mod download;
mod error;
mod hf;
mod https;
mod source;
mod store;

pub use access::{Credentials, Route};
pub use client::RetryPolicy;
pub use error::FetchError;
pub use store::{model_path, resolved_revision};

use crate::args::FetchArgs;
use crate::failure::Failure;
use crate::model::Format;
use crate::server::{admin, signals};
use crate::status::{Board, Meter, Stage, Verdict};
use client::Client;
use download::Download;
use escadre_verify::{Digest, model_digest};
use source::Source;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;
use store::{Origin, Store, hash_file};
use tracing::info;
use url::Url;

/// What to fetch, from where, into which store.
#[derive(Debug, Clone)]
pub struct Request {
    /// `hf://owner/name` or `https://…`.
    pub source: String,
    /// A branch, tag or commit of a hub's repository.
    pub revision: String,
    /// The hub or a mirror of it.
    pub endpoint: String,
    /// Globs for a repository's files; empty means the usual ones.
    pub files: Vec<String>,
    /// The digest that the model must have.
    pub digest: Digest,
    /// The store's folder.
    pub store: PathBuf,
    /// The format that the usual files are of. Absent: any.
    pub format: Option<Format>,
    /// Credentials for the source.
    pub credentials: Credentials,
    /// The way to it.
    pub route: Route,
    /// How failures are retried.
    pub retry: RetryPolicy,
}

/// One file of a source.
#[derive(Debug, Clone)]
pub(crate) struct RemoteFile {
    pub(crate) name: String,
    pub(crate) url: Url,
    /// The length, when the source says so.
    pub(crate) bytes: Option<u64>,
    /// The digest that the file must have, when that is known before.
    pub(crate) sha256: Option<Digest>,
}

/// The files of a source.
#[derive(Debug, Clone)]
pub(crate) struct Listing {
    pub(crate) files: Vec<RemoteFile>,
    pub(crate) resolved_revision: Option<String>,
}

/// Runs the subcommand: fetches, with the status page at hand, until done or asked to end.
pub async fn run(args: FetchArgs) -> Result<(), Failure> {
    let board = Board::new(args.identity.clone(), Stage::Fetching);
    let mut shutdown = signals::install()?;
    let listener = admin::bind(args.host, args.admin_port).await?;
    let page = tokio::spawn(admin::serve_status(listener, board.clone()));
    let credentials = Credentials::of(&args.credentials).map_err(|error| {
        let failure = Failure::from(error);
        board.fail(&failure);
        failure
    })?;
    let request = Request {
        format: args.format.wanted(),
        route: Route::of(&args),
        credentials,
        source: args.source,
        revision: args.revision,
        endpoint: args.endpoint,
        files: args.files,
        digest: args.digest,
        store: args.store,
        retry: RetryPolicy::default(),
    };
    let fetched = tokio::select! {
        fetched = fetch(&request, &board) => fetched,
        () = shutdown.requested() => Err(FetchError::Interrupted),
    };
    page.abort();
    fetched.map(drop).map_err(|error| {
        let failure = Failure::from(error);
        if failure.reason == "DigestMismatch" {
            board.update(|status| status.verification.result = Verdict::Refused);
        }
        board.fail(&failure);
        failure
    })
}

/// Brings the model into the store. Returns its folder.
pub async fn fetch(request: &Request, board: &Board) -> Result<PathBuf, FetchError> {
    let source = Source::parse(&request.source)?;
    request.credentials.check(&source)?;
    let filter = source::file_filter(&request.files, request.format)?;
    board.update(|status| status.model.digest = Some(request.digest));
    let store = Store::open(&request.store, request.digest)?;
    let locked = store.clone();
    let _lock = blocking(move || locked.lock()).await?;
    if is_complete(&store, board).await? {
        info!(digest = %request.digest, "model is in the store already");
        return Ok(store.model());
    }
    let (listing, client) = match source {
        Source::Hub { owner, name } => {
            let endpoint = parse_endpoint(&request.endpoint)?;
            let client = Client::new(&endpoint, request, board)?;
            let repository = hf::Repository {
                endpoint: &endpoint,
                owner: &owner,
                name: &name,
                revision: &request.revision,
            };
            (repository.list(&client, &filter).await?, client)
        }
        Source::File { url, name } => {
            let client = Client::new(&url, request, board)?;
            (https::list(url, name, request.digest), client)
        }
    };
    let origin = Origin {
        source: error_safe_source(&request.source),
        resolved_revision: listing.resolved_revision.clone(),
        files: listing.files.iter().map(|file| file.name.clone()).collect(),
    };
    store.begin(&origin)?;
    let fetched = download_all(&client, &store, &listing, board).await;
    let checked = fetched.and_then(|digests| check(&digests, request));
    if let Err(error) = checked {
        if error.spoils_download() {
            store.discard()?;
        }
        return Err(error);
    }
    store.commit(&origin)?;
    board.update(|status| status.verification.result = Verdict::Verified);
    info!(digest = %request.digest, files = listing.files.len(), "model is in the store");
    Ok(store.model())
}

fn parse_endpoint(text: &str) -> Result<Url, FetchError> {
    let invalid = |problem: String| FetchError::InvalidSource {
        source_text: text.to_owned(),
        problem: format!("the endpoint must be a URL that starts with https:// or http:// ({problem})"),
    };
    let url = Url::parse(text).map_err(|error| invalid(error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") || url.query().is_some() {
        return Err(invalid("another scheme, or a query".to_owned()));
    }
    Ok(url)
}

/// The source as it may be written to disk: a URL may hold credentials.
fn error_safe_source(source: &str) -> String {
    Url::parse(source).map_or_else(|_| source.to_owned(), |url| error::printable(&url))
}

async fn is_complete(store: &Store, board: &Board) -> Result<bool, FetchError> {
    let (store, board) = (store.clone(), board.clone());
    blocking(move || {
        board.update(|status| status.stage = Stage::Verifying);
        let complete = store.is_complete(&mut |done, total| {
            board.update(|status| {
                status.verification.bytes = Some(total);
                status.load = Some(crate::status::Progress {
                    bytes_done: done,
                    bytes_total: total,
                });
            });
        })?;
        board.update(|status| {
            status.load = None;
            status.stage = Stage::Fetching;
            if complete {
                status.verification.result = Verdict::Verified;
            }
        });
        Ok(complete)
    })
    .await
}

/// Downloads every file that is not in quarantine already. Returns the digest of each.
async fn download_all(
    client: &Client,
    store: &Store,
    listing: &Listing,
    board: &Board,
) -> Result<BTreeMap<String, Digest>, FetchError> {
    let total = listing.files.iter().map(|file| file.bytes).sum::<Option<u64>>();
    board.update(|status| {
        status.model.resolved_revision.clone_from(&listing.resolved_revision);
        status.model.bytes = total;
        status.verification.files = Some(listing.files.len());
    });
    let mut digests = BTreeMap::new();
    let mut missing = Vec::new();
    let mut done = 0;
    for file in &listing.files {
        match hash_quarantined(store, file).await {
            Some((digest, bytes)) => {
                done += bytes;
                digests.insert(file.name.clone(), digest);
            }
            None => missing.push(file),
        }
    }
    let mut meter: Option<Meter> = None;
    let mut next_log = Instant::now();
    for file in missing {
        let download = Download::begin(client, store, file).await?;
        if let Some(total) = total {
            store.check_space(total.saturating_sub(done + download.bytes()))?;
        }
        let start = done + download.bytes();
        let meter = meter.get_or_insert_with(|| Meter::new(Instant::now(), start, total));
        let mut file_bytes = download.bytes();
        let mut report = |bytes| {
            file_bytes = bytes;
            let progress = meter.progress(Instant::now(), done + bytes);
            board.update(|status| {
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
        digests.insert(file.name.clone(), digest);
    }
    Ok(digests)
}

/// How often progress is logged.
const LOG_EVERY: std::time::Duration = std::time::Duration::from_secs(5);

/// The digest and length of a file that an earlier run downloaded; `None` when it must be downloaded.
async fn hash_quarantined(store: &Store, file: &RemoteFile) -> Option<(Digest, u64)> {
    let path = store.quarantined(&file.name);
    let hashed = tokio::task::spawn_blocking(move || hash_file(&path)).await.ok()?.ok()?;
    let (digest, bytes) = (hashed.0.finish(), hashed.1);
    let right =
        file.bytes.is_none_or(|expected| expected == bytes) && file.sha256.is_none_or(|expected| expected == digest);
    right.then_some((digest, bytes))
}

/// Compares the model's digest with the one that was asked for.
fn check(digests: &BTreeMap<String, Digest>, request: &Request) -> Result<(), FetchError> {
    let got = model_digest(digests)?;
    if got == request.digest {
        return Ok(());
    }
    Err(FetchError::DigestMismatch {
        what: format!(
            "the model of {} ({} files)",
            error_safe_source(&request.source),
            digests.len()
        ),
        expected: request.digest.to_string(),
        got: got.to_string(),
    })
}

/// Runs file work where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FetchError> + Send + 'static,
) -> Result<T, FetchError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}
