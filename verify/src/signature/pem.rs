//! Blocks of PEM in a text. Whatever stands around them is ignored, since tools write descriptions there.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// More blocks than any trust file has.
const MAX_BLOCKS: usize = 1024;

/// One block: what it says that it is, and its content.
pub(super) struct Block {
    pub(super) label: String,
    pub(super) der: Vec<u8>,
}

/// All blocks of a text, in order. The error is a sentence without its subject.
pub(super) fn blocks(text: &[u8]) -> Result<Vec<Block>, String> {
    let text = std::str::from_utf8(text).map_err(|_| "is not text".to_owned())?;
    let mut blocks = Vec::new();
    let mut rest = text;
    while let Some((_, after)) = rest.split_once("-----BEGIN ") {
        let (label, after) = after
            .split_once("-----")
            .filter(|(label, _)| !label.contains('\n'))
            .ok_or("has a PEM block without a label")?;
        let (body, after) = after
            .split_once(&format!("-----END {label}-----"))
            .ok_or_else(|| format!("has no end of the PEM block `{label}`"))?;
        let body: String = body.split_ascii_whitespace().collect();
        let der = STANDARD
            .decode(body)
            .map_err(|_| format!("has a PEM block `{label}` that is not base64"))?;
        if blocks.len() == MAX_BLOCKS {
            return Err(format!("has more than {MAX_BLOCKS} PEM blocks"));
        }
        blocks.push(Block {
            label: label.to_owned(),
            der,
        });
        rest = after;
    }
    Ok(blocks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_around_blocks_is_ignored() {
        let text = b"Key:\n\tX: 00\n\n-----BEGIN A-----\nAQID\r\nBA==\n-----END A-----\n# then\n-----BEGIN B C-----\n\n-----END B C-----";
        let blocks = blocks(text).unwrap();
        assert_eq!(
            (blocks[0].label.as_str(), blocks[0].der.as_slice()),
            ("A", [1, 2, 3, 4].as_slice())
        );
        assert_eq!((blocks[1].label.as_str(), blocks[1].der.len()), ("B C", 0));
        assert_eq!(blocks.len(), 2);
    }

    #[test]
    fn broken_blocks_are_told() {
        for text in [
            b"-----BEGIN A-----\nAQID".as_slice(),
            b"-----BEGIN A-----\nAQID\n-----END B-----",
            b"-----BEGIN A-----\n!\n-----END A-----",
            b"-----BEGIN A\n-----",
            b"\xff",
        ] {
            assert!(blocks(text).is_err(), "{}", text.escape_ascii());
        }
        assert!(blocks(b"no block").unwrap().is_empty());
    }
}
