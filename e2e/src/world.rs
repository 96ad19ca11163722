//! What a namespace must look like when the operator has done its work, and what must never be seen in it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use escadre_crds::{LlmDeployment, names};
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};

/// Everything of ours in one namespace, at about one moment.
#[derive(Debug)]
pub struct World {
    /// The deployments by name.
    pub deployments: BTreeMap<String, LlmDeployment>,
    /// Pods with the label that our children carry.
    pub pods: Vec<Pod>,
    /// Services with it.
    pub services: Vec<Service>,
    /// Revisions with it.
    pub revisions: Vec<ControllerRevision>,
}

impl World {
    /// Looks.
    pub async fn look(client: &Client, namespace: &str) -> Result<Self> {
        let ours = ListParams::default().labels(&format!("{}={}", names::LABEL_MANAGED_BY, names::MANAGED_BY));
        // Children first: an owner that is made meanwhile has no child here yet, and no child seems to be an orphan.
        let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
        let services: Api<Service> = Api::namespaced(client.clone(), namespace);
        let revisions: Api<ControllerRevision> = Api::namespaced(client.clone(), namespace);
        let (pods, services, revisions) =
            tokio::try_join!(pods.list(&ours), services.list(&ours), revisions.list(&ours))?;
        let deployments: Api<LlmDeployment> = Api::namespaced(client.clone(), namespace);
        let deployments = deployments.list(&ListParams::default()).await?;
        Ok(Self {
            deployments: deployments.into_iter().map(|one| (one.name_any(), one)).collect(),
            pods: pods.items,
            services: services.items,
            revisions: revisions.items,
        })
    }

    /// Pods of a deployment that are not on their way out.
    pub fn living(&self, deployment: &str) -> Vec<&Pod> {
        let uid = self.deployments.get(deployment).and_then(ResourceExt::uid);
        self.pods
            .iter()
            .filter(|pod| pod.metadata.deletion_timestamp.is_none() && owner(pod.owner_references()) == uid.as_deref())
            .collect()
    }

    /// What is not yet as the specs want it, in words; empty when the world is as it should be.
    pub fn unsettled(&self) -> Vec<String> {
        let mut open = self.orphans();
        for deployment in self.deployments.values() {
            let name = deployment.name_any();
            open.extend(self.unsettled_children(deployment));
            open.extend(
                unsettled_status(deployment)
                    .into_iter()
                    .map(|text| format!("{name}: {text}")),
            );
        }
        open
    }

    fn unsettled_children(&self, deployment: &LlmDeployment) -> Vec<String> {
        let mut open = Vec::new();
        let name = deployment.name_any();
        if deployment.metadata.deletion_timestamp.is_some() {
            return vec![format!("{name} is being deleted")];
        }
        let wanted = wanted(deployment);
        let living = self.living(&name);
        if living.len() != wanted {
            open.push(format!("{name} has {} pods, and wants {wanted}", living.len()));
        }
        let label = |pod: &Pod, key: &str| pod.labels().get(key).cloned();
        let revisions: BTreeSet<_> = living.iter().map(|pod| label(pod, names::LABEL_REVISION)).collect();
        if revisions.len() > 1 {
            open.push(format!("{name} has pods of several revisions: {revisions:?}"));
        }
        let slots: BTreeSet<_> = living.iter().map(|pod| label(pod, names::LABEL_SLOT)).collect();
        if slots.len() != living.len() {
            open.push(format!("{name} has two pods in one slot: {slots:?}"));
        }
        let uid = deployment.uid();
        let services = self
            .services
            .iter()
            .filter(|one| owner(one.owner_references()) == uid.as_deref());
        if services.count() != 1 {
            open.push(format!("{name} has not one Service"));
        }
        let is_terminating = |pod: &&Pod| pod.metadata.deletion_timestamp.is_some();
        let leaving = self
            .pods
            .iter()
            .filter(is_terminating)
            .filter(|pod| owner(pod.owner_references()) == uid.as_deref());
        open.extend(leaving.map(|pod| format!("{} is on its way out", pod.name_any())));
        open
    }

    /// Children whose owner is not there any more.
    pub fn orphans(&self) -> Vec<String> {
        let uids: BTreeSet<String> = self.deployments.values().filter_map(ResourceExt::uid).collect();
        let mut orphans = Vec::new();
        let mut judge = |kind: &str, name: String, owners: &[OwnerReference]| {
            if owner(owners).is_none_or(|uid| !uids.contains(uid)) {
                orphans.push(format!("{kind} {name} has no living owner"));
            }
        };
        for one in &self.pods {
            judge("pod", one.name_any(), one.owner_references());
        }
        for one in &self.services {
            judge("service", one.name_any(), one.owner_references());
        }
        for one in &self.revisions {
            judge("revision", one.name_any(), one.owner_references());
        }
        orphans
    }

