//! [`VerifiedModel`]: the only door to a model's bytes.

mod signed;

pub use signed::Strictness;

use crate::digest::{Digest, Hasher, model_digest};
use crate::reading::Reading;
use crate::refusal::{Reason, Refusal};
use crate::root::{OpenFile, Root, storage_fault};
use crate::signature::Signer;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

/// Bytes that are read and hashed at a time: large enough for sequential storage, small enough for progress.
const CHUNK: usize = 4 << 20;

/// Receives (bytes done, bytes in all) while files are read.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

struct Entry {
    bytes: u64,
    digest: Digest,
    /// Whether the file had this digest when the model was opened. Otherwise it is what somebody demands.
    is_hashed: bool,
}

/// A model whose bytes are those that its digest names.
///
/// # Guarantees
/// Every byte that [`read`](Self::read) returns was hashed in the buffer that is returned, and its digest is part of
/// [`digest`](Self::digest). Files that were not there when the model was opened cannot be read. Symbolic links and
/// paths that leave the folder are refused by the kernel.
///
/// # Caveats
/// A single file with a known digest is hashed when it is read and not before, so opening it costs nothing and a
/// wrong one is refused by `read`. A folder is hashed once to find its digest and each file again when it is read.
pub struct VerifiedModel {
    root: Root,
    files: BTreeMap<String, Entry>,
    digest: Digest,
    pinned: bool,
    signer: Option<Signer>,
    overlay: BTreeMap<String, Vec<u8>>,
}

/// Files that may be laid over a model: none of them is weights, and none says what the weights mean.
const OVERLAY_FILES: [&str; 3] = ["chat_template.jinja", "generation_config.json", "tokenizer_config.json"];

impl VerifiedModel {
    /// Opens the model in `path`, a file or a folder, which must have the digest `expected`.
    ///
    /// Without `expected` the digest is computed and nothing is compared: for local use, where a person chose the file.
    /// `progress` receives the bytes that were hashed so far and in all.
    ///
    /// # Errors
    /// `DigestMismatch` when the files are not those of `expected`; `FileMissing`, `SymlinkRefused`,
    /// `NotARegularFile`, `PathInvalid`, `SizeLimit`, `StorageFault` as their names say.
    pub fn open(path: &Path, expected: Option<&Digest>, progress: Progress<'_>) -> Result<Self, Refusal> {
        let (root, names) = Root::open(path)?;
        let total = names.iter().map(|(_, bytes)| bytes).sum();
        if let ([(name, bytes)], Some(expected)) = (names.as_slice(), expected) {
            let files = BTreeMap::from([(
                name.clone(),
                Entry {
                    bytes: *bytes,
                    digest: *expected,
                    is_hashed: false,
                },
            )]);
            return Ok(Self {
                root,
                files,
                digest: *expected,
                pinned: true,
                signer: None,
                overlay: BTreeMap::new(),
            });
        }
        let mut done = 0;
        let mut digests = BTreeMap::new();
        let mut files = BTreeMap::new();
        for (name, bytes) in names {
            let open = root.open_file(&name)?;
            let digest = hash(&name, open, &mut |_| (), &mut |read| progress(done + read, total))?;
            done += bytes;
            digests.insert(name.clone(), digest);
            let entry = Entry {
                bytes,
                digest,
                is_hashed: true,
            };
            files.insert(name, entry);
        }
        let digest = model_digest(&digests)?;
        if let Some(expected) = expected.filter(|expected| **expected != digest) {
            return Err(mismatch(expected, &digest));
        }
        Ok(Self {
            root,
            files,
            digest,
            pinned: expected.is_some(),
            signer: None,
            overlay: BTreeMap::new(),
        })
    }

    /// Lays files over the model: reading such a name gives the new content. They are not part of the digest, so the
    /// caller must trust them as it trusts the digest.
    ///
    /// # Errors
    /// `PathInvalid` for the name of a file that belongs to the digest.
    pub fn lay_over(&mut self, files: BTreeMap<String, Vec<u8>>) -> Result<(), Refusal> {
        if let Some(name) = files.keys().find(|name| !OVERLAY_FILES.contains(&name.as_str())) {
            return Err(Refusal::new(
                Reason::PathInvalid,
                format!(
                    "only {} can be laid over a model, everything else belongs to its digest; remove it, or publish another model",
                    OVERLAY_FILES.join(", ")
                ),
            )
            .in_file(name));
        }
        self.overlay = files;
        Ok(())
    }

