//! Builds every child object of one pass. Pure: one file for each kind. Builders see the valid spec and the plan,
//! never the raw spec.

mod access;
mod disruption;
mod drift;
mod files;
mod live;
mod monitor;
mod overrides;
mod pod;
mod record;
mod service;

use std::collections::{BTreeMap, BTreeSet};

use escadre_crds::names;
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, PodTemplateSpec, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::DynamicObject;

pub use disruption::min_available;

use super::dependencies::Found;
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
    /// What few objects have.
    pub surroundings: Surroundings,
    /// How far they are.
    pub stage: S,
}

impl<S> Children<S> {
    /// The same children, one step further.
    pub fn into_stage<T>(self, stage: T) -> Children<T> {
        Children {
            namespace: self.namespace,
            service: self.service,
            record: self.record,
            pods: self.pods,
            relabel_pods: self.relabel_pods,
            delete_pods: self.delete_pods,
            delete_records: self.delete_records,
            surroundings: self.surroundings,
            stage,
        }
    }
}

/// Children that few objects have. What is `None` or empty is as it should be.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// Snapshots of overlay files.
    pub files: Vec<ConfigMap>,
    /// Snapshots to delete, with their records.
    pub delete_files: Vec<Identity>,
    /// The budget.
    pub budget: Option<PodDisruptionBudget>,
    /// The budget to delete.
    pub delete_budget: Option<Identity>,
    /// The monitor.
    pub monitor: Option<DynamicObject>,
    /// The monitor to delete.
    pub delete_monitor: Option<Identity>,
    /// Annotations of pods to set.
    pub annotate: Vec<Annotation>,
}

/// One annotation of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Annotation {
    /// Which pod.
    pub pod: Identity,
    /// The key.
    pub key: &'static str,
    /// The value.
    pub value: String,
}

/// The pod template of a new revision, with the spec's own patch over it.
///
/// # Errors
/// When the patch cannot be followed: the field, and what to do.
pub fn template(valid: &Valid) -> Result<PodTemplateSpec, String> {
    let template = pod::build_template(valid);
    match &valid.intent.pod_overrides {
        Some(patch) => overrides::apply(&template, patch),
        None => Ok(template),
    }
}

/// Built, not written.
#[derive(Clone, Copy, Debug)]
pub struct Built;

/// Builds.
pub fn build(valid: &Valid, plan: &Plan) -> Children<Built> {
    let step = &plan.step;
    let gone = step.forget.iter().map(|record| names::files_of_record(&record.name));
    let snapshots = gone.filter_map(|name| valid.dependencies.snapshots.get(&name));
    let mut surroundings = if valid.is_frozen {
        Surroundings::default()
    } else {
        surroundings(valid)
    };
    surroundings.delete_files = snapshots.filter(|found| found.is_ours).map(Found::identity).collect();
    surroundings.annotate.retain(|one| !step.delete.contains(&one.pod));
    let own = Record {
        template: valid.template.clone(),
        settings: valid.settings.clone(),
        files: valid.files.clone(),
    };
    let record_of = |revision: &str| valid.records.get(revision).unwrap_or(&own);
    let made: BTreeSet<&str> = step.create.iter().map(|(revision, _)| revision.as_str()).collect();
    let with_files = made.into_iter().map(|revision| (revision, &record_of(revision).files));
    let mut with_files: BTreeMap<&str, &BTreeMap<String, String>> = with_files.collect();
    if !valid.is_frozen && (step.record || valid.recorded.contains_key(valid.revision.as_str())) {
        with_files.insert(valid.revision.as_str(), &valid.files);
    }
    let snapshots = with_files.into_iter();
    surroundings.files = snapshots
        .filter_map(|(revision, files)| files::build_files(valid, revision, files))
        .collect();
    let pods = step.create.iter();
    let pods = pods.map(|(revision, slot)| pod::build_pod(valid, revision, &record_of(revision).template, *slot));
    Children {
        namespace: valid.namespace.clone(),
        service: service::build_service(valid).filter(|_| !valid.is_frozen),
        record: step.record.then(|| record::build_record(valid, &own)),
        pods: pods.collect(),
        relabel_pods: step.relabel.clone(),
        delete_pods: step.delete.clone(),
        delete_records: step.forget.clone(),
        surroundings,
        stage: Built,
    }
}

fn surroundings(valid: &Valid) -> Surroundings {
    Surroundings {
        budget: disruption::build_budget(valid),
        delete_budget: disruption::unwanted_budget(valid),
        monitor: monitor::build_monitor(valid),
        delete_monitor: monitor::unwanted_monitor(valid),
        annotate: live::outdated(valid),
        ..Surroundings::default()
    }
}

#[cfg(test)]
mod tests;
