//! `fetch` against sources that misbehave.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod source_server;

use escadre_runtime::fetch::{Credentials, Login, fetch};
use escadre_runtime::model::Format;
use escadre_runtime::status::Verdict;
use escadre_verify::{Digest, model_digest};
use source_server::{Asked, COMMIT, Fetching, Reply, SourceServer, listing, names};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const WEIGHTS: &[u8] = b"GGUF and then some weights, long enough to be cut in the middle of it all";

fn is_file(asked: &Asked) -> bool {
    asked.path.contains("/resolve/")
}

#[tokio::test]
async fn repository_lands_under_its_digest_and_is_not_downloaded_again() {
    let files: [(&str, &[u8]); 3] = [
        ("model.gguf", WEIGHTS),
        ("config.json", b"{}"),
        ("README.md", b"not part of it"),
    ];
    let server = SourceServer::hub(&files, |_, _| None);
    let digest = model_digest(&BTreeMap::from([
        ("model.gguf".to_owned(), Digest::of(WEIGHTS)),
        ("config.json".to_owned(), Digest::of(b"{}")),
    ]))
    .unwrap();
    let fetching = Fetching::new();
    let folder = fetching.run(&server, digest).await.unwrap();
    assert_eq!(folder, fetching.final_name(digest));
    assert_eq!(names(&folder), ["config.json", "model.gguf"]);
    assert_eq!(std::fs::read(folder.join("model.gguf")).unwrap(), WEIGHTS);
    let note: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.with_extension("json")).unwrap()).unwrap();
    assert_eq!(
        (&note["source"], &note["resolvedRevision"]),
        (&"hf://o/n".into(), &COMMIT.into())
    );
    let status = fetching.board.snapshot();
    assert_eq!(status.verification.result, Verdict::Verified);
    assert_eq!(status.download.unwrap().bytes_done, WEIGHTS.len() as u64 + 2);
    let before = server.asked().len();
    fetching.run(&server, digest).await.unwrap();
    assert_eq!(
        server.asked().len(),
        before,
        "a model that is in the store was asked for again"
    );
}

#[tokio::test]
async fn body_that_breaks_off_is_resumed_where_it_broke() {
    let server = SourceServer::hub(&[("m.gguf", WEIGHTS)], |asked, _| {
        (is_file(asked) && asked.header("range").is_none()).then(|| Reply::file(asked, WEIGHTS, "\"v1\"").cut_after(20))
    });
    let fetching = Fetching::new();
    let folder = fetching.run(&server, Digest::of(WEIGHTS)).await.unwrap();
    assert_eq!(std::fs::read(folder.join("m.gguf")).unwrap(), WEIGHTS);
    let resumed = server
        .asked()
        .into_iter()
        .find(|asked| asked.header("range").is_some())
        .unwrap();
    assert_eq!(resumed.header("range"), Some("bytes=20-"));
    assert_eq!(resumed.header("if-range"), Some("\"v1\""));
}

#[tokio::test]
async fn file_that_changed_in_between_is_begun_anew() {
    let old = vec![b'x'; WEIGHTS.len()];
    let server = SourceServer::hub(&[("m.gguf", WEIGHTS)], move |asked, before| {
        (is_file(asked) && before == 1).then(|| Reply::file(asked, &old, "\"old\"").cut_after(30))
    });
    let folder = Fetching::new();
    let path = folder.run(&server, Digest::of(WEIGHTS)).await.unwrap();
    assert_eq!(std::fs::read(path.join("m.gguf")).unwrap(), WEIGHTS);
}

