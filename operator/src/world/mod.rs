//! What the operator knows of the cluster without asking it: the children of every deployment, as watches tell them,
//! and what the processes in the pods say, as a poller of its own hears it.

pub mod cache;
pub mod furthest;
pub mod policies;
pub mod poller;
pub mod statuses;
pub mod trim;

use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::core::PartialObjectMeta;

use cache::Cache;
use furthest::Furthest;
use policies::Policies;
use poller::Poller;
use statuses::OwnStatuses;

/// Everything that is known without asking the API server.
pub struct World {
    /// Pods that carry our label, whoever made them; without what no decision needs.
    pub pods: Cache<Pod>,
    /// Services that carry our label.
    pub services: Cache<Service>,
    /// Records of revisions, without their contents.
    pub revisions: Cache<PartialObjectMeta<ControllerRevision>>,
    /// Budgets that carry our label.
    pub budgets: Cache<PodDisruptionBudget>,
    /// Snapshots of overlay files, without their contents.
    pub snapshots: Cache<PartialObjectMeta<ConfigMap>>,
    /// The policies of the cluster, and where they apply.
    pub policies: Policies,
    /// What this process wrote of each deployment last.
    pub statuses: OwnStatuses,
    /// How far new revisions had come.
    pub furthest: Furthest,
    /// What the processes in the pods say.
    pub poller: Arc<Poller>,
}

/// Whether the pod's `Ready` condition holds.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .iter()
        .filter_map(|status| status.conditions.as_ref())
        .flatten();
    conditions
        .into_iter()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

impl World {
    /// Nothing is known yet.
    pub fn new(poller: Poller) -> Self {
        Self {
            pods: Cache::default(),
            services: Cache::default(),
            revisions: Cache::default(),
            budgets: Cache::default(),
            snapshots: Cache::default(),
            policies: Policies::default(),
            statuses: OwnStatuses::default(),
            furthest: Furthest::default(),
            poller: Arc::new(poller),
        }
    }

    /// Waits until every watch has told the whole of its kind once.
    pub async fn wait_until_known(&self) {
        self.pods.wait_until_known().await;
        self.services.wait_until_known().await;
        self.revisions.wait_until_known().await;
        self.budgets.wait_until_known().await;
        self.snapshots.wait_until_known().await;
        self.policies.wait_until_known().await;
    }
}
