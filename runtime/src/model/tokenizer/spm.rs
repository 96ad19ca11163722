//! The GGUF vocabulary kind `llama`: SentencePiece pieces with scores, merged from characters upwards, with a token
//! per byte for what has no piece.

use super::TokenizerError;
use super::alphabet::SPACE;
use std::collections::{BinaryHeap, HashMap};

/// The rules of one vocabulary.
pub(super) struct Spm {
    /// Token and score of every piece. Control and byte tokens are not among them, so that no text can spell one.
    pub(super) pieces: HashMap<String, (u32, f32)>,
    /// The token of every byte.
    pub(super) bytes: [Option<u32>; 256],
    /// Stands for a byte that has none.
    pub(super) unknown: Option<u32>,
    /// Text at the beginning, and behind a special token, gets a space in front.
    pub(super) space_prefix: bool,
}

impl Spm {
    pub(super) fn encode(&self, text: &str, after_special: bool, ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
        let mut escaped = String::with_capacity(text.len() + SPACE.len_utf8());
        if self.space_prefix && after_special {
            escaped.push(SPACE);
        }
        escaped.extend(
            text.chars()
                .map(|character| if character == ' ' { SPACE } else { character }),
        );
        for piece in self.merge(&escaped) {
            match self.pieces.get(piece) {
                Some(&(id, _)) => ids.push(id),
                None => self.push_bytes(piece, ids)?,
            }
        }
        Ok(())
    }

    fn push_bytes(&self, piece: &str, ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
        for byte in piece.bytes() {
            let id = self.bytes[usize::from(byte)].or(self.unknown);
            ids.push(id.ok_or_else(|| TokenizerError(format!("the vocabulary has no token for byte {byte:#04x}")))?);
        }
        Ok(())
    }

    /// Merges the neighbours whose piece has the best score until no neighbours form a piece.
    fn merge<'a>(&self, text: &'a str) -> Vec<&'a str> {
        let mut symbols: Vec<_> = text
            .char_indices()
            .map(|(start, character)| Symbol {
                start,
                end: start + character.len_utf8(),
                before: None,
                behind: None,
            })
            .collect();
        for index in 1..symbols.len() {
            symbols[index].before = Some(index - 1);
            symbols[index - 1].behind = Some(index);
        }
        let mut queue = BinaryHeap::new();
        for left in 0..symbols.len() {
            self.offer(text, &symbols, left, &mut queue);
        }
        while let Some(candidate) = queue.pop() {
            let left = symbols[candidate.left];
            let Some(at) = left.behind else { continue };
            let right = symbols[at];
            // One of the two sides was merged meanwhile, or this symbol was merged away.
            if left.start == left.end || right.end - left.start != candidate.length {
                continue;
            }
            symbols[candidate.left].end = right.end;
            symbols[candidate.left].behind = right.behind;
            symbols[at].start = right.end;
            symbols[at].behind = None;
            if let Some(next) = right.behind {
                symbols[next].before = Some(candidate.left);
            }
            if let Some(before) = left.before {
                self.offer(text, &symbols, before, &mut queue);
            }
            self.offer(text, &symbols, candidate.left, &mut queue);
        }
        let kept = symbols.iter().filter(|symbol| symbol.start < symbol.end);
        kept.map(|symbol| &text[symbol.start..symbol.end]).collect()
    }

    fn offer(&self, text: &str, symbols: &[Symbol], left: usize, queue: &mut BinaryHeap<Candidate>) {
        let Some(behind) = symbols[left].behind else {
            return;
        };
        let piece = &text[symbols[left].start..symbols[behind].end];
        if let Some(&(_, score)) = self.pieces.get(piece) {
            queue.push(Candidate {
                score,
                left,
                length: piece.len(),
            });
        }
    }
}

#[derive(Clone, Copy)]
struct Symbol {
    start: usize,
    end: usize,
    before: Option<usize>,
    behind: Option<usize>,
}

struct Candidate {
    score: f32,
    left: usize,
    length: usize,
}

impl Ord for Candidate {
    /// The heap gives the largest: the best score, then the leftmost.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Candidate {}

#[cfg(test)]
mod tests {
    use super::*;

    fn spm() -> Spm {
        let pieces = [
            ("▁", 0, -9.0),
            ("a", 1, -8.0),
            ("b", 2, -8.5),
            ("ab", 3, -1.0),
            ("▁a", 4, -2.0),
            ("▁ab", 5, -3.0),
        ];
        let mut bytes = [None; 256];
        for byte in 0..=254_u8 {
            bytes[usize::from(byte)] = Some(100 + u32::from(byte));
        }
        Spm {
            pieces: pieces
                .iter()
                .map(|&(text, id, score)| (text.to_owned(), (id, score)))
                .collect(),
            bytes,
            unknown: Some(99),
            space_prefix: true,
        }
    }

    fn encode(text: &str, after_special: bool) -> Vec<u32> {
        let mut ids = Vec::new();
        spm().encode(text, after_special, &mut ids).unwrap();
        ids
    }

    #[test]
    fn the_best_score_is_merged_first() {
        assert_eq!(encode("ab", true), [5]);
        assert_eq!(encode("ab", false), [3]);
        assert_eq!(encode("aab a", false), [1, 3, 4]);
    }

    #[test]
    fn characters_without_a_piece_become_bytes() {
        assert_eq!(encode("é", false), [100 + 0xc3, 100 + 0xa9]);
        assert_eq!(encode("\u{10ffff}", false).len(), 4);
    }
}