    /// The names of the files that were laid over the model.
    pub fn overlaid(&self) -> impl Iterator<Item = &str> {
        self.overlay.keys().map(String::as_str)
    }

    /// The model's identity.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Whether the digest was demanded by the caller, and not only computed.
    pub fn is_pinned(&self) -> bool {
        self.pinned
    }

    /// Who signed the files, when a signature was verified.
    pub fn signer(&self) -> Option<&Signer> {
        self.signer.as_ref()
    }

    /// Reads all files that were not hashed when the model was opened, and keeps nothing of them.
    ///
    /// # Errors
    /// As [`read_with`](Self::read_with).
    pub fn check(&self, progress: Progress<'_>) -> Result<(), Refusal> {
        let unread = self.files.iter().filter(|(_, entry)| !entry.is_hashed);
        let total = unread.clone().map(|(_, entry)| entry.bytes).sum();
        let mut done = 0;
        for (name, entry) in unread {
            let open = self.root.open_file(name)?;
            let digest = hash(name, open, &mut |_| (), &mut |read| progress(done + read, total))?;
            if digest != entry.digest {
                return Err(mismatch(&entry.digest, &digest).in_file(name));
            }
            done += entry.bytes;
        }
        Ok(())
    }

    /// The files, sorted by their relative path, with their lengths in bytes.
    pub fn files(&self) -> impl Iterator<Item = (&str, u64)> {
        self.files.iter().map(|(name, entry)| (name.as_str(), entry.bytes))
    }

    /// The digests of the files, sorted by their relative path.
    pub fn digests(&self) -> impl Iterator<Item = (&str, Digest)> {
        self.files.iter().map(|(name, entry)| (name.as_str(), entry.digest))
    }

    /// Whether the model has a file of this relative path.
    pub fn contains(&self, name: &str) -> bool {
        self.files.contains_key(name) || self.overlay.contains_key(name)
    }

    /// The length of all files, in bytes.
    pub fn bytes(&self) -> u64 {
        self.files.values().map(|entry| entry.bytes).sum()
    }

    /// The whole content of a file.
    ///
    /// # Errors
    /// As [`read_with`](Self::read_with).
    pub fn read(&self, name: &str) -> Result<Vec<u8>, Refusal> {
        self.read_with(name, &mut |_, _| ())
    }

    /// The whole content of a file; `progress` receives the bytes that were read so far and in all.
    ///
    /// # Errors
    /// `FileMissing` when the model has no such file; `DigestMismatch` when it is not the one that was approved;
    /// `ChangedAfterVerify` when it is not the one that was hashed before; `StorageFault` when it cannot be read.
    pub fn read_with(&self, name: &str, progress: Progress<'_>) -> Result<Vec<u8>, Refusal> {
        if let Some(content) = self.overlay.get(name) {
            return Ok(content.clone());
        }
        let (entry, open) = self.open_file(name)?;
        let size = usize::try_from(open.bytes).map_err(|_| storage_fault(name, "it does not fit the address space"))?;
        let mut buffer = Vec::new();
        buffer
            .try_reserve_exact(size)
            .map_err(|_| storage_fault(name, "there is not enough memory for it"))?;
        let total = open.bytes;
        let mut hasher = Hasher::new();
        let mut source = open.file.take(total);
        loop {
            let start = buffer.len();
            let read = (&mut source).take(CHUNK as u64).read_to_end(&mut buffer);
            if read.map_err(|error| storage_fault(name, &error.to_string()))? == 0 {
                break;
            }
            hasher.update(&buffer[start..]);
            progress(buffer.len() as u64, total);
        }
        let digest = hasher.finish();
        if digest == entry.digest {
            return Ok(buffer);
        }
        if !entry.is_hashed {
            return Err(mismatch(&entry.digest, &digest).in_file(name));
        }
        Err(changed(name).values(entry.digest.short(), digest.short()))
    }

