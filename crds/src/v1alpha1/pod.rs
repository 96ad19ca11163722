//! `spec.network` and the fields that reach the pods as they are: labels, annotations, account, overrides.

#![expect(
    unreachable_pub,
    reason = "the derive of the schema makes public copies inside a function"
)]

use kube::KubeSchema;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// How the container that fetches reaches the source.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.noProxy) || has(self.httpsProxy)")
        .message("spec.network.noProxy works with spec.network.httpsProxy only; remove it, or name the proxy")
        .field_path(".noProxy")
)]
pub struct Network {
    /// httpsProxy is the address of the proxy for `https://` sources, `http://` or `https://`. Absent: no proxy.
    /// An edit rolls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = Rule::new("self.matches('^https?://[A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]{1,5})?/?$')")
        .message("spec.network.httpsProxy must be an address like http://proxy.example.com:3128, without user name and path"))]
    pub https_proxy: Option<String>,
    /// noProxy lists hosts, domains and address ranges that are reached without the proxy, separated by commas.
    /// Absent: none. An edit rolls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9.*:/_-]+(,[A-Za-z0-9.*:/_-]+)*$')")
        .message("spec.network.noProxy must be hosts, domains or address ranges separated by commas, without spaces, for example .svc,10.0.0.0/8"))]
    pub no_proxy: Option<String>,
    /// caBundleRef names a ConfigMap with certificates (PEM) that the source's or the proxy's certificate may come from,
    /// beside the usual ones. An edit of the reference rolls; one of the ConfigMap reaches pods that start after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_bundle_ref: Option<CaBundleRef>,
}

/// Certificates in a ConfigMap.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CaBundleRef {
    /// name of the ConfigMap. Required.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')")
        .message("spec.network.caBundleRef.name must be the name of a ConfigMap in the same namespace: a-z, 0-9, '-' and '.' only; see `kubectl get configmaps`"))]
    pub name: String,
    /// key in the ConfigMap's `data`. Defaults to `ca.crt`.
    #[serde(default = "ca_crt")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[-._a-zA-Z0-9]+$')")
        .message("spec.network.caBundleRef.key must be a key of a ConfigMap: letters, digits and - _ . only"))]
    pub key: String,
}

fn ca_crt() -> String {
    "ca.crt".to_owned()
}

/// Any object: a patch has the shape of a pod, and embedding that would take the CRD far over its size.
pub(super) fn any_object(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}
