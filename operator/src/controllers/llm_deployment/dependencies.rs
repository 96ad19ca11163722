//! What a spec names beside our own children: ConfigMaps, the kind `PodMonitor`; and the children of few: snapshots of
//! overlay files, a budget, a monitor. Only what is named is read, by its name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use escadre_crds::LlmDeployment;
use escadre_crds::condition::Reason;
use escadre_crds::v1alpha1::{LlmDeploymentSpec, PodMonitorMode};
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::jiff::Timestamp;
use kube::api::DynamicObject;
use kube::core::{ApiResource, DeserializeGuard, GroupVersionKind, PartialObjectMeta};
use kube::runtime::reflector::Store;
use kube::{Api, ResourceExt as _};

use super::validate::Rejected;
use crate::context::Context;
use crate::kube_ext::apply::{CallError, within};
use crate::kube_ext::orphans::Identity;
use crate::world::cache::{Key, place};

/// The most bytes of overlay files: the record of a revision holds them, and an object has at most about a megabyte.
const FILES_LIMIT: usize = 256 << 10;
/// How long the answer stands whether the cluster has the kind `PodMonitor`.
const KIND_LIFETIME: Duration = Duration::from_mins(1);
const MONITORING: &str = "monitoring.coreos.com/v1";

/// The kind `PodMonitor` of the Prometheus operator.
pub fn pod_monitor_kind() -> ApiResource {
    ApiResource::from_gvk_with_plural(
        &GroupVersionKind::gvk("monitoring.coreos.com", "v1", "PodMonitor"),
        "podmonitors",
    )
}

/// Whether the cluster has the kind `PodMonitor`, asked now and then.
#[derive(Debug, Default)]
pub struct PodMonitorKind(Mutex<Option<(Timestamp, bool)>>);

impl PodMonitorKind {
    /// Asks again the next time.
    pub fn forget(&self) {
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = None;
    }

    async fn exists(&self, ctx: &Context) -> Result<bool, CallError> {
        let now = ctx.clock.now();
        let known = *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((when, exists)) = known
            && now.duration_since(when).unsigned_abs() <= KIND_LIFETIME
        {
            return Ok(exists);
        }
        let exists = match within(ctx.client.list_api_group_resources(MONITORING)).await {
            Ok(list) => list.resources.iter().any(|one| one.name == "podmonitors"),
            // By its code: this answer is plain text and has no reason.
            Err(error) if error.status().is_some_and(|status| status.code == 404) => false,
            Err(error) => return Err(error),
        };
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some((now, exists));
        Ok(exists)
    }
}

/// An object of a name that we would give.
#[derive(Clone, Debug)]
pub struct Found<K> {
    /// The object.
    pub object: Arc<K>,
    /// Whether it is ours.
    pub is_ours: bool,
}

