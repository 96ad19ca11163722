//! `fetch` from object storage that misbehaves.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod source_server;

use escadre_runtime::fetch::{AccessKeys, Credentials, FetchError, Request, fetch};
use escadre_verify::Digest;
use source_server::{Asked, Fetching, Reply, SourceServer, names};

const WEIGHTS: &[u8] = b"GGUF and then some weights, long enough to be cut in the middle of it all";

/// A listing of these keys, with a token when more is to come.
fn listing(keys: &[&str], token: Option<&str>) -> String {
    let contents: Vec<String> = keys
        .iter()
        .map(|key| format!("<Contents><Key>{key}</Key><Size>{}</Size></Contents>", WEIGHTS.len()))
        .collect();
    let contents = contents.concat();
    let more = token.map_or_else(
        || "<IsTruncated>false</IsTruncated>".to_owned(),
        |token| format!("<IsTruncated>true</IsTruncated><NextContinuationToken>{token}</NextContinuationToken>"),
    );
    format!("<ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">{contents}{more}</ListBucketResult>")
}

fn is_listing(asked: &Asked) -> bool {
    asked.path.contains("list-type=2")
}

fn request(fetching: &Fetching, server: &SourceServer) -> Request {
    Request {
        endpoint: Some(server.url.clone()),
        region: Some("eu-tests-1".into()),
        credentials: Credentials::Keys(AccessKeys {
            access_key_id: "AKIATESTS".into(),
            secret_access_key: "secret-7".into(),
            session_token: Some("session".into()),
        }),
        ..fetching.request_of("s3://models/m", Digest::of(WEIGHTS))
    }
}

async fn refusal(answer: impl Fn(&Asked, usize) -> Reply + Send + Sync + 'static) -> FetchError {
    let server = SourceServer::start(answer);
    let fetching = Fetching::new();
    fetch(&request(&fetching, &server), &fetching.board).await.unwrap_err()
}

#[tokio::test]
async fn each_request_is_signed_and_what_is_redirected_elsewhere_is_not() {
    let storage = SourceServer::start(|asked, _| Reply::file(asked, WEIGHTS, "\"s\""));
    let target = storage.url.clone();
    let server = SourceServer::start(move |asked, before| match before {
        0 => Reply::status(503),
        _ if is_listing(asked) => Reply::ok(listing(&["m/m.gguf"], None)),
        _ => Reply::status(307).header("location", format!("{target}/m.gguf")),
    });
    let fetching = Fetching::new();
    let folder = fetch(&request(&fetching, &server), &fetching.board).await.unwrap();
    assert_eq!(names(&folder), ["m.gguf"]);
    let asked = server.asked();
    assert_eq!(asked.len(), 3);
    for asked in asked {
        assert!(asked.path.starts_with("/models/"), "{}", asked.path);
        for part in [
            "X-Amz-Algorithm=AWS4-HMAC-SHA256",
            "X-Amz-Credential=AKIATESTS",
            "eu-tests-1",
            "X-Amz-Security-Token=session",
            "X-Amz-Signature=",
        ] {
            assert!(asked.path.contains(part), "{part}: {}", asked.path);
        }
        assert!(!asked.path.contains("secret-7"));
    }
    assert_eq!(storage.asked()[0].path, "/m.gguf");
}

#[tokio::test]
async fn pages_are_followed_and_siblings_of_the_prefix_are_left_out() {
    let server = SourceServer::start(|asked, _| {
        if !is_listing(asked) {
            return Reply::file(asked, WEIGHTS, "\"v1\"");
        }
        Reply::ok(if asked.path.contains("continuation-token=next") {
            listing(&["m/z.gguf", "m/", "elsewhere/x.gguf"], None)
        } else {
            listing(&["m/a.txt"], Some("next"))
        })
    });
    let fetching = Fetching::new();
    let folder = fetch(&request(&fetching, &server), &fetching.board).await.unwrap();
    assert_eq!(names(&folder), ["z.gguf"]);
}

#[tokio::test]
async fn listings_that_are_none_or_have_no_end_are_refused() {
    let deep = format!("<ListBucketResult>{}", "<x>".repeat(3 << 20));
    for (body, reason, words) in [
        ("<html>".to_owned(), "SourceUnavailable", "no listing"),
        (deep, "SourceUnavailable", "nested too deep"),
        ("<!DOCTYPE x>".to_owned(), "SourceUnavailable", "declarations"),
        (" ".repeat((16 << 20) + 1), "SizeLimit", "larger"),
        (listing(&[], Some("again")), "SourceUnavailable", "never ends"),
    ] {
        let error = refusal(move |_, _| Reply::ok(body.clone())).await;
        assert_eq!(error.reason(), reason, "{words}: {error}");
        assert!(error.to_string().contains(words), "{error}");
        assert!(!error.to_string().contains("X-Amz"), "{error}");
    }
}

#[tokio::test]
async fn keys_that_leave_the_folder_are_refused_before_anything_is_downloaded() {
    for key in ["m/../../escape.gguf", "m//etc/escape.gguf", "m/./escape.gguf"] {
        let server = SourceServer::start(move |asked, _| {
            assert!(is_listing(asked), "{}", asked.path);
            Reply::ok(listing(&[key], None))
        });
        let fetching = Fetching::new();
        let mut request = request(&fetching, &server);
        request.files = vec!["**".into()];
        let error = fetch(&request, &fetching.board).await.unwrap_err();
        assert_eq!(error.reason(), "PathInvalid", "{key}");
    }
}

#[tokio::test]
async fn refusal_has_the_own_word_of_the_storage() {
    let body = "<Error><Code>RequestTimeTooSkewed</Code><Message>secret-7</Message></Error>";
    let error = refusal(move |_, _| Reply {
        status: 403,
        body: body.into(),
        ..Reply::default()
    })
    .await;
    let text = error.to_string();
    assert!(text.contains("RequestTimeTooSkewed") && text.contains("keys"), "{text}");
    assert!(!text.contains("secret-7"), "{text}");
}
