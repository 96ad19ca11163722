//! The children of deployments, by the deployment that their label names, as one watch tells them.
//!
//! A pass must never look at a past from before its own writes: what this process created or deleted is seen at once,
//! until the watch has told the same. Together with names that are never used twice, deletes that carry the UID and a
//! watch that starts with a complete list, a decision from here is as safe as one from a list.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Arc, RwLock};

use escadre_crds::names;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::{Resource, ResourceExt as _, runtime::watcher::Event};
use tokio::sync::watch;

/// How many objects that are gone are remembered: an answer to our own create can arrive after the watch has told that
/// the object came and went.
const GONE_LIMIT: usize = 4096;

/// Namespace and name.
pub type Key = (String, String);

/// The children of one kind.
#[derive(Debug)]
pub struct Cache<K> {
    inner: RwLock<Inner<K>>,
    known: watch::Sender<bool>,
}

#[derive(Debug)]
struct Inner<K> {
    /// By namespace and deployment, then by name.
    children: HashMap<Key, BTreeMap<String, Arc<K>>>,
    /// The deployment of each child, by the child's namespace and name: a label can be edited.
    places: HashMap<Key, String>,
    /// A complete list that is arriving.
    list: Option<Vec<K>>,
    /// Counts the lists.
    epoch: u64,
    /// What we created and the watch has not told yet, with the epoch in which the answer came.
    created: HashMap<String, u64>,
    /// What we deleted and the watch has not told yet.
    deleted: HashSet<String>,
    gone: VecDeque<String>,
}

impl<K> Default for Cache<K> {
    fn default() -> Self {
        Self {
            inner: RwLock::new(Inner {
                children: HashMap::new(),
                places: HashMap::new(),
                list: None,
                epoch: 0,
                created: HashMap::new(),
                deleted: HashSet::new(),
                gone: VecDeque::new(),
            }),
            known: watch::Sender::new(false),
        }
    }
}

