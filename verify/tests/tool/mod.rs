//! The reference tool `model-signing`, in one process that answers one request after another; and models to ask it about.

#![allow(dead_code, clippy::allow_attributes, reason = "each test program uses a part of it")]

use p256::pkcs8::{EncodePrivateKey as _, LineEnding};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// The reference tool.
pub(crate) struct Reference {
    process: Child,
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Reference {
    /// Starts it; `dev/model-signing.sh` installs it where it is not there yet.
    pub(crate) fn start() -> Self {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let output = Command::new(workspace.join("dev/model-signing.sh")).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let python = String::from_utf8(output.stdout).unwrap();
        let mut process = Command::new(python.trim())
            .arg(workspace.join("verify/tests/tool/reference.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            requests: process.stdin.take(),
            answers: BufReader::new(process.stdout.take().unwrap()),
            process,
        }
    }

    /// What it answers: nothing, or why not.
    pub(crate) fn ask(&mut self, request: &Value) -> Result<(), String> {
        writeln!(self.requests.as_mut().unwrap(), "{request}").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        match answer.trim_end() {
            "ok" => Ok(()),
            "" => panic!("the reference tool ended"),
            other => Err(other.to_owned()),
        }
    }
}

impl Drop for Reference {
    fn drop(&mut self) {
        self.requests = None;
        let _ = self.process.wait();
    }
}

/// A curve of the standard.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Curve {
    P256,
    P384,
    P521,
}

/// A private key that is the same in every run, in PEM.
pub(crate) fn private_key(curve: Curve) -> String {
    let pem = match curve {
        Curve::P256 => p256::SecretKey::from_slice(&[0x11; 32])
            .unwrap()
            .to_pkcs8_pem(LineEnding::LF),
        Curve::P384 => p384::SecretKey::from_slice(&[0x22; 48])
            .unwrap()
            .to_pkcs8_pem(LineEnding::LF),
        Curve::P521 => {
            let mut secret = [0x33; 66];
            secret[0] = 0;
            p521::SecretKey::from_slice(&secret)
                .unwrap()
                .to_pkcs8_pem(LineEnding::LF)
        }
    };
    pem.unwrap().as_str().to_owned()
}

/// Writes a small model into a folder. It is none that could be loaded: signatures are about any files.
pub(crate) fn write_model(folder: &Path) {
    fs::create_dir_all(folder.join("tokenizer")).unwrap();
    fs::create_dir_all(folder.join("notes")).unwrap();
    fs::write(folder.join("config.json"), b"{\"layers\": 2}\n").unwrap();
    fs::write(folder.join("model.safetensors"), b"these would be weights").unwrap();
    fs::write(folder.join("tokenizer/merges.txt"), b"a b\nab c\n").unwrap();
    fs::write(folder.join("notes/read me.txt"), "grüße\n").unwrap();
}

/// Writes a text into a folder, and gives its path.
pub(crate) fn write(folder: &Path, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, content).unwrap();
    path
}

/// A request to verify with a key.
pub(crate) fn verify_request(model: &Path, key: &Path, signature: &Path) -> Value {
    json!({"action": "verify", "model": model, "key": key, "signature": signature})
}