#[tokio::test]
async fn next_run_goes_on_with_what_an_earlier_one_left() {
    let fetching = Fetching::new();
    let broken = SourceServer::hub(&[("m.gguf", WEIGHTS), ("config.json", b"{}")], |asked, _| {
        asked.path.ends_with("m.gguf").then(|| {
            let reply = Reply::file(asked, WEIGHTS, "\"v1\"");
            // The first answer brings 20 bytes, every later one nothing.
            if asked.header("range").is_some() {
                reply.cut_after(0)
            } else {
                reply.cut_after(20)
            }
        })
    });
    let digest = model_digest(&BTreeMap::from([
        ("m.gguf".to_owned(), Digest::of(WEIGHTS)),
        ("config.json".to_owned(), Digest::of(b"{}")),
    ]))
    .unwrap();
    let error = fetching.run(&broken, digest).await.unwrap_err();
    assert_eq!(error.reason(), "DownloadIncomplete");
    assert!(
        error.to_string().contains(&format!("20 of {}", WEIGHTS.len())),
        "{error}"
    );
    assert!(!fetching.final_name(digest).exists(), "half a model got its final name");

    let healed = SourceServer::hub(&[("m.gguf", WEIGHTS), ("config.json", b"{}")], |_, _| None);
    fetching.run(&healed, digest).await.unwrap();
    assert_eq!(healed.count("config.json"), 0, "a whole file was downloaded again");
    let resumed = healed.asked().into_iter().find(is_file).unwrap();
    assert_eq!(resumed.header("range"), Some("bytes=20-"));
}

#[tokio::test]
async fn wrong_bytes_are_refused_with_both_digests_and_leave_nothing() {
    let server = SourceServer::hub(&[("m.gguf", WEIGHTS)], |_, _| None);
    let fetching = Fetching::new();
    let expected = Digest::of(b"what was approved");
    let error = fetching.run(&server, expected).await.unwrap_err();
    assert_eq!(error.reason(), "DigestMismatch");
    let text = error.to_string();
    assert!(
        text.contains(&expected.to_string()) && text.contains(&Digest::of(WEIGHTS).to_string()),
        "{text}"
    );
    assert_eq!(names(&fetching.store.path().join("sha256")), Vec::<String>::new());
    assert!(!fetching.store.path().join("quarantine").join(expected.hex()).exists());
}

#[tokio::test]
async fn file_that_is_not_what_the_hub_listed_is_refused_before_the_rest_is_downloaded() {
    let server = SourceServer::hub(&[("a.gguf", WEIGHTS), ("b.gguf", WEIGHTS)], |asked, _| {
        let wrong = vec![b'x'; WEIGHTS.len()];
        asked
            .path
            .ends_with("a.gguf")
            .then(|| Reply::file(asked, &wrong, "\"v1\""))
    });
    let error = Fetching::new().run(&server, Digest::of(b"any")).await.unwrap_err();
    assert_eq!(error.reason(), "DigestMismatch");
    assert!(error.to_string().starts_with("a.gguf"), "{error}");
    assert_eq!(server.count("b.gguf"), 0);
}

#[tokio::test]
async fn missing_repository_and_missing_file_name_the_url_and_what_to_check() {
    for missing in ["/api/", "/resolve/"] {
        let server = SourceServer::hub(&[("m.gguf", WEIGHTS)], move |asked, _| {
            asked.path.contains(missing).then(|| Reply::status(404))
        });
        let error = Fetching::new().run(&server, Digest::of(WEIGHTS)).await.unwrap_err();
        assert_eq!(error.reason(), "SourceUnavailable");
        let text = error.to_string();
        assert!(
            text.contains(&server.url) && text.contains("404") && text.contains("check"),
            "{text}"
        );
        assert_eq!(server.count("404"), 0);
    }
}

#[tokio::test]
async fn busy_source_is_asked_again_when_it_says_so() {
    let server = SourceServer::hub(&[("m.gguf", WEIGHTS)], |_, before| match before {
        0 => Some(Reply::status(503)),
        2 => Some(Reply::status(429).header("retry-after", "1")),
        3 => Some(Reply::status(500)),
        _ => None,
    });
    let began = Instant::now();
    Fetching::new().run(&server, Digest::of(WEIGHTS)).await.unwrap();
    assert!(
        began.elapsed() >= Duration::from_secs(1),
        "Retry-After was not honoured"
    );
    assert_eq!(server.asked().len(), 5);
}

#[tokio::test]
async fn source_that_stays_broken_or_away_is_given_up() {
    let server = SourceServer::start(|_, _| Reply::status(502));
    let error = Fetching::new().run(&server, Digest::of(WEIGHTS)).await.unwrap_err();
    assert_eq!(error.reason(), "SourceUnavailable");
    assert!(error.to_string().contains("502"), "{error}");
    assert_eq!(server.asked().len(), 4);

    let fetching = Fetching::new();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let mut request = fetching.request(&server, Digest::of(WEIGHTS));
    request.endpoint = Some(format!("http://{nobody}"));
    let error = fetch(&request, &fetching.board).await.unwrap_err();
    assert_eq!(error.reason(), "SourceUnavailable");
    assert!(error.to_string().contains("connection"), "{error}");
}

