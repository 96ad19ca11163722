use super::*;
use crate::digest::Digest;
use crate::signature::{Signature, SigningKey, Trust, sign};
use p256::pkcs8::{EncodePrivateKey as _, LineEnding};
use std::fs;
use std::time::SystemTime;

fn key() -> SigningKey {
    let secret = p256::SecretKey::from_slice(&[0x11; 32]).unwrap();
    SigningKey::from_pem(secret.to_pkcs8_pem(LineEnding::LF).unwrap().as_bytes()).unwrap()
}

fn manifest(path: &Path, ignored: &[&str]) -> SignedManifest {
    let ignored: Vec<_> = ignored.iter().map(|path| (*path).to_owned()).collect();
    let bundle = sign(path, &key(), &ignored, &mut |_, _| ()).unwrap();
    let trust = Trust::keys(key().public_pem().as_bytes()).unwrap();
    Signature::verify(&bundle, &trust, SystemTime::UNIX_EPOCH).unwrap()
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("tokenizer")).unwrap();
    fs::write(folder.path().join("model.safetensors"), b"weights").unwrap();
    fs::write(folder.path().join("tokenizer/merges.txt"), b"a b").unwrap();
    folder
}

fn open(path: &Path, manifest: &SignedManifest, strictness: Strictness) -> Result<VerifiedModel, Refusal> {
    let model = VerifiedModel::open_signed(path, manifest, strictness, &mut |_, _| ())?;
    model.check(&mut |_, _| ())?;
    Ok(model)
}

fn reason(path: &Path, manifest: &SignedManifest, strictness: Strictness) -> (Reason, Option<String>) {
    let refusal = open(path, manifest, strictness).map(|_| ()).unwrap_err();
    (refusal.reason, refusal.file)
}

#[test]
fn signed_folder_is_read_and_names_its_signer() {
    let folder = folder();
    let manifest = manifest(folder.path(), &[]);
    let model = open(folder.path(), &manifest, Strictness::Exact).unwrap();
    let plain = VerifiedModel::open(folder.path(), None, &mut |_, _| ()).unwrap();
    assert_eq!(model.digest(), plain.digest());
    assert_eq!(model.signer(), Some(manifest.signer()));
    assert_eq!((model.is_pinned(), plain.signer()), (false, None));
    assert_eq!(model.read("tokenizer/merges.txt").unwrap(), b"a b");
    fs::write(folder.path().join("model.safetensors"), b"wEights").unwrap();
    assert_eq!(
        model.read("model.safetensors").unwrap_err().reason,
        Reason::ChangedAfterVerify
    );
}

#[test]
fn changed_missing_and_added_files_are_refused_by_name() {
    let folder = folder();
    let manifest = manifest(folder.path(), &[]);
    let file = folder.path().join("tokenizer/merges.txt");
    for strictness in [Strictness::Exact, Strictness::Subset, Strictness::IgnoreUnsigned] {
        fs::write(&file, b"a c").unwrap();
        let name = Some("tokenizer/merges.txt".to_owned());
        assert_eq!(
            reason(folder.path(), &manifest, strictness),
            (Reason::DigestMismatch, name)
        );
    }
    fs::remove_file(&file).unwrap();
    let name = Some("tokenizer/merges.txt".to_owned());
    assert_eq!(
        reason(folder.path(), &manifest, Strictness::Exact),
        (Reason::FileMissing, name.clone())
    );
    assert_eq!(
        reason(folder.path(), &manifest, Strictness::IgnoreUnsigned),
        (Reason::FileMissing, name)
    );
    assert!(open(folder.path(), &manifest, Strictness::Subset).is_ok());
    fs::write(folder.path().join("extra.json"), b"{}").unwrap();
    let name = Some("extra.json".to_owned());
    assert_eq!(
        reason(folder.path(), &manifest, Strictness::Exact),
        (Reason::UnsignedFile, name.clone())
    );
    assert_eq!(
        reason(folder.path(), &manifest, Strictness::Subset),
        (Reason::UnsignedFile, name)
    );
}

#[test]
fn file_that_was_not_signed_cannot_be_read_even_when_it_is_let_be() {
    let folder = folder();
    let manifest = manifest(folder.path(), &["notes"]);
    fs::write(folder.path().join("config.json"), b"{}").unwrap();
    fs::create_dir(folder.path().join("notes")).unwrap();
    fs::write(folder.path().join("notes/a.txt"), b"x").unwrap();
    let model = open(folder.path(), &manifest, Strictness::IgnoreUnsigned).unwrap();
    for name in ["config.json", "notes/a.txt"] {
        assert!(!model.contains(name));
        assert_eq!(model.read(name).unwrap_err().reason, Reason::FileMissing);
    }
    assert_eq!(model.files().count(), 2);
    fs::remove_file(folder.path().join("config.json")).unwrap();
    let model = open(folder.path(), &manifest, Strictness::Exact).unwrap();
    assert!(!model.contains("notes/a.txt"));
}

