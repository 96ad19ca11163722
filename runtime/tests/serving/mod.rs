//! The real program with the real small model, for tests of the API and of the process's life.

#![allow(dead_code, clippy::allow_attributes, reason = "each test program uses a part of it")]

use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// How long the model may take to load on a busy machine.
const LOAD_DEADLINE: Duration = Duration::from_mins(3);
/// The name under which tests serve it.
pub(crate) const NAME: &str = "smol";

/// Where artefacts for tests are kept between runs.
pub(crate) fn cache() -> PathBuf {
    let var = |name: &str| std::env::var_os(name).map(PathBuf::from);
    var("ESCADRE_CACHE")
        .or_else(|| var("XDG_CACHE_HOME").map(|base| base.join("escadre")))
        .unwrap_or_else(|| var("HOME").expect("HOME is set").join(".cache/escadre"))
}

/// The model file.
pub(crate) fn model() -> PathBuf {
    let path = std::env::var_os("ESCADRE_TEST_MODEL")
        .map_or_else(|| cache().join("models/SmolLM2-135M-Instruct.Q4_1.gguf"), PathBuf::from);
    assert!(path.exists(), "{} is not there; run `make models`", path.display());
    path
}

/// A file's content with every `from` replaced by the equally long `to`, as a new model file.
pub(crate) fn patched_model(folder: &Path, from: &[u8], to: &[u8]) -> PathBuf {
    assert_eq!(from.len(), to.len());
    let mut bytes = std::fs::read(model()).unwrap();
    let header = bytes.len().min(4 << 20);
    let found: Vec<usize> = (0..header - from.len())
        .filter(|at| bytes[*at..].starts_with(from))
        .collect();
    assert!(
        !found.is_empty(),
        "the model has no {:?}",
        String::from_utf8_lossy(from)
    );
    for at in found {
        bytes[at..at + to.len()].copy_from_slice(to);
    }
    let path = folder.join("patched.gguf");
    std::fs::write(&path, bytes).unwrap();
    path
}

/// A process of the program.
pub(crate) struct Process {
    child: Child,
    /// Ends the process when this one is gone, however that came about.
    watchdog: Child,
    /// The port of the API.
    pub(crate) port: u16,
    /// The port of probes and status.
    pub(crate) admin_port: u16,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Process {
    /// `serve` on free ports, with these arguments besides. Returns when the ports are open.
    pub(crate) fn start(args: &[&str]) -> Self {
        let mut process = Self::spawn(
            &[&["serve", "--port=0", "--admin-port=0", "--log-format=json"], args].concat(),
            None,
        );
        let line = process.wait_for_line("ports are open");
        let line: Value = serde_json::from_str(&line).unwrap();
        let port = |name: &str| u16::try_from(line[name].as_u64().unwrap()).unwrap();
        (process.port, process.admin_port) = (port("port"), port("admin_port"));
        process
    }

    /// `serve` with the model, ready.
    pub(crate) fn ready(args: &[&str]) -> Self {
        let model = format!("--model={}", model().display());
        let mut process = Self::start(&[&[model.as_str(), "--served-name", NAME], args].concat());
        process.wait_for_line("\"ready\"");
        process
    }

    /// Any subcommand, with its standard error collected.
    pub(crate) fn spawn(args: &[&str], termination_log: Option<&Path>) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_escadre-runtime"));
        command
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command.env(
            "ESCADRE_TERMINATION_LOG",
            termination_log.unwrap_or(Path::new("/nonexistent")),
        );
        let mut child = command.spawn().unwrap();
        let mut watchdog = Command::new("sh");
        watchdog.args([
            "-c",
            "read -r _; kill -KILL \"$0\" 2>/dev/null",
            &child.id().to_string(),
        ]);
        let watchdog = watchdog
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            stderr
                .lines()
                .map_while(Result::ok)
                .try_for_each(|line| sender.send(line))
        });
        Self {
            child,
            watchdog,
            port: 0,
            admin_port: 0,
            lines,
            seen: Vec::new(),
        }
    }

    /// Waits for a line of the log.
    pub(crate) fn wait_for_line(&mut self, part: &str) -> String {
        let deadline = Instant::now() + LOAD_DEADLINE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                panic!("no line with {part}:\n{}", self.seen.join("\n"));
            };
            self.seen.push(line.clone());
            if line.contains(part) {
                return line;
            }
        }
    }

    /// Waits for the end. Returns the status and everything that was logged.
    pub(crate) fn wait(&mut self, at_most: Duration) -> (ExitStatus, String) {
        let deadline = Instant::now() + at_most;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                self.seen.extend(self.lines.iter());
                return (status, self.seen.join("\n"));
            }
            assert!(Instant::now() < deadline, "the process did not end within {at_most:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Asks it to end.
    pub(crate) fn terminate(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    /// Bytes of memory that it holds.
    pub(crate) fn resident_bytes(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        1024 * line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    }

    pub(crate) fn api(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub(crate) fn admin(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.admin_port)
    }

    pub(crate) async fn status(&self) -> Value {
        get(self.admin("/status")).await
    }

    /// Waits until no request is in the engine.
    pub(crate) async fn becomes_idle(&self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.status().await["requests"] != serde_json::json!({"running": 0, "waiting": 0}) {
            assert!(Instant::now() < deadline, "requests go on without their clients");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // First, so that it never sees the number of a process that has ended.
        let _ = self.watchdog.kill();
        let _ = self.watchdog.wait();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client without surprises: no proxy, no retries.
pub(crate) fn client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().build().unwrap()
}

/// A conversation with one question.
pub(crate) fn question(text: &str, more: &Value) -> Value {
    let mut body =
        serde_json::json!({"model": NAME, "messages": [{"role": "user", "content": text}], "temperature": 0});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// Sends a request. Returns the status and the text of the answer.
pub(crate) async fn post(process: &Process, path: &str, body: &Value) -> (u16, String) {
    let response = client().post(process.api(path)).json(body).send().await.unwrap();
    (response.status().as_u16(), response.text().await.unwrap())
}

/// Sends a request that must be answered. Returns the answer.
pub(crate) async fn ask(process: &Process, path: &str, body: &Value) -> Value {
    let (status, text) = post(process, path, body).await;
    assert_eq!(status, 200, "{text}");
    serde_json::from_str(&text).unwrap()
}

/// The JSON at an address.
pub(crate) async fn get(url: String) -> Value {
    client().get(url).send().await.unwrap().json().await.unwrap()
}

/// The data of an event stream.
pub(crate) fn events(text: &str) -> Vec<String> {
    text.split("\n\n")
        .filter_map(|event| event.strip_prefix("data: "))
        .map(str::to_owned)
        .collect()
}

/// The text of a chat's stream.
pub(crate) fn streamed_text(events: &[String]) -> String {
    let chunks = events.iter().filter(|event| *event != "[DONE]");
    chunks
        .map(|chunk| serde_json::from_str::<Value>(chunk).unwrap())
        .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned))
        .collect()
}

/// Runs a command to its end and returns what it printed.
pub(crate) fn run_to_end(mut command: Command) -> (ExitStatus, String) {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut text = String::new();
    let mut errors = child.stderr.take().unwrap();
    let collected = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = errors.read_to_string(&mut text);
        text
    });
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    let status = child.wait().unwrap();
    (status, text + &collected.join().unwrap())
}
