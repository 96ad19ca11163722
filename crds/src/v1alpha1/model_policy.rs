//! `ModelPolicy`: what deployments may serve, owned by whoever answers for the cluster. A deployment can be stricter,
//! never weaker.

#![expect(
    unreachable_pub,
    reason = "the derive of the schema makes public copies inside a function"
)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Signatures;
use super::placement::terse;

/// What deployments must keep to. A field that is absent demands nothing.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[cfg_attr(test, kube(cel))]
#[kube(
    group = "escadre.dev",
    version = "v1alpha1",
    kind = "ModelPolicy",
    plural = "modelpolicies",
    derive = "PartialEq",
    doc = "ModelPolicy says which models the deployments of some namespaces may serve. All policies that apply hold together.",
    annotation("helm.sh/resource-policy", "keep"),
    printcolumn(
        name = "Minimum",
        type_ = "string",
        json_path = ".spec.verification.minimumLevel"
    ),
    printcolumn(name = "On violation", type_ = "string", json_path = ".spec.onViolation"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.size() <= 63")
        .message("metadata.name must be at most 63 characters, because conditions and pods name the policy")
)]
#[serde(rename_all = "camelCase")]
pub struct ModelPolicySpec {
    /// namespaceSelector selects the namespaces by their labels; `kubernetes.io/metadata.name` is a namespace's name.
    /// Absent: every namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "terse::<LabelSelector>")]
    pub namespace_selector: Option<LabelSelector>,
    /// verification says how well bytes must be verified. Absent: by their digest, as always.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verification: Option<PolicyVerification>,
    /// signatures says who must have signed a model. Absent: nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signatures: Option<Signatures>,
    /// sources says where models may come from. Absent: from anywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sources: Option<PolicySources>,
    /// formats are those in which weights may be stored. Absent: all that are supported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub formats: Option<Vec<PolicyFormat>>,
    /// licenses says under which licences models may be. Absent: under any, and none need be named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub licenses: Option<PolicyLicenses>,
    /// templates says which chat templates may be used. Absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub templates: Option<PolicyTemplates>,
    /// onViolation is what becomes of a deployment that runs when the policy comes, or changes, and it does not keep to it.
    /// `Refuse`: its pods go on and are healed, but its spec is not followed. `Alert`: it goes on as before, and its condition
    /// `Degraded` tells. `Drain`: its pods finish what they answer, and end. A deployment that is new, or edited, is refused
    /// whatever stands here. What only the pods can see (signatures, licences, templates) is seen by new pods, which a changed
    /// policy makes; those that serve go on until new ones are ready. Defaults to `Refuse`.
    #[serde(default)]
    pub on_violation: OnViolation,
}

/// How well bytes must be verified.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PolicyVerification {
    /// minimumLevel is `Pinned` (the digest stands in the manifest) or `Signed` (a signature covers the files besides: one
    /// that this policy's `signatures` trusts or, where it has none, one that the deployment names). Required.
    pub minimum_level: VerificationLevel,
}

/// How well bytes are verified.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum VerificationLevel {
    /// By their digest.
    Pinned,
    /// By a signature too.
    Signed,
}

/// Where models may come from.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PolicySources {
    /// allow are globs over the whole of `spec.model.source`: `*` stands for any characters but `/`, `**` for any.
    /// Required.
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 512)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub allow: Vec<String>,
}

/// A format of weights.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyFormat {
    /// A folder with `.safetensors` files.
    Safetensors,
    /// A `.gguf` file.
    #[serde(rename = "GGUF")]
    Gguf,
}

/// Under which licences models may be.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.allow) || has(self.deny)").message("must have allow, deny or both"))]
pub struct PolicyLicenses {
    /// allow are SPDX identifiers, or `LicenseRef-` and a name as model hubs give it (`LicenseRef-llama3`). Absent: all that
    /// are not denied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128), inner(length(min = 1, max = 128)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub allow: Option<Vec<String>>,
    /// deny are those that may not be used, written the same way. Absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128), inner(length(min = 1, max = 128)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub deny: Option<Vec<String>>,
}

/// Which chat templates may be used.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PolicyTemplates {
    /// approvedDigests are SHA-256 digests of templates; `status.model.templateDigest` shows that of a deployment. Required.
    #[schemars(
        length(min = 1, max = 128),
        inner(length(min = 71, max = 71), pattern("^sha256:[0-9a-f]{64}$"))
    )]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub approved_digests: Vec<String>,
}

/// What becomes of a deployment that runs and does not keep to a policy.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum OnViolation {
    /// It goes on, and its conditions tell.
    Alert,
    /// Its pods go on; none is made anew.
    #[default]
    Refuse,
    /// Its pods are drained.
    Drain,
}
