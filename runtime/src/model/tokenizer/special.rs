//! Splits special tokens off a text before anything else looks at it.

use super::SpecialTokens;
use super::vocabulary::Kind;

/// A part of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fragment<'a> {
    Text(&'a str),
    Token(u32),
}

/// A token that is recognised by its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Special {
    pub(super) text: String,
    pub(super) id: u32,
    pub(super) kind: Kind,
    /// Takes the white space before it.
    pub(super) strip_left: bool,
    /// Takes the white space behind it.
    pub(super) strip_right: bool,
}

impl Special {
    pub(super) fn new(text: &str, id: u32, kind: Kind) -> Self {
        Self {
            text: text.to_owned(),
            id,
            kind,
            strip_left: false,
            strip_right: false,
        }
    }
}

/// All special tokens, the longest text first: where two could stand, the longer one is meant.
#[derive(Debug, Default)]
pub(super) struct Specials {
    by_length: Vec<Special>,
}

impl Specials {
    pub(super) fn new(mut specials: Vec<Special>) -> Self {
        specials.retain(|special| !special.text.is_empty());
        specials.sort_by_key(|special| std::cmp::Reverse(special.text.len()));
        Self { by_length: specials }
    }

    pub(super) fn find(&self, text: &str) -> Option<u32> {
        let special = self.by_length.iter().find(|special| special.text == text);
        special.map(|special| special.id)
    }

    /// Parts in order; texts are never empty. User-defined tokens are recognised in any text, control tokens only
    /// when `special` says so.
    pub(super) fn split<'a>(&self, text: &'a str, special: SpecialTokens) -> Vec<Fragment<'a>> {
        let mut fragments = Vec::new();
        if !text.is_empty() {
            fragments.push(Fragment::Text(text));
        }
        for token in &self.by_length {
            if special == SpecialTokens::AsText && token.kind != Kind::UserDefined {
                continue;
            }
            if text.contains(&token.text) {
                fragments = fragments.into_iter().flat_map(|fragment| token.cut(fragment)).collect();
            }
        }
        fragments
    }
}

impl Special {
    fn cut<'a>(&self, fragment: Fragment<'a>) -> Vec<Fragment<'a>> {
        let Fragment::Text(mut rest) = fragment else {
            return vec![fragment];
        };
        let mut parts = Vec::new();
        let text = |part: &'a str, parts: &mut Vec<_>| {
            if !part.is_empty() {
                parts.push(Fragment::Text(part));
            }
        };
        while let Some(at) = rest.find(&self.text) {
            let (before, behind) = (&rest[..at], &rest[at + self.text.len()..]);
            text(if self.strip_left { before.trim_end() } else { before }, &mut parts);
            parts.push(Fragment::Token(self.id));
            rest = if self.strip_right { behind.trim_start() } else { behind };
        }
        text(rest, &mut parts);
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Fragment::{Text, Token};

    fn specials() -> Specials {
        Specials::new(vec![
            Special::new("<a>", 1, Kind::Control),
            Special::new("<a><b>", 2, Kind::Control),
            Special::new("  ", 3, Kind::UserDefined),
            Special::new("", 4, Kind::Control),
        ])
    }

    #[test]
    fn the_longest_token_wins_and_order_is_kept() {
        let parts = specials().split("x<a><b>y<a>  z", SpecialTokens::Parse);
        assert_eq!(parts, [Text("x"), Token(2), Text("y"), Token(1), Token(3), Text("z")]);
    }

    #[test]
    fn control_tokens_of_clients_stay_text() {
        let parts = specials().split("<a>  ", SpecialTokens::AsText);
        assert_eq!(parts, [Text("<a>"), Token(3)]);
        assert!(specials().split("", SpecialTokens::Parse).is_empty());
    }

    #[test]
    fn stripping_tokens_take_white_space() {
        let mut special = Special::new("<m>", 7, Kind::Control);
        special.strip_left = true;
        special.strip_right = true;
        let parts = Specials::new(vec![special]).split("a \n<m>  b", SpecialTokens::Parse);
        assert_eq!(parts, [Text("a"), Token(7), Text("b")]);
    }
}
