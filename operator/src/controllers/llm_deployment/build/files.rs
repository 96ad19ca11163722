//! The snapshot of a revision's overlay files: a ConfigMap of ours that never changes, so that every pod of the
//! revision has the same ones, whatever becomes of the ConfigMaps that the spec names.

use escadre_crds::names;
use k8s_openapi::api::core::v1::{ConfigMap, ConfigMapVolumeSource, KeyToPath, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::super::validate::Valid;

/// The name of the snapshot.
fn name(valid: &Valid) -> String {
    names::files_of_record(&names::revision_name(&valid.name, valid.revision.as_str()))
}

/// The key of the n-th file: a path may hold what a key may not.
fn key(index: usize) -> String {
    format!("file-{index}")
}

/// Builds the snapshot. `None`: it is there, or there is nothing to hold. The texts are part of what names the revision,
/// so that those of the spec are those of its record; a snapshot that is there is immutable.
pub(super) fn build_files(valid: &Valid) -> Option<ConfigMap> {
    let files = &valid.files;
    if files.is_empty() || valid.dependencies.snapshots.contains_key(&name(valid)) {
        return None;
    }
    let mut labels = valid.labels();
    labels.insert(names::LABEL_REVISION.to_owned(), valid.revision.to_string());
    let texts = files.values().enumerate();
    Some(ConfigMap {
        metadata: ObjectMeta {
            name: Some(name(valid)),
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
            name: name(valid),
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
