//! How a source is reached: credentials, a proxy, further certificates.

use super::error::FetchError;
use super::source::Source;
use crate::args::{CredentialArgs, FetchArgs};
use reqwest::header::HeaderValue;
use reqwest::{Certificate, ClientBuilder, NoProxy, Proxy, RequestBuilder};
use std::fmt;
use std::path::PathBuf;

/// Credentials for a source. Their `Debug` shows none of it.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Credentials {
    /// None.
    #[default]
    None,
    /// A bearer token.
    Token(String),
    /// A user with a password.
    Login {
        /// The user.
        username: String,
        /// The password.
        password: String,
    },
}

impl fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::None => "None",
            Self::Token(_) => "Token",
            Self::Login { .. } => "Login",
        })
    }
}

impl Credentials {
    /// Reads what the environment has.
    ///
    /// # Errors
    /// `SecretMissing` when it is half there, too much, or not there although it must be.
    pub fn of(args: &CredentialArgs) -> Result<Self, FetchError> {
        let given = |value: &Option<String>| value.clone().filter(|text| !text.trim().is_empty());
        let token = given(&args.secret_token).or_else(|| given(&args.token));
        let refuse = |problem| Err(FetchError::SecretUnusable { problem });
        match (token, given(&args.secret_username), given(&args.secret_password)) {
            (None, None, None) if args.required => refuse(
                "it has none of the keys that are looked for; add token, or username and password for an https:// source",
            ),
            (None, None, None) => Ok(Self::None),
            (Some(token), None, None) => Ok(Self::Token(token)),
            (None, Some(username), Some(password)) => Ok(Self::Login { username, password }),
            (None, Some(_), None) => refuse("it has username without password; add password"),
            (None, None, Some(_)) => refuse("it has password without username; add username"),
            (Some(_), ..) => refuse("it has token beside username or password; keep one of the two"),
        }
    }

    /// Whether the source can use them.
    pub(super) fn check(&self, source: &Source) -> Result<(), FetchError> {
        match (self, source) {
            (Self::Login { .. }, Source::Hub { .. }) => Err(FetchError::SecretUnusable {
                problem: "it has username and password, and an hf:// source takes a token; put it under the key token",
            }),
            (Self::Token(token), _) if HeaderValue::from_str(token.trim()).is_err() => {
                Err(FetchError::SecretUnusable {
                    problem: "its token has characters that no header can carry; write it again, without line breaks",
                })
            }
            _ => Ok(()),
        }
    }

    /// Whether there are none.
    pub(super) fn is_none(&self) -> bool {
        *self == Self::None
    }

    /// Adds them to a request, marked so that no log shows them.
    pub(super) fn authorize(&self, request: RequestBuilder) -> RequestBuilder {
        match self {
            Self::None => request,
            Self::Token(token) => request.bearer_auth(token.trim()),
            Self::Login { username, password } => request.basic_auth(username, Some(password)),
        }
    }
}

/// The way to a source.
#[derive(Debug, Clone, Default)]
pub struct Route {
    /// The proxy for https.
    pub https_proxy: Option<String>,
    /// Hosts that are reached without it.
    pub no_proxy: Option<String>,
    /// A file with further certificates.
    pub ca_bundle: Option<PathBuf>,
}

impl Route {
    /// What the arguments say.
    pub(super) fn of(args: &FetchArgs) -> Self {
        let given = |value: &Option<String>| value.clone().filter(|text| !text.trim().is_empty());
        Self {
            https_proxy: given(&args.https_proxy),
            no_proxy: given(&args.no_proxy),
            ca_bundle: args.ca_bundle.clone(),
        }
    }

    /// Prepares a client.
    pub(super) fn prepare(&self, mut builder: ClientBuilder) -> Result<ClientBuilder, FetchError> {
        let refuse = |what: &'static str, problem: String| FetchError::RouteInvalid { what, problem };
        if let Some(proxy) = &self.https_proxy {
            let proxy = Proxy::https(proxy).map_err(|_| {
                refuse(
                    "the proxy",
                    "it is no address; write http://host:port into network.httpsProxy".to_owned(),
                )
            })?;
            let except = self.no_proxy.as_deref().and_then(NoProxy::from_string);
            builder = builder.proxy(proxy.no_proxy(except));
        }
        if let Some(file) = &self.ca_bundle {
            let name = file.display();
            let pem = std::fs::read(file)
                .map_err(|error| refuse("the certificates", format!("{name} cannot be read: {error}")))?;
            let certificates = Certificate::from_pem_bundle(&pem)
                .ok()
                .filter(|certificates| !certificates.is_empty())
                .ok_or_else(|| {
                    let problem = format!(
                        "{name} holds no certificate in PEM form; correct the ConfigMap of network.caBundleRef"
                    );
                    refuse("the certificates", problem)
                })?;
            builder = builder.tls_certs_merge(certificates);
        }
        Ok(builder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(token: &str, username: &str, password: &str) -> CredentialArgs {
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        CredentialArgs {
            required: true,
            token: None,
            secret_token: given(token),
            secret_username: given(username),
            secret_password: given(password),
        }
    }

    #[test]
    fn secret_has_a_token_or_a_login_and_nothing_else() {
        assert_eq!(
            Credentials::of(&args("t", "", "")).unwrap(),
            Credentials::Token("t".into())
        );
        assert!(matches!(
            Credentials::of(&args("", "u", "p")).unwrap(),
            Credentials::Login { .. }
        ));
        for (wrong, words) in [
            (args("", "", ""), "add token, or username and password"),
            (args("  ", "", ""), "add token, or username and password"),
            (args("", "u", ""), "add password"),
            (args("", "", "p"), "add username"),
            (args("t", "u", "p"), "keep one of the two"),
        ] {
            let error = Credentials::of(&wrong).unwrap_err();
            assert_eq!(error.reason(), "SecretMissing");
            assert!(error.to_string().contains(words), "{error}");
        }
        assert_eq!(Credentials::of(&CredentialArgs::default()).unwrap(), Credentials::None);
    }

    #[test]
    fn credentials_fit_their_source_and_are_never_printed() {
        let hub = Source::parse("hf://o/n").unwrap();
        let login = Credentials::of(&args("", "user-7", "pass-7")).unwrap();
        assert_eq!(login.check(&hub).unwrap_err().reason(), "SecretMissing");
        assert!(login.check(&Source::parse("https://h/f.gguf").unwrap()).is_ok());
        let broken = Credentials::Token("a\nb".into());
        assert!(!broken.check(&hub).unwrap_err().to_string().contains("a\nb"));
        let shown = format!(
            "{login:?} {:?} {:?}",
            Credentials::Token("tok-7".into()),
            args("tok-7", "", "")
        );
        assert!(!shown.contains("-7"), "{shown}");
    }
}
