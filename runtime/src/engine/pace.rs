//! How long steps take, learned from those that were made, and how many tokens of prompts the next one may have so that
//! running answers do not stall. Pure: times come in.

use std::time::Duration;

/// The weight of the newest step in a mean.
const NEWEST: f64 = 0.15;
/// By what part of its miss a step that reads prompts beside answers changes how many tokens the next ones have.
const CORRECTION: f64 = 0.15;
/// How much dearer than alone a prompt token is taken to be beside answers, before it was seen.
const BESIDE: f64 = 1.5;
/// Without a target a step that also reads prompts takes so many times as long as one that does not: a little less than
/// twice, so that the slow ones among them are at most twice as slow as those among the others.
const STRETCH: f64 = 1.95;
/// After so many steps that read prompts beside answers, one reads none: it shows again what the answers alone take.
/// Otherwise a wrong idea of that would be held against the prompts for as long as they are read.
const LOOK_AGAIN: usize = 24;
/// How long a step may take that only reads prompts: who arrives or goes away waits for its end.
const ALONE: Duration = Duration::from_millis(500);
/// The fewest prompt tokens of a step: prompts are read, however slow the machine is.
const FEWEST: usize = 4;
/// Rows of a step that are computed together: those that fill up the last such lot cost little more.
const TOGETHER: usize = 8;

