//! The public vectors of schemas, payloads and proofs.

#![expect(clippy::unwrap_used, reason = "tests")]

mod vectors;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use escadre_verify::signature::{FileHash, Manifest};
use escadre_verify::{Reason, Signature, Trust};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::time::SystemTime;
use vectors::{folder, key, keyless, offline};

fn bundle(folder: &Path, name: &str) -> Vec<u8> {
    fs::read(folder.join("oms-spec/test-vectors-v1.0").join(name)).unwrap()
}

#[test]
fn schema_vectors_give_their_verdicts() {
    let Some(folder) = folder() else { return };
    let by_key = Trust::keys(&key(&folder, "signing-key-pub.pem")).unwrap();
    let by_certificate = Trust::authorities(&key(&folder, "ca-cert.pem")).unwrap();
    let by_identity = keyless(&folder, vectors::identity());
    let judge = |name: &str, trust: &Trust| {
        let verdict = Signature::verify(&bundle(&folder, name), trust, SystemTime::now());
        verdict.map(|_| ()).map_err(|refusal| refusal.reason)
    };
    assert_eq!(judge("valid/key.bundle.json", &by_key), Ok(()));
    assert_eq!(judge("valid/certificate.bundle.json", &by_certificate), Ok(()));
    assert_eq!(judge("valid/sigstore.bundle.json", &by_identity), Ok(()));
    for (name, reason) in [
        ("empty", Reason::BundleParse),
        ("missing-envelope", Reason::BundleParse),
        ("missing-verification-material", Reason::BundleParse),
        ("missing-tlog-entries", Reason::TransparencyProof),
    ] {
        for trust in [&by_key, &by_certificate, &by_identity] {
            assert_eq!(
                judge(&format!("invalid/{name}.bundle.json"), trust),
                Err(reason),
                "{name}"
            );
        }
    }
    let wrong: Value = serde_json::from_slice(&bundle(&folder, "invalid-payload/wrong-predicate.bundle.json")).unwrap();
    let payload = STANDARD
        .decode(wrong["dsseEnvelope"]["payload"].as_str().unwrap())
        .unwrap();
    assert_eq!(Manifest::parse(&payload).unwrap_err().reason, Reason::PredicateType);
}

/// The files of the models that the payload vectors are about, as the reference tool's tests make them.
fn content(path: &str) -> Vec<u8> {
    match path.rsplit('/').next().unwrap() {
        "." => b"This is a simple model".to_vec(),
        name => {
            let digits: Vec<_> = name.chars().skip(1).collect();
            match digits.as_slice() {
                [dir, file] => format!("This is file f{dir}{file} in d{dir}.").into_bytes(),
                [file] => format!("This is file f{file} in root.").into_bytes(),
                _ => Vec::new(),
            }
        }
    }
}

#[test]
fn payload_vectors_are_read_and_have_the_hashes_of_their_files() {
    let Some(folder) = folder() else { return };
    let payloads = folder.join("model-transparency-payloads/TestPayload");
    let (mut read, mut shards) = (0, 0);
    for entry in fs::read_dir(payloads).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let payload = fs::read(&path).unwrap();
        let resources = serde_json::from_slice::<Value>(&payload).unwrap()["predicate"]["resources"].clone();
        let manifest = match Manifest::parse(&payload) {
            Ok(manifest) => manifest,
            Err(refusal) => {
                // Nothing was hashed there: an empty folder, or an empty file in parts.
                assert_eq!(
                    (refusal.reason, resources.as_array().map_or(0, Vec::len)),
                    (Reason::ManifestEmpty, 0),
                    "{name}"
                );
                continue;
            }
        };
        read += 1;
        if !name.starts_with("sample_model") {
            continue;
        }
        for (file, hash) in manifest.files() {
            let content = content(file);
            match hash {
                FileHash::Whole(sum) => assert_eq!(
                    sum.to_string(),
                    escadre_verify::Digest::of(&content).to_string(),
                    "{name}"
                ),
                FileHash::Shards { size, bytes, sums } => {
                    assert_eq!(*bytes, content.len() as u64, "{name}: {file}");
                    let parts = content.chunks(usize::try_from(*size).unwrap());
                    let expected: Vec<_> = parts.map(|part| escadre_verify::Digest::of(part).to_string()).collect();
                    assert_eq!(sums.iter().map(ToString::to_string).collect::<Vec<_>>(), expected);
                    shards += 1;
                }
            }
        }
    }
    assert!(read >= 12 && shards >= 20, "{read} {shards}");
}