#[tokio::test]
async fn token_goes_to_the_source_and_not_where_it_redirects_to() {
    let storage = SourceServer::start(|asked, _| Reply::file(asked, WEIGHTS, "\"s\""));
    let target = storage.url.clone();
    let server = SourceServer::hub(&[("m.gguf", WEIGHTS)], move |asked, _| {
        if asked.path.contains("/resolve/") {
            return Some(Reply::status(302).header("location", "/moved/m.gguf"));
        }
        asked
            .path
            .starts_with("/moved/")
            .then(|| Reply::status(307).header("location", format!("{target}/signed?x=1")))
    });
    let fetching = Fetching::new();
    let mut request = fetching.request(&server, Digest::of(WEIGHTS));
    request.credentials = Credentials::Token("secret".into());
    fetch(&request, &fetching.board).await.unwrap();
    assert!(
        server
            .asked()
            .iter()
            .all(|asked| asked.header("authorization") == Some("Bearer secret"))
    );
    assert_eq!(storage.asked().len(), 1);
    assert_eq!(storage.asked()[0].header("authorization"), None, "the token leaked");
}

#[tokio::test]
async fn login_goes_to_the_source_and_not_where_it_redirects_to() {
    let storage = SourceServer::start(|asked, _| Reply::file(asked, WEIGHTS, "\"s\""));
    let target = storage.url.clone();
    let server = SourceServer::start(move |_, _| Reply::status(302).header("location", format!("{target}/m.gguf")));
    let fetching = Fetching::new();
    let mut request = fetching.request(&server, Digest::of(WEIGHTS));
    request.source = format!("{}/m.gguf", server.url);
    request.credentials = Credentials::Login(Login {
        username: "aladdin".into(),
        password: "opensesame".into(),
    });
    fetch(&request, &fetching.board).await.unwrap();
    assert_eq!(
        server.asked()[0].header("authorization"),
        Some("Basic YWxhZGRpbjpvcGVuc2VzYW1l")
    );
    assert_eq!(storage.asked()[0].header("authorization"), None, "the password leaked");

    request.source = "hf://o/n".into();
    let error = fetch(&request, &fetching.board).await.unwrap_err();
    assert_eq!(error.reason(), "SecretMissing");
    assert!(error.to_string().contains("the key token"), "{error}");
}

#[tokio::test]
async fn format_chooses_among_the_usual_files() {
    let files: [(&str, &[u8]); 3] = [
        ("m.gguf", WEIGHTS),
        ("model.safetensors", b"other weights"),
        ("LICENSE", b"free"),
    ];
    let server = SourceServer::hub(&files, |_, _| None);
    let digest = model_digest(&BTreeMap::from([
        ("m.gguf".to_owned(), Digest::of(WEIGHTS)),
        ("LICENSE".to_owned(), Digest::of(b"free")),
    ]))
    .unwrap();
    let fetching = Fetching::new();
    let mut request = fetching.request(&server, digest);
    request.format = Some(Format::Gguf);
    let folder = fetch(&request, &fetching.board).await.unwrap();
    assert_eq!(names(&folder), ["LICENSE", "m.gguf"]);
    assert_eq!(server.count("safetensors"), 0);
}

#[tokio::test]
async fn redirects_in_a_circle_or_to_a_file_are_refused() {
    for target in ["/api/models/o/n/revision/main", "file:///etc/passwd", "ftp://host/x"] {
        let server = SourceServer::start(move |_, _| Reply::status(302).header("location", target));
        let error = Fetching::new().run(&server, Digest::of(WEIGHTS)).await.unwrap_err();
        assert_eq!(error.reason(), "RedirectRefused", "{target}");
        assert!(server.asked().len() <= 6);
    }
}

