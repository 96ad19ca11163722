//! The fewest pods that were ready, of each deployment, at every event of a watch: looks at intervals would miss the
//! worst moment.

use std::collections::{BTreeMap, HashMap};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::TryStreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, ResourceExt as _};
use tokio::task::JoinHandle;

use crate::world::is_ready;

/// Pods that are ready and not on their way out.
#[derive(Debug, Default)]
struct Seen {
    /// The group of each, by UID.
    ready: HashMap<String, String>,
    now: BTreeMap<String, usize>,
    least: BTreeMap<String, usize>,
}

impl Seen {
    fn set(&mut self, pod: &Pod, label: &str, is_there: bool) {
        let (Some(uid), Some(group)) = (pod.uid(), pod.labels().get(label)) else {
            return;
        };
        let counts = is_there && pod.metadata.deletion_timestamp.is_none() && is_ready(pod);
        let did_count = self.ready.contains_key(&uid);
        let now = self.now.entry(group.clone()).or_default();
        match (did_count, counts) {
            (false, true) => {
                *now += 1;
                self.ready.insert(uid, group.clone());
            }
            (true, false) => {
                *now -= 1;
                self.ready.remove(&uid);
            }
            _ => {}
        }
        let least = self.least.entry(group.clone()).or_insert(*now);
        *least = (*least).min(*now);
    }
}

/// Watches until it is dropped.
#[derive(Debug)]
pub struct Floor {
    seen: Arc<Mutex<Seen>>,
    watch: JoinHandle<()>,
}

impl Drop for Floor {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Floor {
    /// Watches pods that have `label`, and groups them by its value.
    pub fn watch(pods: Api<Pod>, label: &'static str) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let told = Arc::clone(&seen);
        let watch = tokio::spawn(async move {
            let events = watcher(pods, watcher::Config::default().labels(label)).default_backoff();
            let mut events = pin!(events);
            loop {
                match events.try_next().await {
                    Ok(Some(Event::Apply(pod) | Event::InitApply(pod))) => lock(&told).set(&pod, label, true),
                    Ok(Some(Event::Delete(pod))) => lock(&told).set(&pod, label, false),
                    Ok(Some(Event::Init | Event::InitDone)) => {}
                    Ok(None) => break,
                    Err(error) => eprintln!("watching pods: {error}"),
                }
            }
        });
        Self { seen, watch }
    }

    /// How many are ready now, by group.
    pub fn now(&self) -> BTreeMap<String, usize> {
        lock(&self.seen).now.clone()
    }

    /// Forgets the past.
    pub fn begin(&self) {
        let mut seen = lock(&self.seen);
        seen.least = seen.now.clone();
    }

    /// The fewest that were ready since [`Self::begin`], by group.
    pub fn least(&self) -> BTreeMap<String, usize> {
        lock(&self.seen).least.clone()
    }
}
