//! The loop of the engine's thread: take commands, plan, compute, sample, publish.

use super::pace::Pace;
use super::queue::Admission;
use super::scheduler::{Plan, Scheduler, Share};
use super::speech::Speech;
use super::{
    Command, EngineError, Event, FinishReason, Job, Listener, Logprobs, Piece, Request, RequestId, Sampler, StepModel,
    StopMatcher, TextStream, Usage,
};
use crate::grammar::{Constraint, GrammarError, Mask};
use crate::kv::Chain;
use crate::metrics::{Finished, Metrics};
use crate::model::{Logits, LogitsWanted, ModelError, Pool, Span, StatesWanted, StepBatch};
use crate::status::{Board, Requests};
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tracing::{debug, error};

/// What bounds the engine.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Sequences at the same time.
    pub concurrency: usize,
    /// Tokens of one step, unless more sequences than that generate.
    pub step_tokens: usize,
    /// How long running answers may wait for a token while prompts are read. Absent: less than twice as long as
    /// without.
    pub inter_token_latency: Option<Duration>,
    /// Prompt tokens and answer tokens per second of one stream, as the warm-up measured them.
    pub rates: (f64, f64),
    /// The beginning of the names of blocks: of another model or type of cache nothing is used again.
    pub root: Chain,
    /// Bytes of a block of keys and values.
    pub block_bytes: u64,
    /// Tokens that end an answer.
    pub end_tokens: Vec<u32>,
}

#[cfg(test)]
impl Settings {
    /// Steps of eight tokens.
    pub(crate) fn of_tests(concurrency: usize, end_tokens: Vec<u32>) -> Self {
        Self {
            concurrency,
            step_tokens: 8,
            inter_token_latency: None,
            rates: (0.0, 0.0),
            root: crate::kv::root("m"),
            block_bytes: 1,
            end_tokens,
        }
    }
}

/// Makes a fresh decoder of text for each answer, in which these control tokens are seen.
pub(crate) type NewText = Box<dyn Fn(&[u32]) -> Box<dyn TextStream> + Send>;

/// Owns the model. [`run`](Self::run) is the thread.
pub struct Worker<M> {
    model: M,
    new_text: NewText,
    settings: Settings,
    commands: Receiver<Command>,
    admission: Arc<Admission>,
    metrics: Arc<Metrics>,
    board: Board,
    scheduler: Scheduler,
    pace: Pace,
    answers: HashMap<RequestId, Answer>,
    draining: bool,
}

/// An answer that is being given, or waits for its turn.
struct Answer {
    events: mpsc::Sender<Event>,
    prompt_tokens: usize,
    /// Known when it is started.
    cached_tokens: usize,
    max_tokens: usize,
    sampler: Sampler,
    speech: Speech,
    logprobs: Option<usize>,
    constraint: Option<Constraint>,
    /// What becomes the vector, when that is asked for.
    pool: Option<Pool>,
    /// What the grammar allows next, once that was computed.
    mask: Option<Result<Mask, GrammarError>>,
    generated: usize,
    arrived: Instant,
    /// Empty while it waits in the queue. Whoever listens sees it, too.
    started: Arc<OnceLock<Instant>>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
    /// Other answers to the same prompt, which begin when it is computed.
    forks: Vec<(RequestId, Self)>,
}

/// A token that was drawn, and how likely it was when somebody wants to know.
struct Drawn {
    token: u32,
    logprobs: Option<Logprobs>,
}

impl Answer {
    fn usage(&self) -> Usage {
        Usage {
            prompt_tokens: self.prompt_tokens,
            cached_tokens: self.cached_tokens,
            completion_tokens: self.generated,
        }
    }

    /// Hands out a piece. The channel has room for every token, so the only failure is that nobody listens any more,
    /// which the next step notices.
    fn say(&self, piece: Piece) {
        if !piece.is_empty() {
            let _ = self.events.try_send(Event::Piece(piece));
        }
    }

