//! The model hub that tests talk to answers as the real one, and misbehaves as told. Needs no cluster.

#![expect(clippy::unwrap_used, reason = "a helper of tests fails the test")]

use std::fs;

use escadre_e2e::mirror::{Fault, Mirror};
use reqwest::{Method, Response, StatusCode};
use tempfile::TempDir;

const CONTENT: &[u8] = &[7; 100_000];

async fn mirror() -> (TempDir, Mirror) {
    let _other_test_was_first = rustls::crypto::ring::default_provider().install_default();
    let root = tempfile::tempdir().unwrap();
    let model = root.path().join("someone/tiny");
    fs::create_dir_all(model.join("nested")).unwrap();
    fs::write(model.join("model.gguf"), CONTENT).unwrap();
    fs::write(model.join("nested/config.json"), "{}").unwrap();
    let mirror = Mirror::start(root.path(), ([127, 0, 0, 1], 0).into()).await.unwrap();
    (root, mirror)
}

async fn send(mirror: &Mirror, method: Method, path: &str, range: Option<&str>) -> Response {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut request = client.request(method, format!("{}{path}", mirror.endpoint()));
    if let Some(range) = range {
        request = request.header("range", range);
    }
    request.send().await.unwrap()
}

fn header<'a>(answer: &'a Response, name: &str) -> &'a str {
    answer.headers()[name].to_str().unwrap()
}

const FILE: &str = "/someone/tiny/resolve/main/model.gguf";

#[tokio::test]
async fn files_are_listed_with_a_revision_that_can_be_asked_for() {
    let (_root, mirror) = mirror().await;
    let answer = send(&mirror, Method::GET, "/api/models/someone/tiny/revision/main", None).await;
    let body: serde_json::Value = answer.json().await.unwrap();
    let names: Vec<&str> = body["siblings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| file["rfilename"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["model.gguf", "nested/config.json"]);
    let sha = body["sha"].as_str().unwrap();
    assert_eq!(sha, mirror.revision("someone/tiny").unwrap());
    assert_eq!(sha.len(), 40);
    let pinned = send(
        &mirror,
        Method::GET,
        &format!("/someone/tiny/resolve/{sha}/nested/config.json"),
        None,
    )
    .await;
    assert_eq!(header(&pinned, "x-repo-commit"), sha);
    assert_eq!(pinned.text().await.unwrap(), "{}");
}

#[tokio::test]
async fn whole_files_and_ranges_are_served() {
    let (_root, mirror) = mirror().await;
    let head = send(&mirror, Method::HEAD, FILE, None).await;
    assert_eq!(
        (head.status(), header(&head, "content-length")),
        (StatusCode::OK, "100000")
    );
    assert_eq!(header(&head, "x-linked-size"), "100000");
    assert_eq!(header(&head, "x-linked-etag").len(), 66);
    let whole = send(&mirror, Method::GET, FILE, None).await;
    assert_eq!(whole.bytes().await.unwrap(), CONTENT);
    let rest = send(&mirror, Method::GET, FILE, Some("bytes=99990-")).await;
    assert_eq!(rest.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(header(&rest, "content-range"), "bytes 99990-99999/100000");
    assert_eq!(rest.bytes().await.unwrap().len(), 10);
    let beyond = send(&mirror, Method::GET, FILE, Some("bytes=100000-")).await;
    assert_eq!(beyond.status(), StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!(mirror.seen().iter().filter(|seen| seen.range.is_some()).count(), 2);
}

#[tokio::test]
async fn what_is_not_there_answers_404_with_the_hubs_codes() {
    let (_root, mirror) = mirror().await;
    for (path, code) in [
        ("/api/models/someone/other/revision/main", "RepoNotFound"),
        ("/api/models/someone/tiny/revision/v2", "RevisionNotFound"),
        ("/someone/tiny/resolve/main/other.gguf", "EntryNotFound"),
        ("/someone/tiny/resolve/main/..%2f..%2fsecret", "EntryNotFound"),
        ("/api/models/../tiny/revision/main", "EntryNotFound"),
    ] {
        let answer = send(&mirror, Method::GET, path, None).await;
        assert_eq!(answer.status(), StatusCode::NOT_FOUND, "{path}");
        assert_eq!(header(&answer, "x-error-code"), code, "{path}");
    }
}

#[tokio::test]
async fn faults_are_what_they_say() {
    let (_root, mirror) = mirror().await;
    mirror.set_fault(Some(Fault::NotFound));
    assert_eq!(
        send(&mirror, Method::GET, FILE, None).await.status(),
        StatusCode::NOT_FOUND
    );
    mirror.set_fault(Some(Fault::Error));
    assert_eq!(
        send(&mirror, Method::GET, FILE, None).await.status(),
        StatusCode::INTERNAL_SERVER_ERROR
    );
    mirror.set_fault(Some(Fault::Cut));
    let cut = send(&mirror, Method::GET, FILE, None).await;
    assert_eq!(cut.status(), StatusCode::OK);
    cut.bytes().await.unwrap_err();
    mirror.set_fault(Some(Fault::WrongBytes));
    let wrong = send(&mirror, Method::GET, FILE, None).await.bytes().await.unwrap();
    assert_eq!(wrong.iter().zip(CONTENT).filter(|(one, other)| one != other).count(), 1);
    mirror.set_fault(Some(Fault::Slow(200_000)));
    let started = std::time::Instant::now();
    assert_eq!(
        send(&mirror, Method::GET, FILE, None).await.bytes().await.unwrap(),
        CONTENT
    );
    assert!(started.elapsed().as_millis() >= 400, "{:?}", started.elapsed());
}

#[tokio::test]
async fn token_is_required_when_set() {
    let (_root, mirror) = mirror().await;
    mirror.set_token(Some("right".to_owned()));
    assert_eq!(
        send(&mirror, Method::GET, FILE, None).await.status(),
        StatusCode::UNAUTHORIZED
    );
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("{}{FILE}", mirror.endpoint());
    let answer = client.get(url).bearer_auth("right").send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
}
