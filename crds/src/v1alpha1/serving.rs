//! `spec.service`, `spec.drain`, `spec.disruption` and `spec.observability`: what stands around the pods.

#![expect(
    unreachable_pub,
    reason = "the derive of the schema makes public copies inside a function"
)]

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The Service in front of the pods.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ServiceSpec {
    /// type of the Service: `ClusterIP`, `NodePort` or `LoadBalancer`. Defaults to `ClusterIP`. Works live.
    #[serde(rename = "type", default)]
    pub type_: ServiceType,
    /// port of the Service, 1 to 65535. Defaults to 80. Works live.
    #[serde(default = "http_port")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
    /// annotations of the Service, for example for a load balancer. Absent: none. Works live.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 64))]
    #[x_kube(validation = Rule::new("self.all(key, !key.startsWith('escadre.dev/'))")
        .message("spec.service.annotations must not use keys that begin with escadre.dev/: the operator keeps its own there"))]
    pub annotations: Option<BTreeMap<String, String>>,
}

/// Type of the Service.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServiceType {
    /// Reachable inside the cluster.
    #[default]
    ClusterIP,
    /// Also on a port of every node.
    NodePort,
    /// Also through a load balancer of the cluster's provider.
    LoadBalancer,
}

/// How a pod ends.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct DrainSpec {
    /// timeoutSeconds is how long open answers may go on after a pod was told to end, 0 to 86400. Defaults to 120.
    #[serde(default = "drain_timeout")]
    #[schemars(range(min = 0, max = 86400))]
    pub timeout_seconds: i32,
}

/// What may be done to the pods while they serve.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Disruption {
    /// minAvailable is the number of pods that evictions must leave, absolute or a percentage of `replicas` rounded up, by a
    /// `PodDisruptionBudget`; `Available` means this many. Absent: no budget, and `Available` means one. Works live.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxLength" = 16))]
    #[x_kube(validation = Rule::new("string(self).matches('^([0-9]{1,9}|(100|[1-9]?[0-9])%)$')")
        .message("spec.disruption.minAvailable must be a number of pods, 0 or more, or a percentage from '0%' to '100%'"))]
    pub min_available: Option<IntOrString>,
    /// safeToEvict lets the cluster autoscaler move the pods when it removes a node (it sets the annotation
    /// `cluster-autoscaler.kubernetes.io/safe-to-evict`). Defaults to true. Works live.
    #[serde(default = "yes")]
    pub safe_to_evict: bool,
}

/// What the cluster's monitoring is told.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Observability {
    /// podMonitor says whether a `PodMonitor` is made for the pods' metrics: `Auto` where the cluster has that kind, `Enabled`
    /// (it must have it), `Disabled`. Defaults to `Auto`. Works live.
    #[serde(default)]
    pub pod_monitor: PodMonitorMode,
    /// tracing sends a span of each request to a collector of OpenTelemetry, without prompts and answers. Absent: nothing
    /// is sent. Waits for the next revision, or for a revision that has never served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracing: Option<Tracing>,
}

/// Where spans go.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Tracing {
    /// endpoint is the base address of a collector that takes OTLP over HTTP, `http://` or `https://`, usually with port
    /// 4318; `/v1/traces` is appended. Required.
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = Rule::new("self.matches('^https?://[A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]*)?$')")
        .message("spec.observability.tracing.endpoint must be an address like http://collector.observability.svc:4318, without user name, query or fragment; gRPC (port 4317) is not spoken"))]
    pub endpoint: String,
    /// sampling is the share of requests that have a span, from 0 to 1. A request that says itself which trace it belongs
    /// to (`traceparent`) has one when that trace is sampled. Defaults to 1.
    #[serde(default = "all")]
    #[schemars(range(min = 0, max = 1))]
    #[x_kube(validation = Rule::new("self >= 0.0 && self <= 1.0")
        .message("spec.observability.tracing.sampling must be a share of the requests from 0 to 1, for example 0.1"))]
    pub sampling: f64,
}

/// Whether a `PodMonitor` is made.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PodMonitorMode {
    /// Where the cluster has the kind.
    #[default]
    Auto,
    /// Always; a cluster without the kind is an error.
    Enabled,
    /// Never.
    Disabled,
}

impl Default for Disruption {
    fn default() -> Self {
        Self {
            min_available: None,
            safe_to_evict: yes(),
        }
    }
}

impl Default for ServiceSpec {
    fn default() -> Self {
        Self {
            type_: ServiceType::default(),
            port: http_port(),
            annotations: None,
        }
    }
}

impl Default for DrainSpec {
    fn default() -> Self {
        Self {
            timeout_seconds: drain_timeout(),
        }
    }
}

fn http_port() -> i32 {
    80
}

fn drain_timeout() -> i32 {
    120
}

fn yes() -> bool {
    true
}

fn all() -> f64 {
    1.0
}
