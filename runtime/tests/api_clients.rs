//! The official OpenAI clients, and frameworks that are built on them, unmodified, against the real server. `make clients`
//! installs them.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod serving;

use serving::{Process, cache, run_to_end};
use std::path::{Path, PathBuf};
use std::process::Command;

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name)
}

fn from_env(name: &str, default: &str) -> PathBuf {
    let path = std::env::var_os(name).map_or_else(|| cache().join(default), PathBuf::from);
    assert!(
        path.exists(),
        "{} is not there; run `make clients`, or set {name}",
        path.display()
    );
    path
}

fn runs_well(process: &Process, mut command: Command, more: &[&Path]) {
    command.arg(process.api("/v1")).args(more);
    for proxy in [
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "http_proxy",
        "https_proxy",
        "all_proxy",
    ] {
        command.env_remove(proxy);
    }
    let (status, output) = run_to_end(command);
    assert!(status.success() && output.contains("all good"), "{output}");
}

#[test]
fn official_clients_work_unmodified() {
    let python = from_env("ESCADRE_TEST_PYTHON", "clients/python/bin/python");
    let frameworks = from_env("ESCADRE_TEST_FRAMEWORKS", "clients/frameworks/bin/python");
    let modules = from_env("ESCADRE_TEST_NODE_MODULES", "clients/node/node_modules");
    let process = Process::ready(&["--max-context=2048", "--pooling=mean"]);
    let mut command = Command::new(python);
    command.arg(script("openai_client.py"));
    runs_well(&process, command, &[]);
    // Where the machine has no Node.js, one is installed beside the client.
    let own = modules.with_file_name("runtime").join("bin/node");
    let mut command = Command::new(if own.exists() { own } else { "node".into() });
    command.arg(script("openai_client.mjs"));
    runs_well(&process, command, &[&modules]);
    let mut command = Command::new(frameworks);
    command.arg(script("frameworks.py"));
    runs_well(&process, command, &[]);
}
