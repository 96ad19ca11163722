//! Asks a runtime for its status page, and reads the answer with patience: a section that is absent or strange is
//! left out, the rest still counts. Addresses come from the API server, answers from pods: both are bounded.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::time::Duration;

use escadre_crds::names;
use escadre_crds::v1alpha1::{DownloadStatus, ModelStatus, PerformanceStatus, VerificationStatus};
use futures::future::{Either, select};
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long a pod may take to answer. Its admin port shares the processor with a model that computes.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a connection may take: a pod on a lost node must not hold up a pass.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the answer to a probe prompt may take.
const PROMPT_TIMEOUT: Duration = Duration::from_mins(1);
/// How many tokens of it are looked at.
const PROMPT_TOKENS: u32 = 64;
/// The largest page that is read.
const PAGE_LIMIT: usize = 64 * 1024;

/// Why a pod could not be asked.
#[derive(Debug, thiserror::Error, strum::IntoStaticStr)]
pub enum Error {
    /// No connection.
    #[error("no connection to {address}")]
    Connection {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nothing in time.
    #[error("no answer from {address} within {} s", limit.as_secs())]
    Late {
        /// The address.
        address: SocketAddr,
        /// How long was waited.
        limit: Duration,
    },
    /// Something that is no answer, or a part of one.
    #[error("no whole answer from {address}")]
    Answer {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Another status than 200.
    #[error("{address} answered {status}")]
    Refused {
        /// The address.
        address: SocketAddr,
        /// The HTTP status.
        status: u16,
    },
    /// More than a status page ever has.
    #[error("{address} answered with more than {PAGE_LIMIT} bytes")]
    TooLong {
        /// The address.
        address: SocketAddr,
    },
    /// Not JSON.
    #[error("{address} did not answer with JSON")]
    NotJson {
        /// The address.
        address: SocketAddr,
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

/// What a process did for its clients since it is ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Traffic {
    /// Requests that ended.
    #[serde(default)]
    pub requests: u64,
    /// Of these, those that it could not answer.
    #[serde(default)]
    pub errors: u64,
    /// The time to the first token. Absent: no answer had one.
    #[serde(default, rename = "timeToFirstToken")]
    pub first_token: Option<FirstToken>,
}

/// The time to the first token of the last requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FirstToken {
    /// Requests.
    pub count: u64,
    /// The 90th percentile.
    pub p90_seconds: f64,
}

/// An answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    /// What the process said of itself.
    pub said: Said,
    /// What it did for its clients, which changes all the time.
    pub traffic: Option<Traffic>,
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

/// Asks the pod at `ip`. A connection of its own for each question: thousands that wait for the next one would cost more
/// memory than they save time. No redirect is followed and no proxy is used: the pod itself must answer.
///
/// # Errors
/// When there is no answer in time, or it is not a status page.
pub async fn ask(ip: IpAddr) -> Result<Page, Error> {
    let address = SocketAddr::new(ip, names::PORT_ADMIN_NUMBER);
    let request = Request::get("/status").body(Full::default());
    let page = json(address, request, ANSWER_TIMEOUT).await?;
    Ok(Page {
        said: Said::read(&page),
        traffic: section(&page, "traffic"),
    })
}

/// Asks the model in the pod at `ip`, through the admin port: no key is needed there, and no certificate.
///
/// # Errors
/// When there is no answer in time, or it is none.
pub async fn prompt(ip: IpAddr, text: &str) -> Result<String, Error> {
    let address = SocketAddr::new(ip, names::PORT_ADMIN_NUMBER);
    let question = serde_json::json!({"prompt": text, "max_tokens": PROMPT_TOKENS});
    let request = Request::post("/probe")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::from(question.to_string()));
    let answer = json(address, request, PROMPT_TIMEOUT).await?;
    Ok(answer["answer"].as_str().unwrap_or_default().to_owned())
}

/// One question and its answer.
async fn json(
    address: SocketAddr,
    request: Result<Request<Full<Bytes>>, http::Error>,
    limit: Duration,
) -> Result<Value, Error> {
    let answer = timeout(limit, exchange(address, request)).await;
    let answer = answer.map_err(|_elapsed| Error::Late { address, limit })??;
    serde_json::from_slice(&answer).map_err(|source| Error::NotJson { address, source })
}

async fn exchange(address: SocketAddr, request: Result<Request<Full<Bytes>>, http::Error>) -> Result<Bytes, Error> {
    let mut request = request.map_err(|source| Error::Answer {
        address,
        source: source.into(),
    })?;
    let connection = timeout(CONNECT_TIMEOUT, TcpStream::connect(address));
    let stream = connection
        .await
        .map_err(io::Error::from)
        .flatten()
        .map_err(|source| Error::Connection { address, source })?;
    let failed = |source: hyper::Error| Error::Answer {
        address,
        source: source.into(),
    };
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let host = HeaderValue::try_from(address.to_string()).map_err(|source| Error::Answer {
        address,
        source: source.into(),
    })?;
    request.headers_mut().insert(header::HOST, host);
    request
        .headers_mut()
        .insert(header::CONNECTION, HeaderValue::from_static("close"));
    let answer = async {
        let response = sender.send_request(request).await.map_err(failed)?;
        if response.status() != StatusCode::OK {
            return Err(Error::Refused {
                address,
                status: response.status().as_u16(),
            });
        }
        let body = Limited::new(response.into_body(), PAGE_LIMIT).collect().await;
        body.map(http_body_util::Collected::to_bytes).map_err(|source| {
            if source.is::<LengthLimitError>() {
                Error::TooLong { address }
            } else {
                Error::Answer { address, source }
            }
        })
    };
    // The connection is carried on by whoever waits for the answer.
    match select(pin!(answer), connection).await {
        Either::Left((page, _)) => page,
        Either::Right((_, answer)) => answer.await,
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

    /// What is made of a pod that answers with these bytes and then closes.
    async fn asked(answer: &[u8]) -> Result<Bytes, Error> {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let pod = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _question = stream.read(&mut [0; 1024]).await.unwrap();
            // The reader may have had enough.
            let _written = stream.write_all(answer).await;
        };
        tokio::join!(exchange(address, Request::get("/").body(Full::default())), pod).0
    }

    #[tokio::test]
    async fn answers_that_are_none() {
        let page = asked(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await;
        assert_eq!(page.unwrap(), "{}");
        let page = asked(b"HTTP/1.1 200 OK\r\n\r\n{}").await;
        assert_eq!(page.unwrap(), "{}", "until the connection closes");
        let refused = asked(b"HTTP/1.1 307 See There\r\nlocation: http://127.0.0.1/\r\n\r\n").await;
        assert!(
            matches!(refused, Err(Error::Refused { status: 307, .. })),
            "{refused:?}"
        );
        let cut = asked(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{").await;
        assert!(matches!(cut, Err(Error::Answer { .. })), "{cut:?}");
        let foreign = asked(b"SSH-2.0-other\r\n").await;
        assert!(matches!(foreign, Err(Error::Answer { .. })), "{foreign:?}");
        let long = [b"HTTP/1.1 200 OK\r\n\r\n", b" ".repeat(PAGE_LIMIT + 1).as_slice()].concat();
        let long = asked(&long).await;
        assert!(matches!(long, Err(Error::TooLong { .. })), "{long:?}");
    }

    #[test]
    fn traffic_is_read_as_the_runtime_writes_it() {
        let page = json!({"traffic": {"requests": 9, "errors": 1, "timeToFirstToken": {"count": 8, "p50Seconds": 0.1, "p90Seconds": 0.4}}});
        let traffic: Traffic = section(&page, "traffic").unwrap();
        assert_eq!((traffic.requests, traffic.errors), (9, 1));
        assert_eq!(
            traffic.first_token,
            Some(FirstToken {
                count: 8,
                p90_seconds: 0.4
            })
        );
    }

    #[test]
    fn unknown_stage_is_no_stage() {
        assert_eq!(Said::read(&json!({"stage": "Dreaming"})).stage, None);
    }
}
