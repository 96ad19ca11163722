//! What evictions must leave: a `PodDisruptionBudget` with a whole number of pods, and the word to the cluster
//! autoscaler on each pod.

use std::collections::BTreeMap;

use escadre_crds::names;
use escadre_crds::v1alpha1::Disruption;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::super::validate::Valid;
use super::drift;
use crate::kube_ext::orphans::Identity;

/// How many pods evictions must leave of `replicas`. `None`: nothing was asked for. Percentages are rounded up.
pub fn min_available(disruption: &Disruption, replicas: u32) -> Option<u32> {
    let text = match disruption.min_available.as_ref()? {
        IntOrString::Int(pods) => return Some(u32::try_from(*pods).unwrap_or(0)),
        IntOrString::String(text) => text,
    };
    match text.strip_suffix('%') {
        Some(percent) => {
            let percent: u64 = percent.parse().ok()?;
            u32::try_from((u64::from(replicas) * percent).div_ceil(100)).ok()
        }
        None => text.parse().ok(),
    }
}

/// Builds the budget. `None`: it is as it should be, or not wanted.
pub(super) fn build_budget(valid: &Valid) -> Option<PodDisruptionBudget> {
    // Suspended pods come back, and the budget stays for them.
    let pods = min_available(&valid.disruption, valid.size)?;
    let wanted = PodDisruptionBudget {
        metadata: ObjectMeta {
            name: Some(valid.name.clone()),
            namespace: Some(valid.namespace.clone()),
            labels: Some(valid.labels()),
            owner_references: Some(vec![valid.owner.clone()]),
            ..ObjectMeta::default()
        },
        spec: Some(PodDisruptionBudgetSpec {
            min_available: Some(IntOrString::Int(i32::try_from(pods).unwrap_or(i32::MAX))),
            selector: Some(LabelSelector {
                match_labels: Some(BTreeMap::from([
                    (names::LABEL_COMPONENT.to_owned(), names::COMPONENT_RUNTIME.to_owned()),
                    (names::LABEL_DEPLOYMENT.to_owned(), valid.name.clone()),
                ])),
                match_expressions: None,
            }),
            // A pod that does not serve anyway must not keep a node from being drained.
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        status: None,
    };
    let before = valid.dependencies.budget.as_ref().map(|found| found.object.as_ref());
    drift::unless_applied(wanted, before)
}

/// The budget that is no longer wanted.
pub(super) fn unwanted_budget(valid: &Valid) -> Option<Identity> {
    let found = valid.dependencies.budget.as_ref().filter(|found| found.is_ours)?;
    valid.disruption.min_available.is_none().then(|| found.identity())
}

/// The word to the cluster autoscaler.
pub(super) fn annotation(valid: &Valid) -> (&'static str, String) {
    (
        names::ANNOTATION_SAFE_TO_EVICT,
        valid.disruption.safe_to_evict.to_string(),
    )
}
