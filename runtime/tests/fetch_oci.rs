//! `fetch` from registries that misbehave, and from artifacts that should not be.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod source_server;

use escadre_runtime::fetch::{Credentials, FetchError, Login, fetch};
use escadre_verify::{Digest, model_digest};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use source_server::{Asked, Fetching, Reply, SourceServer, names};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const WEIGHTS: &[u8] = b"GGUF and then some weights, long enough to be cut in the middle of it all";
const RAW: &str = "application/vnd.cncf.model.weight.v1.raw";
const TAR: &str = "application/vnd.cncf.model.weight.v1.tar";
const TAR_GZIP: &str = "application/vnd.cncf.model.weight.v1.tar+gzip";

/// A layer: type, path, bytes.
type Layer<'a> = (&'a str, &'a str, &'a [u8]);

fn manifest(layers: &[Layer<'_>]) -> Vec<u8> {
    let layers: Vec<Value> = layers
        .iter()
        .map(|(kind, path, content)| {
            json!({"mediaType": kind, "digest": Digest::of(content), "size": content.len(),
                "annotations": {"org.cncf.model.filepath": path}})
        })
        .collect();
    serde_json::to_vec(&json!({"schemaVersion": 2, "layers": layers})).unwrap()
}

/// A registry with one artifact `a/m:v1`, and faults by `script` where it has an answer of its own.
fn registry(
    layers: &[Layer<'_>],
    script: impl Fn(&Asked, usize) -> Option<Reply> + Send + Sync + 'static,
) -> SourceServer {
    let manifest = manifest(layers);
    let blobs: Vec<Vec<u8>> = layers.iter().map(|(_, _, content)| content.to_vec()).collect();
    SourceServer::start(move |asked, before| {
        if let Some(reply) = script(asked, before) {
            return reply;
        }
        if asked.path.starts_with("/v2/a/m/manifests/") {
            return Reply::ok(manifest.clone());
        }
        let found = blobs
            .iter()
            .find(|blob| asked.path == format!("/v2/a/m/blobs/{}", Digest::of(blob)));
        found.map_or_else(|| Reply::status(404), |blob| Reply::file(asked, blob, "\"v1\""))
    })
}

fn source(server: &SourceServer) -> String {
    format!("oci://{}/a/m:v1", server.url.trim_start_matches("http://"))
}

async fn run(server: &SourceServer, digest: Digest) -> Result<PathBuf, FetchError> {
    let fetching = Fetching::new();
    fetch(&fetching.request_of(source(server), digest), &fetching.board).await
}

fn is_blob(asked: &Asked) -> bool {
    asked.path.contains("/blobs/")
}

/// A tar archive of entries: name, flag, content.
fn tar(entries: &[(&str, u8, &[u8])]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, flag, content) in entries {
        let mut header = [0; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
        header[148..156].fill(b' ');
        header[156] = *flag;
        header[257..263].copy_from_slice(b"ustar\0");
        let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        archive.extend_from_slice(&header);
        archive.extend_from_slice(content);
        archive.resize(archive.len().next_multiple_of(512), 0);
    }
    archive.resize(archive.len() + 1024, 0);
    archive
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn token_and_login_stay_where_they_belong() {
    let storage = SourceServer::start(|asked, _| Reply::file(asked, WEIGHTS, "\"s\""));
    let target = storage.url.clone();
    let tokens = SourceServer::start(|_, before| Reply::ok(format!("{{\"token\": \"token-{before}\"}}")));
    let challenge = format!(
        "Bearer realm=\"{}/token\",service=\"s\",scope=\"repository:a/m:pull\"",
        tokens.url
    );
    let server = registry(&[(RAW, "m.gguf", WEIGHTS)], move |asked, _| {
        // The first token is good for the manifest only.
        let wanted = if is_blob(asked) {
            "Bearer token-1"
        } else {
            "Bearer token-0"
        };
        if asked.header("authorization") != Some(wanted) {
            return Some(Reply::status(401).header("www-authenticate", &challenge));
        }
        is_blob(asked).then(|| Reply::status(307).header("location", format!("{target}/blob?signature=x")))
    });
    let fetching = Fetching::new();
    let mut request = fetching.request_of(source(&server), Digest::of(WEIGHTS));
    request.credentials = Credentials::Login(Login {
        username: "aladdin".into(),
        password: "opensesame".into(),
    });
    fetch(&request, &fetching.board).await.unwrap();
    let asked = tokens.asked();
    assert_eq!(asked.len(), 2);
    assert_eq!(asked[0].path, "/token?service=s&scope=repository%3Aa%2Fm%3Apull");
    assert_eq!(asked[0].header("authorization"), Some("Basic YWxhZGRpbjpvcGVuc2VzYW1l"));
    assert_eq!(storage.asked()[0].header("authorization"), None, "the token leaked");
    let sent = server.asked();
    assert!(
        sent.iter()
            .filter_map(|asked| asked.header("authorization"))
            .all(|sent| sent.starts_with("Bearer ")),
        "the login was sent to the registry, which asked for a token"
    );
}

#[tokio::test]
async fn login_is_not_given_to_whoever_a_redirect_leads_to() {
    let thief = SourceServer::start(|_, _| Reply::status(401).header("www-authenticate", "Basic realm=\"x\""));
    let target = thief.url.clone();
    let server = registry(&[(RAW, "m.gguf", WEIGHTS)], move |asked, _| {
        is_blob(asked).then(|| Reply::status(307).header("location", format!("{target}/blob")))
    });
    let fetching = Fetching::new();
    let mut request = fetching.request_of(source(&server), Digest::of(WEIGHTS));
    request.credentials = Credentials::Login(Login {
        username: "aladdin".into(),
        password: "opensesame".into(),
    });
    let error = fetch(&request, &fetching.board).await.unwrap_err();
    assert_eq!(error.reason(), "SourceUnavailable");
    assert!(
        thief
            .asked()
            .iter()
            .all(|asked| asked.header("authorization").is_none())
    );
}

#[tokio::test]
async fn registry_that_refuses_every_token_is_given_up() {
    let tokens = SourceServer::start(|_, _| Reply::ok("{\"access_token\": \"t\"}"));
    let challenge = format!("Bearer realm=\"{}/token\"", tokens.url);
    let server = SourceServer::start(move |_, _| Reply::status(401).header("www-authenticate", &challenge));
    let error = run(&server, Digest::of(WEIGHTS)).await.unwrap_err();
    assert_eq!(error.reason(), "SecretMissing");
    assert_eq!(tokens.asked().len(), 1);
    for answer in ["", "{}", "[1]", "{\"token\": \"a\\nb\"}"] {
        let tokens = SourceServer::start(move |_, _| Reply::ok(answer));
        let challenge = format!("Bearer realm=\"{}/token\"", tokens.url);
        let server = SourceServer::start(move |_, _| Reply::status(401).header("www-authenticate", &challenge));
        let error = run(&server, Digest::of(WEIGHTS)).await.unwrap_err();
        assert_eq!(error.reason(), "SourceUnavailable", "{answer}");
    }
}

#[tokio::test]
async fn blob_is_resumed_even_without_a_validator() {
    let server = registry(&[(RAW, "m.gguf", WEIGHTS)], |asked, _| {
        if !is_blob(asked) {
            return None;
        }
        let mut reply = Reply::file(asked, WEIGHTS, "");
        reply.headers.retain(|(name, _)| name != "etag");
        Some(if asked.header("range").is_some() {
            reply
        } else {
            reply.cut_after(20)
        })
    });
    run(&server, Digest::of(WEIGHTS)).await.unwrap();
    let resumed = server.asked().into_iter().rfind(is_blob).unwrap();
    assert_eq!(
        (resumed.header("range"), resumed.header("if-range")),
        (Some("bytes=20-"), None)
    );
}

#[tokio::test]
async fn manifest_must_have_the_digest_under_which_it_was_asked_for() {
    let server = registry(&[(RAW, "m.gguf", WEIGHTS)], |_, _| None);
    let fetching = Fetching::new();
    let pinned = source(&server).replace(":v1", &format!("@{}", Digest::of(b"another manifest")));
    let request = fetching.request_of(pinned, Digest::of(WEIGHTS));
    let error = fetch(&request, &fetching.board).await.unwrap_err();
    assert_eq!(error.reason(), "DigestMismatch");
    assert!(error.to_string().contains("the manifest"), "{error}");
    assert!(!server.asked().iter().any(is_blob), "a layer was asked for");
}

#[tokio::test]
async fn manifests_that_are_none_are_refused() {
    for (body, reason) in [
        ("<html>".to_owned(), "SourceUnavailable"),
        ("{}".to_owned(), "FormatRefused"),
        ("[".repeat(1 << 20), "SourceUnavailable"),
        (" ".repeat((16 << 20) + 1), "SizeLimit"),
        (
            r#"{"layers": [{"mediaType": "x", "digest": "sha256:1", "size": -1}]}"#.to_owned(),
            "SourceUnavailable",
        ),
    ] {
        let shown = body.chars().take(20).collect::<String>();
        let server = SourceServer::start(move |_, _| Reply::ok(body.clone()));
        let error = run(&server, Digest::of(WEIGHTS)).await.unwrap_err();
        assert_eq!(error.reason(), reason, "{shown}: {error}");
    }
}

#[tokio::test]
async fn names_that_leave_the_folder_are_refused_before_anything_is_downloaded() {
    for name in ["../../escape.gguf", "/etc/escape.gguf", "a/../escape.gguf"] {
        let server = registry(&[(RAW, name, WEIGHTS)], |_, _| None);
        let fetching = Fetching::new();
        let mut request = fetching.request_of(source(&server), Digest::of(WEIGHTS));
        request.files = vec!["**".into()];
        let error = fetch(&request, &fetching.board).await.unwrap_err();
        assert_eq!(error.reason(), "PathInvalid", "{name}");
        assert!(!server.asked().iter().any(is_blob));
    }
}

#[tokio::test]
async fn archives_with_ways_out_or_without_end_are_refused_and_leave_nothing() {
    let many = "x".repeat(1 << 20);
    let bomb = gzip(&tar(&[("m.gguf", b'0', &vec![0; 80 << 20])]));
    let cut = tar(&[("m.gguf", b'0', WEIGHTS)])[..520].to_vec();
    for (kind, archive, reason, words) in [
        (TAR, tar(&[("../m.gguf", b'0', WEIGHTS)]), "PathInvalid", "leaves"),
        (TAR, tar(&[("/m.gguf", b'0', WEIGHTS)]), "PathInvalid", "absolute"),
        (TAR, tar(&[("m.gguf", b'2', b"")]), "PathInvalid", "link"),
        (
            TAR,
            tar(&[("m.gguf", b'0', b"1"), ("m.gguf", b'0', b"2")]),
            "PathInvalid",
            "twice",
        ),
        (
            TAR,
            tar(&[("x", b'L', many.as_bytes()), ("m.gguf", b'0', b"")]),
            "FormatRefused",
            "64 KiB",
        ),
        (TAR, cut, "FormatRefused", "unpacked"),
        (TAR, b"no archive".to_vec(), "FormatRefused", "unpacked"),
        (TAR_GZIP, b"no archive".to_vec(), "FormatRefused", "unpacked"),
        (TAR_GZIP, bomb, "SizeLimit", "unpacks to"),
        (
            TAR,
            tar(&[("weights.bin", b'0', b"1")]),
            "SourceUnavailable",
            "weights.bin",
        ),
    ] {
        let server = registry(&[(kind, "m.gguf", &archive)], |_, _| None);
        let fetching = Fetching::new();
        let mut request = fetching.request_of(source(&server), Digest::of(WEIGHTS));
        request.files = vec!["**/*.gguf".into(), "/*.gguf".into()];
        let error = fetch(&request, &fetching.board).await.unwrap_err();
        assert_eq!(error.reason(), reason, "{words}: {error}");
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(names(&fetching.store.path().join("sha256")), Vec::<String>::new());
        assert!(!fetching.store.path().join("m.gguf").exists());
    }
}

#[tokio::test]
async fn archive_that_was_unpacked_is_not_downloaded_again() {
    let archive = tar(&[("m.gguf", b'0', WEIGHTS)]);
    let path_of = |content: &[u8]| format!("/v2/a/m/blobs/{}", Digest::of(content));
    let (packed, raw) = (path_of(&archive), path_of(b"{}"));
    let healed = Arc::new(AtomicBool::new(false));
    let is_healed = Arc::clone(&healed);
    let layers: [Layer<'_>; 2] = [(TAR, "m.gguf", &archive), (RAW, "tokenizer.json", b"{}")];
    let server = registry(&layers, move |asked, _| {
        (asked.path == raw && !is_healed.load(Ordering::SeqCst)).then(|| Reply::status(500))
    });
    let files = BTreeMap::from([
        ("m.gguf".to_owned(), Digest::of(WEIGHTS)),
        ("tokenizer.json".to_owned(), Digest::of(b"{}")),
    ]);
    let fetching = Fetching::new();
    let request = fetching.request_of(source(&server), model_digest(&files).unwrap());
    let error = fetch(&request, &fetching.board).await.unwrap_err();
    assert_eq!(error.reason(), "SourceUnavailable");
    healed.store(true, Ordering::SeqCst);
    let folder = fetch(&request, &fetching.board).await.unwrap();
    assert_eq!(names(&folder), ["m.gguf", "tokenizer.json"]);
    assert_eq!(server.count(&packed), 1);
}
