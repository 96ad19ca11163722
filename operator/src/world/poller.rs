//! Asks every pod that can answer for its status page, at its own pace, and wakes the controller when an answer differs.
//!
//! A pod on its way is asked every few seconds, a serving one every 20 to 60 s, depending on how many there are. One
//! answer that was lost does not take `Ready` away: the last good one stands in for a while, as long as the pod's own
//! readiness probe succeeds.

use std::cmp::Reverse;
use std::collections::hash_map::DefaultHasher;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::hash::{Hash as _, Hasher as _};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use escadre_crds::v1alpha1::ProbePrompt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher::Event;
use kube::{Resource as _, ResourceExt as _};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::cache::{Key, deployment_of};
use super::is_ready;
use crate::due::due;
use crate::metrics::Metrics;
use crate::queue::{Purpose, Queue};
use crate::runtime_status::{Page, Said, Stage, Traffic, ask, prompt};

/// How many pods are asked at once.
const AT_ONCE: usize = 64;
/// Those who are due within so long are asked together: the processor is woken less often.
const TOGETHER: Duration = Duration::from_millis(100);
/// While something is on its way: progress should look alive to a person who watches.
const SOON: Duration = Duration::from_secs(2);
/// While a long download runs: status is written at most this often.
const DOWNLOADING: Duration = Duration::from_secs(5);
/// While a pod serves: how long a process that went wrong silently stays unnoticed, in a small fleet.
const STABLE_LEAST: Duration = Duration::from_secs(20);
/// The same in a large one.
const STABLE_MOST: Duration = Duration::from_secs(55);
/// A larger fleet is asked less often, so that this many questions a second are not exceeded by much.
const PER_SECOND: usize = 100;
/// How long a pod is asked often after somebody waited for its answers.
const CLOSELY: Duration = Duration::from_secs(15);
/// How long a pod is left alone that did not answer a prompt.
const PROBE_AGAIN: Duration = Duration::from_secs(5);
/// How much of a wrong answer is shown.
const SHOWN: usize = 200;
/// How long the last good answer stands in for lost ones.
const STAND_IN: Duration = Duration::from_secs(30);

/// What a pod's process says.
#[derive(Clone, Debug, PartialEq)]
pub enum Report {
    /// It cannot be asked: no address yet, or ended.
    NotAsked,
    /// It can be asked, and was not yet.
    Waiting,
    /// It was asked and did not answer.
    Unreachable(String),
    /// It answered, now or a moment ago.
    Said {
        /// The answer.
        said: Arc<Said>,
        /// Whether the answer is an older one, since the last questions were lost.
        stale: bool,
    },
}

/// What became of a probe prompt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Probed {
    /// It was not asked.
    #[default]
    NotAsked,
    /// The answer is awaited.
    Asking,
    /// The answer is as expected.
    Passed,
    /// It is not; this is how it begins.
    Failed(String),
    /// There was no answer.
    Unreachable(String),
}

/// Asks pods.
#[derive(Debug)]
pub struct Poller {
    metrics: Arc<Metrics>,
    inner: Mutex<Inner>,
    /// Something is due earlier than before.
    sooner: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    pods: HashMap<String, Watched>,
    /// When, whom, and the ticket that the pod must still have.
    due: BinaryHeap<Reverse<(Instant, String, u64)>>,
    tickets: u64,
    /// Pods that wait to be asked a probe prompt.
    to_probe: Vec<String>,
    /// UIDs of a complete list that is arriving.
    listed: Option<HashSet<String>>,
}

#[derive(Debug)]
struct Watched {
    target: Target,
    owner: Key,
    report: Report,
    traffic: Option<Traffic>,
    /// The question, and what became of it.
    probe: Option<(ProbePrompt, Probed)>,
    /// Until when it is asked often.
    close_until: Option<Instant>,
    failing_since: Option<Instant>,
    ticket: u64,
}

