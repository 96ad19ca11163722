//! `spec.model`: which weights are served, where they come from, and how they are recognised.

#![expect(
    unreachable_pub,
    reason = "the derive of the schema makes public copies inside a function"
)]

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Signatures;
use super::placement::terse;

/// Which weights are served and how they are recognised.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.endpoint) || self.source.startsWith('hf://') || self.source.startsWith('s3://')")
        .message("spec.model.endpoint works with an hf:// or s3:// source only; remove it, or put the whole address into spec.model.source")
        .field_path(".endpoint"),
    validation = Rule::new("!has(self.revision) || self.source.startsWith('hf://')")
        .message("spec.model.revision works with an hf:// source only; remove it: an oci:// source has its tag or digest in the address, and the digest pins the bytes of any source")
        .field_path(".revision"),
    validation = Rule::new("!has(self.files) || !self.source.startsWith('https://')")
        .message("spec.model.files does not work with an https:// source; remove it: an https:// address names one file")
        .field_path(".files"),
    validation = Rule::new("self.format != 'Safetensors' || !self.source.startsWith('https://')")
        .message("spec.model.format Safetensors does not work with an https:// source, because safetensors come with config.json and a tokenizer and an https:// address names one file; remove it, or name a repository, an artifact or a prefix")
        .field_path(".format")
)]
pub struct ModelSpec {
    /// source is the address of the model: `hf://<owner>/<name>`, a repository of the Hugging Face hub;
    /// `oci://<registry>/<repository>@sha256:<digest>` or `:<tag>`, an artifact of a registry; `s3://<bucket>/<prefix>`, the
    /// objects below a prefix, or one object; `https://<host>/<path>`, one file. Required. An edit rolls.
    #[schemars(length(min = 1, max = 1024))]
    #[x_kube(
        validation = Rule::new("self.startsWith('hf://') || self.startsWith('oci://') || self.startsWith('s3://') || self.startsWith('https://')")
            .message("spec.model.source must be hf://<owner>/<name>, oci://<registry>/<repository>@sha256:<digest>, s3://<bucket>/<prefix> or https://<host>/<path to a file>; other sources are not supported in this version"),
        validation = Rule::new("!self.startsWith('hf://') || self.matches('^hf://[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$')")
            .message("spec.model.source must look like hf://<owner>/<name>, for example hf://HuggingFaceTB/SmolLM2-135M-Instruct-GGUF; a revision goes into spec.model.revision, file names into spec.model.files"),
        validation = Rule::new("!self.startsWith('oci://') || self.matches('^oci://[A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]{1,5})?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?(@sha256:[0-9a-f]{64})?$') && self.matches('/[^/]+[:@][^/]+$')")
            .message("spec.model.source must look like oci://<registry>/<repository>@sha256:<digest> or oci://<registry>/<repository>:<tag>, for example oci://ghcr.io/team/model:v1: a repository in lower case, without user name, and a tag or a digest"),
        validation = Rule::new("!self.startsWith('s3://') || (self.matches('^s3://[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9](/[^\\\\s/,#?]+)*/?$') && self.split('/').all(part, part != '.' && part != '..'))")
            .message("spec.model.source must look like s3://<bucket>/<prefix>, for example s3://models/smollm2/v1: without user name, '..', empty parts, comma, '#', '?' or spaces"),
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
    /// endpoint is the address of a mirror of the hub (`hf://`) or of storage that speaks S3 (`s3://`), whose region is read
    /// from a name like `s3.eu-central-1.example.com`, else asked of the bucket. Absent: the public hub, or AWS. Waits for the
    /// next revision, or for one that has never served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = Rule::new("self.matches('^https?://[A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]*)?$')")
        .message("spec.model.endpoint must be an address like https://mirror.example.com or http://mirror.models.svc:8000, without user name, query or fragment"))]
    pub endpoint: Option<String>,
    /// files are the globs of the files that belong to the model, relative to the repository, artifact or prefix. Absent: the weights
    /// (`*.gguf`, `*.safetensors`), tokenizer, configuration, chat template and licence files at its top. An edit rolls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 256)))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = Rule::new("self.all(glob, !glob.startsWith('/') && !glob.contains('\\\\') && !('..' in glob.split('/')) && !glob.matches('[\\\\s]'))")
            .message("spec.model.files must be globs relative to the repository, for example '*.gguf': no leading '/', no '..', no backslash, no spaces")
    )]
    pub files: Option<Vec<String>>,
    /// format is how the weights are stored: `Auto`, `Safetensors` or `GGUF`. Defaults to `Auto`. With a format, only
    /// its files are fetched where `files` is absent, and a model in another format is refused. An edit rolls.
    #[serde(default)]
    pub format: ModelFormat,
    /// secretRef names a Secret with credentials: key `token` (`hf://`, `https://`), keys `username` and `password`
    /// (`https://`, `oci://`), type `kubernetes.io/dockerconfigjson` (`oci://`), keys `accessKeyId`, `secretAccessKey` and, where
    /// they expire, `sessionToken` (`s3://`). Only the container that fetches gets it. While it is missing pods wait
    /// (`SecretMissing`). Absent: none. Waits for the next revision, or for one that has never served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,
    /// servedName is the model's name in the OpenAI API. Absent: the object's name. An edit rolls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9]([A-Za-z0-9._:/-]*[A-Za-z0-9])?$')")
        .message("spec.model.servedName must be letters, digits and . _ : / - only, for example qwen2.5-7b, and begin and end with a letter or digit"))]
    pub served_name: Option<String>,
    /// license is the model's licence, an SPDX expression or `LicenseRef-` and a name. Policies judge it before there are pods;
    /// a model that names another one is refused. Absent: what the model's files say. An edit rolls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub license: Option<String>,
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
    /// signatures says who must have signed the model besides, with the fields of the `signatures` of a `ModelPolicy`. The
    /// bundle must be among the files that are fetched. Absent: nobody. An edit rolls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "terse::<Option<Signatures>>")]
    pub signatures: Option<Signatures>,
}

/// How the weights are stored.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ModelFormat {
    /// Whatever the source has.
    #[default]
    Auto,
    /// A folder with `config.json`, a tokenizer and `.safetensors` files.
    Safetensors,
    /// One `.gguf` file.
    #[serde(rename = "GGUF")]
    Gguf,
}

/// A Secret of the object's namespace.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// name of the Secret. Required.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')")
        .message("must be the name of a Secret in the same namespace: a-z, 0-9, '-' and '.' only; see `kubectl get secrets`"))]
    pub name: String,
}
