//! Certificates of signers: a chain from the certificate of a signer to one that is trusted.
//!
//! The check is our own, since signers' certificates are often made by hand: the public test vectors have a leaf that
//! says it is an authority and shares its name with the one that issued it, which libraries for TLS refuse.

#[cfg(test)]
mod tests;

use super::TrustError;
use super::key::{MessageHash, PublicKey};
use super::pem;
use crate::digest::Digest;
use crate::refusal::{Reason, Refusal};
use std::collections::HashSet;
use std::time::{Duration, SystemTime};
use x509_cert::Certificate;
use x509_cert::der::oid::{AssociatedOid as _, ObjectIdentifier as Oid};
use x509_cert::der::{Decode as _, Encode as _, Reader as _, SliceReader};
use x509_cert::ext::pkix::{BasicConstraints, ExtendedKeyUsage, KeyUsage};

/// Certificates of a chain, with the signer's and the trusted one.
const MAX_CHAIN: usize = 4;
/// Signatures that are checked before a bundle is given up: certificates with the same name must not cost time without
/// bound.
const MAX_CHECKS: usize = 64;
/// More certificates than any trust file of a signer has.
const MAX_TRUSTED: usize = 256;

const CODE_SIGNING: Oid = Oid::new_unwrap("1.3.6.1.5.5.7.3.3");
const ANY_USAGE: Oid = Oid::new_unwrap("2.5.29.37.0");
/// Extensions that may be critical, because they are checked, or say nothing about who may sign.
const UNDERSTOOD: [Oid; 6] = [
    BasicConstraints::OID,
    KeyUsage::OID,
    ExtendedKeyUsage::OID,
    Oid::new_unwrap("2.5.29.14"), // subject key identifier
    Oid::new_unwrap("2.5.29.17"), // subject alternative name
    Oid::new_unwrap("2.5.29.35"), // authority key identifier
];

/// The certificates that signers' certificates must lead to.
#[derive(Debug, Clone)]
pub struct Authorities(Vec<Parsed>);

impl Authorities {
    /// Reads all certificates of a PEM file.
    pub(super) fn from_pem(text: &[u8]) -> Result<Self, TrustError> {
        let blocks = pem::blocks(text).map_err(|error| TrustError::new(format!("the certificate file {error}")))?;
        let certificates = blocks
            .into_iter()
            .filter(|block| block.label == "CERTIFICATE")
            .map(|block| {
                Parsed::new(block.der).map_err(|error| TrustError::new(format!("a trusted certificate {error}")))
            })
            .collect::<Result<Vec<_>, _>>()?;
        if certificates.is_empty() || certificates.len() > MAX_TRUSTED {
            return Err(TrustError::new(
                "the certificate file holds no block `CERTIFICATE`, or too many; name the certificate of your authority",
            ));
        }
        Ok(Self(certificates))
    }
}

/// The signer, as its certificate says.
pub(super) struct Leaf {
    pub(super) key: PublicKey,
    pub(super) subject: String,
    pub(super) fingerprint: Digest,
}

/// Judges whether the first of `chain` belongs to a signer that one of `authorities` vouches for, at the time `now`.
pub(super) fn check_chain(chain: Vec<Vec<u8>>, authorities: &Authorities, now: SystemTime) -> Result<Leaf, Refusal> {
    let mut parsed = chain
        .into_iter()
        .map(|der| Parsed::new(der).map_err(|error| refuse(format!("a certificate of the bundle {error}"))))
        .collect::<Result<Vec<_>, _>>()?
        .into_iter();
    let leaf = parsed.next().ok_or_else(|| refuse("the bundle has no certificate"))?;
    let others: Vec<Parsed> = parsed.collect();
    leaf.check_time(now)
        .map_err(|error| refuse(format!("the signer's certificate {error}")))?;
    leaf.check_extensions()
        .map_err(|error| refuse(format!("the signer's certificate {error}")))?;
    leaf.check_signer()
        .map_err(|error| refuse(format!("the signer's certificate {error}")))?;
    let mut search = Search {
        others: &others,
        authorities,
        now,
        checks: 0,
        fault: None,
    };
    if !search.leads_to_trust(&leaf, 1, 0) {
        let fault = search.fault.unwrap_or_else(|| {
            "the signer's certificate does not lead to a trusted one; check which authority must be trusted".to_owned()
        });
        return Err(refuse(fault).values("a trusted issuer", leaf.certificate.tbs_certificate().issuer()));
    }
    let key = leaf.spki().as_deref().and_then(PublicKey::from_spki);
    let key = key.ok_or_else(|| refuse("the signer's key is not of the kind ECDSA with P-256, P-384 or P-521"))?;
    Ok(Leaf {
        key,
        subject: leaf.subject(),
        fingerprint: Digest::of(&leaf.der),
    })
}