impl<K: kube::ResourceExt> Found<K> {
    /// Which one it is.
    pub fn identity(&self) -> Identity {
        Identity {
            name: self.object.name_any(),
            uid: self.object.uid().unwrap_or_default(),
        }
    }
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Dependencies {
    /// ConfigMaps that the spec names, by name. Those that are missing are not in here.
    pub config_maps: BTreeMap<String, ConfigMap>,
    /// Snapshots of the overlay files of recorded revisions, by name.
    pub snapshots: BTreeMap<String, Found<PartialObjectMeta<ConfigMap>>>,
    /// The `PodDisruptionBudget` of the object's name.
    pub budget: Option<Found<PodDisruptionBudget>>,
    /// Whether the cluster has the kind `PodMonitor`.
    pub has_pod_monitors: bool,
    /// The `PodMonitor` of the object's name.
    pub pod_monitor: Option<Found<DynamicObject>>,
}

/// Reads what the object names and what few objects have.
///
/// # Errors
/// When a read fails; a missing object is an observation.
pub async fn observe(ctx: &Context, object: &LlmDeployment) -> Result<Dependencies, CallError> {
    let namespace = object.namespace().unwrap_or_default();
    let (name, uid) = (object.name_any(), object.uid().unwrap_or_default());
    let config_maps: Api<ConfigMap> = Api::namespaced(ctx.client.clone(), &namespace);
    let mut found = Dependencies::default();
    for named in named_config_maps(&object.spec) {
        if let Some(config_map) = within(config_maps.get_opt(named)).await? {
            found.config_maps.insert(named.to_owned(), config_map);
        }
    }
    for snapshot in ctx.world.snapshots.of(&namespace, &name) {
        found.snapshots.insert(snapshot.name_any(), owned(snapshot, &uid));
    }
    found.budget = budget(ctx, object).await?.map(|budget| owned(budget, &uid));
    found.has_pod_monitors = ctx.pod_monitor_kind.exists(ctx).await?;
    if found.has_pod_monitors {
        let monitors: Api<DynamicObject> = Api::namespaced_with(ctx.client.clone(), &namespace, &pod_monitor_kind());
        let monitor = within(monitors.get_opt(&name)).await?;
        found.pod_monitor = monitor.map(|monitor| owned(Arc::new(monitor), &uid));
    }
    Ok(found)
}

/// The budget of the object's name: from the cache when it carries our label. When one is wanted and none is known, the
/// API server is asked, since there may be one of somebody else.
async fn budget(ctx: &Context, object: &LlmDeployment) -> Result<Option<Arc<PodDisruptionBudget>>, CallError> {
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    let known = ctx.world.budgets.of(&namespace, &name);
    let known = known.into_iter().find(|budget| budget.name_any() == name);
    if known.is_some() || object.spec.disruption.min_available.is_none() {
        return Ok(known);
    }
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(ctx.client.clone(), &namespace);
    Ok(within(budgets.get_opt(&name)).await?.map(Arc::new))
}

fn owned<K: kube::ResourceExt>(object: Arc<K>, uid: &str) -> Found<K> {
    Found {
        is_ours: super::observe::is_owned(object.owner_references(), uid),
        object,
    }
}

/// The ConfigMaps that a spec names, each once.
pub fn named_config_maps(spec: &LlmDeploymentSpec) -> BTreeSet<&str> {
    let files = spec.files.iter().flatten();
    let of_files = files.filter_map(|file| file.config_map_ref.as_ref().map(|source| source.name.as_str()));
    let network = spec.network.as_ref();
    let of_network = network.and_then(|network| network.ca_bundle_ref.as_ref());
    of_files
        .chain(of_network.map(|reference| reference.name.as_str()))
        .collect()
}

/// The objects in `store` that name a ConfigMap: those to look at again when it changes.
pub fn users_of_config_map(
    store: &Store<DeserializeGuard<LlmDeployment>>,
    config_map: &impl kube::ResourceExt,
) -> Vec<Key> {
    let (namespace, name) = (config_map.namespace(), config_map.name_any());
    let users = store.state().into_iter().filter(|object| match &object.0 {
        Ok(object) => object.namespace() == namespace && named_config_maps(&object.spec).contains(name.as_str()),
        Err(_) => false,
    });
    users.map(|object| place(object.as_ref())).collect()
}

fn missing(message: String) -> Rejected {
    Rejected {
        reason: Reason::DependencyMissing,
        drains: false,
        message,
    }
}

/// The text of one key of a ConfigMap that `field` names.
fn text<'a>(found: &'a Dependencies, field: &str, name: &str, key: &str) -> Result<&'a str, Rejected> {
    let Some(config_map) = found.config_maps.get(name) else {
        return Err(missing(format!(
            "{field} names the ConfigMap {name}, which does not exist; create it in the same namespace"
        )));
    };
    let text = config_map.data.as_ref().and_then(|data| data.get(key));
    text.map(String::as_str).ok_or_else(|| {
        missing(format!(
            "{field} names the key {key} of the ConfigMap {name}, which has no such key in its data; add it, or name another key"
        ))
    })
}

/// The overlay files of a spec with their texts, by path.
///
/// # Errors
/// [`Rejected`] when a ConfigMap or a key is missing, or when the files are too large.
pub fn files(spec: &LlmDeploymentSpec, found: &Dependencies) -> Result<BTreeMap<String, String>, Rejected> {
    let mut files = BTreeMap::new();
    for file in spec.files.iter().flatten() {
        let field = format!("spec.files[{}]", file.path);
        let content = match (&file.inline, &file.config_map_ref) {
            (Some(text), None) => text.clone(),
            (None, Some(source)) => {
                text(found, &format!("{field}.configMapRef"), &source.name, &source.key)?.to_owned()
            }
            (Some(_), Some(_)) | (None, None) => {
                return Err(Rejected {
                    reason: Reason::InvalidSpec,
                    drains: false,
                    message: format!("{field} must have either inline or configMapRef; set exactly one of them"),
                });
            }
        };
        files.insert(file.path.clone(), content);
    }
    let size: usize = files.values().map(String::len).sum();
    if size > FILES_LIMIT {
        return Err(Rejected {
            reason: Reason::InvalidSpec,
            drains: false,
            message: format!(
                "spec.files holds {size} bytes, and at most {FILES_LIMIT} fit into a revision; shorten the files, or publish them with the model"
            ),
        });
    }
    Ok(files)
}

