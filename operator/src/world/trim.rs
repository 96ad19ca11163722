//! Drops from watched objects what no decision needs, before they are kept: thousands of pods stay small.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;

/// Drops who wrote which field, and the copy that client-side `kubectl apply` leaves.
pub fn trim<K: Resource>(object: &mut K) {
    trim_meta(object.meta_mut());
}

fn trim_meta(meta: &mut ObjectMeta) {
    meta.managed_fields = None;
    if let Some(annotations) = &mut meta.annotations {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
}

/// Keeps of a pod's spec only the node and the containers' images and devices; of its status what says how it is.
pub fn trim_pod(pod: &mut Pod) {
    trim_meta(&mut pod.metadata);
    if let Some(spec) = pod.spec.take() {
        pod.spec = Some(PodSpec {
            node_name: spec.node_name,
            containers: spec.containers.into_iter().map(bare).collect(),
            init_containers: spec
                .init_containers
                .map(|containers| containers.into_iter().map(bare).collect()),
            ..PodSpec::default()
        });
    }
    let Some(status) = &mut pod.status else {
        return;
    };
    status.host_ips = None;
    status.pod_ips = None;
    status.resource_claim_statuses = None;
    let containers = status
        .init_container_statuses
        .iter_mut()
        .chain(&mut status.container_statuses);
    for container in containers.flatten() {
        container.container_id = None;
        container.image_id = String::new();
        container.allocated_resources = None;
        container.allocated_resources_status = None;
        container.resources = None;
        container.user = None;
        container.volume_mounts = None;
    }
}

fn bare(container: Container) -> Container {
    let limits = container.resources.and_then(|resources| resources.limits);
    // Processor and memory have plain names, devices have those of their vendors.
    let devices = limits.map(|limits| limits.into_iter().filter(|(name, _)| name.contains('/')).collect());
    let devices: Option<BTreeMap<String, Quantity>> = devices.filter(|devices: &BTreeMap<_, _>| !devices.is_empty());
    Container {
        name: container.name,
        image: container.image,
        resources: devices.map(|devices| ResourceRequirements {
            limits: Some(devices),
            ..ResourceRequirements::default()
        }),
        ..Container::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pod_keeps_what_says_how_it_is() {
        let mut pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "a", "uid": "1", "labels": {"k": "v"}, "managedFields": [{"manager": "m"}]},
            "spec": {"nodeName": "n", "containers": [{"name": "runtime", "image": "i:1", "args": ["serve"],
                "resources": {"limits": {"cpu": "1", "nvidia.com/gpu": "1"}, "requests": {"cpu": "1"}}}]},
            "status": {"podIP": "10.0.0.1", "containerStatuses": [{
                "name": "runtime", "image": "i:1", "imageID": "sha256:0", "ready": true, "restartCount": 3,
                "state": {"running": {}}, "containerID": "containerd://0",
            }]},
        }))
        .unwrap();
        trim_pod(&mut pod);
        let kept = serde_json::to_value(&pod).unwrap();
        assert_eq!(
            kept,
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": "a", "uid": "1", "labels": {"k": "v"}},
                "spec": {"nodeName": "n", "containers": [{"name": "runtime", "image": "i:1", "resources": {"limits": {"nvidia.com/gpu": "1"}}}]},
                "status": {"podIP": "10.0.0.1", "containerStatuses": [{
                    "name": "runtime", "image": "i:1", "imageID": "", "ready": true, "restartCount": 3,
                    "state": {"running": {}},
                }]},
            })
        );
    }
}
