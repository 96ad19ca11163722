//! The loop of the engine's thread: take commands, start what waits, plan, compute, sample, publish.

use super::queue::Admission;
use super::scheduler::{Share, plan};
use super::{
    Command, EngineError, Event, FinishReason, Job, Request, RequestId, Sampler, StepModel, StopMatcher, TextStream,
    Usage,
};
use crate::metrics::{Finished, Metrics};
use crate::model::{Logits, LogitsWanted, SequenceId, Span, StepBatch};
use crate::status::{Board, Requests};
use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Instant;
use tokio::sync::mpsc;
use tracing::{debug, error};

/// What bounds the engine.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Tokens of one step, unless more sequences than that generate.
    pub step_tokens: usize,
    /// Sequences at the same time.
    pub concurrency: usize,
    /// Tokens of keys and values that there is room for. A single sequence is never kept waiting by it.
    pub kv_tokens: usize,
    /// Tokens that end an answer.
    pub end_tokens: Vec<u32>,
}

/// Makes a fresh decoder of text for each answer.
pub(crate) type NewText = Box<dyn Fn() -> Box<dyn TextStream> + Send>;

/// Owns the model. [`run`](Self::run) is the thread.
pub struct Worker<M> {
    model: M,
    new_text: NewText,
    settings: Settings,
    commands: Receiver<Command>,
    admission: Arc<Admission>,
    metrics: Arc<Metrics>,
    board: Board,
    waiting: VecDeque<Job>,
    running: Vec<Running>,
    draining: bool,
}

/// A sequence that is being answered.
struct Running {
    id: RequestId,
    sequence: SequenceId,
    events: mpsc::Sender<Event>,
    prompt: Vec<u32>,
    max_tokens: usize,
    sampler: Sampler,
    stop: StopMatcher,
    text: Box<dyn TextStream>,
    /// Tokens in the cache.
    computed: usize,
    /// The token that was drawn last and is not in the cache yet.
    next: Option<u32>,
    generated: usize,
    arrived: Instant,
    started: Instant,
    last_token: Option<Instant>,
}

impl Running {
    /// Tokens that it may need in the cache, from its first step on, so that it never runs out of room.
    fn reserved(&self) -> usize {
        self.prompt.len() + self.max_tokens
    }

    fn pending(&self) -> usize {
        self.prompt.len().saturating_sub(self.computed)
    }

    fn usage(&self) -> Usage {
        Usage {
            prompt_tokens: self.prompt.len(),
            completion_tokens: self.generated,
        }
    }

