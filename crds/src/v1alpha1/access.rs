//! `spec.access`: who may ask, how much, and whether the way to the pods is encrypted.

#![expect(
    unreachable_pub,
    reason = "the derive of the schema makes public copies inside a function"
)]

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::SecretRef;

/// Who may ask, how much, and whether the way to the pods is encrypted.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.required) || has(self.apiKeysSecretRef)")
        .message("spec.access.required has no effect without spec.access.apiKeysSecretRef; name the Secret with the keys, or remove it")
        .field_path(".required"),
    validation = Rule::new("has(self.apiKeysSecretRef) || has(self.limits) || has(self.tls)")
        .message("spec.access must have at least one of apiKeysSecretRef, limits and tls; remove it if everybody in the cluster may ask as much as they like")
)]
pub struct Access {
    /// apiKeysSecretRef names a Secret with the API keys: each entry is one client, its key the client's name, its value the
    /// API key or `sha256:` and its SHA-256 in hex. Edits of the Secret reach running pods within about a minute; another name
    /// rolls. Without a usable key pods do not start. Absent: no key is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_keys_secret_ref: Option<SecretRef>,
    /// required says whether callers without a key are refused. Absent: they are. With `false` they are one client, with a
    /// limit of its own; a wrong key is always refused. An edit rolls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub required: Option<bool>,
    /// limits of each client, in each pod. Absent: none. The first use rolls, and so does removing them; other edits work live.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<AccessLimits>,
    /// tls serves the API over TLS. Absent: unencrypted inside the cluster. The first use rolls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<AccessTls>,
}

/// What each client may use in each pod.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.requestsPerMinute) || has(self.tokensPerMinute)")
    .message("spec.access.limits must have requestsPerMinute, tokensPerMinute or both"))]
pub struct AccessLimits {
    /// requestsPerMinute is how many requests a client may make in a minute, 1 to 2147483647. Absent: as many as it likes. Works
    /// live.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub requests_per_minute: Option<i32>,
    /// tokensPerMinute is how many tokens of prompts and answers a client may use in a minute, 1 to 2147483647. Absent: as many
    /// as it likes. Works live.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub tokens_per_minute: Option<i32>,
}

/// Encryption of the API.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AccessTls {
    /// secretRef names a Secret of the type `kubernetes.io/tls` in the same namespace. A renewed certificate is used for new
    /// connections within about a minute; another name rolls. Required.
    pub secret_ref: SecretRef,
}
