//! How the process ends when it cannot go on: one line for people, one JSON object for the operator.

use escadre_verify::Refusal;
use serde::Serialize;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;

/// The most that the kubelet reads of a termination message, in bytes.
const TERMINATION_LOG_LIMIT: usize = 4096;

/// A fatal error: a stable reason and a sentence that says what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The stable CamelCase reason, used in conditions and metrics.
    pub reason: &'static str,
    /// What happened and what to do, without a full stop.
    pub message: String,
}

impl Failure {
    /// The reason when the command line asks for something that cannot be done, so that nothing was done.
    pub const USAGE: &str = "UsageError";

    /// A failure of this reason.
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }

    /// The exit code of the process.
    pub fn exit_code(&self) -> u8 {
        if self.reason == Self::USAGE { 2 } else { 1 }
    }

    /// Writes the reason and the message where the kubelet looks for them, when that file exists.
    /// A file that cannot be written is no second failure: the message is on standard error as well.
    pub fn write_termination_log(&self, path: &Path) {
        let mut message = self.message.clone();
        loop {
            let shortened = Self::new(self.reason, message.as_str());
            let json = serde_json::to_vec(&shortened).unwrap_or_default();
            if json.len() <= TERMINATION_LOG_LIMIT {
                let file = OpenOptions::new().write(true).truncate(true).open(path);
                let _ = file.and_then(|mut file| file.write_all(&json));
                return;
            }
            message.truncate(message.floor_char_boundary(message.len() * 3 / 4));
        }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.reason.into(), refusal.to_string())
    }
}

/// The message of an error and of everything that caused it, joined by colons.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some libraries repeat the cause in their own message.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn termination_log_is_one_json_object_that_the_kubelet_reads_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::write(&path, "what was here before").unwrap();
        Failure::new("CacheFull", "é".repeat(5000)).write_termination_log(&path);
        let text = std::fs::read(&path).unwrap();
        assert!(text.len() <= TERMINATION_LOG_LIMIT);
        let value: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(value["reason"], "CacheFull");
        assert!(value["message"].as_str().unwrap().len() > 1000);
    }

    #[test]
    fn missing_termination_log_is_not_created() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        Failure::new("CacheFull", "no space").write_termination_log(&path);
        assert!(!path.exists());
    }
}
