//! The public test vectors of OpenSSF Model Signing 1.0: signed models of every release of the reference tool, and the
//! conformance suite. `cargo test -p escadre-verify --test signature_conformance -- --nocapture` prints the table.

#![expect(clippy::unwrap_used, reason = "tests")]

mod vectors;

use escadre_verify::signature::{Identity, Manifest};
use escadre_verify::{Reason, Strictness, Trust};
use serde_json::Value;
use std::fs;
use std::path::Path;
use vectors::{copy, key, keyless, offline, verify};

/// Cases whose verdict here is not the one of the suite, with the reason that is given.
const DEVIATIONS: [(&str, Reason, &str); 1] = [(
    "historical-v0.2.0-certificate",
    Reason::LegacyBundle,
    "the format of before the standard is refused by name",
)];
/// Cases that need a flag that only `verify` has.
const WITH_A_FLAG: [&str; 1] = ["key-simple-ignore-unsigned-files"];

/// What each refusal of the suite must be refused for: a verdict for another reason would prove nothing.
const REASONS: [(&str, Reason); 24] = [
    ("key-simple-missing-file_fail", Reason::FileMissing),
    ("key-simple-wrong-key_fail", Reason::KeyNotTrusted),
    ("key-simple-truncated-bundle_fail", Reason::BundleParse),
    ("sigstore-wrong-issuer_fail", Reason::IdentityMismatch),
    ("certificate-simple-wrong-ca_fail", Reason::CertificateInvalid),
    ("sigstore-verify-as-key_fail", Reason::MethodNotAllowed),
    ("key-simple-tampered-content_fail", Reason::DigestMismatch),
    ("malformed-empty-resources_fail", Reason::ManifestEmpty),
    ("key-verify-as-certificate_fail", Reason::MethodNotAllowed),
    ("key-simple-no-signature_fail", Reason::SignatureCount),
    ("malformed-wrong-statement-type_fail", Reason::ManifestSchema),
    ("malformed-no-predicate_fail", Reason::ManifestSchema),
    ("malformed-wrong-predicate_fail", Reason::PredicateType),
    ("malformed-wrong-payload-type_fail", Reason::PayloadType),
    ("key-simple-extra-file_fail", Reason::UnsignedFile),
    ("certificate-expired_fail", Reason::CertificateInvalid),
    ("sigstore-tampered-content_fail", Reason::DigestMismatch),
    ("malformed-no-subject_fail", Reason::SubjectCount),
    ("key-simple-wrong-mediatype_fail", Reason::BundleVersion),
    ("malformed-missing-envelope_fail", Reason::BundleParse),
    ("key-simple-corrupted-bundle_fail", Reason::BundleParse),
    ("malformed-empty-bundle_fail", Reason::BundleParse),
    ("sigstore-wrong-identity_fail", Reason::IdentityMismatch),
    ("historical-v0.2.0-certificate", Reason::LegacyBundle),
];

struct Row {
    case: String,
    expected: String,
    got: String,
    remark: &'static str,
}

#[expect(clippy::print_stdout, reason = "the table is for people")]
fn print(title: &str, rows: &[Row]) {
    println!("\n### {title}\n\n| Case | Expected | Got | Remark |\n|---|---|---|---|");
    for row in rows {
        println!("| {} | {} | {} | {} |", row.case, row.expected, row.got, row.remark);
    }
}

fn texts<'a>(value: &'a Value, name: &str) -> Vec<&'a str> {
    let list = value[name].as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().map(|text| text.as_str().unwrap()).collect()
}

/// Changes a copy of a model as a case says.
fn modify(model: &Path, changes: &Value) {
    for kind in ["inject", "tamper"] {
        for (name, content) in changes[kind].as_object().into_iter().flatten() {
            fs::write(model.join(name), content.as_str().unwrap()).unwrap();
        }
    }
    for name in texts(changes, "delete") {
        fs::remove_file(model.join(name)).unwrap();
    }
}

fn trust(folder: &Path, config: &Value) -> Trust {
    let options = &config["verify"];
    let text = |name: &str| options[name].as_str().unwrap().to_owned();
    let file = |path: &str| {
        let name = Path::new(path).file_name().unwrap().to_str().unwrap();
        // The suite names a key that it does not have; any other key on this curve does.
        key(
            folder,
            if path.contains("ec-p256") {
                "wrong-key-pub.pem"
            } else {
                name
            },
        )
    };
    match config["method"].as_str().unwrap() {
        "key" => Trust::keys(&file(&text("public_key"))).unwrap(),
        "certificate" => {
            let files: Vec<_> = texts(options, "cert_chain").into_iter().map(file).collect();
            Trust::authorities(&files.concat()).unwrap()
        }
        _ => {
            let wanted = Identity {
                identity: text("identity"),
                issuer: text("identity_provider"),
            };
            keyless(folder, wanted)
        }
    }
}

/// Why the statement in a bundle is refused, whoever signed it.
fn statement_fault(case: &Path) -> Reason {
    use base64::Engine as _;
    let bundle: Value = serde_json::from_slice(&fs::read(case.join("bundle.sig")).unwrap()).unwrap();
    let payload = bundle["dsseEnvelope"]["payload"].as_str().unwrap();
    let payload = base64::engine::general_purpose::STANDARD.decode(payload).unwrap();
    Manifest::parse(&payload).unwrap_err().reason
}

