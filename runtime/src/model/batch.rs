//! What one call of the decoder works on, and what it gives back. Plain values; no tensors.

use crate::kv::BlockId;
use std::ops::Range;

/// Names what is added to a model's weights for some sequences. The model alone is the only one that there is yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct AdapterId(pub u32);

/// Which positions of a span need logits. Those that are not asked for are not computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogitsWanted {
    /// No row: a chunk in the middle of a prompt.
    None,
    /// The row of the last token: what sampling needs.
    #[default]
    Last,
    /// One row per token.
    All,
}

impl LogitsWanted {
    /// The wanted rows of a span with `tokens` tokens.
    pub(crate) fn rows(self, tokens: usize) -> Range<usize> {
        match self {
            Self::None => tokens..tokens,
            Self::Last => tokens.saturating_sub(1)..tokens,
            Self::All => 0..tokens,
        }
    }
}

/// Which positions of a span give their state: what the head would see, behind the last norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StatesWanted {
    /// No row.
    #[default]
    None,
    /// The row of the span's first token.
    First,
    /// The row of its last token.
    Last,
    /// One row per token.
    All,
}

impl StatesWanted {
    /// The wanted rows of a span with `tokens` tokens.
    pub(crate) fn rows(self, tokens: usize) -> Range<usize> {
        match self {
            Self::None => 0..0,
            Self::First => 0..tokens.min(1),
            Self::Last => tokens.saturating_sub(1)..tokens,
            Self::All => 0..tokens,
        }
    }
}

/// New tokens of one sequence.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Span {
    /// Where keys and values of the sequence are, in the order of its tokens: those that are cached, with room for the
    /// new ones. Blocks that get new ones belong to this sequence alone.
    pub blocks: Vec<BlockId>,
    /// What is added to the weights.
    pub adapter: AdapterId,
    /// At least one token.
    pub tokens: Vec<u32>,
    /// The absolute position of `tokens[0]`: how many tokens of this sequence are in the cache already.
    pub start: usize,
    /// The rows that need logits.
    pub logits: LogitsWanted,
    /// The rows whose states are wanted.
    pub states: StatesWanted,
}

/// Spans of several sequences, computed in one call: some with one token, some with a part of a prompt. A sequence
/// appears at most once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StepBatch {
    /// In any order; [`Logits`] keeps it.
    pub spans: Vec<Span>,
}

/// Rows of logits (natural-log scale, not normalised), in the order of the spans and of the tokens in each; and in the same
/// order the states that were asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Logits {
    values: Vec<f32>,
    width: usize,
    states: Vec<f32>,
    /// Values of a state.
    hidden: usize,
}

impl Logits {
    /// Rows of `width` values each.
    ///
    /// # Panics
    /// If `values` is not a whole number of rows.
    pub fn new(values: Vec<f32>, width: usize) -> Self {
        assert!(
            width > 0 && values.len().is_multiple_of(width),
            "logits come in whole rows"
        );
        Self {
            values,
            width,
            states: vec![],
            hidden: 1,
        }
    }

    /// The same with states of `hidden` values each.
    ///
    /// # Panics
    /// If `states` is not a whole number of them.
    #[must_use]
    pub fn with_states(self, states: Vec<f32>, hidden: usize) -> Self {
        assert!(
            hidden > 0 && states.len().is_multiple_of(hidden),
            "states come in whole rows"
        );
        Self { states, hidden, ..self }
    }

    /// The states.
    pub fn states(&self) -> impl Iterator<Item = &[f32]> {
        self.states.chunks_exact(self.hidden)
    }

    /// How many rows there are.
    pub fn rows(&self) -> usize {
        self.values.len() / self.width
    }

    /// Row `index`, one value per token of the vocabulary.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.width..(index + 1) * self.width]
    }
}
