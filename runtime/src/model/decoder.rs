//! stub
use super::{Logits, ModelError, SequenceId, StepBatch};
/// The decoder.
#[derive(Debug)]
pub struct Decoder {}
impl Decoder {
    /// Tokens per sequence.
    pub fn context_length(&self) -> usize {
        todo!()
    }
    /// Width of a row of logits.
    pub fn vocabulary(&self) -> usize {
        todo!()
    }
    /// Opens a sequence.
    pub fn add_sequence(&mut self) -> SequenceId {
        todo!()
    }
    /// Frees a sequence.
    pub fn remove_sequence(&mut self, _sequence: SequenceId) {}
    /// One step.
    pub fn forward(&mut self, _batch: &StepBatch) -> Result<Logits, ModelError> {
        todo!()
    }
    /// Bytes of keys and values held.
    pub fn kv_bytes(&self) -> u64 {
        todo!()
    }
}
