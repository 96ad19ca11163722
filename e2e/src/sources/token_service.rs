//! Gives out tokens for a registry, as the services of public registries do.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use axum::Router;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use rcgen::{CertificateParams, KeyPair, PKCS_ED25519, SigningKey as _};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

/// Who signs.
pub(super) const ISSUER: &str = "token-service";
/// Whom tokens are for.
pub(super) const SERVICE: &str = "registry-of-tests";
/// Seconds that a token is good.
const GOOD_FOR: u64 = 300;

/// A running service; it ends when it is dropped.
#[derive(Debug)]
pub(super) struct TokenService {
    address: SocketAddr,
    issuer: Arc<Issuer>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Issuer {
    key: KeyPair,
    certificate: rcgen::Certificate,
    login: (&'static str, &'static str),
    given: AtomicUsize,
}

#[derive(Deserialize)]
struct Wish {
    service: String,
    scope: String,
}

impl TokenService {
    /// Starts one that gives tokens for this login.
    pub(super) async fn start(login: (&'static str, &'static str)) -> Result<Self> {
        let key = KeyPair::generate_for(&PKCS_ED25519).context("could not make a key")?;
        let certificate = CertificateParams::new(vec![ISSUER.to_owned()])
            .and_then(|parameters| parameters.self_signed(&key))
            .context("could not make a certificate")?;
        let issuer = Arc::new(Issuer {
            key,
            certificate,
            login,
            given: AtomicUsize::new(0),
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let router = Router::new()
            .route("/token", get(answer))
            .with_state(Arc::clone(&issuer));
        let task = tokio::spawn(async move {
            // Ends with its task.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { address, issuer, task })
    }

    pub(super) fn realm(&self) -> String {
        format!("http://{}/token", self.address)
    }

    pub(super) fn certificate(&self) -> String {
        self.issuer.certificate.pem()
    }

    pub(super) fn given(&self) -> usize {
        self.issuer.given.load(Ordering::SeqCst)
    }

    /// A token that may write, for the test itself.
    pub(super) fn token(&self, repository: &str) -> Result<String> {
        self.issuer.sign(repository, &["pull", "push"])
    }
}

impl Drop for TokenService {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Issuer {
    fn sign(&self, repository: &str, actions: &[&str]) -> Result<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let chain = [BASE64_STANDARD.encode(self.certificate.der())];
        let header = json!({"alg": "EdDSA", "typ": "JWT", "x5c": chain});
        let claims = json!({
            "iss": ISSUER, "aud": SERVICE, "sub": self.login.0, "iat": now, "nbf": now, "exp": now + GOOD_FOR,
            "access": [{"type": "repository", "name": repository, "actions": actions}],
        });
        let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&header), part(&claims));
        let signature = self.key.sign(signed.as_bytes()).context("could not sign a token")?;
        Ok(format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature)))
    }
}

async fn answer(State(issuer): State<Arc<Issuer>>, Query(wish): Query<Wish>, headers: HeaderMap) -> Response {
    let (user, password) = issuer.login;
    let login = format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")));
    let is_known = headers
        .get("authorization")
        .is_some_and(|value| value.as_bytes() == login.as_bytes());
    let repository = wish
        .scope
        .strip_prefix("repository:")
        .and_then(|scope| scope.strip_suffix(":pull"));
    let token = repository.and_then(|repository| issuer.sign(repository, &["pull"]).ok());
    match token {
        Some(token) if is_known && wish.service == SERVICE => {
            issuer.given.fetch_add(1, Ordering::SeqCst);
            Json(json!({"token": token})).into_response()
        }
        _ => StatusCode::UNAUTHORIZED.into_response(),
    }
}
