//! The name of a block: everything that its keys and values depend on.

use sha2::{Digest as _, Sha256};

/// A hash over a root and all tokens up to the end of a block. Whoever finds a block by it reads what somebody else's
/// request computed, so that a collision must not be possible on purpose: 128 bits of SHA-256.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Chain([u8; 16]);

impl Chain {
    /// The name of the block that follows and has these tokens.
    #[must_use]
    pub fn then(self, tokens: &[u32]) -> Self {
        let mut hash = Sha256::new();
        hash.update(self.0);
        for token in tokens {
            hash.update(token.to_le_bytes());
        }
        Self::cut(hash)
    }

    fn cut(hash: Sha256) -> Self {
        let mut short = [0; 16];
        short.copy_from_slice(&hash.finalize()[..16]);
        Self(short)
    }
}

/// The beginning of all names of one kind: `what` says which model, which adapter, which type of the cache.
pub fn root(what: &str) -> Chain {
    Chain::cut(Sha256::new().chain_update(b"escadre kv\n").chain_update(what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_differ_by_every_token_and_by_what_came_before() {
        let names = [
            root("m").then(&[1, 2]),
            root("m").then(&[1, 3]),
            root("n").then(&[1, 2]),
            root("m").then(&[1]).then(&[2]),
            root("m"),
        ];
        for (at, name) in names.iter().enumerate() {
            assert!(!names[..at].contains(name));
        }
        assert_eq!(root("m").then(&[1, 2]), names[0]);
    }
}