/// Judges what is only named: certificates, and the kind `PodMonitor` where it must be there.
///
/// # Errors
/// [`Rejected`] with what is missing.
pub fn check(spec: &LlmDeploymentSpec, found: &Dependencies) -> Result<(), Rejected> {
    let network = spec.network.as_ref();
    if let Some(reference) = network.and_then(|network| network.ca_bundle_ref.as_ref()) {
        text(found, "spec.network.caBundleRef", &reference.name, &reference.key)?;
    }
    if spec.observability.pod_monitor == PodMonitorMode::Enabled && !found.has_pod_monitors {
        return Err(missing(format!(
            "spec.observability.podMonitor is Enabled, and the cluster has no kind PodMonitor ({MONITORING}); install the Prometheus operator, or set Auto"
        )));
    }
    let taken = |kind: &str, name: &str, remedy: &str| Rejected {
        reason: Reason::InvalidSpec,
        drains: false,
        message: format!(
            "a {kind} named {name} exists already and does not belong to this object; delete it, or {remedy}"
        ),
    };
    if spec.disruption.min_available.is_some()
        && let Some(budget) = found.budget.as_ref().filter(|budget| !budget.is_ours)
    {
        let name = budget.object.name_any();
        return Err(taken(
            "PodDisruptionBudget",
            &name,
            "leave spec.disruption.minAvailable out",
        ));
    }
    if spec.observability.pod_monitor == PodMonitorMode::Enabled
        && let Some(monitor) = found.pod_monitor.as_ref().filter(|monitor| !monitor.is_ours)
    {
        let name = monitor.object.name_any();
        return Err(taken(
            "PodMonitor",
            &name,
            "set spec.observability.podMonitor to Disabled",
        ));
    }
    if let Some(snapshot) = found.snapshots.values().find(|snapshot| !snapshot.is_ours) {
        let name = snapshot.object.name_any();
        return Err(taken("ConfigMap", &name, "edit spec.files, which makes another name"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{object, world};
    use super::super::validate::validate;
    use super::*;
    use serde_json::{Value, json};

    fn config_map(name: &str, data: &Value) -> (String, ConfigMap) {
        let config_map = json!({"metadata": {"name": name, "namespace": "models"}, "data": data});
        (name.to_owned(), serde_json::from_value(config_map).unwrap())
    }

    fn with_template(found: &[(String, ConfigMap)]) -> Result<super::super::validate::Valid, Rejected> {
        let reference = json!({"name": "templates", "key": "chat"});
        let object = object(&json!({"files": [{"path": "chat_template.jinja", "configMapRef": reference}]}));
        let mut observed = world(vec![]);
        observed.dependencies.config_maps = found.iter().cloned().collect();
        validate(&object, &observed)
    }

    #[test]
    fn missing_config_map_and_key_are_dependencies_that_are_named() {
        let rejected = with_template(&[]).unwrap_err();
        assert_eq!(rejected.reason, Reason::DependencyMissing);
        assert!(
            rejected
                .message
                .contains("the ConfigMap templates, which does not exist"),
            "{}",
            rejected.message
        );
        let rejected = with_template(&[config_map("templates", &json!({"other": "x"}))]).unwrap_err();
        assert_eq!(rejected.reason, Reason::DependencyMissing);
        assert!(
            rejected.message.contains("the key chat of the ConfigMap templates"),
            "{}",
            rejected.message
        );
    }

    #[test]
    fn content_of_a_config_map_makes_the_revision() {
        let valid = |text: &str| with_template(&[config_map("templates", &json!({"chat": text}))]).unwrap();
        let (one, two) = (valid("one"), valid("two"));
        assert_ne!(one.revision, two.revision);
        assert_eq!(valid("one").revision, one.revision);
        assert_eq!(one.files["chat_template.jinja"], "one");
    }

    #[test]
    fn files_that_do_not_fit_a_record_are_refused() {
        let rejected = with_template(&[config_map("templates", &json!({"chat": "x".repeat(FILES_LIMIT + 1)}))]);
        let rejected = rejected.unwrap_err();
        assert_eq!(rejected.reason, Reason::InvalidSpec);
        assert!(rejected.message.contains("shorten the files"), "{}", rejected.message);
    }

    #[test]
    fn every_config_map_that_a_spec_names_is_known() {
        let object = object(&json!({
            "files": [
                {"path": "chat_template.jinja", "configMapRef": {"name": "b", "key": "k"}},
                {"path": "generation_config.json", "configMapRef": {"name": "b", "key": "l"}},
                {"path": "tokenizer_config.json", "inline": "{}"},
            ],
            "network": {"caBundleRef": {"name": "a"}},
        }));
        assert_eq!(
            named_config_maps(&object.spec).into_iter().collect::<Vec<_>>(),
            ["a", "b"]
        );
    }

    #[test]
    fn monitor_that_must_be_there_needs_its_kind() {
        let object = object(&json!({"observability": {"podMonitor": "Enabled"}}));
        let mut observed = world(vec![]);
        let rejected = validate(&object, &observed).unwrap_err();
        assert_eq!(rejected.reason, Reason::DependencyMissing);
        observed.dependencies.has_pod_monitors = true;
        assert!(validate(&object, &observed).unwrap().wants_pod_monitor);
    }
}
