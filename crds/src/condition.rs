//! Conditions: typed types and reasons, the table which condition carries which reason, and the one function that
//! sets a condition. Pure.
//!
//! `Ready` takes the reason of the first condition that is `False` among [`READY_ORDER`]; when none is, of the first
//! that is `Unknown` (not judged yet: a pod that no node has room for says nothing about the model's source).

use std::str::FromStr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use strum::{Display, EnumIter, EnumString, IntoStaticStr};

/// The conditions of an `LlmDeployment`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Display, EnumIter, EnumString, IntoStaticStr)]
pub enum ConditionType {
    /// The spec makes sense and nothing that it names is missing.
    Accepted,
    /// The source answers and the files are here.
    ModelResolved,
    /// The bytes are those of the digest, and safe to parse.
    ModelVerified,
    /// Every pod has its place on a node.
    CapacityAvailable,
    /// Work goes on, or is complete. `False`: it stopped.
    Progressing,
    /// At least one pod serves.
    Available,
    /// What the spec asks for is what every counted pod serves.
    Ready,
    /// It serves, but with less than was asked for.
    Degraded,
    /// For `kstatus`: not settled yet.
    Reconciling,
    /// For `kstatus`: it cannot go on without a person.
    Stalled,
}

/// The order in which `Ready` looks for its reason.
pub const READY_ORDER: [ConditionType; 6] = [
    ConditionType::Accepted,
    ConditionType::ModelResolved,
    ConditionType::ModelVerified,
    ConditionType::CapacityAvailable,
    ConditionType::Available,
    ConditionType::Progressing,
];

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Display, EnumString, IntoStaticStr)]
pub enum ConditionStatus {
    /// It holds.
    True,
    /// It does not.
    False,
    /// It could not be judged yet.
    Unknown,
}

/// Why a condition is as it is: a closed set, stable, for machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Display, EnumIter, EnumString, IntoStaticStr)]
pub enum Reason {
    /// The spec is valid.
    Valid,
    /// The spec cannot work; the message names the field.
    InvalidSpec,
    /// Something that the spec names is not there yet; the message says what.
    DependencyMissing,
    /// A `ModelPolicy` does not allow what the spec asks for; the message names the policy and its field.
    PolicyViolation,
    /// The model's files are here.
    Resolved,
    /// The model's files are being fetched.
    Downloading,
    /// The source cannot be reached or does not have the model.
    SourceUnavailable,
    /// Credentials that the source needs are missing.
    SecretMissing,
    /// The bytes are right.
    Verified,
    /// The bytes are being hashed, or the model is being read.
    Verifying,
    /// The bytes were refused; `ModelVerified` carries the specific reason.
    VerifyFailed,
    /// Every pod has a node.
    Scheduled,
    /// No node has room; the message has the scheduler's words.
    Unschedulable,
    /// Nothing to judge yet.
    Pending,
    /// Pods exist, their containers do not run yet.
    Starting,
    /// The model is being loaded into memory.
    Loading,
    /// Pods are made again, since settings of a revision that never served were edited.
    Recreating,
    /// A new revision takes the place of another.
    RollingOut,
    /// A rollout cannot go on: no node has room, and nothing more may be stopped for it.
    Blocked,
    /// `spec.rollout.paused` is true.
    Paused,
    /// New pods answered worse than `spec.rollout.gates` allows.
    GateFailed,
    /// A new pod gave another answer to the probe prompt.
    ProbeFailed,
    /// A new revision stood still for longer than `spec.rollout.progressDeadline`.
    ProgressDeadlineExceeded,
    /// The new revision failed, and the one before serves in its place.
    RolledBack,
    /// The new revision failed, and `spec.rollout.autoRollback` is false.
    RolloutStopped,
    /// The number of pods is being changed.
    Scaling,
    /// Everything that was asked for is done.
    Complete,
    /// Pods serve.
    Serving,
    /// An image cannot be had, or a container cannot be created from it.
    ImagePull,
    /// A container ends again and again; the message has its last words.
    CrashLoop,
    /// The memory limit is too small for the model.
    OutOfMemoryHost,
    /// The accelerator's memory is too small for the model.
    OutOfMemoryGpu,
    /// The accelerator that was asked for is not there.
    AcceleratorMissing,
    /// The context that was asked for is longer than the model's.
    ContextTooLong,
    /// The runtime does not know the model's architecture.
    ArchitectureUnsupported,
    /// The API server refused a pod: quota, limits, Pod Security, priority.
    PodRefused,
    /// The pod is ready, but its runtime does not answer the operator.
    RuntimeUnreachable,
    /// The pod's node does not answer.
    NodeLost,
    /// A pod failed as a whole, for example by eviction.
    PodFailed,
    /// A pod of somebody else carries the labels by which the Service selects.
    ForeignPod,
    /// `spec.replicas` is 0.
    ScaledToZero,
    /// `spec.suspend` is true.
    Suspended,
    /// A call to the API server failed; it is tried again.
    ApplyFailed,
}

