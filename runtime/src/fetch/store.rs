//! The content-addressed store: `<store>/sha256/<hex>/` holds whole, checked models; `<store>/quarantine/<hex>/` what
//! is being downloaded. A folder gets its final name by one rename, when every byte of it was hashed and is on disk.

use super::error::FetchError;
use super::listing::{Content, RemoteFile};
use escadre_verify::{Digest, Hasher, VerifiedModel};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use tracing::{info, warn};

/// Bytes that are hashed at a time.
const CHUNK: usize = 1 << 20;

/// What a quarantine was downloaded from; one from something else is thrown away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Origin {
    pub(crate) source: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) resolved_revision: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) files: Vec<String>,
}

/// The folders of one model in a store.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    root: PathBuf,
    digest: Digest,
}

/// The part of a file that is there, and the validator under which more of the same file can be asked for.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub(crate) struct PartialFile {
    pub(crate) name: String,
    pub(crate) etag: Option<String>,
}

/// A file that came out of an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UnpackedFile {
    pub(crate) sha256: Digest,
    pub(crate) bytes: u64,
}

impl Store {
    /// Prepares the folders for a model of this digest.
    pub(crate) fn open(root: &Path, digest: Digest) -> Result<Self, FetchError> {
        let store = Self {
            root: root.to_owned(),
            digest,
        };
        for folder in [root.join("sha256"), store.quarantine()] {
            fs::create_dir_all(&folder).map_err(|error| store.fault("create", &folder, &error))?;
        }
        Ok(store)
    }

    /// Where the model is when it is whole.
    pub(crate) fn model(&self) -> PathBuf {
        self.root.join("sha256").join(self.digest.hex())
    }

    fn quarantine(&self) -> PathBuf {
        self.root.join("quarantine").join(self.digest.hex())
    }

    /// Where a file is while its model is not whole.
    pub(crate) fn quarantined(&self, name: &str) -> PathBuf {
        self.quarantine().join("files").join(name)
    }

    /// Where what comes from a source is while its model is not whole: a file among the files, an archive apart.
    pub(crate) fn place(&self, remote: &RemoteFile) -> PathBuf {
        match remote.content {
            Content::File => self.quarantined(&remote.name),
            Content::Archive(_) => self.quarantine().join("archives").join(&remote.name),
        }
    }

    /// The bytes of the one file that is being downloaded.
    pub(crate) fn partial(&self) -> PathBuf {
        self.quarantine().join("partial")
    }

    fn partial_note(&self) -> PathBuf {
        self.quarantine().join("partial.json")
    }

    fn origin_note(&self) -> PathBuf {
        self.quarantine().join("origin.json")
    }

    /// Holds the quarantine for this process as long as the file lives. Waits for another process that holds it.
    pub(crate) fn lock(&self) -> Result<File, FetchError> {
        let path = self.root.join("quarantine").join(format!("{}.lock", self.digest.hex()));
        let file = File::create(&path).map_err(|error| self.fault("create", &path, &error))?;
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => info!(digest = %self.digest, "another process fetches the model, waiting"),
            Err(TryLockError::Error(error)) => return Err(self.fault("lock", &path, &error)),
        }
        file.lock().map_err(|error| self.fault("lock", &path, &error))?;
        Ok(file)
    }

    /// Whether the model is there already. Its bytes are hashed again; one that is not right any more is removed.
    pub(crate) fn is_complete(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<bool, FetchError> {
        let model = self.model();
        if !model.exists() {
            return Ok(false);
        }
        let verdict = VerifiedModel::open(&model, None, progress).map(|found| found.digest());
        match verdict {
            Ok(found) if found == self.digest => return Ok(true),
            Ok(found) => warn!(expected = %self.digest, %found, "model in the store changed, fetching it again"),
            Err(refusal) => warn!(%refusal, "model in the store cannot be used, fetching it again"),
        }
        fs::remove_dir_all(&model).map_err(|error| self.fault("remove", &model, &error))?;
        Ok(false)
    }

    /// Keeps a quarantine of the same origin, empties any other.
    pub(crate) fn begin(&self, origin: &Origin) -> Result<(), FetchError> {
        let note = self.origin_note();
        let known = fs::read(&note)
            .ok()
            .and_then(|text| serde_json::from_slice::<Origin>(&text).ok());
        if known.as_ref() == Some(origin) {
            return Ok(());
        }
        self.discard()?;
        let folder = self.quarantine();
        fs::create_dir_all(&folder).map_err(|error| self.fault("create", &folder, &error))?;
        self.write_note(&note, origin)
    }

    /// Forgets everything that was downloaded.
    pub(crate) fn discard(&self) -> Result<(), FetchError> {
        let folder = self.quarantine();
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.fault("remove", &folder, &error)),
            _ => Ok(()),
        }
    }

    /// What is known about the partial file, when it is one of `name`.
    pub(crate) fn partial_of(&self, name: &str) -> Option<PartialFile> {
        let note: PartialFile = serde_json::from_slice(&fs::read(self.partial_note()).ok()?).ok()?;
        (note.name == name).then_some(note)
    }

    /// Records which file the partial file is a part of.
    pub(crate) fn note_partial(&self, partial: &PartialFile) -> Result<(), FetchError> {
        self.write_note(&self.partial_note(), partial)
    }

    /// What an archive had, when all of it was unpacked already.
    pub(crate) fn unpacked(&self, archive: &RemoteFile) -> Option<BTreeMap<String, UnpackedFile>> {
        let note = self.place(archive).with_added_extension("json");
        serde_json::from_slice(&fs::read(note).ok()?).ok()
    }

    /// Records what an archive had.
    pub(crate) fn note_unpacked(
        &self,
        archive: &RemoteFile,
        files: &BTreeMap<String, UnpackedFile>,
    ) -> Result<(), FetchError> {
        self.write_note(&self.place(archive).with_added_extension("json"), files)
    }

    /// Gives the partial file its name in the quarantine.
    pub(crate) fn finish_file(&self, remote: &RemoteFile) -> Result<(), FetchError> {
        let (from, to) = (self.partial(), self.place(remote));
        if let Some(folder) = to.parent() {
            fs::create_dir_all(folder).map_err(|error| self.fault("create", folder, &error))?;
        }
        fs::rename(&from, &to).map_err(|error| self.fault("rename", &from, &error))?;
        let note = self.partial_note();
        fs::remove_file(&note).map_err(|error| self.fault("remove", &note, &error))
    }

    /// Moves the whole model to its final name, and records where it came from beside it.
    pub(crate) fn commit(&self, origin: &Origin) -> Result<(), FetchError> {
        let (from, to) = (self.quarantine().join("files"), self.model());
        self.write_note(&to.with_added_extension("json"), origin)?;
        fs::rename(&from, &to).map_err(|error| self.fault("rename", &from, &error))?;
        let parent = self.root.join("sha256");
        // The name must be on disk as well: after a power cut the folder is either there and whole, or not there.
        File::open(&parent)
            .and_then(|folder| folder.sync_all())
            .map_err(|error| self.fault("sync", &parent, &error))?;
        self.discard()
    }

    /// Fails when the volume has less room than `needed` bytes.
    pub(crate) fn check_space(&self, needed: u64) -> Result<(), FetchError> {
        let Ok(volume) = rustix::fs::statvfs(&self.root) else {
            return Ok(());
        };
        let free = volume.f_bavail.saturating_mul(volume.f_frsize);
        if needed <= free {
            return Ok(());
        }
        Err(FetchError::CacheFull {
            store: self.root.display().to_string(),
            problem: format!("{needed} bytes are to come and {free} are free"),
        })
    }

    fn write_note<T: Serialize>(&self, path: &Path, note: &T) -> Result<(), FetchError> {
        let temporary = path.with_added_extension("tmp");
        let text = serde_json::to_vec(note).expect("notes are plain structs");
        File::create(&temporary)
            .and_then(|mut file| file.write_all(&text).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&temporary, path))
            .map_err(|error| self.fault("write", path, &error))
    }

    /// The error of a file operation; a full volume has a reason of its own.
    pub(crate) fn fault(&self, action: &'static str, path: &Path, error: &io::Error) -> FetchError {
        if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            return FetchError::CacheFull {
                store: self.root.display().to_string(),
                problem: error.to_string(),
            };
        }
        FetchError::StorageFault {
            action,
            path: path.display().to_string(),
            problem: error.to_string(),
        }
    }
}

