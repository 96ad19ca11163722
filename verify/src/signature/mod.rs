//! Signatures of models: OpenSSF Model Signing (OMS) 1.0, a Sigstore bundle around a statement that lists the files.
//!
//! [`Signature::verify`] reads a bundle and believes nothing of it before the signature matches the [`Trust`] that the
//! caller brings. It reads no files and needs no network. What it gives, a [`SignedManifest`], opens a model with
//! [`VerifiedModel::open_signed`](crate::VerifiedModel::open_signed).

mod bundle;
mod certificate;
mod fields;
mod hash;
mod key;
mod keyless;
mod manifest;
mod paths;
mod pem;
mod sign;
#[cfg(test)]
mod tests;

pub use certificate::Authorities;
pub(crate) use hash::Comparison;
pub use hash::{Algorithm, FileHash, Sum};
pub use key::PublicKey;
pub use keyless::{Identity, Keyless};
pub use manifest::Manifest;
pub(crate) use sign::weights_not_signed;
pub use sign::{SigningKey, sign};

use crate::digest::Digest;
use crate::refusal::{Reason, Refusal};
use bundle::{Bundle, KeyHint, Material};
use std::fmt;
use std::time::SystemTime;

/// Trust that cannot be used: a file that holds no key, for example. It says nothing about a model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TrustError(String);

impl TrustError {
    fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

/// Who may have signed a model, and how that is proven. A bundle signed in another way is refused.
#[derive(Debug, Clone)]
pub enum Trust {
    /// Any of these keys.
    Keys(Vec<PublicKey>),
    /// Anyone with a certificate for signing code that leads to one of these.
    Certificates(Authorities),
    /// One identity, proven by public logs.
    Keyless(Keyless),
}

impl Trust {
    /// Trusts the public keys of a PEM file.
    ///
    /// # Errors
    /// When the file holds no such key.
    pub fn keys(pem: &[u8]) -> Result<Self, TrustError> {
        PublicKey::from_pem(pem).map(Self::Keys)
    }

    /// Trusts signers whose certificates lead to one of a PEM file.
    ///
    /// # Errors
    /// When the file holds no certificate.
    pub fn authorities(pem: &[u8]) -> Result<Self, TrustError> {
        Authorities::from_pem(pem).map(Self::Certificates)
    }

    /// Trusts one identity, proven by the logs and authorities of a `trusted_root.json`. Both names must match exactly.
    ///
    /// # Errors
    /// When the trusted root cannot be used, or a name is empty.
    pub fn keyless(trusted_root: &[u8], wanted: Identity) -> Result<Self, TrustError> {
        Keyless::new(trusted_root, wanted).map(Self::Keyless)
    }

    /// The method's name in the standard.
    pub fn method(&self) -> &'static str {
        match self {
            Self::Keys(_) => "key",
            Self::Certificates(_) => "certificate",
            Self::Keyless(_) => "keyless",
        }
    }
}

/// Who signed a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signer {
    /// Whoever has the private part of this key.
    Key {
        /// The SHA-256 of the public key's `SubjectPublicKeyInfo` in DER.
        fingerprint: Digest,
    },
    /// The subject of a certificate.
    Certificate {
        /// The subject's name.
        subject: String,
        /// The SHA-256 of the certificate in DER.
        fingerprint: Digest,
    },
    /// An identity.
    Keyless(Identity),
}

impl fmt::Display for Signer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key { fingerprint } => write!(formatter, "key {fingerprint}"),
            Self::Certificate { subject, fingerprint } => write!(formatter, "certificate {subject} ({fingerprint})"),
            Self::Keyless(Identity { identity, issuer }) => write!(formatter, "{identity} (issuer {issuer})"),
        }
    }
}

/// The check of a signature.
#[derive(Debug, Clone, Copy)]
pub struct Signature;

impl Signature {
    /// Verifies a bundle: that somebody who is trusted signed the list of files in it. `now` is when certificates must
    /// be valid.
    ///
    /// # Errors
    /// Every reason about bundles, signatures, certificates and manifests, as its name says.
    pub fn verify(bundle_bytes: &[u8], trust: &Trust, now: SystemTime) -> Result<SignedManifest, Refusal> {
        let Bundle {
            material,
            payload,
            signature,
        } = Bundle::parse(bundle_bytes)?;
        let message = bundle::signed_bytes(&payload);
        // A statement of before the standard was signed in another way: its name says more than that the check failed.
        let explain = |refusal: Refusal| {
            if manifest::is_legacy(&payload) {
                manifest::legacy()
            } else {
                refusal
            }
        };
        match (trust, material) {
            (Trust::Keys(keys), Material::Key(hint)) => {
                let signer = keys.iter().find(|key| key.verifies(&message, &signature));
                let signer = signer.ok_or_else(|| explain(no_key(keys, &hint)))?;
                let fingerprint = signer.fingerprint();
                SignedManifest::new(&payload, Signer::Key { fingerprint })
            }
            (Trust::Certificates(authorities), Material::Chain(chain)) => {
                let leaf = certificate::check_chain(chain, authorities, now)?;
                if !leaf.key.verifies(&message, &signature) {
                    return Err(explain(signature_invalid()));
                }
                let signer = Signer::Certificate {
                    subject: leaf.subject,
                    fingerprint: leaf.fingerprint,
                };
                SignedManifest::new(&payload, signer)
            }
            (Trust::Keyless(keyless), Material::Keyless) => {
                let signed = SignedManifest::new(&payload, Signer::Keyless(keyless.wanted.clone()))?;
                keyless
                    .proofs
                    .check(bundle_bytes, &payload, &signed.manifest.root, &keyless.wanted)?;
                Ok(signed)
            }
            (trust, material) => Err(Refusal::new(
                Reason::MethodNotAllowed,
                "the model is signed in another way than the one that is trusted; sign it so, or trust its signer",
            )
            .values(trust.method(), material.method())),
        }
    }
}

