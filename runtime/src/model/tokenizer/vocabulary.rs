//! The bytes and the kind of every token.

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A piece of text.
    Normal,
    /// A single byte, used when no piece fits.
    Byte,
    /// Stands for text that has no token.
    Unknown,
    /// Structure, such as the end of a turn; has no text in an answer.
    Control,
    /// Text that is always one token.
    UserDefined,
    /// An id that nothing uses.
    Unused,
}

/// Tokens by id, their bytes in one buffer.
#[derive(Debug, Default)]
pub(super) struct Vocabulary {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    kinds: Vec<Kind>,
}

impl Vocabulary {
    pub(super) fn push(&mut self, bytes: &[u8], kind: Kind) {
        self.bytes.extend_from_slice(bytes);
        self.ends.push(self.bytes.len());
        self.kinds.push(kind);
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn bytes(&self, id: u32) -> Option<&[u8]> {
        let index = id as usize;
        let end = *self.ends.get(index)?;
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        Some(&self.bytes[start..end])
    }

    pub(super) fn kind(&self, id: u32) -> Option<Kind> {
        self.kinds.get(id as usize).copied()
    }

    pub(super) fn is_control(&self, id: u32) -> bool {
        matches!(self.kind(id), Some(Kind::Control | Kind::Unknown | Kind::Unused))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_found_by_id() {
        let mut vocabulary = Vocabulary::default();
        vocabulary.push(b"ab", Kind::Normal);
        vocabulary.push(b"", Kind::Unused);
        vocabulary.push(b"<end>", Kind::Control);
        assert_eq!(vocabulary.bytes(0), Some(&b"ab"[..]));
        assert_eq!(vocabulary.bytes(1), Some(&b""[..]));
        assert_eq!(vocabulary.bytes(2), Some(&b"<end>"[..]));
        assert_eq!(vocabulary.bytes(3), None);
        assert!(vocabulary.is_control(2) && !vocabulary.is_control(0) && !vocabulary.is_control(9));
    }
}
