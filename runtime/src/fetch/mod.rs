//! `escadre-runtime fetch`: brings a model into a store, or says why it cannot.
//!
//! Guarantees: the final name `<store>/sha256/<digest>/` exists only for a model whose every byte was hashed and whose
//! digest is the one that was asked for; credentials go to the source's own host only; what is there is not downloaded
//! again.

mod access;
mod archive;
mod client;
mod download;
mod error;
mod hf;
mod https;
mod listing;
mod oci;
mod s3;
mod source;
mod store;
mod transfer;
mod unpack;

pub use access::{AccessKeys, Credentials, Login, Route};
pub use client::RetryPolicy;
pub use error::FetchError;
pub use oci::DockerConfig;
pub use store::{model_path, resolved_revision};

use crate::args::{DEFAULT_HF_ENDPOINT, FetchArgs};
use crate::failure::Failure;
use crate::model::Format;
use crate::server::{admin, signals};
use crate::status::{Board, Stage, Verdict};
use client::{Authorization, Client};
use escadre_verify::{Digest, model_digest};
use globset::GlobSet;
use listing::Listing;
use source::Source;
use std::collections::BTreeMap;
use std::path::PathBuf;
use store::{Origin, Store};
use tracing::info;
use transfer::Transfer;
use url::Url;

/// What to fetch, from where, into which store.
#[derive(Debug, Clone)]
pub struct Request {
    /// `hf://owner/name`, `oci://registry/repository@digest`, `s3://bucket/prefix` or `https://…`.
    pub source: String,
    /// A branch, tag or commit of a hub's repository.
    pub revision: String,
    /// A mirror of the hub, or object storage that speaks S3. Absent: the public ones.
    pub endpoint: Option<String>,
    /// The region of a bucket. Absent: the one that it tells.
    pub region: Option<String>,
    /// Globs for the files of a repository, an artifact or a prefix; empty means the usual ones.
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

/// Runs the subcommand: fetches, with the status page at hand, until done or asked to end.
pub async fn run(args: FetchArgs) -> Result<(), Failure> {
    let board = Board::new(args.identity.clone(), Stage::Fetching);
    let mut shutdown = signals::install()?;
    let listener = admin::bind(args.host, args.admin_port).await?;
    let page = tokio::spawn(admin::serve_status(listener, board.clone()));
    let credentials = Source::parse(&args.source).and_then(|source| Credentials::of(&args.credentials, &source));
    let credentials = credentials.map_err(|error| {
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
        region: args.region.filter(|region| !region.trim().is_empty()),
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
    let (listing, client) = list(&source, request, &filter, board).await?;
    let origin = Origin {
        source: error_safe_source(&request.source),
        resolved_revision: listing.resolved_revision.clone(),
        files: listing.files.iter().map(|file| file.name.clone()).collect(),
    };
    store.begin(&origin)?;
    let transfer = Transfer {
        client: &client,
        store: &store,
        listing: &listing,
        filter: &filter,
        board,
    };
    let fetched = transfer.run().await;
    let checked = fetched.and_then(|digests| check(&digests, request).map(|()| digests));
    let digests = match checked {
        Ok(digests) => digests,
        Err(error) => {
            if error.spoils_download() {
                store.discard()?;
            }
            return Err(error);
        }
    };
    let files = digests.len();
    // By now the names in archives are known as well.
    store.commit(&Origin {
        files: digests.into_keys().collect(),
        ..origin
    })?;
    board.update(|status| status.verification.result = Verdict::Verified);
    info!(digest = %request.digest, files, "model is in the store");
    Ok(store.model())
}

/// Asks the source what it has. Returns the client that downloads it as well.
async fn list(
    source: &Source,
    request: &Request,
    filter: &GlobSet,
    board: &Board,
) -> Result<(Listing, Client), FetchError> {
    let fixed = || Authorization::Fixed(request.credentials.clone());
    match source {
        Source::Hub { owner, name } => {
            let endpoint = parse_endpoint(request.endpoint.as_deref().unwrap_or(DEFAULT_HF_ENDPOINT))?;
            let client = Client::new(&endpoint, fixed(), request, board)?;
            let repository = hf::Repository {
                endpoint: &endpoint,
                owner,
                name,
                revision: &request.revision,
            };
            Ok((repository.list(&client, filter).await?, client))
        }
        Source::Registry(reference) => {
            let login = request.credentials.login(reference)?;
            let permission = oci::Permission::new(&reference.repository, login);
            let client = Client::new(&reference.base()?, Authorization::Registry(permission), request, board)?;
            Ok((oci::list(&client, reference, filter).await?, client))
        }
        Source::Bucket { bucket, prefix } => {
            let (client, bucket) = s3::open(request, board, bucket).await?;
            Ok((s3::list(&client, &bucket, prefix, filter).await?, client))
        }
        Source::File { url, name } => {
            let client = Client::new(url, fixed(), request, board)?;
            Ok((https::list(url.clone(), name.clone(), request.digest), client))
        }
    }
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