    /// Computes what the grammar allows next.
    fn look_ahead(&mut self) {
        self.mask = self.constraint.as_mut().map(Constraint::mask);
    }

    /// Draws a token.
    fn draw(&mut self, logits: &[f32]) -> Result<Drawn, EngineError> {
        let mask = match (self.mask.take(), &mut self.constraint) {
            (Some(mask), _) => Some(mask),
            (None, Some(constraint)) => Some(constraint.mask()),
            (None, None) => None,
        };
        let mask = mask.transpose().map_err(EngineError::Grammar)?;
        let token = self
            .sampler
            .sample(logits, mask.as_ref())
            .ok_or(EngineError::NotFinite)?;
        if let Some(constraint) = &mut self.constraint {
            constraint.accept(token).map_err(EngineError::Grammar)?;
        }
        Ok(Drawn {
            token,
            logprobs: self.logprobs.map(|likeliest| Logprobs::new(logits, token, likeliest)),
        })
    }

    /// Says the last event, also to those who wait for its forks.
    fn end(&self, event: Event) {
        for (_, fork) in &self.forks {
            fork.end(event.clone());
        }
        let _ = self.events.try_send(event);
    }
}

impl<M: StepModel> Worker<M> {
    /// A worker for this model.
    pub(crate) fn new(
        model: M,
        new_text: NewText,
        settings: Settings,
        (commands, admission): (Receiver<Command>, Arc<Admission>),
        metrics: Arc<Metrics>,
        board: Board,
    ) -> Self {
        Self {
            scheduler: Scheduler::new(model.blocks(), settings.concurrency),
            pace: Pace::new(settings.rates, settings.inter_token_latency, settings.step_tokens),
            model,
            new_text,
            settings,
            commands,
            admission,
            metrics,
            board,
            answers: HashMap::new(),
            draining: false,
        }
    }

    /// Answers requests until it is drained, or nobody can submit any more.
    pub fn run(mut self) {
        while self.take_commands().is_continue() {
            self.drop_abandoned();
            if !self.scheduler.is_idle() {
                self.step();
            }
            self.publish_load();
        }
    }

    /// Takes what was submitted; waits for it when there is nothing else to do.
    fn take_commands(&mut self) -> ControlFlow<()> {
        loop {
            let is_idle = self.scheduler.is_idle();
            if is_idle && self.draining {
                return ControlFlow::Break(());
            }
            let command = if is_idle {
                // Nothing will be published while it waits.
                self.publish_load();
                match self.commands.recv() {
                    Ok(command) => command,
                    Err(_) => return ControlFlow::Break(()),
                }
            } else {
                match self.commands.try_recv() {
                    Ok(command) => command,
                    Err(TryRecvError::Empty) => return ControlFlow::Continue(()),
                    Err(TryRecvError::Disconnected) => {
                        self.draining = true;
                        return ControlFlow::Continue(());
                    }
                }
            };
            match command {
                Command::Add(job) => self.add(*job),
                Command::Cancel(id) => self.cancel(id),
                Command::Drain => self.draining = true,
            }
        }
    }

    fn add(&mut self, job: Job) {
        let Job {
            request,
            first,
            others,
            arrived,
        } = job;
        let Request {
            prompt,
            max_tokens,
            sampling,
            stop,
            shown,
            constraint,
            logprobs,
            answers: _,
            pooling,
        } = request;
        let prompt_tokens = prompt.len();
        let sampler = Sampler::new(sampling, &prompt);
        let answer = |number, listener: Listener| {
            let answer = Answer {
                events: listener.events,
                prompt_tokens,
                cached_tokens: 0,
                max_tokens,
                sampler: sampler.with_seed_after(number),
                speech: Speech::new((self.new_text)(&shown), StopMatcher::new(&stop)),
                logprobs,
                constraint: constraint.clone(),
                pool: pooling.map(Pool::new),
                mask: None,
                generated: 0,
                arrived,
                started: listener.started,
                first_token: None,
                last_token: None,
                forks: vec![],
            };
            (listener.id, answer)
        };
        let (id, mut first) = answer(0, first);
        let others = (1..).zip(others);
        first.forks = others.map(|(number, other)| answer(number, other)).collect();
        let refusal = if self.draining {
            Some(EngineError::Ending)
        } else {
            let most = prompt_tokens.saturating_add(max_tokens);
            let room = (most, 1 + first.forks.len());
            // A block that is found has no states any more.
            let names = pooling.is_none().then_some(self.settings.root);
            let added = self.scheduler.add(id, names, prompt, room);
            added.err().map(|shortage| {
                self.metrics.requests_failed.inc();
                EngineError::TooLong {
                    tokens: most,
                    missing_blocks: shortage.missing,
                }
            })
        };
        match refusal {
            None => {
                self.answers.insert(id, first);
            }
            Some(problem) => {
                self.admission.leave(prompt_tokens);
                first.end(Event::Failed(problem));
            }
        }
    }

