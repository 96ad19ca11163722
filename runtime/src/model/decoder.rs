//! The transformer graph: one parametrised decoder over any [`Backend`].
//!
//! Names no tensor library. What differs between models of the family is a value in [`ModelSpec`] or an absent
//! weight; a backend with other memory and other kernels changes no line here.

use super::batch::{AdapterId, Logits, Span, StepBatch};
use super::error::ModelError;
use super::spec::ModelSpec;
use crate::backend::{Activation, AttentionShape, Backend, CacheShape, KvType, Projections, Rope, SpanLayout};
use crate::kv::{BLOCK_TOKENS, BlockId, blocks_for};
use std::collections::HashSet;
use std::fmt;

/// Rows computed at a time, which bounds the memory of activations for prompts of any length. Large enough that
/// reading the weights is shared well between rows.
pub(super) const MAX_STEP_ROWS: usize = 512;

/// A loaded model that computes. Owned by one thread at a time. It keeps no books of sequences: a batch says where
/// everything is.
pub struct Decoder {
    graph: Box<dyn Graph>,
    vocabulary: usize,
    context: usize,
    /// Blocks of the cache.
    blocks: usize,
}

/// What a step asks of a graph; hides the type of the backend.
trait Graph: Send {
    fn allocate(&mut self, blocks: usize, kind: KvType) -> Result<(), ModelError>;
    fn copy_block(&mut self, from: BlockId, to: BlockId) -> Result<(), ModelError>;
    fn step(&mut self, pieces: &[Piece<'_>], out: &mut Vec<f32>) -> Result<(), ModelError>;
}

/// A part of a span that fits into one step.
struct Piece<'a> {
    blocks: &'a [BlockId],
    tokens: &'a [u32],
    start: usize,
    /// Rows of this piece that need logits, ascending.
    wanted: std::ops::Range<usize>,
}

impl fmt::Debug for Decoder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Decoder")
            .field("vocabulary", &self.vocabulary)
            .field("context", &self.context)
            .field("blocks", &self.blocks)
            .finish_non_exhaustive()
    }
}

impl Decoder {
    pub(super) fn new<B: Backend + 'static>(backend: B, spec: &ModelSpec, weights: Weights<B>) -> Self {
        Self {
            vocabulary: spec.vocabulary,
            context: spec.context,
            graph: Box::new(Transformer::new(backend, spec, weights)),
            blocks: 0,
        }
    }

    /// Tokens per sequence, prompt and answer together.
    pub fn context_length(&self) -> usize {
        self.context
    }

    /// The width of a row of logits.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Makes the cache: so many blocks of keys and values, which replace those that were there. Without it there is none.
    pub fn allocate(&mut self, blocks: usize, kind: KvType) -> Result<(), ModelError> {
        self.graph.allocate(blocks, kind)?;
        self.blocks = blocks;
        Ok(())
    }

    /// Blocks of the cache.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Copies a block's keys and values.
    pub fn copy_block(&mut self, from: BlockId, to: BlockId) -> Result<(), ModelError> {
        for id in [from, to] {
            self.check_block(id).map_err(ModelError::Batch)?;
        }
        self.graph.copy_block(from, to)
    }

    /// Computes a batch, and writes the keys and values of its tokens to the blocks.
    ///
    /// # Errors
    /// A batch that breaks a rule is refused before anything changes. After any other error the blocks that the batch
    /// writes hold nothing of use.
    pub fn forward(&mut self, batch: &StepBatch) -> Result<Logits, ModelError> {
        self.check(batch)?;
        let mut values = Vec::new();
        let mut pieces: Vec<Piece<'_>> = Vec::new();
        let mut room = MAX_STEP_ROWS;
        for span in &batch.spans {
            let mut from = 0;
            while from < span.tokens.len() {
                let to = span.tokens.len().min(from + room);
                pieces.push(piece(span, from, to));
                room -= to - from;
                from = to;
                if room == 0 {
                    self.graph.step(&pieces, &mut values)?;
                    pieces.clear();
                    room = MAX_STEP_ROWS;
                }
            }
        }
        if !pieces.is_empty() {
            self.graph.step(&pieces, &mut values)?;
        }
        Ok(Logits::new(values, self.vocabulary))
    }

    fn check(&self, batch: &StepBatch) -> Result<(), ModelError> {
        let mut written = HashSet::new();
        for span in &batch.spans {
            self.check_span(span).map_err(ModelError::Batch)?;
            let end = blocks_for(span.start + span.tokens.len());
            for id in &span.blocks[span.start / BLOCK_TOKENS..end] {
                if !written.insert(*id) {
                    return Err(ModelError::Batch(format!("{id:?} is written by two spans")));
                }
            }
        }
        Ok(())
    }

    fn check_block(&self, id: BlockId) -> Result<(), String> {
        if (id.0 as usize) < self.blocks {
            return Ok(());
        }
        Err(format!("{id:?} is none of {} blocks", self.blocks))
    }

    fn check_span(&self, span: &Span) -> Result<(), String> {
        if span.adapter != AdapterId::default() {
            return Err(format!("{:?} is not loaded", span.adapter));
        }
        if span.tokens.is_empty() {
            return Err("a span has no tokens".to_owned());
        }
        let end = span.start.saturating_add(span.tokens.len());
        if end > self.context {
            return Err(format!(
                "a sequence would have {end} tokens, more than {}",
                self.context
            ));
        }
        let room = span.blocks.len() * BLOCK_TOKENS;
        if end > room {
            return Err(format!("a sequence would have {end} tokens, and blocks for {room}"));
        }
        for id in &span.blocks {
            self.check_block(*id)?;
        }
        match span.tokens.iter().find(|&&token| token as usize >= self.vocabulary) {
            Some(token) => Err(format!("token {token} is not in the vocabulary of {}", self.vocabulary)),
            None => Ok(()),
        }
    }
}