#[tokio::test]
async fn source_that_wants_a_token_says_so() {
    let server = SourceServer::start(|_, _| Reply::status(401));
    let fetching = Fetching::new();
    let error = fetching.run(&server, Digest::of(WEIGHTS)).await.unwrap_err();
    assert_eq!(error.reason(), "SecretMissing");
    let mut request = fetching.request(&server, Digest::of(WEIGHTS));
    request.credentials = Credentials::Token("wrong".into());
    let error = fetch(&request, &fetching.board).await.unwrap_err();
    assert_eq!(error.reason(), "SourceUnavailable");
    assert!(
        error.to_string().contains("token") && !error.to_string().contains("wrong"),
        "{error}"
    );
}

#[tokio::test]
async fn pointer_of_git_lfs_is_not_taken_for_the_file() {
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 98362432\n";
    let server = SourceServer::hub(&[("m.gguf", WEIGHTS)], move |asked, _| {
        is_file(asked).then(|| Reply::file(asked, pointer, "\"p\""))
    });
    let error = Fetching::new().run(&server, Digest::of(WEIGHTS)).await.unwrap_err();
    assert_eq!(error.reason(), "LfsPointer");
}

#[tokio::test]
async fn names_that_leave_the_folder_are_refused_before_anything_is_downloaded() {
    for name in ["../../escape.gguf", "/etc/escape.gguf", "a/../escape.gguf"] {
        let server = SourceServer::start(move |_, _| Reply::ok(listing(&[(name.to_owned(), WEIGHTS.to_vec())])));
        let fetching = Fetching::new();
        let mut request = fetching.request(&server, Digest::of(WEIGHTS));
        request.files = vec!["**".into()];
        let error = fetch(&request, &fetching.board).await.unwrap_err();
        assert_eq!(error.reason(), "PathInvalid", "{name}");
        assert_eq!(server.asked().len(), 1);
    }
}

#[tokio::test]
async fn answer_that_is_longer_than_listed_is_refused() {
    let server = SourceServer::hub(&[("m.gguf", WEIGHTS)], |asked, _| {
        is_file(asked).then(|| Reply::ok(vec![b'x'; 5000]))
    });
    let error = Fetching::new().run(&server, Digest::of(WEIGHTS)).await.unwrap_err();
    assert_eq!(error.reason(), "SourceUnavailable");
    assert!(error.to_string().contains("contradicts"), "{error}");
}

#[tokio::test]
async fn listing_of_another_kind_of_server_is_refused() {
    for body in ["<html>", "{}", "{\"sha\": \"main\", \"siblings\": []}", "[]"] {
        let server = SourceServer::start(move |_, _| Reply::ok(body));
        let error = Fetching::new().run(&server, Digest::of(WEIGHTS)).await.unwrap_err();
        assert_eq!(error.reason(), "SourceUnavailable", "{body}");
        assert!(error.to_string().contains("check the endpoint"), "{error}");
    }
}

#[tokio::test]
async fn single_file_is_fetched_and_resumed_without_a_hub() {
    let server = SourceServer::start(|asked, _| {
        let reply = Reply::file(asked, WEIGHTS, "\"v1\"");
        if asked.header("range").is_some() {
            reply
        } else {
            reply.cut_after(11)
        }
    });
    let fetching = Fetching::new();
    let mut request = fetching.request(&server, Digest::of(WEIGHTS));
    request.source = format!("{}/files/my%20model.gguf?signature=abc", server.url);
    let folder = fetch(&request, &fetching.board).await.unwrap();
    assert_eq!(names(&folder), ["my model.gguf"]);
    let note = std::fs::read_to_string(folder.with_extension("json")).unwrap();
    assert!(!note.contains("signature"), "{note}");
}

#[tokio::test]
async fn damaged_model_in_the_store_is_fetched_again() {
    let server = SourceServer::hub(&[("m.gguf", WEIGHTS)], |_, _| None);
    let fetching = Fetching::new();
    let digest = Digest::of(WEIGHTS);
    let folder = fetching.run(&server, digest).await.unwrap();
    std::fs::write(folder.join("m.gguf"), b"damaged").unwrap();
    fetching.run(&server, digest).await.unwrap();
    assert_eq!(std::fs::read(folder.join("m.gguf")).unwrap(), WEIGHTS);
}

