//! Status pages for pods that have no process: one server answers `/status` on the addresses of all fake nodes' pods.
//!
//! It tells pods apart by the address that was asked, and knows them from the API server: their UID, and from their
//! arguments the digest and the revision that they should serve. By default it says just that. A config map with the label
//! [`LABEL`] makes pods of its namespace answer otherwise: a key is a pod's name, a deployment's name or `all` (the first
//! of these that is there counts), a value an [`Answer`].

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::str::FromStr;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use axum::Router;
use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::serve::IncomingStream;
use escadre_crds::names;
use futures::TryStreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt as _};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::cluster::{Cluster, own_program};
use crate::fixtures::SOME_DIGEST;

/// The label of config maps that say how pods answer.
pub const LABEL: &str = "testbed.escadre.dev/status-pages";
/// The key for all pods of a namespace.
pub const ALL: &str = "all";

/// How a pod answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It serves what it should.
    Right,
    /// It serves another digest.
    WrongDigest,
    /// It is ready, and says no digest.
    NoDigest,
    /// Another pod answers at its address.
    OtherPod,
    /// It accepts the question and never answers.
    Silent,
    /// 500.
    Error,
    /// Something that is no status page.
    Nonsense,
    /// It is still fetching: half is done.
    Fetching,
    /// It serves what it should, and answers half of its requests with errors.
    Failing,
    /// It serves what it should, and its first tokens come late.
    Slow,
}

impl FromStr for Answer {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "right" => Self::Right,
            "wrong-digest" => Self::WrongDigest,
            "no-digest" => Self::NoDigest,
            "other-pod" => Self::OtherPod,
            "silent" => Self::Silent,
            "error" => Self::Error,
            "nonsense" => Self::Nonsense,
            "fetching" => Self::Fetching,
            "failing" => Self::Failing,
            "slow" => Self::Slow,
            other => bail!(
                "unknown answer {other:?}: right, wrong-digest, no-digest, other-pod, silent, error, nonsense, fetching, failing or slow"
            ),
        })
    }
}

/// Starts the server inside the cluster's network, for as long as the cluster lives.
pub async fn start(cluster: &Cluster) -> Result<()> {
    let arguments = vec!["status-pages".to_owned()];
    cluster.start_process("status-pages", &own_program()?, arguments)?;
    let address = format!("127.0.0.1:{}", names::PORT_ADMIN_NUMBER);
    cluster.await_listening("status-pages", &address).await
}

/// What is known of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Facts {
    uid: String,
    namespace: String,
    name: String,
    deployment: String,
    revision: String,
    digest: String,
}

impl Facts {
    /// Its address and the rest; `None` while it has no address.
    fn read(pod: &Pod) -> Option<(IpAddr, Self)> {
        let address = pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()?;
        let label = |name: &str| pod.labels().get(name).cloned().unwrap_or_default();
        let containers = &pod.spec.as_ref()?.containers;
        let digest = containers
            .iter()
            .filter(|container| container.name == names::CONTAINER_RUNTIME)
            .flat_map(|container| container.args.iter().flatten())
            .find_map(|argument| argument.strip_prefix("--digest="));
        let facts = Self {
            uid: pod.uid()?,
            namespace: pod.namespace()?,
            name: pod.name_any(),
            deployment: label(names::LABEL_DEPLOYMENT),
            revision: label(names::LABEL_REVISION),
            digest: digest.unwrap_or_default().to_owned(),
        };
        Some((address, facts))
    }
}

/// How well the pods are asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Polls {
    /// Pods that have an address.
    pub pods: usize,
    /// Seconds since the pod that waits longest was asked, or was first seen.
    pub oldest_seconds: f64,
}

/// How well the pods of this network namespace are asked; only for threads inside it.
pub async fn polls() -> Result<Polls> {
    let url = format!("http://127.0.0.1:{}/polls", names::PORT_ADMIN_NUMBER);
    let client = reqwest::Client::builder()
        .no_proxy()
        .build()
        .context("could not make an HTTP client")?;
    let answer = client
        .get(url)
        .send()
        .await
        .context("no answer from the status pages")?;
    answer.json().await.context("a strange answer from the status pages")
}

#[derive(Debug, Default)]
struct Book {
    /// When each pod was last asked, or first seen; by UID.
    asked: RwLock<HashMap<String, Instant>>,
    pods: RwLock<HashMap<IpAddr, Facts>>,
    /// By namespace and name of the ConfigMap.
    answers: RwLock<BTreeMap<(String, String), BTreeMap<String, String>>>,
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

impl Book {
    fn see(&self, pod: &Pod) {
        if let Some((address, facts)) = Facts::read(pod) {
            write(&self.asked).entry(facts.uid.clone()).or_insert_with(Instant::now);
            write(&self.pods).insert(address, facts);
        }
    }

    fn lose(&self, pod: &Pod) {
        if let Some((address, facts)) = Facts::read(pod) {
            write(&self.asked).remove(&facts.uid);
            let mut pods = write(&self.pods);
            // The address may be another pod's already.
            if pods.get(&address).is_some_and(|known| known.uid == facts.uid) {
                pods.remove(&address);
            }
        }
    }