impl Material {
    fn method(&self) -> &'static str {
        match self {
            Self::Key(_) => "key",
            Self::Chain(_) => "certificate",
            Self::Keyless => "keyless",
        }
    }
}

fn signature_invalid() -> Refusal {
    Refusal::new(
        Reason::SignatureInvalid,
        "the signature does not belong to the list of files; fetch the model and its signature again",
    )
}

/// Why none of the keys fits: the bundle names another one, or it was changed.
fn no_key(keys: &[PublicKey], hint: &KeyHint) -> Refusal {
    let named = hint.key.as_deref().and_then(|key| {
        let from_pem = || PublicKey::from_pem(key).ok().and_then(|keys| keys.into_iter().next());
        PublicKey::from_spki(key).or_else(from_pem)
    });
    let is_known = match (&named, &hint.hint) {
        (Some(named), _) => keys.iter().any(|key| key.is(named)),
        (None, Some(hint)) => keys
            .iter()
            .any(|key| *hint == key.hint() || *hint == key.fingerprint().hex()),
        (None, None) => true,
    };
    if is_known {
        return signature_invalid();
    }
    let got = named.map_or_else(
        || hint.hint.clone().unwrap_or_default().chars().take(12).collect(),
        |named| named.fingerprint().short(),
    );
    let trusted: Vec<_> = keys.iter().map(|key| key.fingerprint().short()).collect();
    Refusal::new(
        Reason::KeyNotTrusted,
        "the model is signed with a key that is not trusted; trust it if its owner may sign, or sign with one that is",
    )
    .values(trusted.join(" or "), got)
}

/// The files of a model as somebody who is trusted signed them.
#[derive(Debug, Clone)]
pub struct SignedManifest {
    manifest: Manifest,
    signer: Signer,
}

impl SignedManifest {
    fn new(payload: &[u8], signer: Signer) -> Result<Self, Refusal> {
        Ok(Self {
            manifest: Manifest::parse(payload)?,
            signer,
        })
    }

    /// Who signed.
    pub fn signer(&self) -> &Signer {
        &self.signer
    }

    /// The name that the signer gave the model. It is not compared with anything.
    pub fn name(&self) -> &str {
        &self.manifest.name
    }

    /// The paths of the files, sorted, with their hashes. A single file has the path `.`.
    pub fn files(&self) -> impl Iterator<Item = (&str, &FileHash)> {
        self.manifest.files()
    }

    /// The digest over the hashes of all files. It does not cover their names, so it is not the model's identity.
    pub fn root_digest(&self) -> Digest {
        self.manifest.root
    }

    /// The paths that were left out.
    pub fn ignore_paths(&self) -> impl Iterator<Item = &str> {
        self.manifest.ignored.paths()
    }

    /// Leaves out another path below the model's folder, such as the one of the signature itself. What is signed must be
    /// there nevertheless.
    ///
    /// # Errors
    /// `IgnorePathInvalid` for a path that is absolute or leaves the folder.
    pub fn ignore(&mut self, path: &str) -> Result<(), Refusal> {
        self.manifest.ignored.add(path)
    }

    pub(crate) fn hash(&self, file: &str) -> Option<&FileHash> {
        self.manifest.files.get(file)
    }

    /// The hash of the only file, when the model was signed as one.
    pub(crate) fn single_file(&self) -> Option<&FileHash> {
        self.hash(manifest::SINGLE_FILE)
    }

    pub(crate) fn is_left_out(&self, file: &str) -> bool {
        self.manifest.ignored.covers(file)
    }

    /// Whether a file holds weights that somebody asked to leave out.
    pub(crate) fn leaves_out_weights(&self, file: &str) -> bool {
        self.manifest.ignored.names(file) && paths::is_weights(file)
    }

    /// Whether files were hashed in parts, so that an empty one has none.
    pub(crate) fn is_in_shards(&self) -> bool {
        self.manifest.are_shards
    }
}
