//! API keys: one file for each client, as a Secret is mounted.

use escadre_verify::Digest;
use std::io::Read as _;
use std::path::Path;
use subtle::ConstantTimeEq as _;

/// Shorter keys can be guessed.
const MIN_BYTES: usize = 16;
/// Longer ones are no keys.
const MAX_BYTES: usize = 4096;
/// How a file begins that has the digest of a key, not the key.
const DIGEST: &str = "sha256:";

/// All keys, as their digests.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Keys(Vec<Key>);

#[derive(Debug, PartialEq, Eq)]
struct Key {
    client: String,
    digest: [u8; 32],
}

/// Why the keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The folder or a file in it cannot be read.
    #[error("{path}: {error}")]
    Unreadable {
        /// Which.
        path: String,
        /// Why.
        error: std::io::Error,
    },
    /// A file has something else in it.
    #[error("the key of `{client}` {problem}")]
    Wrong {
        /// The file's name.
        client: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl Keys {
    /// The keys of a folder: the name of each file is that of a client, and its content the key, or `sha256:` and the key's
    /// SHA-256 in 64 hex digits. Names that begin with a dot are passed over.
    ///
    /// # Errors
    /// When something cannot be read or is no key.
    pub fn read(folder: &Path) -> Result<Self, KeyError> {
        let unreadable = |path: &Path| {
            let path = path.display().to_string();
            move |error| KeyError::Unreadable { path, error }
        };
        let mut found = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(unreadable(folder))? {
            let entry = entry.map_err(unreadable(folder))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with('.') {
                continue;
            }
            let path = entry.path();
            let mut content = Vec::new();
            let file = std::fs::File::open(&path).map_err(unreadable(&path))?;
            file.take(MAX_BYTES as u64 + 2)
                .read_to_end(&mut content)
                .map_err(unreadable(&path))?;
            found.push((name, content));
        }
        Self::of(found)
    }

    /// Keys by the names of clients.
    ///
    /// # Errors
    /// When one is no key.
    pub fn of(found: impl IntoIterator<Item = (String, Vec<u8>)>) -> Result<Self, KeyError> {
        let keys = found.into_iter().map(|(client, content)| {
            let digest = digest_of(content.trim_ascii()).map_err(|problem| KeyError::Wrong {
                client: client.clone(),
                problem,
            })?;
            Ok(Key { client, digest })
        });
        let mut keys: Vec<Key> = keys.collect::<Result<_, _>>()?;
        keys.sort_by(|one, other| one.client.cmp(&other.client));
        Ok(Self(keys))
    }

    /// The client with this key. Takes as long for a wrong key as for a right one.
    pub(super) fn find(&self, key: &[u8]) -> Option<&str> {
        let digest = *Digest::of(key).as_bytes();
        let mut found = None;
        for key in &self.0 {
            if bool::from(key.digest.ct_eq(&digest)) {
                found = Some(key.client.as_str());
            }
        }
        found
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

fn digest_of(content: &[u8]) -> Result<[u8; 32], String> {
    let text = std::str::from_utf8(content).ok();
    if let Some(hex) = text.and_then(|text| text.strip_prefix(DIGEST)) {
        let digest: Result<Digest, _> = format!("{DIGEST}{}", hex.to_ascii_lowercase()).parse();
        return digest
            .map(|digest| *digest.as_bytes())
            .map_err(|_| format!("begins with {DIGEST}, which must be followed by 64 hex digits"));
    }
    if (MIN_BYTES..=MAX_BYTES).contains(&content.len()) && content.iter().all(u8::is_ascii_graphic) {
        return Ok(*Digest::of(content).as_bytes());
    }
    Err(format!(
        "must be {MIN_BYTES} to {MAX_BYTES} letters, digits and signs without spaces, or {DIGEST} and 64 hex digits"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_a_file_for_each_client() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &str| std::fs::write(folder.path().join(name), content).unwrap();
        write("alice", "a-key-of-some-length\n");
        write("bob", &format!("{}\n", Digest::of(b"the-key-of-bob-is-this")));
        write("..data", "not a key");
        let keys = Keys::read(folder.path()).unwrap();
        assert_eq!(keys.count(), 2);
        assert_eq!(keys.find(b"a-key-of-some-length"), Some("alice"));
        assert_eq!(keys.find(b"the-key-of-bob-is-this"), Some("bob"));
        assert_eq!(keys.find(b"a-key-of-some-length\n"), None);
        assert!(matches!(
            Keys::read(&folder.path().join("none")),
            Err(KeyError::Unreadable { .. })
        ));
    }

    #[test]
    fn what_is_no_key_is_refused_with_the_name_of_its_client() {
        for content in ["", "short", "with spaces in between it", "sha256:12", &"x".repeat(5000)] {
            let error = Keys::of([("carol".to_owned(), content.into())]).unwrap_err();
            assert!(error.to_string().starts_with("the key of `carol` "), "{error}");
        }
    }
}
