//! `fetch` from a real registry: artifacts of ModelPack and ORAS, archives, logins and tokens.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::io::Write as _;
use std::path::Path;

use escadre_e2e::escadre::digest;
use escadre_e2e::sources::{CuttingProxy, LOGIN, Layer, Protection, Registry, fetch, model_digest, names, stored};
use serde_json::{Value, json};

const REPOSITORY: &str = "team/models/tiny";
const WEIGHTS: &[u8] = b"GGUF and then some weights";
const LICENSE: &[u8] = b"free";

/// What is recorded of a model's origin.
fn note(store: &Path, model: &str) -> Value {
    let file = stored(store, model).with_added_extension("json");
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

fn docker_config(registry: &Registry, password: &str) -> String {
    json!({"auths": {registry.host().to_string(): {"username": LOGIN.0, "password": password}}}).to_string()
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// A tar archive.
fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

#[tokio::test]
async fn model_pack_artifact_is_fetched_by_digest_and_by_tag() {
    let registry = Registry::start(Protection::None).await.unwrap();
    let layers = [
        Layer::model_pack("weight.v1.raw", "tiny.gguf", WEIGHTS),
        Layer::model_pack("doc.v1.raw", "LICENSE", LICENSE),
        Layer::model_pack("doc.v1.raw", "README.md", b"not part of what is served"),
        Layer::model_pack("code.v1.raw", "config.json", b"not a configuration of the model"),
    ];
    let manifest = registry.push(REPOSITORY, "v1", &layers).await.unwrap();
    let model = model_digest(&[("tiny.gguf", WEIGHTS), ("LICENSE", LICENSE)]);
    for version in [format!("@{manifest}"), ":v1".to_owned(), format!(":v1@{manifest}")] {
        let store = tempfile::tempdir().unwrap();
        let source = format!("--source=oci://{}/{REPOSITORY}{version}", registry.host());
        let fetched = fetch(store.path(), &[&source, &format!("--digest={model}")], &[])
            .await
            .unwrap();
        assert!(fetched.success, "{version}: {}", fetched.log);
        assert_eq!(names(&stored(store.path(), &model)).unwrap(), ["LICENSE", "tiny.gguf"]);
        let file = stored(store.path(), &model).join("tiny.gguf");
        assert_eq!(std::fs::read(file).unwrap(), WEIGHTS);
        assert_eq!(
            note(store.path(), &model)["resolvedRevision"],
            manifest.as_str(),
            "{version}"
        );
    }
}

#[tokio::test]
async fn oras_artifact_and_its_globs() {
    let registry = Registry::start(Protection::None).await.unwrap();
    let layers = [
        Layer::oras("small.gguf", WEIGHTS),
        Layer::oras("large.gguf", b"GGUF too"),
        Layer::oras("sub/extra.json", b"{}"),
    ];
    registry.push(REPOSITORY, "v2", &layers).await.unwrap();
    let source = format!("--source=oci://{}/{REPOSITORY}:v2", registry.host());
    let store = tempfile::tempdir().unwrap();
    let model = model_digest(&[("small.gguf", WEIGHTS), ("sub/extra.json", b"{}")]);
    let arguments = [
        source.as_str(),
        "--file=small*",
        "--file=sub/*.json",
        &format!("--digest={model}"),
    ];
    let fetched = fetch(store.path(), &arguments, &[]).await.unwrap();
    assert!(fetched.success, "{}", fetched.log);
    assert_eq!(names(&stored(store.path(), &model)).unwrap(), ["small.gguf", "sub"]);

    let other = tempfile::tempdir().unwrap();
    let arguments = [source.as_str(), "--file=*.bin", &format!("--digest={model}")];
    let fetched = fetch(other.path(), &arguments, &[]).await.unwrap();
    assert_eq!(fetched.reason(), "SourceUnavailable");
    assert!(fetched.message().contains("small.gguf"), "{}", fetched.message());
}

#[tokio::test]
async fn archives_are_unpacked_and_what_was_not_chosen_stays_away() {
    let registry = Registry::start(Protection::None).await.unwrap();
    let long = format!("{}/config.json", "long-folder".repeat(12));
    let packed = archive(&[("tiny.gguf", WEIGHTS), ("README.md", b"no"), (&long, b"{}")]);
    let config = gzip(&archive(&[("config.json", b"{\"a\": 1}")]));
    let layers = [
        Layer::model_pack("weight.v1.tar", "tiny.gguf", &packed),
        Layer::model_pack("weight.config.v1.tar+gzip", "config.json", &config),
    ];
    registry.push(REPOSITORY, "v3", &layers).await.unwrap();
    let source = format!("--source=oci://{}/{REPOSITORY}:v3", registry.host());
    let store = tempfile::tempdir().unwrap();
    let model = model_digest(&[("tiny.gguf", WEIGHTS), ("config.json", b"{\"a\": 1}")]);
    let fetched = fetch(store.path(), &[&source, &format!("--digest={model}")], &[])
        .await
        .unwrap();
    assert!(fetched.success, "{}", fetched.log);
    assert_eq!(
        names(&stored(store.path(), &model)).unwrap(),
        ["config.json", "tiny.gguf"]
    );
    let quarantine = store
        .path()
        .join("quarantine")
        .join(model.trim_start_matches("sha256:"));
    assert!(!quarantine.exists(), "the archives were kept");
}

#[tokio::test]
async fn registry_that_wants_a_login_gets_it_and_a_wrong_one_is_told() {
    let registry = Registry::start(Protection::Basic).await.unwrap();
    registry
        .push(REPOSITORY, "v1", &[Layer::oras("m.gguf", WEIGHTS)])
        .await
        .unwrap();
    let source = format!("--source=oci://{}/{REPOSITORY}:v1", registry.host());
    let digest = format!("--digest={}", digest(WEIGHTS));
    let arguments = [source.as_str(), digest.as_str()];
    let store = tempfile::tempdir().unwrap();

    let fetched = fetch(store.path(), &arguments, &[]).await.unwrap();
    assert_eq!(fetched.reason(), "SecretMissing");

    let wrong = docker_config(&registry, "wrong-7");
    let fetched = fetch(store.path(), &arguments, &[(".dockerconfigjson", &wrong)])
        .await
        .unwrap();
    assert_eq!(fetched.reason(), "SourceUnavailable");
    assert!(fetched.message().contains("credentials"), "{}", fetched.message());
    assert!(!fetched.log.contains("wrong-7"), "the password is in the log");

    let elsewhere = json!({"auths": {"ghcr.io": {"username": "u", "password": "p"}}}).to_string();
    let fetched = fetch(store.path(), &arguments, &[(".dockerconfigjson", &elsewhere)])
        .await
        .unwrap();
    assert_eq!(fetched.reason(), "SecretMissing");

    let right = docker_config(&registry, LOGIN.1);
    let fetched = fetch(store.path(), &arguments, &[(".dockerconfigjson", &right)])
        .await
        .unwrap();
    assert!(fetched.success, "{}", fetched.log);
    assert!(!fetched.log.contains(LOGIN.1), "the password is in the log");
}

#[tokio::test]
async fn registry_with_a_token_service_gets_tokens() {
    let registry = Registry::start(Protection::Token).await.unwrap();
    registry
        .push(REPOSITORY, "v1", &[Layer::oras("m.gguf", WEIGHTS)])
        .await
        .unwrap();
    let source = format!("--source=oci://{}/{REPOSITORY}:v1", registry.host());
    let digest = format!("--digest={}", digest(WEIGHTS));
    let arguments = [source.as_str(), digest.as_str()];
    let store = tempfile::tempdir().unwrap();

    let wrong = docker_config(&registry, "wrong-7");
    let fetched = fetch(store.path(), &arguments, &[(".dockerconfigjson", &wrong)])
        .await
        .unwrap();
    assert_eq!(fetched.reason(), "SourceUnavailable");
    assert!(fetched.message().contains("token service"), "{}", fetched.message());
    let fetched = fetch(store.path(), &arguments, &[]).await.unwrap();
    assert_eq!(fetched.reason(), "SecretMissing");
    assert_eq!(registry.tokens_given(), 0);

    let login = [("username", LOGIN.0), ("password", LOGIN.1)];
    let fetched = fetch(store.path(), &arguments, &login).await.unwrap();
    assert!(fetched.success, "{}", fetched.log);
    assert_eq!(
        registry.tokens_given(),
        1,
        "one token is enough for manifest and layers"
    );
}

#[tokio::test]
async fn missing_artifacts_and_indexes_say_what_is_wrong() {
    let registry = Registry::start(Protection::None).await.unwrap();
    let store = tempfile::tempdir().unwrap();
    let manifest = registry
        .push(REPOSITORY, "v1", &[Layer::oras("m.gguf", WEIGHTS)])
        .await
        .unwrap();
    let other = registry
        .push(REPOSITORY, "v2", &[Layer::oras("m.gguf", b"GGUF 2")])
        .await
        .unwrap();
    let kind = "application/vnd.oci.image.index.v1+json";
    let entry =
        |digest: &str| json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 1});
    // The registry checks that what an index names is there, not its length.
    let both = json!({"schemaVersion": 2, "mediaType": kind, "manifests": [entry(&manifest), entry(&other)]});
    registry.push_manifest(REPOSITORY, "both", kind, &both).await.unwrap();
    let one = json!({"schemaVersion": 2, "mediaType": kind, "manifests": [entry(&manifest)]});
    registry.push_manifest(REPOSITORY, "one", kind, &one).await.unwrap();
    let digest = format!("--digest={}", digest(WEIGHTS));
    for (version, reason, words) in [
        (":v9", "SourceUnavailable", "MANIFEST_UNKNOWN"),
        (":both", "FormatRefused", "an index of 2 manifests"),
        (":one", "", ""),
    ] {
        let source = format!("--source=oci://{}/{REPOSITORY}{version}", registry.host());
        let fetched = fetch(store.path(), &[&source, &digest], &[]).await.unwrap();
        assert_eq!(fetched.reason(), reason, "{version}: {}", fetched.log);
        assert!(fetched.message().contains(words), "{}", fetched.message());
    }
}

