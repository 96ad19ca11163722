//! API keys that are edited while the server runs, and limits for each of them.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod serving;

use axum::body::Body;
use escadre_verify::Digest;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use reqwest::Response;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use serving::{Process, client, question};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const CHAT: &str = "/v1/chat/completions";
const ALICE: &str = "sk-the-key-of-alice-0001";
const BOB: &str = "sk-the-key-of-bob-000002";
const NEW: &str = "sk-another-key-of-alice3";

async fn ask(process: &Process, key: Option<&str>, body: &Value) -> Response {
    let request = client().post(process.api(CHAT)).json(body);
    let request = match key {
        Some(key) => request.bearer_auth(key),
        None => request,
    };
    request.send().await.unwrap()
}

async fn code(response: Response) -> (u16, String) {
    let status = response.status().as_u16();
    let body: Value = response.json().await.unwrap();
    (status, body["error"]["code"].as_str().unwrap_or_default().to_owned())
}

fn short() -> Value {
    question("Hi", &json!({"max_tokens": 2}))
}

fn write(folder: &Path, name: &str, content: &str) {
    std::fs::write(folder.join(name), content).unwrap();
}

/// Waits until this key is taken, or is not any more.
async fn until(process: &Process, key: &str, status: u16) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while ask(process, Some(key), &short()).await.status() != status {
        assert!(Instant::now() < deadline, "{key} is still not answered with {status}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_asked_for_and_may_be_changed_while_it_runs() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "alice", ALICE);
    write(folder.path(), "bob", &Digest::of(BOB.as_bytes()).to_string());
    let keys = format!("--api-keys={}", folder.path().display());
    let process = Process::ready(&["--max-context=512", &keys]);
    for key in [None, Some("wrong-key-of-some-length"), Some("")] {
        let response = ask(&process, key, &short()).await;
        assert_eq!(response.headers()["www-authenticate"], "Bearer");
        assert_eq!(code(response).await, (401, "invalid_api_key".to_owned()), "{key:?}");
    }
    for path in ["/v1/models", "/tokenize", "/nowhere"] {
        assert_eq!(
            client().get(process.api(path)).send().await.unwrap().status(),
            401,
            "{path}"
        );
    }
    for key in [ALICE, BOB] {
        assert_eq!(ask(&process, Some(key), &short()).await.status(), 200);
    }
    // Both keys of a client are valid while it changes from one to the other.
    write(folder.path(), "alice-2", NEW);
    until(&process, NEW, 200).await;
    assert_eq!(ask(&process, Some(ALICE), &short()).await.status(), 200);
    // A mistake changes nothing.
    write(folder.path(), "carol", "short");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(ask(&process, Some(ALICE), &short()).await.status(), 200);
    std::fs::remove_file(folder.path().join("carol")).unwrap();
    std::fs::remove_file(folder.path().join("alice")).unwrap();
    until(&process, ALICE, 401).await;
    assert_eq!(ask(&process, Some(NEW), &short()).await.status(), 200);
    let metrics = client()
        .get(process.admin("/metrics"))
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    let bob = "escadre_client_tokens_total{model_name=\"smol\",client=\"bob\",kind=\"Completion\"} 2";
    assert!(metrics.contains(bob), "{metrics}");
    assert!(!metrics.contains("sk-the"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_client_has_limits_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "alice", ALICE);
    write(folder.path(), "bob", BOB);
    let keys = format!("--api-keys={}", folder.path().display());
    let process = Process::ready(&[
        "--max-context=512",
        &keys,
        "--require-key=false",
        "--requests-per-minute=3",
        "--tokens-per-minute=300",
    ]);
    let first = ask(&process, Some(ALICE), &short()).await;
    let header = |name: &str| first.headers()[name].to_str().unwrap().to_owned();
    assert_eq!(
        (header("x-ratelimit-limit-requests"), header("x-ratelimit-limit-tokens")),
        ("3".into(), "300".into())
    );
    assert_eq!(header("x-ratelimit-remaining-requests"), "2");
    assert!(header("x-ratelimit-remaining-tokens").parse::<u32>().unwrap() < 300);
    assert!(header("x-ratelimit-reset-requests").ends_with('s'), "{first:?}");
    // A mistake is a request, too.
    assert_eq!(ask(&process, Some(ALICE), &json!({})).await.status(), 400);
    assert_eq!(ask(&process, Some(ALICE), &short()).await.status(), 200);
    let fourth = ask(&process, Some(ALICE), &short()).await;
    let wait: u64 = fourth.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=20).contains(&wait), "{wait}");
    assert_eq!(code(fourth).await, (429, "rate_limit_exceeded".to_owned()));
    // Others are not meant, and what generates nothing is free.
    let models = client()
        .get(process.api("/v1/models"))
        .bearer_auth(ALICE)
        .send()
        .await
        .unwrap();
    assert_eq!(models.status(), 200);
    assert_eq!(ask(&process, None, &short()).await.status(), 200);
    assert_eq!(
        ask(&process, Some("wrong-key-of-some-length"), &short()).await.status(),
        401
    );
    // An answer may cost more than is left; the next prompt has to wait for it.
    let long = question(
        "Tell me of the sea.",
        &json!({"max_tokens": 280, "logit_bias": {"2": -100}}),
    );
    assert_eq!(ask(&process, Some(BOB), &long).await.status(), 200);
    let next = ask(&process, Some(BOB), &short()).await;
    assert_eq!(code(next).await, (429, "rate_limit_exceeded".to_owned()));
    let larger = question(&"word ".repeat(350), &json!({"max_tokens": 1}));
    let never = ask(&process, None, &larger).await;
    assert!(!never.headers().contains_key("retry-after"), "{never:?}");
    assert_eq!(code(never).await, (429, "rate_limit_exceeded".to_owned()));
}

