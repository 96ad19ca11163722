//! Where the pods may run. The Kubernetes types are used as they are; only the prose of their schemas is left out,
//! since it alone would take the CRD over the size that client-side `kubectl apply` can carry.

#![expect(
    unreachable_pub,
    reason = "the derive of the schema makes public copies inside a function"
)]

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, Toleration, TopologySpreadConstraint};
use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Where the pods may run; each field has the meaning it has in a pod.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Placement {
    /// nodeSelector holds the labels that a node must have. Absent: any node. An edit rolls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 64))]
    pub node_selector: Option<BTreeMap<String, String>>,
    /// tolerations are the taints that the pods accept, as in a pod. Absent: none. An edit rolls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "terse::<Vec<Toleration>>")]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub tolerations: Option<Vec<Toleration>>,
    /// affinity ties the pods to nodes or to other pods, as in a pod. Absent: none. An edit rolls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "terse::<Affinity>")]
    pub affinity: Option<Affinity>,
    /// topologySpread spreads the pods over zones or nodes, as `topologySpreadConstraints` of a pod. Absent: none.
    /// An edit rolls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "terse::<Vec<TopologySpreadConstraint>>")]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub topology_spread: Option<Vec<TopologySpreadConstraint>>,
    /// priorityClassName names the `PriorityClass` of the pods. Absent: the cluster's default. An edit rolls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,
    /// schedulerName names the scheduler that places the pods. Absent: the cluster's default. An edit rolls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub scheduler_name: Option<String>,
    /// runtimeClassName names the `RuntimeClass` of the pods, for example `nvidia`. Absent: the node's default.
    /// An edit rolls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self == self.lowerAscii()").message("spec.placement.runtimeClassName must be lower case: it is the name of a RuntimeClass, see `kubectl get runtimeclass`"))]
    pub runtime_class_name: Option<String>,
}

/// The schema of a Kubernetes type without its descriptions.
pub(super) fn terse<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = generator.subschema_for::<T>();
    if let Some(object) = schema.as_object_mut() {
        object.remove("description");
        object.values_mut().for_each(strip_descriptions);
    }
    schema
}

/// Removes every `description` that is prose; a *property* of that name stays.
fn strip_descriptions(value: &mut Value) {
    match value {
        Value::Object(object) => {
            if object.get("description").is_some_and(Value::is_string) {
                object.remove("description");
            }
            object.values_mut().for_each(strip_descriptions);
        }
        Value::Array(items) => items.iter_mut().for_each(strip_descriptions),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