fn run_case(folder: &Path, case: &Path) -> Row {
    let name = case.file_name().unwrap().to_str().unwrap();
    let config: Value = serde_json::from_slice(&fs::read(case.join("config.json")).unwrap()).unwrap();
    let suite = folder.join("oms-conformance");
    let base = if config["model_relative_to"] == "test_dir" {
        case
    } else {
        &suite
    };
    let source = base.join(config["model"].as_str().unwrap());
    let scratch = tempfile::tempdir().unwrap();
    let model = scratch.path().join(source.file_name().unwrap());
    if source.is_dir() {
        copy(&source, &model);
        modify(&model, &config["model_modifications"]);
    } else {
        fs::copy(&source, &model).unwrap();
    }
    let strictness = if config["verify"]["ignore_unsigned_files"] == true {
        Strictness::IgnoreUnsigned
    } else {
        Strictness::Exact
    };
    let ignored = texts(&config["verify"], "ignore_paths");
    let result = verify(
        &model,
        &case.join("bundle.sig"),
        &trust(folder, &config),
        &ignored,
        strictness,
    );
    let wanted = config["expect"].as_str().unwrap_or("pass");
    let deviation = DEVIATIONS.iter().find(|(case, ..)| *case == name);
    let got = match result {
        Ok((manifest, _)) => {
            assert!(wanted == "pass" && deviation.is_none(), "{name} verifies");
            let files: Vec<_> = manifest.files().map(|(file, _)| file).collect();
            let wanted = texts(&config, "expected_signed_files");
            assert!(wanted.is_empty() || files == wanted, "{name}: {files:?}");
            "pass".to_owned()
        }
        Err(refusal) => {
            assert!(wanted == "fail" || deviation.is_some(), "{name} is refused: {refusal}");
            let (_, reason) = REASONS.iter().find(|(case, _)| *case == name).unwrap();
            if refusal.reason == Reason::SignatureInvalid {
                // The suite did not sign these: the statement by itself must be refused as well.
                assert_eq!(statement_fault(case), *reason, "{name}");
                format!("fail: {}, and the statement {reason}", refusal.reason)
            } else {
                assert_eq!(refusal.reason, *reason, "{name}: {refusal}");
                format!("fail: {reason}")
            }
        }
    };
    let flag = WITH_A_FLAG.contains(&name);
    assert_eq!(flag, strictness == Strictness::IgnoreUnsigned, "{name}");
    Row {
        case: name.to_owned(),
        expected: wanted.to_owned(),
        got,
        remark: match deviation {
            Some((.., why)) => why,
            None if flag => "with `--ignore-unsigned-files`, which `serve` does not have",
            None => "",
        },
    }
}

#[test]
fn conformance_suite_gives_its_verdicts_offline() {
    offline("conformance_suite_gives_its_verdicts_offline", |folder| {
        let mut cases = Vec::new();
        for kind in ["historical", "negative", "positive"] {
            let kind = fs::read_dir(folder.join("oms-conformance/verify").join(kind)).unwrap();
            cases.extend(kind.map(|case| case.unwrap().path()));
        }
        cases.sort();
        let rows: Vec<_> = cases.iter().map(|case| run_case(folder, case)).collect();
        print("Conformance suite", &rows);
        assert_eq!(rows.len(), 43);
        let refused = rows.iter().filter(|row| row.got != "pass").count();
        assert_eq!(refused, REASONS.len());
    });
}

#[test]
fn signed_models_of_every_release_give_their_verdicts_offline() {
    offline("signed_models_of_every_release_give_their_verdicts_offline", |folder| {
        let key = Trust::keys(&key(folder, "signing-key-pub.pem")).unwrap();
        let certificate = Trust::authorities(&vectors::key(folder, "ca-cert.pem")).unwrap();
        let keyless = keyless(folder, vectors::identity());
        let mut models: Vec<_> = fs::read_dir(folder.join("model-transparency"))
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect();
        models.sort();
        let mut rows = Vec::new();
        for model in &models {
            let name = model.file_name().unwrap().to_str().unwrap();
            let trust = match name.rsplit_once('-').unwrap().1 {
                "key" => &key,
                "certificate" => &certificate,
                _ => &keyless,
            };
            let is_single = matches!(name, "v0.3.1-elliptic-key" | "v1.0.0-elliptic-key");
            let opened = if is_single {
                model.join("signme-1")
            } else {
                model.clone()
            };
            let result = verify(
                &opened,
                &model.join("model.sig"),
                trust,
                &["model.sig", "ignore-me"],
                Strictness::Exact,
            );
            let is_legacy = name.starts_with("v0.2");
            let got = match result {
                Ok((_, opened)) => {
                    assert!(!is_legacy, "{name} verifies");
                    assert!(opened.read("signme-1").unwrap().starts_with(b"signme"), "{name}");
                    assert!(opened.read("model.sig").is_err());
                    "pass".to_owned()
                }
                Err(refusal) => {
                    assert!(is_legacy, "{name}: {refusal}");
                    assert_eq!(refusal.reason, Reason::LegacyBundle);
                    assert!(refusal.message.contains("0.2"), "{refusal}");
                    format!("fail: {}", refusal.reason)
                }
            };
            rows.push(Row {
                case: name.to_owned(),
                expected: if is_legacy { "fail" } else { "pass" }.to_owned(),
                got,
                remark: if is_legacy { DEVIATIONS[0].2 } else { "" },
            });
        }
        print("Signed models of every release", &rows);
        assert_eq!(rows.len(), 13);
    });
}
