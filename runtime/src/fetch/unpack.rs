//! Takes the files of the model out of an archive in quarantine. Blocks.

use super::archive::{Archive, ArchiveError, Bounded, Kind};
use super::error::{FetchError, printable};
use super::listing::{Compression, MAX_FILES, RemoteFile, Seen, named_twice, safe_path};
use super::store::{Store, UnpackedFile};
use escadre_verify::Hasher;
use flate2::read::MultiGzDecoder;
use globset::GlobSet;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};

/// Weights hardly shrink, vocabularies to a tenth: what unpacks to more than this many times its length is a bomb.
const MAX_RATIO: u64 = 64;
/// What an archive may unpack to in any case: headers and padding of small files shrink to nothing.
const MIN_LIMIT: u64 = 1 << 20;
/// Bytes that are unpacked at a time.
const CHUNK: usize = 1 << 20;

/// What an archive had.
#[derive(Debug, Default)]
pub(crate) struct Unpacked {
    /// The files that were chosen.
    pub(crate) files: BTreeMap<String, UnpackedFile>,
    /// All of its names.
    pub(crate) seen: Seen,
}

/// Unpacks the files that `filter` chooses, and records them beside the archive, which is then removed.
pub(crate) fn unpack(
    store: &Store,
    archive: &RemoteFile,
    compression: Compression,
    filter: &GlobSet,
) -> Result<Unpacked, FetchError> {
    let path = store.place(archive);
    let open = || -> io::Result<(File, u64)> {
        let file = File::open(&path)?;
        let bytes = file.metadata()?.len();
        Ok((file, bytes))
    };
    let (file, bytes) = open().map_err(|error| store.fault("open", &path, &error))?;
    let reader = BufReader::with_capacity(CHUNK, file);
    let unpacked = match compression {
        Compression::None => take_files(store, archive, Archive::new(reader), filter, bytes),
        Compression::Gzip => {
            let limit = bytes.saturating_mul(MAX_RATIO).max(MIN_LIMIT);
            let reader = Bounded::new(MultiGzDecoder::new(reader), limit);
            take_files(store, archive, Archive::new(reader), filter, limit)
        }
    }?;
    store.note_unpacked(archive, &unpacked.files)?;
    fs::remove_file(&path).map_err(|error| store.fault("remove", &path, &error))?;
    Ok(unpacked)
}

fn take_files(
    store: &Store,
    archive: &RemoteFile,
    mut entries: Archive<impl Read>,
    filter: &GlobSet,
    limit: u64,
) -> Result<Unpacked, FetchError> {
    let unreadable = |error| refuse(archive, &error, limit);
    let Unpacked { mut files, mut seen } = Unpacked::default();
    while let Some(entry) = entries.next_entry().map_err(unreadable)? {
        if entry.kind == Kind::Folder {
            continue;
        }
        seen.note(&entry.path);
        if !filter.is_match(&entry.path) {
            continue;
        }
        safe_path(&entry.path)?;
        if entry.kind != Kind::File {
            return Err(FetchError::PathInvalid {
                path: entry.path,
                problem: "it is a link or a device in an archive; publish the model with plain files",
            });
        }
        let file = take_file(store, archive, &entry.path, &mut entries, limit)?;
        if files.insert(entry.path.clone(), file).is_some() {
            return Err(named_twice(&entry.path));
        }
        if files.len() > MAX_FILES {
            let problem = format!("it has more than {MAX_FILES} files that match model.files");
            return Err(FetchError::FormatRefused {
                what: printable(&archive.url),
                problem,
            });
        }
    }
    Ok(Unpacked { files, seen })
}

/// Writes the current entry into the quarantine.
fn take_file(
    store: &Store,
    archive: &RemoteFile,
    path: &str,
    content: &mut Archive<impl Read>,
    limit: u64,
) -> Result<UnpackedFile, FetchError> {
    let to = store.quarantined(path);
    let fault = |error: io::Error| store.fault("write", &to, &error);
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).map_err(fault)?;
    }
    let mut file = File::create(&to).map_err(fault)?;
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; CHUNK];
    let mut bytes = 0;
    loop {
        let read = content.read(&mut buffer);
        let read = read.map_err(|error| refuse(archive, &ArchiveError::Io(error), limit))?;
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
        file.write_all(&buffer[..read]).map_err(fault)?;
        bytes += read as u64;
    }
    file.sync_all().map_err(fault)?;
    Ok(UnpackedFile {
        sha256: hasher.finish(),
        bytes,
    })
}

fn refuse(archive: &RemoteFile, error: &ArchiveError, limit: u64) -> FetchError {
    let what = printable(&archive.url);
    match error {
        ArchiveError::Io(error) if error.kind() == io::ErrorKind::FileTooLarge => FetchError::SizeLimit {
            what: format!("what {what} unpacks to"),
            limit,
        },
        error => FetchError::FormatRefused {
            what,
            problem: format!("it is no tar archive that can be unpacked: {error}; publish the model again"),
        },
    }
}
