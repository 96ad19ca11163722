//! Text from a stream of tokens, character by whole character.

use super::vocabulary::Vocabulary;
use std::sync::Arc;

/// Decodes the tokens of one answer as they come. Holds back the bytes of a character that is not complete yet.
#[derive(Debug)]
pub struct StreamDecoder {
    vocabulary: Arc<Vocabulary>,
    /// Control tokens that give their text.
    shown: Vec<u32>,
    pending: Vec<u8>,
}

impl StreamDecoder {
    pub(super) fn new(vocabulary: Arc<Vocabulary>, shown: &[u32]) -> Self {
        Self {
            vocabulary,
            shown: shown.to_vec(),
            pending: Vec::new(),
        }
    }

    /// The text that this token completes: often a piece, sometimes nothing. Control tokens give nothing, but for those
    /// that are shown. Bytes that can never become a character give U+FFFD.
    pub fn push(&mut self, id: u32) -> String {
        if self.vocabulary.is_control(id) && !self.shown.contains(&id) {
            return String::new();
        }
        self.pending
            .extend_from_slice(self.vocabulary.bytes(id).unwrap_or_default());
        self.take_complete()
    }

    /// What is left when no token follows: U+FFFD for a character that stayed incomplete, else nothing.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }

    fn take_complete(&mut self) -> String {
        let mut text = String::new();
        let mut rest = self.pending.as_slice();
        let held = loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    break 0;
                }
                Err(error) => {
                    let (valid, behind) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    let Some(invalid) = error.error_len() else {
                        break behind.len();
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &behind[invalid..];
                }
            }
        };
        self.pending.drain(..self.pending.len() - held);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::super::vocabulary::Kind;
    use super::*;

    fn decoder(tokens: &[&[u8]]) -> StreamDecoder {
        let mut vocabulary = Vocabulary::default();
        for token in tokens {
            vocabulary.push(token, Kind::Normal);
        }
        vocabulary.push(b"<end>", Kind::Control);
        StreamDecoder::new(Arc::new(vocabulary), &[])
    }

    #[test]
    fn control_tokens_are_seen_when_they_are_wanted() {
        let mut vocabulary = Vocabulary::default();
        vocabulary.push(b"<a>", Kind::Control);
        vocabulary.push(b"<b>", Kind::Control);
        let mut decoder = StreamDecoder::new(Arc::new(vocabulary), &[1]);
        assert_eq!((decoder.push(0).as_str(), decoder.push(1).as_str()), ("", "<b>"));
    }

    #[test]
    fn characters_are_held_back_until_they_are_whole() {
        let mut decoder = decoder(&[b"a\xf0\x9f", b"\x98", b"\x80b", b"\xc3"]);
        assert_eq!(decoder.push(0), "a");
        assert_eq!(decoder.push(1), "");
        assert_eq!(decoder.push(4), "", "a control token in between changes nothing");
        assert_eq!(decoder.push(2), "\u{1f600}b");
        assert_eq!(decoder.push(3), "");
        assert_eq!(decoder.finish(), "\u{fffd}");
        assert_eq!(decoder.finish(), "");
    }

    #[test]
    fn impossible_bytes_are_replaced_at_once() {
        let mut decoder = decoder(&[b"\xff\xfex", b"\xf0\x9f", b"y"]);
        assert_eq!(decoder.push(0), "\u{fffd}\u{fffd}x");
        assert_eq!(decoder.push(1), "");
        assert_eq!(decoder.push(2), "\u{fffd}y");
        assert_eq!(decoder.push(99), "");
    }
}