    fn ask(&self, facts: &Facts) {
        write(&self.asked).insert(facts.uid.clone(), Instant::now());
    }

    fn polls(&self) -> Polls {
        let pods = read(&self.pods);
        let asked = read(&self.asked);
        let ages = pods
            .values()
            .filter_map(|facts| asked.get(&facts.uid))
            .map(|at| at.elapsed().as_secs_f64());
        Polls {
            pods: pods.len(),
            oldest_seconds: ages.fold(0.0, f64::max),
        }
    }

    fn key(map: &ConfigMap) -> (String, String) {
        (map.namespace().unwrap_or_default(), map.name_any())
    }

    fn answer(&self, facts: &Facts) -> Result<Answer> {
        let answers = read(&self.answers);
        let of_namespace = || {
            answers
                .iter()
                .filter(|((namespace, _), _)| *namespace == facts.namespace)
        };
        let keys = [facts.name.as_str(), facts.deployment.as_str(), ALL];
        keys.iter()
            .find_map(|key| of_namespace().find_map(|(_, data)| data.get(*key)))
            .map_or(Ok(Answer::Right), |text| text.parse())
    }
}

/// Serves until it fails. Uses the cluster that the environment names.
pub async fn serve(listen: SocketAddr) -> Result<()> {
    // Fails only when another part of the program was first, which is as good.
    let _installed_before = rustls::crypto::ring::default_provider().install_default();
    let client = Client::try_default().await.context("KUBECONFIG names no cluster")?;
    let book = Arc::new(Book::default());
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("could not listen on {listen}"))?;
    let router = Router::new()
        .route("/status", get(page))
        .route(
            "/polls",
            get(async |State(book): State<Arc<Book>>| axum::Json(book.polls())),
        )
        .with_state(Arc::clone(&book))
        .into_make_service_with_connect_info::<Asked>();
    tokio::select! {
        ended = axum::serve(listener, router) => ended.context("the server of status pages ended"),
        ended = watch_pods(client.clone(), &book) => ended,
        ended = watch_answers(client, &book) => ended,
    }
}

async fn watch_pods(client: Client, book: &Book) -> Result<()> {
    let ours = format!("{}={}", names::LABEL_COMPONENT, names::COMPONENT_RUNTIME);
    let pods = watcher(Api::<Pod>::all(client), watcher::Config::default().labels(&ours)).default_backoff();
    let mut pods = pin!(pods);
    let mut anew = HashMap::new();
    loop {
        match pods.try_next().await {
            Ok(Some(Event::Apply(pod))) => book.see(&pod),
            Ok(Some(Event::Delete(pod))) => book.lose(&pod),
            Ok(Some(Event::Init)) => anew.clear(),
            Ok(Some(Event::InitApply(pod))) => anew.extend(Facts::read(&pod)),
            Ok(Some(Event::InitDone)) => *write(&book.pods) = std::mem::take(&mut anew),
            Ok(None) => bail!("the watch of pods ended"),
            Err(error) => eprintln!("watching pods: {error}"),
        }
    }
}

async fn watch_answers(client: Client, book: &Book) -> Result<()> {
    let maps = watcher(Api::<ConfigMap>::all(client), watcher::Config::default().labels(LABEL)).default_backoff();
    let mut maps = pin!(maps);
    let mut anew = BTreeMap::new();
    loop {
        match maps.try_next().await {
            Ok(Some(Event::Apply(map))) => {
                write(&book.answers).insert(Book::key(&map), map.data.unwrap_or_default());
            }
            Ok(Some(Event::Delete(map))) => {
                write(&book.answers).remove(&Book::key(&map));
            }
            Ok(Some(Event::Init)) => anew.clear(),
            Ok(Some(Event::InitApply(map))) => {
                anew.insert(Book::key(&map), map.data.unwrap_or_default());
            }
            Ok(Some(Event::InitDone)) => *write(&book.answers) = std::mem::take(&mut anew),
            Ok(None) => bail!("the watch of answers ended"),
            Err(error) => eprintln!("watching answers: {error}"),
        }
    }
}

/// The address that was asked: it says which pod is meant.
#[derive(Debug, Clone, Copy)]
struct Asked(Option<IpAddr>);

impl Connected<IncomingStream<'_, TcpListener>> for Asked {
    fn connect_info(stream: IncomingStream<'_, TcpListener>) -> Self {
        Self(stream.io().local_addr().ok().map(|address| address.ip()))
    }
}

async fn page(State(book): State<Arc<Book>>, ConnectInfo(Asked(asked)): ConnectInfo<Asked>) -> Response {
    let facts = asked.and_then(|address| read(&book.pods).get(&address).cloned());
    let Some(facts) = facts else {
        return (StatusCode::NOT_FOUND, "no pod has this address").into_response();
    };
    book.ask(&facts);
    match book.answer(&facts) {
        Ok(Answer::Silent) => {
            let forever: Result<Response, Infallible> = std::future::pending().await;
            forever.unwrap_or_else(|never| match never {})
        }
        Ok(Answer::Error) => (StatusCode::INTERNAL_SERVER_ERROR, "told to fail").into_response(),
        Ok(Answer::Nonsense) => "<html>not a status page</html>".into_response(),
        Ok(answer) => axum::Json(render(&facts, answer)).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}")).into_response(),
    }
}

