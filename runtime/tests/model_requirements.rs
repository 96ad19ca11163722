//! What a model must keep to beside its digest: signatures, licences, templates, formats.

#![expect(clippy::unwrap_used, reason = "a helper of tests fails the test")]

mod serving;

use escadre_runtime::model::{LoadError, LoadOptions, Loaded, load};
use escadre_runtime::requirements::Requirements;
use escadre_verify::signature::{SigningKey, sign};
use escadre_verify::{Reason, Refusal, VerifiedModel};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::SystemTime;

/// The digest of the template in the model.
fn template_digest() -> String {
    let loaded = load_with(&serving::model(), &json!([])).unwrap();
    loaded.description.template_digest.unwrap()
}

fn requirements(demanded: &Value) -> Requirements {
    demanded.to_string().parse().unwrap()
}

fn load_with(path: &Path, demanded: &Value) -> Result<Loaded, LoadError> {
    let mut model = VerifiedModel::open(path, None, &mut |_, _| {}).unwrap();
    let requirements = requirements(demanded);
    requirements.check_signatures(&mut model, SystemTime::now())?;
    let options = LoadOptions {
        max_context: Some(64),
        requirements: Arc::new(requirements),
        ..LoadOptions::default()
    };
    load(&model, &options, &mut |_, _| {})
}

fn refusal(result: Result<Loaded, LoadError>) -> Refusal {
    match result {
        Err(LoadError::Refused(refusal)) => refusal,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it was loaded"),
    }
}

/// A new key, as OpenSSL writes it.
fn new_key() -> SigningKey {
    let made = Command::new("openssl")
        .args(["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"])
        .output();
    SigningKey::from_pem(&made.unwrap().stdout).unwrap()
}

/// The model in a folder of its own, with a licence file and a signature.
fn signed_folder(key: &SigningKey) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(serving::model(), folder.path().join("model.gguf")).unwrap();
    fs::copy(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../LICENSE"),
        folder.path().join("LICENSE"),
    )
    .unwrap();
    let bundle = sign(folder.path(), key, &[], &mut |_, _| {}).unwrap();
    fs::write(folder.path().join("model.sig"), bundle).unwrap();
    folder
}

fn signed_by(key: &SigningKey) -> Value {
    json!([{"by": "ModelPolicy prod", "signatures": {"bundle": "model.sig", "anyOf": [{"publicKey": key.public_pem()}]}}])
}

#[test]
fn signed_model_is_loaded_and_its_signer_known() {
    let (key, other) = (new_key(), new_key());
    let folder = signed_folder(&key);
    let mut model = VerifiedModel::open(folder.path(), None, &mut |_, _| {}).unwrap();
    let mut demanded = signed_by(&other);
    demanded[0]["signatures"]["anyOf"]
        .as_array_mut()
        .unwrap()
        .push(json!({"publicKey": key.public_pem()}));
    let digest = model.digest();
    requirements(&demanded)
        .check_signatures(&mut model, SystemTime::now())
        .unwrap();
    assert!(
        model
            .signer()
            .unwrap()
            .to_string()
            .contains(&key.public().fingerprint().to_string())
    );
    assert_eq!(model.digest(), digest);
    // What is not signed cannot be read any more.
    assert!(model.contains("model.gguf") && model.contains("LICENSE") && !model.contains("model.sig"));
    assert_eq!(
        load_with(folder.path(), &demanded)
            .unwrap()
            .description
            .license
            .as_deref(),
        Some("Apache-2.0")
    );
}

#[test]
fn unsigned_foreign_and_tampered_models_are_refused_with_who_asks() {
    let (key, other) = (new_key(), new_key());
    let folder = signed_folder(&key);
    let foreign = refusal(load_with(folder.path(), &signed_by(&other)));
    assert_eq!(
        (foreign.reason, foreign.file.as_deref()),
        (Reason::KeyNotTrusted, Some("model.sig"))
    );
    assert!(
        foreign.message.starts_with("ModelPolicy prod, signatures: "),
        "{foreign}"
    );

    let unsigned = refusal(load_with(&serving::model(), &signed_by(&key)));
    assert_eq!(
        (unsigned.reason, unsigned.file.as_deref()),
        (Reason::FileMissing, Some("model.sig"))
    );

    fs::write(folder.path().join("chat_template.jinja"), "{{ messages }}").unwrap();
    let added = refusal(load_with(folder.path(), &signed_by(&key)));
    assert_eq!(
        (added.reason, added.file.as_deref()),
        (Reason::UnsignedFile, Some("chat_template.jinja"))
    );
    fs::remove_file(folder.path().join("chat_template.jinja")).unwrap();

    let license = folder.path().join("LICENSE");
    let mut text = fs::read(&license).unwrap();
    text[100] ^= 1;
    fs::write(&license, text).unwrap();
    let changed = refusal(load_with(folder.path(), &signed_by(&key)));
    assert_eq!(
        (changed.reason, changed.file.as_deref()),
        (Reason::DigestMismatch, Some("LICENSE"))
    );
}