/// Writes a new certificate for the server.
fn certify(folder: &Path) -> reqwest::Certificate {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    write(folder, "tls.key", &made.signing_key.serialize_pem());
    write(folder, "tls.crt", &made.cert.pem());
    reqwest::Certificate::from_der(made.cert.der()).unwrap()
}

/// A client that trusts no other certificate. A new one each time: one that was here before is not shown it again.
fn trusting(root: &reqwest::Certificate) -> reqwest::Client {
    let _ = client();
    let builder = reqwest::Client::builder().no_proxy().tls_certs_only([root.clone()]);
    builder.build().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_replaced_while_it_runs() {
    let folder = tempfile::tempdir().unwrap();
    let first = certify(folder.path());
    let process = Process::ready(&["--max-context=512", &format!("--tls={}", folder.path().display())]);
    let url = format!("https://localhost:{}/v1/chat/completions", process.port);
    let ask = async |root: &reqwest::Certificate, more: Value| {
        trusting(root).post(&url).json(&question("Hi", &more)).send().await
    };
    let answer = ask(&first, json!({"max_tokens": 2})).await.unwrap();
    assert_eq!(answer.status(), 200);
    let plain = client().get(process.api("/v1/models")).send().await;
    assert!(plain.is_err(), "without encryption: {plain:?}");
    // One that is there goes on, and new ones have the new certificate.
    let stream = ask(&first, json!({"max_tokens": 300, "stream": true})).await.unwrap();
    let second = certify(folder.path());
    let deadline = Instant::now() + Duration::from_secs(30);
    while ask(&second, json!({"max_tokens": 1})).await.is_err() {
        assert!(Instant::now() < deadline, "the new certificate is not used");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(ask(&first, json!({"max_tokens": 1})).await.is_err());
    assert!(stream.text().await.unwrap().ends_with("data: [DONE]\n\n"));
    // A key of another certificate changes nothing.
    let other = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    write(folder.path(), "tls.key", &other.signing_key.serialize_pem());
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(ask(&second, json!({"max_tokens": 1})).await.unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_is_agreed_upon_over_tls() {
    let folder = tempfile::tempdir().unwrap();
    certify(folder.path());
    let process = Process::ready(&["--max-context=512", &format!("--tls={}", folder.path().display())]);
    let certificate = std::fs::read(folder.path().join("tls.crt")).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(&certificate).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut config = config.unwrap().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = tokio::net::TcpStream::connect(("127.0.0.1", process.port))
        .await
        .unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let tls = connector.connect("localhost".try_into().unwrap(), tcp).await.unwrap();
    assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(tls)).await.unwrap();
    tokio::spawn(connection);
    let chat = hyper::Request::post(format!("https://localhost:{}{CHAT}", process.port))
        .header("content-type", "application/json")
        .body(Body::from(
            question("Hi", &json!({"max_tokens": 3, "stream": true})).to_string(),
        ))
        .unwrap();
    let answer = sender.send_request(chat).await.unwrap();
    assert_eq!(
        (answer.version(), answer.status().as_u16()),
        (hyper::Version::HTTP_2, 200)
    );
    let text = axum::body::to_bytes(Body::new(answer.into_body()), 1 << 20)
        .await
        .unwrap();
    assert!(text.ends_with(b"data: [DONE]\n\n"));
}

/// The operator has no key: it asks through the other port, and not much.
#[tokio::test(flavor = "multi_thread")]
async fn probe_prompts_need_no_key_and_are_short() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "alice", ALICE);
    let keys = format!("--api-keys={}", folder.path().display());
    let process = Process::ready(&["--max-context=512", &keys]);
    let probe = async |body: Value| {
        let answer = client().post(process.admin("/probe")).json(&body).send().await.unwrap();
        let status = answer.status().as_u16();
        (status, answer.json::<Value>().await.unwrap())
    };
    let (status, answer) = probe(json!({"prompt": "How many days are in a week?", "max_tokens": 16})).await;
    assert_eq!(status, 200, "{answer}");
    assert!(answer["answer"].as_str().unwrap().contains('7'), "{answer}");
    for (bad, param) in [
        (json!({}), "prompt"),
        (json!({"prompt": 5}), "prompt"),
        (json!({"prompt": "Hi", "max_tokens": 257}), "max_tokens"),
        (json!({"prompt": "Hi", "stream": true}), "stream"),
    ] {
        let (status, error) = probe(bad).await;
        assert_eq!((status, &error["error"]["param"]), (400, &json!(param)), "{error}");
    }
    let long = json!({"prompt": "Tell me of the sea.", "max_tokens": 256});
    let (one, other) = futures::join!(probe(long.clone()), probe(long));
    let mut statuses = [one.0, other.0];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 429]);
    assert_eq!(ask(&process, None, &short()).await.status(), 401);
}

#[test]
fn keys_that_are_none_are_refused_at_the_start() {
    let empty = tempfile::tempdir().unwrap();
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "alice", "short");
    let here = folder.path().display();
    for (args, words) in [
        (format!("--api-keys={here}"), "the key of `alice`"),
        ("--api-keys=/nonexistent".to_owned(), "No such file"),
        (format!("--api-keys={}", empty.path().display()), "there is no key"),
        ("--limits=/nonexistent".to_owned(), "No such file"),
        (format!("--tls={here}"), "tls.crt: No such file"),
    ] {
        let model = format!("--model={}", serving::model().display());
        let (status, text) =
            Process::spawn(&["serve", &model, &args, "--port=0", "--admin-port=0"], None).wait(Duration::from_secs(30));
        assert!(!status.success() && text.contains(words), "{text}");
    }
}
