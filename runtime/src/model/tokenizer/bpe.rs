//! Byte-level byte-pair encoding, the GGUF vocabulary kind `gpt2`.
//!
//! Text is split into words by patterns, one after the other; within a word the pair with the lowest rank is merged
//! until none is left.

use std::collections::{BinaryHeap, HashMap};
use tokenizers::utils::SysRegex;

/// No token: a byte that the vocabulary lacks, or a symbol that was merged away.
const NONE: u32 = u32::MAX;

/// Rank and result by pair.
pub(super) type Merges = HashMap<(u32, u32), (u32, u32)>;

/// The rules of one vocabulary.
pub(super) struct Bpe {
    pub(super) patterns: Vec<SysRegex>,
    /// The token of every single byte, or `NONE`.
    pub(super) bytes: Box<[u32; 256]>,
    /// Rank and result of every pair that merges.
    pub(super) merges: Merges,
    /// Words that are tokens as a whole, whatever the merges say; empty for vocabularies that do not have this.
    pub(super) whole_words: HashMap<Vec<u8>, u32>,
}

impl Bpe {
    pub(super) fn encode(&self, text: &str, ids: &mut Vec<u32>) {
        let mut words = vec![text];
        for pattern in &self.patterns {
            words = words.into_iter().flat_map(|word| split(pattern, word)).collect();
        }
        for word in words {
            match self.whole_words.get(word.as_bytes()) {
                Some(&id) => ids.push(id),
                None => self.merge(word.as_bytes(), ids),
            }
        }
    }

    /// Symbols are a linked list over the word's bytes; candidates wait in a queue and are checked when they come
    /// up, because an earlier merge may have used one of their sides.
    fn merge(&self, word: &[u8], ids: &mut Vec<u32>) {
        let mut symbols: Vec<_> = word
            .iter()
            .enumerate()
            .map(|(index, &byte)| Symbol {
                id: self.bytes[usize::from(byte)],
                before: index.checked_sub(1),
                behind: Some(index + 1).filter(|&behind| behind < word.len()),
            })
            .collect();
        let mut queue = BinaryHeap::new();
        for left in 0..symbols.len().saturating_sub(1) {
            self.offer(&symbols, left, &mut queue);
        }
        while let Some(candidate) = queue.pop() {
            let left = symbols[candidate.left];
            let Some(right) = left.behind.map(|behind| symbols[behind]) else {
                continue;
            };
            if (left.id, right.id) != candidate.pair {
                continue;
            }
            let Some(at) = left.behind else { continue };
            symbols[at].id = NONE;
            symbols[candidate.left].id = candidate.merged;
            symbols[candidate.left].behind = right.behind;
            if let Some(next) = right.behind {
                symbols[next].before = Some(candidate.left);
                self.offer(&symbols, candidate.left, &mut queue);
            }
            if let Some(before) = left.before {
                self.offer(&symbols, before, &mut queue);
            }
        }
        let mut next = (!symbols.is_empty()).then_some(0);
        while let Some(index) = next {
            let symbol = symbols[index];
            // A byte without a token is left out, as the reference does.
            ids.extend(Some(symbol.id).filter(|&id| id != NONE));
            next = symbol.behind;
        }
    }

    fn offer(&self, symbols: &[Symbol], left: usize, queue: &mut BinaryHeap<Candidate>) {
        let Some(behind) = symbols[left].behind else {
            return;
        };
        let pair = (symbols[left].id, symbols[behind].id);
        if let Some(&(rank, merged)) = self.merges.get(&pair) {
            queue.push(Candidate {
                rank,
                left,
                pair,
                merged,
            });
        }
    }
}

#[derive(Clone, Copy)]
struct Symbol {
    id: u32,
    before: Option<usize>,
    behind: Option<usize>,
}

#[derive(PartialEq, Eq)]
struct Candidate {
    rank: u32,
    left: usize,
    pair: (u32, u32),
    merged: u32,
}

impl Ord for Candidate {
    /// The heap gives the largest: the lowest rank, then the leftmost.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.rank, other.left).cmp(&(self.rank, self.left))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// Matches and what lies between them, in order.
pub(super) fn split<'a>(pattern: &SysRegex, text: &'a str) -> Vec<&'a str> {
    let mut parts = Vec::new();
    let mut done = 0;
    for (start, end) in pattern.find_iter(text) {
        if start > done {
            parts.push(&text[done..start]);
        }
        if end > start {
            parts.push(&text[start..end]);
        }
        done = end;
    }
    if done < text.len() {
        parts.push(&text[done..]);
    }
    parts
}

