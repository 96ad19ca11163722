//! Why bytes were refused: a stable reason, the file, what was expected, and what to do.

use std::fmt;
use strum::IntoStaticStr;

/// The closed set of reasons. Their names are used in conditions, Events, metrics and exit texts, and do not change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, IntoStaticStr, strum::Display)]
pub enum Reason {
    /// The bytes are not those that the digest names.
    DigestMismatch,
    /// A file's length is not the expected one.
    SizeMismatch,
    /// A file that the model needs is not there.
    FileMissing,
    /// A file is in the model's folder, but nobody signed it.
    UnsignedFile,
    /// What was signed is another kind of model than what is there: a single file, or a folder.
    FileNotInManifest,
    /// The signature does not belong to what it is said to sign.
    SignatureInvalid,
    /// There is not exactly one signature.
    SignatureCount,
    /// The signature was made with another key than those that are trusted.
    KeyNotTrusted,
    /// What was signed is not an in-toto statement.
    PayloadType,
    /// The statement is about something else than a model's files.
    PredicateType,
    /// The signature has the format of before the standard, which is no longer accepted.
    LegacyBundle,
    /// The bundle has a version that is not known.
    BundleVersion,
    /// The bundle can be read in two ways.
    BundleAmbiguous,
    /// The signature was made in another way than the one that is demanded.
    MethodNotAllowed,
    /// Somebody else signed than who is demanded.
    IdentityMismatch,
    /// A proof that the signature was logged in public, or when it was made, is missing or wrong.
    TransparencyProof,
    /// A certificate is not valid, or does not lead to a trusted one.
    CertificateInvalid,
    /// Weights are there that were left out of the signature.
    WeightsNotSigned,
    /// A path that is left out of the signature is absolute or leaves the folder.
    IgnorePathInvalid,
    /// A file or a part of it is named twice.
    DuplicateResource,
    /// An object in JSON has a key twice.
    DuplicateKey,
    /// A hash that is not accepted.
    HashNotAllowed,
    /// A digest is written in another way than it must be.
    DigestFormat,
    /// The digest over all files is not the one of the files.
    RootDigest,
    /// A statement must have exactly one subject.
    SubjectCount,
    /// The parts of a file do not make up a file.
    ShardLayout,
    /// The statement lacks something, or has it in the wrong form.
    ManifestSchema,
    /// The bundle is not one.
    BundleParse,
    /// The bundle is larger than any is.
    BundleTooLarge,
    /// A path is absolute, leaves the model's folder, or cannot be written in a manifest.
    PathInvalid,
    /// There is nothing to verify.
    ManifestEmpty,
    /// A symbolic link stands where a file was expected.
    SymlinkRefused,
    /// A device, socket or pipe stands where a file was expected.
    NotARegularFile,
    /// A file changed between its verification and its use.
    ChangedAfterVerify,
    /// The storage answered with an error.
    StorageFault,
    /// More files, or larger ones, than any model has.
    SizeLimit,
    /// A safetensors file breaks the format's rules.
    SafetensorsInvalid,
    /// An index of shards breaks the format's rules.
    IndexInvalid,
    /// A GGUF file breaks the format's rules.
    GgufInvalid,
    /// The content is of a kind that is never loaded, such as a pickle.
    FormatRefused,
    /// A model's configuration is out of bounds or contradicts itself.
    ConfigInvalid,
    /// Tensors are missing, or of the wrong shape or type.
    WeightsMismatch,
    /// The tokenizer's data is malformed or of an unknown kind.
    TokenizerInvalid,
    /// The chat template cannot be used.
    TemplateRefused,
    /// The chat template is not one that was approved.
    TemplateNotApproved,
    /// Nothing says which licence the model is under.
    LicenseUnknown,
    /// Two places name different licences.
    LicenseConflict,
    /// The licence is not one of those that may be used.
    LicenseNotAllowed,
}

/// A refusal: everything that a person needs in order to act on it.
///
/// Its `Display` is one line: the file, the message, and the two values when there are any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The stable reason.
    pub reason: Reason,
    /// The file, relative to the model's folder.
    pub file: Option<String>,
    /// What should have been there.
    pub expected: Option<String>,
    /// What was there.
    pub got: Option<String>,
    /// What is wrong and what to do, in a sentence without its full stop.
    pub message: String,
}

impl Refusal {
    /// A refusal that names no file and no values.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            file: None,
            expected: None,
            got: None,
            message: message.into(),
        }
    }

    /// Names the file.
    #[must_use]
    pub fn in_file(mut self, file: impl Into<String>) -> Self {
        self.file = Some(file.into());
        self
    }

    /// Adds what was expected and what was found.
    #[must_use]
    pub fn values(mut self, expected: impl fmt::Display, got: impl fmt::Display) -> Self {
        self.expected = Some(expected.to_string());
        self.got = Some(got.to_string());
        self
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(formatter, "{file}: ")?;
        }
        formatter.write_str(&self.message)?;
        if let (Some(expected), Some(got)) = (&self.expected, &self.got) {
            write!(formatter, " (expected {expected}, got {got})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Refusal {}