    /// Hands out text. The channel has room for every token, so the only failure is that nobody listens any more,
    /// which the next step notices.
    fn say(&self, text: String) {
        if !text.is_empty() {
            let _ = self.events.try_send(Event::Text(text));
        }
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
            model,
            new_text,
            settings,
            commands,
            admission,
            metrics,
            board,
            waiting: VecDeque::new(),
            running: Vec::new(),
            draining: false,
        }
    }

    /// Answers requests until it is drained, or nobody can submit any more.
    pub fn run(mut self) {
        while self.take_commands().is_continue() {
            self.drop_abandoned();
            self.start_waiting();
            self.publish_load();
            if !self.running.is_empty() {
                self.step();
                self.publish_load();
            }
        }
    }

    /// Takes what was submitted; waits for it when there is nothing else to do.
    fn take_commands(&mut self) -> ControlFlow<()> {
        loop {
            let is_idle = self.running.is_empty() && self.waiting.is_empty();
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
                Command::Add(job) if self.draining => {
                    self.admission.leave(job.request.prompt.len());
                    let _ = job.events.try_send(Event::Failed(EngineError::Ending));
                }
                Command::Add(job) => self.waiting.push_back(*job),
                Command::Cancel(id) => self.cancel(id),
                Command::Drain => self.draining = true,
            }
        }
    }

    /// Forgets a request. One that is complete already is not here any more, and nothing happens.
    fn cancel(&mut self, id: RequestId) {
        if let Some(at) = self.running.iter().position(|running| running.id == id) {
            let running = self.running.remove(at);
            self.model.remove_sequence(running.sequence);
            self.metrics.requests_cancelled.inc();
            debug!(tokens = running.generated, "request cancelled");
        } else if let Some(at) = self.waiting.iter().position(|job| job.id == id)
            && let Some(job) = self.waiting.remove(at)
        {
            self.admission.leave(job.request.prompt.len());
            self.metrics.requests_cancelled.inc();
        }
    }

    fn drop_abandoned(&mut self) {
        let running = self.running.iter().map(|running| (running.id, &running.events));
        let waiting = self.waiting.iter().map(|job| (job.id, &job.events));
        let abandoned: Vec<RequestId> = running
            .chain(waiting)
            .filter(|(_, events)| events.is_closed())
            .map(|(id, _)| id)
            .collect();
        for id in abandoned {
            self.cancel(id);
        }
    }

    /// Starts waiting requests in the order of arrival, as long as there is room.
    fn start_waiting(&mut self) {
        while let Some(job) = self.waiting.front() {
            let needed = job.request.prompt.len() + job.request.max_tokens;
            let has_room = self.reserved() + needed <= self.settings.kv_tokens;
            if self.running.len() >= self.settings.concurrency || !(has_room || self.running.is_empty()) {
                return;
            }
            if let Some(job) = self.waiting.pop_front() {
                self.start(job);
            }
        }
    }

    fn reserved(&self) -> usize {
        self.running.iter().map(Running::reserved).sum()
    }

    fn start(&mut self, job: Job) {
        let Job {
            id,
            request,
            events,
            arrived,
        } = job;
        let Request {
            prompt,
            max_tokens,
            sampling,
            stop,
        } = request;
        self.admission.leave(prompt.len());
        self.metrics.queue_time.observe(arrived.elapsed().as_secs_f64());
        self.running.push(Running {
            id,
            sequence: self.model.add_sequence(),
            events,
            sampler: Sampler::new(sampling, &prompt),
            stop: StopMatcher::new(&stop),
            text: (self.new_text)(),
            prompt,
            max_tokens,
            computed: 0,
            next: None,
            generated: 0,
            arrived,
            started: Instant::now(),
            last_token: None,
        });
    }

    /// One call of the model for everything that runs.
    fn step(&mut self) {
        let pending: Vec<usize> = self.running.iter().map(Running::pending).collect();
        let shares = plan(&pending, self.settings.step_tokens);
        let spans: Vec<Span> = shares
            .iter()
            .map(|share| span(&self.running[share.index], share.tokens))
            .collect();
        match self.model.forward(&StepBatch { spans }) {
            Ok(logits) => self.publish(&shares, &logits),
            Err(problem) => {
                error!(error = &problem as &dyn std::error::Error, "step failed");
                let failed: Vec<usize> = shares.iter().map(|share| share.index).collect();
                let event = Event::Failed(EngineError::Model(problem.to_string()));
                self.end(failed, |running, metrics| {
                    metrics.requests_failed.inc();
                    let _ = running.events.try_send(event.clone());
                });
            }
        }
    }

    /// Draws and hands out what the step gave.
    fn publish(&mut self, shares: &[Share], logits: &Logits) {
        let mut row = 0;
        let mut done = Vec::new();
        for share in shares {
            let running = &mut self.running[share.index];
            if running.pending() > 0 {
                self.metrics.prompt_tokens.inc_by(share.tokens as u64);
            }
            running.computed += share.tokens;
            if running.pending() > 0 {
                continue;
            }
            let drawn = running.sampler.sample(logits.row(row));
            row += 1;
            observe_token(running, &self.metrics);
            let ended = match drawn {
                None => Some(Event::Failed(EngineError::NotFinite)),
                Some(token) => accept(running, token, &self.settings.end_tokens),
            };
            if let Some(event) = ended {
                done.push((share.index, event));
            }
        }
        for (index, event) in &done {
            let running = &self.running[*index];
            let _ = running.events.try_send(event.clone());
            match event {
                Event::Finished { reason, .. } => {
                    self.admission.learn(running.started.elapsed());
                    self.metrics
                        .request_latency
                        .observe(running.arrived.elapsed().as_secs_f64());
                    let finished_reason = reason.into();
                    self.metrics
                        .requests_finished
                        .get_or_create(&Finished { finished_reason })
                        .inc();
                }
                Event::Failed(_) | Event::Text(_) => {
                    self.metrics.requests_failed.inc();
                }
            }
        }
        self.end(done.into_iter().map(|(index, _)| index).collect(), |_, _| ());
    }

    /// Takes sequences out, after telling `say` about each.
    fn end(&mut self, mut indices: Vec<usize>, say: impl Fn(&Running, &Metrics)) {
        indices.sort_unstable();
        for index in indices.into_iter().rev() {
            let running = self.running.remove(index);
            self.model.remove_sequence(running.sequence);
            say(&running, &self.metrics);
        }
    }

    fn publish_load(&self) {
        let requests = Requests {
            running: self.running.len(),
            waiting: self.admission.waiting(),
        };
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.metrics.requests_running.set(gauge(requests.running));
        self.metrics.requests_waiting.set(gauge(requests.waiting));
        #[expect(clippy::cast_precision_loss, reason = "shown with a few digits")]
        let usage = self.reserved() as f64 / self.settings.kv_tokens.max(1) as f64;
        self.metrics.kv_cache_usage.set(usage.min(1.0));
        let kv_bytes = self.model.kv_bytes();
        self.board.update(|status| {
            status.requests = requests;
            status.memory.kv_cache_bytes = Some(kv_bytes);
        });
    }
}

