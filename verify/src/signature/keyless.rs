//! Signatures without a key of one's own: a certificate of a few minutes for an identity, and proofs in public logs.
//!
//! The proofs are checked by `sigstore-verify`, from a pinned trusted root and without a network: the certificate's
//! chain and its entry in the certificate log, the entry of the signature in the transparency log (Merkle proof,
//! checkpoint, that it is about this very signature), and its time. That nothing is left out because it is missing is
//! checked where the bundle is read.

mod provider;

use super::TrustError;
use crate::digest::Digest;
use crate::refusal::{Reason, Refusal};
use sigstore_verify::trust_root::TrustedRoot;
use sigstore_verify::types::{Bundle, Sha256Hash, SignatureContent};
use sigstore_verify::{Error, VerificationPolicy, Verifier};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Who must have signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The name in the certificate: an address, or the URL of a workflow.
    pub identity: String,
    /// The URL of who vouches for the name.
    pub issuer: String,
}

/// Judges the proofs of a bundle. A trait, so that what checks them can be replaced.
pub(super) trait Proofs: Send + Sync {
    /// Whether `bundle` proves that `wanted` signed a statement about `subject`. `payload` is the statement that is
    /// going to be believed.
    fn check(&self, bundle: &[u8], payload: &[u8], subject: &Digest, wanted: &Identity) -> Result<(), Refusal>;
}

/// A pinned trusted root, and who must have signed.
#[derive(Clone)]
pub struct Keyless {
    pub(super) proofs: Arc<dyn Proofs>,
    pub(super) wanted: Identity,
}

impl std::fmt::Debug for Keyless {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Keyless")
            .field("wanted", &self.wanted)
            .finish_non_exhaustive()
    }
}

impl Keyless {
    pub(super) fn new(trusted_root: &[u8], wanted: Identity) -> Result<Self, TrustError> {
        if wanted.identity.is_empty() || wanted.issuer.is_empty() {
            return Err(TrustError::new(
                "who must have signed needs both an identity and an issuer",
            ));
        }
        Ok(Self {
            proofs: Arc::new(Pinned::new(trusted_root)?),
            wanted,
        })
    }
}

/// The proofs of a trusted root that was pinned.
struct Pinned(Verifier);

impl Pinned {
    fn new(trusted_root: &[u8]) -> Result<Self, TrustError> {
        provider::install();
        let unusable =
            |error: &dyn std::fmt::Display| TrustError::new(format!("the trusted root is not usable: {error}"));
        let text = std::str::from_utf8(trusted_root).map_err(|error| unusable(&error))?;
        let build = || -> Result<Verifier, Error> { Verifier::new(&TrustedRoot::from_json(text)?) };
        match catch_unwind(AssertUnwindSafe(build)) {
            Ok(verifier) => verifier.map(Self).map_err(|error| unusable(&error)),
            Err(_) => Err(unusable(&"its reader gave up")),
        }
    }

    fn verify(&self, bundle: &[u8], payload: &[u8], subject: &Digest, wanted: &Identity) -> Result<(), Refusal> {
        let malformed = |error: &dyn std::fmt::Display| {
            Refusal::new(
                Reason::BundleParse,
                format!("the bundle cannot be read: {error}; sign the model again"),
            )
        };
        let text = std::str::from_utf8(bundle).map_err(|error| malformed(&error))?;
        let bundle = Bundle::from_json(text).map_err(|error| malformed(&error))?;
        // Two readers of one file: what the proofs are about must be what is believed.
        let SignatureContent::DsseEnvelope(envelope) = &bundle.content else {
            return Err(malformed(&"it has no envelope"));
        };
        if envelope.payload.as_bytes() != payload {
            return Err(malformed(&"it has two statements"));
        }
        let policy = VerificationPolicy::new(wanted.identity.as_str(), wanted.issuer.as_str());
        let found = self
            .0
            .verify(Sha256Hash::new(*subject.as_bytes()), &bundle, &policy)
            .map_err(|error| refusal(error, wanted))?;
        let is_proven = found.certificate_verified()
            && found.sct_verified()
            && found.tlog_verified()
            && found.identity_policy_checked()
            && !found.verified_timestamps().is_empty();
        if is_proven {
            Ok(())
        } else {
            Err(unproven("not all proofs were checked"))
        }
    }
}

impl Proofs for Pinned {
    fn check(&self, bundle: &[u8], payload: &[u8], subject: &Digest, wanted: &Identity) -> Result<(), Refusal> {
        let verdict = catch_unwind(AssertUnwindSafe(|| self.verify(bundle, payload, subject, wanted)));
        verdict.unwrap_or_else(|_| Err(unproven("the proofs cannot be read")))
    }
}

fn unproven(what: &str) -> Refusal {
    Refusal::new(
        Reason::TransparencyProof,
        format!("{what}; check that the trusted root is the one of the signer's Sigstore, or sign the model again"),
    )
}

fn refusal(error: Error, wanted: &Identity) -> Refusal {
    use sigstore_verify::CertificateError;
    let who = |expected: &str, got: String| {
        Refusal::new(
            Reason::IdentityMismatch,
            "somebody else signed the model than who is trusted",
        )
        .values(expected, got)
    };
    let none = || "none".to_owned();
    match error {
        Error::IdentityMismatch { actual, .. } => {
            who(&wanted.identity, actual.map_or_else(none, |actual| actual.to_string()))
        }
        Error::IssuerMismatch { actual, .. } => who(&wanted.issuer, actual.unwrap_or_else(none)),
        Error::SignatureInvalid(_) => super::signature_invalid(),
        Error::ArtifactMismatch(error) => Refusal::new(Reason::RootDigest, error),
        Error::Certificate(CertificateError::Sct(error)) => unproven(&error),
        Error::Certificate(error) => Refusal::new(Reason::CertificateInvalid, error.to_string()),
        Error::TransparencyLog(error) => unproven(&error.to_string()),
        Error::Timestamp(error) => unproven(&error.to_string()),
        Error::InvalidBundle(_) | Error::UnsupportedBundle(_) | Error::Types(_) => {
            Refusal::new(Reason::BundleParse, format!("{error}; sign the model again"))
        }
        other => unproven(&other.to_string()),
    }
}
