//! `spec.runtime` and `spec.files`: the process that serves, and what is laid over the model's folder.

#![expect(
    unreachable_pub,
    reason = "the derive of the schema makes public copies inside a function"
)]

use k8s_openapi::api::core::v1::EnvVarSource;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::placement::terse;

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
    /// imagePullPolicy says when nodes pull the image: `Always`, `IfNotPresent` or `Never`. Absent: the operator's
    /// default, recorded in the revision. An edit rolls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<ImagePullPolicy>,
    /// imagePullSecrets name Secrets of the same namespace, of type `kubernetes.io/dockerconfigjson`, for the image's
    /// registry. Absent: none. An edit rolls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".to_owned()]))]
    pub image_pull_secrets: Option<Vec<ImagePullSecret>>,
    /// args are further arguments of the runtime, for example `--threads=4`; `escadre-runtime serve --help` lists them.
    /// Those that the operator sets itself are refused. Absent: none. An edit rolls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 1024)))]
    #[x_kube(
        merge_strategy = ListMerge::Atomic,
        validation = Rule::new("!self.exists(one, one.matches('^--(store|model|digest|overlay|format)(=|$)'))")
            .message("spec.runtime.args must not set --store, --model, --digest, --overlay or --format: they decide which bytes are served; use spec.model and spec.files"),
        validation = Rule::new("!self.exists(one, one.matches('^--(api-keys|require-key|limits|requests-per-minute|tokens-per-minute|tls)(=|$)'))")
            .message("spec.runtime.args must not say who may ask (--api-keys, --require-key, --limits, --requests-per-minute, --tokens-per-minute, --tls); use spec.access"),
        validation = Rule::new("!self.exists(one, one.matches('^--(otlp-endpoint|otlp-traces-endpoint|trace-sampling)(=|$)'))")
            .message("spec.runtime.args must not say where spans go (--otlp-endpoint, --otlp-traces-endpoint, --trace-sampling); use spec.observability.tracing"),
        validation = Rule::new("!self.exists(one, one.matches('^--(served-name|max-context|max-concurrency|endpoint-delay|drain-timeout)(=|$)'))")
            .message("spec.runtime.args must not set what has a field of its own: use spec.model.servedName, spec.runtime.maxContext, spec.runtime.maxConcurrency and spec.drain.timeoutSeconds"),
        validation = Rule::new("!self.exists(one, one.matches('^--(host|port|admin-port|pod-uid|pod-name|pod-revision|termination-log)(=|$)'))")
            .message("spec.runtime.args must not set addresses, ports or the pod's identity (--host, --port, --admin-port, --pod-*, --termination-log): the operator needs them as they are; remove them"),
        validation = Rule::new("!self.exists(one, one.matches('^(--|-h|--help|-V|--version)$'))")
            .message("spec.runtime.args must be options of `escadre-runtime serve`; remove --help, --version and --, with which the process would end or misread the rest")
    )]
    pub args: Option<Vec<String>>,
    /// env are further environment variables of the container that serves: a `value`, or `valueFrom` as in a pod.
    /// Absent: none. An edit rolls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".to_owned()]))]
    pub env: Option<Vec<EnvVar>>,
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

/// When nodes pull an image.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImagePullPolicy {
    /// At every start of a container.
    Always,
    /// When the node does not have it.
    IfNotPresent,
    /// Never: the node must have it.
    Never,
}

impl ImagePullPolicy {
    /// The word in a pod.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

/// A Secret for a registry.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ImagePullSecret {
    /// name of the Secret. Required.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')")
        .message("spec.runtime.imagePullSecrets[].name must be the name of a Secret in the same namespace: a-z, 0-9, '-' and '.' only; see `kubectl get secrets`"))]
    pub name: String,
}

/// One environment variable.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.value) || !self.name.matches('(?i)(TOKEN|SECRET|PASSWORD|KEY)$')")
        .message("spec.runtime.env[].value must not hold a secret: a name that ends in TOKEN, SECRET, PASSWORD or KEY takes its value from a Secret; use valueFrom.secretKeyRef"),
    validation = Rule::new("!(has(self.value) && has(self.valueFrom))")
        .message("spec.runtime.env[] must have value or valueFrom, not both; remove one")
)]
pub struct EnvVar {
    /// name of the variable. Required. Names that begin with `ESCADRE_` or `LD_` are refused.
    #[schemars(length(min = 1, max = 256))]
    #[x_kube(
        validation = Rule::new("self.matches('^[A-Za-z_][A-Za-z0-9_.-]*$')")
            .message("spec.runtime.env[].name must be a name of a variable: letters, digits and _ . - only, not beginning with a digit"),
        validation = Rule::new("!self.startsWith('ESCADRE_')")
            .message("spec.runtime.env[].name must not begin with ESCADRE_: those variables are the operator's own; use the fields of spec.model and spec.runtime"),
        validation = Rule::new("!self.startsWith('LD_') && self != 'GLIBC_TUNABLES'")
            .message("spec.runtime.env[].name must not be a variable of the program loader (LD_*, GLIBC_TUNABLES): it would change the program that verifies the model; put libraries into an image of your own and name it in spec.runtime.image")
    )]
    pub name: String,
    /// value is the text. Absent, without `valueFrom`: empty. Not for secrets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32768))]
    pub value: Option<String>,
    /// valueFrom takes the value from a Secret, a ConfigMap or a field of the pod, as in a pod. Absent: `value`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "terse::<EnvVarSource>")]
    pub value_from: Option<EnvVarSource>,
}

/// A file that is laid over the model's folder.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.inline) != has(self.configMapRef)")
        .message("spec.files[] must have either inline or configMapRef; set exactly one of them")
)]
pub struct OverlayFile {
    /// path of the file in the model's folder: `chat_template.jinja`, `generation_config.json` or
    /// `tokenizer_config.json`. Required.
    #[schemars(length(min = 1, max = 256))]
    #[x_kube(
        validation = Rule::new("!self.startsWith('/') && !('..' in self.split('/'))")
            .message("spec.files[].path must be relative to the model's folder, without a leading '/' and without '..'; for example chat_template.jinja"),
        validation = Rule::new("self.startsWith('/') || self.contains('..') || self in ['chat_template.jinja', 'generation_config.json', 'tokenizer_config.json']")
            .message("spec.files[].path must be chat_template.jinja, generation_config.json or tokenizer_config.json: weights, config.json and the vocabulary belong to the digest and cannot be replaced; publish another model for that")
    )]
    pub path: String,
    /// inline is the file's text. Absent: `configMapRef`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 131_072))]
    pub inline: Option<String>,
    /// configMapRef takes the text from a ConfigMap of the same namespace; an edit of it rolls, too. Absent: `inline`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map_ref: Option<FileSource>,
}

/// A key of a ConfigMap.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct FileSource {
    /// name of the ConfigMap. Required.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')")
        .message("spec.files[].configMapRef.name must be the name of a ConfigMap in the same namespace: a-z, 0-9, '-' and '.' only; see `kubectl get configmaps`"))]
    pub name: String,
    /// key in the ConfigMap's `data`. Required.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[-._a-zA-Z0-9]+$')")
        .message("spec.files[].configMapRef.key must be a key of a ConfigMap: letters, digits and - _ . only"))]
    pub key: String,
}
