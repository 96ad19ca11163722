//! Each rule about bundles and statements: what breaks it is refused for that reason. Everything here is signed anew after
//! it was changed, so that no other rule can be why.

use super::*;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use p256::pkcs8::{EncodePrivateKey as _, LineEnding};
use serde_json::{Value, json};

/// The key whose secret number consists of the byte 0x11.
fn signing_key() -> SigningKey {
    let secret = p256::SecretKey::from_slice(&[0x11; 32]).unwrap();
    SigningKey::from_pem(secret.to_pkcs8_pem(LineEnding::LF).unwrap().as_bytes()).unwrap()
}

fn trust() -> Trust {
    Trust::keys(signing_key().public_pem().as_bytes()).unwrap()
}

fn digest(content: &[u8]) -> String {
    Digest::of(content).hex()
}

/// A statement about these resources, with the right root digest.
fn statement(serialization: impl Into<Value>, resources: impl Into<Value>) -> Value {
    let (serialization, resources) = (serialization.into(), resources.into());
    let mut all = Vec::new();
    for resource in resources.as_array().unwrap() {
        let digest: Option<Digest> = resource["digest"]
            .as_str()
            .and_then(|digest| format!("sha256:{digest}").parse().ok());
        all.extend(digest.map(|digest| *digest.as_bytes()).unwrap_or_default());
    }
    json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "model", "digest": {"sha256": digest(&all)}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {"serialization": serialization, "resources": resources},
    })
}

fn files() -> Value {
    json!({"method": "files", "hash_type": "sha256", "allow_symlinks": false})
}

fn shards() -> Value {
    json!({"method": "shards", "hash_type": "sha256", "allow_symlinks": false, "shard_size": 8})
}

fn file(name: &str) -> Value {
    json!({"name": name, "algorithm": "sha256", "digest": digest(name.as_bytes())})
}

fn valid() -> Value {
    statement(files(), json!([file("a/b.bin"), file("c")]))
}

/// A bundle around a payload, signed by the key of the tests.
fn signed(payload: &[u8]) -> Vec<u8> {
    let key = signing_key();
    let signature = key.sign(&bundle::signed_bytes(payload));
    bundle::write("a hint", payload, &signature)
}

fn verify(bundle: &[u8]) -> Result<SignedManifest, Refusal> {
    Signature::verify(bundle, &trust(), SystemTime::UNIX_EPOCH)
}

fn reason_of_statement(statement: &Value) -> Reason {
    verify(&signed(statement.to_string().as_bytes())).unwrap_err().reason
}

fn reason_of_bundle(change: impl FnOnce(&mut Value)) -> Reason {
    let mut bundle: Value = serde_json::from_slice(&signed(valid().to_string().as_bytes())).unwrap();
    change(&mut bundle);
    verify(bundle.to_string().as_bytes()).unwrap_err().reason
}

#[test]
fn valid_statement_lists_its_files_and_the_signer() {
    let manifest = verify(&signed(valid().to_string().as_bytes())).unwrap();
    let files: Vec<_> = manifest.files().map(|(name, _)| name).collect();
    assert_eq!(files, ["a/b.bin", "c"]);
    let fingerprint = signing_key().public().fingerprint();
    assert_eq!(manifest.signer(), &Signer::Key { fingerprint });
    assert_eq!(manifest.name(), "model");
}

#[test]
fn unknown_fields_that_say_nothing_about_hashing_are_ignored() {
    let mut statement = valid();
    statement["predicate"]["model_card"] = json!({"author": "somebody"});
    statement["predicate"]["resources"][0]["uri"] = json!("https://example.com");
    statement["predicate"]["serialization"]["ignore_paths"] = json!([".git", "logs/"]);
    let manifest = verify(&signed(statement.to_string().as_bytes())).unwrap();
    assert_eq!(manifest.ignore_paths().collect::<Vec<_>>(), [".git", "logs"]);
}