/// Why bytes were refused, as the runtime names it. `ModelVerified` carries these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Display, EnumIter, EnumString, IntoStaticStr)]
#[expect(missing_docs, reason = "the names are those of the verifier and say what they mean")]
pub enum VerifyReason {
    DigestMismatch,
    SizeMismatch,
    FileMissing,
    UnsignedFile,
    FileNotInManifest,
    SignatureInvalid,
    SignatureCount,
    KeyNotTrusted,
    PayloadType,
    PredicateType,
    LegacyBundle,
    BundleVersion,
    BundleAmbiguous,
    MethodNotAllowed,
    IdentityMismatch,
    TransparencyProof,
    CertificateInvalid,
    PathInvalid,
    ManifestEmpty,
    WeightsNotSigned,
    IgnorePathInvalid,
    DuplicateResource,
    DuplicateKey,
    HashNotAllowed,
    DigestFormat,
    RootDigest,
    SubjectCount,
    ShardLayout,
    ManifestSchema,
    BundleParse,
    BundleTooLarge,
    SymlinkRefused,
    NotARegularFile,
    ChangedAfterVerify,
    StorageFault,
    CacheNotTrusted,
    SafetensorsInvalid,
    IndexInvalid,
    GgufInvalid,
    FormatRefused,
    CodeRefused,
    ConfigInvalid,
    WeightsMismatch,
    WeightsNotFinite,
    TokenizerInvalid,
    TemplateRefused,
    TemplateLimit,
    TemplateNotApproved,
    TemplateAmbiguous,
    RevisionNotPinned,
    ReferenceNotPinned,
    DownloadIncomplete,
    RedirectRefused,
    SizeLimit,
    LfsPointer,
    CacheFull,
    PolicyWeakening,
    LicenseUnknown,
    LicenseConflict,
    LicenseNotAllowed,
}

/// The reason of one condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AnyReason {
    /// One of the general ones.
    Common(Reason),
    /// One that only `ModelVerified` carries.
    Verify(VerifyReason),
}

impl AnyReason {
    /// The word in the condition.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Common(reason) => reason.into(),
            Self::Verify(reason) => reason.into(),
        }
    }
}

impl From<Reason> for AnyReason {
    fn from(reason: Reason) -> Self {
        Self::Common(reason)
    }
}

impl From<VerifyReason> for AnyReason {
    fn from(reason: VerifyReason) -> Self {
        Self::Verify(reason)
    }
}

