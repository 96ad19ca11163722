//! Tar archives, as registries carry them: read with bounds, files only, nothing but what was chosen.
//!
//! Guarantees: no link, device or path that leaves the folder is written; memory does not depend on the archive; an
//! archive that unpacks to more than its length makes plausible is refused while it is read.
//!
//! Read by our own few lines, because names and lengths of the libraries' readers have no bounds.

use std::collections::BTreeMap;
use std::io::{self, Read};

/// Headers and padding come in blocks.
const BLOCK: usize = 512;
/// The most that an extended header may have: a name of 1,024 bytes and times fit many times over.
const MAX_EXTENSION: u64 = 64 << 10;
/// More entries than any archive of a model has.
const MAX_ENTRIES: usize = 100_000;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Folder,
    /// A link, a device or anything else that no model has.
    Other,
}

/// The head of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Its path, without a leading `./`.
    pub(crate) path: String,
    pub(crate) bytes: u64,
    pub(crate) kind: Kind,
}

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArchiveError {
    #[error("{0}")]
    Malformed(&'static str),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Reads an archive entry by entry.
pub(crate) struct Archive<R> {
    reader: R,
    /// Bytes of the current entry, its padding included, that were not read.
    left: u64,
    padding: u64,
    entries: usize,
}

impl<R: Read> Archive<R> {
    pub(crate) fn new(reader: R) -> Self {
        Self {
            reader,
            left: 0,
            padding: 0,
            entries: 0,
        }
    }

    /// The next entry; what is left of the one before is skipped.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>, ArchiveError> {
        let mut extended = BTreeMap::new();
        let mut long_name = None;
        loop {
            self.skip_rest()?;
            let Some(header) = self.header()? else { return Ok(None) };
            self.entries += 1;
            if self.entries > MAX_ENTRIES {
                return Err(ArchiveError::Malformed("it has more than 100,000 entries"));
            }
            let bytes = number(&header[124..136]).ok_or(ArchiveError::Malformed("a length in it is no number"))?;
            let flag = header[156];
            match flag {
                b'x' => extended = parse_extended(&self.extension(bytes)?)?,
                b'L' => long_name = Some(text(&self.extension(bytes)?)?),
                // Attributes for all that follow: none of them matters here.
                b'g' => drop(self.extension(bytes)?),
                _ => {
                    let bytes = match extended.get("size") {
                        Some(size) => size
                            .parse()
                            .map_err(|_| ArchiveError::Malformed("a length in it is no number"))?,
                        None => bytes,
                    };
                    let path = match extended.remove("path").or(long_name) {
                        Some(path) => path,
                        None => short_name(&header)?,
                    };
                    return Ok(Some(self.enter(&path, bytes, flag)?));
                }
            }
        }
    }

    fn enter(&mut self, path: &str, bytes: u64, flag: u8) -> Result<Entry, ArchiveError> {
        let is_folder = flag == b'5' || path.ends_with('/');
        let kind = match flag {
            _ if is_folder => Kind::Folder,
            b'0' | b'\0' | b'7' => Kind::File,
            _ => Kind::Other,
        };
        self.expect(bytes)?;
        let path = path.strip_prefix("./").unwrap_or(path).trim_end_matches('/').to_owned();
        Ok(Entry { path, bytes, kind })
    }

    /// What follows is this long.
    fn expect(&mut self, bytes: u64) -> Result<(), ArchiveError> {
        if bytes > u64::MAX / 2 {
            return Err(ArchiveError::Malformed("a length in it is no number"));
        }
        self.left = bytes;
        self.padding = bytes.next_multiple_of(BLOCK as u64) - bytes;
        Ok(())
    }

    fn extension(&mut self, bytes: u64) -> Result<Vec<u8>, ArchiveError> {
        if bytes > MAX_EXTENSION {
            return Err(ArchiveError::Malformed(
                "a name or extension in it is longer than 64 KiB",
            ));
        }
        self.expect(bytes)?;
        let mut content = Vec::new();
        self.read_to_end(&mut content)?;
        Ok(content)
    }

    fn skip_rest(&mut self) -> Result<(), ArchiveError> {
        io::copy(self, &mut io::sink())?;
        let padding = std::mem::take(&mut self.padding);
        let skipped = io::copy(&mut self.reader.by_ref().take(padding), &mut io::sink())?;
        if skipped < padding {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        Ok(())
    }

    /// The next header; `None` at the end, which is a block of zeros, or the end of the file after a whole entry.
    fn header(&mut self) -> Result<Option<[u8; BLOCK]>, ArchiveError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.reader.read(&mut block[filled..])? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                read => filled += read,
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let sum: u64 = (block.iter().enumerate())
            .map(|(at, byte)| u64::from(if (148..156).contains(&at) { b' ' } else { *byte }))
            .sum();
        if number(&block[148..156]) != Some(sum) {
            return Err(ArchiveError::Malformed("a header in it has a wrong checksum"));
        }
        Ok(Some(block))
    }
}

/// The content of the current entry.
impl<R: Read> Read for Archive<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 || buffer.is_empty() {
            return Ok(0);
        }
        let read = self.reader.by_ref().take(self.left).read(buffer)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read as u64;
        Ok(read)
    }
}