    /// Forgets a request. One that is complete already is not here any more, and nothing happens.
    fn cancel(&mut self, id: RequestId) {
        if let Some(answer) = self.forget(id) {
            self.metrics.requests_cancelled.inc();
            debug!(tokens = answer.generated, "request cancelled");
        }
    }

    /// Takes a request out of everything.
    fn forget(&mut self, id: RequestId) -> Option<Answer> {
        let answer = self.answers.remove(&id)?;
        self.scheduler.remove(id);
        if answer.started.get().is_none() {
            self.admission.leave(answer.prompt_tokens);
        }
        Some(answer)
    }

    fn drop_abandoned(&mut self) {
        let abandoned = self.answers.iter().filter(|(_, answer)| answer.events.is_closed());
        let abandoned: Vec<RequestId> = abandoned.map(|(id, _)| *id).collect();
        for id in abandoned {
            self.cancel(id);
        }
    }

    /// One call of the model for everything that runs.
    fn step(&mut self) {
        let prompt_tokens = self.pace.prompt_tokens(self.scheduler.generating());
        let plan = self.scheduler.plan(prompt_tokens);
        self.note(&plan);
        self.publish_load();
        let spans = plan.shares.iter().filter_map(|share| self.span(share));
        let batch = StepBatch { spans: spans.collect() };
        let began = Instant::now();
        match self.forward(&batch, &plan.shares) {
            Ok(logits) => {
                let prompts = plan.shares.iter().filter(|share| share.is_prompt);
                let tokens = prompts.clone().map(|share| share.tokens.len()).sum();
                self.pace
                    .learn(plan.shares.len() - prompts.count(), tokens, began.elapsed());
                self.publish(&plan.shares, &logits);
            }
            Err(problem) => {
                error!(error = &problem as &dyn std::error::Error, "step failed");
                let event = Event::Failed(EngineError::Model(problem.to_string()));
                for share in &plan.shares {
                    self.end(share.id, event.clone());
                }
            }
        }
    }

    /// What the model computes for a share.
    fn span(&self, share: &Share) -> Option<Span> {
        let span = self.scheduler.span(share)?;
        let pool = self.answers.get(&share.id).and_then(|answer| answer.pool.as_ref());
        Some(match pool {
            None => span,
            Some(pool) => Span {
                logits: LogitsWanted::None,
                states: states(pool, share),
                ..span
            },
        })
    }

    /// Computes a step, and beside it what grammars allow in the answers that get a token by it.
    fn forward(&mut self, batch: &StepBatch, shares: &[Share]) -> Result<Logits, ModelError> {
        let draws = |id: &RequestId| shares.iter().any(|share| share.draws && share.id == *id);
        let held = self.answers.iter_mut();
        let held = held.filter(|(id, answer)| answer.constraint.is_some() && draws(id));
        let mut held: Vec<&mut Answer> = held.map(|(_, answer)| answer).collect();
        if held.is_empty() {
            return self.model.forward(batch);
        }
        std::thread::scope(|scope| {
            scope.spawn(|| held.iter_mut().for_each(|answer| answer.look_ahead()));
            self.model.forward(batch)
        })
    }

