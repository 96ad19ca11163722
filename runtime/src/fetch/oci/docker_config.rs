//! Logins for registries as `docker login` writes them and a Secret of the type `kubernetes.io/dockerconfigjson` holds
//! them. Pure.

use super::super::access::Login;
use base64::Engine as _;
use base64::engine::general_purpose::GeneralPurpose;
use base64::engine::{DecodePaddingMode, GeneralPurposeConfig};
use serde::Deserialize;
use std::collections::BTreeMap;

/// Under which names Docker's hub is written.
const DOCKER_HUB: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];
/// Some tools leave the padding out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

/// Logins by registry, or by registry and the beginning of a repository's name.
#[derive(Clone, PartialEq, Eq)]
pub struct DockerConfig {
    logins: BTreeMap<String, Option<Login>>,
}

impl DockerConfig {
    /// Reads the file.
    ///
    /// # Errors
    /// What is wrong with it, without any of its values.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let file: File = serde_json::from_str(text).map_err(|error| {
            let place = format!("line {} column {}", error.line(), error.column());
            format!("its .dockerconfigjson is not what `docker login` writes ({place}); make it by `kubectl create secret docker-registry`")
        })?;
        let mut logins = BTreeMap::new();
        for (name, entry) in file.auths {
            let login = entry
                .login()
                .map_err(|problem| format!("the entry {name:?} of its .dockerconfigjson {problem}"))?;
            logins.insert(scope(&name), login);
        }
        Ok(Self { logins })
    }

    /// The login for a repository: the entry that names the most of it.
    ///
    /// # Errors
    /// The entry is one that cannot be used.
    pub(crate) fn login(&self, registry: &str, repository: &str) -> Result<Option<Login>, String> {
        let whole = scope(&format!("{registry}/{repository}"));
        let fits = |scope: &str| {
            whole
                .strip_prefix(scope)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let entries = self.logins.iter().filter(|(scope, _)| fits(scope));
        match entries.max_by_key(|(scope, _)| scope.len()) {
            None => Ok(None),
            Some((_, Some(login))) => Ok(Some(login.clone())),
            Some((scope, None)) => Err(format!(
                "the entry for {scope} of its .dockerconfigjson has no username and password (an identity token or a credential helper cannot be used); write both"
            )),
        }
    }
}

impl Entry {
    /// The login; `None` for an entry without one.
    fn login(self) -> Result<Option<Login>, &'static str> {
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        if let (Some(username), Some(password)) = (given(self.username), given(self.password)) {
            return Ok(Some(Login { username, password }));
        }
        let Some(encoded) = given(self.auth) else {
            return Ok(None);
        };
        let decoded = BASE64.decode(encoded.trim()).ok();
        let text = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
        let Some((username, password)) = text.as_deref().and_then(|text| text.split_once(':')) else {
            return Err("has an auth that is not the base64 of user:password; write username and password instead");
        };
        // With an identity token the password is empty or of no use.
        if password.is_empty() || given(self.identitytoken).is_some() {
            return Ok(None);
        }
        Ok(Some(Login {
            username: username.to_owned(),
            password: password.trim_end_matches('\0').to_owned(),
        }))
    }
}

/// An entry's name without scheme and version, and one name for Docker's hub.
fn scope(name: &str) -> String {
    let name = name
        .trim_start_matches("https://")
        .trim_start_matches("http://")
        .trim_end_matches('/');
    let name = name
        .strip_suffix("/v1")
        .or_else(|| name.strip_suffix("/v2"))
        .unwrap_or(name);
    let (host, rest) = name.split_once('/').unwrap_or((name, ""));
    let host = if DOCKER_HUB.contains(&host) {
        DOCKER_HUB[0]
    } else {
        host
    };
    if rest.is_empty() {
        host.to_owned()
    } else {
        format!("{host}/{rest}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(config: &DockerConfig, registry: &str, repository: &str) -> Option<String> {
        let login = config.login(registry, repository).unwrap();
        login.map(|login| format!("{}:{}", login.username, login.password))
    }

    #[test]
    fn entry_that_names_the_most_is_used() {
        // `dXNlcjpwYTpzcw` is user:pa:ss without padding.
        let config = DockerConfig::parse(
            r#"{"auths": {
                "https://index.docker.io/v1/": {"username": "hub", "password": "one"},
                "ghcr.io": {"auth": "dXNlcjpwYTpzcw"},
                "ghcr.io/team": {"username": "team", "password": "two", "email": "x"},
                "http://127.0.0.1:5000": {"username": "local", "password": "three"}
            }, "credsStore": "desktop"}"#,
        )
        .unwrap();
        assert_eq!(login(&config, "docker.io", "ai/m").as_deref(), Some("hub:one"));
        assert_eq!(login(&config, "ghcr.io", "other/m").as_deref(), Some("user:pa:ss"));
        assert_eq!(login(&config, "ghcr.io", "team/m").as_deref(), Some("team:two"));
        assert_eq!(login(&config, "ghcr.io", "teams/m").as_deref(), Some("user:pa:ss"));
        assert_eq!(login(&config, "127.0.0.1:5000", "m").as_deref(), Some("local:three"));
        assert_eq!(login(&config, "quay.io", "m"), None);
    }

    #[test]
    fn entries_that_cannot_be_used_say_so_without_their_values() {
        let token = r#"{"auths": {"h": {"auth": "dTpzZWNyZXQtNw==", "identitytoken": "secret-7"}, "i": {}}}"#;
        let config = DockerConfig::parse(token).unwrap();
        for registry in ["h", "i"] {
            let problem = config.login(registry, "m").err().unwrap();
            assert!(
                problem.contains("username and password") && !problem.contains("secret-7"),
                "{problem}"
            );
        }
        for (text, words) in [
            ("", "docker-registry"),
            (r#"{"auths": []}"#, "docker-registry"),
            (
                r#"{"auths": {"h": {"auth": "c2VjcmV0LTc="}}}"#,
                "base64 of user:password",
            ),
            (r#"{"auths": {"h": "secret-7"}}"#, "docker-registry"),
        ] {
            let Err(problem) = DockerConfig::parse(text) else {
                panic!("{text} was taken")
            };
            assert!(problem.contains(words) && !problem.contains("secret-7"), "{problem}");
        }
    }
}
