//! The model's folder, opened once: every file below it is reached through that one handle.
//!
//! Paths are resolved by the kernel beneath the folder and without symbolic links (`openat2`), so neither a link nor
//! a folder that is swapped while we read can lead outside.

use crate::refusal::{Reason, Refusal};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

/// More files than any model has; a folder with more was named by mistake.
const MAX_FILES: usize = 10_000;
/// Deeper than any model's folders.
const MAX_DEPTH: usize = 16;

/// A regular file, open, with the length it had then.
pub(crate) struct OpenFile {
    pub(crate) file: File,
    pub(crate) bytes: u64,
}

/// The folder that holds a model's files, or the folder around a single file.
pub(crate) struct Root {
    folder: OwnedFd,
}

impl Root {
    /// Opens a folder, or the folder around a file. Returns the names of the model's files, sorted, with their lengths.
    pub(crate) fn open(path: &Path) -> Result<(Self, Vec<(String, u64)>), Refusal> {
        let at = path.display().to_string();
        let kind = std::fs::metadata(path).map_err(|error| {
            Refusal::new(
                Reason::FileMissing,
                format!("could not open the model: {error}; name an existing file or folder"),
            )
            .in_file(&at)
        })?;
        if kind.is_dir() {
            let root = Self {
                folder: open_folder(path).map_err(|errno| fault(&at, errno))?,
            };
            let mut files = Vec::new();
            root.list("", 0, &mut files)?;
            files.sort_unstable();
            return Ok((root, files));
        }
        // A path that names one file may itself be a link (caches of model hubs are made of them): it is the user's
        // own choice of file, and what it leads to is opened once, here.
        let target = path
            .canonicalize()
            .map_err(|error| storage_fault(&at, &error.to_string()))?;
        let (Some(parent), Some(name)) = (target.parent(), target.file_name().and_then(|name| name.to_str())) else {
            return Err(Refusal::new(Reason::PathInvalid, "the file's name is not UTF-8; rename it").in_file(&at));
        };
        let root = Self {
            folder: open_folder(parent).map_err(|errno| fault(&at, errno))?,
        };
        let bytes = root.open_file(name)?.bytes;
        Ok((root, vec![(name.to_owned(), bytes)]))
    }

    /// Opens a regular file beneath the folder.
    pub(crate) fn open_file(&self, name: &str) -> Result<OpenFile, Refusal> {
        // Without O_NONBLOCK, opening a pipe would wait for a writer for ever.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let descriptor = self.open_beneath(name, flags).map_err(|errno| fault(name, errno))?;
        let stat = rustix::fs::fstat(&descriptor).map_err(|errno| fault(name, errno))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(not_regular(name));
        }
        let bytes = u64::try_from(stat.st_size).map_err(|_| storage_fault(name, "its length is negative"))?;
        Ok(OpenFile {
            file: File::from(descriptor),
            bytes,
        })
    }

    fn open_beneath(&self, name: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(&self.folder, name, flags, Mode::empty(), resolve)
    }

    /// Adds every file below the folder `prefix` (empty, or ending in `/`).
    fn list(&self, prefix: &str, depth: usize, files: &mut Vec<(String, u64)>) -> Result<(), Refusal> {
        let here = if prefix.is_empty() { "." } else { prefix };
        if depth > MAX_DEPTH {
            return Err(
                Refusal::new(Reason::SizeLimit, format!("folders are nested deeper than {MAX_DEPTH}")).in_file(here),
            );
        }
        let folder = self
            .open_beneath(here, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::DIRECTORY)
            .map_err(|errno| fault(here, errno))?;
        for entry in rustix::fs::Dir::new(folder).map_err(|errno| fault(here, errno))? {
            let entry = entry.map_err(|errno| fault(here, errno))?;
            let Ok(name) = entry.file_name().to_str() else {
                let name = entry.file_name().to_string_lossy().into_owned();
                return Err(
                    Refusal::new(Reason::PathInvalid, "a file's name is not UTF-8; rename it")
                        .in_file(prefix.to_owned() + &name),
                );
            };
            if name == "." || name == ".." {
                continue;
            }
            let path = format!("{prefix}{name}");
            if self.is_folder(&path)? {
                self.list(&format!("{path}/"), depth + 1, files)?;
                continue;
            }
            let bytes = self.open_file(&path)?.bytes;
            if files.len() == MAX_FILES {
                return Err(Refusal::new(
                    Reason::SizeLimit,
                    format!("the folder holds more than {MAX_FILES} files; name the model's own folder"),
                ));
            }
            files.push((path, bytes));
        }
        Ok(())
    }

    fn is_folder(&self, path: &str) -> Result<bool, Refusal> {
        let descriptor = self
            .open_beneath(path, OFlags::PATH | OFlags::CLOEXEC)
            .map_err(|errno| fault(path, errno))?;
        let stat = rustix::fs::fstat(&descriptor).map_err(|errno| fault(path, errno))?;
        Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
    }
}

fn open_folder(path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(
        CWD,
        path,
        OFlags::RDONLY | OFlags::CLOEXEC | OFlags::DIRECTORY,
        Mode::empty(),
    )
}

fn fault(file: &str, errno: Errno) -> Refusal {
    match errno {
        Errno::NOENT => Refusal::new(Reason::FileMissing, "the file is not there; fetch the model again").in_file(file),
        Errno::LOOP => Refusal::new(
            Reason::SymlinkRefused,
            "symbolic links are not followed inside a model; put the file itself there",
        )
        .in_file(file),
        Errno::XDEV => Refusal::new(Reason::PathInvalid, "the path leaves the model's folder").in_file(file),
        Errno::NXIO => not_regular(file),
        other => storage_fault(file, &std::io::Error::from(other).to_string()),
    }
}

fn not_regular(file: &str) -> Refusal {
    Refusal::new(
        Reason::NotARegularFile,
        "only regular files can belong to a model; remove it",
    )
    .in_file(file)
}

pub(crate) fn storage_fault(file: &str, error: &str) -> Refusal {
    Refusal::new(
        Reason::StorageFault,
        format!("could not be read: {error}; check the volume"),
    )
    .in_file(file)
}
