//! A model hub in one small server: local folders behind the parts of the Hugging Face API that a download uses.
//!
//! `ROOT/OWNER/NAME/...` is served as the model `OWNER/NAME`. Its revision is a hash of names and contents, so it
//! changes with the files and is found under `main` and under its full name. [`Fault`] makes it misbehave on purpose.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};
use axum::Router;
use axum::body::Body;
use axum::extract::{Path as UrlPath, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// Bytes in one piece of a body.
const PIECE: usize = 64 * 1024;
/// Files from this size are "large files", whose `ETag` is their SHA-256, as on the hub.
const LARGE: u64 = 10 * 1024;

/// How the mirror misbehaves, for files (not for the list of files).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Every file answers 404.
    NotFound,
    /// The connection is cut after half of the body; every time, so a resumed download is cut again.
    Cut,
    /// One byte in the middle is changed.
    WrongBytes,
    /// Every file answers 500.
    Error,
    /// Bodies come at this rate, in bytes per second.
    Slow(u64),
}

impl FromStr for Fault {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "not-found" => Self::NotFound,
            "cut" => Self::Cut,
            "wrong-bytes" => Self::WrongBytes,
            "error" => Self::Error,
            other => match other.strip_prefix("slow=").map(str::parse) {
                Some(Ok(rate)) if rate > 0 => Self::Slow(rate),
                _ => bail!("unknown fault {text:?}: not-found, cut, wrong-bytes, error or slow=N (bytes a second)"),
            },
        })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound => formatter.write_str("not-found"),
            Self::Cut => formatter.write_str("cut"),
            Self::WrongBytes => formatter.write_str("wrong-bytes"),
            Self::Error => formatter.write_str("error"),
            Self::Slow(rate) => write!(formatter, "slow={rate}"),
        }
    }
}

/// One request that the mirror saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// `GET` or `HEAD`.
    pub method: String,
    /// Path of the request.
    pub path: String,
    /// The header `Range`, if any.
    pub range: Option<String>,
    /// Whether an `Authorization` header came with it.
    pub authorized: bool,
}

/// A running mirror; ends when it is dropped.
#[derive(Debug)]
pub struct Mirror {
    address: SocketAddr,
    hub: Arc<Hub>,
    task: JoinHandle<io::Result<()>>,
}

impl Mirror {
    /// Starts a mirror of `root` on `listen` (port 0 takes a free one).
    pub async fn start(root: &Path, listen: SocketAddr) -> Result<Self> {
        if !root.is_dir() {
            bail!("{} is not a folder", root.display());
        }
        let listener = TcpListener::bind(listen)
            .await
            .with_context(|| format!("could not listen on {listen}"))?;
        let address = listener.local_addr().context("could not read the listening address")?;
        let hub = Arc::new(Hub {
            root: root.to_owned(),
            ..Hub::default()
        });
        let router = router(Arc::clone(&hub));
        let task = tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Self { address, hub, task })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL, without a slash at the end: what `model.endpoint` takes.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on misbehave like this, or not.
    pub fn set_fault(&self, fault: Option<Fault>) {
        *lock(&self.hub.fault) = fault;
    }

    /// From now on require this bearer token for everything, or none.
    pub fn set_token(&self, token: Option<String>) {
        *lock(&self.hub.token) = token;
    }