#[tokio::test]
async fn blob_that_was_changed_in_the_registry_is_refused() {
    let registry = Registry::start(Protection::None).await.unwrap();
    registry
        .push(REPOSITORY, "v1", &[Layer::oras("m.gguf", WEIGHTS)])
        .await
        .unwrap();
    let changed = vec![b'x'; WEIGHTS.len()];
    std::fs::write(registry.blob_file(&digest(WEIGHTS)), changed).unwrap();
    let store = tempfile::tempdir().unwrap();
    let source = format!("--source=oci://{}/{REPOSITORY}:v1", registry.host());
    let fetched = fetch(store.path(), &[&source, &format!("--digest={}", digest(WEIGHTS))], &[])
        .await
        .unwrap();
    assert_eq!(fetched.reason(), "DigestMismatch");
    assert!(fetched.message().starts_with("m.gguf"), "{}", fetched.message());
}

#[tokio::test]
async fn layer_that_breaks_off_is_resumed() {
    let registry = Registry::start(Protection::None).await.unwrap();
    let large = vec![7; 4 << 20];
    registry
        .push(REPOSITORY, "v1", &[Layer::oras("m.gguf", &large)])
        .await
        .unwrap();
    let proxy = CuttingProxy::start(registry.host(), 1 << 20, 3).unwrap();
    let store = tempfile::tempdir().unwrap();
    let source = format!("--source=oci://{}/{REPOSITORY}:v1", proxy.address());
    let fetched = fetch(store.path(), &[&source, &format!("--digest={}", digest(&large))], &[])
        .await
        .unwrap();
    assert!(fetched.success, "{}", fetched.log);
    assert_eq!(proxy.cuts_left(), 0);
    assert!(proxy.bytes() < 6 << 20, "{} bytes: it was begun anew", proxy.bytes());
}