    /// A file that belongs to the digest, to be read in pieces, from its front to its end, and hashed beside that.
    ///
    /// # Errors
    /// `FileMissing` when the model has no such file; `ChangedAfterVerify` when its length changed; `StorageFault` when
    /// it cannot be opened.
    pub fn reading(&self, name: &str) -> Result<Reading, Refusal> {
        let (entry, open) = self.open_file(name)?;
        Ok(Reading::new(name, open, entry.digest, !entry.is_hashed))
    }

    fn open_file(&self, name: &str) -> Result<(&Entry, OpenFile), Refusal> {
        let Some(entry) = self.files.get(name) else {
            return Err(Refusal::new(Reason::FileMissing, "the model has no such file").in_file(name));
        };
        let open = self.root.open_file(name)?;
        if open.bytes != entry.bytes {
            return Err(changed(name).values(format!("{} bytes", entry.bytes), format!("{} bytes", open.bytes)));
        }
        Ok((entry, open))
    }
}

/// Hashes a file without keeping its content. `also` gets every piece as well.
pub(crate) fn hash(
    name: &str,
    open: OpenFile,
    also: &mut dyn FnMut(&[u8]),
    progress: &mut dyn FnMut(u64),
) -> Result<Digest, Refusal> {
    let mut hasher = Hasher::new();
    let mut source = open.file.take(open.bytes);
    let mut buffer = vec![0; CHUNK.min(usize::try_from(open.bytes).unwrap_or(CHUNK)).max(1)];
    let mut done: u64 = 0;
    loop {
        let read = source
            .read(&mut buffer)
            .map_err(|error| storage_fault(name, &error.to_string()))?;
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
        also(&buffer[..read]);
        done += read as u64;
        progress(done);
    }
    if done != open.bytes {
        return Err(changed(name).values(format!("{} bytes", open.bytes), format!("{done} bytes")));
    }
    Ok(hasher.finish())
}

pub(crate) fn mismatch(expected: &Digest, got: &Digest) -> Refusal {
    Refusal::new(
        Reason::DigestMismatch,
        "the bytes are not those that were approved; check the source, or approve this digest if the change is wanted",
    )
    .values(expected, got)
}

