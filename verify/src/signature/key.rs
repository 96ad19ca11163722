//! Elliptic keys: P-256 with SHA-256, P-384 with SHA-384, P-521 with SHA-512. Other keys sign no models.

use super::TrustError;
use super::pem;
use crate::digest::Digest;
use p256::ecdsa::signature::hazmat::PrehashVerifier as _;
use p256::pkcs8::{DecodePublicKey as _, EncodePublicKey, LineEnding};
use sha2::Digest as _;

/// A hash under a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MessageHash {
    Sha256,
    Sha384,
    Sha512,
}

impl MessageHash {
    pub(super) fn of(self, message: &[u8]) -> Vec<u8> {
        match self {
            Self::Sha256 => sha2::Sha256::digest(message).to_vec(),
            Self::Sha384 => sha2::Sha384::digest(message).to_vec(),
            Self::Sha512 => sha2::Sha512::digest(message).to_vec(),
        }
    }
}

#[derive(Debug, Clone)]
enum Point {
    P256(p256::ecdsa::VerifyingKey),
    P384(p384::ecdsa::VerifyingKey),
    P521(p521::ecdsa::VerifyingKey),
}

/// A public key that may sign models.
#[derive(Debug, Clone)]
pub struct PublicKey {
    point: Point,
    spki: Vec<u8>,
    pem: String,
}

impl PublicKey {
    /// Reads a key from the DER of its `SubjectPublicKeyInfo`. The point is checked to be on the curve.
    pub(super) fn from_spki(der: &[u8]) -> Option<Self> {
        if let Ok(key) = p256::PublicKey::from_public_key_der(der) {
            return Self::new(Point::P256((&key).into()), &key);
        }
        if let Ok(key) = p384::PublicKey::from_public_key_der(der) {
            return Self::new(Point::P384((&key).into()), &key);
        }
        let key = p521::PublicKey::from_public_key_der(der).ok()?;
        Self::new(Point::P521((&key).into()), &key)
    }

    fn new(point: Point, key: &impl EncodePublicKey) -> Option<Self> {
        Some(Self {
            point,
            spki: key.to_public_key_der().ok()?.into_vec(),
            pem: key.to_public_key_pem(LineEnding::LF).ok()?,
        })
    }

    /// Reads all public keys of a PEM file.
    ///
    /// # Errors
    /// When there is none, or one of another kind.
    pub fn from_pem(text: &[u8]) -> Result<Vec<Self>, TrustError> {
        let mut keys = Vec::new();
        for block in pem::blocks(text).map_err(|error| TrustError::new(format!("the key file {error}")))? {
            match block.label.as_str() {
                "PUBLIC KEY" => keys.push(Self::from_spki(&block.der).ok_or_else(|| {
                    TrustError::new(
                        "the public key is not of the kind ECDSA with P-256, P-384 or P-521; name one that is",
                    )
                })?),
                label if label.contains("PRIVATE KEY") => {
                    return Err(TrustError::new(
                        "the key file holds a private key; name the public one, which `openssl pkey -pubout` prints",
                    ));
                }
                _ => {}
            }
        }
        if keys.is_empty() {
            return Err(TrustError::new("the key file holds no block `PUBLIC KEY`"));
        }
        Ok(keys)
    }

    /// The SHA-256 of the key's `SubjectPublicKeyInfo` in DER.
    pub fn fingerprint(&self) -> Digest {
        Digest::of(&self.spki)
    }

    /// The key in PEM, in the one way in which tools write it.
    pub(super) fn pem(&self) -> &str {
        &self.pem
    }

    /// What the reference tool writes as `hint`: the SHA-256 of the PEM text, in hex.
    pub(super) fn hint(&self) -> String {
        Digest::of(self.pem.as_bytes()).hex()
    }

    /// Whether this is the same key.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.spki == other.spki
    }

    /// Whether `signature` (DER) was made over `message` with this key and the hash that belongs to its curve.
    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let hash = match self.point {
            Point::P256(_) => MessageHash::Sha256,
            Point::P384(_) => MessageHash::Sha384,
            Point::P521(_) => MessageHash::Sha512,
        };
        self.verifies_with(hash, message, signature)
    }

    /// Whether `signature` (DER) was made over `message` with this key and a hash that certificates may choose.
    pub(super) fn verifies_with(&self, hash: MessageHash, message: &[u8], signature: &[u8]) -> bool {
        let digest = hash.of(message);
        match &self.point {
            Point::P256(key) => p256::ecdsa::Signature::from_der(signature)
                .is_ok_and(|signature| key.verify_prehash(&digest, &signature).is_ok()),
            Point::P384(key) => p384::ecdsa::Signature::from_der(signature)
                .is_ok_and(|signature| key.verify_prehash(&digest, &signature).is_ok()),
            Point::P521(key) => p521::ecdsa::Signature::from_der(signature)
                .is_ok_and(|signature| key.verify_prehash(&digest, &signature).is_ok()),
        }
    }
}
