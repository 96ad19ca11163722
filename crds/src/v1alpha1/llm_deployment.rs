//! `LlmDeployment`: one language model, served by verified pods. Schema limits, defaults and the CEL rules with the
//! sentences that users read when they get something wrong.

#![expect(
    unreachable_pub,
    reason = "the derive of the schema makes public copies inside a function"
)]

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{LlmDeploymentStatus, Placement};

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
    /// drain says how a pod ends. Waits for the next revision.
    #[serde(default)]
    pub drain: DrainSpec,
    /// suspend removes the pods and keeps everything else. Defaults to false. Works live.
    #[serde(default)]
    pub suspend: bool,
}

/// Which weights are served and how they are recognised.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.endpoint) || self.source.startsWith('hf://')")
        .message("spec.model.endpoint works with an hf:// source only; remove it, or put the whole address into spec.model.source")
        .field_path(".endpoint"),
    validation = Rule::new("!has(self.revision) || self.source.startsWith('hf://')")
        .message("spec.model.revision works with an hf:// source only; remove it: an https:// address names one file, and the digest pins its bytes")
        .field_path(".revision"),
    validation = Rule::new("!has(self.files) || self.source.startsWith('hf://')")
        .message("spec.model.files works with an hf:// source only; remove it: an https:// address names one file")
        .field_path(".files")
)]
pub struct ModelSpec {
    /// source is the address of the model: `hf://<owner>/<name>` for a repository on the Hugging Face hub (or a mirror
    /// of it, see `endpoint`), `https://<host>/<path>` for one file. Required. An edit rolls.
    #[schemars(length(min = 1, max = 1024))]
    #[x_kube(
        validation = Rule::new("self.startsWith('hf://') || self.startsWith('https://')")
            .message("spec.model.source must be hf://<owner>/<name> or https://<host>/<path to a file>; other sources are not supported in this version"),
        validation = Rule::new("!self.startsWith('hf://') || self.matches('^hf://[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$')")
            .message("spec.model.source must look like hf://<owner>/<name>, for example hf://HuggingFaceTB/SmolLM2-135M-Instruct-GGUF; a revision goes into spec.model.revision, file names into spec.model.files"),
        validation = Rule::new("!self.startsWith('https://') || self.matches('^https://[A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]{1,5})?/[^\\\\s#,]*[^\\\\s#,/]$')")
            .message("spec.model.source must look like https://<host>/<path to a file>: one address, without user name, fragment, comma or spaces, that does not end in '/'")
    )]
    pub source: String,
    /// revision is the branch, tag or commit of an `hf://` source. Defaults to `main`. The digest pins the bytes in any
    /// case; a commit keeps a moved branch from breaking the next pod. An edit rolls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9][A-Za-z0-9._/-]*$') && !self.contains('..')")
        .message("spec.model.revision must be a branch, a tag or a commit: letters, digits and . _ - / only"))]
    pub revision: Option<String>,
    /// endpoint is the address of a mirror of the Hugging Face hub, `http://` or `https://`. Absent: the public hub.
    /// Waits for the next revision, or for a revision that has never served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = Rule::new("self.matches('^https?://[A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]*)?$')")
        .message("spec.model.endpoint must be an address like https://mirror.example.com or http://mirror.models.svc:8000, without user name, query or fragment"))]
    pub endpoint: Option<String>,
    /// files are the globs of the files that belong to the model, relative to the repository. Absent: the weights
    /// (`*.gguf`, `*.safetensors`), tokenizer, configuration, chat template and licence files at its top. An edit rolls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 256)))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = Rule::new("self.all(glob, !glob.startsWith('/') && !glob.contains('\\\\') && !('..' in glob.split('/')) && !glob.matches('[\\\\s]'))")
            .message("spec.model.files must be globs relative to the repository, for example '*.gguf': no leading '/', no '..', no backslash, no spaces")
    )]
    pub files: Option<Vec<String>>,
    /// servedName is the model's name in the OpenAI API. Absent: the object's name. An edit rolls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9]([A-Za-z0-9._:/-]*[A-Za-z0-9])?$')")
        .message("spec.model.servedName must be letters, digits and . _ : / - only, for example qwen2.5-7b, and begin and end with a letter or digit"))]
    pub served_name: Option<String>,
    /// verification says what the bytes must be; nothing else is ever served. Required. An edit rolls.
    pub verification: Verification,
}

/// What the bytes must be.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Verification {
    /// digest is the model digest, `sha256:` and 64 lower-case hexadecimal digits. Of a single file it is the SHA-256
    /// (`sha256sum FILE`); of several the SHA-256 of the sorted lines that `sha256sum` prints for them. Required.
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(validation = Rule::new("self.matches('^sha256:[0-9a-f]{64}$')")
        .message("spec.model.verification.digest must be 'sha256:' and 64 lower-case hexadecimal digits; for a single file `sha256sum FILE` prints them"))]
    pub digest: String,
}

/// The process that serves.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RuntimeSpec {
    /// image of the runtime. Absent: the operator's default, recorded in the revision, so that an upgrade of the
    /// operator restarts nothing. An edit rolls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = Rule::new("!self.matches('[\\\\s]')")
        .message("spec.runtime.image must be an image reference without spaces, for example escadre.dev/runtime:0.1.0"))]
    pub image: Option<String>,
    /// maxContext is the longest context in tokens, 1 or more, at most the model's own. Absent: the model's own.
    /// An edit rolls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_context: Option<i32>,
    /// maxConcurrency is how many requests one pod works on at once, 1 or more; others wait. Absent: the runtime
    /// decides. An edit rolls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_concurrency: Option<i32>,
}

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

impl Default for Gpu {
    fn default() -> Self {
        Self {
            count: 0,
            resource_name: nvidia(),
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

fn one() -> i32 {
    1
}

fn nvidia() -> String {
    "nvidia.com/gpu".to_owned()
}

fn http_port() -> i32 {
    80
}

fn drain_timeout() -> i32 {
    120
}
