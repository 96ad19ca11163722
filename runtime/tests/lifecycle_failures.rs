//! Starts that must fail: with one clear line, a reason for the operator, and nothing lost.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod serving;

use escadre_verify::Digest;
use serde_json::Value;
use serving::{Process, model, patched_model};
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

/// Loading the model on a busy machine, at most.
const DEADLINE: Duration = Duration::from_mins(2);

/// Runs a command that must fail. Returns the reason and the message, which are on standard error as well.
fn fails(args: &[&str]) -> (String, String) {
    let folder = tempfile::tempdir().unwrap();
    let termination_log = folder.path().join("termination-log");
    std::fs::write(&termination_log, "").unwrap();
    let mut process = Process::spawn(args, Some(&termination_log));
    let (status, log) = process.wait(DEADLINE);
    assert_eq!(status.code(), Some(1), "{log}");
    let failure: Value = serde_json::from_slice(&std::fs::read(&termination_log).unwrap()).unwrap();
    let text = |name: &str| failure[name].as_str().unwrap().to_owned();
    let (reason, message) = (text("reason"), text("message"));
    assert!(
        log.lines().any(|line| line == format!("error: {message}")),
        "{message}\n{log}"
    );
    assert!(!log.contains("panicked"), "{log}");
    (reason, message)
}

fn serve_fails(model: &Path, more: &[&str]) -> (String, String) {
    let model = format!("--model={}", model.display());
    fails(&[&["serve", "--port=0", "--admin-port=0", &model], more].concat())
}

#[test]
fn port_in_use_is_named_with_the_flag_that_chooses_another() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let model = format!("--model={}", model().display());
    for (flag, other) in [("--port", "--admin-port=0"), ("--admin-port", "--port=0")] {
        let (reason, message) = fails(&["serve", &model, &format!("{flag}={port}"), other]);
        assert_eq!(reason, "PortInUse");
        assert!(
            message.contains(&port.to_string()) && message.contains(flag),
            "{message}"
        );
    }
}

#[test]
fn wrong_digest_is_refused_with_both_digests() {
    let expected = Digest::of(b"another model");
    let (reason, message) = serve_fails(&model(), &[&format!("--digest={expected}")]);
    assert_eq!(reason, "DigestMismatch");
    assert!(message.contains(&expected.short()), "{message}");
}

#[test]
fn truncated_model_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = std::fs::read(model()).unwrap();
    for length in [bytes.len() / 2, 5000, 3] {
        let path = folder.path().join("model.gguf");
        std::fs::write(&path, &bytes[..length]).unwrap();
        let (reason, message) = serve_fails(&path, &[]);
        assert!(
            ["GgufInvalid", "FormatRefused"].contains(&reason.as_str()),
            "{reason}: {message}"
        );
        assert!(message.contains("model.gguf"), "{message}");
    }
}

#[test]
fn file_that_is_no_model_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, "this is not a model").unwrap();
    let (reason, message) = serve_fails(&path, &[]);
    assert!(
        ["GgufInvalid", "FormatRefused"].contains(&reason.as_str()),
        "{reason}: {message}"
    );
    let (reason, _) = serve_fails(&folder.path().join("missing.gguf"), &[]);
    assert_eq!(reason, "FileMissing");
}

#[test]
fn unsupported_architecture_is_named_with_those_that_are_supported() {
    let folder = tempfile::tempdir().unwrap();
    let path = patched_model(folder.path(), b"llama", b"zebra");
    let (reason, message) = serve_fails(&path, &[]);
    assert_eq!(reason, "ArchitectureUnsupported");
    assert!(message.contains("zebra") && message.contains("llama"), "{message}");
}

#[test]
fn context_that_is_longer_than_the_models_is_refused_with_numbers() {
    let (reason, message) = serve_fails(&model(), &["--max-context=1000000"]);
    assert_eq!(reason, "ContextTooLong");
    assert!(message.contains("1000000") && message.contains("8192"), "{message}");
}

#[test]
fn memory_limit_that_is_too_small_is_said_before_loading_with_numbers() {
    let (reason, message) = serve_fails(&model(), &["--memory-limit=50000000"]);
    assert_eq!(reason, "OutOfMemoryHost");
    assert!(message.contains("50000000"), "{message}");
}

#[test]
#[cfg(not(feature = "cuda"))]
fn accelerator_that_this_build_cannot_use_ends_the_program_before_the_model_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let (reason, message) = serve_fails(&folder.path().join("missing.gguf"), &["--device=cuda"]);
    assert_eq!(reason, "AcceleratorMissing");
    assert!(
        message.contains("built without CUDA") && message.contains("runtime.image"),
        "{message}"
    );
}

#[test]
fn fetch_that_fails_says_so_to_the_operator() {
    let folder = tempfile::tempdir().unwrap();
    let store = format!("--store={}", folder.path().display());
    let digest = format!("--digest={}", Digest::of(b"x"));
    let (reason, message) = fails(&[
        "fetch",
        "--source=hf://a/b,https://c/d",
        &digest,
        &store,
        "--admin-port=0",
    ]);
    assert_eq!(reason, "InvalidSource");
    assert!(message.contains("hf://owner/name"), "{message}");
}

#[test]
fn fetch_that_is_asked_to_end_does_not_pretend_to_be_done() {
    // A source that accepts and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let store = format!("--store={}", folder.path().display());
    let digest = format!("--digest={}", Digest::of(b"x"));
    let endpoint = format!("--endpoint=http://{}", silent.local_addr().unwrap());
    let mut process = Process::spawn(
        &[
            "fetch",
            "--source=hf://a/b",
            &endpoint,
            &digest,
            &store,
            "--admin-port=0",
            "--host=127.0.0.1",
        ],
        None,
    );
    let _connection = silent.accept().unwrap();
    process.terminate();
    let (status, log) = process.wait(Duration::from_secs(10));
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("interrupted"), "{log}");
}