/// The valid statement with another value at a JSON pointer.
fn set(pointer: &str, value: impl Into<Value>) -> Value {
    let mut statement = valid();
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    statement.pointer_mut(parent).unwrap()[field] = value.into();
    statement
}

#[test]
fn every_rule_of_statements_has_its_reason() {
    let table = [
        (
            set("/_type", json!("https://in-toto.io/Statement/v0.1")),
            Reason::ManifestSchema,
        ),
        (
            set("/predicateType", json!("https://slsa.dev/provenance/v1")),
            Reason::PredicateType,
        ),
        (
            set("/predicateType", json!("https://model_signing/Digests/v0.1")),
            Reason::LegacyBundle,
        ),
        (set("/predicateType", Value::Null), Reason::ManifestSchema),
        (set("/subject", json!([])), Reason::SubjectCount),
        (set("/subject", json!([{}, {}])), Reason::SubjectCount),
        (set("/subject", json!([{"name": "m"}])), Reason::ManifestSchema),
        (
            set("/subject", json!([{"digest": {"sha512": "00"}}])),
            Reason::ManifestSchema,
        ),
        (
            set("/subject", json!([{"digest": {"sha256": "00"}}])),
            Reason::DigestFormat,
        ),
        (
            set("/subject", json!([{"digest": {"sha256": digest(b"other")}}])),
            Reason::RootDigest,
        ),
        (set("/predicate", Value::Null), Reason::ManifestSchema),
        (set("/predicate/resources", json!([])), Reason::ManifestEmpty),
        (set("/predicate/resources", json!({})), Reason::ManifestSchema),
        (set("/predicate/resources", json!([1])), Reason::ManifestSchema),
        (set("/predicate/serialization", Value::Null), Reason::ManifestSchema),
        (json!([]), Reason::ManifestSchema),
    ];
    for (statement, reason) in table {
        assert_eq!(reason_of_statement(&statement), reason, "{statement}");
    }
}

#[test]
fn every_rule_about_hashing_has_its_reason() {
    let serialization = "/predicate/serialization";
    let table = [
        (
            set(&format!("{serialization}/method"), json!("tensors")),
            Reason::ManifestSchema,
        ),
        (
            set(&format!("{serialization}/hash_type"), json!("blake2b")),
            Reason::HashNotAllowed,
        ),
        (
            set(&format!("{serialization}/hash_type"), json!("md5")),
            Reason::HashNotAllowed,
        ),
        (
            set(&format!("{serialization}/hash_type"), json!("blake3")),
            Reason::HashNotAllowed,
        ),
        (
            set(&format!("{serialization}/allow_symlinks"), json!("no")),
            Reason::ManifestSchema,
        ),
        (
            set(&format!("{serialization}/shard_size"), json!(8)),
            Reason::ManifestSchema,
        ),
        (
            set(&format!("{serialization}/chunking"), json!("fast")),
            Reason::ManifestSchema,
        ),
        (
            set(&format!("{serialization}/ignore_paths"), json!("x")),
            Reason::ManifestSchema,
        ),
        (
            set(&format!("{serialization}/ignore_paths"), json!([1])),
            Reason::ManifestSchema,
        ),
        (
            set(&format!("{serialization}/ignore_paths"), json!(["/etc"])),
            Reason::IgnorePathInvalid,
        ),
        (
            set(&format!("{serialization}/ignore_paths"), json!(["a/../.."])),
            Reason::IgnorePathInvalid,
        ),
    ];
    for (statement, reason) in table {
        assert_eq!(reason_of_statement(&statement), reason, "{statement}");
    }
}