impl<K> Cache<K>
where
    K: Resource<DynamicType = ()> + Clone,
{
    /// Takes one event of the watch. Returns the deployments that it concerns.
    pub fn handle(&self, event: &Event<K>) -> Vec<Key> {
        let mut inner = self.write();
        match event {
            Event::Apply(object) => {
                let before = inner.deployment_at(&place(object));
                inner.tell(object);
                let after = deployment_of(object);
                // Its label may have been edited.
                let bereft = before.filter(|before| Some(before) != after.as_ref());
                after.into_iter().chain(bereft).collect()
            }
            Event::Delete(object) => {
                inner.remove(object);
                deployment_of(object).into_iter().collect()
            }
            Event::Init => {
                inner.epoch += 1;
                inner.list = Some(Vec::new());
                Vec::new()
            }
            Event::InitApply(object) => {
                inner.list.get_or_insert_default().push(object.clone());
                Vec::new()
            }
            Event::InitDone => {
                let mut concerned = inner.replace();
                concerned.extend(inner.children.keys().cloned());
                drop(inner);
                self.known.send_replace(true);
                concerned.sort();
                concerned.dedup();
                concerned
            }
        }
    }

    /// The children of one deployment, by name. Those that we deleted are marked as terminating.
    pub fn of(&self, namespace: &str, deployment: &str) -> Vec<Arc<K>> {
        let inner = self.inner.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let key = (namespace.to_owned(), deployment.to_owned());
        let children = inner.children.get(&key).into_iter().flat_map(BTreeMap::values);
        children.map(|child| inner.as_we_know(child)).collect()
    }

    /// We created it: it is seen from now on.
    pub fn created(&self, object: K) {
        self.write().add_created(object);
    }

    /// We deleted it: it is seen as terminating from now on.
    pub fn deleted(&self, uid: &str) {
        let mut inner = self.write();
        if !inner.gone.iter().any(|gone| gone == uid) {
            inner.deleted.insert(uid.to_owned());
        }
    }

    /// Waits until the watch has told the whole once.
    pub async fn wait_until_known(&self) {
        // The sender lives as long as this cache, so that waiting cannot fail.
        let mut known = self.known.subscribe();
        let _known = known.wait_for(|known| *known).await;
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Inner<K>> {
        self.inner.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Where an object is found.
pub fn place<K: Resource>(object: &K) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

/// The deployment that an object's label names.
pub(super) fn deployment_of<K: Resource>(object: &K) -> Option<Key> {
    let name = object.labels().get(names::LABEL_DEPLOYMENT)?;
    Some((object.namespace()?, name.clone()))
}

impl<K> Inner<K>
where
    K: Resource<DynamicType = ()> + Clone,
{
    fn as_we_know(&self, child: &Arc<K>) -> Arc<K> {
        let meta = child.meta();
        let is_marked =
            meta.deletion_timestamp.is_some() || !meta.uid.as_ref().is_some_and(|uid| self.deleted.contains(uid));
        if is_marked {
            return Arc::clone(child);
        }
        let mut child = K::clone(child);
        child.meta_mut().deletion_timestamp = Some(Time(Timestamp::now()));
        Arc::new(child)
    }

    fn deployment_at(&self, place: &Key) -> Option<Key> {
        let deployment = self.places.get(place)?;
        Some((place.0.clone(), deployment.clone()))
    }

    /// What the watch tells of one object.
    fn tell(&mut self, object: &K) {
        if let Some(uid) = &object.meta().uid {
            self.created.remove(uid);
            if object.meta().deletion_timestamp.is_some() {
                self.deleted.remove(uid);
            }
        }
        self.put(object.clone());
    }

    fn put(&mut self, object: K) {
        let place = place(&object);
        self.take(&place);
        let Some(key) = deployment_of(&object) else { return };
        let name = place.1.clone();
        self.places.insert(place, key.1.clone());
        self.children.entry(key).or_default().insert(name, Arc::new(object));
    }

    fn take(&mut self, place: &Key) -> Option<Arc<K>> {
        let key = self.deployment_at(place)?;
        self.places.remove(place);
        let siblings = self.children.get_mut(&key)?;
        let taken = siblings.remove(&place.1);
        if siblings.is_empty() {
            self.children.remove(&key);
        }
        taken
    }

    fn remove(&mut self, object: &K) {
        let place = place(object);
        let uid = object.meta().uid.clone().unwrap_or_default();
        // A younger object of the same name may be known already by our own create.
        let is_same = self
            .find(&place)
            .is_none_or(|known| known.meta().uid.as_deref() == Some(&uid));
        if is_same {
            self.take(&place);
        }
        self.bury(uid);
    }

    fn find(&self, place: &Key) -> Option<&Arc<K>> {
        self.children.get(&self.deployment_at(place)?)?.get(&place.1)
    }

    fn bury(&mut self, uid: String) {
        self.created.remove(&uid);
        self.deleted.remove(&uid);
        self.gone.push_back(uid);
        if self.gone.len() > GONE_LIMIT {
            self.gone.pop_front();
        }
    }

    fn add_created(&mut self, object: K) {
        let uid = object.meta().uid.clone().unwrap_or_default();
        let place = place(&object);
        let is_known = self
            .find(&place)
            .is_some_and(|known| known.meta().uid.as_deref() == Some(&uid));
        if is_known || self.gone.contains(&uid) {
            return;
        }
        self.created.insert(uid, self.epoch);
        self.put(object);
    }

    /// The list is complete: it replaces everything, but for what we created since it was asked for. Returns the
    /// deployments that lost a child.
    fn replace(&mut self) -> Vec<Key> {
        let list = self.list.take().unwrap_or_default();
        let before = std::mem::take(&mut self.children);
        let epoch = self.epoch;
        self.places.clear();
        let listed: HashSet<String> = list.iter().filter_map(kube::ResourceExt::uid).collect();
        for object in &list {
            self.tell(object);
        }
        let mut bereft = Vec::new();
        for (key, siblings) in before {
            for child in siblings.into_values() {
                let uid = child.meta().uid.clone().unwrap_or_default();
                if listed.contains(&uid) {
                    continue;
                }
                if self.created.get(&uid) == Some(&epoch) {
                    self.put(K::clone(&child));
                    continue;
                }
                self.bury(uid);
                bereft.push(key.clone());
            }
        }
        bereft
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    fn pod(name: &str, uid: &str) -> Pod {
        serde_json::from_value(json!({"metadata": {
            "name": name, "namespace": "n", "uid": uid, "labels": {names::LABEL_DEPLOYMENT: "m"},
        }}))
        .unwrap()
    }

    fn key(deployment: &str) -> Key {
        ("n".to_owned(), deployment.to_owned())
    }

    fn names_of(cache: &Cache<Pod>) -> Vec<String> {
        let alive = cache.of("n", "m").into_iter();
        alive
            .filter(|pod| pod.metadata.deletion_timestamp.is_none())
            .map(|pod| pod.name_any())
            .collect()
    }

    fn list(cache: &Cache<Pod>, pods: Vec<Pod>) -> Vec<Key> {
        cache.handle(&Event::Init);
        for pod in pods {
            cache.handle(&Event::InitApply(pod));
        }
        cache.handle(&Event::InitDone)
    }

    #[test]
    fn own_writes_are_seen_before_the_watch_tells_them() {
        let cache = Cache::default();
        list(&cache, vec![pod("a", "1")]);
        cache.created(pod("b", "2"));
        assert_eq!(names_of(&cache), ["a", "b"]);
        cache.deleted("1");
        assert_eq!(names_of(&cache), ["b"]);
        // An older state of the pod that we deleted does not bring it back.
        cache.handle(&Event::Apply(pod("a", "1")));
        assert_eq!(names_of(&cache), ["b"]);
        cache.handle(&Event::Delete(pod("a", "1")));
        cache.created(pod("a", "3"));
        assert_eq!(names_of(&cache), ["a", "b"]);
    }

    #[test]
    fn answer_that_comes_after_the_object_has_gone_makes_no_ghost() {
        let cache = Cache::default();
        list(&cache, vec![]);
        cache.handle(&Event::Apply(pod("a", "1")));
        cache.handle(&Event::Delete(pod("a", "1")));
        cache.created(pod("a", "1"));
        cache.deleted("1");
        assert!(cache.of("n", "m").is_empty());
    }

    #[test]
    fn late_end_of_an_older_pod_does_not_take_the_younger_one() {
        let cache = Cache::default();
        list(&cache, vec![pod("a", "1")]);
        cache.created(pod("a", "2"));
        cache.handle(&Event::Delete(pod("a", "1")));
        assert_eq!(names_of(&cache), ["a"]);
    }

    #[test]
    fn list_replaces_what_is_known_and_tells_whom_it_concerns() {
        let cache = Cache::default();
        list(&cache, vec![pod("a", "1"), pod("b", "2")]);
        cache.created(pod("c", "3"));
        assert_eq!(list(&cache, vec![pod("a", "1"), pod("c", "3")]), [key("m")]);
        assert_eq!(names_of(&cache), ["a", "c"]);
        assert_eq!(list(&cache, vec![]), [key("m")], "it lost everything");
        assert!(list(&cache, vec![]).is_empty());
    }

    #[test]
    fn what_was_created_while_a_list_was_on_its_way_stays() {
        let cache = Cache::default();
        list(&cache, vec![]);
        cache.created(pod("old", "1"));
        cache.handle(&Event::Init);
        cache.created(pod("new", "2"));
        assert_eq!(cache.handle(&Event::InitDone), [key("m")]);
        assert_eq!(names_of(&cache), ["new"]);
    }

    #[test]
    fn edited_label_moves_the_child() {
        let cache = Cache::default();
        list(&cache, vec![pod("a", "1")]);
        let mut moved = pod("a", "1");
        moved
            .labels_mut()
            .insert(names::LABEL_DEPLOYMENT.to_owned(), "other".to_owned());
        assert_eq!(cache.handle(&Event::Apply(moved)), [key("other"), key("m")]);
        assert!(cache.of("n", "m").is_empty());
        assert_eq!(cache.of("n", "other").len(), 1);
    }
}
