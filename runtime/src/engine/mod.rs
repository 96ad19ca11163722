//! The engine: a thread that owns the model and is fed by a channel.
//!
//! Asynchronous code holds an [`Engine`], submits a [`Request`] and gets a [`Generation`] for each answer, which is a
//! stream of [`Event`]s. Dropping the generation cancels the answer. The thread never awaits, and nothing else computes.

mod logprobs;
mod pace;
mod queue;
mod sampler;
mod scheduler;
mod sequences;
mod speech;
mod stop;
mod warm_up;
mod worker;

pub use logprobs::{Logprobs, ScoredToken};
pub use queue::{Admission, QueueLimits};
pub use sampler::{Sampler, Sampling};
pub use sequences::{SequenceId, Sequences};
pub use speech::Piece;
pub use stop::StopMatcher;
pub use warm_up::{WarmUpError, warm_up};
pub use worker::{Settings, Worker};

use crate::grammar::{Constraint, GrammarError};
use crate::kv::BlockId;
use crate::model::{Decoder, Logits, ModelError, Pooling, StepBatch, StreamDecoder};
use futures::Stream;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Names a request in the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(u64);

/// What is to be generated.
#[derive(Debug, Clone)]
pub struct Request {
    /// At least one token.
    pub prompt: Vec<u32>,
    /// At least 1, or 0 when nothing is generated; with the prompt no more than the context.
    pub max_tokens: usize,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Strings that end the answer and are not part of it.
    pub stop: Vec<String>,
    /// Control tokens that are part of the answer's text; others are not seen in it.
    pub shown: Vec<u32>,
    /// What holds the answer to a grammar.
    pub constraint: Option<Constraint>,
    /// Whether it is told how likely each token was, and with how many of the likeliest ones in its place.
    pub logprobs: Option<usize>,
    /// Answers, each drawn with a seed of its own: the first with the one of `sampling`, the next with the one after
    /// it. The prompt is computed once. At most the [concurrency](Engine::concurrency).
    pub answers: NonZeroUsize,
    /// Nothing is generated: the prompt's states become a vector in this way.
    pub pooling: Option<Pooling>,
}

impl Request {
    /// The vector of a text.
    pub fn embedding(prompt: Vec<u32>, pooling: Pooling) -> Self {
        Self {
            prompt,
            max_tokens: 0,
            sampling: Sampling::default(),
            stop: vec![],
            shown: vec![],
            constraint: None,
            logprobs: None,
            answers: NonZeroUsize::MIN,
            pooling: Some(pooling),
        }
    }
}

/// What happens to a request, in order: any number of pieces, or a vector, then one finish or failure.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The next part of the answer; never empty.
    Piece(Piece),
    /// The vector that was asked for, of length 1.
    Vector(Vec<f32>),
    /// The answer is complete.
    Finished {
        /// What ended it.
        reason: FinishReason,
        /// What it cost.
        usage: Usage,
    },
    /// There will be no more.
    Failed(EngineError),
}

/// What ended an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub enum FinishReason {
    /// An end token or a stop string.
    Stop,
    /// As many tokens as were allowed.
    Length,
}

/// Tokens of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that were computed for an earlier request, and not again.
    pub cached_tokens: usize,
    /// Tokens that were generated, the end token among them.
    pub completion_tokens: usize,
}

/// Why the engine gave up on a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// The model failed.
    #[error("the model failed: {0}")]
    Model(String),
    /// The answer cannot follow its grammar any further.
    #[error("{0}")]
    Grammar(GrammarError),
    /// The model gave no numbers to draw from.
    #[error("the model's output is not finite")]
    NotFinite,
    /// The request may need more keys and values than the whole cache has room for.
    #[error("the request may need {tokens} tokens of keys and values, {missing_blocks} blocks more than there are")]
    TooLong {
        /// Prompt and answer.
        tokens: usize,
        /// What is missing.
        missing_blocks: usize,
    },
    /// The engine is ending.
    #[error("the server is shutting down")]
    Ending,
}

/// Why a request was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SubmitError {
    /// Too many wait already.
    Full {
        /// When it is worth another try.
        retry_after: Duration,
    },
    /// The engine has ended.
    Ended,
}

/// What the engine is told.
pub(crate) enum Command {
    /// Generate.
    Add(Box<Job>),
    /// Nobody waits for this any more.
    Cancel(RequestId),
    /// Finish what was begun, take nothing new, end.
    Drain,
}

/// A request on its way into the engine.
pub(crate) struct Job {
    request: Request,
    first: Listener,
    /// Those of further answers.
    others: Vec<Listener>,
    arrived: Instant,
}

/// Where an answer goes.
pub(crate) struct Listener {
    id: RequestId,
    events: mpsc::Sender<Event>,
    started: Arc<OnceLock<Instant>>,
}

