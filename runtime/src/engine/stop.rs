//! Stop strings, found in text that comes in pieces. Pure.

/// Watches an answer's text for the strings that end it, across the borders of tokens.
///
/// Text that may turn out to be the beginning of a stop string is held back; what is handed out never contains one.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
}

/// What may be said, and whether the answer ends with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passed {
    /// Text that belongs to the answer.
    pub text: String,
    /// Whether a stop string was found right after it.
    pub stopped: bool,
}

impl StopMatcher {
    /// A matcher for these strings; empty ones are ignored.
    pub fn new(stops: &[String]) -> Self {
        Self {
            stops: stops.iter().filter(|stop| !stop.is_empty()).cloned().collect(),
            held: String::new(),
        }
    }

    /// Adds the next piece of text.
    pub fn push(&mut self, piece: &str) -> Passed {
        if self.stops.is_empty() {
            return Passed {
                text: piece.to_owned(),
                stopped: false,
            };
        }
        self.held.push_str(piece);
        // The earliest stop ends the answer, whichever of them it is.
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.held.truncate(at);
            return Passed {
                text: std::mem::take(&mut self.held),
                stopped: true,
            };
        }
        let keep = self
            .stops
            .iter()
            .map(|stop| longest_start(&self.held, stop))
            .max()
            .unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        Passed {
            text: std::mem::replace(&mut self.held, rest),
            stopped: false,
        }
    }

    /// What was held back, when the answer ended for another reason.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// The length of the longest end of `text` that `stop` starts with.
fn longest_start(text: &str, stop: &str) -> usize {
    stop.char_indices()
        .map(|(at, _)| at)
        .filter(|at| text.ends_with(&stop[..*at]))
        .max()
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let stops: Vec<String> = stops.iter().map(|&stop| stop.to_owned()).collect();
        let mut matcher = StopMatcher::new(&stops);
        let mut text = String::new();
        for piece in pieces {
            let passed = matcher.push(piece);
            text.push_str(&passed.text);
            if passed.stopped {
                return (text, true);
            }
        }
        text.push_str(&matcher.finish());
        (text, false)
    }

    #[test]
    fn stop_across_pieces_is_found_and_not_said() {
        assert_eq!(
            run(&["\n\nUser:"], &["Hello", "\n", "\nUs", "er: more"]),
            ("Hello".into(), true)
        );
        assert_eq!(run(&["END"], &["E", "N", "D"]), (String::new(), true));
    }

    #[test]
    fn earliest_of_several_stops_wins() {
        assert_eq!(run(&["world", "lo"], &["hello world"]), ("hel".into(), true));
    }

    #[test]
    fn false_start_is_said_in_the_end() {
        assert_eq!(run(&["abcd"], &["xab", "c", "e"]), ("xabce".into(), false));
        assert_eq!(run(&["abcd"], &["abc"]), ("abc".into(), false));
        assert_eq!(run(&["aab"], &["aa", "ab!"]), ("a".into(), true));
    }

    #[test]
    fn characters_of_several_bytes_are_not_cut() {
        assert_eq!(run(&["é🎉"], &["caf", "é", "🎈"]), ("café🎈".into(), false));
        assert_eq!(run(&["é🎉"], &["caf", "é", "🎉 party"]), ("caf".into(), true));
    }

    #[test]
    fn nothing_is_held_back_longer_than_needed() {
        let mut matcher = StopMatcher::new(&["##".to_owned()]);
        assert_eq!(matcher.push("a#").text, "a");
        assert_eq!(matcher.push("b").text, "#b");
        assert_eq!(StopMatcher::new(&[]).push("a#").text, "a#");
    }
}
