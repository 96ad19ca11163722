//! The statuses that this process wrote: seen at once by the next pass, and not written more often than people can read.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use escadre_crds::{LlmDeployment, LlmDeploymentStatus};
use kube::{Resource as _, ResourceExt as _};

use super::cache::{Key, place};

/// A status that only tells of progress is written at most this often.
const PACE: Duration = Duration::from_secs(1);

/// What this process wrote last of each deployment.
#[derive(Debug, Default)]
pub struct OwnStatuses(Mutex<HashMap<Key, Written>>);

#[derive(Debug)]
struct Written {
    when: Instant,
    /// Versions of the object from before our writes, which the watch may still show.
    older: Vec<String>,
    /// What we wrote, and the version that it made. `None`: the watch has told it.
    newest: Option<(Box<LlmDeploymentStatus>, String)>,
}

impl OwnStatuses {
    /// The object with the status that we wrote, when the watch does not show it yet.
    pub fn newest(&self, object: &LlmDeployment) -> Option<LlmDeployment> {
        let mut written = self.lock();
        let key = place(object);
        let mine = written.get_mut(&key)?;
        let is_older = object
            .resource_version()
            .is_some_and(|version| mine.older.contains(&version));
        if !is_older {
            mine.older.clear();
            mine.newest = None;
            if mine.when.elapsed() > PACE {
                written.remove(&key);
            }
            return None;
        }
        let (status, version) = mine.newest.as_ref()?;
        let mut object = object.clone();
        object.status = Some(LlmDeploymentStatus::clone(status));
        object.meta_mut().resource_version = Some(version.clone());
        Some(object)
    }

    /// We wrote `after`, over the version that `before` shows.
    pub fn wrote(&self, before: &LlmDeployment, after: &LlmDeployment) {
        let Some(older) = before.resource_version() else { return };
        let mut written = self.lock();
        let mine = written.entry(place(before)).or_insert_with(|| Written {
            when: Instant::now(),
            older: Vec::new(),
            newest: None,
        });
        mine.when = Instant::now();
        mine.older.push(older);
        let status = after.status.clone().unwrap_or_default();
        mine.newest = after.resource_version().map(|version| (Box::new(status), version));
    }

    /// How long a status that only tells of progress should wait.
    pub fn wait(&self, object: &LlmDeployment) -> Option<Duration> {
        let written = self.lock();
        let since = written.get(&place(object))?.when.elapsed();
        PACE.checked_sub(since).filter(|wait| !wait.is_zero())
    }

    /// The object is gone.
    pub fn forget(&self, deployment: &Key) {
        self.lock().remove(deployment);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Written>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(version: &str, replicas: i32) -> LlmDeployment {
        serde_json::from_value(json!({
            "apiVersion": "escadre.dev/v1alpha1", "kind": "LlmDeployment",
            "metadata": {"name": "m", "namespace": "n", "uid": "u", "resourceVersion": version},
            "spec": {"model": {"source": "hf://a/b", "verification": {"digest": ""}}},
            "status": {"replicas": replicas},
        }))
        .unwrap()
    }

    #[test]
    fn own_status_is_seen_until_the_watch_tells_it() {
        let statuses = OwnStatuses::default();
        assert_eq!(statuses.newest(&object("1", 0)), None);
        statuses.wrote(&object("1", 0), &object("2", 1));
        statuses.wrote(&object("2", 1), &object("3", 2));
        let seen = statuses.newest(&object("1", 0)).unwrap();
        assert_eq!(
            (seen.status.clone().unwrap().replicas, seen.resource_version()),
            (2, Some("3".to_owned()))
        );
        assert!(statuses.newest(&object("2", 1)).is_some());
        assert_eq!(statuses.newest(&object("3", 2)), None, "the watch has caught up");
        assert_eq!(statuses.newest(&object("9", 2)), None);
    }

    #[test]
    fn progress_waits_after_a_write() {
        let statuses = OwnStatuses::default();
        assert_eq!(statuses.wait(&object("1", 0)), None);
        statuses.wrote(&object("1", 0), &object("2", 1));
        assert!(statuses.wait(&object("2", 1)).is_some());
        statuses.forget(&place(&object("2", 1)));
        assert_eq!(statuses.wait(&object("2", 1)), None);
    }
}