    /// Counts who starts and who gives way.
    fn note(&mut self, plan: &Plan) {
        for (id, known) in &plan.started {
            let Some(answer) = self.answers.get_mut(id) else {
                continue;
            };
            if let Some(pool) = &mut answer.pool {
                pool.restart();
            }
            if answer.started.set(Instant::now()).is_ok() {
                answer.cached_tokens = *known;
                self.admission.leave(answer.prompt_tokens);
                self.metrics.queue_time.observe(answer.arrived.elapsed().as_secs_f64());
                self.metrics.prefix_cache_queries.inc_by(answer.prompt_tokens as u64);
                self.metrics.prefix_cache_hits.inc_by(*known as u64);
                self.metrics.prompt_tokens.inc_by(answer.prompt_tokens as u64);
            }
        }
        self.metrics.preemptions.inc_by(plan.preempted.len() as u64);
    }

    /// Draws and hands out what the step gave.
    fn publish(&mut self, shares: &[Share], logits: &Logits) {
        let mut row = 0;
        let mut given = logits.states();
        for share in shares {
            self.scheduler.computed(share);
            let answer = self.answers.get_mut(&share.id);
            if let Some(pool) = answer.and_then(|answer| answer.pool.as_mut()) {
                let count = states(pool, share).rows(share.tokens.len()).len();
                given.by_ref().take(count).for_each(|state| pool.add(state));
                if share.draws {
                    self.hand_out_vector(share.id);
                }
            } else if share.draws {
                row += 1;
                self.draw(share.id, logits.row(row - 1));
            }
        }
    }

    /// Hands out the vector of a text that was computed.
    fn hand_out_vector(&mut self, id: RequestId) {
        let Some(answer) = self.answers.get(&id) else {
            return;
        };
        let event = match answer.pool.as_ref().and_then(Pool::finish) {
            None => Event::Failed(EngineError::NotFinite),
            Some(vector) => {
                let _ = answer.events.try_send(Event::Vector(vector));
                finished(answer, FinishReason::Stop)
            }
        };
        self.end(id, event);
    }

    /// Draws the next token of an answer, and the first of each of its forks.
    fn draw(&mut self, id: RequestId, logits: &[f32]) {
        let Some(answer) = self.answers.get_mut(&id) else {
            return;
        };
        let started = Arc::clone(&answer.started);
        let mask = answer.mask.clone();
        // The last one first: each takes its place directly behind the one that it comes from.
        for (fork, mut answer) in std::mem::take(&mut answer.forks).into_iter().rev() {
            answer.started = Arc::clone(&started);
            answer.mask.clone_from(&mask);
            let drawn = answer.draw(logits);
            let token = drawn.as_ref().ok().map(|drawn| drawn.token);
            let copied = token.and_then(|token| self.scheduler.fork(id, fork, token));
            self.answers.insert(fork, answer);
            match copied.map_or(Ok(()), |(from, to)| self.model.copy_block(from, to)) {
                Ok(()) => self.take(fork, drawn),
                Err(problem) => self.end(fork, Event::Failed(EngineError::Model(problem.to_string()))),
            }
        }
        let Some(answer) = self.answers.get_mut(&id) else {
            return;
        };
        let drawn = answer.draw(logits);
        if let Ok(drawn) = &drawn {
            self.scheduler.push(id, drawn.token);
        }
        self.take(id, drawn);
    }

    /// Takes a drawn token into its answer.
    fn take(&mut self, id: RequestId, drawn: Result<Drawn, EngineError>) {
        let Some(answer) = self.answers.get_mut(&id) else {
            return;
        };
        observe_token(answer, &self.metrics);
        let ended = match drawn {
            Err(problem) => Some(Event::Failed(problem)),
            Ok(drawn) => accept(answer, drawn, &self.settings.end_tokens),
        };
        if let Some(event) = ended {
            self.end(id, event);
        }
    }

