//! A model and some sequences of it, without an engine: for the warm-up, benchmarks and tests.

use super::StepModel;
use crate::kv::{Kv, Table, root};
use crate::model::{Logits, LogitsWanted, ModelError, Span, StepBatch};
use std::collections::BTreeMap;

/// Names one of the sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(u64);

/// A model whose whole cache is for these sequences. No prefix is used again: everything is computed.
#[derive(Debug)]
pub struct Sequences<'a, M> {
    model: &'a mut M,
    kv: Kv,
    open: BTreeMap<SequenceId, (Table, usize)>,
    next: u64,
}

impl<'a, M: StepModel> Sequences<'a, M> {
    /// None yet.
    pub fn new(model: &'a mut M) -> Self {
        Self {
            kv: Kv::new(model.blocks()),
            model,
            open: BTreeMap::new(),
            next: 0,
        }
    }

    /// Begins a sequence without tokens.
    pub fn add(&mut self) -> SequenceId {
        let id = SequenceId(self.next);
        self.next += 1;
        self.open.insert(id, (Table::new(root("alone")), 0));
        id
    }

    /// Forgets a sequence. Does nothing when it is not open.
    pub fn remove(&mut self, id: SequenceId) {
        if let Some((table, _)) = self.open.remove(&id) {
            self.kv.release(table);
        }
    }

    /// Blocks that the sequences have.
    pub fn used_blocks(&self) -> usize {
        self.kv.used()
    }

    /// Computes the next tokens of some sequences in one step.
    ///
    /// # Errors
    /// Also when a sequence is not open, or has no room left. After an error the sequences must be removed.
    pub fn forward(&mut self, parts: &[(SequenceId, &[u32], LogitsWanted)]) -> Result<Logits, ModelError> {
        let mut spans = Vec::new();
        for (id, tokens, logits) in parts {
            let (table, length) = self
                .open
                .get_mut(id)
                .ok_or_else(|| ModelError::Batch(format!("{id:?} is not open")))?;
            self.kv
                .grow(table, *length + tokens.len())
                .map_err(|shortage| ModelError::Batch(shortage.to_string()))?;
            spans.push(Span {
                blocks: table.blocks().to_vec(),
                tokens: tokens.to_vec(),
                start: *length,
                logits: *logits,
                ..Span::default()
            });
        }
        let logits = self.model.forward(&StepBatch { spans })?;
        for (id, tokens, _) in parts {
            if let Some((_, length)) = self.open.get_mut(id) {
                *length += tokens.len();
            }
        }
        Ok(logits)
    }
}
