//! Revisions: what the user wants of each pod, the name derived from it, and the record that is kept of the pod
//! template that was built for it. Pure.
//!
//! The name covers the user's intent only, never a default of the operator: an upgrade of the operator restarts no
//! model. The record is what pods are made from, so that healing a stable pod never needs the current spec.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use escadre_crds::names;
use escadre_crds::v1alpha1::{LlmDeploymentStatus, ModelFormat, Network, Placement, Resources, RuntimeSpec, Tracing};
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use kube::ResourceExt as _;
use kube::core::PartialObjectMeta;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::kube_ext::orphans::Identity;
use crate::policy::Requirement;

/// What the user wants of each pod. A field added later must be left out of the JSON when it is not used, so that
/// old revisions keep their names.
#[derive(Serialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Intent {
    /// Address of the model.
    pub source: String,
    /// Branch, tag or commit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Globs, sorted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files: Option<Vec<String>>,
    /// Name in the API.
    pub served_name: String,
    /// What the bytes must be.
    pub digest: String,
    /// The process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<RuntimeSpec>,
    /// Resources.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Placement.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
    /// How the weights must be stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<ModelFormat>,
    /// SHA-256 of each overlay file, by path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overlay: Option<BTreeMap<String, String>>,
    /// The pods' account.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_account_name: Option<String>,
    /// Further labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_labels: Option<BTreeMap<String, String>>,
    /// Further annotations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_annotations: Option<BTreeMap<String, String>>,
    /// How the source is reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// The patch over the pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_overrides: Option<Value>,
    /// Who may ask.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access: Option<AccessIntent>,
    /// Another text, other pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restart_token: Option<String>,
    /// What the pods must check of the model beside its digest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requirements: Option<Vec<Requirement>>,
}

/// Who may ask, without what works live: the contents of Secrets, and how high limits are.
#[derive(Serialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct AccessIntent {
    /// The Secret with the keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keys: Option<String>,
    /// `false`: callers without a key are let in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub required: Option<bool>,
    /// There are limits.
    pub has_limits: bool,
    /// The Secret with the certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<String>,
}

/// Settings that wait for the next revision: an edit reaches running pods never, and a revision that has never
/// served at once (a wrong mirror must be repairable).
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Settings {
    /// Mirror.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Name of the Secret with credentials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// Seconds that open answers may go on.
    pub drain_seconds: u32,
    /// Where spans go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracing: Option<Tracing>,
}

/// The name of a revision: 8 characters of a-z and 0-9.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(String);

impl Revision {
    /// The revision of that name.
    pub fn named(name: String) -> Self {
        Self(name)
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// No vowels and no digits that look like them: a name never spells a word.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
/// The length of a name: 27^8 is 38 bits, enough for the few revisions of one object.
const LENGTH: usize = 8;

impl Intent {
    /// The name of the revision that this intent makes: equal intents, equal names, in every version of the operator.
    pub fn revision_name(&self) -> Revision {
        let hash = hash(&json(self));
        let name = hash
            .iter()
            .take(LENGTH)
            .map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()]));
        Revision(name.collect())
    }
}

/// JSON with sorted keys, whatever order the map type keeps.
fn canonical(value: &Value, text: &mut String) {
    match value {
        Value::Object(fields) => {
            let mut keys: Vec<&String> = fields.keys().collect();
            keys.sort();
            text.push('{');
            for key in keys {
                text.push_str(&Value::from(key.as_str()).to_string());
                text.push(':');
                canonical(&fields[key], text);
                text.push(',');
            }
            text.push('}');
        }
        Value::Array(items) => {
            text.push('[');
            for item in items {
                canonical(item, text);
                text.push(',');
            }
            text.push(']');
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => text.push_str(&value.to_string()),
    }
}

/// Our own types as JSON: they are made of strings, numbers, lists and maps with string keys.
pub(super) fn json(value: &impl Serialize) -> Value {
    serde_json::to_value(value).expect("our types can always be written as JSON")
}

fn hash(value: &Value) -> Vec<u8> {
    let mut text = String::new();
    canonical(value, &mut text);
    Sha256::digest(text.as_bytes()).to_vec()
}

/// The SHA-256 of some bytes in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    use fmt::Write as _;
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A short digest of any value, for annotations: 64 bits in hexadecimal.
pub fn fingerprint(value: &Value) -> String {
    let first = hash(value)
        .into_iter()
        .take(8)
        .fold(0, |number: u64, byte| number << 8 | u64::from(byte));
    format!("{first:016x}")
}

/// What is kept of a revision, in the `data` of a `ControllerRevision`.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// What pods are made from.
    pub template: PodTemplateSpec,
    /// The settings that went into it.
    pub settings: Settings,
    /// The texts of the overlay files, by path.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, String>,
}

