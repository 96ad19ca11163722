//! Every string that the cluster sees: group, labels, annotations, field managers, container and port names.
//!
//! Labels and the selector are part of running pods, so they never change inside a version.

use std::collections::BTreeMap;

/// The API group of all kinds.
pub const GROUP: &str = "escadre.dev";

/// Field manager of everything that the operator applies or creates, but for status.
pub const FIELD_MANAGER: &str = "escadre-operator";
/// Field manager of status.
pub const STATUS_MANAGER: &str = "escadre-operator-status";

/// Says who made an object; on every child.
pub const LABEL_MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Value of [`LABEL_MANAGED_BY`].
pub const MANAGED_BY: &str = "escadre";
/// The part of a deployment that a pod plays.
pub const LABEL_COMPONENT: &str = "app.kubernetes.io/component";
/// Value of [`LABEL_COMPONENT`] on serving pods; the Service and `status.selector` select it.
pub const COMPONENT_RUNTIME: &str = "runtime";
/// The name of the `LlmDeployment` that a child belongs to.
pub const LABEL_DEPLOYMENT: &str = "escadre.dev/deployment";
/// The revision that a pod or a `ControllerRevision` belongs to.
pub const LABEL_REVISION: &str = "escadre.dev/revision";
/// The slot number of a pod.
pub const LABEL_SLOT: &str = "escadre.dev/slot";
/// On an applied child: a digest of what was applied, so that a removed field is noticed.
pub const ANNOTATION_APPLIED: &str = "escadre.dev/applied";

/// On a record of a revision: a digest of the settings that went into it, so that its contents need not be kept.
pub const ANNOTATION_SETTINGS: &str = "escadre.dev/settings";
/// On a record of a revision: its number, which grows with each new revision.
pub const ANNOTATION_NUMBER: &str = "escadre.dev/number";
/// On a record of a revision: the digest of the model that its pods serve.
pub const ANNOTATION_DIGEST: &str = "escadre.dev/digest";
/// On a record of a revision: the image that its pods run.
pub const ANNOTATION_IMAGE: &str = "escadre.dev/image";

/// The init container that brings the model into the pod.
pub const CONTAINER_FETCH: &str = "fetch";
/// The container that serves.
pub const CONTAINER_RUNTIME: &str = "runtime";
/// Name of the port of the API, on the pod and on the Service.
pub const PORT_HTTP: &str = "http";
/// Number of the API's port on the pod.
pub const PORT_HTTP_NUMBER: u16 = 8080;
/// Name of the admin port on the pod.
pub const PORT_ADMIN: &str = "admin";
/// Number of the admin port on the pod: probes, `/metrics` and `/status`.
pub const PORT_ADMIN_NUMBER: u16 = 9090;
/// Name of the volume that holds the model, and where it is mounted.
pub const VOLUME_MODELS: &str = "models";
/// Mount path of [`VOLUME_MODELS`].
pub const PATH_MODELS: &str = "/models";
/// Name of the scratch volume.
pub const VOLUME_TMP: &str = "tmp";
/// Mount path of [`VOLUME_TMP`].
pub const PATH_TMP: &str = "/tmp";

/// Name of the volume with files that are laid over the model's folder.
pub const VOLUME_OVERLAY: &str = "overlay";
/// Mount path of [`VOLUME_OVERLAY`].
pub const PATH_OVERLAY: &str = "/overlay";
/// Name of the volume with further certificates.
pub const VOLUME_CA: &str = "ca-bundle";
/// Mount path of [`VOLUME_CA`].
pub const PATH_CA: &str = "/ca-bundle";

/// Name of the volume with the API keys.
pub const VOLUME_API_KEYS: &str = "api-keys";
/// Mount path of [`VOLUME_API_KEYS`].
pub const PATH_API_KEYS: &str = "/access/keys";
/// Name of the volume with the limits of clients: files with the values of the annotations below.
pub const VOLUME_LIMITS: &str = "limits";
/// Mount path of [`VOLUME_LIMITS`].
pub const PATH_LIMITS: &str = "/access/limits";
/// Name of the volume with the certificate of the API and its key.
pub const VOLUME_TLS: &str = "tls";
/// Mount path of [`VOLUME_TLS`].
pub const PATH_TLS: &str = "/access/tls";