fn render(facts: &Facts, answer: Answer) -> Value {
    let mut page = json!({
        "podUid": facts.uid,
        "podName": facts.name,
        "revision": facts.revision,
        "stage": "Ready",
        "servedDigest": facts.digest,
        "model": {
            "servedName": facts.deployment,
            "digest": facts.digest,
            "bytes": 98_000_000,
            "format": "GGUF",
            "architecture": "llama",
        },
        "verification": {"result": "Verified", "method": "Digest", "files": 1, "bytes": 98_000_000, "durationSeconds": 0.5},
    });
    match answer {
        Answer::WrongDigest => page["servedDigest"] = json!(other_digest(&facts.digest)),
        Answer::NoDigest => page["servedDigest"] = Value::Null,
        Answer::OtherPod => page["podUid"] = json!("00000000-0000-0000-0000-000000000000"),
        Answer::Fetching => {
            page["stage"] = json!("Fetching");
            page["servedDigest"] = Value::Null;
            page["verification"] = json!({"result": "Pending", "method": "Digest"});
            page["download"] = json!({"bytesDone": 49_000_000, "bytesTotal": 98_000_000, "bytesPerSecond": 1_000_000});
        }
        Answer::Failing => page["traffic"] = json!({"requests": 60, "errors": 30}),
        Answer::Slow => {
            let first_token = json!({"count": 60, "p50Seconds": 0.2, "p90Seconds": 3.0});
            page["traffic"] = json!({"requests": 60, "errors": 0, "timeToFirstToken": first_token});
        }
        Answer::Right | Answer::Silent | Answer::Error | Answer::Nonsense => {}
    }
    page
}

fn other_digest(digest: &str) -> String {
    let other = SOME_DIGEST.replace('5', "6");
    if digest == other { SOME_DIGEST.to_owned() } else { other }
}

/// Sets answers of pods of a namespace, in one ConfigMap; keys as in the module's text. They hold a moment later.
pub async fn answer(client: &Client, namespace: &str, answers: &[(&str, &str)]) -> Result<()> {
    for (_, value) in answers {
        value.parse::<Answer>()?;
    }
    let data: BTreeMap<&str, &str> = answers.iter().copied().collect();
    let map = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "status-pages", "labels": {LABEL: "true"}},
        "data": data,
    });
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let parameters = kube::api::PatchParams::apply("scenario").force();
    maps.patch("status-pages", &parameters, &kube::api::Patch::Apply(map))
        .await
        .context("could not say how pods answer")?;
    tokio::time::sleep(SPREAD).await;
    Ok(())
}

/// Until the server's watch has seen a ConfigMap.
const SPREAD: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        let pod = serde_json::from_value(json!({
            "metadata": {"name": "chat-abc-0", "namespace": "a", "uid": "u1",
                "labels": {names::LABEL_DEPLOYMENT: "chat", names::LABEL_REVISION: "abc"}},
            "spec": {"containers": [{"name": "runtime", "args": ["serve", "--digest=sha256:00"]}]},
            "status": {"podIP": "10.245.0.7"},
        }));
        let (address, facts) = Facts::read(&pod.unwrap()).unwrap();
        assert_eq!(address.to_string(), "10.245.0.7");
        facts
    }

    #[test]
    fn pod_says_what_its_arguments_say() {
        let page = render(&facts(), Answer::Right);
        assert_eq!(
            (
                page["podUid"].as_str(),
                page["servedDigest"].as_str(),
                page["revision"].as_str()
            ),
            (Some("u1"), Some("sha256:00"), Some("abc"))
        );
        assert_ne!(render(&facts(), Answer::WrongDigest)["servedDigest"], "sha256:00");
        assert_eq!(render(&facts(), Answer::NoDigest)["servedDigest"], Value::Null);
    }

    #[test]
    fn pod_is_before_deployment_is_before_all() {
        let book = Book::default();
        assert_eq!(book.answer(&facts()).unwrap(), Answer::Right);
        let mut data = BTreeMap::from([(ALL.to_owned(), "silent".to_owned())]);
        let set = |data: &BTreeMap<String, String>| {
            write(&book.answers).insert(("a".to_owned(), "m".to_owned()), data.clone());
        };
        set(&data);
        assert_eq!(book.answer(&facts()).unwrap(), Answer::Silent);
        data.insert("chat".to_owned(), "error".to_owned());
        set(&data);
        assert_eq!(book.answer(&facts()).unwrap(), Answer::Error);
        data.insert("chat-abc-0".to_owned(), "wrong".to_owned());
        set(&data);
        book.answer(&facts()).unwrap_err();
    }
}
