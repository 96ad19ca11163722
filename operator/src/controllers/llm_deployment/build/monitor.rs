//! The `PodMonitor` that tells the Prometheus operator where the pods' metrics are.

use escadre_crds::names;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::DynamicObject;
use serde_json::{Value, json};

use super::super::dependencies::pod_monitor_kind;
use super::super::validate::Valid;
use super::drift;
use crate::kube_ext::orphans::Identity;

/// Builds the monitor. `None`: it is as it should be, not wanted, or its name is somebody else's.
pub(super) fn build_monitor(valid: &Valid) -> Option<DynamicObject> {
    let before = valid.dependencies.pod_monitor.as_ref();
    if !valid.wants_pod_monitor || before.is_some_and(|before| !before.is_ours) {
        return None;
    }
    let mut wanted = DynamicObject::new(&valid.name, &pod_monitor_kind()).within(&valid.namespace);
    wanted.metadata = ObjectMeta {
        labels: Some(valid.labels()),
        owner_references: Some(vec![valid.owner.clone()]),
        ..wanted.metadata
    };
    wanted.data = json!({"spec": {
        "selector": {"matchLabels": {
            names::LABEL_COMPONENT: names::COMPONENT_RUNTIME,
            names::LABEL_DEPLOYMENT: valid.name,
        }},
        "podMetricsEndpoints": [{
            "port": names::PORT_ADMIN,
            "path": "/metrics",
            "relabelings": [
                from_pod_label(names::LABEL_DEPLOYMENT, "deployment"),
                from_pod_label(names::LABEL_REVISION, "revision"),
            ],
        }],
    }});
    drift::unless_applied(wanted, before.map(|before| before.object.as_ref()))
}

/// Gives every metric of a pod the value of one of the pod's labels, beside the Prometheus operator's own `namespace` and
/// `pod`. The dashboards of the chart go by these.
fn from_pod_label(label: &str, target: &str) -> Value {
    // As Prometheus spells it: every character of a label's name that is none in its own names becomes `_`.
    let spelled = label.replace(|character: char| !character.is_ascii_alphanumeric(), "_");
    json!({"sourceLabels": [format!("__meta_kubernetes_pod_label_{spelled}")], "targetLabel": target})
}

/// The monitor that is no longer wanted.
pub(super) fn unwanted_monitor(valid: &Valid) -> Option<Identity> {
    let found = valid.dependencies.pod_monitor.as_ref().filter(|found| found.is_ours)?;
    (!valid.wants_pod_monitor).then(|| found.identity())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_of_a_pod_is_spelled_as_prometheus_does() {
        assert_eq!(
            from_pod_label(names::LABEL_DEPLOYMENT, "deployment"),
            json!({
                "sourceLabels": ["__meta_kubernetes_pod_label_escadre_dev_deployment"],
                "targetLabel": "deployment",
            })
        );
    }
}