fn sigstore_bundle(folder: &Path, version: &str) -> Value {
    let path = folder.join(format!("model-transparency/{version}-sigstore/model.sig"));
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Another byte in the middle of what a field holds in base64.
fn corrupt(value: &mut Value) {
    let mut bytes = STANDARD.decode(value.as_str().unwrap()).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    *value = json!(STANDARD.encode(bytes));
}

#[test]
fn keyless_bundle_without_any_one_of_its_proofs_is_refused_offline() {
    offline(
        "keyless_bundle_without_any_one_of_its_proofs_is_refused_offline",
        |folder| {
            let trust = keyless(folder, vectors::identity());
            let verify = |bundle: &Value| Signature::verify(bundle.to_string().as_bytes(), &trust, SystemTime::now());
            let good = sigstore_bundle(folder, "v1.1.0");
            assert!(verify(&good).is_ok());
            let entry = "/verificationMaterial/tlogEntries/0";
            let corrupted = [
                ("inclusionProof/hashes/0", Reason::TransparencyProof),
                ("inclusionProof/rootHash", Reason::TransparencyProof),
                ("inclusionPromise/signedEntryTimestamp", Reason::TransparencyProof),
                ("logId/keyId", Reason::TransparencyProof),
                ("canonicalizedBody", Reason::TransparencyProof),
            ];
            for (field, reason) in corrupted {
                let mut bundle = good.clone();
                corrupt(bundle.pointer_mut(&format!("{entry}/{field}")).unwrap());
                assert_eq!(verify(&bundle).unwrap_err().reason, reason, "{field}");
            }
            for field in [
                "logIndex",
                "inclusionProof/logIndex",
                "inclusionProof/treeSize",
                "integratedTime",
            ] {
                let mut bundle = good.clone();
                let value = bundle.pointer_mut(&format!("{entry}/{field}")).unwrap();
                let number: i64 = value.as_str().unwrap().parse().unwrap();
                *value = json!((number - 1).to_string());
                assert_eq!(
                    verify(&bundle).unwrap_err().reason,
                    Reason::TransparencyProof,
                    "{field}"
                );
            }
            for field in [
                "inclusionProof",
                "inclusionPromise",
                "integratedTime",
                "inclusionProof/checkpoint",
                "kindVersion",
            ] {
                let mut bundle = good.clone();
                *bundle.pointer_mut(&format!("{entry}/{field}")).unwrap() = Value::Null;
                assert_eq!(
                    verify(&bundle).unwrap_err().reason,
                    Reason::TransparencyProof,
                    "{field}"
                );
            }
            let mut bundle = good.clone();
            bundle["verificationMaterial"]["tlogEntries"] = json!([]);
            assert_eq!(verify(&bundle).unwrap_err().reason, Reason::TransparencyProof);
            // Every letter of the checkpoint is signed but the name of who signed.
            let mut bundle = good.clone();
            let checkpoint = bundle
                .pointer_mut(&format!("{entry}/inclusionProof/checkpoint/envelope"))
                .unwrap();
            *checkpoint = json!(checkpoint.as_str().unwrap().replacen(
                "rekor.sigstore.dev - ",
                "rekor.sigstore.dev - 9",
                1
            ));
            assert_eq!(verify(&bundle).unwrap_err().reason, Reason::TransparencyProof);
            let times = "/verificationMaterial/timestampVerificationData/rfc3161Timestamps/0/signedTimestamp";
            // What was stamped, and the signature at the end; the certificates between them are not believed.
            let token = STANDARD.decode(good.pointer(times).unwrap().as_str().unwrap()).unwrap();
            for at in [110, token.len() - 8] {
                let mut token = token.clone();
                token[at] ^= 1;
                let mut bundle = good.clone();
                *bundle.pointer_mut(times).unwrap() = json!(STANDARD.encode(token));
                assert_eq!(verify(&bundle).unwrap_err().reason, Reason::TransparencyProof, "{at}");
            }
        },
    );
}

#[test]
fn proofs_of_another_signature_are_refused_offline() {
    offline("proofs_of_another_signature_are_refused_offline", |folder| {
        let trust = keyless(folder, vectors::identity());
        let verify = |bundle: &Value| {
            let verdict = Signature::verify(bundle.to_string().as_bytes(), &trust, SystemTime::now());
            verdict.map(|_| ()).unwrap_err().reason
        };
        let (good, other) = (sigstore_bundle(folder, "v1.1.0"), sigstore_bundle(folder, "v1.0.0"));
        let mut entries = good.clone();
        entries["verificationMaterial"]["tlogEntries"] = other["verificationMaterial"]["tlogEntries"].clone();
        entries["verificationMaterial"]["timestampVerificationData"] = json!({});
        assert!(matches!(
            verify(&entries),
            Reason::TransparencyProof | Reason::CertificateInvalid
        ));
        let mut certificate = good.clone();
        certificate["verificationMaterial"]["certificate"] = other["verificationMaterial"]["certificate"].clone();
        assert!(matches!(
            verify(&certificate),
            Reason::CertificateInvalid | Reason::TransparencyProof
        ));
        let mut envelope = good.clone();
        envelope["dsseEnvelope"]["payload"] = other["dsseEnvelope"]["payload"].clone();
        assert_eq!(verify(&envelope), Reason::SignatureInvalid);
        let mut signature = good.clone();
        signature["dsseEnvelope"]["signatures"] = other["dsseEnvelope"]["signatures"].clone();
        assert!(matches!(
            verify(&signature),
            Reason::SignatureInvalid | Reason::TransparencyProof
        ));
        // Without the trust of the public logs and authorities, each of them alone.
        let root = fs::read(folder.join("trust/sigstore-production-trusted_root.json")).unwrap();
        for (missing, reason) in [
            ("tlogs", Reason::TransparencyProof),
            ("ctlogs", Reason::TransparencyProof),
            ("certificateAuthorities", Reason::CertificateInvalid),
            ("timestampAuthorities", Reason::TransparencyProof),
        ] {
            let mut root: Value = serde_json::from_slice(&root).unwrap();
            root[missing] = json!([]);
            let trust = Trust::keyless(root.to_string().as_bytes(), vectors::identity()).unwrap();
            let verdict = Signature::verify(good.to_string().as_bytes(), &trust, SystemTime::now());
            assert_eq!(verdict.map(|_| ()).unwrap_err().reason, reason, "{missing}");
        }
        assert!(Trust::keyless(b"{}", vectors::identity()).is_err());
        assert!(
            Trust::keyless(
                &root,
                escadre_verify::signature::Identity {
                    identity: String::new(),
                    issuer: "x".to_owned()
                }
            )
            .is_err()
        );
    });
}
