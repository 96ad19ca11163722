//! Hashes of files as a signature gives them: of the whole file, or of parts of equal length.

use crate::digest::{Digest, Hasher};
use std::fmt::{self, Write as _};

/// A hash that signatures may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::Display, strum::IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub enum Algorithm {
    /// SHA-256.
    Sha256,
    /// BLAKE3 with 32 bytes.
    Blake3,
}

/// A hash and the algorithm that it was made with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Sum {
    pub(super) algorithm: Algorithm,
    pub(super) bytes: [u8; 32],
}

impl Sum {
    /// The algorithm.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The hash in hex.
    pub fn hex(&self) -> String {
        self.bytes.iter().fold(String::with_capacity(64), |mut hex, byte| {
            write!(hex, "{byte:02x}").expect("writing to a String cannot fail");
            hex
        })
    }

    /// The algorithm and the first 12 hex digits, for messages.
    pub fn short(&self) -> String {
        format!("{}:{}", self.algorithm, &self.hex()[..12])
    }
}

impl fmt::Display for Sum {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.algorithm, self.hex())
    }
}

impl fmt::Debug for Sum {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// What a signature says about a file's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileHash {
    /// The hash of the whole file.
    Whole(Sum),
    /// The hashes of its parts.
    Shards {
        /// The length of every part but the last.
        size: u64,
        /// The length of the file.
        bytes: u64,
        /// The hash of each part.
        sums: Vec<Sum>,
    },
}

impl FileHash {
    /// The SHA-256 of the whole file, when that is what the signature gives.
    pub(crate) fn sha256(&self) -> Option<Digest> {
        match self {
            Self::Whole(sum) if sum.algorithm == Algorithm::Sha256 => Some(Digest::from_bytes(sum.bytes)),
            Self::Whole(_) | Self::Shards { .. } => None,
        }
    }

    /// The file's length, when the signature gives it.
    pub(crate) fn bytes(&self) -> Option<u64> {
        match self {
            Self::Whole(_) => None,
            Self::Shards { bytes, .. } => Some(*bytes),
        }
    }
}

/// One hash in the making.
enum Running {
    Sha256(Hasher),
    Blake3(Box<blake3::Hasher>),
}

impl Running {
    fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256(Hasher::new()),
            Algorithm::Blake3 => Self::Blake3(Box::default()),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Blake3(hasher) => {
                hasher.update(bytes);
            }
        }
    }

    fn finish(self) -> Sum {
        match self {
            Self::Sha256(hasher) => Sum {
                algorithm: Algorithm::Sha256,
                bytes: *hasher.finish().as_bytes(),
            },
            Self::Blake3(hasher) => Sum {
                algorithm: Algorithm::Blake3,
                bytes: hasher.finalize().into(),
            },
        }
    }
}

/// Compares a file that comes in pieces with what a signature says about it. A SHA-256 of a whole file is not computed
/// here: whoever reads a file has it anyway.
pub(crate) struct Comparison<'a> {
    wanted: &'a [Sum],
    size: u64,
    running: Option<Running>,
    in_part: u64,
    part: usize,
    /// What was expected and what was found, of the first part that differs.
    difference: Option<(Sum, Sum)>,
}

impl<'a> Comparison<'a> {
    pub(crate) fn new(hash: &'a FileHash) -> Self {
        let (wanted, size): (&[Sum], u64) = match hash {
            FileHash::Whole(sum) if sum.algorithm == Algorithm::Sha256 => (&[], 0),
            FileHash::Whole(sum) => (std::slice::from_ref(sum), u64::MAX),
            FileHash::Shards { size, sums, .. } => (sums, *size),
        };
        Self {
            wanted,
            size,
            running: None,
            in_part: 0,
            part: 0,
            difference: None,
        }
    }

    pub(crate) fn update(&mut self, mut bytes: &[u8]) {
        while let (Some(wanted), false) = (self.wanted.get(self.part), bytes.is_empty()) {
            let running = self.running.get_or_insert_with(|| Running::new(wanted.algorithm));
            let left = self.size - self.in_part;
            let take = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
            let (now, later) = bytes.split_at(take);
            running.update(now);
            self.in_part += take as u64;
            bytes = later;
            if self.in_part == self.size {
                self.end_part();
            }
        }
    }

    /// The first part that differs. The file's length must have been compared before.
    pub(crate) fn finish(mut self) -> Option<(Sum, Sum)> {
        if self.part < self.wanted.len() {
            self.end_part();
        }
        self.difference
    }

    fn end_part(&mut self) {
        if let Some(wanted) = self.wanted.get(self.part) {
            let running = self.running.take().unwrap_or_else(|| Running::new(wanted.algorithm));
            let found = running.finish();
            if found != *wanted && self.difference.is_none() {
                self.difference = Some((*wanted, found));
            }
        }
        self.part += 1;
        self.in_part = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(algorithm: Algorithm, bytes: &[u8]) -> Sum {
        let mut running = Running::new(algorithm);
        running.update(bytes);
        running.finish()
    }

    fn compare(hash: &FileHash, content: &[u8], step: usize) -> Option<(Sum, Sum)> {
        let mut comparison = Comparison::new(hash);
        content.chunks(step).for_each(|piece| comparison.update(piece));
        comparison.finish()
    }

    #[test]
    fn parts_are_compared_whatever_the_pieces() {
        let content = b"0123456789";
        for algorithm in [Algorithm::Sha256, Algorithm::Blake3] {
            let hash = FileHash::Shards {
                size: 4,
                bytes: 10,
                sums: content.chunks(4).map(|part| sum(algorithm, part)).collect(),
            };
            for step in 1..=10 {
                assert_eq!(compare(&hash, content, step), None);
                assert!(compare(&hash, b"0123456788", step).is_some());
                assert!(compare(&hash, b"0123x56789", step).is_some());
                let (wanted, found) = compare(&hash, b"x123y56789", step).unwrap();
                assert_eq!((wanted, found), (sum(algorithm, b"0123"), sum(algorithm, b"x123")));
            }
        }
    }

    #[test]
    fn whole_files_are_compared() {
        // The hash of nothing is the published one.
        let empty = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
        let hash = FileHash::Whole(sum(Algorithm::Blake3, b""));
        assert!(matches!(&hash, FileHash::Whole(sum) if sum.hex() == empty));
        assert_eq!(compare(&hash, b"", 1), None);
        assert!(compare(&hash, b"x", 1).is_some());
        let hash = FileHash::Whole(sum(Algorithm::Blake3, b"abc"));
        assert_eq!(compare(&hash, b"abc", 2), None);
        assert!(compare(&hash, b"", 1).is_some());
    }
}
