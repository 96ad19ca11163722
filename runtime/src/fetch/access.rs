//! How a source is reached: credentials, a proxy, further certificates.

use super::error::FetchError;
use super::oci::{DockerConfig, Reference};
use super::source::Source;
use crate::args::{CredentialArgs, FetchArgs};
use reqwest::header::HeaderValue;
use reqwest::{Certificate, ClientBuilder, NoProxy, Proxy, RequestBuilder};
use std::fmt;
use std::path::PathBuf;

/// A user with a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// The user.
    pub username: String,
    /// The password.
    pub password: String,
}

/// Keys of an account of object storage.
#[derive(Clone, PartialEq, Eq)]
pub struct AccessKeys {
    /// Which key it is.
    pub access_key_id: String,
    /// What signs.
    pub secret_access_key: String,
    /// What keys that expire come with.
    pub session_token: Option<String>,
}

/// Credentials for a source. Their `Debug` shows none of it.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Credentials {
    /// None.
    #[default]
    None,
    /// A bearer token.
    Token(String),
    /// A user with a password.
    Login(Login),
    /// Logins by registry.
    Registries(DockerConfig),
    /// Keys that sign requests.
    Keys(AccessKeys),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::None => "None",
            Self::Token(_) => "Token",
            Self::Login(_) => "Login",
            Self::Registries(_) => "Registries",
            Self::Keys(_) => "Keys",
        })
    }
}

impl Credentials {
    /// Reads what the environment has for a source; what is for other kinds of sources is not looked at.
    ///
    /// # Errors
    /// `SecretMissing` when it is half there, too much, or not there although it must be.
    pub(super) fn of(args: &CredentialArgs, source: &Source) -> Result<Self, FetchError> {
        let found = match source {
            Source::Hub { .. } => token(args),
            Source::File { .. } => match (token(args), login(args)?) {
                (Some(_), Some(_)) => {
                    return Err(unusable(
                        "it has token beside username and password; keep one of the two",
                    ));
                }
                (token, login) => token.or(login),
            },
            Source::Registry(_) => match docker_config(args)? {
                Some(config) => Some(Self::Registries(config)),
                None => login(args)?,
            },
            Source::Bucket { .. } => keys(args)?,
        };
        match found {
            Some(credentials) => Ok(credentials),
            None if args.required => {
                let (scheme, takes) = (source.scheme(), takes(source));
                Err(unusable(format!(
                    "it has nothing for an {scheme} source, which takes {takes}; add that"
                )))
            }
            None => Ok(Self::None),
        }
    }

    /// Whether the source can use them.
    pub(super) fn check(&self, source: &Source) -> Result<(), FetchError> {
        let fits = match self {
            Self::None => true,
            Self::Token(_) => matches!(source, Source::Hub { .. } | Source::File { .. }),
            Self::Login(_) => matches!(source, Source::File { .. } | Source::Registry(_)),
            Self::Registries(_) => matches!(source, Source::Registry(_)),
            Self::Keys(_) => matches!(source, Source::Bucket { .. }),
        };
        if !fits {
            let (scheme, takes) = (source.scheme(), takes(source));
            return Err(unusable(format!("an {scheme} source takes {takes}; add that")));
        }
        match self {
            Self::Token(token) if HeaderValue::from_str(token.trim()).is_err() => Err(unusable(
                "its token has characters that no header can carry; write it again, without line breaks",
            )),
            _ => Ok(()),
        }
    }

    /// The login for an artifact's registry, where there is one.
    pub(super) fn login(&self, reference: &Reference) -> Result<Option<Login>, FetchError> {
        match self {
            Self::Login(login) => Ok(Some(login.clone())),
            Self::Registries(config) => {
                let login = config.login(&reference.registry, &reference.repository);
                login.map_err(unusable)
            }
            Self::None | Self::Token(_) | Self::Keys(_) => Ok(None),
        }
    }

    /// Whether there are none.
    pub(super) fn is_none(&self) -> bool {
        *self == Self::None
    }

