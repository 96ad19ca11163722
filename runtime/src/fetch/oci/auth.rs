//! How a registry lets somebody in: it answers 401 and names a scheme; with `Bearer` a service gives out a token for
//! one repository, with `Basic` the login itself is sent.
//!
//! Guarantees: what is sent to the registry goes to its own origin only; the login goes to the token service that the
//! registry names, and never over plain HTTP unless the registry itself is asked that way.

use super::super::access::Login;
use super::super::client::{Attempt, connection_problem, read_limited};
use super::super::error::{FetchError, printable};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{RequestBuilder, StatusCode};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::Mutex;
use url::Url;

/// Tokens are at most a few KiB.
const MAX_TOKEN_ANSWER: u64 = 1 << 20;

/// What a registry said is needed.
#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer(BTreeMap<String, String>),
}

/// The permission to read one repository, as far as it was given.
pub(crate) struct Permission {
    login: Option<Login>,
    /// What a token is asked for when the registry does not say it.
    scope: String,
    current: Mutex<Option<HeaderValue>>,
}

/// What a token service answers.
#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
}

impl Permission {
    /// Nothing is given yet.
    pub(crate) fn new(repository: &str, login: Option<Login>) -> Self {
        Self {
            login,
            scope: format!("repository:{repository}:pull"),
            current: Mutex::new(None),
        }
    }

    /// Whether there is a login.
    pub(crate) fn has_login(&self) -> bool {
        self.login.is_some()
    }

    /// Adds what was given to a request to the registry.
    pub(crate) fn authorize(&self, request: RequestBuilder) -> RequestBuilder {
        let current = self.current.lock().ok().and_then(|current| current.clone());
        match current {
            Some(value) => request.header(AUTHORIZATION, value),
            None => request,
        }
    }

    /// Gets what the refusing answer of the registry asks for. `false` when there is nothing to get.
    pub(crate) async fn renew(
        &self,
        http: &reqwest::Client,
        registry: &Url,
        refusal: &HeaderMap,
    ) -> Result<bool, Attempt> {
        let value = match (Challenge::of(refusal), &self.login) {
            (Some(Challenge::Bearer(parameters)), _) => self.ask_token(http, registry, &parameters).await?,
            (Some(Challenge::Basic), Some(login)) => {
                let encoded = BASE64_STANDARD.encode(format!("{}:{}", login.username, login.password));
                secret_header("Basic", &encoded)
            }
            (Some(Challenge::Basic), None) | (None, _) => return Ok(false),
        };
        let Some(value) = value else {
            return Err(Attempt::Fatal(FetchError::unavailable(
                registry,
                "its token has characters that no header can carry; check the registry",
            )));
        };
        if let Ok(mut current) = self.current.lock() {
            *current = Some(value);
        }
        Ok(true)
    }

    async fn ask_token(
        &self,
        http: &reqwest::Client,
        registry: &Url,
        parameters: &BTreeMap<String, String>,
    ) -> Result<Option<HeaderValue>, Attempt> {
        let service = token_service(registry, parameters)?;
        let mut url = service.clone();
        {
            let mut query = url.query_pairs_mut();
            if let Some(name) = parameters.get("service") {
                query.append_pair("service", name);
            }
            query.append_pair("scope", parameters.get("scope").unwrap_or(&self.scope));
        }
        let mut request = http.get(url.clone());
        if let Some(login) = &self.login {
            request = request.basic_auth(&login.username, Some(&login.password));
        }
        let response = request.send().await.map_err(|error| connection_problem(&error))?;
        let status = response.status();
        let problem = format!("the token service {} answered {status}", printable(&service));
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            return Err(Attempt::Retry { problem, after: None });
        }
        if !status.is_success() {
            let advice = "check that the login for the registry is valid and may read this model";
            return Err(Attempt::Fatal(if self.has_login() {
                FetchError::unavailable(registry, format!("{problem}; {advice}"))
            } else {
                FetchError::SecretMissing {
                    url: printable(&service),
                    status: status.as_u16(),
                }
            }));
        }
        let body = read_limited(&service, response, MAX_TOKEN_ANSWER).await?;
        let answer: Option<Token> = serde_json::from_slice(&body).ok();
        let token = answer.and_then(|answer| answer.token.or(answer.access_token));
        let Some(token) = token else {
            let problem = format!("{problem} without a token; check the registry");
            return Err(Attempt::Fatal(FetchError::unavailable(registry, problem)));
        };
        Ok(secret_header("Bearer", &token))
    }
}