/// What a sequence computes next. The last chunk of a prompt, and every token after it, needs a row of logits.
fn span(running: &Running, tokens: usize) -> Span {
    let (tokens, logits) = if let Some(token) = running.next {
        (vec![token], LogitsWanted::Last)
    } else {
        let end = running.computed + tokens;
        let logits = if end == running.prompt.len() {
            LogitsWanted::Last
        } else {
            LogitsWanted::None
        };
        (running.prompt[running.computed..end].to_vec(), logits)
    };
    Span {
        sequence: running.sequence,
        tokens,
        start: running.computed,
        logits,
    }
}

/// Takes a drawn token into the answer. Returns the last event when it ends the answer.
fn accept(running: &mut Running, token: u32, end_tokens: &[u32]) -> Option<Event> {
    running.generated += 1;
    running.next = Some(token);
    let mut reason = None;
    if end_tokens.contains(&token) {
        reason = Some(FinishReason::Stop);
    } else {
        let piece = running.text.push(token);
        let passed = running.stop.push(&piece);
        running.say(passed.text);
        if passed.stopped {
            return Some(finished(running, FinishReason::Stop));
        }
        if running.generated >= running.max_tokens {
            reason = Some(FinishReason::Length);
        }
    }
    let mut reason = reason?;
    let rest = running.text.finish();
    let passed = running.stop.push(&rest);
    if passed.stopped {
        reason = FinishReason::Stop;
    }
    let held = running.stop.finish();
    running.say(passed.text + &held);
    Some(finished(running, reason))
}

fn finished(running: &Running, reason: FinishReason) -> Event {
    Event::Finished {
        reason,
        usage: running.usage(),
    }
}

fn observe_token(running: &mut Running, metrics: &Metrics) {
    let now = Instant::now();
    metrics.generation_tokens.inc();
    match running.last_token {
        None => {
            let waited = now.duration_since(running.arrived);
            metrics.time_to_first_token.observe(waited.as_secs_f64());
        }
        Some(before) => metrics
            .inter_token_latency
            .observe(now.duration_since(before).as_secs_f64()),
    }
    running.last_token = Some(now);
}

#[cfg(test)]
#[path = "worker_tests.rs"]
mod tests;