fn piece(span: &Span, from: usize, to: usize) -> Piece<'_> {
    let wanted = span.logits.rows(span.tokens.len());
    Piece {
        blocks: &span.blocks,
        tokens: &span.tokens[from..to],
        start: span.start + from,
        wanted: wanted.start.clamp(from, to) - from..wanted.end.clamp(from, to) - from,
    }
}

/// The weights of one layer. Biases are absent in most models.
pub(super) struct Layer<B: Backend> {
    pub(super) attention_norm: B::Vector,
    pub(super) query: Projection<B>,
    pub(super) key: Projection<B>,
    pub(super) value: Projection<B>,
    pub(super) output: Projection<B>,
    pub(super) feed_forward_norm: B::Vector,
    pub(super) gate: Projection<B>,
    pub(super) up: Projection<B>,
    pub(super) down: Projection<B>,
}

/// A matrix and its bias.
pub(super) struct Projection<B: Backend> {
    pub(super) weight: B::Matrix,
    pub(super) bias: Option<B::Vector>,
}

/// All weights.
pub(super) struct Weights<B: Backend> {
    pub(super) embedding: B::Matrix,
    pub(super) layers: Vec<Layer<B>>,
    pub(super) norm: B::Vector,
    /// Absent when the embedding serves as the head too.
    pub(super) head: Option<B::Matrix>,
}

struct Transformer<B: Backend> {
    backend: B,
    weights: Weights<B>,
    cache: Option<B::Cache>,
    layout: CacheShape,
    rope: Rope,
    attention: AttentionShape,
    epsilon: f32,
}

impl<B: Backend> Transformer<B> {
    fn new(backend: B, spec: &ModelSpec, weights: Weights<B>) -> Self {
        Self {
            cache: None,
            layout: CacheShape {
                layers: spec.layers,
                kv_heads: spec.kv_heads,
                head_size: spec.head_size,
                blocks: 0,
                kind: KvType::default(),
            },
            rope: spec.rope.table(),
            attention: spec.attention_shape(),
            epsilon: spec.norm_epsilon,
            backend,
            weights,
        }
    }