/// The way into the engine.
#[derive(Debug, Clone)]
pub struct Engine {
    commands: SyncSender<Command>,
    admission: Arc<Admission>,
    next_id: Arc<AtomicU64>,
}

impl Engine {
    /// An engine's way in, and the channel that its [`Worker`] reads.
    pub(crate) fn new(admission: Arc<Admission>) -> (Self, std::sync::mpsc::Receiver<Command>) {
        // Most requests have at most two commands under way at a time (add and cancel).
        let (commands, received) = std::sync::mpsc::sync_channel(2 * admission.limits().requests + 64);
        let engine = Self {
            commands,
            admission,
            next_id: Arc::default(),
        };
        (engine, received)
    }

    /// Answers that are generated at the same time.
    pub fn concurrency(&self) -> usize {
        self.admission.limits().concurrency
    }

    /// Puts a request into the queue, or refuses it at once when the queue is full. Gives as many generations as it
    /// wants answers.
    pub fn submit(&self, request: Request) -> Result<Vec<Generation>, SubmitError> {
        let tokens = request.prompt.len();
        self.admission.enter(tokens)?;
        let answer = || {
            let id = RequestId(self.next_id.fetch_add(1, Ordering::Relaxed));
            // Never full: each token has at most one piece, and there is one end.
            let (events, received) = mpsc::channel(request.max_tokens.saturating_add(2).min(MAX_EVENTS));
            let started = Arc::default();
            let generation = Generation {
                id,
                events: received,
                started: Arc::clone(&started),
                commands: self.commands.clone(),
            };
            (Listener { id, events, started }, generation)
        };
        let (first, generation) = answer();
        let (others, more): (Vec<_>, Vec<_>) = (1..request.answers.get()).map(|_| answer()).unzip();
        let generations = std::iter::once(generation).chain(more).collect();
        let job = Box::new(Job {
            request,
            first,
            others,
            arrived: Instant::now(),
        });
        match self.commands.try_send(Command::Add(job)) {
            Ok(()) => Ok(generations),
            Err(TrySendError::Full(_)) => {
                self.admission.leave(tokens);
                Err(SubmitError::Full {
                    retry_after: self.admission.retry_after(),
                })
            }
            Err(TrySendError::Disconnected(_)) => {
                self.admission.leave(tokens);
                Err(SubmitError::Ended)
            }
        }
    }

    /// Lets the engine finish what was begun and end.
    pub fn drain(&self) {
        // The only errors are that it has ended, or that it is too busy to hear; its owner then stops waiting in time.
        let _ = self.commands.try_send(Command::Drain);
    }
}

/// No context is longer than this, so no channel of events needs to be.
const MAX_EVENTS: usize = 1 << 24;

/// An answer of a request in the engine. Dropping it cancels it.
#[derive(Debug)]
pub struct Generation {
    id: RequestId,
    events: mpsc::Receiver<Event>,
    started: Arc<OnceLock<Instant>>,
    commands: SyncSender<Command>,
}

impl Generation {
    /// When the first answer to the request left the queue, as soon as it has.
    pub(crate) fn started(&self) -> Arc<OnceLock<Instant>> {
        Arc::clone(&self.started)
    }
}

/// Its events; ends early when the engine ended without a last word.
impl Stream for Generation {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        self.events.poll_recv(context)
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        // The engine also looks whether this end of the channel is still there, so a lost command only costs a step.
        let _ = self.commands.try_send(Command::Cancel(self.id));
    }
}

/// The model as the engine sees it.
pub trait StepModel: Send {
    /// Computes one step of several sequences.
    fn forward(&mut self, batch: &StepBatch) -> Result<Logits, ModelError>;
    /// Copies a block of keys and values.
    fn copy_block(&mut self, from: BlockId, to: BlockId) -> Result<(), ModelError>;
    /// Blocks of keys and values that there are.
    fn blocks(&self) -> usize;
}

impl StepModel for Decoder {
    fn forward(&mut self, batch: &StepBatch) -> Result<Logits, ModelError> {
        Self::forward(self, batch)
    }

    fn copy_block(&mut self, from: BlockId, to: BlockId) -> Result<(), ModelError> {
        Self::copy_block(self, from, to)
    }

    fn blocks(&self) -> usize {
        Self::blocks(self)
    }
}

/// Turns an answer's tokens into text as they come.
pub trait TextStream: Send {
    /// The text that this token completes.
    fn push(&mut self, token: u32) -> String;
    /// What is left when the answer ends.
    fn finish(&mut self) -> String;
}

impl TextStream for StreamDecoder {
    fn push(&mut self, token: u32) -> String {
        Self::push(self, token)
    }

    fn finish(&mut self) -> String {
        Self::finish(self)
    }
}
