//! The bundle: what a signature file holds, before anything in it is believed.

use super::fields::{Fields, document};
use crate::refusal::{Reason, Refusal};
use serde_json::Value;

/// The one version that tools for models write.
const MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
/// What every such name starts with, whatever the version.
const MEDIA_TYPE_PREFIX: &str = "application/vnd.dev.sigstore.bundle";
/// The kind of payload that says which files a model has.
const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
/// More certificates than any chain has.
const MAX_CERTIFICATES: usize = 16;

/// With what a bundle says that it was signed. Nothing of it is trusted.
#[derive(Debug)]
pub(super) enum Material {
    /// A key, which the bundle does not have to hold.
    Key(KeyHint),
    /// Certificates, the one of the signer first.
    Chain(Vec<Vec<u8>>),
    /// A certificate of a few minutes, and proofs in a public log.
    Keyless,
}

/// Which key signed, as far as the bundle says.
#[derive(Debug, Default)]
pub(super) struct KeyHint {
    /// A text by which signer and verifier may know the key.
    pub(super) hint: Option<String>,
    /// The key itself as PEM or DER, in bundles of before version 1.1 of the reference tool.
    pub(super) key: Option<Vec<u8>>,
}

/// A signature file.
#[derive(Debug)]
pub(super) struct Bundle {
    pub(super) material: Material,
    /// What was signed.
    pub(super) payload: Vec<u8>,
    pub(super) signature: Vec<u8>,
}

impl Bundle {
    /// Reads a bundle.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        let value = document(bytes, "signature file", Reason::BundleParse)?;
        let fields = Fields::of(&value, "bundle", Reason::BundleParse)?;
        let media_type = fields.text("mediaType")?;
        if media_type != MEDIA_TYPE {
            let (reason, message) = if media_type.starts_with(MEDIA_TYPE_PREFIX) {
                (
                    Reason::BundleVersion,
                    "the bundle has another version; sign with a tool of the standard's version 1.0",
                )
            } else {
                (
                    Reason::BundleVersion,
                    "the file is not a Sigstore bundle; name the signature of the model",
                )
            };
            return Err(Refusal::new(reason, message).values(MEDIA_TYPE, media_type));
        }
        if fields.get("messageSignature").is_some() {
            return Err(Refusal::new(
                Reason::BundleAmbiguous,
                "the bundle signs a message and not a statement about files; sign the model with a tool for models",
            ));
        }
        let material = material(fields.object("verificationMaterial")?)?;
        let envelope = fields.object("dsseEnvelope")?;
        let payload_type = envelope.text("payloadType")?;
        if payload_type != PAYLOAD_TYPE {
            return Err(Refusal::new(
                Reason::PayloadType,
                "what was signed is not an in-toto statement; sign the model again",
            )
            .values(PAYLOAD_TYPE, payload_type));
        }
        let signatures = envelope.list("signatures")?;
        let [signature] = signatures else {
            return Err(Refusal::new(
                Reason::SignatureCount,
                "the bundle must have exactly one signature; sign the model again",
            )
            .values(1, signatures.len()));
        };
        Ok(Self {
            material,
            payload: envelope.bytes("payload")?,
            signature: Fields::of(signature, "signatures[0]", Reason::BundleParse)?.bytes("sig")?,
        })
    }
}

/// The bytes under a signature: the pre-authentication encoding of DSSE over the payload as it came.
pub(super) fn signed_bytes(payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {PAYLOAD_TYPE} {} ", PAYLOAD_TYPE.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

/// A bundle as the reference tool writes it for a key.
pub(super) fn write(hint: &str, payload: &[u8], signature: &[u8]) -> Vec<u8> {
    use base64::Engine as _;
    let base64 = base64::engine::general_purpose::STANDARD;
    let bundle = serde_json::json!({
        "mediaType": MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": hint}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.encode(payload),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": base64.encode(signature), "keyid": ""}],
        },
    });
    let mut text = bundle.to_string().into_bytes();
    text.push(b'\n');
    text
}

fn material(fields: Fields<'_>) -> Result<Material, Refusal> {
    let kinds = ["publicKey", "x509CertificateChain", "certificate"];
    let present: Vec<_> = kinds.into_iter().filter(|kind| fields.get(kind).is_some()).collect();
    let [kind] = present.as_slice() else {
        return Err(if present.is_empty() {
            fields.wrong("publicKey", "is missing, and no certificate is there instead")
        } else {
            Refusal::new(
                Reason::BundleAmbiguous,
                format!(
                    "the bundle names several ways to verify it: {}; sign the model again",
                    present.join(", ")
                ),
            )
        });
    };
    match *kind {
        "publicKey" => {
            let key = fields.object("publicKey")?;
            Ok(Material::Key(KeyHint {
                hint: key
                    .get("hint")
                    .map(|_| key.text("hint").map(str::to_owned))
                    .transpose()?,
                key: key.get("rawBytes").map(|_| key.bytes("rawBytes")).transpose()?,
            }))
        }
        "x509CertificateChain" => {
            let certificates = fields.object("x509CertificateChain")?.list("certificates")?;
            if certificates.is_empty() || certificates.len() > MAX_CERTIFICATES {
                return Err(fields.wrong("x509CertificateChain", "has no certificate, or too many"));
            }
            let der = |value: &Value| Fields::of(value, "certificates", Reason::BundleParse)?.bytes("rawBytes");
            Ok(Material::Chain(certificates.iter().map(der).collect::<Result<_, _>>()?))
        }
        _ => {
            fields.object("certificate")?.bytes("rawBytes")?;
            check_log_entries(fields)?;
            Ok(Material::Keyless)
        }
    }
}

/// Each log entry of a keyless bundle must carry all that proves it, so that nothing is left unchecked because it is not
/// there.
fn check_log_entries(fields: Fields<'_>) -> Result<(), Refusal> {
    let missing = |what: &str| {
        Refusal::new(
            Reason::TransparencyProof,
            format!("the bundle has no {what}; sign the model again with a tool that logs signatures"),
        )
    };
    let entries = match fields.get("tlogEntries") {
        Some(_) => fields.list("tlogEntries")?,
        None => &[],
    };
    if entries.is_empty() {
        return Err(missing("entry of a transparency log"));
    }
    let has_time = match fields.get("timestampVerificationData") {
        Some(data) => Fields::of(data, "timestampVerificationData", Reason::BundleParse)?
            .get("rfc3161Timestamps")
            .and_then(Value::as_array)
            .is_some_and(|times| !times.is_empty()),
        None => false,
    };
    for entry in entries {
        let entry = Fields::of(entry, "tlogEntries", Reason::TransparencyProof)?;
        let proof = entry.object("inclusionProof")?;
        let checkpoint = proof.object("checkpoint")?.text("envelope")?;
        let version = entry.object("kindVersion")?;
        // The second kind of log promises no time, so that an authority must have given one.
        if version.text("version")? == "0.0.2" && version.text("kind")? == "hashedrekord" {
            if !has_time {
                return Err(missing("time of a timestamp authority, which its log needs"));
            }
            continue;
        }
        entry.object("inclusionPromise")?.text("signedEntryTimestamp")?;
        entry.need("integratedTime")?;
        // The proof is about the tree that the log signed, and no other.
        let size = proof.need("treeSize")?;
        let size = size.as_str().map_or_else(|| size.to_string(), str::to_owned);
        let signed = checkpoint.lines().nth(1).unwrap_or_default();
        if signed != size {
            return Err(Refusal::new(
                Reason::TransparencyProof,
                "the proof is about another state of the log than the one that the log signed",
            )
            .values(signed, size));
        }
    }
    Ok(())
}