    /// Adds a token or a login to a request, marked so that no log shows them.
    pub(super) fn authorize(&self, request: RequestBuilder) -> RequestBuilder {
        match self {
            Self::Token(token) => request.bearer_auth(token.trim()),
            Self::Login(Login { username, password }) => request.basic_auth(username, Some(password)),
            Self::None | Self::Registries(_) | Self::Keys(_) => request,
        }
    }
}

fn unusable(problem: impl Into<String>) -> FetchError {
    FetchError::SecretUnusable {
        problem: problem.into(),
    }
}

/// What a source takes, as the keys of a Secret.
fn takes(source: &Source) -> &'static str {
    match source {
        Source::Hub { .. } => "a token under the key token",
        Source::File { .. } => "a token under the key token, or the keys username and password",
        Source::Registry(_) => {
            "the key .dockerconfigjson (`kubectl create secret docker-registry`), or the keys username and password"
        }
        Source::Bucket { .. } => "the keys accessKeyId and secretAccessKey, and sessionToken where they expire",
    }
}

fn given(value: Option<&String>) -> Option<String> {
    value.filter(|text| !text.trim().is_empty()).cloned()
}

fn token(args: &CredentialArgs) -> Option<Credentials> {
    let token = given(args.secret_token.as_ref()).or_else(|| given(args.token.as_ref()));
    token.map(Credentials::Token)
}

fn login(args: &CredentialArgs) -> Result<Option<Credentials>, FetchError> {
    match (
        given(args.secret_username.as_ref()),
        given(args.secret_password.as_ref()),
    ) {
        (None, None) => Ok(None),
        (Some(username), Some(password)) => Ok(Some(Credentials::Login(Login { username, password }))),
        (Some(_), None) => Err(unusable("it has username without password; add password")),
        (None, Some(_)) => Err(unusable("it has password without username; add username")),
    }
}

fn docker_config(args: &CredentialArgs) -> Result<Option<DockerConfig>, FetchError> {
    let text = match (given(args.secret_docker_config.as_ref()), &args.registry_config) {
        (Some(text), _) => text,
        (None, Some(file)) => std::fs::read_to_string(file)
            .map_err(|error| unusable(format!("{} cannot be read: {error}", file.display())))?,
        (None, None) => return Ok(None),
    };
    DockerConfig::parse(&text).map(Some).map_err(unusable)
}