#[test]
fn every_rule_of_resources_has_its_reason() {
    let one = |resource: Value| statement(files(), json!([resource]));
    let with = |field: &str, value: Value| {
        let mut resource = file("a");
        resource[field] = value;
        one(resource)
    };
    let table = [
        (with("name", Value::Null), Reason::ManifestSchema),
        (with("algorithm", Value::Null), Reason::ManifestSchema),
        (with("digest", Value::Null), Reason::ManifestSchema),
        (with("algorithm", json!("blake3")), Reason::HashNotAllowed),
        (with("algorithm", json!("blake2b")), Reason::HashNotAllowed),
        (with("algorithm", json!("SHA256")), Reason::HashNotAllowed),
        (with("algorithm", json!("sha256-sharded-8")), Reason::HashNotAllowed),
        (with("digest", json!(digest(b"a").to_uppercase())), Reason::DigestFormat),
        (with("digest", json!("00")), Reason::DigestFormat),
        (with("name", json!("../a")), Reason::PathInvalid),
        (with("name", json!("/a")), Reason::PathInvalid),
        (with("name", json!("./a")), Reason::PathInvalid),
        (with("name", json!("a\nb")), Reason::PathInvalid),
        (with("name", json!("")), Reason::PathInvalid),
        (
            statement(files(), json!([file("a"), file("a")])),
            Reason::DuplicateResource,
        ),
        (statement(files(), json!([file("."), file("a")])), Reason::PathInvalid),
    ];
    for (statement, reason) in table {
        assert_eq!(reason_of_statement(&statement), reason, "{statement}");
    }
}

#[test]
fn shards_make_up_files_in_both_spellings() {
    let long = |name: &str| json!({"name": name, "algorithm": "sha256-sharded-8", "digest": digest(b"x")});
    let mut float = shards();
    float["shard_size"] = json!(8.0);
    for serialization in [shards(), float] {
        let resources = json!([long("a:0:8"), file("a:8:16"), long("a:16:19"), file("b:c:0:3")]);
        let manifest = verify(&signed(statement(serialization, resources).to_string().as_bytes())).unwrap();
        let lengths: Vec<_> = manifest.files().map(|(name, hash)| (name, hash.bytes())).collect();
        assert_eq!(lengths, [("a", Some(19)), ("b:c", Some(3))]);
    }
}

#[test]
fn shards_that_make_up_no_file_are_refused() {
    let table: [(&[&str], Reason); 15] = [
        (&["a"], Reason::ShardLayout),
        (&["a:0"], Reason::ShardLayout),
        (&["a:0:x"], Reason::ShardLayout),
        (&["a:+0:8"], Reason::ShardLayout),
        (&["a:0:08"], Reason::ShardLayout),
        (&["a:0:99999999999999999999"], Reason::ShardLayout),
        (&["a:0:0"], Reason::ShardLayout),
        (&["a:8:16"], Reason::ShardLayout),
        (&["a:0:9"], Reason::ShardLayout),
        (&["a:0:4", "a:4:8"], Reason::ShardLayout),
        (&["a:0:8", "a:16:19"], Reason::ShardLayout),
        (&["a:0:8", "a:4:12"], Reason::DuplicateResource),
        (&["a:0:8", "a:0:8"], Reason::DuplicateResource),
        (&["../a:0:8"], Reason::PathInvalid),
        (&[":0:8"], Reason::PathInvalid),
    ];
    for (names, reason) in table {
        let resources: Vec<_> = names.iter().map(|name| file(name)).collect();
        assert_eq!(
            reason_of_statement(&statement(shards(), json!(resources))),
            reason,
            "{names:?}"
        );
    }
    let wrong = json!([{"name": "a:0:8", "algorithm": "sha256-sharded-9", "digest": digest(b"x")}]);
    assert_eq!(reason_of_statement(&statement(shards(), wrong)), Reason::ShardLayout);
    for size in [json!(0), json!(-8), json!(8.5), json!("8"), json!(1e300), Value::Null] {
        let mut serialization = shards();
        serialization["shard_size"] = size;
        let reason = reason_of_statement(&statement(serialization.clone(), json!([file("a:0:8")])));
        assert_eq!(reason, Reason::ManifestSchema, "{serialization}");
    }
}

