//! The snapshot of a revision's overlay files: a ConfigMap of ours that never changes, so that every pod of the
//! revision has the same ones, whatever becomes of the ConfigMaps that the spec names.

use std::collections::BTreeMap;

use escadre_crds::names;
use k8s_openapi::api::core::v1::{ConfigMap, ConfigMapVolumeSource, KeyToPath, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::super::validate::Valid;

/// The name of a revision's snapshot.
fn name(valid: &Valid, revision: &str) -> String {
    names::files_of_record(&names::revision_name(&valid.name, revision))
}

/// The key of the n-th file: a path may hold what a key may not.
fn key(index: usize) -> String {
    format!("file-{index}")
}

/// Builds a revision's snapshot. `None`: it is there, or there is nothing to hold. The texts are part of what names the
/// revision, so that those of the spec are those of its record; a snapshot that is there is immutable.
pub(super) fn build_files(valid: &Valid, revision: &str, files: &BTreeMap<String, String>) -> Option<ConfigMap> {
    if files.is_empty() || valid.dependencies.snapshots.contains_key(&name(valid, revision)) {
        return None;
    }
    let mut labels = valid.labels();
    labels.insert(names::LABEL_REVISION.to_owned(), revision.to_owned());
    let texts = files.values().enumerate();
    Some(ConfigMap {
        metadata: ObjectMeta {
            name: Some(name(valid, revision)),
            namespace: Some(valid.namespace.clone()),
            labels: Some(labels),
            owner_references: Some(vec![valid.owner.clone()]),
            ..ObjectMeta::default()
        },
        immutable: Some(true),
        data: Some(texts.map(|(index, text)| (key(index), text.clone())).collect()),
        binary_data: None,
    })
}

/// The volume that holds the files under their paths.
pub(super) fn volume(valid: &Valid) -> Volume {
    let paths = valid.files.keys().enumerate();
    Volume {
        name: names::VOLUME_OVERLAY.to_owned(),
        config_map: Some(ConfigMapVolumeSource {
            name: name(valid, valid.revision.as_str()),
            items: Some(
                paths
                    .map(|(index, path)| KeyToPath {
                        key: key(index),
                        path: path.clone(),
                        mode: None,
                    })
                    .collect(),
            ),
            ..ConfigMapVolumeSource::default()
        }),
        ..Volume::default()
    }
}
