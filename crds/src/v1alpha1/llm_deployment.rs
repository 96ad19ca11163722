//! `LlmDeployment`: one language model, served by verified pods. Schema limits, defaults and the CEL rules with the
//! sentences that users read when they get something wrong. Each group of fields has a file of its own beside this one.

#![expect(
    unreachable_pub,
    reason = "the derive of the schema makes public copies inside a function"
)]

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::pod::any_object;
use super::{
    Access, Disruption, DrainSpec, LlmDeploymentStatus, ModelSpec, Network, Observability, OverlayFile, Placement,
    Resources, Rollout, RuntimeSpec, ServiceSpec,
};

/// What the user asks for.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[cfg_attr(test, kube(cel))]
#[kube(
    group = "escadre.dev",
    version = "v1alpha1",
    kind = "LlmDeployment",
    plural = "llmdeployments",
    shortname = "llm",
    namespaced,
    status = "LlmDeploymentStatus",
    derive = "PartialEq",
    doc = "LlmDeployment serves one language model: verified pods behind a Service with an OpenAI-compatible API.",
    annotation("helm.sh/resource-policy", "keep"),
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.display.ready"),
    printcolumn(name = "Model", type_ = "string", json_path = ".spec.model.source"),
    printcolumn(name = "Digest", type_ = "string", json_path = ".status.display.digest"),
    printcolumn(name = "Verified", type_ = "string", json_path = ".status.verification.result"),
    printcolumn(
        name = "Status",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Endpoint",
        type_ = "string",
        json_path = ".status.endpoint",
        priority = 1
    ),
    validation = Rule::new("self.metadata.name.size() <= 40 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')")
        .message("metadata.name must be at most 40 characters of a-z, 0-9 and '-', begin with a letter and end with a letter or digit, because the Service and the pods carry it; choose another name, and put the name that clients use into spec.model.servedName")
)]
#[serde(rename_all = "camelCase")]
pub struct LlmDeploymentSpec {
    /// model says which weights are served and how they are recognised. Required. An edit rolls.
    pub model: ModelSpec,
    /// runtime configures the process that serves. Absent: the operator's image and the model's own limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<RuntimeSpec>,
    /// resources of each pod. Absent: no GPU, no limits. An edit rolls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// placement says where the pods may run. Absent: anywhere. An edit rolls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
    /// replicas is the number of pods, 0 or more. Defaults to 1. 0 keeps the Service and stops serving. Works live,
    /// also through `kubectl scale` and a `HorizontalPodAutoscaler`: leave it out of manifests that something else scales.
    #[serde(default = "one")]
    #[schemars(range(min = 0))]
    pub replicas: i32,
    /// service configures the Service, which has the object's name and a port named `http`. Works live.
    #[serde(default)]
    pub service: ServiceSpec,
    /// rollout says how a new revision takes the place of the one that serves. Works live.
    #[serde(default)]
    pub rollout: Rollout,
    /// restartToken is any text: another one replaces the pods by a normal rollout, also those of a revision that failed.
    /// Absent: none. An edit rolls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub restart_token: Option<String>,
    /// drain says how a pod ends. Waits for the next revision.
    #[serde(default)]
    pub drain: DrainSpec,
    /// files are laid over the model's folder, for example another chat template, and trusted as this object is; weights cannot
    /// be replaced. Absent: none. An edit rolls, also of a ConfigMap's content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["path".to_owned()]))]
    pub files: Option<Vec<OverlayFile>>,
    /// disruption says what evictions must leave. Works live.
    #[serde(default)]
    pub disruption: Disruption,
    /// access says who may ask, how much, and whether the way to the pods is encrypted. Absent: everybody who reaches the
    /// Service, as much as they like, unencrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<Access>,
    /// observability says what the cluster's monitoring is told.
    #[serde(default)]
    pub observability: Observability,
    /// serviceAccountName is the pods' account, for example for workload identity. Its token is not mounted. Absent:
    /// the namespace's default account. An edit rolls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')")
        .message("spec.serviceAccountName must be the name of a ServiceAccount in the same namespace: a-z, 0-9, '-' and '.' only; see `kubectl get serviceaccounts`"))]
    pub service_account_name: Option<String>,
    /// podLabels are further labels of the pods. Those of the operator are refused. Absent: none. An edit rolls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 32, "additionalProperties" = {"type": "string", "maxLength": 63}))]
    #[x_kube(
        validation = Rule::new("self.all(key, !key.startsWith('escadre.dev/') && !(key in ['app.kubernetes.io/managed-by', 'app.kubernetes.io/component']))")
            .message("spec.podLabels must not use keys that begin with escadre.dev/, nor app.kubernetes.io/managed-by and app.kubernetes.io/component: the operator and the Service find the pods by them; use another key"),
        validation = Rule::new("self.all(key, self[key].matches('^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$'))")
            .message("spec.podLabels must have values of letters, digits and - _ . that begin and end with a letter or digit")
    )]
    pub pod_labels: Option<BTreeMap<String, String>>,
    /// podAnnotations are further annotations of the pods. Those of the operator are refused. Absent: none. An edit
    /// rolls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 32))]
    #[x_kube(
        validation = Rule::new("self.all(key, !key.startsWith('escadre.dev/'))")
            .message("spec.podAnnotations must not use keys that begin with escadre.dev/: the operator keeps its own there; use another key"),
        validation = Rule::new("!('cluster-autoscaler.kubernetes.io/safe-to-evict' in self)")
            .message("spec.podAnnotations must not set cluster-autoscaler.kubernetes.io/safe-to-evict; use spec.disruption.safeToEvict")
    )]
    pub pod_annotations: Option<BTreeMap<String, String>>,
    /// network says how the source is reached: proxy and certificates. Absent: directly. An edit rolls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// podOverrides is a strategic merge patch over the pods (`metadata` with labels and annotations, `spec`), for what has no
    /// field here. Unknown fields are refused, and whatever would step round verification or give power over a node. Absent:
    /// none. An edit rolls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_object")]
    pub pod_overrides: Option<Value>,
    /// suspend removes the pods and keeps everything else. Defaults to false. Works live.
    #[serde(default)]
    pub suspend: bool,
}

fn one() -> i32 {
    1
}