fn keys(args: &CredentialArgs) -> Result<Option<Credentials>, FetchError> {
    let of_secret = (
        &args.secret_access_key_id,
        &args.secret_secret_access_key,
        &args.secret_session_token,
    );
    let of_tools = (
        &args.aws_access_key_id,
        &args.aws_secret_access_key,
        &args.aws_session_token,
    );
    for (id, secret, session_token) in [of_secret, of_tools] {
        match (given(id.as_ref()), given(secret.as_ref())) {
            (None, None) => {}
            (Some(access_key_id), Some(secret_access_key)) => {
                return Ok(Some(Credentials::Keys(AccessKeys {
                    access_key_id: access_key_id.trim().to_owned(),
                    secret_access_key: secret_access_key.trim().to_owned(),
                    session_token: given(session_token.as_ref()).map(|token| token.trim().to_owned()),
                })));
            }
            (Some(_), None) => {
                return Err(unusable(
                    "it has accessKeyId without secretAccessKey; add secretAccessKey",
                ));
            }
            (None, Some(_)) => return Err(unusable("it has secretAccessKey without accessKeyId; add accessKeyId")),
        }
    }
    Ok(None)
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

    fn args(given: &[(&str, &str)]) -> CredentialArgs {
        let value = |name: &str| {
            let found = given.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        CredentialArgs {
            required: true,
            secret_token: value("token"),
            secret_username: value("username"),
            secret_password: value("password"),
            secret_docker_config: value(".dockerconfigjson"),
            secret_access_key_id: value("accessKeyId"),
            secret_secret_access_key: value("secretAccessKey"),
            secret_session_token: value("sessionToken"),
            aws_access_key_id: value("AWS_ACCESS_KEY_ID"),
            aws_secret_access_key: value("AWS_SECRET_ACCESS_KEY"),
            ..CredentialArgs::default()
        }
    }

    fn credentials(source: &str, given: &[(&str, &str)]) -> Result<Credentials, FetchError> {
        Credentials::of(&args(given), &Source::parse(source).unwrap())
    }

    const HUB: &str = "hf://o/n";
    const FILE: &str = "https://h/f.gguf";
    const REGISTRY: &str = "oci://h/m:v1";
    const BUCKET: &str = "s3://models/m";

    #[test]
    fn each_source_takes_its_own_keys_of_a_secret() {
        let everything = [
            ("token", "t"),
            (
                ".dockerconfigjson",
                r#"{"auths": {"h": {"username": "u", "password": "p"}}}"#,
            ),
            ("accessKeyId", "id"),
            ("secretAccessKey", "key"),
            ("sessionToken", ""),
            ("AWS_ACCESS_KEY_ID", "another"),
        ];
        assert_eq!(credentials(HUB, &everything).unwrap(), Credentials::Token("t".into()));
        assert_eq!(credentials(FILE, &everything).unwrap(), Credentials::Token("t".into()));
        assert!(matches!(
            credentials(REGISTRY, &everything).unwrap(),
            Credentials::Registries(_)
        ));
        let Credentials::Keys(keys) = credentials(BUCKET, &everything).unwrap() else {
            panic!("no keys")
        };
        assert_eq!((keys.access_key_id.as_str(), keys.session_token), ("id", None));
        let login = [("username", "u"), ("password", "p")];
        for source in [FILE, REGISTRY] {
            assert!(matches!(credentials(source, &login).unwrap(), Credentials::Login(_)));
        }
        let tools = [("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "key")];
        assert!(matches!(credentials(BUCKET, &tools).unwrap(), Credentials::Keys(_)));
        let none = Credentials::of(&CredentialArgs::default(), &Source::parse(HUB).unwrap());
        assert_eq!(none.unwrap(), Credentials::None);
    }

    #[test]
    fn secret_that_is_half_there_says_what_to_add() {
        for (source, given, words) in [
            (HUB, vec![], "a token under the key token; add that"),
            (HUB, vec![("token", "  ")], "a token under the key token"),
            (HUB, vec![("username", "u"), ("password", "p")], "the key token"),
            (FILE, vec![("username", "u")], "add password"),
            (FILE, vec![("password", "p")], "add username"),
            (
                FILE,
                vec![("token", "t"), ("username", "u"), ("password", "p")],
                "keep one of the two",
            ),
            (REGISTRY, vec![("token", "t")], "kubectl create secret docker-registry"),
            (
                REGISTRY,
                vec![(".dockerconfigjson", "{")],
                ".dockerconfigjson is not what",
            ),
            (BUCKET, vec![("accessKeyId", "id")], "add secretAccessKey"),
            (BUCKET, vec![("secretAccessKey", "key")], "add accessKeyId"),
            (BUCKET, vec![("token", "t")], "the keys accessKeyId and secretAccessKey"),
        ] {
            let error = credentials(source, &given).unwrap_err();
            assert_eq!(error.reason(), "SecretMissing");
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn credentials_fit_their_source_and_are_never_printed() {
        let hub = Source::parse(HUB).unwrap();
        let login = credentials(FILE, &[("username", "user-7"), ("password", "pass-7")]).unwrap();
        assert_eq!(login.check(&hub).unwrap_err().reason(), "SecretMissing");
        for source in [FILE, REGISTRY] {
            assert!(login.check(&Source::parse(source).unwrap()).is_ok());
        }
        let keys = credentials(BUCKET, &[("accessKeyId", "id-7"), ("secretAccessKey", "key-7")]).unwrap();
        assert!(keys.check(&Source::parse(FILE).unwrap()).is_err());
        let broken = Credentials::Token("a\nb".into());
        assert!(!broken.check(&hub).unwrap_err().to_string().contains("a\nb"));
        let shown = format!(
            "{login:?} {keys:?} {:?} {:?}",
            Credentials::Token("tok-7".into()),
            args(&[("token", "tok-7")])
        );
        assert!(!shown.contains("-7"), "{shown}");
    }
}