impl Record {
    /// Reads a record. `None`: somebody else wrote it.
    pub fn of(revision: &ControllerRevision) -> Option<Self> {
        let data = revision.data.as_ref()?;
        serde_json::from_value(data.0.clone()).ok()
    }
}

impl Settings {
    /// A short digest, kept beside the record.
    pub fn fingerprint(&self) -> String {
        fingerprint(&json(self))
    }
}

/// A revision as its record's metadata tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Which record it is.
    pub identity: Identity,
    /// Its number: the later it was made, the higher.
    pub number: i64,
    /// The image of its pods.
    pub image: Option<String>,
    /// What its pods must serve.
    pub digest: Option<String>,
    /// The digest of the settings that went into it.
    pub settings: Option<String>,
}

/// What is recorded of a deployment's revisions, by their names.
pub fn recorded(
    records: &[Arc<PartialObjectMeta<ControllerRevision>>],
    deployment: &str,
) -> BTreeMap<String, Recorded> {
    let recorded = records.iter().filter_map(|record| {
        let name = record.name_any();
        let revision = name.strip_prefix(deployment)?.strip_prefix('-')?.to_owned();
        let note = |key: &str| record.annotations().get(key).cloned();
        let recorded = Recorded {
            number: note(names::ANNOTATION_NUMBER)
                .and_then(|number| number.parse().ok())
                .unwrap_or(0),
            image: note(names::ANNOTATION_IMAGE),
            digest: note(names::ANNOTATION_DIGEST),
            settings: note(names::ANNOTATION_SETTINGS),
            identity: Identity {
                uid: record.uid().unwrap_or_default(),
                name,
            },
        };
        Some((revision, recorded))
    });
    recorded.collect()
}

/// Records that nothing needs any more: beside those in `kept`, the last `limit` that were in use stay.
pub fn unused(
    recorded: &BTreeMap<String, Recorded>,
    before: &LlmDeploymentStatus,
    kept: &BTreeSet<&str>,
    limit: usize,
) -> Vec<Identity> {
    let used = |revision: &str| before.revisions.iter().position(|one| one.name == revision);
    let others = recorded
        .iter()
        .filter(|(revision, _)| !kept.contains(revision.as_str()));
    let mut others: Vec<_> = others.collect();
    others.sort_by_key(|(revision, one)| (used(revision).unwrap_or(usize::MAX), Reverse(one.number)));
    others
        .into_iter()
        .skip(limit)
        .map(|(_, one)| one.identity.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn intent() -> Intent {
        Intent {
            source: "hf://owner/name".to_owned(),
            served_name: "served".to_owned(),
            digest: format!("sha256:{}", "a".repeat(64)),
            ..Intent::default()
        }
    }

    /// A changed name would restart every pod of every user at an upgrade.
    #[test]
    fn revision_name_never_changes_between_versions() {
        assert_eq!(intent().revision_name().as_str(), "k4m4wml5");
    }

    #[test]
    fn every_part_of_the_intent_makes_another_revision() {
        let base = intent().revision_name();
        let digest = Intent {
            digest: format!("sha256:{}", "b".repeat(64)),
            ..intent()
        };
        let name = Intent {
            served_name: "other".to_owned(),
            ..intent()
        };
        let context = Intent {
            runtime: Some(RuntimeSpec {
                max_context: Some(7),
                ..RuntimeSpec::default()
            }),
            ..intent()
        };
        let overlay = Intent {
            overlay: Some(BTreeMap::from([("chat_template.jinja".to_owned(), "00".to_owned())])),
            ..intent()
        };
        let format = Intent {
            format: Some(ModelFormat::Gguf),
            ..intent()
        };
        for other in [digest, name, context, overlay, format] {
            assert_ne!(other.revision_name(), base);
        }
    }

    /// A record that an older version wrote must not count as edited: its pods would be made again.
    #[test]
    fn record_of_an_older_version_has_the_same_settings() {
        let old = serde_json::json!({"template": {}, "settings": {"drainSeconds": 120}});
        let record: Record = serde_json::from_value(old.clone()).unwrap();
        let settings = Settings {
            endpoint: None,
            secret: None,
            drain_seconds: 120,
            tracing: None,
        };
        assert_eq!(record.settings, settings);
        assert!(record.files.is_empty());
        assert_eq!(json(&settings), old["settings"]);
    }

    #[test]
    fn revision_name_is_eight_plain_characters() {
        let name = intent().revision_name();
        assert_eq!(name.as_str().len(), LENGTH);
        assert!(
            name.as_str()
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        );
    }
}
