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
    /// source is the address of the model: `hf://<owner>/<name>` for a repository on the Hugging Face hub (or a mirror
    /// of it, see `endpoint`), `oci://<registry>/<repository>@sha256:<digest>` or `oci://<registry>/<repository>:<tag>`
    /// for an artifact in a registry, `s3://<bucket>/<prefix>` for the objects below a prefix, or for one object, on AWS
    /// (or elsewhere, see `endpoint`), `https://<host>/<path>` for one file. Required. An edit rolls.
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
    /// endpoint is the address of a mirror of the Hugging Face hub for an `hf://` source, or of object storage that
    /// speaks S3 for an `s3://` source, `http://` or `https://`. Absent: the public hub, or AWS. Its region is read from
    /// a name like `s3.eu-central-1.example.com`, else asked of the bucket. Waits for the next revision, or for a revision that has never served.
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
    /// secretRef names a Secret of the same namespace with credentials for the source: key `token` for `hf://` and
    /// `https://`, or keys `username` and `password` for `https://`; a Secret of the type
    /// `kubernetes.io/dockerconfigjson`, or keys `username` and `password`, for `oci://`; keys `accessKeyId` and
    /// `secretAccessKey`, and `sessionToken` where they expire, for `s3://`. Only the container that fetches gets it. It may be
    /// missing at first: pods wait with the reason `SecretMissing` and go on when it appears. Absent: no credentials.
    /// Waits for the next revision, or for a revision that has never served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,
    /// servedName is the model's name in the OpenAI API. Absent: the object's name. An edit rolls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9]([A-Za-z0-9._:/-]*[A-Za-z0-9])?$')")
        .message("spec.model.servedName must be letters, digits and . _ : / - only, for example qwen2.5-7b, and begin and end with a letter or digit"))]
    pub served_name: Option<String>,
    /// license is the licence of the model, as an SPDX expression or `LicenseRef-` and a name (`LicenseRef-llama3`). A policy
    /// judges it before any pod is made; pods refuse a model that says that it is under another. Absent: what the model's
    /// files say. An edit rolls.
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
    /// signatures says who must have signed the model besides (OpenSSF Model Signing 1.0). The bundle must be among the
    /// files that are fetched, and covers every other one. What a `ModelPolicy` demands is demanded all the same; its
    /// `signatures` have the same fields and describe them. Absent: nobody. An edit rolls.
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
