//! The project's own vectors in `tests/signed`: one model, signed by this project and by the reference tool, with every
//! kind of key, hash and serialisation.
//!
//! `cargo test -p escadre-verify --test signature_own -- --ignored` writes them again.

#![expect(clippy::unwrap_used, reason = "tests")]

mod tool;
mod vectors;

use escadre_verify::signature::{SigningKey, sign};
use escadre_verify::{Signature, Strictness, Trust, VerifiedModel};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tool::{Curve, Reference, private_key, write, write_model};
use vectors::copy;

fn signed() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/signed")
}

/// The signature files of both tools: what they sign, and with what.
const FILES: [(&str, &str, &str); 14] = [
    ("ours-p256.sig", "model", "p256.pem"),
    ("ours-p384.sig", "model", "p384.pem"),
    ("ours-p521.sig", "model", "p521.pem"),
    ("ours-file.sig", "model/config.json", "p256.pem"),
    ("ours-ignoring.sig", "model", "p256.pem"),
    ("reference-p256.sig", "model", "p256.pem"),
    ("reference-p384.sig", "model", "p384.pem"),
    ("reference-p521.sig", "model", "p521.pem"),
    ("reference-file.sig", "model/config.json", "p256.pem"),
    ("reference-ignoring.sig", "model", "p256.pem"),
    ("reference-blake3.sig", "model", "p256.pem"),
    ("reference-shards.sig", "model", "p256.pem"),
    ("reference-shards-file.sig", "model/config.json", "p256.pem"),
    ("reference-certificate.sig", "model", "ca.pem"),
];

/// The middle of 2027, when the certificates are valid.
fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_hours(504_000)
}

fn trust(name: &str) -> Trust {
    let pem = fs::read(signed().join(name)).unwrap();
    if name == "ca.pem" {
        Trust::authorities(&pem).unwrap()
    } else {
        Trust::keys(&pem).unwrap()
    }
}

fn open(model: &Path, signature: &str, trusted: &str) -> Result<VerifiedModel, escadre_verify::Refusal> {
    let manifest = Signature::verify(&fs::read(signed().join(signature)).unwrap(), &trust(trusted), now())?;
    let model = VerifiedModel::open_signed(model, &manifest, Strictness::Exact, &mut |_, _| ())?;
    model.check(&mut |_, _| ())?;
    Ok(model)
}

#[test]
fn vectors_of_both_tools_are_verified() {
    let scratch = tempfile::tempdir().unwrap();
    let model = scratch.path().join("model");
    copy(&signed().join("model"), &model);
    let digest = VerifiedModel::open(&model, None, &mut |_, _| ()).unwrap().digest();
    for (signature, what, trusted) in FILES {
        let opened = open(&scratch.path().join(what), signature, trusted);
        let opened = opened.unwrap_or_else(|refusal| panic!("{signature}: {refusal}"));
        assert!(opened.digest() == digest || what != "model", "{signature}");
        let other = if trusted == "p256.pem" { "p384.pem" } else { "p256.pem" };
        assert!(
            open(&scratch.path().join(what), signature, other).is_err(),
            "{signature}"
        );
    }
    fs::write(model.join("config.json"), b"{\"layers\": 3}\n").unwrap();
    for (signature, what, trusted) in FILES {
        let refusal = open(&scratch.path().join(what), signature, trusted)
            .map(|_| ())
            .unwrap_err();
        assert_eq!(refusal.reason, escadre_verify::Reason::DigestMismatch, "{signature}");
        assert_eq!(refusal.file.as_deref(), Some("config.json"));
    }
}

#[test]
fn certificates_are_judged_at_the_time_that_is_given() {
    let bundle = fs::read(signed().join("reference-certificate.sig")).unwrap();
    let late = SystemTime::UNIX_EPOCH + Duration::from_hours(1_111_111);
    for moment in [SystemTime::UNIX_EPOCH, late] {
        let refusal = Signature::verify(&bundle, &trust("ca.pem"), moment).unwrap_err();
        assert_eq!(refusal.reason, escadre_verify::Reason::CertificateInvalid);
    }
    let signer = Signature::verify(&bundle, &trust("ca.pem"), now())
        .unwrap()
        .signer()
        .to_string();
    assert!(
        signer.starts_with("certificate CN=signer of models (sha256:"),
        "{signer}"
    );
}

/// A certificate for the key on P-256, and the ones that it leads to.
fn certificates() -> (String, String, String) {
    let params = |name: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = rcgen::date_time_ymd(2025, 1, 1);
        params.not_after = rcgen::date_time_ymd(2075, 1, 1);
        params
    };
    let authority = |name: &str| {
        let mut params = params(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params
    };
    let root = CertifiedIssuer::self_signed(authority("authority"), KeyPair::generate().unwrap()).unwrap();
    let middle = CertifiedIssuer::signed_by(authority("department"), KeyPair::generate().unwrap(), &root).unwrap();
    let mut leaf = params("signer of models");
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
    let key = KeyPair::from_pem(&private_key(Curve::P256)).unwrap();
    (root.pem(), middle.pem(), leaf.signed_by(&key, &middle).unwrap().pem())
}

#[test]
#[ignore = "writes the vectors again"]
fn vectors_are_written() {
    let folder = signed();
    write_model(&folder.join("model"));
    let scratch = tempfile::tempdir().unwrap();
    let mut reference = Reference::start();
    for (name, curve) in [("p256", Curve::P256), ("p384", Curve::P384), ("p521", Curve::P521)] {
        let pem = private_key(curve);
        let key = SigningKey::from_pem(pem.as_bytes()).unwrap();
        write(&folder, &format!("{name}.pem"), key.public_pem());
        let path = write(scratch.path(), &format!("{name}.key"), &pem);
        let mut both = |kind: &str, what: &str, ignored: &[String]| {
            let bundle = sign(&folder.join(what), &key, ignored, &mut |_, _| ()).unwrap();
            write(&folder, &format!("ours-{kind}.sig"), bundle);
            let signature = folder.join(format!("reference-{kind}.sig"));
            let request = json!({"action": "sign", "model": folder.join(what), "key": path, "signature": signature, "ignore": ignored});
            reference.ask(&request).unwrap();
        };
        both(name, "model", &[]);
        if matches!(curve, Curve::P256) {
            both("file", "model/config.json", &[]);
            both("ignoring", "model", &["logs".to_owned(), "model.sig".to_owned()]);
        }
    }
    let (root, middle, leaf) = certificates();
    write(&folder, "ca.pem", root);
    let middle = write(scratch.path(), "middle.pem", middle);
    let leaf = write(scratch.path(), "leaf.pem", leaf);
    let key = scratch.path().join("p256.key");
    for (kind, what, more) in [
        ("blake3", "model", json!({"hash": "blake3"})),
        ("shards", "model", json!({"shard": 8})),
        ("shards-file", "model/config.json", json!({"shard": 8})),
        ("certificate", "model", json!({"certificate": leaf, "chain": [middle]})),
    ] {
        let signature = folder.join(format!("reference-{kind}.sig"));
        let mut request = json!({"action": "sign", "model": folder.join(what), "key": key, "signature": signature});
        request
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        reference.ask(&request).unwrap();
    }
}