#[tokio::test]
async fn rest_of_another_file_is_not_taken_where_the_validator_is_not_understood() {
    let server = SourceServer::hub(&[("m.gguf", WEIGHTS)], |asked, before| match before {
        1 => Some(Reply::file(asked, &vec![b'x'; WEIGHTS.len()], "\"old\"").cut_after(30)),
        // Storage that does not know `If-Range` sends the rest of what is there now, under its own validator.
        2 => {
            let rest = Reply {
                status: 206,
                body: WEIGHTS[30..].to_vec(),
                ..Reply::default()
            };
            let range = format!("bytes 30-{}/{}", WEIGHTS.len() - 1, WEIGHTS.len());
            Some(rest.header("content-range", range).header("etag", "\"new\""))
        }
        _ => None,
    });
    let fetching = Fetching::new();
    let folder = fetching.run(&server, Digest::of(WEIGHTS)).await.unwrap();
    assert_eq!(std::fs::read(folder.join("m.gguf")).unwrap(), WEIGHTS);
}

#[tokio::test]
async fn part_that_begins_elsewhere_is_not_taken_for_the_rest() {
    let server = SourceServer::hub(&[("m.gguf", WEIGHTS)], |asked, before| match before {
        1 => Some(Reply::file(asked, WEIGHTS, "\"v1\"").cut_after(30)),
        2 => {
            let start = Reply {
                status: 206,
                body: WEIGHTS.to_vec(),
                ..Reply::default()
            };
            let range = format!("bytes 0-{}/{}", WEIGHTS.len() - 1, WEIGHTS.len());
            Some(start.header("content-range", range).header("etag", "\"v1\""))
        }
        _ => None,
    });
    let fetching = Fetching::new();
    let folder = fetching.run(&server, Digest::of(WEIGHTS)).await.unwrap();
    assert_eq!(std::fs::read(folder.join("m.gguf")).unwrap(), WEIGHTS);
}

#[tokio::test]
async fn listings_that_are_too_large_or_too_deep_are_refused() {
    let large = SourceServer::start(|_, _| Reply::ok(vec![b' '; (16 << 20) + 1]));
    let error = Fetching::new().run(&large, Digest::of(WEIGHTS)).await.unwrap_err();
    assert_eq!(error.reason(), "SizeLimit");
    let deep = SourceServer::start(|_, _| Reply::ok("[".repeat(1 << 20)));
    let error = Fetching::new().run(&deep, Digest::of(WEIGHTS)).await.unwrap_err();
    assert_eq!(error.reason(), "SourceUnavailable");
    assert!(error.to_string().contains("recursion limit"), "{error}");
    let many: Vec<_> = (0..10_001).map(|n| (format!("{n}.gguf"), Vec::new())).collect();
    let many = listing(&many);
    let many = SourceServer::start(move |_, _| Reply::ok(many.clone()));
    let error = Fetching::new().run(&many, Digest::of(WEIGHTS)).await.unwrap_err();
    assert!(error.to_string().contains("more than 10000 files"), "{error}");
}

#[tokio::test]
async fn lengths_beyond_all_numbers_are_no_room() {
    let sibling = |name: &str| serde_json::json!({"rfilename": name, "size": u64::MAX});
    let siblings = [sibling("a.gguf"), sibling("b.gguf")];
    let body = serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string();
    let server = SourceServer::start(move |_, _| Reply::ok(body.clone()));
    let error = Fetching::new().run(&server, Digest::of(WEIGHTS)).await.unwrap_err();
    assert_eq!(error.reason(), "CacheFull");
}

#[tokio::test]
async fn several_fetchers_of_one_store_download_once() {
    let server = SourceServer::hub(&[("m.gguf", WEIGHTS)], |asked, _| {
        if is_file(asked) {
            std::thread::sleep(Duration::from_millis(50));
        }
        None
    });
    let fetching = Fetching::new();
    let digest = Digest::of(WEIGHTS);
    let runs = (0..4).map(|_| fetching.run(&server, digest));
    for folder in futures::future::join_all(runs).await {
        assert_eq!(folder.unwrap(), fetching.final_name(digest));
    }
    assert_eq!(server.count("m.gguf"), 1);
}