    /// One deployment and its children without what differs between two runs of the same story: UIDs, times, versions,
    /// messages; the names of the deployment and the namespace are replaced.
    pub fn snapshot(&self, name: &str, namespace: &str) -> Value {
        let uid = self.deployments.get(name).and_then(ResourceExt::uid);
        let is_ours = |owners: &[OwnerReference]| owner(owners) == uid.as_deref();
        let pods = self.pods.iter().filter(|one| is_ours(one.owner_references()));
        let services = self.services.iter().filter(|one| is_ours(one.owner_references()));
        let revisions = self.revisions.iter().filter(|one| is_ours(one.owner_references()));
        let snapshot = json!({
            "deployment": self.deployments.get(name).map(status_facts),
            "pods": pods.map(|pod| (pod.name_any(), json!({"labels": pod.labels(), "phase": pod.status.as_ref().and_then(|status| status.phase.clone())})))
                .collect::<BTreeMap<_, _>>(),
            "services": services.map(|service| (service.name_any(), service.spec.as_ref().map(|spec| json!({"ports": spec.ports.iter().flatten().map(|port| (&port.name, port.port)).collect::<Vec<_>>(), "selector": spec.selector}))))
                .collect::<BTreeMap<_, _>>(),
            "revisions": revisions.map(ResourceExt::name_any).collect::<BTreeSet<_>>(),
        });
        let text = snapshot
            .to_string()
            .replace(name, "NAME")
            .replace(namespace, "NAMESPACE");
        serde_json::from_str(&text).unwrap_or(Value::String(text))
    }
}

/// Whether a pod's readiness probe succeeds.
pub fn is_ready(pod: &Pod) -> bool {
    pod.status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten())
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// How many pods a deployment wants.
pub fn wanted(deployment: &LlmDeployment) -> usize {
    if deployment.spec.suspend {
        return 0;
    }
    usize::try_from(deployment.spec.replicas).unwrap_or_default()
}

/// The status of a condition (`True`, `False`), its reason, and the generation that it speaks of.
pub fn condition<'a>(deployment: &'a LlmDeployment, type_: &str) -> Option<(&'a str, &'a str, Option<i64>)> {
    let conditions = &deployment.status.as_ref()?.conditions;
    let found = conditions.iter().find(|condition| condition.type_ == type_)?;
    Some((&found.status, &found.reason, found.observed_generation))
}

fn unsettled_status(deployment: &LlmDeployment) -> Vec<String> {
    let Some(status) = &deployment.status else {
        return vec!["no status".to_owned()];
    };
    let mut open = Vec::new();
    let wanted = i32::try_from(wanted(deployment)).unwrap_or(i32::MAX);
    if status.observed_generation != deployment.metadata.generation {
        open.push("the status is of another generation".to_owned());
    }
    if (status.replicas, status.ready_replicas) != (wanted, wanted) {
        open.push(format!(
            "the status counts {} pods, {} of them ready, and {wanted} are wanted",
            status.replicas, status.ready_replicas
        ));
    }
    let is_suspended = deployment.spec.suspend;
    match condition(deployment, "Ready") {
        Some(("True", _, generation)) if !is_suspended && generation == deployment.metadata.generation => {}
        Some(("False", "Suspended", generation)) if is_suspended && generation == deployment.metadata.generation => {}
        other => open.push(format!("Ready is {other:?}")),
    }
    open
}

fn status_facts(deployment: &LlmDeployment) -> Value {
    let Some(status) = &deployment.status else {
        return Value::Null;
    };
    let conditions: BTreeMap<_, _> = status
        .conditions
        .iter()
        .map(|one| (&one.type_, json!([one.status, one.reason, one.observed_generation])))
        .collect();
    json!({
        "observedGeneration": status.observed_generation,
        "counts": [status.replicas, status.ready_replicas, status.updated_replicas, status.available_replicas],
        "servedDigest": status.served_digest,
        "revisions": [status.served_revision, status.current_revision, status.target_revision],
        "endpoint": status.endpoint,
        "conditions": conditions,
    })
}

/// The UID of the controller among owners.
fn owner(owners: &[OwnerReference]) -> Option<&str> {
    let controller = owners.iter().find(|owner| owner.controller == Some(true))?;
    Some(&controller.uid)
}

/// Resource versions of everything of ours, by kind and name: equal when nothing was written between two looks.
pub fn versions(world: &World) -> BTreeMap<String, String> {
    fn add<K>(all: &mut BTreeMap<String, String>, kind: &str, objects: impl IntoIterator<Item = K>)
    where
        K: ResourceExt,
    {
        for object in objects {
            all.insert(
                format!("{kind}/{}", object.name_any()),
                object.resource_version().unwrap_or_default(),
            );
        }
    }
    let mut all = BTreeMap::new();
    add(&mut all, "pod", world.pods.iter().cloned());
    add(&mut all, "service", world.services.iter().cloned());
    add(&mut all, "revision", world.revisions.iter().cloned());
    add(&mut all, "llm", world.deployments.values().cloned());
    all
}
