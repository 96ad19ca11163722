//! How vocabularies write bytes as text.

/// The character that stands for a space in SentencePiece vocabularies.
pub(super) const SPACE: char = '\u{2581}';

/// The printable character by which byte-level vocabularies write a byte: itself where it is printable Latin-1, else
/// one of the characters from U+0100 on, in order.
pub(super) fn byte_to_char(byte: u8) -> char {
    if is_printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&other| !is_printable(other)).count();
    u32::try_from(before)
        .ok()
        .and_then(|before| char::from_u32(0x100 + before))
        .expect("at most 68 characters after U+0100")
}

fn is_printable(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff)
}

/// Turns the characters of byte-level vocabularies back into bytes.
pub(super) struct ByteLevel {
    bytes: [Option<u8>; 0x144],
}

impl ByteLevel {
    pub(super) fn new() -> Self {
        let mut bytes = [None; 0x144];
        for byte in 0..=255 {
            bytes[byte_to_char(byte) as usize] = Some(byte);
        }
        Self { bytes }
    }

    /// Absent when a character is not of the alphabet.
    pub(super) fn decode(&self, text: &str) -> Option<Vec<u8>> {
        let byte = |character: char| *self.bytes.get(character as usize)?;
        text.chars().map(byte).collect()
    }
}

/// The byte of a token such as `<0x0A>`.
pub(super) fn byte_token(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_hex = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    u8::from_str_radix(digits, 16).ok().filter(|_| is_hex)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_alphabet_is_its_own_inverse() {
        assert_eq!(byte_to_char(b' '), 'Ġ');
        assert_eq!(byte_to_char(b'\n'), 'Ċ');
        assert_eq!(byte_to_char(0xad), 'Ń');
        let alphabet = ByteLevel::new();
        for byte in 0..=255 {
            assert_eq!(alphabet.decode(&byte_to_char(byte).to_string()), Some(vec![byte]));
        }
        assert_eq!(alphabet.decode("漢"), None);
    }

    #[test]
    fn byte_tokens_have_exactly_two_digits() {
        assert_eq!(byte_token("<0x0A>"), Some(10));
        assert_eq!(byte_token("<0x+A>"), None);
        assert_eq!(byte_token("<0xA>"), None);
        assert_eq!(byte_token("0x0A"), None);
    }
}