fn refuse(message: impl Into<String>) -> Refusal {
    Refusal::new(Reason::CertificateInvalid, message)
}

/// Looks for a way from a signer's certificate to a trusted one.
struct Search<'a> {
    others: &'a [Parsed],
    authorities: &'a Authorities,
    now: SystemTime,
    checks: usize,
    /// Why the most promising way was none.
    fault: Option<String>,
}

impl Search<'_> {
    /// Whether `certificate`, the `position`th of its chain, leads to a trusted one. `below` counts the authorities
    /// between it and the signer.
    fn leads_to_trust(&mut self, certificate: &Parsed, position: usize, below: usize) -> bool {
        // Who trusts this very certificate needs no issuer.
        if self.authorities.0.iter().any(|trusted| trusted.der == certificate.der) {
            return true;
        }
        if position == MAX_CHAIN {
            self.fault = Some(format!("the chain has more than {MAX_CHAIN} certificates"));
            return false;
        }
        let below_issuer = if position == 1 { 0 } else { below + 1 };
        let (authorities, others) = (self.authorities, self.others);
        authorities.0.iter().chain(others).any(|issuer| {
            self.has_issued(issuer, certificate, below_issuer)
                && self.leads_to_trust(issuer, position + 1, below_issuer)
        })
    }

    fn has_issued(&mut self, issuer: &Parsed, certificate: &Parsed, below: usize) -> bool {
        let is_named =
            issuer.certificate.tbs_certificate().subject() == certificate.certificate.tbs_certificate().issuer();
        if !is_named || issuer.der == certificate.der || self.checks == MAX_CHECKS {
            return false;
        }
        self.checks += 1;
        if !certificate.is_signed_by(issuer) {
            return false;
        }
        let verdict = issuer
            .check_time(self.now)
            .and_then(|()| issuer.check_extensions())
            .and_then(|()| issuer.check_authority(below));
        if let Err(fault) = &verdict {
            self.fault = Some(format!("the certificate of {} {fault}", issuer.subject()));
        }
        verdict.is_ok()
    }
}

/// A certificate, and the bytes that it was read from.
#[derive(Debug, Clone)]
struct Parsed {
    der: Vec<u8>,
    /// The part that is signed, as it came.
    signed: Vec<u8>,
    certificate: Certificate,
}

impl Parsed {
    fn new(der: Vec<u8>) -> Result<Self, String> {
        let malformed = |error| format!("cannot be read: {error}");
        let certificate = Certificate::from_der(&der).map_err(malformed)?;
        let mut reader = SliceReader::new(&der).map_err(malformed)?;
        let signed = reader.sequence(|inner| {
            let signed = inner.tlv_bytes()?.to_vec();
            while !inner.is_finished() {
                inner.tlv_bytes()?;
            }
            Ok::<_, x509_cert::der::Error>(signed)
        });
        let parsed = Self {
            signed: signed.map_err(malformed)?,
            der,
            certificate,
        };
        parsed.check_duplicates()?;
        Ok(parsed)
    }

    fn subject(&self) -> String {
        self.certificate.tbs_certificate().subject().to_string()
    }

    fn spki(&self) -> Option<Vec<u8>> {
        self.certificate
            .tbs_certificate()
            .subject_public_key_info()
            .to_der()
            .ok()
    }

    fn extensions(&self) -> impl Iterator<Item = &x509_cert::ext::Extension> {
        self.certificate.tbs_certificate().extensions().into_iter().flatten()
    }

    fn check_duplicates(&self) -> Result<(), String> {
        let mut seen = HashSet::new();
        for extension in self.extensions() {
            if !seen.insert(extension.extn_id) {
                return Err(format!("has the extension {} twice", extension.extn_id));
            }
        }
        Ok(())
    }

    fn check_time(&self, now: SystemTime) -> Result<(), String> {
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let validity = self.certificate.tbs_certificate().validity();
        if now < validity.not_before.to_unix_duration() {
            return Err(format!("is not valid before {}; check the clock", validity.not_before));
        }
        if now > validity.not_after.to_unix_duration() {
            return Err(format!("was valid until {}; sign with a new one", validity.not_after));
        }
        Ok(())
    }

