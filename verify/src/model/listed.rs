//! Opening a model with the list of its files' digests, so that each file is hashed once, when it is read.

use super::{Entry, Progress, VerifiedModel};
use crate::digest::Digest;
use crate::refusal::{Reason, Refusal};
use crate::root::Root;
use std::collections::BTreeMap;
use std::path::Path;

impl VerifiedModel {
    /// Opens the model in `path`, which must have the digest `expected`, with what `sha256sum` prints for its files,
    /// sorted by path: the text whose SHA-256 is the digest of a folder.
    ///
    /// The list needs no trust: one that does not have the digest is passed over, and the files are hashed as
    /// [`open`](Self::open) does.
    ///
    /// # Errors
    /// `FileMissing` for a file that is listed and not there, `FileNotInManifest` for one that is there and not listed;
    /// otherwise as `open`.
    pub fn open_listed(path: &Path, expected: &Digest, list: &[u8], progress: Progress<'_>) -> Result<Self, Refusal> {
        let listed = (Digest::of(list) == *expected).then(|| parse(list)).flatten();
        let Some(mut listed) = listed else {
            return Self::open(path, Some(expected), progress);
        };
        let (root, names) = Root::open(path)?;
        let mut files = BTreeMap::new();
        for (name, bytes) in names {
            let Some(digest) = listed.remove(&name) else {
                return Err(Refusal::new(
                    Reason::FileNotInManifest,
                    "the file does not belong to the model that was approved; fetch the model again",
                )
                .in_file(name));
            };
            let entry = Entry {
                bytes,
                digest,
                is_hashed: false,
            };
            files.insert(name, entry);
        }
        if let Some((name, _)) = listed.pop_first() {
            return Err(
                Refusal::new(Reason::FileMissing, "the file is not there; fetch the model again").in_file(name),
            );
        }
        Ok(Self {
            root,
            files,
            digest: *expected,
            pinned: true,
            signer: None,
            overlay: BTreeMap::new(),
        })
    }
}

/// The digests by path. `None`: it is no such list, or one of a single file, whose digest is the file's own.
fn parse(list: &[u8]) -> Option<BTreeMap<String, Digest>> {
    let text = std::str::from_utf8(list).ok()?;
    let mut files = BTreeMap::new();
    for line in text.lines() {
        let (digest, name) = line.split_once("  ")?;
        files.insert(name.to_owned(), format!("sha256:{digest}").parse().ok()?);
    }
    (files.len() > 1).then_some(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    struct Stored {
        folder: tempfile::TempDir,
        list: String,
        digest: Digest,
    }

    impl Stored {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join("config.json"), "{}").unwrap();
            fs::write(folder.path().join("model.safetensors"), "weights").unwrap();
            let line = |content: &str, name: &str| format!("{}  {name}\n", Digest::of(content.as_bytes()).hex());
            let list = line("{}", "config.json") + &line("weights", "model.safetensors");
            let digest = Digest::of(list.as_bytes());
            Self { folder, list, digest }
        }

        fn open(&self, list: &str) -> Result<(VerifiedModel, u64), Refusal> {
            let mut hashed = 0;
            let progress: Progress<'_> = &mut |done, _| hashed = done;
            let model = VerifiedModel::open_listed(self.folder.path(), &self.digest, list.as_bytes(), progress)?;
            Ok((model, hashed))
        }
    }

    #[test]
    fn listed_files_are_hashed_when_they_are_read() {
        let folder = Stored::new();
        let (model, hashed) = folder.open(&folder.list).unwrap();
        assert_eq!((model.digest(), model.is_pinned(), hashed), (folder.digest, true, 0));
        assert_eq!(model.read("config.json").unwrap(), b"{}");
        fs::write(folder.folder.path().join("model.safetensors"), "wEights").unwrap();
        let refusal = model.read("model.safetensors").unwrap_err();
        assert_eq!(refusal.reason, Reason::DigestMismatch);
        assert_eq!(model.reading("model.safetensors").unwrap().finish(), Err(refusal));
    }

    #[test]
    fn list_that_is_not_the_right_one_is_passed_over() {
        let folder = Stored::new();
        for list in [
            "",
            "x",
            &folder.list.replace("config", "konfig"),
            &format!("{}\n", folder.list),
        ] {
            let (model, hashed) = folder.open(list).unwrap();
            assert_eq!((model.digest(), hashed), (folder.digest, 9), "{list}");
        }
        fs::write(folder.folder.path().join("config.json"), "[]").unwrap();
        assert_eq!(folder.open("").map(drop).unwrap_err().reason, Reason::DigestMismatch);
    }

    #[test]
    fn files_that_are_missing_or_too_many_are_named() {
        let folder = Stored::new();
        fs::write(folder.folder.path().join("more.txt"), "x").unwrap();
        let more = folder.open(&folder.list).map(drop).unwrap_err();
        assert_eq!(
            (more.reason, more.file.as_deref()),
            (Reason::FileNotInManifest, Some("more.txt"))
        );
        fs::remove_file(folder.folder.path().join("more.txt")).unwrap();
        fs::remove_file(folder.folder.path().join("config.json")).unwrap();
        let less = folder.open(&folder.list).map(drop).unwrap_err();
        assert_eq!(
            (less.reason, less.file.as_deref()),
            (Reason::FileMissing, Some("config.json"))
        );
    }
}