/// What must be as before for the next question to wait for its time.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    ip: IpAddr,
    is_ready: bool,
    /// Starts of containers so far.
    restarts: i32,
    running: usize,
}

impl Poller {
    /// A poller that asks nobody yet.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            metrics,
            inner: Mutex::default(),
            sooner: Notify::new(),
        }
    }

    /// Takes one event of the watch of pods.
    pub fn handle(&self, event: &Event<Pod>) {
        let now = Instant::now();
        let mut inner = self.lock();
        match event {
            Event::Apply(pod) => inner.watch(pod, now),
            Event::Delete(pod) => {
                inner.pods.remove(&pod.uid().unwrap_or_default());
            }
            Event::Init => inner.listed = Some(HashSet::new()),
            Event::InitApply(pod) => {
                inner.watch(pod, now);
                inner.listed.get_or_insert_default().extend(pod.uid());
            }
            Event::InitDone => {
                let listed = inner.listed.take().unwrap_or_default();
                inner.pods.retain(|uid, _| listed.contains(uid));
            }
        }
        drop(inner);
        self.sooner.notify_one();
    }

    /// What a pod's process said last.
    pub fn report(&self, pod: &Pod) -> Report {
        if target(pod).is_none() {
            return Report::NotAsked;
        }
        let inner = self.lock();
        let watched = pod.meta().uid.as_ref().and_then(|uid| inner.pods.get(uid));
        watched.map_or(Report::Waiting, |watched| watched.report.clone())
    }

    /// What a pod did for its clients, as it said last.
    pub fn traffic(&self, pod: &Pod) -> Option<Traffic> {
        self.lock().pods.get(pod.meta().uid.as_ref()?)?.traffic
    }

    /// What became of this prompt in a pod.
    pub fn probed(&self, pod: &Pod, prompt: &ProbePrompt) -> Probed {
        let inner = self.lock();
        let watched = pod.meta().uid.as_ref().and_then(|uid| inner.pods.get(uid));
        let asked = watched.and_then(|watched| watched.probe.as_ref());
        asked
            .filter(|(asked, _)| asked == prompt)
            .map_or(Probed::NotAsked, |(_, probed)| probed.clone())
    }

    /// Asks a pod a prompt, once. Its deployment hears when there is an answer.
    pub fn probe(&self, uid: &str, prompt: &ProbePrompt) {
        let mut inner = self.lock();
        if let Some(watched) = inner.pods.get_mut(uid) {
            watched.probe = Some((prompt.clone(), Probed::Asking));
            inner.to_probe.push(uid.to_owned());
        }
        drop(inner);
        self.sooner.notify_one();
    }

    /// Asks pods often for a while: somebody waits for what they did for their clients.
    pub fn watch_closely(&self, uids: &[String]) {
        let now = Instant::now();
        let mut inner = self.lock();
        for uid in uids {
            let Some(watched) = inner.pods.get_mut(uid) else {
                continue;
            };
            let is_new = watched.close_until.is_none_or(|until| until < now);
            watched.close_until = Some(now + CLOSELY);
            if is_new {
                inner.schedule(uid.clone(), now);
            }
        }
        drop(inner);
        self.sooner.notify_one();
    }

    /// Asks for ever. `queue` hears of deployments with an answer that differs from the one before.
    pub async fn run(&self, queue: &Queue) {
        // In this task rather than in tasks of their own: a question costs less than waking another thread for it.
        let mut asked = FuturesUnordered::new();
        loop {
            let next = self.ask_who_is_due(&mut asked);
            tokio::select! {
                () = self.sooner.notified() => {}
                () = due(next.map(|next| next + TOGETHER)), if asked.len() < AT_ONCE => {}
                Some(answered) = asked.next() => {
                    if let Some(deployment) = self.take_answer(answered) {
                        queue.add(deployment, Purpose::Progress);
                    }
                }
            }
        }
    }

    /// Starts the questions that are due. Returns when the next one is.
    fn ask_who_is_due(&self, asked: &mut FuturesUnordered<BoxFuture<'static, Answered>>) -> Option<Instant> {
        let now = Instant::now();
        let mut inner = self.lock();
        while let Some(uid) = inner.to_probe.pop() {
            let Some((ip, prompt)) = inner.pods.get(&uid).and_then(Watched::question) else {
                continue;
            };
            let question = async move {
                let answer = prompt_of(ip, &prompt).await;
                Answered::Prompt { uid, prompt, answer }
            };
            asked.push(question.boxed());
        }
        while asked.len() < AT_ONCE {
            let Reverse((when, uid, ticket)) = inner.due.peek().cloned()?;
            if when > now {
                return Some(when);
            }
            inner.due.pop();
            let Some(watched) = inner.pods.get(&uid).filter(|watched| watched.ticket == ticket) else {
                continue;
            };
            let ip = watched.target.ip;
            let question = async move {
                let answer = ask(ip).await.map(Box::new);
                let result = answer.map_err(|error| ((&error).into(), error.to_string()));
                Answered::Page { uid, ticket, result }
            };
            asked.push(question.boxed());
        }
        None
    }

    /// Keeps an answer. Returns whose pod it is, when the answer differs.
    fn take_answer(&self, answered: Answered) -> Option<Key> {
        let now = Instant::now();
        let (uid, ticket, result) = match answered {
            Answered::Page { uid, ticket, result } => (uid, ticket, result),
            Answered::Prompt { uid, prompt, answer } => return self.take_prompt(&uid, &prompt, answer),
        };
        let outcome: Result<Page, (&'static str, String)> = result.map(|page| *page).and_then(|page| {
            if page.said.pod_uid.as_deref().is_some_and(|answered| answered != uid) {
                return Err(("other_pod", "another pod answers at its address".to_owned()));
            }
            Ok(page)
        });
        self.metrics
            .polled(outcome.as_ref().map_or_else(|(label, _)| *label, |_| "ok"));
        let mut inner = self.lock();
        let fleet = inner.pods.len();
        let watched = inner.pods.get_mut(&uid)?;
        let before = watched.report.clone();
        watched.take(outcome, now);
        let is_news = watched.report != before;
        let owner = watched.owner.clone();
        if watched.ticket == ticket {
            let wait = watched.pace(fleet, &uid, now);
            inner.schedule(uid, now + wait);
        }
        is_news.then_some(owner)
    }

    fn take_prompt(&self, uid: &str, prompt: &ProbePrompt, probed: Probed) -> Option<Key> {
        let mut inner = self.lock();
        let watched = inner.pods.get_mut(uid)?;
        let (asked, before) = watched.probe.as_mut()?;
        if asked != prompt {
            return None;
        }
        *before = probed;
        Some(watched.owner.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[derive(Debug)]
enum Answered {
    Page {
        uid: String,
        ticket: u64,
        result: Result<Box<Page>, (&'static str, String)>,
    },
    Prompt {
        uid: String,
        prompt: ProbePrompt,
        answer: Probed,
    },
}

/// Asks a pod a prompt and judges the answer.
async fn prompt_of(ip: IpAddr, probe: &ProbePrompt) -> Probed {
    match prompt(ip, &probe.prompt).await {
        Ok(answer) if answer.contains(&probe.expect_contains) => Probed::Passed,
        Ok(answer) => Probed::Failed(answer.chars().take(SHOWN).collect()),
        Err(error) => {
            // Whoever hears of it asks again at once.
            tokio::time::sleep(PROBE_AGAIN).await;
            Probed::Unreachable(error.to_string())
        }
    }
}

impl Inner {
    fn watch(&mut self, pod: &Pod, now: Instant) {
        let uid = pod.uid().unwrap_or_default();
        let (Some(target), Some(owner)) = (target(pod), deployment_of(pod)) else {
            self.pods.remove(&uid);
            return;
        };
        let is_new = if let Some(watched) = self.pods.get_mut(&uid) {
            watched.owner = owner;
            let is_new = watched.target != target;
            watched.target = target;
            is_new
        } else {
            let watched = Watched {
                target,
                owner,
                report: Report::Waiting,
                traffic: None,
                probe: None,
                close_until: None,
                failing_since: None,
                ticket: 0,
            };
            self.pods.insert(uid.clone(), watched);
            true
        };
        if is_new {
            self.schedule(uid, now);
        }
    }

    /// The question before this one, if it still waits, is forgotten.
    fn schedule(&mut self, uid: String, when: Instant) {
        self.tickets += 1;
        if let Some(watched) = self.pods.get_mut(&uid) {
            watched.ticket = self.tickets;
            self.due.push(Reverse((when, uid, self.tickets)));
        }
    }
}

impl Watched {
    /// The prompt that waits, and where to ask it.
    fn question(&self) -> Option<(IpAddr, ProbePrompt)> {
        let (prompt, _) = self.probe.as_ref()?;
        Some((self.target.ip, prompt.clone()))
    }

    fn take(&mut self, outcome: Result<Page, (&'static str, String)>, now: Instant) {
        match outcome {
            Ok(Page { said, traffic }) => {
                self.failing_since = None;
                self.traffic = traffic;
                let is_same = matches!(&self.report, Report::Said { said: before, stale: false } if **before == said);
                if !is_same {
                    self.report = Report::Said {
                        said: Arc::new(said),
                        stale: false,
                    };
                }
            }
            Err((_, words)) => {
                let since = *self.failing_since.get_or_insert(now);
                self.report = match &self.report {
                    Report::Said { said, .. } if now.duration_since(since) < STAND_IN => Report::Said {
                        said: Arc::clone(said),
                        stale: true,
                    },
                    _ => Report::Unreachable(words),
                };
            }
        }
    }

    /// When to ask again, in a fleet of so many pods.
    fn pace(&self, fleet: usize, uid: &str, now: Instant) -> Duration {
        if self.close_until.is_some_and(|until| now < until) {
            return SOON;
        }
        let Report::Said { said, stale: false } = &self.report else {
            // Its network may be cut for long: such a pod is not asked as eagerly.
            return if matches!(self.report, Report::Unreachable(_)) {
                DOWNLOADING
            } else {
                SOON
            };
        };
        match said.stage {
            Some(Stage::Ready) if self.target.is_ready => stable(fleet, uid),
            Some(Stage::Fetching) => {
                let remaining = said.download.as_ref().and_then(|download| download.remaining_seconds);
                if remaining.is_some_and(|seconds| seconds > 10) {
                    DOWNLOADING
                } else {
                    SOON
                }
            }
            _ => SOON,
        }
    }
}

/// The pace for a serving pod: a little different for each, so that not all are asked at once.
fn stable(fleet: usize, uid: &str) -> Duration {
    let needed = Duration::from_secs((fleet / PER_SECOND).try_into().unwrap_or(u64::MAX));
    let mut hasher = DefaultHasher::new();
    uid.hash(&mut hasher);
    let hundredths = u32::try_from(85 + hasher.finish() % 16).unwrap_or(100);
    needed.clamp(STABLE_LEAST, STABLE_MOST) * hundredths / 100
}

/// A pod that can answer: it runs, and is not on its way out.
fn target(pod: &Pod) -> Option<Target> {
    if pod.meta().deletion_timestamp.is_some() {
        return None;
    }
    let status = pod.status.as_ref()?;
    if matches!(status.phase.as_deref(), Some("Failed" | "Succeeded")) {
        return None;
    }
    let containers = status
        .init_container_statuses
        .iter()
        .chain(&status.container_statuses)
        .flatten();
    let (running, restarts) = containers.fold((0, 0), |(running, restarts), container| {
        let runs = container.state.as_ref().is_some_and(|state| state.running.is_some());
        (running + usize::from(runs), restarts + container.restart_count)
    });
    if running == 0 {
        return None;
    }
    Some(Target {
        ip: status.pod_ip.as_deref()?.parse().ok()?,
        is_ready: is_ready(pod),
        restarts,
        running,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use escadre_crds::names;
    use serde_json::json;

    fn pod(uid: &str, ready: bool) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "a", "namespace": "n", "uid": uid, "labels": {names::LABEL_DEPLOYMENT: "m"}},
            "status": {
                "phase": "Running", "podIP": "10.0.0.1",
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
                "containerStatuses": [{"name": "runtime", "image": "", "imageID": "", "ready": ready, "restartCount": 0, "state": {"running": {}}}],
            },
        }))
        .unwrap()
    }

    fn watched(ready: bool) -> Watched {
        Watched {
            target: target(&pod("1", ready)).unwrap(),
            owner: ("n".to_owned(), "m".to_owned()),
            report: Report::Waiting,
            traffic: None,
            probe: None,
            close_until: None,
            failing_since: None,
            ticket: 0,
        }
    }

    fn ready() -> Page {
        Page {
            said: Said {
                stage: Some(Stage::Ready),
                ..Said::default()
            },
            traffic: None,
        }
    }

    #[test]
    fn pod_is_asked_at_once_when_it_changes_and_not_when_it_stays() {
        let mut inner = Inner::default();
        let now = Instant::now();
        inner.watch(&pod("1", false), now);
        inner.watch(&pod("1", false), now);
        assert_eq!(inner.due.len(), 1);
        inner.watch(&pod("1", true), now);
        let ticket = inner.pods["1"].ticket;
        let valid = inner.due.iter().filter(|Reverse((_, _, one))| *one == ticket);
        assert_eq!((inner.due.len(), valid.count()), (2, 1), "the older question is void");
    }

    #[test]
    fn pod_that_ends_is_forgotten() {
        let mut inner = Inner::default();
        inner.watch(&pod("1", true), Instant::now());
        let mut ending = pod("1", true);
        ending.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
            k8s_openapi::jiff::Timestamp::UNIX_EPOCH,
        ));
        inner.watch(&ending, Instant::now());
        assert!(inner.pods.is_empty());
    }

    #[test]
    fn good_answer_stands_in_for_lost_ones_for_a_while() {
        let mut watched = watched(true);
        let now = Instant::now();
        watched.take(Ok(ready()), now);
        assert!(matches!(watched.report, Report::Said { stale: false, .. }));
        watched.take(Err(("Request", "no answer".to_owned())), now + STAND_IN);
        assert!(matches!(watched.report, Report::Said { stale: true, .. }));
        watched.take(Err(("Request", "no answer".to_owned())), now + STAND_IN * 2);
        assert_eq!(watched.report, Report::Unreachable("no answer".to_owned()));
        watched.take(Ok(ready()), now + STAND_IN * 3);
        watched.take(Err(("Request", "no answer".to_owned())), now + STAND_IN * 9);
        assert!(
            matches!(watched.report, Report::Said { stale: true, .. }),
            "counted from the first lost one"
        );
    }

    #[test]
    fn serving_pods_are_asked_seldom_and_never_less_than_once_a_minute() {
        let mut serving = watched(true);
        serving.take(Ok(ready()), Instant::now());
        let least = serving.pace(10, "1", Instant::now());
        assert!(least <= STABLE_LEAST && least > STABLE_LEAST / 2, "{least:?}");
        let most = serving.pace(50_000, "1", Instant::now());
        assert!(
            most <= Duration::from_mins(1) && most > Duration::from_secs(40),
            "{most:?}"
        );
        let mut starting = watched(false);
        starting.take(Ok(ready()), Instant::now());
        assert_eq!(starting.pace(10, "1", Instant::now()), SOON);
    }
}