#[test]
fn every_rule_of_bundles_has_its_reason() {
    let material = |value: Value| move |bundle: &mut Value| bundle["verificationMaterial"] = value;
    let envelope = |field: &'static str, value: Value| move |bundle: &mut Value| bundle["dsseEnvelope"][field] = value;
    let signature = json!({"sig": "AAAA"});
    let certificate = json!({"rawBytes": "AAAA"});
    assert_eq!(
        reason_of_bundle(|bundle| bundle["mediaType"] = json!("application/json")),
        Reason::BundleVersion
    );
    let old = "application/vnd.dev.sigstore.bundle+json;version=0.1";
    assert_eq!(
        reason_of_bundle(|bundle| bundle["mediaType"] = json!(old)),
        Reason::BundleVersion
    );
    assert_eq!(
        reason_of_bundle(|bundle| bundle["mediaType"] = Value::Null),
        Reason::BundleParse
    );
    assert_eq!(
        reason_of_bundle(|bundle| bundle["messageSignature"] = json!({})),
        Reason::BundleAmbiguous
    );
    assert_eq!(
        reason_of_bundle(|bundle| bundle["dsseEnvelope"] = Value::Null),
        Reason::BundleParse
    );
    assert_eq!(
        reason_of_bundle(envelope("payloadType", json!("text/plain"))),
        Reason::PayloadType
    );
    assert_eq!(reason_of_bundle(envelope("payload", json!("!"))), Reason::BundleParse);
    assert_eq!(reason_of_bundle(envelope("payload", json!("e30"))), Reason::BundleParse);
    assert_eq!(
        reason_of_bundle(envelope("signatures", json!([]))),
        Reason::SignatureCount
    );
    let two = json!([signature, signature]);
    assert_eq!(reason_of_bundle(envelope("signatures", two)), Reason::SignatureCount);
    assert_eq!(
        reason_of_bundle(envelope("signatures", json!([{}]))),
        Reason::BundleParse
    );
    assert_eq!(reason_of_bundle(material(json!({}))), Reason::BundleParse);
    let both = json!({"publicKey": {}, "certificate": certificate});
    assert_eq!(reason_of_bundle(material(both)), Reason::BundleAmbiguous);
    let chain = json!({"x509CertificateChain": {"certificates": [certificate]}});
    assert_eq!(reason_of_bundle(material(chain)), Reason::MethodNotAllowed);
    let empty = json!({"x509CertificateChain": {"certificates": []}});
    assert_eq!(reason_of_bundle(material(empty)), Reason::BundleParse);
    let many = json!({"x509CertificateChain": {"certificates": vec![certificate.clone(); 17]}});
    assert_eq!(reason_of_bundle(material(many)), Reason::BundleParse);
    assert_eq!(
        reason_of_bundle(material(json!({"certificate": certificate}))),
        Reason::TransparencyProof
    );
}

#[test]
fn signature_over_other_bytes_is_refused() {
    let sign = |signature: &[u8]| bundle::write("", valid().to_string().as_bytes(), signature);
    let key = signing_key();
    // Over the payload alone, without what says of which type it is.
    let plain = key.sign(valid().to_string().as_bytes());
    assert_eq!(verify(&sign(&plain)).unwrap_err().reason, Reason::KeyNotTrusted);
    assert_eq!(verify(&sign(b"")).unwrap_err().reason, Reason::KeyNotTrusted);
    let good = key.sign(&bundle::signed_bytes(valid().to_string().as_bytes()));
    assert!(verify(&sign(&good)).is_ok());
    let trailing = [good.as_slice(), &[0]].concat();
    assert!(verify(&sign(&trailing)).is_err());
    let known = bundle::write(&key.public().hint(), b"{}", &good);
    assert_eq!(verify(&known).unwrap_err().reason, Reason::SignatureInvalid);
}

