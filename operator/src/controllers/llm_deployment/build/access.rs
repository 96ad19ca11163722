//! What `spec.access` brings into a pod: Secrets as folders, which the kubelet keeps as they are now, and limits by way of
//! annotations, which it writes into files.

use escadre_crds::names;
use k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, DownwardAPIVolumeSource, ObjectFieldSelector, SecretVolumeSource, Volume, VolumeMount,
};

use super::super::revision::AccessIntent;
use super::super::validate::Valid;
use super::pod::read_only;

/// Owner and group may read, and the group is that of our images.
const MODE: i32 = 0o440;

/// The arguments of the runtime.
pub(super) fn arguments(intent: &AccessIntent) -> Vec<String> {
    let keys = intent
        .keys
        .is_some()
        .then(|| format!("--api-keys={}", names::PATH_API_KEYS));
    let required = intent.required.map(|required| format!("--require-key={required}"));
    let limits = intent.has_limits.then(|| format!("--limits={}", names::PATH_LIMITS));
    let tls = intent.tls.is_some().then(|| format!("--tls={}", names::PATH_TLS));
    [keys, required, limits, tls].into_iter().flatten().collect()
}

/// The folders in the runtime's container.
pub(super) fn mounts(intent: &AccessIntent) -> Vec<VolumeMount> {
    let keys = (intent.keys.is_some(), names::VOLUME_API_KEYS, names::PATH_API_KEYS);
    let limits = (intent.has_limits, names::VOLUME_LIMITS, names::PATH_LIMITS);
    let tls = (intent.tls.is_some(), names::VOLUME_TLS, names::PATH_TLS);
    let wanted = [keys, limits, tls].into_iter().filter(|(is_wanted, ..)| *is_wanted);
    wanted.map(|(_, name, path)| read_only(name, path)).collect()
}

/// Where the folders come from.
pub(super) fn volumes(intent: &AccessIntent) -> Vec<Volume> {
    let keys = intent.keys.as_deref().map(|name| secret(names::VOLUME_API_KEYS, name));
    let limits = intent.has_limits.then(limits);
    let tls = intent.tls.as_deref().map(|name| secret(names::VOLUME_TLS, name));
    [keys, limits, tls].into_iter().flatten().collect()
}

/// Optional, so that the container starts without it and says by name what is missing; a pod that waits for a volume says
/// nothing.
fn secret(volume: &str, name: &str) -> Volume {
    Volume {
        name: volume.to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(name.to_owned()),
            default_mode: Some(MODE),
            optional: Some(true),
            items: None,
        }),
        ..Volume::default()
    }
}

fn limits() -> Volume {
    let files = [
        (names::REQUESTS_PER_MINUTE, names::ANNOTATION_REQUESTS_PER_MINUTE),
        (names::TOKENS_PER_MINUTE, names::ANNOTATION_TOKENS_PER_MINUTE),
    ];
    let items = files.map(|(path, annotation)| DownwardAPIVolumeFile {
        path: path.to_owned(),
        field_ref: Some(ObjectFieldSelector {
            field_path: format!("metadata.annotations['{annotation}']"),
            api_version: None,
        }),
        ..DownwardAPIVolumeFile::default()
    });
    Volume {
        name: names::VOLUME_LIMITS.to_owned(),
        downward_api: Some(DownwardAPIVolumeSource {
            items: Some(items.into()),
            default_mode: None,
        }),
        ..Volume::default()
    }
}

/// The annotations of a pod that say the limits; one that is not set is empty.
pub(super) fn annotations(valid: &Valid) -> Vec<(&'static str, String)> {
    let Some(limits) = valid.limits else { return vec![] };
    let text = |limit: Option<i32>| limit.map(|limit| limit.to_string()).unwrap_or_default();
    vec![
        (names::ANNOTATION_REQUESTS_PER_MINUTE, text(limits.requests_per_minute)),
        (names::ANNOTATION_TOKENS_PER_MINUTE, text(limits.tokens_per_minute)),
    ]
}