    /// The requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        lock(&self.hub.seen).clone()
    }

    /// The revision of a model as it is now.
    pub fn revision(&self, model: &str) -> Result<String> {
        self.hub
            .model(model)?
            .map(|files| revision(&files))
            .with_context(|| format!("no model {model}"))
    }

    /// Waits until the server ends, which it does only by an error.
    pub async fn wait(mut self) -> Result<()> {
        (&mut self.task)
            .await
            .context("the mirror panicked")?
            .context("the mirror ended")
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What the handlers share.
#[derive(Debug, Default)]
struct Hub {
    root: PathBuf,
    fault: Mutex<Option<Fault>>,
    token: Mutex<Option<String>>,
    seen: Mutex<Vec<Seen>>,
    /// Digests by file, size and time of change: models are large.
    digests: Mutex<BTreeMap<(PathBuf, u64, SystemTime), String>>,
}

#[derive(Debug, Clone)]
struct HubFile {
    path: PathBuf,
    size: u64,
    digest: String,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind the locks is valid at any time, also after a panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    /// The files of a model by relative name; `None` when there is no such model.
    fn model(&self, name: &str) -> Result<Option<BTreeMap<String, HubFile>>> {
        let is_plain = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.contains(['/', '\\']);
        let mut parts = name.split('/');
        let (Some(owner), Some(model), None) = (parts.next(), parts.next(), parts.next()) else {
            return Ok(None);
        };
        let folder = self.root.join(owner).join(model);
        if !is_plain(owner) || !is_plain(model) || !folder.is_dir() {
            return Ok(None);
        }
        let mut files = BTreeMap::new();
        self.collect(&folder, "", &mut files)?;
        Ok(Some(files))
    }

    fn collect(&self, folder: &Path, prefix: &str, files: &mut BTreeMap<String, HubFile>) -> Result<()> {
        for entry in std::fs::read_dir(folder).with_context(|| format!("could not read {}", folder.display()))? {
            let entry = entry.context("could not read a model's folder")?;
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            let path = entry.path();
            if path.is_dir() {
                self.collect(&path, &format!("{name}/"), files)?;
            } else {
                files.insert(name, self.file(path)?);
            }
        }
        Ok(())
    }

    fn file(&self, path: PathBuf) -> Result<HubFile> {
        let metadata = path
            .metadata()
            .with_context(|| format!("could not read {}", path.display()))?;
        let size = metadata.len();
        let key = (
            path.clone(),
            size,
            metadata.modified().context("this file system has no times")?,
        );
        if let Some(digest) = lock(&self.digests).get(&key).cloned() {
            return Ok(HubFile { path, size, digest });
        }
        let mut hash = Sha256::new();
        let mut file = File::open(&path).with_context(|| format!("could not open {}", path.display()))?;
        let mut piece = vec![0; PIECE];
        loop {
            match file
                .read(&mut piece)
                .with_context(|| format!("could not read {}", path.display()))?
            {
                0 => break,
                count => hash.update(&piece[..count]),
            }
        }
        let digest = crate::cluster::hex(&hash.finalize());
        lock(&self.digests).insert(key, digest.clone());
        Ok(HubFile { path, size, digest })
    }

    fn note(&self, method: &Method, path: String, headers: &HeaderMap) {
        let text = |name| {
            headers
                .get(name)
                .and_then(|value| value.to_str().ok())
                .map(str::to_owned)
        };
        lock(&self.seen).push(Seen {
            method: method.to_string(),
            path,
            range: text(header::RANGE),
            authorized: headers.contains_key(header::AUTHORIZATION),
        });
    }

    fn admits(&self, headers: &HeaderMap) -> bool {
        lock(&self.token).as_ref().is_none_or(|token| {
            headers
                .get(header::AUTHORIZATION)
                .is_some_and(|value| value.as_bytes() == format!("Bearer {token}").as_bytes())
        })
    }
}

fn revision(files: &BTreeMap<String, HubFile>) -> String {
    let mut hash = Sha256::new();
    for (name, file) in files {
        hash.update(format!("{}  {name}\n", file.digest));
    }
    crate::cluster::hex(&hash.finalize())[..40].to_owned()
}

fn router(hub: Arc<Hub>) -> Router {
    Router::new()
        .route("/api/models/{owner}/{name}/revision/{revision}", get(list))
        .route("/{owner}/{name}/resolve/{revision}/{*file}", get(resolve).head(resolve))
        .fallback(async || not_found("EntryNotFound", "Sorry, we can't find the page you are looking for."))
        .with_state(hub)
}

fn not_found(code: &'static str, message: &str) -> Response {
    let headers = [
        ("x-error-code", code.to_owned()),
        ("x-error-message", message.to_owned()),
    ];
    (StatusCode::NOT_FOUND, headers, axum::Json(json!({"error": message}))).into_response()
}

fn failed(error: &anyhow::Error) -> Response {
    (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}")).into_response()
}

/// Finds a model at a revision, or the hub's answer to why not.
fn find(
    hub: &Hub,
    model: &str,
    wanted: &str,
    headers: &HeaderMap,
) -> Result<(BTreeMap<String, HubFile>, String), Box<Response>> {
    if !hub.admits(headers) {
        let message = "Invalid credentials in Authorization header";
        let answer = (
            StatusCode::UNAUTHORIZED,
            [("x-error-message", message)],
            axum::Json(json!({"error": message})),
        );
        return Err(Box::new(answer.into_response()));
    }
    let files = hub.model(model).map_err(|error| Box::new(failed(&error)))?;
    let Some(files) = files else {
        return Err(Box::new(not_found("RepoNotFound", "Repository not found")));
    };
    let actual = revision(&files);
    if wanted != "main" && wanted != actual {
        return Err(Box::new(not_found(
            "RevisionNotFound",
            &format!("Invalid rev id: {wanted}"),
        )));
    }
    Ok((files, actual))
}

async fn list(
    State(hub): State<Arc<Hub>>,
    UrlPath((owner, name, wanted)): UrlPath<(String, String, String)>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    let model = format!("{owner}/{name}");
    hub.note(&method, format!("/api/models/{model}/revision/{wanted}"), &headers);
    match blocking(move || find(&hub, &model, &wanted, &headers).map(|found| (model, found))).await {
        Err(answer) => *answer,
        Ok((model, (files, sha))) => {
            let siblings: Vec<_> = files.keys().map(|name| json!({"rfilename": name})).collect();
            axum::Json(json!({"id": model, "modelId": model, "sha": sha, "private": false, "siblings": siblings}))
                .into_response()
        }
    }
}

async fn resolve(
    State(hub): State<Arc<Hub>>,
    UrlPath((owner, name, wanted, file)): UrlPath<(String, String, String, String)>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    let model = format!("{owner}/{name}");
    hub.note(&method, format!("/{model}/resolve/{wanted}/{file}"), &headers);
    let fault = *lock(&hub.fault);
    match fault {
        Some(Fault::NotFound) => return not_found("EntryNotFound", "Entry not found"),
        Some(Fault::Error) => {
            return (StatusCode::INTERNAL_SERVER_ERROR, "the mirror was told to fail").into_response();
        }
        Some(Fault::Cut | Fault::WrongBytes | Fault::Slow(_)) | None => {}
    }
    let range = headers
        .get(header::RANGE)
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned);
    match blocking(move || find(&hub, &model, &wanted, &headers)).await {
        Err(answer) => *answer,
        Ok((mut files, sha)) => match files.remove(&file) {
            None => not_found("EntryNotFound", "Entry not found"),
            Some(found) => send(found, &sha, range.as_deref(), &method, fault),
        },
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Box<Response>> + Send + 'static,
) -> Result<T, Box<Response>> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(Box::new(failed(&error.into()))))
}

