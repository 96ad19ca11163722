//! The record of a revision: a `ControllerRevision` that holds the pod template. Its data can never be changed.

use escadre_crds::names;
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;

use super::super::revision::{Record, json};
use super::super::validate::Valid;

/// Builds the record.
pub(super) fn build_record(valid: &Valid, record: &Record) -> ControllerRevision {
    let mut labels = valid.labels();
    labels.insert(names::LABEL_REVISION.to_owned(), valid.revision.to_string());
    ControllerRevision {
        metadata: ObjectMeta {
            name: Some(names::revision_name(&valid.name, valid.revision.as_str())),
            namespace: Some(valid.namespace.clone()),
            labels: Some(labels),
            owner_references: Some(vec![valid.owner.clone()]),
            ..ObjectMeta::default()
        },
        data: Some(RawExtension(json(record))),
        revision: valid.next_number,
    }
}
