//! `fetch` through a proxy and with certificates of one's own.

#![expect(clippy::unwrap_used, reason = "a helper of tests fails the test")]

use escadre_runtime::args::Identity;
use escadre_runtime::fetch::{Credentials, FetchError, Request, RetryPolicy, Route, fetch};
use escadre_runtime::status::{Board, Stage};
use escadre_verify::Digest;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const WEIGHTS: &[u8] = b"GGUF and some weights";
/// A name that no resolver knows: only a proxy can reach it.
const HOST: &str = "models.invalid";

/// A web server with a certificate of its own authority.
struct SecureServer {
    address: SocketAddr,
    certificate: String,
    headers: Arc<Mutex<Vec<String>>>,
}

impl SecureServer {
    fn start() -> Self {
        let made = rcgen::generate_simple_self_signed(vec![HOST.to_owned(), "localhost".to_owned()]).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let headers: Arc<Mutex<Vec<String>>> = Arc::default();
        let log = Arc::clone(&headers);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (config, log) = (Arc::clone(&config), Arc::clone(&log));
                std::thread::spawn(move || answer(stream, config, &log));
            }
        });
        Self {
            address,
            certificate: made.cert.pem(),
            headers,
        }
    }
}

fn answer(stream: TcpStream, config: Arc<ServerConfig>, log: &Mutex<Vec<String>>) -> Option<()> {
    let tls = StreamOwned::new(ServerConnection::new(config).ok()?, stream);
    let mut reader = BufReader::new(tls);
    let request = read_head(&mut reader)?;
    log.lock().unwrap().push(request);
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        WEIGHTS.len()
    );
    let stream = reader.get_mut();
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(WEIGHTS).ok()?;
    stream.conn.send_close_notify();
    stream.flush().ok()
}

fn read_head(reader: &mut impl BufRead) -> Option<String> {
    let mut head = String::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if line == "\r\n" {
            return Some(head.to_ascii_lowercase());
        }
        head.push_str(&line);
    }
}

/// A proxy that leads every tunnel to one address, and counts them.
fn start_proxy(target: SocketAddr) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let tunnels: Arc<AtomicUsize> = Arc::default();
    let count = Arc::clone(&tunnels);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            count.fetch_add(1, Ordering::SeqCst);
            std::thread::spawn(move || tunnel(stream, target));
        }
    });
    (url, tunnels)
}

fn tunnel(client: TcpStream, target: SocketAddr) -> Option<()> {
    let mut reader = BufReader::new(client.try_clone().ok()?);
    let head = read_head(&mut reader)?;
    let mut client = client;
    if !head.starts_with(&format!("connect {HOST}:443")) {
        return client.write_all(b"HTTP/1.1 403 Forbidden\r\n\r\n").ok();
    }
    let server = TcpStream::connect(target).ok()?;
    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").ok()?;
    let (mut up, mut down) = (server.try_clone().ok()?, server);
    std::thread::spawn(move || std::io::copy(&mut reader, &mut up));
    std::io::copy(&mut down, &mut client).ok().map(drop)
}

async fn run(source: &str, route: Route, store: &Path) -> Result<PathBuf, FetchError> {
    let request = Request {
        source: source.to_owned(),
        revision: "main".into(),
        endpoint: None,
        region: None,
        files: vec![],
        digest: Digest::of(WEIGHTS),
        store: store.to_owned(),
        format: None,
        credentials: Credentials::Token("secret".into()),
        route,
        retry: RetryPolicy {
            attempts: 2,
            base: Duration::from_millis(5),
            cap: Duration::from_millis(5),
        },
    };
    fetch(&request, &Board::new(Identity::default(), Stage::Fetching)).await
}

#[tokio::test]
async fn certificate_of_ones_own_authority_is_taken_when_it_is_named() {
    let server = SecureServer::start();
    let folder = tempfile::tempdir().unwrap();
    let source = format!("https://localhost:{}/m.gguf", server.address.port());
    let error = run(&source, Route::default(), &folder.path().join("a"))
        .await
        .unwrap_err();
    assert_eq!(error.reason(), "SourceUnavailable");

    let bundle = folder.path().join("ca.crt");
    std::fs::write(&bundle, &server.certificate).unwrap();
    let route = Route {
        ca_bundle: Some(bundle.clone()),
        ..Route::default()
    };
    run(&source, route.clone(), &folder.path().join("b")).await.unwrap();

    std::fs::write(&bundle, "not a certificate").unwrap();
    let error = run(&source, route, &folder.path().join("c")).await.unwrap_err();
    assert_eq!(error.reason(), "InvalidSource");
    assert!(error.to_string().contains("network.caBundleRef"), "{error}");
}

#[tokio::test]
async fn proxy_is_used_for_https_but_for_hosts_that_are_excepted() {
    let server = SecureServer::start();
    let (proxy, tunnels) = start_proxy(server.address);
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("ca.crt");
    std::fs::write(&bundle, &server.certificate).unwrap();
    let route = Route {
        https_proxy: Some(proxy),
        no_proxy: None,
        ca_bundle: Some(bundle),
    };
    let source = format!("https://{HOST}/m.gguf");
    run(&source, route.clone(), &folder.path().join("a")).await.unwrap();
    assert_eq!(tunnels.load(Ordering::SeqCst), 1);
    let headers = server.headers.lock().unwrap().concat();
    assert!(headers.contains("authorization: bearer secret"), "{headers}");

    let route = Route {
        no_proxy: Some(format!(".svc,{HOST}")),
        ..route
    };
    let error = run(&source, route, &folder.path().join("b")).await.unwrap_err();
    assert_eq!(error.reason(), "SourceUnavailable");
    assert_eq!(tunnels.load(Ordering::SeqCst), 1, "the exception was not honoured");
}