fn send(file: HubFile, sha: &str, range: Option<&str>, method: &Method, fault: Option<Fault>) -> Response {
    let range = match range.map(|text| parse_range(text, file.size)) {
        None => None,
        Some(Some(range)) => Some(range),
        Some(None) => {
            let size = [(header::CONTENT_RANGE, format!("bytes */{}", file.size))];
            return (StatusCode::RANGE_NOT_SATISFIABLE, size).into_response();
        }
    };
    let (first, end) = range.unwrap_or((0, file.size));
    let etag = format!(
        "\"{}\"",
        if file.size >= LARGE {
            &file.digest
        } else {
            &file.digest[..40]
        }
    );
    let mut answer = Response::builder()
        .status(if range.is_some() {
            StatusCode::PARTIAL_CONTENT
        } else {
            StatusCode::OK
        })
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(header::CONTENT_LENGTH, end - first)
        .header(header::ACCEPT_RANGES, "bytes")
        .header(header::ETAG, &etag)
        .header("x-repo-commit", sha);
    if file.size >= LARGE {
        answer = answer.header("x-linked-etag", &etag).header("x-linked-size", file.size);
    }
    if range.is_some() {
        answer = answer.header(
            header::CONTENT_RANGE,
            format!("bytes {first}-{}/{}", end.saturating_sub(1), file.size),
        );
    }
    let body = if method == Method::HEAD {
        Body::empty()
    } else {
        body(file, first, end, fault)
    };
    answer.body(body).unwrap_or_else(|error| failed(&error.into()))
}