#[test]
fn a_hint_proves_nothing_and_refuses_nothing() {
    let payload = valid().to_string().into_bytes();
    let signature = signing_key().sign(&bundle::signed_bytes(&payload));
    for hint in ["", "another", &signing_key().public().hint()] {
        assert!(verify(&bundle::write(hint, &payload, &signature)).is_ok());
    }
    let other = b"-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEaxfR8uEsQkf4vOblY6RA8ncDfYEt6zOg9KE5RdiYwpZP40Li/hp/m47n60p8D54WK84zV2sxXs7LtkBoN79R9Q==\n-----END PUBLIC KEY-----\n";
    let other = Trust::keys(other).unwrap();
    let bundle = bundle::write(&signing_key().public().hint(), &payload, &signature);
    let refusal = Signature::verify(&bundle, &other, SystemTime::UNIX_EPOCH).unwrap_err();
    assert_eq!(refusal.reason, Reason::KeyNotTrusted);
    let Trust::Keys(other) = other else { unreachable!() };
    let both = Trust::Keys(other.into_iter().chain([signing_key().public().clone()]).collect());
    assert!(Signature::verify(&bundle, &both, SystemTime::UNIX_EPOCH).is_ok());
}

#[test]
fn lax_json_is_refused_in_bundle_and_statement() {
    let bundle = String::from_utf8(signed(valid().to_string().as_bytes())).unwrap();
    let bundle = bundle.trim_end();
    let doubled = bundle.replacen("{\"mediaType\"", "{\"mediaType\":\"x\",\"mediaType\"", 1);
    let deep = format!("{{\"x\":{}{},{}", "[".repeat(64), "]".repeat(64), &bundle[1..]);
    let table = [
        (doubled, Reason::DuplicateKey),
        (format!("{bundle}{{}}"), Reason::BundleParse),
        (format!("\u{feff}{bundle}"), Reason::BundleParse),
        (deep, Reason::BundleParse),
        (String::new(), Reason::BundleParse),
        (bundle[..bundle.len() - 1].to_owned(), Reason::BundleParse),
        (" ".repeat((64 << 20) + 1), Reason::BundleTooLarge),
    ];
    for (bundle, reason) in table {
        assert_eq!(verify(bundle.as_bytes()).unwrap_err().reason, reason);
    }
    let statement = valid().to_string();
    let doubled = statement.replacen("{\"_type\"", "{\"_type\":1,\"_type\"", 1);
    assert_eq!(
        verify(&signed(doubled.as_bytes())).unwrap_err().reason,
        Reason::DuplicateKey
    );
    let trailing = format!("{statement} 1");
    assert_eq!(
        verify(&signed(trailing.as_bytes())).unwrap_err().reason,
        Reason::ManifestSchema
    );
}

/// Statements and bundles with bytes changed, dropped and doubled: nothing panics, and no change is accepted that
/// changes what was signed.
#[test]
fn no_mutation_panics_or_changes_what_is_accepted() {
    let payload = valid().to_string().into_bytes();
    let bundle = signed(&payload);
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = |limit: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % limit as u64).unwrap()
    };
    for _ in 0..4000 {
        let mut mutant = bundle.clone();
        for _ in 0..=next(3) {
            let at = next(mutant.len());
            match next(3) {
                0 => mutant[at] = u8::try_from(next(256)).unwrap(),
                1 => drop(mutant.remove(at)),
                _ => mutant.insert(at, mutant[at]),
            }
        }
        if let Ok(manifest) = verify(&mutant) {
            assert_eq!(manifest.root_digest(), Manifest::parse(&payload).unwrap().root_digest());
        }
        let mut mutant = payload.clone();
        let at = next(mutant.len());
        mutant[at] = u8::try_from(next(256)).unwrap();
        let _ = Manifest::parse(&mutant);
    }
}