/// A number of a header: octal digits, or big-endian bytes when the first bit is set.
fn number(field: &[u8]) -> Option<u64> {
    if field.first()? & 0x80 != 0 {
        let (head, tail) = field.split_at(field.len().saturating_sub(8));
        let is_small = head
            .iter()
            .enumerate()
            .all(|(at, byte)| *byte == if at == 0 { 0x80 } else { 0 });
        return (is_small && tail.len() == 8).then(|| u64::from_be_bytes(tail.try_into().unwrap_or_default()));
    }
    let digits = std::str::from_utf8(field).ok()?;
    let digits = digits.trim_matches(|symbol| symbol == ' ' || symbol == '\0');
    if digits.is_empty() {
        return Some(0);
    }
    u64::from_str_radix(digits, 8).ok()
}

/// The name in the header itself, with the prefix that `ustar` has.
fn short_name(header: &[u8; BLOCK]) -> Result<String, ArchiveError> {
    let name = text(&header[..100])?;
    if &header[257..263] != b"ustar\0" {
        return Ok(name);
    }
    let prefix = text(&header[345..500])?;
    Ok(if prefix.is_empty() {
        name
    } else {
        format!("{prefix}/{name}")
    })
}

/// Text up to its zero.
fn text(bytes: &[u8]) -> Result<String, ArchiveError> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8(bytes[..end].to_vec()).map_err(|_| ArchiveError::Malformed("a name in it is not UTF-8"))
}

/// The records `<length> <key>=<value>\n` of a pax header.
fn parse_extended(mut bytes: &[u8]) -> Result<BTreeMap<String, String>, ArchiveError> {
    let malformed = || ArchiveError::Malformed("an extended header in it is malformed");
    let mut records = BTreeMap::new();
    while !bytes.is_empty() {
        let space = bytes.iter().position(|byte| *byte == b' ').ok_or_else(malformed)?;
        let length: usize = std::str::from_utf8(&bytes[..space])
            .ok()
            .and_then(|digits| digits.parse().ok())
            .ok_or_else(malformed)?;
        let record = bytes.get(space + 1..length).ok_or_else(malformed)?;
        let record = record.strip_suffix(b"\n").ok_or_else(malformed)?;
        bytes = &bytes[length..];
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(malformed)?;
        let key = &record[..equals];
        // Of all that it may say, only what changes where an entry goes and how long it is. Sparse files are not read.
        if key == b"path" || key == b"size" {
            let value = String::from_utf8(record[equals + 1..].to_vec()).map_err(|_| malformed())?;
            records.insert(String::from_utf8_lossy(key).into_owned(), value);
        } else if key.starts_with(b"GNU.sparse") {
            return Err(ArchiveError::Malformed("it has a sparse file"));
        }
    }
    Ok(records)
}

/// A reader that ends with an error of the kind `FileTooLarge` when more than `limit` bytes come.
pub(crate) struct Bounded<R> {
    reader: R,
    left: u64,
}