/// `bytes=A-`, `bytes=A-B` and `bytes=-N` as a half-open range; `None` when it is not inside the file.
fn parse_range(text: &str, size: u64) -> Option<(u64, u64)> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let range = match (first, last) {
        ("", count) => (size.saturating_sub(count.parse().ok()?), size),
        (first, "") => (first.parse().ok()?, size),
        (first, last) => (first.parse().ok()?, last.parse::<u64>().ok()?.checked_add(1)?.min(size)),
    };
    (range.0 < range.1).then_some(range)
}

fn body(file: HubFile, first: u64, end: u64, fault: Option<Fault>) -> Body {
    let stop = if fault == Some(Fault::Cut) {
        first + (end - first) / 2
    } else {
        end
    };
    let changed = (fault == Some(Fault::WrongBytes)).then_some(file.size / 2);
    let pieces = futures::stream::try_unfold((file.path, first), move |(path, position)| async move {
        if position >= stop {
            if stop == end {
                return Ok(None);
            }
            // An error cuts the connection, and what is still in the server's buffer with it: the half goes out first.
            tokio::time::sleep(Duration::from_millis(200)).await;
            return Err(io::Error::other("the mirror was told to cut"));
        }
        let length = usize::try_from(stop - position).unwrap_or(PIECE).min(PIECE);
        let length = match fault {
            // Ten pieces a second.
            Some(Fault::Slow(rate)) => {
                tokio::time::sleep(Duration::from_millis(100)).await;
                length.min(usize::try_from(rate / 10).unwrap_or(PIECE).max(1))
            }
            _ => length,
        };
        let piece = tokio::task::spawn_blocking(move || read_piece(&path, position, length).map(|piece| (piece, path)));
        let (mut piece, path) = piece.await.map_err(io::Error::other)??;
        let next = position + piece.len() as u64;
        if let Some(changed) = changed.filter(|changed| (position..next).contains(changed))
            && let Some(byte) = usize::try_from(changed - position)
                .ok()
                .and_then(|index| piece.get_mut(index))
        {
            *byte ^= 0xff;
        }
        Ok(Some((Bytes::from(piece), (path, next))))
    });
    Body::from_stream(pieces)
}

fn read_piece(path: &Path, position: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(position))?;
    let mut piece = vec![0; length];
    file.read_exact(&mut piece)?;
    Ok(piece)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read() {
        assert_eq!(parse_range("bytes=0-", 10), Some((0, 10)));
        assert_eq!(parse_range("bytes=3-5", 10), Some((3, 6)));
        assert_eq!(parse_range("bytes=3-99", 10), Some((3, 10)));
        assert_eq!(parse_range("bytes=-4", 10), Some((6, 10)));
        for text in ["bytes=10-", "bytes=5-4", "bytes=x-", "items=0-1", "bytes=-0"] {
            assert_eq!(parse_range(text, 10), None, "{text}");
        }
    }

    #[test]
    fn faults_are_read_and_written() {
        for text in ["slow=1000", "cut", "not-found", "wrong-bytes", "error"] {
            assert_eq!(text.parse::<Fault>().unwrap().to_string(), text);
        }
        for text in ["", "slow", "slow=0", "slow=x", "CUT"] {
            text.parse::<Fault>().unwrap_err();
        }
    }
}
