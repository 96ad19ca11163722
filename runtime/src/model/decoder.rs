//! The transformer graph: one parametrised decoder over any [`Backend`].
//!
//! Names no tensor library. What differs between models of the family is a value in [`ModelSpec`] or an absent
//! weight; a backend with other memory and other kernels changes no line here.

use super::batch::{AdapterId, Logits, Span, StepBatch};
use super::error::ModelError;
use super::spec::{Constants, ModelSpec};
use crate::backend::{AttentionShape, Backend, CacheShape, KvType, Projection, Projections, Rope, SpanLayout};
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
    hidden: usize,
    context: usize,
    /// Blocks of the cache.
    blocks: usize,
}

/// What a step asks of a graph; hides the type of the backend.
trait Graph: Send {
    fn self_test(&self) -> Result<(), ModelError>;
    fn free_memory(&self) -> Option<u64>;
    fn allocate(&mut self, blocks: usize, kind: KvType) -> Result<(), ModelError>;
    fn copy_block(&mut self, from: BlockId, to: BlockId) -> Result<(), ModelError>;
    fn step(&mut self, pieces: &[Piece<'_>], out: &mut Rows) -> Result<(), ModelError>;
}

/// What steps give.
#[derive(Default)]
struct Rows {
    logits: Vec<f32>,
    states: Vec<f32>,
}

/// A part of a span that fits into one step.
struct Piece<'a> {
    blocks: &'a [BlockId],
    tokens: &'a [u32],
    start: usize,
    /// Rows of this piece that need logits, ascending.
    wanted: std::ops::Range<usize>,
    /// Rows of this piece whose states are wanted, ascending.
    states: std::ops::Range<usize>,
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
            hidden: spec.hidden,
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

    /// The width of a state.
    pub fn hidden(&self) -> usize {
        self.hidden
    }

    /// Compares some products of the loaded weights, of each use in the first layer and of the head, with a slow
    /// computation of the same.
    ///
    /// # Errors
    /// When they are not the same.
    pub fn self_test(&self) -> Result<(), ModelError> {
        self.graph.self_test()
    }

    /// Makes the cache: so many blocks of keys and values, which replace those that were there. Without it there is none.
    pub fn allocate(&mut self, blocks: usize, kind: KvType) -> Result<(), ModelError> {
        self.graph.allocate(blocks, kind)?;
        self.blocks = blocks;
        Ok(())
    }

    /// Bytes that are free in the memory of the device that computes. Absent when that is the process's own memory.
    pub fn free_memory(&self) -> Option<u64> {
        self.graph.free_memory()
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
        let mut rows = Rows::default();
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
                    self.graph.step(&pieces, &mut rows)?;
                    pieces.clear();
                    room = MAX_STEP_ROWS;
                }
            }
        }
        if !pieces.is_empty() {
            self.graph.step(&pieces, &mut rows)?;
        }
        Ok(Logits::new(rows.logits, self.vocabulary).with_states(rows.states, self.hidden))
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
    let within = |rows: std::ops::Range<usize>| rows.start.clamp(from, to) - from..rows.end.clamp(from, to) - from;
    Piece {
        blocks: &span.blocks,
        tokens: &span.tokens[from..to],
        start: span.start + from,
        wanted: within(span.logits.rows(span.tokens.len())),
        states: within(span.states.rows(span.tokens.len())),
    }
}

/// The weights of one layer. What is optional here is absent in most models.
pub(super) struct Layer<B: Backend> {
    pub(super) attention_norm: B::Vector,
    pub(super) query: Projection<B>,
    pub(super) key: Projection<B>,
    pub(super) value: Projection<B>,
    /// Of every head of queries, before it is turned.
    pub(super) query_norm: Option<B::Vector>,
    /// Of every head of keys, before it is turned.
    pub(super) key_norm: Option<B::Vector>,
    pub(super) output: Projection<B>,
    /// Of what attention adds to the stream.
    pub(super) post_attention_norm: Option<B::Vector>,
    pub(super) feed_forward: FeedForward<B>,
}

/// The feed-forward half of a layer, dense. Experts will be another form of it.
pub(super) struct FeedForward<B: Backend> {
    pub(super) norm: B::Vector,
    pub(super) gate: Projection<B>,
    pub(super) up: Projection<B>,
    pub(super) down: Projection<B>,
    /// Of what the block adds to the stream.
    pub(super) post_norm: Option<B::Vector>,
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
    ropes: Vec<Rope>,
    /// One per layer.
    attention: Vec<AttentionShape>,
    constants: Constants,
}

impl<B: Backend> Transformer<B> {
    fn new(backend: B, spec: &ModelSpec, weights: Weights<B>) -> Self {
        Self {
            cache: None,
            layout: CacheShape {
                layers: spec.layers.len(),
                kv_heads: spec.kv_heads,
                head_size: spec.head_size,
                blocks: 0,
                kind: KvType::default(),
            },
            ropes: spec.rope_tables(),
            attention: (0..spec.layers.len())
                .map(|layer| spec.attention_shape(layer))
                .collect(),
            constants: spec.constants,
            backend,
            weights,
        }
    }

    fn norm(&self, x: &B::Buffer, weight: &B::Vector) -> Result<B::Buffer, ModelError> {
        self.backend.rms_norm(x, weight, self.constants.norm_epsilon)
    }