impl<R: Read> Bounded<R> {
    pub(crate) fn new(reader: R, limit: u64) -> Self {
        Self { reader, left: limit }
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.left = self.left.checked_sub(read as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header as the tools write them.
    fn header(name: &str, bytes: u64, flag: u8) -> Vec<u8> {
        let mut block = vec![0; BLOCK];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[124..135].copy_from_slice(format!("{bytes:011o}").as_bytes());
        block[156] = flag;
        block[257..263].copy_from_slice(b"ustar\0");
        seal(block)
    }

    fn seal(mut block: Vec<u8>) -> Vec<u8> {
        block[148..156].copy_from_slice(b"        ");
        let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }

    fn entry(name: &str, content: &[u8], flag: u8) -> Vec<u8> {
        let mut bytes = header(name, content.len() as u64, flag);
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, ArchiveError> {
        let mut archive = Archive::new(bytes);
        let mut found = Vec::new();
        while let Some(entry) = archive.next_entry()? {
            let mut content = Vec::new();
            archive.read_to_end(&mut content)?;
            found.push((entry, content));
        }
        Ok(found)
    }

    fn end() -> Vec<u8> {
        vec![0; 2 * BLOCK]
    }

    #[test]
    fn files_folders_and_links_are_told_apart() {
        let bytes = [
            entry("./", b"", b'5'),
            entry("./a/m.gguf", b"weights", b'0'),
            entry("link", b"", b'2'),
            entry("old", b"", b'\0'),
            end(),
        ]
        .concat();
        let found = read(&bytes).unwrap();
        let kinds: Vec<_> = found
            .iter()
            .map(|(entry, _)| (entry.path.as_str(), entry.kind))
            .collect();
        assert_eq!(
            kinds,
            [
                ("", Kind::Folder),
                ("a/m.gguf", Kind::File),
                ("link", Kind::Other),
                ("old", Kind::File)
            ]
        );
        assert_eq!(found[1].1, b"weights");
    }

    #[test]
    fn long_names_and_lengths_of_both_dialects_are_read() {
        let long = format!("{}/m.gguf", "folder".repeat(30));
        let record = |key: &str, value: &str| {
            let rest = format!(" {key}={value}\n");
            let length = (1..1000).find(|length: &usize| length.to_string().len() + rest.len() == *length);
            format!("{}{rest}", length.unwrap())
        };
        let pax = format!(
            "{}{}{}",
            record("mtime", "1.5"),
            record("path", &long),
            record("size", "4")
        );
        let mut wrong_length = header("short", 0, b'0');
        wrong_length.extend_from_slice(b"four");
        wrong_length.resize(2 * BLOCK, 0);
        let bytes = [
            entry("pax", pax.as_bytes(), b'x'),
            wrong_length,
            entry("././@LongLink", format!("{long}\0").as_bytes(), b'L'),
            entry("short", b"gnu", b'0'),
            end(),
        ]
        .concat();
        let found = read(&bytes).unwrap();
        assert_eq!(
            (found[0].0.path.as_str(), found[0].1.as_slice()),
            (long.as_str(), &b"four"[..])
        );
        assert_eq!(
            (found[1].0.path.as_str(), found[1].1.as_slice()),
            (long.as_str(), &b"gnu"[..])
        );
        let mut large = header("large", 0, b'0');
        large[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0]);
        let entry = Archive::new(seal(large).as_slice()).next_entry().unwrap().unwrap();
        assert_eq!(entry.bytes, 1 << 34);
    }

    #[test]
    fn what_is_no_archive_is_refused_and_memory_does_not_follow_its_numbers() {
        let mut endless = header("L", 1 << 32, b'L');
        endless.resize(4 * BLOCK, 0);
        let mut negative = header("n", 0, b'0');
        negative[124..136].fill(0xff);
        for (bytes, words) in [
            (vec![b'x'; 2 * BLOCK], "checksum"),
            (vec![b'x'; 100], "end of file"),
            (endless, "64 KiB"),
            (seal(negative), "no number"),
            (header("cut", 2000, b'0'), "end of file"),
            (entry("x", b"999 path=a\n", b'x'), "extended header"),
            (entry("x", b"nonsense", b'x'), "extended header"),
            (entry("x", b"22 GNU.sparse.major=1\n", b'x'), "sparse"),
        ] {
            let error = read(&bytes).unwrap_err();
            assert!(error.to_string().contains(words), "{error}: {words}");
        }
    }

    #[test]
    fn bounded_reader_ends_at_its_limit() {
        let mut content = Vec::new();
        Bounded::new(&b"four"[..], 4).read_to_end(&mut content).unwrap();
        let error = Bounded::new(io::repeat(0), 1000).read_to_end(&mut content).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    }
}
