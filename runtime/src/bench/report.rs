//! What `bench` prints.

use crate::backend::kernels::Operation;
use serde::Serialize;
use std::io::{self, Write};
use std::time::Duration;

/// What was measured.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    pub(super) version: &'static str,
    pub(super) device: String,
    pub(super) digest: String,
    pub(super) architecture: String,
    pub(super) quantization: String,
    pub(super) parameters: u64,
    pub(super) kv_cache_type: String,
    pub(super) instructions: &'static str,
    pub(super) threads: usize,
    pub(super) rounds: usize,
    pub(super) load_seconds: f64,
    /// After everything was measured.
    pub(super) resident_bytes: Option<u64>,
    pub(super) prompts: Vec<PromptRate>,
    pub(super) streams: Vec<StreamRate>,
}

/// Tokens per second over the rounds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Rates {
    pub(super) median: f64,
    pub(super) least: f64,
    pub(super) most: f64,
}

/// How fast a prompt is read.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PromptRate {
    pub(super) tokens: usize,
    pub(super) tokens_per_second: Rates,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) profile: Vec<Share>,
}

/// How fast answers come, all of them together.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct StreamRate {
    pub(super) streams: usize,
    pub(super) tokens_per_second: Rates,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) profile: Vec<Share>,
}

/// How much of the time of steps an operation takes.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Share {
    pub(super) operation: String,
    /// Milliseconds for each token.
    pub(super) milliseconds: f64,
    /// Of the whole time.
    pub(super) of_all: f64,
}

/// One measurement.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) tokens: usize,
    pub(super) time: Duration,
    /// What operations took of it, if that was measured.
    pub(super) operations: Vec<(Operation, Duration)>,
}

/// Measurements of the same.
#[derive(Debug, Default)]
pub(super) struct Series {
    /// Tokens per second of each.
    pub(super) rates: Vec<f64>,
    tokens: usize,
    time: Duration,
    operations: Vec<(Operation, Duration)>,
}

impl Series {
    #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
    pub(super) fn add(&mut self, measured: Measured) {
        self.rates
            .push(measured.tokens as f64 / measured.time.as_secs_f64().max(1e-9));
        self.tokens += measured.tokens;
        self.time += measured.time;
        for (operation, time) in measured.operations {
            match self.operations.iter_mut().find(|(known, _)| *known == operation) {
                Some((_, total)) => *total += time,
                None => self.operations.push((operation, time)),
            }
        }
    }

    /// What operations take of the whole; the last is what is between them.
    #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
    pub(super) fn shares(&self) -> Vec<Share> {
        if self.operations.is_empty() {
            return Vec::new();
        }
        let measured: Duration = self.operations.iter().map(|(_, time)| *time).sum();
        let of = |operation: String, time: Duration| Share {
            operation,
            milliseconds: time.as_secs_f64() * 1e3 / self.tokens.max(1) as f64,
            of_all: time.as_secs_f64() / self.time.as_secs_f64().max(1e-9),
        };
        let operations = self.operations.iter();
        let mut shares: Vec<Share> = operations
            .map(|(operation, time)| of(operation.to_string(), *time))
            .collect();
        shares.push(of("the rest".to_owned(), self.time.saturating_sub(measured)));
        shares
    }
}

impl PromptRate {
    pub(super) fn of((tokens, series): (&usize, &Series)) -> Self {
        Self {
            tokens: *tokens,
            tokens_per_second: Rates::of(&series.rates),
            profile: series.shares(),
        }
    }
}

impl StreamRate {
    pub(super) fn of((streams, series): (&usize, &Series)) -> Self {
        Self {
            streams: *streams,
            tokens_per_second: Rates::of(&series.rates),
            profile: series.shares(),
        }
    }
}

impl Rates {
    /// Of at least one.
    pub(super) fn of(rates: &[f64]) -> Self {
        let mut rates = rates.to_vec();
        rates.sort_by(f64::total_cmp);
        let at = |index: usize| rates.get(index).copied().unwrap_or(0.0);
        let rounded = |rate: f64| (rate * 10.0).round() / 10.0;
        Self {
            median: rounded(f64::midpoint(
                at((rates.len().saturating_sub(1)) / 2),
                at(rates.len() / 2),
            )),
            least: rounded(at(0)),
            most: rounded(at(rates.len().saturating_sub(1))),
        }
    }
}

impl Report {
    pub(super) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let Self {
            architecture,
            quantization,
            parameters,
            kv_cache_type,
            ..
        } = self;
        writeln!(out, "model    {architecture}, {quantization}, {parameters} parameters")?;
        writeln!(out, "cache    {kv_cache_type}")?;
        writeln!(out, "device   {}", self.device)?;
        writeln!(out, "threads  {}, {}", self.threads, self.instructions)?;
        writeln!(out, "loaded   in {:.2} s", self.load_seconds)?;
        if let Some(bytes) = self.resident_bytes {
            writeln!(out, "memory   {} MiB", bytes >> 20)?;
        }
        writeln!(
            out,
            "\n{:24}{:>10}{:>10}{:>10}",
            "tokens per second", "median", "least", "most"
        )?;
        let line = |out: &mut dyn Write, name: String, rates: Rates| {
            let Rates { median, least, most } = rates;
            writeln!(out, "{name:24}{median:10.1}{least:10.1}{most:10.1}")
        };
        for one in &self.prompts {
            line(out, format!("prompt of {}", one.tokens), one.tokens_per_second)?;
        }
        for one in &self.streams {
            let plural = if one.streams == 1 { "" } else { "s" };
            line(
                out,
                format!("{} answer{plural} at a time", one.streams),
                one.tokens_per_second,
            )?;
        }
        for one in &self.prompts {
            shares(out, &format!("prompt of {}", one.tokens), &one.profile)?;
        }
        for one in &self.streams {
            shares(out, &format!("{} at a time", one.streams), &one.profile)?;
        }
        Ok(())
    }
}

/// Where the time of a token goes, if it was measured.
fn shares(out: &mut dyn Write, name: &str, shares: &[Share]) -> io::Result<()> {
    if shares.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n{name:24}{:>16}{:>8}", "ms per token", "share")?;
    for share in shares {
        let Share {
            operation,
            milliseconds,
            of_all,
        } = share;
        writeln!(out, "  {operation:22}{milliseconds:16.4}{:7.1}%", of_all * 100.0)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_is_between_the_two_in_the_middle() {
        let rates = |rates: &[f64]| {
            let Rates { median, least, most } = Rates::of(rates);
            [median, least, most].map(|rate| format!("{rate}"))
        };
        assert_eq!(rates(&[4.0, 1.0, 3.0, 10.0]), ["3.5", "1", "10"]);
        assert_eq!(rates(&[2.04]), ["2"; 3]);
    }
}