#[test]
fn weights_that_are_left_out_are_refused() {
    let folder = folder();
    let mut manifest = manifest(folder.path(), &["adapters"]);
    fs::create_dir(folder.path().join("adapters")).unwrap();
    fs::write(folder.path().join("adapters/lora.safetensors"), b"x").unwrap();
    for strictness in [Strictness::Exact, Strictness::Subset, Strictness::IgnoreUnsigned] {
        let name = Some("adapters/lora.safetensors".to_owned());
        assert_eq!(
            reason(folder.path(), &manifest, strictness),
            (Reason::WeightsNotSigned, name)
        );
    }
    let refused = sign(folder.path(), &key(), &["adapters".to_owned()], &mut |_, _| ()).unwrap_err();
    assert_eq!(refused.reason, Reason::WeightsNotSigned);
    // What is signed is verified, whoever asks to leave it out.
    fs::remove_dir_all(folder.path().join("adapters")).unwrap();
    manifest.ignore("model.safetensors").unwrap();
    fs::write(folder.path().join("model.safetensors"), b"other").unwrap();
    assert_eq!(
        reason(folder.path(), &manifest, Strictness::Exact).0,
        Reason::DigestMismatch
    );
}

#[test]
fn what_git_keeps_at_the_top_need_not_be_signed() {
    let folder = folder();
    let manifest = manifest(folder.path(), &[]);
    fs::create_dir(folder.path().join(".git")).unwrap();
    fs::write(folder.path().join(".git/config"), b"x").unwrap();
    fs::write(folder.path().join(".gitattributes"), b"x").unwrap();
    let model = open(folder.path(), &manifest, Strictness::Exact).unwrap();
    assert!(!model.contains(".gitattributes"));
    fs::create_dir(folder.path().join("tokenizer/.git")).unwrap();
    fs::write(folder.path().join("tokenizer/.git/config"), b"x").unwrap();
    assert_eq!(
        reason(folder.path(), &manifest, Strictness::Exact).0,
        Reason::UnsignedFile
    );
}

#[test]
fn single_file_is_signed_whatever_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    fs::write(&path, b"weights").unwrap();
    let manifest = manifest(&path, &[]);
    assert_eq!(manifest.files().map(|(name, _)| name).collect::<Vec<_>>(), ["."]);
    let model = VerifiedModel::open_signed(&path, &manifest, Strictness::Exact, &mut |_, _| ()).unwrap();
    assert_eq!(model.digest(), Digest::of(b"weights"));
    assert_eq!(model.read("m.gguf").unwrap(), b"weights");
    fs::write(&path, b"wEights").unwrap();
    assert_eq!(model.read("m.gguf").unwrap_err().reason, Reason::DigestMismatch);
    assert_eq!(reason(&path, &manifest, Strictness::Exact).0, Reason::DigestMismatch);
    fs::write(&path, b"weights").unwrap();
    assert!(open(folder.path(), &manifest, Strictness::Exact).is_ok());
    fs::write(folder.path().join("n.gguf"), b"weights").unwrap();
    assert_eq!(
        reason(folder.path(), &manifest, Strictness::Exact).0,
        Reason::FileNotInManifest
    );
}

#[test]
fn one_file_of_a_signed_folder_is_a_subset() {
    let folder = folder();
    let manifest = manifest(folder.path(), &[]);
    let file = folder.path().join("model.safetensors");
    assert_eq!(reason(&file, &manifest, Strictness::Exact).0, Reason::FileMissing);
    let model = open(&file, &manifest, Strictness::Subset).unwrap();
    assert_eq!(model.digest(), Digest::of(b"weights"));
    fs::rename(&file, folder.path().join("other.safetensors")).unwrap();
    let refused = reason(&folder.path().join("other.safetensors"), &manifest, Strictness::Subset);
    assert_eq!(refused.0, Reason::UnsignedFile);
}

#[test]
fn progress_counts_all_bytes_once() {
    let folder = folder();
    let manifest = manifest(folder.path(), &[]);
    let mut calls = Vec::new();
    let mut progress = |done, total| calls.push((done, total));
    VerifiedModel::open_signed(folder.path(), &manifest, Strictness::Exact, &mut progress).unwrap();
    assert_eq!(calls, [(7, 10), (10, 10)]);
}
