//! How long steps take, learned from those that were made, and how many tokens of prompts the next one may have so that
//! running answers do not stall. Pure: times come in.

use std::time::Duration;

/// The weight of the newest step in a mean.
const NEWEST: f64 = 0.2;
/// Without a target a step that also reads prompts takes so many times as long as one that does not.
const STRETCH: f64 = 1.9;
/// How long a step may take that only reads prompts: who arrives or goes away waits for its end.
const ALONE: Duration = Duration::from_millis(500);
/// The fewest prompt tokens of a step: prompts are read, however slow the machine is.
const FEWEST: usize = 4;

/// What is known of the speed of steps.
#[derive(Debug, Clone)]
pub(crate) struct Pace {
    /// Seconds of a step in which so many answers got their token and nothing else was done; 0 is not known. The first
    /// is for one answer.
    decode: Vec<f64>,
    /// Seconds that a prompt token adds.
    token: f64,
    target: Option<Duration>,
    most: usize,
}

impl Pace {
    /// From the rates of the warm-up, in tokens per second. `target` is how long running answers may wait for a token,
    /// `most` how many tokens a step may have.
    pub(crate) fn new((prefill, decode): (f64, f64), target: Option<Duration>, most: usize) -> Self {
        let seconds = |rate: f64| if rate > 0.0 { 1.0 / rate } else { 0.0 };
        Self {
            decode: vec![seconds(decode)],
            token: seconds(prefill),
            target,
            most,
        }
    }

    /// Learns from a step with so many answers and prompt tokens.
    pub(crate) fn learn(&mut self, answers: usize, prompt_tokens: usize, took: Duration) {
        let seconds = took.as_secs_f64();
        if prompt_tokens > 0 {
            let rest = (seconds - self.decode_seconds(answers)).max(0.0);
            #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
            let each = rest / prompt_tokens as f64;
            mix(&mut self.token, each);
        } else if answers > 0 {
            if self.decode.len() < answers {
                self.decode.resize(answers, 0.0);
            }
            mix(&mut self.decode[answers - 1], seconds);
        }
    }

    /// Seconds of a step in which so many answers get a token. What was not seen is taken from the nearest that was:
    /// more answers take longer in proportion, fewer as long.
    fn decode_seconds(&self, answers: usize) -> f64 {
        let Some(last) = answers.checked_sub(1) else { return 0.0 };
        let known = |(_, seconds): &(usize, &f64)| **seconds > 0.0;
        let below = self.decode.iter().enumerate().take(last + 1).rev().find(known);
        let above = self.decode.iter().enumerate().skip(last).find(known);
        #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
        let scaled = below.map(|(at, seconds)| seconds * answers as f64 / (at + 1) as f64);
        let above = above.map(|(_, seconds)| *seconds);
        match (scaled, above) {
            (Some(scaled), Some(above)) => scaled.min(above),
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => 0.0,
        }
    }

    /// How many prompt tokens a step may have beside so many answers.
    pub(crate) fn prompt_tokens(&self, answers: usize) -> usize {
        let decode = self.decode_seconds(answers);
        let room = match self.target {
            _ if answers == 0 => ALONE.as_secs_f64(),
            Some(target) => target.as_secs_f64() - decode,
            None => decode * (STRETCH - 1.0),
        };
        let most = self.most.saturating_sub(answers).max(FEWEST);
        if self.token <= 0.0 {
            return most;
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "negative is none, and large is cut"
        )]
        let tokens = (room / self.token).max(0.0) as usize;
        tokens.clamp(FEWEST, most)
    }
}

fn mix(mean: &mut f64, newest: f64) {
    *mean = if *mean > 0.0 {
        *mean + NEWEST * (newest - *mean)
    } else {
        newest
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn milliseconds(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn prompt_alone_takes_half_a_second_and_beside_answers_less_than_their_step() {
        let pace = Pace::new((1000.0, 20.0), None, 4096);
        assert_eq!(pace.prompt_tokens(0), 500);
        // One answer takes 50 ms; 45 ms more are 45 tokens.
        assert_eq!(pace.prompt_tokens(1), 45);
        assert_eq!(pace.prompt_tokens(4), 180, "four were not seen yet: four times as long");
    }

    #[test]
    fn what_was_measured_counts_more_than_the_guess() {
        let mut pace = Pace::new((1000.0, 20.0), None, 4096);
        for _ in 0..50 {
            pace.learn(4, 0, milliseconds(80));
        }
        assert_eq!(pace.prompt_tokens(4), 72);
        assert_eq!(pace.prompt_tokens(2), 72, "no more than what four take");
        for _ in 0..50 {
            pace.learn(4, 10, milliseconds(100));
        }
        assert_eq!(pace.prompt_tokens(4), 36, "a prompt token takes 2 ms");
    }

    #[test]
    fn target_bounds_the_step_but_prompts_are_always_read() {
        let pace = Pace::new((1000.0, 20.0), Some(Duration::from_micros(60_500)), 4096);
        assert_eq!(pace.prompt_tokens(1), 10);
        let late = Pace::new((1000.0, 20.0), Some(milliseconds(1)), 4096);
        assert_eq!(late.prompt_tokens(1), FEWEST);
        assert_eq!(Pace::new((1e9, 1.0), None, 256).prompt_tokens(56), 200);
        assert_eq!(Pace::new((0.0, 0.0), None, 256).prompt_tokens(1), 255);
    }
}
