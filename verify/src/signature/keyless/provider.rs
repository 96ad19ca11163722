//! The cryptography under `sigstore-verify`: ring and SHA-2 in Rust, instead of the C library that it brings.

use ring::signature as schemes;
use sha2::Digest;
use sigstore_verify::crypto::{CryptoProvider, Error, HashContext, Result, SigningScheme, install_default_provider};
use sigstore_verify::types::HashAlgorithm;

#[derive(Debug)]
struct Provider;

/// Makes `sigstore-verify` use this cryptography. Asking again changes nothing.
pub(super) fn install() {
    // An error means that it was done before.
    let _ = install_default_provider(&Provider);
}

struct Context<D>(D);

impl<D: Digest + Send> HashContext for Context<D> {
    fn update(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    fn finalize(self: Box<Self>) -> Vec<u8> {
        self.0.finalize().to_vec()
    }
}

impl CryptoProvider for Provider {
    fn hash(&self, algorithm: HashAlgorithm) -> Result<Box<dyn HashContext>> {
        match algorithm {
            HashAlgorithm::Sha2256 => Ok(Box::new(Context(sha2::Sha256::new()))),
            HashAlgorithm::Sha2384 => Ok(Box::new(Context(sha2::Sha384::new()))),
            HashAlgorithm::Sha2512 => Ok(Box::new(Context(sha2::Sha512::new()))),
            other => Err(Error::UnsupportedAlgorithm(other.to_string())),
        }
    }

    fn verify_raw(&self, scheme: SigningScheme, key: &[u8], data: &[u8], signature: &[u8]) -> Result<()> {
        let algorithm: &'static dyn schemes::VerificationAlgorithm = match scheme {
            SigningScheme::EcdsaP256Sha256 => &schemes::ECDSA_P256_SHA256_ASN1,
            SigningScheme::EcdsaP256Sha384 => &schemes::ECDSA_P256_SHA384_ASN1,
            SigningScheme::EcdsaP384Sha256 => &schemes::ECDSA_P384_SHA256_ASN1,
            SigningScheme::EcdsaP384Sha384 => &schemes::ECDSA_P384_SHA384_ASN1,
            SigningScheme::Ed25519 => &schemes::ED25519,
            SigningScheme::RsaPssSha256 => &schemes::RSA_PSS_2048_8192_SHA256,
            SigningScheme::RsaPssSha384 => &schemes::RSA_PSS_2048_8192_SHA384,
            SigningScheme::RsaPssSha512 => &schemes::RSA_PSS_2048_8192_SHA512,
            SigningScheme::RsaPkcs1Sha256 => &schemes::RSA_PKCS1_2048_8192_SHA256,
            SigningScheme::RsaPkcs1Sha384 => &schemes::RSA_PKCS1_2048_8192_SHA384,
            SigningScheme::RsaPkcs1Sha512 => &schemes::RSA_PKCS1_2048_8192_SHA512,
            other => return Err(Error::UnsupportedAlgorithm(other.name().to_owned())),
        };
        schemes::UnparsedPublicKey::new(algorithm, key)
            .verify(data, signature)
            .map_err(|_| Error::Verification(format!("{} signature invalid", scheme.name())))
    }

    fn verify_prehashed(&self, scheme: SigningScheme, _key: &[u8], _digest: &[u8], _signature: &[u8]) -> Result<()> {
        // Only signatures over messages need it, and a model's is over a statement.
        Err(Error::UnsupportedAlgorithm(format!("{} over a digest", scheme.name())))
    }
}