/// What is known of the speed of steps.
#[derive(Debug, Clone)]
pub(crate) struct Pace {
    /// Seconds of a step in which so many answers got their token and nothing else was done; 0 is not known. The first
    /// is for one answer.
    decode: Vec<f64>,
    /// Seconds of a prompt token when nothing else is computed: many at once.
    alone: f64,
    /// Seconds that a prompt token is reckoned with beside answers. It is corrected until steps take as long as they may,
    /// rather than measured: much of what a few tokens cost does not depend on how many they are.
    beside: f64,
    /// Steps that read prompts beside answers since the last that did not.
    mixed: usize,
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
            alone: seconds(prefill),
            beside: BESIDE * seconds(prefill),
            mixed: 0,
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
            if answers > 0 {
                self.mixed += 1;
                if self.beside > 0.0 {
                    self.correct(answers, prompt_tokens, rest);
                } else {
                    self.beside = each;
                }
            } else {
                mix(&mut self.alone, each);
            }
        } else if answers > 0 {
            self.mixed = 0;
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

    /// Learns from a step in which so many prompt tokens took so long beside answers.
    fn correct(&mut self, answers: usize, prompt_tokens: usize, rest: f64) {
        let room = self.room(answers);
        if room <= 0.0 {
            return;
        }
        let miss = ((rest - room) / room).clamp(-1.0, 1.0);
        let allowed = self.tokens(answers);
        // A step that was short since there was no more to read says nothing; and no step has fewer tokens than the
        // fewest or more than the most, whatever they cost.
        let is_said = if miss > 0.0 {
            self.affordable(answers) > FEWEST
        } else {
            prompt_tokens >= allowed && allowed < self.most(answers)
        };
        if is_said {
            self.beside *= 1.0 + CORRECTION * miss;
        }
    }

    /// Seconds that prompts may add to a step with so many answers. Negative: the answers alone take longer.
    fn room(&self, answers: usize) -> f64 {
        let decode = self.decode_seconds(answers);
        match self.target {
            _ if answers == 0 => ALONE.as_secs_f64(),
            Some(target) => target.as_secs_f64() - decode,
            None => decode * (STRETCH - 1.0),
        }
    }

    fn most(&self, answers: usize) -> usize {
        self.most.saturating_sub(answers).max(FEWEST)
    }

    /// How many prompt tokens a step may have beside so many answers.
    pub(crate) fn prompt_tokens(&self, answers: usize) -> usize {
        if answers > 0 && self.mixed >= LOOK_AGAIN {
            return 0;
        }
        self.tokens(answers)
    }

    /// As many as there is time for, and beside answers as many as make whole lots of rows.
    fn tokens(&self, answers: usize) -> usize {
        let affordable = self.affordable(answers);
        if answers == 0 {
            return affordable;
        }
        let rows = answers + affordable;
        let whole = rows / TOGETHER * TOGETHER;
        let filled = if whole >= answers + FEWEST && (rows - whole) * 2 < TOGETHER {
            whole
        } else {
            rows.next_multiple_of(TOGETHER)
        };
        (filled - answers).min(self.most(answers))
    }

    /// How many prompt tokens there is time for.
    fn affordable(&self, answers: usize) -> usize {
        let room = self.room(answers);
        let most = self.most(answers);
        let token = if answers > 0 && self.beside > 0.0 {
            self.beside
        } else {
            self.alone
        };
        if token <= 0.0 {
            return most;
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "negative is none, and large is cut"
        )]
        let tokens = (room / token).max(0.0) as usize;
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
        // One answer takes 50 ms; 47 ms more are 31 tokens of one and a half milliseconds, and 32 rows.
        assert_eq!(pace.prompt_tokens(1), 31);
        // Four were not seen yet, and take four times as long: 126 tokens, of which 124 make whole lots.
        assert_eq!(pace.prompt_tokens(4), 124);
    }

    #[test]
    fn answers_that_were_measured_count_more_than_the_guess() {
        let mut pace = Pace::new((1000.0, 20.0), None, 4096);
        for _ in 0..50 {
            pace.learn(4, 0, milliseconds(80));
        }
        assert_eq!(pace.prompt_tokens(4), 52, "50, and what fills the lot");
        assert_eq!(pace.prompt_tokens(2), 54, "no more than what four take");
    }

    /// Plays steps with one answer of 100 ms, to which prompts add what `cost` says. Returns how many tokens of prompts
    /// the last 100 steps that had any had, and their seconds, both on average; and how many steps had none.
    fn play(pace: &mut Pace, cost: impl Fn(usize) -> u64) -> (f64, f64, usize) {
        let (mut tokens, mut seconds, mut count, mut without) = (0, 0.0, 0.0, 0);
        for step in 0..200 {
            let read = pace.prompt_tokens(1);
            let took = milliseconds(100 + if read > 0 { cost(read) } else { 0 });
            pace.learn(1, read, took);
            without += usize::from(read == 0);
            if read > 0 && step >= 100 {
                tokens += read;
                seconds += took.as_secs_f64();
                count += 1.0;
            }
        }
        (
            f64::from(u32::try_from(tokens).unwrap()) / count,
            seconds / count,
            without,
        )
    }

    #[test]
    fn steps_take_as_long_as_they_may_whatever_prompts_cost() {
        for cost in [|tokens: usize| 5 * tokens as u64, |tokens: usize| 60 + tokens as u64] {
            let (_, seconds, without) = play(&mut Pace::new((1000.0, 10.0), None, 4096), cost);
            assert!((seconds - 0.195).abs() < 0.006, "{seconds}");
            assert_eq!(
                without,
                200 / (LOOK_AGAIN + 1),
                "what answers alone take is looked at again"
            );
        }
        let (tokens, ..) = play(&mut Pace::new((1000.0, 10.0), None, 4096), |_| 500);
        assert!(
            (tokens - 7.0).abs() < 0.1,
            "prompts are read, however slow the machine is: {tokens}"
        );
        let mut pace = Pace::new((1000.0, 10.0), None, 4096);
        pace.mixed = LOOK_AGAIN;
        assert!(pace.prompt_tokens(0) > 0, "there is nothing to look at without answers");
    }

    #[test]
    fn target_bounds_the_step_but_prompts_are_always_read() {
        let pace = Pace::new((1000.0, 20.0), Some(Duration::from_micros(70_500)), 4096);
        assert_eq!(pace.prompt_tokens(1), 15, "13, and what fills the lot");
        let late = Pace::new((1000.0, 20.0), Some(milliseconds(1)), 4096);
        assert_eq!(late.prompt_tokens(1), TOGETHER - 1);
        assert_eq!(Pace::new((1e9, 1.0), None, 256).prompt_tokens(56), 200);
        assert_eq!(Pace::new((0.0, 0.0), None, 256).prompt_tokens(1), 255);
    }
}