    fn check_extensions(&self) -> Result<(), String> {
        let unknown = self
            .extensions()
            .find(|extension| extension.critical && !UNDERSTOOD.contains(&extension.extn_id));
        match unknown {
            Some(extension) => Err(format!(
                "has the critical extension {}, which is not known",
                extension.extn_id
            )),
            None => Ok(()),
        }
    }

    /// An extension, or an error when it cannot be read.
    fn extension<'a, T>(&'a self) -> Result<Option<T>, String>
    where
        T: x509_cert::der::Decode<'a> + x509_cert::der::oid::AssociatedOid,
        T::Error: std::fmt::Display,
    {
        let Some(found) = self.extensions().find(|extension| extension.extn_id == T::OID) else {
            return Ok(None);
        };
        let value = T::from_der(found.extn_value.as_bytes());
        value
            .map(Some)
            .map_err(|error| format!("has an extension that cannot be read: {error}"))
    }

    /// Whether the certificate may sign code.
    fn check_signer(&self) -> Result<(), String> {
        let usage: Option<KeyUsage> = self.extension()?;
        if usage.is_some_and(|usage| !usage.digital_signature()) {
            return Err("must not be used for signatures".to_owned());
        }
        let purposes: Option<ExtendedKeyUsage> = self.extension()?;
        if purposes.is_none_or(|purposes| !purposes.0.contains(&CODE_SIGNING)) {
            return Err("is not for signing code; issue one with the extended key usage `codeSigning`".to_owned());
        }
        Ok(())
    }

    /// Whether the certificate may issue another, with `below` authorities between it and the signer.
    fn check_authority(&self, below: usize) -> Result<(), String> {
        let constraints: Option<BasicConstraints> = self.extension()?;
        let Some(constraints) = constraints.filter(|constraints| constraints.ca) else {
            return Err("is not one of an authority".to_owned());
        };
        if constraints
            .path_len_constraint
            .is_some_and(|limit| usize::from(limit) < below)
        {
            return Err("allows fewer authorities below it".to_owned());
        }
        let usage: Option<KeyUsage> = self.extension()?;
        if usage.is_some_and(|usage| !usage.key_cert_sign()) {
            return Err("must not issue certificates".to_owned());
        }
        let purposes: Option<ExtendedKeyUsage> = self.extension()?;
        let allows =
            |purposes: &ExtendedKeyUsage| purposes.0.contains(&CODE_SIGNING) || purposes.0.contains(&ANY_USAGE);
        if purposes.is_some_and(|purposes| !allows(&purposes)) {
            return Err("must not issue certificates for signing code".to_owned());
        }
        Ok(())
    }

    /// Whether the signature under this certificate was made by the key of `issuer`.
    fn is_signed_by(&self, issuer: &Self) -> bool {
        let algorithm = self.certificate.signature_algorithm();
        // The signed part repeats how it is signed.
        if algorithm != self.certificate.tbs_certificate().signature() {
            return false;
        }
        let Some(signature) = self.certificate.signature().as_bytes() else {
            return false;
        };
        let ecdsa = |hash| {
            let key = issuer.spki().as_deref().and_then(PublicKey::from_spki);
            key.is_some_and(|key| key.verifies_with(hash, &self.signed, signature))
        };
        let ring = |scheme: &'static dyn ring::signature::VerificationAlgorithm, key_kind: &str| {
            let spki = issuer.certificate.tbs_certificate().subject_public_key_info();
            let key = spki.subject_public_key.as_bytes().unwrap_or_default();
            spki.algorithm.oid.to_string() == key_kind
                && ring::signature::UnparsedPublicKey::new(scheme, key)
                    .verify(&self.signed, signature)
                    .is_ok()
        };
        let rsa = "1.2.840.113549.1.1.1";
        match algorithm.oid.to_string().as_str() {
            "1.2.840.10045.4.3.2" => ecdsa(MessageHash::Sha256),
            "1.2.840.10045.4.3.3" => ecdsa(MessageHash::Sha384),
            "1.2.840.10045.4.3.4" => ecdsa(MessageHash::Sha512),
            "1.2.840.113549.1.1.11" => ring(&ring::signature::RSA_PKCS1_2048_8192_SHA256, rsa),
            "1.2.840.113549.1.1.12" => ring(&ring::signature::RSA_PKCS1_2048_8192_SHA384, rsa),
            "1.2.840.113549.1.1.13" => ring(&ring::signature::RSA_PKCS1_2048_8192_SHA512, rsa),
            "1.3.101.112" => ring(&ring::signature::ED25519, "1.3.101.112"),
            _ => false,
        }
    }
}