    /// The stream with a product added to it, which is normalised before where the model has a norm for that.
    fn add_product(
        &self,
        stream: B::Buffer,
        x: &B::Buffer,
        projection: &Projection<B>,
        norm: Option<&B::Vector>,
    ) -> Result<B::Buffer, ModelError> {
        match norm {
            None => self.backend.add_linear(stream, x, projection),
            Some(weight) => {
                let product = self.backend.linear(x, projection)?;
                self.backend.add(stream, self.norm(&product, weight)?)
            }
        }
    }

    fn head_norm(&self, x: B::Buffer, weight: Option<&B::Vector>) -> Result<B::Buffer, ModelError> {
        match weight {
            None => Ok(x),
            Some(weight) => self.backend.head_norm(x, weight, self.constants.norm_epsilon),
        }
    }

    /// One layer: attention and feed-forward, each on a normalised copy and added to the stream.
    fn layer(&mut self, x: B::Buffer, index: usize, step: &B::Step) -> Result<B::Buffer, ModelError> {
        let x = self.attention(x, index, step)?;
        self.feed_forward(x, &self.weights.layers[index].feed_forward)
    }

    fn attention(&mut self, x: B::Buffer, index: usize, step: &B::Step) -> Result<B::Buffer, ModelError> {
        let (layer, shape) = (&self.weights.layers[index], self.attention[index]);
        let normed = self.norm(&x, &layer.attention_norm)?;
        let Projections { query, key, value } = self
            .backend
            .project(&normed, [&layer.query, &layer.key, &layer.value])?;
        let projections = Projections {
            query: self.head_norm(query, layer.query_norm.as_ref())?,
            key: self.head_norm(key, layer.key_norm.as_ref())?,
            value,
        };
        let cache = self.cache.as_mut().ok_or_else(no_cache)?;
        let query = self.backend.rope_append(projections, shape, index, step, cache)?;
        let mixed = self.backend.attention(query, shape, index, step, cache)?;
        self.add_product(x, &mixed, &layer.output, layer.post_attention_norm.as_ref())
    }

    fn feed_forward(&self, x: B::Buffer, block: &FeedForward<B>) -> Result<B::Buffer, ModelError> {
        let normed = self.norm(&x, &block.norm)?;
        let gated = self
            .backend
            .gated(&normed, &block.gate, &block.up, self.constants.activation)?;
        self.add_product(x, &gated, &block.down, block.post_norm.as_ref())
    }

    fn embed(&self, tokens: &[u32]) -> Result<B::Buffer, ModelError> {
        let x = self.backend.embed(&self.weights.embedding, tokens)?;
        match self.constants.embedding_scale {
            None => Ok(x),
            Some(factor) => self.backend.scale(x, factor),
        }
    }

    /// Some rows behind the last norm.
    fn finished(&self, x: &B::Buffer, rows: &[usize]) -> Result<B::Buffer, ModelError> {
        self.norm(&self.backend.select(x, rows)?, &self.weights.norm)
    }

    /// Appends the logits of every row, which is behind the last norm, to `out`.
    fn logits(&self, x: &B::Buffer, out: &mut Vec<f32>) -> Result<(), ModelError> {
        let head = self.weights.head.as_ref().unwrap_or(&self.weights.embedding);
        let first = out.len();
        self.backend.lm_head(x, head, out)?;
        if let Some(cap) = self.constants.logit_soft_cap {
            for value in &mut out[first..] {
                *value = cap * (*value / cap).tanh();
            }
        }
        Ok(())
    }
}

fn no_cache() -> ModelError {
    ModelError::Batch("the cache was not allocated".to_owned())
}

impl<B: Backend> Graph for Transformer<B> {
    fn self_test(&self) -> Result<(), ModelError> {
        let weights = &self.weights;
        for layer in weights.layers.iter().take(1) {
            let FeedForward { gate, up, down, .. } = &layer.feed_forward;
            for projection in [&layer.query, &layer.key, &layer.value, &layer.output, gate, up, down] {
                self.backend.self_test(&projection.weight)?;
            }
        }
        self.backend
            .self_test(weights.head.as_ref().unwrap_or(&weights.embedding))
    }

    fn free_memory(&self) -> Option<u64> {
        self.backend.free_memory()
    }

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

    fn step(&mut self, pieces: &[Piece<'_>], out: &mut Rows) -> Result<(), ModelError> {
        let (mut tokens, mut spans, mut wanted, mut states) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for piece in pieces {
            let first = tokens.len();
            tokens.extend_from_slice(piece.tokens);
            wanted.extend(piece.wanted.clone().map(|row| first + row));
            states.extend(piece.states.clone().map(|row| first + row));
            spans.push(SpanLayout {
                blocks: piece.blocks.to_vec(),
                rows: first..tokens.len(),
                start: piece.start,
            });
        }
        let step = self.backend.begin(&spans, &self.ropes)?;
        let mut x = self.embed(&tokens)?;
        for index in 0..self.weights.layers.len() {
            x = self.layer(x, index, &step)?;
        }
        if !states.is_empty() {
            self.backend.read(&self.finished(&x, &states)?, &mut out.states)?;
        }
        if !wanted.is_empty() {
            self.logits(&self.finished(&x, &wanted)?, &mut out.logits)?;
        }
        Ok(())
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
