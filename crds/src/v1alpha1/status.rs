//! Status of an `LlmDeployment`: what the cluster and the running processes say. Never read from users, never
//! edited by them; every field is optional or has a default, so that a partial status is valid.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Strategy;
use super::placement::terse;

/// What the operator saw last.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct LlmDeploymentStatus {
    /// observedGeneration is the `metadata.generation` that this status judges.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// conditions say what is true, with a stable reason and a sentence on what to do: `Accepted`, `ModelResolved`,
    /// `ModelVerified`, `CapacityAvailable`, `Progressing`, `Available`, `Ready`, `Degraded`, `Reconciling`, `Stalled`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "terse::<Vec<Condition>>", extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// replicas counts the pods that are not terminating, of any revision.
    #[serde(default)]
    pub replicas: i32,
    /// readyReplicas counts the pods that serve the digest of their revision, by their own word.
    #[serde(default)]
    pub ready_replicas: i32,
    /// updatedReplicas counts the pods of the target revision.
    #[serde(default)]
    pub updated_replicas: i32,
    /// availableReplicas counts the pods that can take requests now.
    #[serde(default)]
    pub available_replicas: i32,
    /// verifiedReplicas counts the pods whose process found the bytes to be those of the digest, by their own word.
    #[serde(default)]
    pub verified_replicas: i32,
    /// selector is the label selector of the pods, for the scale subresource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// servedDigest is the model digest that most of the running processes serve. Absent: nothing is served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub served_digest: Option<String>,
    /// servedRevision is the revision that most of the running processes serve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub served_revision: Option<String>,
    /// currentRevision is the last revision that reached its size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_revision: Option<String>,
    /// targetRevision is the revision that the spec asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_revision: Option<String>,
    /// failedRevision is the revision that the spec asks for and that failed: it is not tried again until the spec is
    /// edited. Absent: none failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_revision: Option<String>,
    /// rollout tells how a new revision takes the place of another. Absent: none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutStatus>,
    /// revisions are those that run and those that are kept, the last used first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub revisions: Vec<RevisionStatus>,
    /// endpoint is the address of the OpenAI API inside the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// model describes the model, from the process that read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelStatus>,
    /// verification tells how the bytes were judged, from the process that loads them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verification: Option<VerificationStatus>,
    /// download is the progress of the slowest pod that fetches. Absent: nothing is being fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub download: Option<DownloadStatus>,
    /// timings tell how long the steps of the pod took that became ready last. Absent: none is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timings: Option<Timings>,
    /// performance is what a serving process measured when it warmed up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub performance: Option<PerformanceStatus>,
    /// lastFailure is the most recent failure of a container or a pod; it stays after it was healed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<LastFailure>,
    /// display holds values made for the printer columns, which cannot compute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub display: Option<Display>,
}

/// How a new revision takes the place of another.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RolloutStatus {
    /// revision is the one that comes.
    pub revision: String,
    /// from is the revision that served when it began. Absent: none did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// strategyChosen is how pods are replaced now: `Surge`, `InPlace`, `Recreate`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strategy_chosen: Option<Strategy>,
    /// why is the reason for it, and what is waited for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// step is the step of the canary, from 1. Absent: it goes by no steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<i32>,
    /// stepReadyAt is when the pods of the step, or the first new pod, were ready for as long as was asked for: from then
    /// on its pause and its gates count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_ready_at: Option<Time>,
    /// gatesPassed says that the gates of the step have been passed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gates_passed: bool,
    /// startedAt is when the first pod of the new revision was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// lastProgress is when a new pod last came further; written a few times within the deadline at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_progress: Option<Time>,
    /// updatedPercent is the share of the serving pods that are of the new revision, in whole per cent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated_percent: Option<i32>,
    /// draining names the pods that finish their answers before they go.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub draining: Vec<String>,
}

/// One revision that runs or is kept.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RevisionStatus {
    /// name of the revision; pods carry it as the label `escadre.dev/revision`.
    pub name: String,
    /// generation of the object when the spec last asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    /// digest of its model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// replicas counts its pods that are not terminating.
    #[serde(default)]
    pub replicas: i32,
    /// ready counts its pods that serve its digest, by their own word.
    #[serde(default)]
    pub ready: i32,
    /// outcome is what became of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<RevisionOutcome>,
    /// reason is why it failed, for machines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// message is why it failed, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// What became of a revision.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum RevisionOutcome {
    /// It is on its way.
    Progressing,
    /// It reached its size and is what serves.
    Complete,
    /// It served and was replaced.
    Replaced,
    /// It was given up before it was complete, for another.
    Abandoned,
    /// It failed.
    Failed,
}

/// What the model is, read from its own files.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ModelStatus {
    /// resolvedRevision is the immutable revision that was fetched, for example a commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolved_revision: Option<String>,
    /// digest is the model digest of the bytes that were loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// bytes is the size of the model's files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<i64>,
    /// format is the file format: `GGUF` or `Safetensors`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// architecture is the model's family, for example `llama`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// parameters counts the weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<i64>,
    /// quantization is the type of most weights, for example `Q4_1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantization: Option<String>,
    /// contextLength is the longest context in tokens that is served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_length: Option<i64>,
    /// templateDigest is the SHA-256 of the chat template that is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template_digest: Option<String>,
    /// license is the licence that the model's files name, as an SPDX expression. Absent: they name none, or different ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub license: Option<String>,
}

/// How the bytes were judged.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct VerificationStatus {
    /// result is `Verified`, `Refused` or `Pending`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<String>,
    /// method is how: `Digest`, or `Signature` when one was demanded besides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// signer is who signed: a key's fingerprint, a certificate's subject, or an identity and its issuer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signer: Option<String>,
    /// files counts the files that were judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<i64>,
    /// bytes is how much was hashed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<i64>,
    /// durationSeconds is how long it took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_seconds: Option<f64>,
    /// failedFile is the file that was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_file: Option<String>,
}

/// Progress of fetching the model.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct DownloadStatus {
    /// bytesDone is how much has arrived.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_done: Option<i64>,
    /// bytesTotal is how much there is. Absent: the source did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_total: Option<i64>,
    /// bytesPerSecond is the speed of the last seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<i64>,
    /// remainingSeconds is an estimate from the two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remaining_seconds: Option<i64>,
}

/// How long the steps of one pod took, in seconds. Steps that Kubernetes times are whole seconds.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Timings {
    /// scheduled is from the pod's creation until it had a node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduled: Option<f64>,
    /// fetched is how long the model's files took to arrive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetched: Option<f64>,
    /// verified is how long the serving process took to read and hash the files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified: Option<f64>,
    /// loaded is from the start of the serving process until it was ready: verifying, loading and warming up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loaded: Option<f64>,
    /// ready is from the pod's creation until it was ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<f64>,
}

/// Speeds of one stream, measured by the process when it warmed up.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PerformanceStatus {
    /// prefillTokensPerSecond is how many tokens of a prompt are read in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefill_tokens_per_second: Option<f64>,
    /// decodeTokensPerSecond is how many tokens are generated in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decode_tokens_per_second: Option<f64>,
}

/// The most recent failure of a container or a pod.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct LastFailure {
    /// reason is the stable name: the runtime's own, or Kubernetes's (`OOMKilled`, `Error`, `Evicted`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// exitCode is the container's. Absent: the pod failed as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// message is the process's last word, or the end of its log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// pod is the name of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// time is when the container ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<Time>,
}

/// Values made for the printer columns.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Display {
    /// ready is `<serving>/<wanted>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<String>,
    /// digest is the first 12 hexadecimal digits of the served digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}
