//! A real registry (CNCF Distribution), and what `oras push` and `modctl push` would do with it.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use reqwest::{Client, RequestBuilder, Response};
use serde_json::{Map, Value, json};

use super::Server;
use super::token_service::{ISSUER, SERVICE, TokenService};
use crate::cluster::Component;
use crate::escadre::digest;

/// The account of registries that want one.
pub const LOGIN: (&str, &str) = ("aladdin", "open:sesame");
/// Its password, as `htpasswd -B` hashes it.
const PASSWORD_HASH: &str = "$2a$04$afQGg.gPOAPXaf8RKHHEWu8t40X7yWtWuzkkwIGjIyQ8p8oaH1LuK";
/// The type of a manifest.
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Who may use a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protection {
    /// Everybody.
    None,
    /// Who sends the login with each request.
    Basic,
    /// Who has a token, which a service gives out for the login.
    Token,
}

/// A layer of an artifact.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Its media type.
    pub kind: String,
    /// What is said about it.
    pub annotations: Vec<(&'static str, String)>,
    /// Its bytes.
    pub content: Vec<u8>,
}

impl Layer {
    /// A file as ModelPack describes it.
    pub fn model_pack(kind: &str, path: &str, content: &[u8]) -> Self {
        Self {
            kind: format!("application/vnd.cncf.model.{kind}"),
            annotations: vec![("org.cncf.model.filepath", path.to_owned())],
            content: content.to_vec(),
        }
    }

    /// A file as ORAS pushes it.
    pub fn oras(name: &str, content: &[u8]) -> Self {
        Self {
            kind: "application/vnd.oci.image.layer.v1.tar".to_owned(),
            annotations: vec![("org.opencontainers.image.title", name.to_owned())],
            content: content.to_vec(),
        }
    }
}

/// A running registry.
#[derive(Debug)]
pub struct Registry {
    server: Server,
    protection: Protection,
    tokens: Option<TokenService>,
    folder: tempfile::TempDir,
    client: Client,
}

impl Registry {
    /// Starts an empty one.
    pub async fn start(protection: Protection) -> Result<Self> {
        let folder = tempfile::tempdir().context("could not make a folder for a registry")?;
        let tokens = match protection {
            Protection::Token => Some(TokenService::start(LOGIN).await?),
            Protection::None | Protection::Basic => None,
        };
        let configure = |address| configure(folder.path(), address, protection, tokens.as_ref());
        let server = Server::start(Component::Registry, folder.path(), configure).await?;
        Ok(Self {
            server,
            protection,
            tokens,
            folder,
            client: crate::client::plain_client()?,
        })
    }

    /// Its host and port, as a source names them.
    pub fn host(&self) -> SocketAddr {
        self.server.address
    }

    /// How many tokens its service gave out.
    pub fn tokens_given(&self) -> usize {
        self.tokens.as_ref().map_or(0, TokenService::given)
    }

    /// Where a blob's bytes are on disk.
    pub fn blob_file(&self, digest: &str) -> std::path::PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        self.folder.path().join(format!(
            "storage/docker/registry/v2/blobs/sha256/{}/{hex}/data",
            &hex[..2]
        ))
    }

    /// Pushes an artifact. Returns its manifest's digest.
    pub async fn push(&self, repository: &str, tag: &str, layers: &[Layer]) -> Result<String> {
        let config = self.push_blob(repository, b"{}").await?;
        let mut descriptors = Vec::new();
        for layer in layers {
            let annotations: Map<String, Value> = (layer.annotations.iter())
                .map(|(name, value)| ((*name).to_owned(), json!(value)))
                .collect();
            descriptors.push(json!({
                "mediaType": layer.kind, "annotations": annotations,
                "digest": self.push_blob(repository, &layer.content).await?, "size": layer.content.len(),
            }));
        }
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "application/vnd.cncf.model.manifest.v1+json",
            "config": {"mediaType": "application/vnd.cncf.model.config.v1+json", "digest": config, "size": 2},
            "layers": descriptors,
        });
        self.push_manifest(repository, tag, MANIFEST, &manifest).await
    }

    /// Pushes a manifest or an index. Returns its digest.
    pub async fn push_manifest(&self, repository: &str, tag: &str, kind: &str, manifest: &Value) -> Result<String> {
        let bytes = serde_json::to_vec(manifest)?;
        let url = self.url(&format!("{repository}/manifests/{tag}"));
        let request = self.client.put(url).header("content-type", kind).body(bytes.clone());
        self.send(request, repository).await?;
        Ok(digest(&bytes))
    }

    async fn push_blob(&self, repository: &str, content: &[u8]) -> Result<String> {
        let digest = digest(content);
        let begin = self.client.post(self.url(&format!("{repository}/blobs/uploads/")));
        let answer = self.send(begin, repository).await?;
        let location = answer.headers().get("location").context("no place for an upload")?;
        let mut place = answer.url().join(location.to_str()?)?;
        place.query_pairs_mut().append_pair("digest", &digest);
        let upload = self.client.put(place).body(content.to_vec());
        self.send(upload, repository).await?;
        Ok(digest)
    }

    async fn send(&self, request: RequestBuilder, repository: &str) -> Result<Response> {
        let request = match (self.protection, &self.tokens) {
            (Protection::Basic, _) => request.basic_auth(LOGIN.0, Some(LOGIN.1)),
            (_, Some(tokens)) => request.bearer_auth(tokens.token(repository)?),
            (_, None) => request,
        };
        let response = request.send().await.context("could not ask the registry")?;
        let status = response.status();
        ensure!(
            status.is_success(),
            "the registry answered {status}: {}",
            response.text().await?
        );
        Ok(response)
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}/v2/{path}", self.server.address)
    }
}

/// Writes the configuration. Returns the arguments that name it.
fn configure(
    folder: &Path,
    address: SocketAddr,
    protection: Protection,
    tokens: Option<&TokenService>,
) -> Result<Vec<String>> {
    let auth = match (protection, tokens) {
        (_, Some(tokens)) => {
            let roots = folder.join("token.crt");
            std::fs::write(&roots, tokens.certificate()).context("could not write a certificate")?;
            json!({"token": {
                "realm": tokens.realm(), "service": SERVICE, "issuer": ISSUER,
                "rootcertbundle": roots,
            }})
        }
        (Protection::Basic, None) => {
            let passwords = folder.join("htpasswd");
            std::fs::write(&passwords, format!("{}:{PASSWORD_HASH}\n", LOGIN.0))
                .context("could not write a password")?;
            json!({"htpasswd": {"realm": "models", "path": passwords}})
        }
        (Protection::None | Protection::Token, None) => json!({}),
    };
    let mut configuration = json!({
        "version": 0.1,
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": folder.join("storage")}},
        "http": {"addr": address.to_string(), "secret": "of-a-test"},
    });
    if auth != json!({}) {
        configuration["auth"] = auth;
    }
    let file = folder.join("registry.yml");
    // JSON is YAML.
    std::fs::write(&file, serde_json::to_vec(&configuration)?).context("could not write a configuration")?;
    Ok(vec!["serve".to_owned(), file.display().to_string()])
}
