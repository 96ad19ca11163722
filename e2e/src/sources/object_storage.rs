//! Real object storage (Versity's gateway over a folder) that speaks S3.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use reqwest::{Client, RequestBuilder};
use rusty_s3::{Bucket, Credentials, Method, S3Action as _, UrlStyle};
use serde_json::json;
use url::Url;

use super::Server;
use crate::cluster::Component;

/// The account that may do everything.
pub const KEYS: (&str, &str) = ("AKIATESTS", "a/secret+of-tests");
/// Its region, unlike the one that is taken where none is known.
pub const REGION: &str = "eu-tests-1";
/// How long the test's own signatures are good.
const SIGNED_FOR: Duration = Duration::from_mins(5);

/// Running storage.
#[derive(Debug)]
pub struct ObjectStorage {
    server: Server,
    keys: Credentials,
    client: Client,
    _folder: tempfile::TempDir,
}

impl ObjectStorage {
    /// Starts it, empty.
    pub async fn start() -> Result<Self> {
        let folder = tempfile::tempdir().context("could not make a folder for object storage")?;
        let objects = folder.path().join("objects");
        std::fs::create_dir(&objects).context("could not make a folder for objects")?;
        let arguments = |address: SocketAddr| {
            let address = address.to_string();
            let options = [
                "--port", &address, "--access", KEYS.0, "--secret", KEYS.1, "--region", REGION, "posix",
            ];
            let objects = objects.display().to_string();
            Ok(options
                .iter()
                .map(|option| (*option).to_owned())
                .chain([objects])
                .collect())
        };
        let server = Server::start(Component::Versitygw, folder.path(), arguments).await?;
        Ok(Self {
            server,
            keys: Credentials::new(KEYS.0, KEYS.1),
            client: crate::client::plain_client()?,
            _folder: folder,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.server.address
    }

    /// The address of its API.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.server.address)
    }

    /// Makes a bucket.
    pub async fn make_bucket(&self, name: &str) -> Result<()> {
        let bucket = self.bucket(name)?;
        let url = bucket.create_bucket(&self.keys).sign(SIGNED_FOR);
        send(self.client.put(url)).await
    }

    /// Puts an object.
    pub async fn put(&self, bucket: &str, key: &str, content: &[u8]) -> Result<()> {
        let bucket = self.bucket(bucket)?;
        let url = bucket.put_object(Some(&self.keys), key).sign(SIGNED_FOR);
        send(self.client.put(url).body(content.to_vec())).await
    }

    /// Lets everybody read a bucket.
    pub async fn publish(&self, name: &str) -> Result<()> {
        let resources = [format!("arn:aws:s3:::{name}"), format!("arn:aws:s3:::{name}/*")];
        let policy = json!({"Version": "2012-10-17", "Statement": [{
            "Effect": "Allow", "Principal": "*", "Action": ["s3:ListBucket", "s3:GetObject"], "Resource": resources,
        }]});
        let bucket = self.bucket(name)?;
        let url = rusty_s3::signing::sign(
            &std::time::SystemTime::now()
                .try_into()
                .ok()
                .context("the clock says no time")?,
            Method::Put,
            bucket.base_url().clone(),
            KEYS.0,
            KEYS.1,
            None,
            REGION,
            SIGNED_FOR.as_secs(),
            [("policy", "")].into_iter(),
            std::iter::empty(),
        );
        send(self.client.put(url).body(policy.to_string())).await
    }

    fn bucket(&self, name: &str) -> Result<Bucket> {
        let endpoint = Url::parse(&self.endpoint())?;
        Bucket::new(endpoint, UrlStyle::Path, name.to_owned(), REGION).context("could not name a bucket")
    }
}

async fn send(request: RequestBuilder) -> Result<()> {
    let response = request.send().await.context("could not ask object storage")?;
    let status = response.status();
    ensure!(
        status.is_success(),
        "object storage answered {status}: {}",
        response.text().await?
    );
    Ok(())
}