    /// The last event of a request.
    fn end(&mut self, id: RequestId, event: Event) {
        let Some(answer) = self.forget(id) else { return };
        match &event {
            Event::Finished { reason, .. } => {
                if let Some(started) = answer.started.get() {
                    self.admission.learn(started.elapsed());
                }
                observe_answer(&answer, &self.metrics);
                self.metrics
                    .request_latency
                    .observe(answer.arrived.elapsed().as_secs_f64());
                let finished_reason = reason.into();
                self.metrics
                    .requests_finished
                    .get_or_create(&Finished { finished_reason })
                    .inc();
            }
            Event::Failed(_) | Event::Piece(_) | Event::Vector(_) => {
                self.metrics.requests_failed.inc();
            }
        }
        answer.end(event);
    }

    fn publish_load(&self) {
        let requests = Requests {
            running: self.scheduler.running(),
            waiting: self.admission.waiting(),
        };
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.metrics.requests_running.set(gauge(requests.running));
        self.metrics.requests_waiting.set(gauge(requests.waiting));
        let kv = self.scheduler.kv();
        #[expect(clippy::cast_precision_loss, reason = "shown with a few digits")]
        let usage = kv.used() as f64 / kv.total().max(1) as f64;
        self.metrics.kv_cache_usage.set(usage);
        let kv_bytes = kv.used() as u64 * self.settings.block_bytes;
        self.board.update(|status| {
            status.requests = requests;
            status.memory.kv_cache_bytes = Some(kv_bytes);
        });
    }
}

/// Which states a share gives.
fn states(pool: &Pool, share: &Share) -> StatesWanted {
    pool.wanted(share.tokens.start == 0, share.draws)
}

/// Takes a drawn token into the answer. Returns the last event when it ends the answer.
fn accept(answer: &mut Answer, Drawn { token, logprobs }: Drawn, end_tokens: &[u32]) -> Option<Event> {
    answer.generated += 1;
    let mut reason = FinishReason::Stop;
    if !end_tokens.contains(&token) {
        let told = answer.speech.push(token, logprobs);
        answer.say(told.piece);
        if told.stopped {
            return Some(finished(answer, FinishReason::Stop));
        }
        // When nothing can follow, the model is not asked to say so.
        if !answer.constraint.as_ref().is_some_and(Constraint::is_complete) {
            if answer.generated < answer.max_tokens {
                return None;
            }
            reason = FinishReason::Length;
        }
    }
    let told = answer.speech.finish();
    if told.stopped {
        reason = FinishReason::Stop;
    }
    answer.say(told.piece);
    Some(finished(answer, reason))
}

fn finished(answer: &Answer, reason: FinishReason) -> Event {
    Event::Finished {
        reason,
        usage: answer.usage(),
    }
}

/// Observes an answer that is complete.
fn observe_answer(answer: &Answer, metrics: &Metrics) {
    #[expect(clippy::cast_precision_loss, reason = "contexts are much shorter")]
    let count = |tokens: usize| tokens as f64;
    metrics.request_prompt_tokens.observe(count(answer.prompt_tokens));
    metrics.request_generation_tokens.observe(count(answer.generated));
    if let (Some(started), Some(first)) = (answer.started.get(), answer.first_token) {
        metrics
            .prefill_time
            .observe(first.duration_since(*started).as_secs_f64());
        metrics.decode_time.observe(first.elapsed().as_secs_f64());
    }
}

fn observe_token(answer: &mut Answer, metrics: &Metrics) {
    let now = Instant::now();
    metrics.generation_tokens.inc();
    match answer.last_token {
        None => {
            let waited = now.duration_since(answer.arrived);
            metrics.time_to_first_token.observe(waited.as_secs_f64());
            answer.first_token = Some(now);
        }
        Some(before) => metrics
            .inter_token_latency
            .observe(now.duration_since(before).as_secs_f64()),
    }
    answer.last_token = Some(now);
}

#[cfg(test)]
#[path = "worker_tests.rs"]
mod tests;
