//! `spec.resources`: what each pod gets.

#![expect(
    unreachable_pub,
    reason = "the derive of the schema makes public copies inside a function"
)]

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// A quantity above zero. A whole number may come without quotes.
const QUANTITY: &str = "isQuantity(string(self)) && quantity(string(self)).isGreaterThan(quantity('0'))";

/// Resources of each pod.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// gpu asks for an accelerator. Absent: none. An edit rolls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<Gpu>,
    /// cpu is request and limit, for example `4` or `500m`. Absent: neither, the pod uses what is free. An edit rolls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxLength" = 32))]
    #[x_kube(validation = Rule::new(QUANTITY).message("spec.resources.cpu must be a quantity above 0, for example 4 or 500m"))]
    pub cpu: Option<Quantity>,
    /// memory is request and limit, for example `8Gi`: weights, key-value cache and some headroom. Absent: neither.
    /// A limit that is too small is refused before loading, with the numbers. An edit rolls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxLength" = 32))]
    #[x_kube(validation = Rule::new(QUANTITY).message("spec.resources.memory must be a quantity above 0, for example 8Gi"))]
    pub memory: Option<Quantity>,
    /// claims are devices by Dynamic Resource Allocation: each pod gets a claim made from a template, and the container
    /// that serves uses it. Absent: none. An edit rolls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".to_owned()]))]
    pub claims: Option<Vec<Claim>>,
}

/// A claim on devices.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    /// name of the claim in the pod. Required.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')")
        .message("spec.resources.claims[].name must be a short name for the claim in the pod, for example gpu: a-z, 0-9 and '-' only"))]
    pub name: String,
    /// resourceClaimTemplateName names a `ResourceClaimTemplate` of the same namespace. Required.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')")
        .message("spec.resources.claims[].resourceClaimTemplateName must be the name of a ResourceClaimTemplate in the same namespace; see `kubectl get resourceclaimtemplates`"))]
    pub resource_claim_template_name: String,
}

/// An accelerator.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Gpu {
    /// count is the number of devices for each pod, 0 or 1. Defaults to 0.
    #[serde(default)]
    #[schemars(range(min = 0))]
    #[x_kube(validation = Rule::new("self <= 1")
        .message("spec.resources.gpu.count must be 0 or 1: a model cannot be split over several devices yet; use spec.replicas for more throughput"))]
    pub count: i32,
    /// resourceName is the extended resource that the device plugin offers. Defaults to `nvidia.com/gpu`; a MIG
    /// profile is named here.
    #[serde(default = "nvidia")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$')")
        .message("spec.resources.gpu.resourceName must be an extended resource like nvidia.com/gpu or nvidia.com/mig-1g.10gb; `kubectl describe node` lists those of a node"))]
    pub resource_name: String,
}

impl Default for Gpu {
    fn default() -> Self {
        Self {
            count: 0,
            resource_name: nvidia(),
        }
    }
}

fn nvidia() -> String {
    "nvidia.com/gpu".to_owned()
}