/// A problem that a runtime reported by name: which condition it makes `False`, and with which reason.
/// A name that is not known makes `Available` false as a crash loop; the message still has the runtime's words.
pub fn classify_runtime_reason(name: &str) -> (ConditionType, AnyReason) {
    if let Ok(reason) = VerifyReason::from_str(name) {
        return (ConditionType::ModelVerified, reason.into());
    }
    match name {
        "SourceUnavailable" | "InvalidSource" => (ConditionType::ModelResolved, Reason::SourceUnavailable.into()),
        "SecretMissing" => (ConditionType::ModelResolved, Reason::SecretMissing.into()),
        "AccessUnusable" => (ConditionType::Available, Reason::DependencyMissing.into()),
        "OutOfMemoryHost" => (ConditionType::Available, Reason::OutOfMemoryHost.into()),
        "OutOfMemoryGpu" => (ConditionType::Available, Reason::OutOfMemoryGpu.into()),
        "AcceleratorMissing" => (ConditionType::Available, Reason::AcceleratorMissing.into()),
        "ContextTooLong" => (ConditionType::Available, Reason::ContextTooLong.into()),
        "ArchitectureUnsupported" => (ConditionType::Available, Reason::ArchitectureUnsupported.into()),
        _ => (ConditionType::Available, Reason::CrashLoop.into()),
    }
}

/// Which reasons a condition may carry, the good one first. `Ready`, `Degraded`, `Reconciling` and `Stalled` repeat
/// the reason of another condition; `ModelVerified` also carries every [`VerifyReason`].
pub fn reasons(condition: ConditionType) -> &'static [Reason] {
    match condition {
        ConditionType::Accepted => &[
            Reason::Valid,
            Reason::InvalidSpec,
            Reason::DependencyMissing,
            Reason::PolicyViolation,
        ],
        ConditionType::ModelResolved => &[
            Reason::Resolved,
            Reason::Downloading,
            Reason::SourceUnavailable,
            Reason::SecretMissing,
            Reason::Pending,
        ],
        ConditionType::ModelVerified => &[Reason::Verified, Reason::Verifying, Reason::Pending],
        ConditionType::CapacityAvailable => &[Reason::Scheduled, Reason::Unschedulable, Reason::Pending],
        ConditionType::Progressing => &[
            Reason::Complete,
            Reason::Starting,
            Reason::Downloading,
            Reason::Verifying,
            Reason::Loading,
            Reason::Recreating,
            Reason::RollingOut,
            Reason::Scaling,
            Reason::Blocked,
            Reason::Paused,
            Reason::ProgressDeadlineExceeded,
            Reason::RolledBack,
            Reason::RolloutStopped,
            Reason::ApplyFailed,
            Reason::InvalidSpec,
            Reason::DependencyMissing,
            Reason::PolicyViolation,
        ],
        ConditionType::Available => &[
            Reason::Serving,
            Reason::Starting,
            Reason::Downloading,
            Reason::Verifying,
            Reason::Loading,
            Reason::ImagePull,
            Reason::CrashLoop,
            Reason::OutOfMemoryHost,
            Reason::OutOfMemoryGpu,
            Reason::AcceleratorMissing,
            Reason::ContextTooLong,
            Reason::ArchitectureUnsupported,
            Reason::DependencyMissing,
            Reason::PodRefused,
            Reason::PodFailed,
            Reason::RuntimeUnreachable,
            Reason::NodeLost,
            Reason::ScaledToZero,
            Reason::Suspended,
            Reason::Pending,
        ],
        ConditionType::Degraded => &[Reason::ForeignPod, Reason::PolicyViolation],
        ConditionType::Ready | ConditionType::Reconciling | ConditionType::Stalled => &[],
    }
}

/// What a condition should say now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Which condition.
    pub condition: ConditionType,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// Why, for machines.
    pub reason: AnyReason,
    /// Why, for people: one sentence with the object's name and the next step.
    pub message: String,
}

/// The longest message that the API server takes is 32768 bytes; anything near that is a log, not a sentence.
const MESSAGE_LIMIT: usize = 1024;

