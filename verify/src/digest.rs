//! SHA-256 digests of files, and the model digest: the identity of a model.

use crate::refusal::{Reason, Refusal};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::Digest as _;
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::str::FromStr;

/// How a digest starts in text: the algorithm's name, as OCI writes it.
const PREFIX: &str = "sha256:";

/// A SHA-256 digest, written `sha256:<64 lower-case hex digits>`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

/// A text that is not a [`Digest`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a digest: expected `sha256:` and 64 lower-case hex digits")]
pub struct DigestFormatError(String);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new();
        hasher.update(bytes);
        hasher.finish()
    }

    /// A digest from its bytes.
    pub(crate) fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 hex digits, without the algorithm.
    pub fn hex(&self) -> String {
        let mut hex = String::with_capacity(64);
        for byte in self.0 {
            write!(hex, "{byte:02x}").expect("writing to a String cannot fail");
        }
        hex
    }

    /// The first 12 hex digits: enough to tell digests apart in a message or a column.
    pub fn short(&self) -> String {
        self.hex()[..12].to_owned()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{PREFIX}{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl FromStr for Digest {
    type Err = DigestFormatError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = || DigestFormatError(text.chars().take(100).collect());
        let hex = text.strip_prefix(PREFIX).ok_or_else(malformed)?.as_bytes();
        if hex.len() != 64 {
            return Err(malformed());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(hex.as_chunks::<2>().0) {
            let (Some(high), Some(low)) = (hex_value(pair[0]), hex_value(pair[1])) else {
                return Err(malformed());
            };
            *byte = high << 4 | low;
        }
        Ok(Self(bytes))
    }
}

/// The value of a lower-case hex digit. Upper case is refused, so that a digest has one spelling.
fn hex_value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// SHA-256 over bytes that come in pieces.
#[derive(Clone, Default)]
pub struct Hasher(sha2::Sha256);

impl Hasher {
    /// A hasher that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all bytes that were added.
    pub fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

/// The identity of the model that consists of `files` (relative path → SHA-256 of the content).
///
/// A single file's is its own digest. Several files' is the SHA-256 of the lines `<sha256>  <path>\n`, sorted bytewise
/// by path, which is what `find -type f -printf '%P\n' | LC_ALL=C sort | xargs -d'\n' sha256sum | sha256sum` prints.
///
/// # Errors
/// `PathInvalid` for a path that contains a newline (two folders could have one digest), `ManifestEmpty` without a file.
pub fn model_digest(files: &BTreeMap<String, Digest>) -> Result<Digest, Refusal> {
    if let Some(path) = files.keys().find(|path| path.contains(['\n', '\r', '\\'])) {
        // `sha256sum` escapes these, so its output would differ from ours as well.
        return Err(Refusal::new(
            Reason::PathInvalid,
            "a file name contains a newline or a backslash; rename the file",
        )
        .in_file(path.escape_debug().to_string()));
    }
    if files.len() <= 1 {
        return files.values().next().copied().ok_or_else(|| {
            Refusal::new(
                Reason::ManifestEmpty,
                "the model has no files; name a folder that has some",
            )
        });
    }
    let mut hasher = Hasher::new();
    for (path, digest) in files {
        hasher.update(format!("{}  {path}\n", digest.hex()).as_bytes());
    }
    Ok(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn digest_of_nothing_is_the_published_one_and_survives_its_text_form() {
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
        assert_eq!(EMPTY.parse(), Ok(Digest::of(b"")));
        assert_eq!(serde_json::to_string(&Digest::of(b"")).unwrap(), format!("{EMPTY:?}"));
    }

    #[test]
    fn other_spellings_of_a_digest_are_refused() {
        for text in [
            "",
            "sha256:",
            &EMPTY[..70],
            &EMPTY.replace("e3", "E3"),
            &EMPTY.replace("sha256", "sha512"),
            &EMPTY[7..],
            &format!("{EMPTY}0"),
            &EMPTY.replace("e3", "é"),
        ] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }

    /// The value was printed by the pipeline of the doc comment over these two files.
    #[test]
    fn folder_digest_is_what_sha256sum_prints() {
        let files = BTreeMap::from([
            ("b/model.gguf".to_owned(), Digest::of(b"weights")),
            ("a.json".to_owned(), Digest::of(b"{}")),
        ]);
        assert_eq!(
            model_digest(&files).unwrap().to_string(),
            "sha256:54d170dc294acf0521a827e1d434a480532beff3bbfe6399c4f0139b6d8ee715"
        );
    }

    #[test]
    fn name_that_sha256sum_would_escape_is_refused() {
        let files = BTreeMap::from([("a\nb".to_owned(), Digest::of(b""))]);
        assert_eq!(model_digest(&files).unwrap_err().reason, Reason::PathInvalid);
        assert_eq!(
            model_digest(&BTreeMap::new()).unwrap_err().reason,
            Reason::ManifestEmpty
        );
    }
}
