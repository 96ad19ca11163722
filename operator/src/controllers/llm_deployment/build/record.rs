//! The record of a revision: a `ControllerRevision` that holds the pod template. Its data can never be changed.

use std::collections::BTreeMap;

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
    let containers = record.template.spec.iter().flat_map(|spec| &spec.containers);
    let runtime = containers.into_iter().find(|one| one.name == names::CONTAINER_RUNTIME);
    let image = runtime.and_then(|runtime| runtime.image.clone());
    let highest = valid.recorded.values().map(|recorded| recorded.number).max();
    let number = highest.unwrap_or(0) + 1;
    let annotations = BTreeMap::from([
        (names::ANNOTATION_NUMBER.to_owned(), number.to_string()),
        (names::ANNOTATION_DIGEST.to_owned(), valid.intent.digest.clone()),
        (names::ANNOTATION_SETTINGS.to_owned(), record.settings.fingerprint()),
        (names::ANNOTATION_IMAGE.to_owned(), image.unwrap_or_default()),
    ]);
    ControllerRevision {
        metadata: ObjectMeta {
            annotations: Some(annotations),
            name: Some(names::revision_name(&valid.name, valid.revision.as_str())),
            namespace: Some(valid.namespace.clone()),
            labels: Some(labels),
            owner_references: Some(vec![valid.owner.clone()]),
            ..ObjectMeta::default()
        },
        data: Some(RawExtension(json(record))),
        revision: number,
    }
}
