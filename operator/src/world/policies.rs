//! The policies of the cluster and the labels of its namespaces, as watches tell them.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

use escadre_crds::ModelPolicy;
use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt as _;
use kube::core::{PartialObjectMeta, Selector, SelectorExt as _};
use kube::runtime::watcher::Event;
use tokio::sync::watch;

/// What is known of one kind without a namespace, by name.
#[derive(Debug)]
pub struct Named<T> {
    inner: RwLock<Inner<T>>,
    known: watch::Sender<bool>,
}

#[derive(Debug)]
struct Inner<T> {
    objects: HashMap<String, T>,
    /// A complete list that is arriving.
    list: HashMap<String, T>,
}

impl<T> Default for Named<T> {
    fn default() -> Self {
        Self {
            inner: RwLock::new(Inner {
                objects: HashMap::new(),
                list: HashMap::new(),
            }),
            known: watch::Sender::new(false),
        }
    }
}

impl<T> Named<T> {
    /// Takes one event of the watch. Returns the name that it concerns, or `None` for all.
    pub fn handle<K: kube::ResourceExt>(&self, event: Event<K>, of: impl Fn(K) -> T) -> Option<String> {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Apply(object) => {
                let name = object.name_any();
                inner.objects.insert(name.clone(), of(object));
                Some(name)
            }
            Event::Delete(object) => {
                inner.objects.remove(&object.name_any());
                Some(object.name_any())
            }
            Event::Init => {
                inner.list.clear();
                None
            }
            Event::InitApply(object) => {
                inner.list.insert(object.name_any(), of(object));
                None
            }
            Event::InitDone => {
                inner.objects = std::mem::take(&mut inner.list);
                drop(inner);
                self.known.send_replace(true);
                None
            }
        }
    }

    /// The cluster does not have this kind: there is none.
    pub fn has_none(&self) {
        self.inner
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .objects
            .clear();
        self.known.send_replace(true);
    }

    /// Waits until the watch has told the whole once.
    pub async fn wait_until_known(&self) {
        // The sender lives as long as this, so that waiting cannot fail.
        let mut known = self.known.subscribe();
        let _known = known.wait_for(|known| *known).await;
    }
}

/// Policies and namespaces.
#[derive(Debug, Default)]
pub struct Policies {
    /// Every policy.
    pub policies: Named<Arc<ModelPolicy>>,
    /// The labels of every namespace.
    pub namespaces: Named<BTreeMap<String, String>>,
}

impl Policies {
    /// The policies that apply to the deployments of a namespace, by name. A selector that nobody can read applies
    /// everywhere: it was meant to apply somewhere.
    pub fn of(&self, namespace: &str) -> Vec<Arc<ModelPolicy>> {
        let namespaces = self.namespaces.inner.read().unwrap_or_else(PoisonError::into_inner);
        let none = BTreeMap::new();
        let labels = namespaces.objects.get(namespace).unwrap_or(&none);
        let policies = self.policies.inner.read().unwrap_or_else(PoisonError::into_inner);
        let applies = |policy: &&Arc<ModelPolicy>| match &policy.spec.namespace_selector {
            None => true,
            Some(selector) => Selector::try_from(selector.clone()).map_or(true, |selector| selector.matches(labels)),
        };
        let mut applying: Vec<_> = policies.objects.values().filter(applies).cloned().collect();
        applying.sort_by_key(|policy| policy.name_any());
        applying
    }

    /// There are none, and nobody looks.
    pub fn has_none(&self) {
        self.policies.has_none();
        self.namespaces.has_none();
    }

    /// Waits until both watches have told the whole once.
    pub async fn wait_until_known(&self) {
        self.policies.wait_until_known().await;
        self.namespaces.wait_until_known().await;
    }
}

/// The labels of a namespace.
pub fn labels(namespace: PartialObjectMeta<Namespace>) -> BTreeMap<String, String> {
    namespace.metadata.labels.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn policy(name: &str, selector: &serde_json::Value) -> Arc<ModelPolicy> {
        let policy = json!({
            "apiVersion": "escadre.dev/v1alpha1", "kind": "ModelPolicy", "metadata": {"name": name},
            "spec": {"namespaceSelector": selector},
        });
        Arc::new(serde_json::from_value(policy).unwrap())
    }

    fn namespace(name: &str, labels: &serde_json::Value) -> PartialObjectMeta<Namespace> {
        serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}})).unwrap()
    }

    #[test]
    fn policies_apply_by_the_labels_of_the_namespace() {
        let known = Policies::default();
        known.policies.handle(Event::<ModelPolicy>::Init, Arc::new);
        for policy in [
            policy("everywhere", &json!(null)),
            policy("prod", &json!({"matchLabels": {"stage": "prod"}})),
            policy(
                "not-test",
                &json!({"matchExpressions": [{"key": "stage", "operator": "NotIn", "values": ["test"]}]}),
            ),
            policy(
                "unreadable",
                &json!({"matchExpressions": [{"key": "stage", "operator": "Like", "values": ["x"]}]}),
            ),
        ] {
            known
                .policies
                .handle(Event::InitApply(ModelPolicy::clone(&policy)), Arc::new);
        }
        known.policies.handle(Event::<ModelPolicy>::InitDone, Arc::new);
        known
            .namespaces
            .handle(Event::Apply(namespace("a", &json!({"stage": "prod"}))), labels);
        known
            .namespaces
            .handle(Event::Apply(namespace("b", &json!({"stage": "test"}))), labels);
        let names = |namespace: &str| {
            let applying = known.of(namespace);
            applying.iter().map(|policy| policy.name_any()).collect::<Vec<_>>()
        };
        assert_eq!(names("a"), ["everywhere", "not-test", "prod", "unreadable"]);
        assert_eq!(names("b"), ["everywhere", "unreadable"]);
        assert_eq!(names("unknown"), ["everywhere", "not-test", "unreadable"]);
        let gone = known.policies.handle(
            Event::Delete(ModelPolicy::clone(&policy("everywhere", &json!(null)))),
            Arc::new,
        );
        assert_eq!(
            (gone.as_deref(), names("b")),
            (Some("everywhere"), vec!["unreadable".to_owned()])
        );
    }

    #[tokio::test]
    async fn cluster_without_the_kind_has_no_policies() {
        let known = Policies::default();
        known.policies.has_none();
        known
            .namespaces
            .handle(Event::<PartialObjectMeta<Namespace>>::InitDone, labels);
        known.wait_until_known().await;
        assert!(known.of("a").is_empty());
    }
}