#[test]
fn keys_of_all_curves_are_read_and_sign() {
    let p384 = p384::SecretKey::from_slice(&[0x22; 48]).unwrap();
    let mut bytes = [0x33; 66];
    bytes[0] = 0;
    let p521 = p521::SecretKey::from_slice(&bytes).unwrap();
    let p256 = p256::SecretKey::from_slice(&[0x44; 32]).unwrap();
    let pems = [
        p256.to_pkcs8_pem(LineEnding::LF).unwrap(),
        p256.to_sec1_pem(LineEnding::LF).unwrap(),
        p384.to_pkcs8_pem(LineEnding::LF).unwrap(),
        p384.to_sec1_pem(LineEnding::LF).unwrap(),
        p521.to_pkcs8_pem(LineEnding::LF).unwrap(),
        p521.to_sec1_pem(LineEnding::LF).unwrap(),
    ];
    for pem in &pems {
        let key = SigningKey::from_pem(format!("a description\n{}", pem.as_str()).as_bytes()).unwrap();
        let read = PublicKey::from_pem(key.public_pem().as_bytes()).unwrap();
        let signature = key.sign(b"message");
        assert!(read[0].verifies(b"message", &signature));
        assert!(!read[0].verifies(b"massage", &signature));
        assert!(
            Trust::keys(pem.as_bytes())
                .unwrap_err()
                .to_string()
                .contains("private key")
        );
    }
    let encrypted = b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----";
    assert!(
        SigningKey::from_pem(encrypted)
            .unwrap_err()
            .to_string()
            .contains("decrypt")
    );
    for pem in [
        b"".as_slice(),
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----",
    ] {
        assert!(SigningKey::from_pem(pem).is_err());
    }
    let ed25519 = b"-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAt8rlp1knGwjfbcXAYPYAkn0XiLz1x8O4t0YkEhie244=\n-----END PUBLIC KEY-----";
    assert!(Trust::keys(ed25519).is_err() && Trust::keys(b"nothing").is_err());
}

#[test]
fn payload_is_taken_as_it_came() {
    // White space and the order of keys are part of what is signed, and are no reason to refuse.
    let payload = serde_json::to_vec_pretty(&valid()).unwrap();
    let bundle = signed(&payload);
    assert!(verify(&bundle).is_ok());
    let mut value: Value = serde_json::from_slice(&bundle).unwrap();
    value["dsseEnvelope"]["payload"] = json!(STANDARD.encode(valid().to_string()));
    assert!(verify(value.to_string().as_bytes()).is_err());
}

/// Files of any length in parts of any length, in any order: they are put together again, and a part that is missing, moved
/// or named differently is noticed.
#[test]
fn parts_of_any_files_are_put_together_or_refused() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |limit: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % limit
    };
    for _ in 0..300 {
        let size = 1 + next(20);
        let lengths: Vec<u64> = (0..=next(4)).map(|_| 1 + next(100)).collect();
        let mut parts = Vec::new();
        for (file, length) in lengths.iter().enumerate() {
            let starts = (0..length.div_ceil(size)).map(|part| part * size);
            parts.extend(starts.map(|start| (file, start, length.min(&(start + size)).to_owned())));
        }
        for at in (1..parts.len()).rev() {
            parts.swap(at, usize::try_from(next(at as u64 + 1)).unwrap());
        }
        let parse = |parts: &[(usize, u64, u64)]| {
            let mut serialization = shards();
            serialization["shard_size"] = json!(size);
            let names = parts
                .iter()
                .map(|(name, start, end)| file(&format!("{name}:{start}:{end}")));
            let statement = statement(serialization, names.collect::<Value>());
            Manifest::parse(statement.to_string().as_bytes())
        };
        let manifest = parse(&parts).unwrap();
        let found: Vec<_> = manifest.files().map(|(_, hash)| hash.bytes().unwrap()).collect();
        assert_eq!(found, lengths);
        let at = usize::try_from(next(parts.len() as u64)).unwrap();
        let (name, start, end) = parts[at];
        let mut moved = parts.clone();
        moved[at] = (name, start + 1, end + 1);
        assert!(parse(&moved).is_err());
        let mut doubled = parts.clone();
        doubled.push((name, start, end));
        assert_eq!(parse(&doubled).unwrap_err().reason, Reason::DuplicateResource);
        let is_last = end == lengths[name];
        let mut fewer = parts.clone();
        fewer.remove(at);
        // Without its last part a file is a shorter one, and is compared as such.
        assert!(is_last || parse(&fewer).is_err());
    }
}