#[test]
fn licence_template_and_format_decide_before_the_weights_are_packed() {
    let key = new_key();
    let folder = signed_folder(&key);
    let template = template_digest();
    let other = format!("sha256:{}", "0".repeat(64));
    let table = [
        (json!({"licenses": {"allow": ["Apache-2.0"]}}), None),
        (
            json!({"licenses": {"allow": ["MIT"]}}),
            Some((Reason::LicenseNotAllowed, "licenses: ")),
        ),
        (
            json!({"licenses": {"deny": ["Apache-2.0"]}}),
            Some((Reason::LicenseNotAllowed, "licenses: ")),
        ),
        (
            json!({"license": "Apache-2.0", "licenses": {"allow": ["Apache-2.0"]}}),
            None,
        ),
        (json!({"license": "MIT"}), Some((Reason::LicenseConflict, "license: "))),
        (json!({"templates": [template]}), None),
        (
            json!({"templates": [other]}),
            Some((Reason::TemplateNotApproved, "templates: ")),
        ),
        (json!({"formats": ["GGUF"]}), None),
        (
            json!({"formats": ["Safetensors"]}),
            Some((Reason::FormatRefused, "formats: ")),
        ),
    ];
    for (demanded, expected) in table {
        let mut named = demanded.clone();
        named["by"] = json!("ModelPolicy prod");
        let result = load_with(folder.path(), &json!([named]));
        match expected {
            None => assert!(result.is_ok(), "{demanded}: {:?}", result.err()),
            Some((reason, field)) => {
                let refusal = refusal(result);
                assert_eq!(refusal.reason, reason, "{demanded}: {refusal}");
                assert!(
                    refusal.message.starts_with(&format!("ModelPolicy prod, {field}")),
                    "{refusal}"
                );
            }
        }
    }
}

#[test]
fn model_that_names_no_licence_needs_one_in_the_manifest() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    fs::copy(serving::model(), &path).unwrap();
    let allow = json!({"by": "ModelPolicy prod", "licenses": {"allow": ["MIT", "Apache-2.0"]}});
    let found = load_with(&path, &json!([])).unwrap().description.license;
    let result = load_with(&path, &json!([allow]));
    match found {
        // The file itself says it.
        Some(license) => assert_eq!((license.as_str(), result.is_ok()), ("Apache-2.0", true)),
        None => assert_eq!(refusal(result).reason, Reason::LicenseUnknown),
    }
    let declared = json!({"by": "spec.model", "license": "Apache-2.0"});
    assert!(load_with(&path, &json!([declared, allow])).is_ok());
}

#[test]
fn requirements_that_are_not_known_are_refused() {
    let table = [
        ("{}", "not a list of requirements"),
        (r#"[{"by": "p", "egress": "None"}]"#, "egress"),
        (r#"[{"formats": ["GGUF"]}]"#, "by"),
        (r#"[{"by": "p", "formats": ["Pickle"]}]"#, "Pickle"),
        (r#"[{"by": "p", "license": "Apache 2"}]"#, "p, license: "),
        (r#"[{"by": "p", "licenses": {"deny": ["x"]}}]"#, "p, licenses: "),
        (r#"[{"by": "p", "templates": ["x"]}]"#, "sha256"),
        (
            r#"[{"by": "p", "signatures": {"bundle": "s", "anyOf": [{"publicKey": "x"}]}}]"#,
            "p, signatures: ",
        ),
        (
            r#"[{"by": "p", "signatures": {"bundle": "s", "anyOf": [{"key": "x"}]}}]"#,
            "key",
        ),
    ];
    for (text, words) in table {
        let error = text.parse::<Requirements>().unwrap_err().to_string();
        assert!(error.contains(words), "{text}: {error}");
    }
}
