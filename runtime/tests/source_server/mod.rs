//! A little HTTP server that plays a model source, with the faults that sources have.

#![allow(dead_code, clippy::allow_attributes, reason = "each test program uses a part of it")]

use escadre_runtime::args::Identity;
use escadre_runtime::fetch::{Credentials, FetchError, Request, RetryPolicy, Route, fetch};
use escadre_runtime::status::{Board, Stage};
use escadre_verify::Digest;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What a client asked for.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    /// Path and query.
    pub(crate) path: String,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// What it gets.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Sends this many bytes of the body and then closes the connection.
    pub(crate) cut_after: Option<usize>,
}

impl Reply {
    pub(crate) fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self {
            status: 200,
            body: body.into(),
            ..Self::default()
        }
    }

    pub(crate) fn status(status: u16) -> Self {
        Self {
            status,
            ..Self::default()
        }
    }

    pub(crate) fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub(crate) fn cut_after(mut self, bytes: usize) -> Self {
        self.cut_after = Some(bytes);
        self
    }

    /// A file that can be asked for in part, under this validator.
    pub(crate) fn file(asked: &Asked, body: &[u8], etag: &str) -> Self {
        let range = asked
            .header("range")
            .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
        let may_resume = asked.header("if-range").is_none_or(|known| known == etag);
        match range {
            Some(start) if start >= body.len() => Self::status(416),
            Some(start) if may_resume => Self {
                status: 206,
                body: body[start..].to_vec(),
                ..Self::default()
            }
            .header(
                "content-range",
                format!("bytes {start}-{}/{}", body.len() - 1, body.len()),
            ),
            _ => Self::ok(body),
        }
        .header("etag", etag)
    }
}

type Script = dyn Fn(&Asked, usize) -> Reply + Send + Sync;

/// A running server.
pub(crate) struct SourceServer {
    pub(crate) url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl SourceServer {
    /// Answers every request by `script`, which gets the request and how many came before.
    pub(crate) fn start(script: impl Fn(&Asked, usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let (log, script): (_, Arc<Script>) = (Arc::clone(&asked), Arc::new(script));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (log, script) = (Arc::clone(&log), Arc::clone(&script));
                std::thread::spawn(move || answer(stream, &log, &*script));
            }
        });
        Self { url, asked }
    }

    /// A hub with one repository `o/n` of these files, and faults by `script` where it has an answer of its own.
    pub(crate) fn hub(
        files: &[(&str, &[u8])],
        script: impl Fn(&Asked, usize) -> Option<Reply> + Send + Sync + 'static,
    ) -> Self {
        let files: Vec<(String, Vec<u8>)> = files
            .iter()
            .map(|(name, body)| ((*name).to_owned(), body.to_vec()))
            .collect();
        Self::start(move |asked, before| {
            if let Some(reply) = script(asked, before) {
                return reply;
            }
            if asked.path.starts_with("/api/models/o/n/revision/main") {
                return Reply::ok(listing(&files));
            }
            let found = files
                .iter()
                .find(|(name, _)| asked.path == format!("/o/n/resolve/{COMMIT}/{name}"));
            found.map_or_else(|| Reply::status(404), |(_, body)| Reply::file(asked, body, "\"v1\""))
        })
    }

    /// Everything that was asked for so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// The paths that were asked for and end like this.
    pub(crate) fn count(&self, end: &str) -> usize {
        self.asked().iter().filter(|asked| asked.path.ends_with(end)).count()
    }
}

/// The commit of every hub here.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What a hub says about a repository.
pub(crate) fn listing(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let siblings: Vec<_> = files
        .iter()
        .map(|(name, body)| {
            serde_json::json!({"rfilename": name, "size": body.len(), "lfs": {"sha256": Digest::of(body).hex(), "size": body.len()}})
        })
        .collect();
    serde_json::to_vec(&serde_json::json!({"sha": COMMIT, "siblings": siblings})).unwrap()
}

fn answer(stream: TcpStream, log: &Mutex<Vec<Asked>>, script: &Script) {
    let mut reader = BufReader::new(stream);
    while let Some(asked) = read_request(&mut reader) {
        let before = {
            let mut log = log.lock().unwrap();
            log.push(asked.clone());
            log.len() - 1
        };
        let reply = script(&asked, before);
        let mut head = format!("HTTP/1.1 {} X\r\n", reply.status);
        if !reply.headers.iter().any(|(name, _)| name == "content-length") {
            head.extend(["content-length: ", &reply.body.len().to_string(), "\r\n"]);
        }
        for (name, value) in &reply.headers {
            head.extend([name, ": ", value, "\r\n"]);
        }
        let sent = reply.cut_after.unwrap_or(reply.body.len()).min(reply.body.len());
        let stream = reader.get_mut();
        let written = stream
            .write_all((head + "\r\n").as_bytes())
            .and_then(|()| stream.write_all(&reply.body[..sent]));
        if written.is_err() || reply.cut_after.is_some() {
            return;
        }
    }
}

fn read_request(reader: &mut BufReader<TcpStream>) -> Option<Asked> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let path = line.split_whitespace().nth(1)?.to_owned();
    let mut headers = Vec::new();
    loop {
        line.clear();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let asked = Asked { path, headers };
    let length = asked
        .header("content-length")
        .and_then(|length| length.parse().ok())
        .unwrap_or(0);
    reader.read_exact(&mut vec![0; length]).ok()?;
    Some(asked)
}

/// A store that is fetched into, and what is said meanwhile.
pub(crate) struct Fetching {
    pub(crate) store: tempfile::TempDir,
    pub(crate) board: Board,
}

impl Fetching {
    pub(crate) fn new() -> Self {
        Self {
            store: tempfile::tempdir().unwrap(),
            board: Board::new(Identity::default(), Stage::Fetching),
        }
    }

    /// A request for the repository of a hub.
    pub(crate) fn request(&self, server: &SourceServer, digest: Digest) -> Request {
        Request {
            endpoint: Some(server.url.clone()),
            ..self.request_of("hf://o/n", digest)
        }
    }

    /// A request for another source.
    pub(crate) fn request_of(&self, source: impl Into<String>, digest: Digest) -> Request {
        Request {
            source: source.into(),
            revision: "main".into(),
            endpoint: None,
            region: None,
            files: vec![],
            digest,
            store: self.store.path().to_owned(),
            format: None,
            credentials: Credentials::None,
            route: Route::default(),
            retry: RetryPolicy {
                attempts: 4,
                base: Duration::from_millis(5),
                cap: Duration::from_millis(20),
            },
        }
    }

    pub(crate) async fn run(&self, server: &SourceServer, digest: Digest) -> Result<PathBuf, FetchError> {
        fetch(&self.request(server, digest), &self.board).await
    }

    pub(crate) fn final_name(&self, digest: Digest) -> PathBuf {
        self.store.path().join("sha256").join(digest.hex())
    }
}

/// The names in a folder.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
