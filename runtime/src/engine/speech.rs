//! From an answer's tokens to what its client is told: whole characters, nothing of a stop string, and with the text the
//! tokens that it is made of. Pure.

use super::{Logprobs, StopMatcher, TextStream};
use std::collections::VecDeque;

/// The next part of an answer.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Piece {
    /// Whole characters.
    pub text: String,
    /// How many tokens were drawn since the piece before.
    pub drawn: usize,
    /// The tokens whose text begins in this piece, when the request wants to know how likely they were.
    pub tokens: Vec<Logprobs>,
}

impl Piece {
    /// Whether there is nothing to be told.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty() && self.tokens.is_empty()
    }
}

/// Speaks one answer.
pub(super) struct Speech {
    text: Box<dyn TextStream>,
    stop: StopMatcher,
    /// Tokens whose text was not told yet, and where in the answer it begins, in bytes.
    held: VecDeque<(usize, Logprobs)>,
    /// Bytes of text that the tokens so far have given.
    given: usize,
    /// Bytes of text that were told.
    told: usize,
    /// Tokens since the last piece.
    drawn: usize,
}

/// What is told next, and whether a stop string ends the answer with it.
#[derive(Debug, PartialEq)]
pub(super) struct Told {
    pub(super) piece: Piece,
    pub(super) stopped: bool,
}

impl Speech {
    pub(super) fn new(text: Box<dyn TextStream>, stop: StopMatcher) -> Self {
        Self {
            text,
            stop,
            held: VecDeque::new(),
            given: 0,
            told: 0,
            drawn: 0,
        }
    }

    /// Takes the next token.
    pub(super) fn push(&mut self, token: u32, logprobs: Option<Logprobs>) -> Told {
        self.drawn += 1;
        self.held.extend(logprobs.map(|logprobs| (self.given, logprobs)));
        let text = self.text.push(token);
        self.given += text.len();
        let passed = self.stop.push(&text);
        Told {
            piece: self.tell(passed.text),
            stopped: passed.stopped,
        }
    }

    /// What is left when no token follows.
    pub(super) fn finish(&mut self) -> Told {
        let rest = self.text.finish();
        self.given += rest.len();
        let passed = self.stop.push(&rest);
        let text = passed.text + &self.stop.finish();
        let mut piece = self.tell(text);
        if !passed.stopped {
            // Tokens at the end that gave no text.
            piece.tokens.extend(self.held.drain(..).map(|(_, token)| token));
        }
        Told {
            piece,
            stopped: passed.stopped,
        }
    }

    fn tell(&mut self, text: String) -> Piece {
        self.told += text.len();
        let begun = self.held.partition_point(|(start, _)| *start < self.told);
        let tokens: Vec<Logprobs> = self.held.drain(..begun).map(|(_, token)| token).collect();
        let is_told = !text.is_empty() || !tokens.is_empty();
        Piece {
            text,
            drawn: if is_told { std::mem::take(&mut self.drawn) } else { 0 },
            tokens,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::ScoredToken;
    use super::*;

    /// Token 0 is `ab`, 1 the first two bytes of a character and 2 its last, 3 is `c`, 4 is nothing.
    #[derive(Default)]
    struct Letters(bool);

    impl TextStream for Letters {
        fn push(&mut self, token: u32) -> String {
            self.0 = token == 1;
            ["ab", "", "€", "c", ""][token as usize].to_owned()
        }

        fn finish(&mut self) -> String {
            if self.0 { "\u{fffd}".into() } else { String::new() }
        }
    }

    fn scored(token: u32) -> Logprobs {
        Logprobs {
            drawn: ScoredToken { token, logprob: -1.0 },
            likeliest: vec![],
        }
    }

    /// What is told of these tokens: the text and the tokens of each piece, and whether it stopped.
    fn speak(tokens: &[u32], stops: &[&str]) -> (Vec<(String, Vec<u32>)>, bool) {
        let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let mut speech = Speech::new(Box::new(Letters::default()), StopMatcher::new(&stops));
        let mut told = Vec::new();
        for token in tokens {
            let next = speech.push(*token, Some(scored(*token)));
            let stopped = next.stopped;
            told.push(next);
            if stopped {
                break;
            }
        }
        if !told.last().is_some_and(|last| last.stopped) {
            told.push(speech.finish());
        }
        let stopped = told.iter().any(|next| next.stopped);
        let pieces = told
            .into_iter()
            .map(|next| next.piece)
            .filter(|piece| !piece.is_empty());
        let ids = |piece: &Piece| piece.tokens.iter().map(|token| token.drawn.token).collect();
        (
            pieces
                .map(|piece| (ids(&piece), piece))
                .map(|(ids, piece)| (piece.text, ids))
                .collect(),
            stopped,
        )
    }

    fn pieces(expected: &[(&str, &[u32])]) -> Vec<(String, Vec<u32>)> {
        expected
            .iter()
            .map(|(text, ids)| ((*text).to_owned(), ids.to_vec()))
            .collect()
    }

    #[test]
    fn tokens_come_with_the_text_that_begins_in_them() {
        let (told, stopped) = speak(&[0, 1, 2, 3], &[]);
        assert_eq!(told, pieces(&[("ab", &[0]), ("€", &[1, 2]), ("c", &[3])]));
        assert!(!stopped);
        assert_eq!(speak(&[0, 1], &[]).0, pieces(&[("ab", &[0]), ("\u{fffd}", &[1])]));
        assert_eq!(speak(&[0, 4], &[]).0, pieces(&[("ab", &[0]), ("", &[4])]));
    }

    #[test]
    fn what_a_stop_string_takes_away_has_no_tokens() {
        assert_eq!(
            speak(&[3, 0, 3, 0], &["bc"]),
            (pieces(&[("c", &[3]), ("a", &[0])]), true)
        );
        assert_eq!(speak(&[0, 3, 0], &["ca"]), (pieces(&[("ab", &[0])]), true));
        // Held back, and told when it turned out to be none.
        assert_eq!(
            speak(&[0, 3, 3], &["cab"]),
            (pieces(&[("ab", &[0]), ("c", &[3]), ("c", &[3])]), false)
        );
    }

    #[test]
    fn nothing_is_kept_of_tokens_that_nobody_asked_about() {
        let mut speech = Speech::new(Box::new(Letters::default()), StopMatcher::new(&[]));
        let told = speech.push(0, None);
        assert_eq!((told.piece.text.as_str(), told.piece.tokens.len()), ("ab", 0));
    }
}