/// Where a token is to be asked for.
fn token_service(registry: &Url, parameters: &BTreeMap<String, String>) -> Result<Url, FetchError> {
    let refuse = |problem: &'static str| FetchError::RedirectRefused {
        url: printable(registry),
        to: "its token service".to_owned(),
        problem,
    };
    let realm = parameters.get("realm").and_then(|realm| Url::parse(realm).ok());
    let realm = realm.ok_or_else(|| refuse("it names no URL of it; check the registry"))?;
    match (realm.scheme(), registry.scheme()) {
        ("https", _) | ("http", "http") => Ok(realm),
        _ => Err(refuse("a login is sent over https only")),
    }
}

fn secret_header(scheme: &str, value: &str) -> Option<HeaderValue> {
    let mut header = HeaderValue::from_str(&format!("{scheme} {value}")).ok()?;
    header.set_sensitive(true);
    Some(header)
}

impl Challenge {
    /// What the headers of an answer ask for, the better scheme first.
    fn of(headers: &HeaderMap) -> Option<Self> {
        let values = headers.get_all(WWW_AUTHENTICATE);
        let texts: Vec<&str> = values.iter().filter_map(|value| value.to_str().ok()).collect();
        let parameters = |scheme: &str| {
            texts.iter().find_map(|text| {
                let (name, rest) = text.trim().split_once(' ').unwrap_or((text, ""));
                name.eq_ignore_ascii_case(scheme).then_some(rest)
            })
        };
        match (parameters("Bearer"), parameters("Basic")) {
            (Some(rest), _) => Some(Self::Bearer(parse_parameters(rest))),
            (None, Some(_)) => Some(Self::Basic),
            (None, None) => None,
        }
    }
}

/// `name="value"` pairs between commas; a value may have commas itself.
fn parse_parameters(mut text: &str) -> BTreeMap<String, String> {
    let mut parameters = BTreeMap::new();
    while let Some((name, rest)) = text.split_once('=') {
        let name = name.trim_matches([' ', ',']).to_ascii_lowercase();
        let (value, rest) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => rest.split_once(',').unwrap_or((rest, "")),
        };
        parameters.entry(name).or_insert_with(|| value.trim().to_owned());
        text = rest;
    }
    parameters
}

#[cfg(test)]
mod tests {
    use super::*;

    fn challenge(texts: &[&'static str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for text in texts {
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_static(text));
        }
        Challenge::of(&headers)
    }

    #[test]
    fn challenges_are_read() {
        let text = r#"Bearer realm="https://auth.h/token",service="h",scope="repository:a/b:pull,push""#;
        let Some(Challenge::Bearer(parameters)) = challenge(&["Basic realm=x", text]) else {
            panic!("no bearer")
        };
        assert_eq!(parameters["realm"], "https://auth.h/token");
        assert_eq!(parameters["scope"], "repository:a/b:pull,push");
        assert_eq!(challenge(&["basic realm=\"h\""]), Some(Challenge::Basic));
        assert_eq!(challenge(&["Negotiate"]), None);
        for odd in [
            "Bearer",
            "Bearer realm",
            "Bearer realm=\"",
            "Bearer =,=,\"=\"\"\"",
            "Bearer a=b, c=\"d",
        ] {
            assert!(matches!(challenge(&[odd]), Some(Challenge::Bearer(_))), "{odd}");
        }
    }

    #[test]
    fn login_is_never_sent_over_plain_http_because_a_registry_says_so() {
        let parameters = |realm: &str| BTreeMap::from([("realm".to_owned(), realm.to_owned())]);
        let secure = Url::parse("https://h/v2/").unwrap();
        assert!(token_service(&secure, &parameters("https://auth.h/token")).is_ok());
        for realm in ["http://auth.h/token", "file:///etc/passwd", "token", ""] {
            let error = token_service(&secure, &parameters(realm)).unwrap_err();
            assert_eq!(error.reason(), "RedirectRefused", "{realm}");
        }
        let local = Url::parse("http://localhost:5000/v2/").unwrap();
        assert!(token_service(&local, &parameters("http://localhost:5001/token")).is_ok());
    }
}
