//! Paths as a signature names them: relative, with `/` between their parts, and one spelling for each file.

use crate::refusal::{Reason, Refusal};

/// Longer than any path is.
const MAX_PATH: usize = 4096;
/// What tools for models leave out of every signature: what `git` keeps at the top of a folder.
pub(super) const GIT_PATHS: [&str; 4] = [".git", ".gitattributes", ".github", ".gitignore"];
/// How names of files with weights end, of every format: those that are served, and those that run code when loaded.
const WEIGHTS: [&str; 16] = [
    "safetensors",
    "gguf",
    "ggml",
    "bin",
    "pt",
    "pth",
    "ckpt",
    "pkl",
    "pickle",
    "h5",
    "onnx",
    "msgpack",
    "npz",
    "npy",
    "tflite",
    "pdparams",
];

/// Refuses a name that is not the one spelling of a path below a folder.
pub(super) fn check(path: &str, reason: Reason) -> Result<(), Refusal> {
    let is_part = |part: &str| !matches!(part, "" | "." | "..");
    let is_clean = !path.contains(['\\', '\0', '\n', '\r']) && path.split('/').all(is_part);
    if is_clean && path.len() <= MAX_PATH {
        return Ok(());
    }
    let shown: String = path.chars().take(100).flat_map(char::escape_debug).collect();
    Err(Refusal::new(
        reason,
        "the signature names a path that is not relative to the model's folder, or not in its plain form; sign again",
    )
    .in_file(shown))
}

/// Paths that a signature leaves out, with all that is below them.
#[derive(Debug, Clone, Default)]
pub(super) struct Ignored(Vec<String>);

impl Ignored {
    /// Adds a path. A slash at its end is not part of it.
    pub(super) fn add(&mut self, path: &str) -> Result<(), Refusal> {
        let path = path.strip_suffix('/').unwrap_or(path);
        check(path, Reason::IgnorePathInvalid)?;
        if !self.0.iter().any(|known| known == path) {
            self.0.push(path.to_owned());
        }
        Ok(())
    }

    pub(super) fn paths(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// Whether somebody asked for a file to be left out.
    pub(super) fn names(&self, file: &str) -> bool {
        self.0.iter().any(|path| is_at_or_below(file, path))
    }

    /// Whether a file is left out, by what was asked for or because it is of `git`.
    pub(super) fn covers(&self, file: &str) -> bool {
        is_git(file) || self.names(file)
    }
}

/// Whether `git` keeps this file at the top of a folder.
pub(super) fn is_git(file: &str) -> bool {
    GIT_PATHS.iter().any(|path| is_at_or_below(file, path))
}

/// Whether a file's name is one of weights.
pub(super) fn is_weights(file: &str) -> bool {
    let ending = file.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase());
    ending.is_some_and(|ending| WEIGHTS.contains(&ending.as_str()))
}

fn is_at_or_below(file: &str, path: &str) -> bool {
    let rest = file.strip_prefix(path);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_has_one_spelling() {
        for path in ["a", "a/b.c", "a b/ü", ".hidden", "a:b", "...", "a..b"] {
            assert_eq!(check(path, Reason::PathInvalid), Ok(()), "{path}");
        }
        let long = "a/".repeat(2048) + "b";
        for path in [
            "", ".", "..", "/", "/a", "a/", "a//b", "./a", "a/.", "../a", "a/../b", "a\\b", "a\nb", "a\0", &long,
        ] {
            assert_eq!(
                check(path, Reason::PathInvalid).unwrap_err().reason,
                Reason::PathInvalid,
                "{path}"
            );
        }
    }

    #[test]
    fn ignored_path_covers_what_is_below_it_and_nothing_beside() {
        let mut ignored = Ignored::default();
        ignored.add("logs/").unwrap();
        ignored.add("a/b.txt").unwrap();
        for file in ["logs", "logs/x", "a/b.txt", ".git/config", ".gitignore", ".github/x"] {
            assert!(ignored.covers(file), "{file}");
        }
        for file in ["logs2", "a", "a/b", "a/.git/config", ".gitmodules", "x/logs"] {
            assert!(!ignored.covers(file), "{file}");
        }
        for path in ["", "/", "/a", "../a", "a/../..", "."] {
            assert_eq!(
                ignored.add(path).unwrap_err().reason,
                Reason::IgnorePathInvalid,
                "{path}"
            );
        }
    }

    #[test]
    fn weights_are_told_by_their_names() {
        assert!(is_weights("a/model.SafeTensors") && is_weights("m.gguf") && is_weights("pytorch_model.bin"));
        assert!(!is_weights("README.md") && !is_weights("gguf") && !is_weights("model.sig"));
    }
}
