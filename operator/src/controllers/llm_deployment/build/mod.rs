//! Builds every child object of one pass. Pure: one file for each kind. Builders see the valid spec and the plan,
//! never the raw spec.

mod pod;
mod record;
mod service;

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::{Pod, Service};

use super::plan::Plan;
use super::revision::Record;
use super::validate::Valid;
use crate::kube_ext::orphans::Identity;

/// The children of one pass. `S` says whether they are only built, or applied too: status is made from applied ones.
#[derive(Clone, Debug)]
pub struct Children<S> {
    /// Namespace of all.
    pub namespace: String,
    /// The Service. `None`: it is as it should be.
    pub service: Option<Service>,
    /// The record of the target revision. `None`: it is there, or not needed yet.
    pub record: Option<ControllerRevision>,
    /// Pods to create, in this order.
    pub pods: Vec<Pod>,
    /// Pods whose labels are put right.
    pub relabel_pods: Vec<(Identity, BTreeMap<String, String>)>,
    /// Pods to delete.
    pub delete_pods: Vec<Identity>,
    /// Records to delete, last.
    pub delete_records: Vec<Identity>,
    /// How far they are.
    pub stage: S,
}

/// Built, not written.
#[derive(Clone, Copy, Debug)]
pub struct Built;

/// Builds.
pub fn build(valid: &Valid, plan: &Plan) -> Children<Built> {
    let mut children = Children {
        namespace: valid.namespace.clone(),
        service: service::build_service(valid),
        record: None,
        pods: Vec::new(),
        relabel_pods: Vec::new(),
        delete_pods: Vec::new(),
        delete_records: Vec::new(),
        stage: Built,
    };
    match plan {
        Plan::Complete | Plan::Blocked { .. } => {}
        Plan::Progress(step) => {
            let stored = valid.stored.as_ref().and_then(|stored| stored.record.clone());
            let record = stored.unwrap_or_else(|| Record {
                template: pod::build_template(valid),
                settings: valid.settings.clone(),
            });
            children.pods = step
                .create
                .iter()
                .map(|slot| pod::build_pod(valid, &record.template, *slot))
                .collect();
            children.record = step.record.then(|| record::build_record(valid, &record));
            children.relabel_pods.clone_from(&step.relabel);
            children.delete_pods.clone_from(&step.delete);
            children.delete_records.clone_from(&step.forget);
        }
    }
    children
}

#[cfg(test)]
mod tests;
