//! Asks a runtime for its status page, and reads the answer with patience: a section that is absent or strange is
//! left out, the rest still counts. Addresses come from the API server, answers from pods: both are bounded.

use std::net::IpAddr;
use std::time::Duration;

use escadre_crds::names;
use escadre_crds::v1alpha1::{DownloadStatus, ModelStatus, PerformanceStatus, VerificationStatus};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// How long a pod may take to answer. Its admin port shares the processor with a model that computes.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a connection may take: a pod on a lost node must not hold up a pass.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// The largest page that is read.
const PAGE_LIMIT: usize = 64 * 1024;

/// Why a pod could not be asked.
#[derive(Debug, thiserror::Error, strum::IntoStaticStr)]
pub enum Error {
    /// The client could not be made.
    #[error("could not make the client for status pages")]
    Client(#[source] reqwest::Error),
    /// No connection, no answer in time, or a cut one.
    #[error("no answer from {address}")]
    Request {
        /// The page.
        address: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// Another status than 200.
    #[error("{address} answered {status}")]
    Refused {
        /// The page.
        address: String,
        /// The HTTP status.
        status: u16,
    },
    /// More than a status page ever has.
    #[error("{address} answered with more than {PAGE_LIMIT} bytes")]
    TooLong {
        /// The page.
        address: String,
    },
    /// Not JSON.
    #[error("{address} did not answer with JSON")]
    NotJson {
        /// The page.
        address: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// What a runtime said of itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Said {
    /// The pod that answered: an address can be used again by another.
    pub pod_uid: Option<String>,
    /// What it is doing.
    pub stage: Option<Stage>,
    /// The digest of the model that it serves.
    pub served_digest: Option<String>,
    /// What the model is.
    pub model: Option<ModelStatus>,
    /// How the bytes were judged.
    pub verification: Option<VerificationStatus>,
    /// Progress of fetching.
    pub download: Option<DownloadStatus>,
    /// Progress of loading.
    pub load: Option<Load>,
    /// Speeds that were measured.
    pub performance: Option<PerformanceStatus>,
    /// What went wrong.
    pub failure: Option<Failure>,
}

/// What a runtime is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::EnumString)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Stage {
    Fetching,
    Verifying,
    Loading,
    WarmingUp,
    Ready,
    Draining,
    Failed,
}

/// Progress of loading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Load {
    /// How much is done.
    #[serde(default)]
    pub bytes_done: Option<u64>,
    /// How much there is.
    #[serde(default)]
    pub bytes_total: Option<u64>,
}

/// What went wrong, by the process's own word; also the form of its termination message.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
pub struct Failure {
    /// The stable name.
    pub reason: String,
    /// The sentence.
    #[serde(default)]
    pub message: String,
}

impl Said {
    /// Reads a page. What cannot be read is left out.
    pub fn read(page: &Value) -> Self {
        let text = |key: &str| page[key].as_str().map(str::to_owned);
        Self {
            pod_uid: text("podUid"),
            stage: page["stage"].as_str().and_then(|name| name.parse().ok()),
            served_digest: text("servedDigest"),
            model: section(page, "model"),
            verification: section(page, "verification"),
            download: section(page, "download"),
            load: section(page, "load"),
            performance: section(page, "performance"),
            failure: section(page, "failure"),
        }
    }
}

/// One object of the page. Numbers are rounded to whole ones where our types want whole ones.
fn section<T: DeserializeOwned>(page: &Value, key: &str) -> Option<T> {
    let object = page.get(key).filter(|value| value.is_object())?;
    serde_json::from_value(object.clone())
        .or_else(|_| serde_json::from_value(rounded(object)))
        .ok()
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "bytes and seconds are far below 2^53; a cast saturates"
)]
fn rounded(object: &Value) -> Value {
    let Value::Object(fields) = object else {
        return object.clone();
    };
    let fields = fields.iter().map(|(key, value)| {
        let value = match value.as_f64() {
            Some(number) if value.is_f64() && key != "durationSeconds" => Value::from(number.round() as i64),
            Some(_) | None => value.clone(),
        };
        (key.clone(), value)
    });
    Value::Object(fields.collect())
}

/// Asks pods.
#[derive(Clone, Debug)]
pub struct StatusClient(reqwest::Client);

impl StatusClient {
    /// A client that follows no redirect and uses no proxy: the pod itself must answer.
    ///
    /// # Errors
    /// When the HTTP client cannot be made.
    pub fn new() -> Result<Self, Error> {
        reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(ANSWER_TIMEOUT)
            .pool_max_idle_per_host(1)
            .build()
            .map(Self)
            .map_err(Error::Client)
    }

    /// Asks the pod at `ip`.
    ///
    /// # Errors
    /// When there is no answer in time, or it is not a status page.
    pub async fn ask(&self, ip: IpAddr) -> Result<Said, Error> {
        let host = match ip {
            IpAddr::V4(ip) => ip.to_string(),
            IpAddr::V6(ip) => format!("[{ip}]"),
        };
        let address = format!("http://{host}:{}/status", names::PORT_ADMIN_NUMBER);
        let failed = |source| Error::Request {
            address: address.clone(),
            source,
        };
        let mut response = self.0.get(&address).send().await.map_err(failed)?;
        if response.status() != reqwest::StatusCode::OK {
            return Err(Error::Refused {
                address,
                status: response.status().as_u16(),
            });
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > PAGE_LIMIT {
                return Err(Error::TooLong { address });
            }
            body.extend_from_slice(&chunk);
        }
        let page: Value = serde_json::from_slice(&body).map_err(|source| Error::NotJson { address, source })?;
        Ok(Said::read(&page))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn strange_sections_do_not_spoil_the_rest() {
        let said = Said::read(&json!({
            "podUid": "u1", "stage": "Fetching", "servedDigest": null, "somethingNew": {"a": 1},
            "model": "not an object", "verification": {"failedFile": null, "durationSeconds": 1.5, "files": 2},
            "download": {"bytesDone": 5, "bytesTotal": 10, "bytesPerSecond": 2.6},
        }));
        assert_eq!(said.pod_uid.as_deref(), Some("u1"));
        assert_eq!(said.stage, Some(Stage::Fetching));
        assert_eq!(said.served_digest, None);
        assert_eq!(said.model, None);
        assert_eq!(said.verification.unwrap().duration_seconds, Some(1.5));
        assert_eq!(said.download.unwrap().bytes_per_second, Some(3));
    }

    #[test]
    fn unknown_stage_is_no_stage() {
        assert_eq!(Said::read(&json!({"stage": "Dreaming"})).stage, None);
    }
}
