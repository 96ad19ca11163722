//! Signing a model with a key, as the reference tool does.

use super::TrustError;
use super::bundle;
use super::key::PublicKey;
use super::manifest::{PREDICATE_TYPE, SINGLE_FILE, STATEMENT_TYPE};
use super::paths::{self, GIT_PATHS, Ignored};
use super::pem;
use crate::model::{Progress, hash};
use crate::refusal::{Reason, Refusal};
use crate::root::Root;
use p256::ecdsa::signature::Signer as _;
use p256::pkcs8::DecodePrivateKey as _;
use p256::pkcs8::EncodePublicKey as _;
use serde_json::json;
use sha2::Digest as _;
use std::path::Path;

/// A private key that signs models.
pub struct SigningKey {
    secret: Secret,
    public: PublicKey,
}

enum Secret {
    P256(p256::ecdsa::SigningKey),
    P384(p384::ecdsa::SigningKey),
    P521(p521::ecdsa::SigningKey),
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("SigningKey")
            .field("fingerprint", &self.public.fingerprint())
            .finish_non_exhaustive()
    }
}

impl SigningKey {
    /// Reads the private key of a PEM file: PKCS #8 (`PRIVATE KEY`) or SEC 1 (`EC PRIVATE KEY`).
    ///
    /// # Errors
    /// When there is none, or it is of another kind or encrypted.
    pub fn from_pem(text: &[u8]) -> Result<Self, TrustError> {
        let blocks = pem::blocks(text).map_err(|error| TrustError::new(format!("the key file {error}")))?;
        for block in &blocks {
            let key = match block.label.as_str() {
                "PRIVATE KEY" => Self::from_pkcs8(&block.der),
                "EC PRIVATE KEY" => Self::from_sec1(&block.der),
                "ENCRYPTED PRIVATE KEY" => {
                    return Err(TrustError::new(
                        "the private key is encrypted; decrypt it with `openssl pkey` first",
                    ));
                }
                _ => continue,
            };
            return key.ok_or_else(|| {
                TrustError::new("the private key is not of the kind ECDSA with P-256, P-384 or P-521; make one that is")
            });
        }
        Err(TrustError::new("the key file holds no private key in PEM"))
    }

    fn from_pkcs8(der: &[u8]) -> Option<Self> {
        if let Ok(secret) = p256::SecretKey::from_pkcs8_der(der) {
            return Self::new(Secret::P256(secret.into()));
        }
        if let Ok(secret) = p384::SecretKey::from_pkcs8_der(der) {
            return Self::new(Secret::P384(secret.into()));
        }
        Self::new(Secret::P521(p521::SecretKey::from_pkcs8_der(der).ok()?.into()))
    }

    fn from_sec1(der: &[u8]) -> Option<Self> {
        if let Ok(secret) = p256::SecretKey::from_sec1_der(der) {
            return Self::new(Secret::P256(secret.into()));
        }
        if let Ok(secret) = p384::SecretKey::from_sec1_der(der) {
            return Self::new(Secret::P384(secret.into()));
        }
        Self::new(Secret::P521(p521::SecretKey::from_sec1_der(der).ok()?.into()))
    }

    fn new(secret: Secret) -> Option<Self> {
        let spki = match &secret {
            Secret::P256(key) => key.verifying_key().to_public_key_der(),
            Secret::P384(key) => key.verifying_key().to_public_key_der(),
            Secret::P521(key) => key.verifying_key().to_public_key_der(),
        };
        let public = PublicKey::from_spki(spki.ok()?.as_bytes())?;
        Some(Self { secret, public })
    }

    /// The public part.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// The public part in PEM.
    pub fn public_pem(&self) -> &str {
        self.public.pem()
    }

    /// A signature in DER. It depends on nothing but key and message.
    pub(super) fn sign(&self, message: &[u8]) -> Vec<u8> {
        match &self.secret {
            Secret::P256(key) => {
                let signature: p256::ecdsa::DerSignature = key.sign(message);
                signature.as_bytes().to_vec()
            }
            Secret::P384(key) => {
                let signature: p384::ecdsa::DerSignature = key.sign(message);
                signature.as_bytes().to_vec()
            }
            Secret::P521(key) => {
                let signature: p521::ecdsa::Signature = key.sign(message);
                signature.to_der().as_bytes().to_vec()
            }
        }
    }
}

/// Signs the model in `path`, a file or a folder, and gives the content of its signature file. What `git` keeps is left
/// out, and so are the paths of `ignored`.
///
/// # Errors
/// `WeightsNotSigned` when weights would be left out, `IgnorePathInvalid` for a path that leaves the folder,
/// `ManifestEmpty` when nothing is left; for files that cannot be read as
/// [`VerifiedModel::open`](crate::VerifiedModel::open).
pub fn sign(path: &Path, key: &SigningKey, ignored: &[String], progress: Progress<'_>) -> Result<Vec<u8>, Refusal> {
    let mut left_out = Ignored::default();
    for path in ignored {
        left_out.add(path)?;
    }
    let (root, mut names) = Root::open(path)?;
    let is_folder = path.is_dir();
    if is_folder {
        if let Some((file, _)) = names
            .iter()
            .find(|(file, _)| left_out.names(file) && paths::is_weights(file))
        {
            return Err(weights_not_signed(file));
        }
        names.retain(|(file, _)| !left_out.covers(file));
    }
    if names.is_empty() {
        return Err(Refusal::new(
            Reason::ManifestEmpty,
            "there are no files to sign; name a folder that has some",
        ));
    }
    let total = names.iter().map(|(_, bytes)| bytes).sum();
    let (mut done, mut all, mut resources) = (0, sha2::Sha256::new(), Vec::new());
    for (file, bytes) in &names {
        paths::check(file, Reason::PathInvalid)?;
        let mut told = |read| progress(done + read, total);
        let digest = hash(file, root.open_file(file)?, &mut |_| (), &mut told)?;
        done += bytes;
        all.update(digest.as_bytes());
        let name = if is_folder { file } else { SINGLE_FILE };
        resources.push(json!({"name": name, "algorithm": "sha256", "digest": digest.hex()}));
    }
    let name = path.canonicalize().ok();
    let name = name
        .as_deref()
        .and_then(Path::file_name)
        .map(|name| name.to_string_lossy());
    let mut serialization = json!({"method": "files", "hash_type": "sha256", "allow_symlinks": false});
    if is_folder {
        let git = GIT_PATHS.into_iter().chain(left_out.paths());
        serialization["ignore_paths"] = git.collect();
    }
    let root = crate::digest::Digest::from_bytes(all.finalize().into());
    let statement = json!({
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name.unwrap_or_else(|| "model".into()), "digest": {"sha256": root.hex()}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {"serialization": serialization, "resources": resources},
    });
    let payload = statement.to_string().into_bytes();
    let signature = key.sign(&bundle::signed_bytes(&payload));
    Ok(bundle::write(&key.public.hint(), &payload, &signature))
}

/// The refusal of a file with weights that nobody vouches for.
pub(crate) fn weights_not_signed(file: &str) -> Refusal {
    Refusal::new(
        Reason::WeightsNotSigned,
        "the file holds weights and is left out of the signature; remove it, or sign it with the model",
    )
    .in_file(file)
}