/// How many requests a client may make of a pod in a minute; a file of this name is below [`PATH_LIMITS`].
pub const REQUESTS_PER_MINUTE: &str = "requests-per-minute";
/// How many tokens a client may use in a pod in a minute; a file of this name is below [`PATH_LIMITS`].
pub const TOKENS_PER_MINUTE: &str = "tokens-per-minute";
/// On pods with limits: [`REQUESTS_PER_MINUTE`]; empty without that limit.
pub const ANNOTATION_REQUESTS_PER_MINUTE: &str = "escadre.dev/requests-per-minute";
/// On pods with limits: [`TOKENS_PER_MINUTE`]; empty without that limit.
pub const ANNOTATION_TOKENS_PER_MINUTE: &str = "escadre.dev/tokens-per-minute";

/// Tells the cluster autoscaler whether it may move a pod.
pub const ANNOTATION_SAFE_TO_EVICT: &str = "cluster-autoscaler.kubernetes.io/safe-to-evict";

/// What the names of variables begin with that come from the Secret of `spec.model.secretRef`; a key follows.
pub const ENV_SECRET_PREFIX: &str = "ESCADRE_SECRET_";
/// Tells the runtime which pod it is: it repeats it in `/status`.
pub const ENV_POD_UID: &str = "ESCADRE_POD_UID";
/// Tells the runtime its pod's name.
pub const ENV_POD_NAME: &str = "ESCADRE_POD_NAME";
/// Tells the runtime its revision.
pub const ENV_REVISION: &str = "ESCADRE_REVISION";

/// The longest name that an `LlmDeployment` may have. The pod's name adds `-<8 characters>-<slot>` and must stay
/// a label value of at most 63 characters.
pub const NAME_LIMIT: usize = 40;

/// The name of the pod in one slot of one revision. It is deterministic, so a stale view can never make a pod twice.
pub fn pod_name(deployment: &str, revision: &str, slot: u32) -> String {
    format!("{deployment}-{revision}-{slot}")
}

/// The labels of a serving pod, which nobody else may use.
pub fn pod_labels(deployment: &str, revision: &str, slot: u32) -> BTreeMap<String, String> {
    let labels = [
        (LABEL_MANAGED_BY, MANAGED_BY),
        (LABEL_COMPONENT, COMPONENT_RUNTIME),
        (LABEL_DEPLOYMENT, deployment),
        (LABEL_REVISION, revision),
        (LABEL_SLOT, &slot.to_string()),
    ];
    labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

/// The revision and the slot in a pod's name; the reverse of [`pod_name`]. `None`: it is no name of ours.
pub fn parse_pod_name<'a>(deployment: &str, pod: &'a str) -> Option<(&'a str, u32)> {
    let (revision, slot) = pod.strip_prefix(deployment)?.strip_prefix('-')?.split_once('-')?;
    let slot: u32 = slot.parse().ok()?;
    (pod_name(deployment, revision, slot) == pod && !revision.is_empty()).then_some((revision, slot))
}

/// The name of the `ControllerRevision` that holds the pod template of one revision.
pub fn revision_name(deployment: &str, revision: &str) -> String {
    format!("{deployment}-{revision}")
}

/// The name of the ConfigMap that holds the overlay files of one revision, from the name of its record.
pub fn files_of_record(record: &str) -> String {
    format!("{record}-files")
}

/// The label selector of a deployment's serving pods, as the scale subresource and `kubectl -l` want it.
pub fn selector(deployment: &str) -> String {
    format!("{LABEL_COMPONENT}={COMPONENT_RUNTIME},{LABEL_DEPLOYMENT}={deployment}")
}

/// The address of a deployment's API inside the cluster.
pub fn endpoint(deployment: &str, namespace: &str, port: u16, is_encrypted: bool) -> String {
    let scheme = if is_encrypted { "https" } else { "http" };
    format!("{scheme}://{deployment}.{namespace}.svc:{port}/v1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pod_name_tells_its_revision_and_slot() {
        assert_eq!(
            parse_pod_name("my-llm", &pod_name("my-llm", "a1b2c3d4", 17)),
            Some(("a1b2c3d4", 17))
        );
        for foreign in [
            "my-llm",
            "my-llm-a1b2c3d4",
            "my-llm-a1b2c3d4-x",
            "my-llm-a1b2c3d4-07",
            "my-llm--1",
            "other-a1b2c3d4-1",
        ] {
            assert_eq!(parse_pod_name("my-llm", foreign), None, "{foreign}");
        }
    }

    #[test]
    fn longest_pod_name_is_a_label_value() {
        let name = "a".repeat(NAME_LIMIT);
        assert!(pod_name(&name, "a1b2c3d4", u32::MAX).len() <= 63);
    }
}