/// The revision that `fetch` recorded beside a model. For display only: nothing is decided by it.
pub fn resolved_revision(store: &Path, digest: &Digest) -> Option<String> {
    let path = store.join("sha256").join(format!("{}.json", digest.hex()));
    let origin: Origin = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    origin.resolved_revision
}

/// Where `fetch` puts the model of a digest.
pub fn model_path(store: &Path, digest: &Digest) -> PathBuf {
    store.join("sha256").join(digest.hex())
}

/// Hashes a file from its start, and says how long it is.
pub(crate) fn hash_file(path: &Path) -> io::Result<(Hasher, u64)> {
    let mut file = File::open(path)?;
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; CHUNK];
    let mut bytes = 0;
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok((hasher, bytes));
        }
        hasher.update(&buffer[..read]);
        bytes += read as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(revision: &str) -> Origin {
        Origin {
            source: "hf://o/n".into(),
            resolved_revision: Some(revision.into()),
            files: vec![],
        }
    }

    #[test]
    fn quarantine_of_another_revision_is_thrown_away() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), Digest::of(b"x")).unwrap();
        store.begin(&origin("one")).unwrap();
        fs::write(store.partial(), b"half").unwrap();
        store.begin(&origin("one")).unwrap();
        assert!(store.partial().exists());
        store.begin(&origin("two")).unwrap();
        assert!(!store.partial().exists());
    }

    #[test]
    fn committed_model_is_found_and_a_damaged_one_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let digest = Digest::of(b"weights");
        let store = Store::open(folder.path(), digest).unwrap();
        store.begin(&origin("one")).unwrap();
        fs::write(store.partial(), b"weights").unwrap();
        store
            .note_partial(&PartialFile {
                name: "a/m.gguf".into(),
                etag: None,
            })
            .unwrap();
        store
            .finish_file(&RemoteFile {
                name: "a/m.gguf".into(),
                url: url::Url::parse("http://h/").unwrap(),
                bytes: None,
                sha256: None,
                content: Content::File,
                is_immutable: false,
            })
            .unwrap();
        assert!(!store.is_complete(&mut |_, _| ()).unwrap());
        store.commit(&origin("one")).unwrap();
        assert!(store.is_complete(&mut |_, _| ()).unwrap());
        assert_eq!(resolved_revision(folder.path(), &digest).as_deref(), Some("one"));
        fs::write(store.model().join("a/m.gguf"), b"changed").unwrap();
        assert!(!store.is_complete(&mut |_, _| ()).unwrap());
        assert!(!store.model().exists());
    }

    #[test]
    fn model_without_room_on_the_volume_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), Digest::of(b"x")).unwrap();
        let error = store.check_space(u64::MAX).unwrap_err();
        assert_eq!(error.reason(), "CacheFull");
        store.check_space(1).unwrap();
        for kind in [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded] {
            let error = store.fault("write", &store.partial(), &kind.into());
            assert_eq!(error.reason(), "CacheFull");
        }
    }
}
