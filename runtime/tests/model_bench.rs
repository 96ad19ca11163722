//! `escadre-runtime bench` on a tiny model: the numbers that were asked for, and what cannot be measured.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod tiny;

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};
use tiny::llama::{weights, write_folder};

fn bench(model: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_escadre-runtime"));
    command.arg("bench").arg("--model").arg(model).args(args);
    command.output().unwrap()
}

#[test]
fn every_rate_that_was_asked_for_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    write_folder(folder.path(), &weights(), 64);
    let args = [
        "--prompts=8,60",
        "--streams=1,3",
        "--answer=4",
        "--rounds=2",
        "--threads=2",
    ];
    let output = bench(folder.path(), &[&args[..], &["--json"]].concat());
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && log.contains("round 2 of 2"), "{log}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["threads"], &report["device"]), (&2.into(), &"cpu".into()));
    let of = |list: &str, name: &str| -> Vec<u64> {
        let items = report[list].as_array().unwrap().iter();
        items
            .inspect(|item| assert!(item["tokensPerSecond"]["least"].as_f64().unwrap() > 0.0, "{item}"))
            .map(|item| item[name].as_u64().unwrap())
            .collect()
    };
    assert_eq!(of("prompts", "tokens"), [8, 60]);
    assert_eq!(of("streams", "streams"), [1, 3]);
    let output = bench(folder.path(), &args);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("prompt of 60") && text.contains("3 answers at a time"),
        "{text}"
    );
}

#[test]
fn prompt_that_is_longer_than_the_context_is_refused_with_numbers() {
    let folder = tempfile::tempdir().unwrap();
    write_folder(folder.path(), &weights(), 64);
    let output = bench(folder.path(), &["--prompts=65", "--answer=4"]);
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        log.contains("a prompt of 65 tokens") && log.contains("context of 64"),
        "{log}"
    );
}
