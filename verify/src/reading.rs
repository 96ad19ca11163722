//! A file that is read once, from its front to its end, while another thread hashes what was read.

use crate::digest::{Digest, Hasher};
use crate::model::{changed, mismatch};
use crate::refusal::{Reason, Refusal};
use crate::root::{OpenFile, storage_fault};
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

/// Bytes that are passed over at a time.
const CHUNK: u64 = 4 << 20;
/// Bytes that are looked at first for a header; four times as many follow when they do not suffice.
const FRONT: u64 = 4 << 20;
/// Bytes of a header: vocabularies of 260,000 tokens take about 15 MB.
const MAX_HEADER: u64 = 128 << 20;

/// A file of a model while it is read.
///
/// Its pieces are handed out before the whole file was hashed, so that whoever packs them need not wait, and the file
/// is never whole in memory. Until [`finish`](Self::finish) has returned `Ok`, nothing that was made of them may be
/// shown, used or kept. What was [looked at](Self::look) out of turn must be the same when its turn comes.
pub struct Reading {
    name: String,
    file: File,
    bytes: u64,
    expected: Digest,
    /// Whether `expected` is what somebody approved, and not what was found before.
    approved: bool,
    /// Bytes that were read and handed to `hashing`.
    position: u64,
    looked_at: Vec<(Range<u64>, Vec<u8>)>,
    /// Kept for their memory: those that nobody else holds are filled again.
    pieces: Vec<Arc<Vec<u8>>>,
    hashing: Option<Hashing>,
    verdict: Option<Result<(), Refusal>>,
}

struct Hashing {
    pieces: SyncSender<Arc<Vec<u8>>>,
    thread: JoinHandle<Digest>,
}

impl Hashing {
    fn start(name: &str) -> Result<Self, Refusal> {
        // No piece waits: at most one is hashed while another is read or packed.
        let (sender, pieces) = sync_channel::<Arc<Vec<u8>>>(0);
        let thread = std::thread::Builder::new().name("hash".to_owned()).spawn(move || {
            let mut hasher = Hasher::new();
            for piece in pieces {
                hasher.update(&piece);
            }
            hasher.finish()
        });
        Ok(Self {
            pieces: sender,
            thread: thread.map_err(|error| storage_fault(name, &format!("no thread could be started: {error}")))?,
        })
    }
}

impl Reading {
    pub(crate) fn new(name: &str, open: OpenFile, expected: Digest, approved: bool) -> Self {
        Self {
            name: name.to_owned(),
            file: open.file,
            bytes: open.bytes,
            expected,
            approved,
            position: 0,
            looked_at: Vec::new(),
            pieces: Vec::new(),
            hashing: None,
            verdict: None,
        }
    }

    /// The file's path in the model.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The length of the file, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many bytes were read, from the front.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// What `parse` makes of the front of the file and of the file's length. It is called with more and more bytes
    /// until it returns something.
    ///
    /// # Errors
    /// Those of `parse`; `SizeLimit` when 128 MiB do not suffice; `StorageFault` when the file cannot be read.
    pub fn header<T>(
        &mut self,
        mut parse: impl FnMut(&[u8], usize) -> Result<Option<T>, Refusal>,
    ) -> Result<T, Refusal> {
        let length = self.index(self.bytes)?;
        let mut front = FRONT.min(self.bytes);
        loop {
            let bytes = self.read_at(0..front)?;
            let parsed = parse(&bytes, length)?;
            if let Some(parsed) = parsed {
                self.looked_at.push((0..front, bytes));
                return Ok(parsed);
            }
            let limit = MAX_HEADER.min(self.bytes);
            if front == limit {
                let message = "the header does not end where every model's does; fetch the file again";
                return Err(Refusal::new(Reason::SizeLimit, message)
                    .in_file(&self.name)
                    .values(format!("at most {limit} bytes"), "more"));
            }
            front = (front * 4).min(limit);
        }
    }

