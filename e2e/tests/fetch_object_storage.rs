//! `fetch` from real object storage that speaks S3.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use escadre_e2e::escadre::digest;
use escadre_e2e::sources::{CuttingProxy, KEYS, ObjectStorage, REGION, fetch, model_digest, names, stored};

const BUCKET: &str = "models";
const WEIGHTS: &[u8] = b"GGUF and then some weights";
const SECRET: [(&str, &str); 2] = [("accessKeyId", KEYS.0), ("secretAccessKey", KEYS.1)];

/// Storage with a model of odd names, beside another one.
async fn storage() -> ObjectStorage {
    let storage = ObjectStorage::start().await.unwrap();
    storage.make_bucket(BUCKET).await.unwrap();
    for (key, content) in [
        ("team/tiny/tiny model+1=é.gguf", WEIGHTS),
        ("team/tiny/config.json", b"{}"),
        ("team/tiny/README.md", b"not part of what is served"),
        ("team/tiny/sub/extra.json", b"[]"),
        ("team/tiny-2/other.gguf", b"GGUF of another model"),
    ] {
        storage.put(BUCKET, key, content).await.unwrap();
    }
    storage
}

#[tokio::test]
async fn prefix_is_fetched_with_keys_in_the_region_that_the_bucket_tells() {
    let storage = storage().await;
    let endpoint = format!("--endpoint={}", storage.endpoint());
    let model = model_digest(&[("tiny model+1=é.gguf", WEIGHTS), ("config.json", b"{}")]);
    let digest = format!("--digest={model}");
    let region = format!("--region={REGION}");
    for (source, more) in [
        ("--source=s3://models/team/tiny", "--log=debug"),
        ("--source=s3://models/team/tiny/", region.as_str()),
    ] {
        let store = tempfile::tempdir().unwrap();
        let fetched = fetch(store.path(), &[source, &endpoint, &digest, more], &SECRET)
            .await
            .unwrap();
        assert!(fetched.success, "{source}: {}", fetched.log);
        assert_eq!(
            names(&stored(store.path(), &model)).unwrap(),
            ["config.json", "tiny model+1=é.gguf"]
        );
        assert!(
            !fetched.log.contains(KEYS.1) && !fetched.log.contains("X-Amz-Signature"),
            "{}",
            fetched.log
        );
    }
}

#[tokio::test]
async fn single_object_and_globs_are_fetched() {
    let storage = storage().await;
    let endpoint = format!("--endpoint={}", storage.endpoint());
    let store = tempfile::tempdir().unwrap();
    let one = format!("--digest={}", digest(b"GGUF of another model"));
    let source = "--source=s3://models/team/tiny-2/other.gguf";
    let fetched = fetch(store.path(), &[source, &endpoint, &one], &SECRET).await.unwrap();
    assert!(fetched.success, "{}", fetched.log);

    let two = format!(
        "--digest={}",
        model_digest(&[("config.json", b"{}"), ("sub/extra.json", b"[]")])
    );
    let arguments = ["--source=s3://models/team/tiny", "--file=**/*.json", &endpoint, &two];
    let fetched = fetch(store.path(), &arguments, &SECRET).await.unwrap();
    assert!(fetched.success, "{}", fetched.log);
}

#[tokio::test]
async fn listing_of_many_objects_is_read_to_its_end() {
    let storage = ObjectStorage::start().await.unwrap();
    storage.make_bucket(BUCKET).await.unwrap();
    // More than one page of 1,000.
    for number in 0..1005 {
        storage
            .put(BUCKET, &format!("many/{number:04}.txt"), b"x")
            .await
            .unwrap();
    }
    storage.put(BUCKET, "many/z.gguf", WEIGHTS).await.unwrap();
    let store = tempfile::tempdir().unwrap();
    let digest = format!("--digest={}", digest(WEIGHTS));
    let endpoint = format!("--endpoint={}", storage.endpoint());
    let fetched = fetch(
        store.path(),
        &["--source=s3://models/many", &endpoint, &digest],
        &SECRET,
    )
    .await
    .unwrap();
    assert!(fetched.success, "{}", fetched.log);
}

#[tokio::test]
async fn public_bucket_needs_no_credentials_and_a_private_one_says_so() {
    let storage = storage().await;
    let endpoint = format!("--endpoint={}", storage.endpoint());
    let digest = format!("--digest={}", digest(b"GGUF of another model"));
    let arguments = ["--source=s3://models/team/tiny-2", &endpoint, &digest];
    let store = tempfile::tempdir().unwrap();
    let fetched = fetch(store.path(), &arguments, &[]).await.unwrap();
    assert_eq!(fetched.reason(), "SecretMissing");
    storage.publish(BUCKET).await.unwrap();
    let fetched = fetch(store.path(), &arguments, &[]).await.unwrap();
    assert!(fetched.success, "{}", fetched.log);
}

#[tokio::test]
async fn wrong_keys_buckets_and_prefixes_say_what_to_check() {
    let storage = storage().await;
    let endpoint = format!("--endpoint={}", storage.endpoint());
    let digest = format!("--digest={}", digest(WEIGHTS));
    let store = tempfile::tempdir().unwrap();
    let wrong = [("accessKeyId", KEYS.0), ("secretAccessKey", "wrong-7")];
    let unknown = [("accessKeyId", "nobody"), ("secretAccessKey", KEYS.1)];
    for (source, secret, words) in [
        ("s3://models/team/tiny", wrong, "SignatureDoesNotMatch"),
        // AWS says InvalidAccessKeyId.
        ("s3://models/team/tiny", unknown, "XAdminUserNotFound"),
        ("s3://nothing/team/tiny", SECRET, "NoSuchBucket"),
        ("s3://models/team/nothing", SECRET, "check the prefix"),
    ] {
        let source = format!("--source={source}");
        let fetched = fetch(store.path(), &[&source, &endpoint, &digest], &secret)
            .await
            .unwrap();
        assert_eq!(fetched.reason(), "SourceUnavailable", "{}", fetched.log);
        assert!(fetched.message().contains(words), "{}: {words}", fetched.message());
        assert!(!fetched.log.contains("wrong-7"), "{}", fetched.log);
    }
}

#[tokio::test]
async fn object_that_breaks_off_is_resumed_under_a_new_signature() {
    let storage = ObjectStorage::start().await.unwrap();
    storage.make_bucket(BUCKET).await.unwrap();
    let large = vec![7; 4 << 20];
    storage.put(BUCKET, "large/m.gguf", &large).await.unwrap();
    let proxy = CuttingProxy::start(storage.address(), 1 << 20, 3).unwrap();
    let endpoint = format!("--endpoint=http://{}", proxy.address());
    let store = tempfile::tempdir().unwrap();
    let digest = format!("--digest={}", digest(&large));
    let fetched = fetch(
        store.path(),
        &["--source=s3://models/large", &endpoint, &digest],
        &SECRET,
    )
    .await
    .unwrap();
    assert!(fetched.success, "{}", fetched.log);
    assert_eq!(proxy.cuts_left(), 0);
    assert!(proxy.bytes() < 6 << 20, "{} bytes: it was begun anew", proxy.bytes());
}