    fn project(&self, x: &B::Buffer, projection: &Projection<B>) -> Result<B::Buffer, ModelError> {
        self.backend.linear(x, &projection.weight, projection.bias.as_ref())
    }

    /// One layer: attention and feed-forward, each on a normalised copy and added to the stream.
    fn layer(&mut self, x: B::Buffer, index: usize, step: &B::Step) -> Result<B::Buffer, ModelError> {
        let layer = &self.weights.layers[index];
        let normed = self.backend.rms_norm(&x, &layer.attention_norm, self.epsilon)?;
        let projections = Projections {
            query: self.project(&normed, &layer.query)?,
            key: self.project(&normed, &layer.key)?,
            value: self.project(&normed, &layer.value)?,
        };
        let cache = self.cache.as_mut().ok_or_else(no_cache)?;
        let query = self
            .backend
            .rope_append(projections, self.attention, index, step, cache)?;
        let mixed = self.backend.attention(query, self.attention, index, step, cache)?;
        let x = self.backend.add(x, self.project(&mixed, &layer.output)?)?;

        let normed = self.backend.rms_norm(&x, &layer.feed_forward_norm, self.epsilon)?;
        let gate = self.project(&normed, &layer.gate)?;
        let up = self.project(&normed, &layer.up)?;
        let gated = self.backend.gate(gate, up, Activation::Silu)?;
        let down = self.project(&gated, &layer.down)?;
        self.backend.add(x, down)
    }
}

fn no_cache() -> ModelError {
    ModelError::Batch("the cache was not allocated".to_owned())
}

impl<B: Backend> Graph for Transformer<B> {
    fn allocate(&mut self, blocks: usize, kind: KvType) -> Result<(), ModelError> {
        // The old one first: both at once may be more than there is.
        self.cache = None;
        self.layout = CacheShape {
            blocks,
            kind,
            ..self.layout
        };
        self.cache = Some(self.backend.cache(self.layout)?);
        Ok(())
    }

    fn copy_block(&mut self, from: BlockId, to: BlockId) -> Result<(), ModelError> {
        let cache = self.cache.as_mut().ok_or_else(no_cache)?;
        self.backend.copy_block(cache, from, to)
    }

    fn step(&mut self, pieces: &[Piece<'_>], out: &mut Vec<f32>) -> Result<(), ModelError> {
        let (mut tokens, mut spans, mut wanted) = (Vec::new(), Vec::new(), Vec::new());
        for piece in pieces {
            let first = tokens.len();
            tokens.extend_from_slice(piece.tokens);
            wanted.extend(piece.wanted.clone().map(|row| first + row));
            spans.push(SpanLayout {
                blocks: piece.blocks.to_vec(),
                rows: first..tokens.len(),
                start: piece.start,
            });
        }
        let step = self.backend.begin(&spans, &self.rope)?;
        let mut x = self.backend.embed(&self.weights.embedding, &tokens)?;
        for index in 0..self.weights.layers.len() {
            x = self.layer(x, index, &step)?;
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let x = self.backend.select(&x, &wanted)?;
        let x = self.backend.rms_norm(&x, &self.weights.norm, self.epsilon)?;
        let head = self.weights.head.as_ref().unwrap_or(&self.weights.embedding);
        self.backend.lm_head(&x, head, out)
    }
}

#[cfg(test)]
mod tests {
    use super::super::batch::LogitsWanted;
    use super::*;

    #[test]
    fn pieces_want_exactly_the_rows_of_their_span() {
        let span = |logits| Span {
            tokens: vec![5; 10],
            start: 3,
            logits,
            ..Span::default()
        };
        let wanted = |logits, from, to| piece(&span(logits), from, to).wanted;
        assert_eq!(wanted(LogitsWanted::All, 4, 10), 0..6);
        assert_eq!(wanted(LogitsWanted::Last, 4, 10), 5..6);
        assert!(wanted(LogitsWanted::Last, 0, 4).is_empty());
        assert!(wanted(LogitsWanted::None, 0, 10).is_empty());
        assert_eq!(piece(&span(LogitsWanted::All), 4, 10).start, 7);
    }
}