    /// Bytes out of turn.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub fn look(&mut self, range: Range<usize>) -> Result<Vec<u8>, Refusal> {
        let range = range.start as u64..range.end as u64;
        self.check(&range)?;
        let bytes = self.read_at(range.clone())?;
        self.looked_at.push((range, bytes.clone()));
        Ok(bytes)
    }

    /// The bytes of a range behind all that were taken before. Drop them before the next are taken, so that their
    /// memory can be filled again.
    ///
    /// # Errors
    /// `StorageFault` when the file cannot be read, or for a range that lies behind its end or was read already;
    /// `ChangedAfterVerify` when the file is shorter than it was, or not what was looked at.
    pub fn take(&mut self, range: Range<usize>) -> Result<Arc<Vec<u8>>, Refusal> {
        let range = range.start as u64..range.end as u64;
        self.check(&range)?;
        self.pass(range.start)?;
        self.piece(range.end)
    }

    /// Reads what is left, and compares the file's digest with the one that it must have.
    ///
    /// # Errors
    /// `DigestMismatch` when the file is not the one that was approved; `ChangedAfterVerify` when it is not the one
    /// that was hashed before; otherwise as [`take`](Self::take).
    pub fn finish(&mut self) -> Result<(), Refusal> {
        if let Some(verdict) = &self.verdict {
            return verdict.clone();
        }
        let verdict = self.judge();
        self.verdict = Some(verdict.clone());
        verdict
    }

    fn judge(&mut self) -> Result<(), Refusal> {
        self.pass(self.bytes)?;
        let digest = match self.hashing.take() {
            None => Digest::of(&[]),
            Some(Hashing { pieces, thread }) => {
                drop(pieces);
                thread.join().map_err(|_| self.hashing_ended())?
            }
        };
        if digest == self.expected {
            Ok(())
        } else if self.approved {
            Err(mismatch(&self.expected, &digest).in_file(&self.name))
        } else {
            Err(changed(&self.name).values(self.expected.short(), digest.short()))
        }
    }

    fn check(&self, range: &Range<u64>) -> Result<(), Refusal> {
        if range.start <= range.end && self.position <= range.start && range.end <= self.bytes {
            return Ok(());
        }
        Err(storage_fault(
            &self.name,
            &format!("bytes {range:?} are not ahead of byte {}", self.position),
        ))
    }

    fn pass(&mut self, until: u64) -> Result<(), Refusal> {
        while self.position < until {
            self.piece(until.min(self.position.saturating_add(CHUNK)))?;
        }
        Ok(())
    }

    /// The bytes up to `end`, which are hashed from now on.
    fn piece(&mut self, end: u64) -> Result<Arc<Vec<u8>>, Refusal> {
        let length = self.index(end - self.position)?;
        let mut piece = self.spare();
        piece.clear();
        piece
            .try_reserve_exact(length)
            .map_err(|_| storage_fault(&self.name, "there is not enough memory for it"))?;
        let read = (&mut self.file).take(length as u64).read_to_end(&mut piece);
        let read = read.map_err(|error| storage_fault(&self.name, &error.to_string()))?;
        if read != length {
            let found = self.position + read as u64;
            return Err(changed(&self.name).values(format!("{} bytes", self.bytes), format!("{found} bytes")));
        }
        self.compare(&piece)?;
        self.position = end;
        let piece = Arc::new(piece);
        self.pieces.push(Arc::clone(&piece));
        let hashing = match &self.hashing {
            Some(hashing) => hashing,
            None => self.hashing.insert(Hashing::start(&self.name)?),
        };
        if hashing.pieces.send(Arc::clone(&piece)).is_err() {
            return Err(self.hashing_ended());
        }
        Ok(piece)
    }

    fn spare(&mut self) -> Vec<u8> {
        let free = self.pieces.iter().position(|piece| Arc::strong_count(piece) == 1);
        let free = free.map(|index| self.pieces.swap_remove(index));
        free.and_then(Arc::into_inner).unwrap_or_default()
    }

    /// Compares bytes at the position with what was looked at there.
    fn compare(&mut self, piece: &[u8]) -> Result<(), Refusal> {
        let (start, end) = (self.position, self.position + piece.len() as u64);
        for (range, bytes) in &self.looked_at {
            let (from, to) = (range.start.max(start), range.end.min(end));
            if from < to
                && bytes[self.span(from - range.start, to - range.start)?]
                    != piece[self.span(from - start, to - start)?]
            {
                return Err(changed(&self.name));
            }
        }
        self.looked_at.retain(|(range, _)| range.end > end);
        Ok(())
    }

    fn read_at(&self, range: Range<u64>) -> Result<Vec<u8>, Refusal> {
        let mut bytes = vec![0; self.index(range.end - range.start)?];
        let read = self.file.read_exact_at(&mut bytes, range.start);
        read.map_err(|error| storage_fault(&self.name, &error.to_string()))?;
        Ok(bytes)
    }

    fn span(&self, start: u64, end: u64) -> Result<Range<usize>, Refusal> {
        Ok(self.index(start)?..self.index(end)?)
    }

    fn index(&self, offset: u64) -> Result<usize, Refusal> {
        usize::try_from(offset).map_err(|_| storage_fault(&self.name, "it does not fit the address space"))
    }

    fn hashing_ended(&self) -> Refusal {
        Refusal::new(Reason::StorageFault, "the thread that hashes ended; start again").in_file(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::VerifiedModel;
    use std::fs;

    struct Stored {
        folder: tempfile::TempDir,
        content: Vec<u8>,
    }

    impl Stored {
        /// Two chunks and a half, no two pieces of which are alike.
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let content: Vec<u8> = (0..u32::try_from(CHUNK * 5 / 8).unwrap())
                .flat_map(u32::to_le_bytes)
                .collect();
            fs::write(folder.path().join("m.gguf"), &content).unwrap();
            Self { folder, content }
        }

        fn write(&self, content: &[u8]) {
            // In place, as somebody would who holds the file open.
            let file = fs::OpenOptions::new()
                .write(true)
                .open(self.folder.path().join("m.gguf"))
                .unwrap();
            file.write_all_at(content, 0).unwrap();
            file.set_len(content.len() as u64).unwrap();
        }

        fn changed_at(&self, index: usize) -> Vec<u8> {
            let mut content = self.content.clone();
            content[index] ^= 1;
            content
        }

        fn open(&self, expected: Option<&Digest>) -> Reading {
            let model = VerifiedModel::open(&self.folder.path().join("m.gguf"), expected, &mut |_, _| ()).unwrap();
            model.reading("m.gguf").unwrap()
        }

        fn digest(&self) -> Digest {
            Digest::of(&self.content)
        }
    }

    #[test]
    fn pieces_are_those_of_the_file_whatever_was_skipped() {
        let stored = Stored::new();
        let mut reading = stored.open(Some(&stored.digest()));
        let half = stored.content.len() / 2;
        assert_eq!(reading.look(half..half + 9).unwrap(), stored.content[half..half + 9]);
        let front = reading.header(|front, length| Ok((front.len() == length).then(|| front.to_vec())));
        assert!(front.unwrap() == stored.content);
        for range in [0..4, 4..4, 7..5_000_000, 5_000_000..5_000_001, half + 1..half + 3] {
            assert!(
                **reading.take(range.clone()).unwrap() == stored.content[range.clone()],
                "{range:?}"
            );
        }
        assert_eq!(reading.position(), half as u64 + 3);
        assert_eq!(reading.finish(), Ok(()));
        assert_eq!(reading.finish(), Ok(()));
    }

    #[test]
    fn ranges_behind_the_end_or_read_before_are_refused() {
        let stored = Stored::new();
        let mut reading = stored.open(None);
        let end = stored.content.len();
        reading.take(10..20).unwrap();
        #[expect(clippy::reversed_empty_ranges, reason = "that is what is refused")]
        for range in [19..21, 0..1, end..end + 1, 40..30, 0..usize::MAX] {
            assert_eq!(
                reading.take(range.clone()).unwrap_err().reason,
                Reason::StorageFault,
                "{range:?}"
            );
            assert_eq!(reading.look(range).unwrap_err().reason, Reason::StorageFault);
        }
        assert_eq!(reading.finish(), Ok(()));
    }

    #[test]
    fn a_bit_anywhere_is_found_though_pieces_were_handed_out() {
        let stored = Stored::new();
        for index in [0, 4_194_303, 4_194_304, 9_000_000, stored.content.len() - 1] {
            stored.write(&stored.changed_at(index));
            let mut reading = stored.open(Some(&stored.digest()));
            reading.take(5..4_000_000).unwrap();
            let refusal = reading.finish().unwrap_err();
            assert_eq!(refusal.reason, Reason::DigestMismatch, "{index}");
            assert_eq!(reading.finish().unwrap_err(), refusal);
        }
    }

    #[test]
    fn what_was_looked_at_must_be_the_same_when_its_turn_comes() {
        let stored = Stored::new();
        for (index, looked) in [(3, 3..4), (5_000_000, 4_194_300..5_000_001), (9, 0..10)] {
            let mut reading = stored.open(Some(&stored.digest()));
            // A header that is swapped for a moment, and put back before the file is hashed.
            stored.write(&stored.changed_at(index));
            reading.look(looked.clone()).unwrap();
            stored.write(&stored.content);
            let refusal = reading.finish().unwrap_err();
            assert_eq!(refusal.reason, Reason::ChangedAfterVerify, "{looked:?}");
        }
    }

    #[test]
    fn file_that_shrinks_or_differs_from_what_was_hashed_has_changed() {
        let stored = Stored::new();
        let mut shrunk = stored.open(None);
        let mut other = stored.open(None);
        stored.write(&stored.content[..1000]);
        let refusal = shrunk.finish().unwrap_err();
        assert_eq!(
            (refusal.reason, refusal.got.as_deref()),
            (Reason::ChangedAfterVerify, Some("1000 bytes"))
        );
        stored.write(&stored.changed_at(77));
        assert_eq!(other.finish().unwrap_err().reason, Reason::ChangedAfterVerify);
    }

    #[test]
    fn header_gets_more_until_it_suffices() {
        let stored = Stored::new();
        let mut reading = stored.open(None);
        let mut lengths = Vec::new();
        let end = stored.content.len();
        let found = reading.header(|front, length| {
            lengths.push(front.len());
            Ok((front.len() > 4_194_304).then_some(length))
        });
        assert_eq!((found, lengths), (Ok(end), vec![4_194_304, end]));
        let never = reading.header(|_, _| Ok(None::<()>)).unwrap_err();
        assert_eq!(never.reason, Reason::SizeLimit);
    }
}
