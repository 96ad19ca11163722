//! `sign` and `verify` as a person uses them: exit codes, what is printed, and what is not.

#![expect(clippy::unwrap_used, reason = "tests")]

use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// A key on P-256, made for these tests by `openssl ecparam -name prime256v1 -genkey`.
const PRIVATE: &str = "-----BEGIN EC PRIVATE KEY-----
MHcCAQEEIAwMaumoJe3CKKZ8IeNxfgzub6QjSSeookjczd4zGLIJoAoGCCqGSM49
AwEHoUQDQgAE75FsHmII8tfxLmHveRnMb2GeszgGg6FXUidGruHQu4s5ZxkXKznn
noUMptua29j7a5DKapqvyJ2JinR+Ki316g==
-----END EC PRIVATE KEY-----
";
const PUBLIC: &str = "-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE75FsHmII8tfxLmHveRnMb2GeszgG
g6FXUidGruHQu4s5ZxkXKznnnoUMptua29j7a5DKapqvyJ2JinR+Ki316g==
-----END PUBLIC KEY-----
";

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("model")).unwrap();
    fs::write(folder.path().join("model/config.json"), b"{}").unwrap();
    fs::write(folder.path().join("model/model.safetensors"), b"weights").unwrap();
    fs::write(folder.path().join("private.pem"), PRIVATE).unwrap();
    fs::write(folder.path().join("public.pem"), PUBLIC).unwrap();
    folder
}

fn run(folder: &Path, line: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_escadre-runtime"));
    command.current_dir(folder).args(line.split(' ')).output().unwrap()
}

fn verdict(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn signed_model_is_verified_and_a_changed_one_refused() {
    let folder = folder();
    let signed = run(folder.path(), "sign --model model --key private.pem");
    assert!(signed.status.success(), "{}", String::from_utf8_lossy(&signed.stderr));
    let verify = "verify --model model --key public.pem";
    let good = run(folder.path(), verify);
    assert_eq!(good.status.code(), Some(0));
    let text = String::from_utf8(good.stdout).unwrap();
    assert!(
        text.starts_with("verified      2 files of 9 bytes, as they were signed\ndigest        sha256:"),
        "{text}"
    );
    let good = verdict(&run(folder.path(), &format!("{verify} --json")));
    assert_eq!(good["result"], "Verified");
    assert_eq!(good["reason"], Value::Null);
    assert_eq!(good["model"]["signature"]["method"], "key");
    assert_eq!(good["model"]["signature"]["signedFiles"][0]["name"], "config.json");
    fs::write(folder.path().join("model/model.safetensors"), b"wEights").unwrap();
    let bad = run(folder.path(), &format!("{verify} --json"));
    assert_eq!(bad.status.code(), Some(1));
    let bad = verdict(&bad);
    assert_eq!(
        (&bad["result"], &bad["reason"]),
        (&"Refused".into(), &"DigestMismatch".into())
    );
    assert_eq!(bad["file"], "model.safetensors");
    assert!(bad["expected"].is_string() && bad["got"].is_string());
}

#[test]
fn files_that_were_not_signed_need_a_flag() {
    let folder = folder();
    run(
        folder.path(),
        "sign --model model --key private.pem --signature out.sig --ignore-path logs",
    );
    fs::create_dir(folder.path().join("model/logs")).unwrap();
    fs::write(folder.path().join("model/logs/a"), b"x").unwrap();
    let verify = "verify --model model --key public.pem --signature out.sig";
    assert_eq!(run(folder.path(), verify).status.code(), Some(0));
    fs::write(folder.path().join("model/new.txt"), b"x").unwrap();
    let refused = run(folder.path(), verify);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        String::from_utf8(refused.stderr)
            .unwrap()
            .starts_with("error: UnsignedFile: new.txt: ")
    );
    for flag in ["--ignore-unsigned-files", "--ignore-path new.txt"] {
        assert_eq!(
            run(folder.path(), &format!("{verify} {flag}")).status.code(),
            Some(0),
            "{flag}"
        );
    }
    fs::remove_file(folder.path().join("model/new.txt")).unwrap();
    fs::remove_file(folder.path().join("model/config.json")).unwrap();
    assert_eq!(run(folder.path(), verify).status.code(), Some(1));
    assert_eq!(run(folder.path(), &format!("{verify} --subset")).status.code(), Some(0));
}

#[test]
fn digest_is_judged_alone_and_beside_a_signature() {
    let folder = folder();
    let file = folder.path().join("model/model.safetensors");
    let digest = escadre_verify::Digest::of(b"weights");
    run(folder.path(), "sign --model model/model.safetensors --key private.pem");
    assert!(file.with_extension("safetensors.sig").exists());
    let verify = "verify --model model/model.safetensors";
    assert_eq!(
        run(folder.path(), &format!("{verify} --digest {digest}")).status.code(),
        Some(0)
    );
    let both = format!("{verify} --key public.pem --digest");
    assert_eq!(run(folder.path(), &format!("{both} {digest}")).status.code(), Some(0));
    let other = escadre_verify::Digest::of(b"other");
    for line in [
        format!("{verify} --digest {other} --json"),
        format!("{both} {other} --json"),
    ] {
        let refused = run(folder.path(), &line);
        assert_eq!(refused.status.code(), Some(1), "{line}");
        assert_eq!(verdict(&refused)["reason"], "DigestMismatch");
    }
    fs::write(file, b"wEights").unwrap();
    assert_eq!(
        run(folder.path(), &format!("{verify} --digest {digest}")).status.code(),
        Some(1)
    );
}

#[test]
fn without_trust_that_can_be_used_there_is_no_verdict() {
    let folder = folder();
    run(folder.path(), "sign --model model --key private.pem");
    for line in [
        "verify --model model --json",
        "verify --model model --key nothing.pem --json",
        "verify --model model --key private.pem --json",
        "verify --model model --ca public.pem --json",
        "verify --model model --trusted-root public.pem --identity a --issuer b --json",
        "verify --model model --key public.pem --ca public.pem --json",
        "sign --model model --key public.pem",
    ] {
        let output = run(folder.path(), line);
        assert_eq!(output.status.code(), Some(2), "{line}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{line}");
    }
    let unsigned = run(
        folder.path(),
        "verify --model model --key public.pem --signature none.sig --json",
    );
    assert_eq!(unsigned.status.code(), Some(1));
    assert_eq!(verdict(&unsigned)["reason"], "FileMissing");
    let weights = run(
        folder.path(),
        "sign --model model --key private.pem --ignore-path model.safetensors",
    );
    assert_eq!(weights.status.code(), Some(1));
    assert!(String::from_utf8(weights.stderr).unwrap().contains("WeightsNotSigned"));
}