/// Sets one condition. `lastTransitionTime` moves only when `status` flips, so that it tells since when.
/// A long message is cut at a character boundary.
pub fn set(conditions: &mut Vec<Condition>, finding: Finding, generation: Option<i64>, now: Timestamp) {
    let Finding {
        condition,
        status,
        reason,
        message,
    } = finding;
    let type_: &'static str = condition.into();
    let status: &'static str = status.into();
    let mut message = message;
    if message.len() > MESSAGE_LIMIT {
        message.truncate(message.floor_char_boundary(MESSAGE_LIMIT));
        message.push('…');
    }
    let before = conditions.iter_mut().find(|one| one.type_ == type_);
    let since = match &before {
        Some(before) if before.status == status => before.last_transition_time.clone(),
        Some(_) | None => Time(now),
    };
    let after = Condition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: reason.as_str().to_owned(),
        message,
        observed_generation: generation,
        last_transition_time: since,
    };
    match before {
        Some(before) => *before = after,
        None => conditions.push(after),
    }
}

/// The condition of one type, if it is there.
pub fn get(conditions: &[Condition], condition: ConditionType) -> Option<&Condition> {
    let name: &'static str = condition.into();
    conditions.iter().find(|one| one.type_ == name)
}

/// Whether a condition is there and `True`.
pub fn is_true(conditions: &[Condition], condition: ConditionType) -> bool {
    get(conditions, condition).is_some_and(|one| one.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;
    use strum::IntoEnumIterator;

    fn finding(status: ConditionStatus, message: &str) -> Finding {
        Finding {
            condition: ConditionType::Available,
            status,
            reason: Reason::CrashLoop.into(),
            message: message.to_owned(),
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn transition_time_moves_only_when_status_flips() {
        let mut conditions = Vec::new();
        set(
            &mut conditions,
            finding(ConditionStatus::False, "one"),
            Some(7),
            at(100),
        );
        set(
            &mut conditions,
            finding(ConditionStatus::False, "two"),
            Some(8),
            at(200),
        );
        assert_eq!(conditions.len(), 1);
        assert_eq!(conditions[0].last_transition_time, Time(at(100)));
        assert_eq!(conditions[0].message, "two");
        assert_eq!(conditions[0].observed_generation, Some(8));
        set(
            &mut conditions,
            finding(ConditionStatus::True, "three"),
            Some(8),
            at(300),
        );
        assert_eq!(conditions[0].last_transition_time, Time(at(300)));
    }

    #[test]
    fn long_message_is_cut_between_characters() {
        let mut conditions = Vec::new();
        set(
            &mut conditions,
            finding(ConditionStatus::False, &"é".repeat(4000)),
            None,
            at(1),
        );
        assert!(conditions[0].message.len() <= MESSAGE_LIMIT + '…'.len_utf8());
    }

    #[test]
    fn every_reason_has_a_condition() {
        // `Ready` summarises the first; the others are in `status.revisions`, and their words in `RolledBack`.
        let summary = [Reason::VerifyFailed, Reason::GateFailed, Reason::ProbeFailed];
        for reason in Reason::iter() {
            let carried = ConditionType::iter().any(|condition| reasons(condition).contains(&reason));
            assert!(carried || summary.contains(&reason), "{reason} is in no condition");
        }
    }

    #[test]
    fn reasons_are_valid_for_the_api_server() {
        let names = Reason::iter()
            .map(<&str>::from)
            .chain(VerifyReason::iter().map(<&str>::from));
        for name in names {
            assert!(
                name.chars().all(|c| c.is_ascii_alphanumeric()) && name.starts_with(|c: char| c.is_ascii_uppercase())
            );
        }
    }

    #[test]
    fn runtime_reasons_find_their_condition() {
        let cases = [
            ("DigestMismatch", ConditionType::ModelVerified, "DigestMismatch"),
            ("DownloadIncomplete", ConditionType::ModelVerified, "DownloadIncomplete"),
            ("SourceUnavailable", ConditionType::ModelResolved, "SourceUnavailable"),
            ("InvalidSource", ConditionType::ModelResolved, "SourceUnavailable"),
            ("ContextTooLong", ConditionType::Available, "ContextTooLong"),
            ("SomethingNew", ConditionType::Available, "CrashLoop"),
        ];
        for (name, condition, reason) in cases {
            let (found, why) = classify_runtime_reason(name);
            assert_eq!((found, why.as_str()), (condition, reason));
        }
    }
}