/// How text is split into words for one value of `tokenizer.ggml.pre`.
pub(super) struct Splitting {
    pub(super) patterns: &'static [&'static str],
    /// Words that are tokens are not merged.
    pub(super) whole_words: bool,
    /// Texts begin with the begin token unless the file says otherwise.
    pub(super) begins: bool,
}

/// The words of the first byte-level vocabulary: contractions, letters, digits, other marks, white space.
const WORDS: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The splittings that are known; others are refused, because a wrong one changes what a model reads.
pub(super) const SPLITTINGS: [(&[&str], Splitting); 7] = [
    (
        &["default"],
        Splitting {
            patterns: &[r"[\p{P}\$\+<=>\^~\|]+", WORDS, r"\p{N}+", r"[0-9][0-9][0-9]"],
            whole_words: false,
            begins: false,
        },
    ),
    (
        &["gpt-2", "phi-2", "olmo", "mpt"],
        Splitting {
            patterns: &[WORDS],
            whole_words: false,
            begins: false,
        },
    ),
    (
        &[
            "smollm",
            "starcoder",
            "refact",
            "command-r",
            "codeshell",
            "exaone",
            "minerva-7b",
        ],
        Splitting {
            patterns: &[r"\p{N}", WORDS],
            whole_words: false,
            begins: false,
        },
    ),
    (
        &["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"],
        Splitting {
            patterns: &[LLAMA3],
            whole_words: true,
            begins: true,
        },
    ),
    (
        &["dbrx", "smaug-bpe"],
        Splitting {
            patterns: &[LLAMA3],
            whole_words: false,
            begins: false,
        },
    ),
    (
        &["qwen2", "deepseek-r1-qwen", "stablelm2", "megrez"],
        Splitting {
            patterns: &[QWEN2],
            whole_words: false,
            begins: false,
        },
    ),
    (
        &["tekken"],
        Splitting {
            patterns: &[TEKKEN],
            whole_words: true,
            begins: true,
        },
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn words(name: &str, text: &str) -> Vec<String> {
        let (_, splitting) = SPLITTINGS.iter().find(|(names, _)| names.contains(&name)).unwrap();
        let mut words = vec![text.to_owned()];
        for pattern in splitting.patterns {
            let pattern = SysRegex::new(pattern).unwrap();
            words = words
                .iter()
                .flat_map(|word| split(&pattern, word).into_iter().map(str::to_owned).collect::<Vec<_>>())
                .collect();
        }
        words
    }

    #[test]
    fn splittings_differ_where_they_should() {
        let text = "I'LL pay 1234 now\n\n  x";
        assert_eq!(
            words("gpt-2", text),
            ["I", "'", "LL", " pay", " 1234", " now", "\n\n ", " x"]
        );
        assert_eq!(
            words("smollm", text),
            ["I", "'", "LL", " pay", " ", "1", "2", "3", "4", " now", "\n\n ", " x"]
        );
        assert_eq!(
            words("llama-bpe", text),
            ["I", "'LL", " pay", " ", "123", "4", " now", "\n\n", " ", " x"]
        );
        assert_eq!(
            words("qwen2", text),
            ["I", "'LL", " pay", " ", "1", "2", "3", "4", " now", "\n\n", " ", " x"]
        );
    }

    #[test]
    fn nothing_of_a_text_is_lost() {
        for (names, _) in &SPLITTINGS {
            for text in ["", " ", "a\u{a0}b\u{3000}c", "\r\n\t \u{200b}", "ñ́漢字🙂‍🙂", "x  \n"] {
                assert_eq!(words(names[0], text).concat(), text, "{names:?}");
            }
        }
    }

    #[test]
    fn the_lowest_rank_is_merged_first_and_leftmost() {
        let mut bytes = [NONE; 256];
        bytes[usize::from(b'a')] = 0;
        bytes[usize::from(b'b')] = 1;
        // aa -> 2 (rank 1), ab -> 3 (rank 0), aab -> 4 as (a, ab) (rank 2)
        let merges = HashMap::from([((0, 0), (1, 2)), ((0, 1), (0, 3)), ((0, 3), (2, 4))]);
        let bpe = Bpe {
            patterns: Vec::new(),
            bytes: Box::new(bytes),
            merges,
            whole_words: HashMap::new(),
        };
        let encode = |text: &str| {
            let mut ids = Vec::new();
            bpe.encode(text, &mut ids);
            ids
        };
        assert_eq!(encode("aab"), [4]);
        assert_eq!(encode("aaa"), [2, 0]);
        assert_eq!(encode("aaab"), [2, 3]);
        assert_eq!(
            encode("axb"),
            [0, 1],
            "a byte without a token is left out and separates its neighbours"
        );
        assert!(encode("").is_empty());
    }
}