pub(crate) fn changed(name: &str) -> Refusal {
    Refusal::new(
        Reason::ChangedAfterVerify,
        "the file changed while the model was opened; find out what writes to it",
    )
    .in_file(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn open(path: &Path, expected: Option<&Digest>) -> Result<VerifiedModel, Refusal> {
        VerifiedModel::open(path, expected, &mut |_, _| ())
    }

    fn reason<T>(result: Result<T, Refusal>) -> Reason {
        result.map(|_| ()).unwrap_err().reason
    }

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("tokenizer")).unwrap();
        fs::write(folder.path().join("model.safetensors"), b"weights").unwrap();
        fs::write(folder.path().join("tokenizer/merges.txt"), b"a b").unwrap();
        folder
    }

    #[test]
    fn single_file_is_read_only_when_it_has_the_digest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        fs::write(&path, vec![7; CHUNK + 1]).unwrap();
        let digest = Digest::of(&vec![7; CHUNK + 1]);

        let model = open(&path, Some(&digest)).unwrap();
        let mut calls = Vec::new();
        let bytes = model
            .read_with("m.gguf", &mut |done, total| calls.push((done, total)))
            .unwrap();
        assert_eq!(
            (bytes.len(), model.digest(), model.is_pinned()),
            (CHUNK + 1, digest, true)
        );
        assert_eq!(
            calls,
            [(CHUNK as u64, CHUNK as u64 + 1), (CHUNK as u64 + 1, CHUNK as u64 + 1)]
        );

        let wrong = open(&path, Some(&Digest::of(b"other"))).unwrap();
        let refusal = wrong.read("m.gguf").unwrap_err();
        assert_eq!(refusal.reason, Reason::DigestMismatch);
        assert_eq!(refusal.got.as_deref(), Some(digest.to_string().as_str()));
    }

    #[test]
    fn folder_has_the_digest_of_its_sorted_lines() {
        let folder = folder();
        let model = open(folder.path(), None).unwrap();
        let expected = model_digest(&BTreeMap::from([
            ("model.safetensors".to_owned(), Digest::of(b"weights")),
            ("tokenizer/merges.txt".to_owned(), Digest::of(b"a b")),
        ]));
        assert_eq!(Ok(model.digest()), expected);
        assert!(!model.is_pinned());
        assert_eq!(
            model.files().collect::<Vec<_>>(),
            [("model.safetensors", 7), ("tokenizer/merges.txt", 3)]
        );
        assert_eq!(model.bytes(), 10);
        assert_eq!(model.read("tokenizer/merges.txt").unwrap(), b"a b");
        assert!(open(folder.path(), Some(&model.digest())).unwrap().is_pinned());
        assert_eq!(
            reason(open(folder.path(), Some(&Digest::of(b"x")))),
            Reason::DigestMismatch
        );
    }

    #[test]
    fn file_that_changed_after_it_was_hashed_is_refused() {
        let folder = folder();
        let model = open(folder.path(), None).unwrap();
        fs::write(folder.path().join("model.safetensors"), b"wEights").unwrap();
        assert_eq!(reason(model.read("model.safetensors")), Reason::ChangedAfterVerify);
        fs::write(folder.path().join("tokenizer/merges.txt"), b"a").unwrap();
        assert_eq!(reason(model.read("tokenizer/merges.txt")), Reason::ChangedAfterVerify);
        fs::remove_file(folder.path().join("model.safetensors")).unwrap();
        assert_eq!(reason(model.read("model.safetensors")), Reason::FileMissing);
    }

    #[test]
    fn overlay_replaces_texts_and_never_weights() {
        let folder = folder();
        let mut model = open(folder.path(), None).unwrap();
        let digest = model.digest();
        let files = |name: &str| BTreeMap::from([(name.to_owned(), b"new".to_vec())]);
        model.lay_over(files("chat_template.jinja")).unwrap();
        assert!(model.contains("chat_template.jinja"));
        assert_eq!(model.read("chat_template.jinja").unwrap(), b"new");
        assert_eq!(model.read("model.safetensors").unwrap(), b"weights");
        assert_eq!((model.digest(), model.files().count()), (digest, 2));
        for name in ["model.safetensors", "config.json", "tokenizer/merges.txt", "../x"] {
            let refusal = model.lay_over(files(name)).unwrap_err();
            assert_eq!(refusal.reason, Reason::PathInvalid, "{name}");
            assert!(refusal.to_string().contains("belongs to its digest"), "{refusal}");
        }
    }

    #[test]
    fn file_that_came_later_cannot_be_read() {
        let folder = folder();
        let model = open(folder.path(), None).unwrap();
        fs::write(folder.path().join("config.json"), b"{}").unwrap();
        assert!(!model.contains("config.json"));
        assert_eq!(reason(model.read("config.json")), Reason::FileMissing);
        assert_eq!(reason(model.read("../secret")), Reason::FileMissing);
    }

    #[test]
    fn links_and_pipes_are_refused() {
        let outside = tempfile::NamedTempFile::new().unwrap();
        let linked = folder();
        symlink(outside.path(), linked.path().join("config.json")).unwrap();
        assert_eq!(reason(open(linked.path(), None)), Reason::SymlinkRefused);

        let swapped = folder();
        let model = open(swapped.path(), None).unwrap();
        fs::remove_file(swapped.path().join("model.safetensors")).unwrap();
        symlink(outside.path(), swapped.path().join("model.safetensors")).unwrap();
        assert_eq!(reason(model.read("model.safetensors")), Reason::SymlinkRefused);

        let piped = folder();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            piped.path().join("pipe"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        assert_eq!(reason(open(piped.path(), None)), Reason::NotARegularFile);
    }

    #[test]
    fn missing_or_empty_model_is_named() {
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(reason(open(empty.path(), None)), Reason::ManifestEmpty);
        let missing = open(&empty.path().join("none.gguf"), None).map(|_| ()).unwrap_err();
        assert_eq!(missing.reason, Reason::FileMissing);
        assert!(missing.to_string().contains("none.gguf"), "{missing}");
    }
}
