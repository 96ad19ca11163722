//! From a checked request to an answer: submits to the engine, then streams or collects.

use super::answer::{Answer, Cost, Envelope, Kind, Part, finish_reason};
use super::logprobs::AnswerToken;
use super::parameters::Parameters;
use super::telling::{Reading, Teller};
use crate::context::{random_id, unix_seconds};
use crate::engine::{Event, FinishReason, Generation, Piece, Request, SubmitError, Usage};
use crate::grammar::{Constraint, Grammar};
use crate::metrics::{Metrics, TokenKind, Used};
use crate::model::Tokenizer;
use crate::server::admission::limit_error;
use crate::server::error::{ApiError, Code};
use crate::server::{App, Record, Served};
use crate::traffic::Attempt;
use axum::http::header::CONTENT_TYPE;
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream::{BoxStream, SelectAll};
use futures::{Stream, StreamExt, stream};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// A comment is sent when nothing else was for this long, so that nobody in between gives up during a long prompt.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// A request that was checked.
pub(super) struct Asked {
    pub(super) prompt: Vec<u32>,
    pub(super) parameters: Parameters,
    /// Tokens that the answer may have.
    pub(super) room: usize,
    /// How the answer is read. Absent: it is plain text.
    pub(super) reading: Option<Reading>,
    /// Control tokens that are part of the answer's text.
    pub(super) shown: Vec<u32>,
}

/// Who asks, and the record of the request.
pub(super) struct Caller {
    pub(super) attempt: Attempt,
    pub(super) record: Arc<Record>,
}

/// Answers a prompt of tokens.
pub(super) async fn answer(
    app: &App,
    served: &Arc<Served>,
    caller: Caller,
    (kind, asked): (Kind, Asked),
) -> Result<Response, ApiError> {
    let (stream, include_usage) = (asked.parameters.stream, asked.parameters.include_usage);
    let record = Arc::clone(&caller.record);
    let followed = begin(app, served, caller, asked).await?;
    let id = random_id(kind.id_prefix());
    record.span().answers(&served.name, Some(&id));
    let envelope = Envelope {
        kind,
        id,
        created: unix_seconds(),
        model: served.name.clone(),
        fingerprint: served.fingerprint.clone(),
        include_usage,
    };
    if stream {
        return Ok(event_stream(
            events(envelope, followed).map(|line| SseEvent::default().data(line)),
        ));
    }
    let (answers, cost) = collect(followed).await?;
    let body = envelope.whole(&answers, cost);
    Ok(([(CONTENT_TYPE, "application/json")], body).into_response())
}

/// An answer that comes in events.
pub(super) fn event_stream(events: impl Stream<Item = SseEvent> + Send + 'static) -> Response {
    let events = Sse::new(events.map(Ok::<_, Infallible>));
    events.keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}

/// Submits a request to the engine.
pub(super) async fn begin(app: &App, served: &Arc<Served>, caller: Caller, asked: Asked) -> Result<Followed, ApiError> {
    let Asked {
        prompt,
        parameters,
        room,
        reading,
        shown,
    } = asked;
    let Parameters {
        max_tokens: _,
        sampling,
        stop,
        grammar,
        logprobs,
        answers,
        stream: _,
        include_usage: _,
    } = parameters;
    let constraint = match grammar {
        Some(grammar) => Some(app.prepare(served, move |served| constraint(served, &grammar)).await?),
        None => None,
    };
    if let Some(client) = caller.record.client() {
        client.take_prompt(prompt.len()).map_err(limit_error)?;
    }
    let prompt_tokens = prompt.len();
    let request = Request {
        prompt,
        max_tokens: room,
        sampling,
        stop,
        shown,
        constraint,
        logprobs,
        answers,
        pooling: None,
    };
    let generations = served.engine.submit(request).map_err(|error| {
        if let Some(client) = caller.record.client() {
            client.give_back(prompt_tokens);
        }
        refusal(&error, &app.metrics)
    })?;
    let wording = logprobs.map(|_| Arc::clone(&served.tokenizer));
    let account = Account {
        record: caller.record,
        metrics: Arc::clone(&app.metrics),
    };
    account.charge_prompt(prompt_tokens);
    Ok(Followed::new(
        generations,
        caller.attempt,
        Some(account),
        (wording, reading.as_ref()),
    ))
}

fn constraint(served: &Served, grammar: &Grammar) -> Result<Constraint, ApiError> {
    served.grammars.constraint(grammar).map_err(|error| {
        let message = format!("the answer cannot be held to what was asked for: {error}");
        ApiError::new(Code::InvalidGrammar, message)
    })
}

/// The error of a request that the engine does not take.
pub(super) fn refusal(error: &SubmitError, metrics: &Metrics) -> ApiError {
    match error {
        SubmitError::Full { retry_after } => {
            metrics.requests_refused.inc();
            let message = "too many requests are waiting already; try again later";
            ApiError::new(Code::QueueFull, message).retry_after(*retry_after)
        }
        SubmitError::Ended => shutting_down(),
    }
}

fn shutting_down() -> ApiError {
    ApiError::new(
        Code::ShuttingDown,
        "this server is shutting down; try again, another one will answer",
    )
    .retry_after(Duration::from_secs(1))
}

/// The last word of the engine about a request that it did not finish.
pub(super) fn engine_failure(event: Option<Event>) -> ApiError {
    use crate::engine::EngineError;
    match event {
        Some(Event::Failed(EngineError::Ending)) => shutting_down(),
        Some(Event::Failed(EngineError::Grammar(error))) => ApiError::new(Code::InvalidGrammar, error.to_string()),
        Some(Event::Failed(error)) => ApiError::new(Code::InternalError, error.to_string()),
        _ => ApiError::new(Code::InternalError, "the engine ended before the answer was complete"),
    }
}

/// Where the tokens of a request are booked.
pub(super) struct Account {
    pub(super) record: Arc<Record>,
    pub(super) metrics: Arc<Metrics>,
}

impl Account {
    fn note(&self, kind: TokenKind, tokens: usize) {
        let client = self
            .record
            .client()
            .map(|client| client.name().to_owned())
            .unwrap_or_default();
        let counter = self.metrics.client_tokens.get_or_create(&Used { client, kind }).clone();
        counter.inc_by(tokens as u64);
    }

    /// Notes the tokens of a prompt.
    pub(super) fn charge_prompt(&self, tokens: usize) {
        self.record.prompt(tokens);
        self.note(TokenKind::Prompt, tokens);
    }

    /// Tells the trace what ended the answers.
    fn answered(&self, reasons: &[&'static str], cached_tokens: usize) {
        self.record.span().answered(reasons.iter().copied(), cached_tokens);
    }

    fn charge_answer(&self, tokens: usize) {
        if let Some(client) = self.record.client() {
            client.charge(tokens);
        }
        self.record.completion(tokens);
        self.note(TokenKind::Completion, tokens);
    }
}

/// The answers to a request, whose fate is counted.
pub(super) struct Followed {
    account: Option<Account>,
    /// Tokens of answers that are not finished, which are paid for also when nobody waits for the rest.
    unpaid: Vec<usize>,
    generations: SelectAll<BoxStream<'static, (usize, Event)>>,
    attempt: Attempt,
    /// When the request left the queue; taken when its first token is known.
    started: Option<Arc<OnceLock<Instant>>>,
    /// What ended each answer, once it has ended.
    reasons: Vec<&'static str>,
    answers: usize,
    finished: usize,
    /// Of those that are finished.
    usage: Usage,
    /// What names tokens, when they are asked for.
    wording: Option<Arc<Tokenizer>>,
    tellers: Vec<Teller>,
    /// What was not told yet.
    ready: VecDeque<(usize, Next)>,
}

impl Followed {
    fn new(
        generations: Vec<Generation>,
        attempt: Attempt,
        account: Option<Account>,
        (wording, reading): (Option<Arc<Tokenizer>>, Option<&Reading>),
    ) -> Self {
        attempt.accepted();
        let answers = generations.len();
        let started = generations.first().map(Generation::started);
        let numbered = (0..).zip(generations);
        let numbered = numbered.map(|(index, generation)| generation.map(move |event| (index, event)).boxed());
        Self {
            account,
            unpaid: vec![0; answers],
            generations: stream::select_all(numbered),
            attempt,
            started,
            reasons: vec![""; answers],
            answers,
            finished: 0,
            usage: Usage::default(),
            wording,
            tellers: vec![Teller::new(reading.cloned()); answers],
            ready: VecDeque::new(),
        }
    }

    /// What the answers cost that are finished.
    pub(super) fn cost(&self) -> Cost {
        Cost {
            usage: self.usage,
            reasoning_tokens: self.tellers.iter().map(Teller::reasoning_tokens).sum(),
        }
    }

    /// What happens next to one of the answers. `None`: all are finished.
    pub(super) async fn next(&mut self) -> Result<Option<(usize, Next)>, ApiError> {
        while self.ready.is_empty() {
            if self.finished == self.answers {
                return Ok(None);
            }
            self.listen().await?;
        }
        Ok(self.ready.pop_front())
    }

    /// Takes the next event of the engine.
    async fn listen(&mut self) -> Result<(), ApiError> {
        match self.generations.next().await {
            Some((index, Event::Piece(Piece { text, drawn, tokens }))) => {
                self.note_token();
                self.unpaid[index] += drawn;
                let words = self.wording.as_ref().map(|tokenizer| {
                    let tokens = tokens.iter();
                    tokens.map(|token| AnswerToken::new(token, tokenizer)).collect()
                });
                let parts = self.tellers[index].push(text, drawn, words).into_iter();
                self.ready.extend(parts.map(|part| (index, Next::Part(part))));
                Ok(())
            }
            Some((index, Event::Finished { reason, usage })) => {
                self.finished += 1;
                self.unpaid[index] = 0;
                if let Some(account) = &self.account {
                    account.charge_answer(usage.completion_tokens);
                }
                self.usage = Usage {
                    prompt_tokens: usage.prompt_tokens,
                    // Only the first of several answers reads the prompt.
                    cached_tokens: self.usage.cached_tokens.max(usage.cached_tokens),
                    completion_tokens: self.usage.completion_tokens + usage.completion_tokens,
                };
                // An end token alone has no text.
                self.note_token();
                if self.finished == self.answers {
                    self.attempt.answered();
                }
                let teller = &mut self.tellers[index];
                let parts = teller.finish(self.wording.is_some()).into_iter().map(Next::Part);
                let has_calls = teller.has_calls();
                self.ready.extend(parts.map(|part| (index, part)));
                self.ready.push_back((index, Next::End { reason, has_calls }));
                self.reasons[index] = finish_reason(reason, has_calls);
                if let Some(account) = &self.account
                    && self.finished == self.answers
                {
                    account.answered(&self.reasons, self.usage.cached_tokens);
                }
                Ok(())
            }
            last => {
                self.attempt.failed();
                let error = engine_failure(last.map(|(_, event)| event));
                if let Some(account) = &self.account {
                    account.record.span().failed(error.code().into());
                }
                Err(error)
            }
        }
    }

    /// Notes that there is a token.
    fn note_token(&mut self) {
        self.attempt.token();
        if let (Some(account), Some(started)) = (&self.account, self.started.take()) {
            account.record.span().first_token(started.get().copied());
        }
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        let unpaid = self.unpaid.iter().sum();
        if let Some(account) = &self.account
            && unpaid > 0
        {
            account.charge_answer(unpaid);
        }
    }
}

/// What happens to an answer.
pub(super) enum Next {
    Part(Part),
    End { reason: FinishReason, has_calls: bool },
}

pub(super) async fn collect(mut followed: Followed) -> Result<(Vec<Answer>, Cost), ApiError> {
    let empty = Answer {
        tokens: followed.wording.is_some().then(Vec::new),
        ..Answer::default()
    };
    let mut answers = vec![empty; followed.answers];
    while let Some((index, next)) = followed.next().await? {
        let answer = &mut answers[index];
        match next {
            Next::Part(part) => answer.add(part),
            Next::End { reason, .. } => answer.reason = Some(reason),
        }
    }
    Ok((answers, followed.cost()))
}

/// The events of a stream. Dropping it drops the generations, which cancels the request.
fn events(envelope: Envelope, followed: Followed) -> impl Stream<Item = String> {
    let opening: Vec<String> = (0..followed.answers)
        .filter_map(|index| envelope.opening(index))
        .collect();
    let rest = stream::unfold(Some((envelope, followed)), |state| async move {
        let (envelope, mut followed) = state?;
        let last = match followed.next().await {
            Ok(Some((index, next))) => {
                let line = match next {
                    Next::Part(part) => envelope.part_chunk(index, &part),
                    Next::End { reason, has_calls } => envelope.finish_chunk(index, reason, has_calls),
                };
                return Some((vec![line], Some((envelope, followed))));
            }
            Ok(None) => envelope.usage_chunk(followed.cost()),
            Err(error) => Some(serde_json::to_string(&error.body()).expect("strings are always JSON")),
        };
        Some((last.into_iter().chain(["[DONE]".to_owned()]).collect(), None))
    });
    stream::iter([opening]).chain(rest).flat_map(stream::iter)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Identity;
    use crate::engine::{Admission, Engine, QueueLimits, Sampling, Settings, StepModel, TextStream, Worker};
    use crate::kv::BlockId;
    use crate::metrics::Metrics;
    use crate::model::{Logits, ModelError, StepBatch};
    use crate::status::{Board, Stage};
    use crate::traffic::{Summary, Traffic};
    use std::num::NonZeroUsize;

    /// Fails, or has a bug, in its second step.
    struct Broken {
        steps: usize,
        has_bug: bool,
    }

    impl StepModel for Broken {
        fn forward(&mut self, _: &StepBatch) -> Result<Logits, ModelError> {
            self.steps += 1;
            assert!(!self.has_bug || self.steps < 2, "as the test wants it");
            match self.steps {
                1 => Ok(Logits::new(vec![1.0], 1)),
                _ => Err(ModelError::Tensor("boom".into())),
            }
        }

        fn copy_block(&mut self, _: BlockId, _: BlockId) -> Result<(), ModelError> {
            Ok(())
        }

        fn blocks(&self) -> usize {
            4
        }
    }

    struct Letters;

    impl TextStream for Letters {
        fn push(&mut self, _: u32) -> String {
            "a".to_owned()
        }

        fn finish(&mut self) -> String {
            String::new()
        }
    }

    /// A request for this many tokens to a model that gives one.
    fn ask(traffic: &Arc<Traffic>, max_tokens: usize, has_bug: bool) -> Followed {
        let admission = Arc::new(Admission::new(QueueLimits {
            requests: 1,
            tokens: 10,
            concurrency: 1,
            wait: Duration::from_mins(1),
        }));
        let (engine, commands) = Engine::new(Arc::clone(&admission));
        let settings = Settings::of_tests(1, vec![]);
        let worker = Worker::new(
            Broken { steps: 0, has_bug },
            Box::new(|_: &[u32]| Box::new(Letters)),
            settings,
            (commands, admission),
            Arc::new(Metrics::new("m")),
            Board::new(Identity::default(), Stage::Ready),
        );
        std::thread::spawn(move || worker.run());
        let request = Request {
            prompt: vec![0],
            max_tokens,
            sampling: Sampling::default(),
            stop: vec![],
            shown: vec![],
            constraint: None,
            logprobs: None,
            answers: NonZeroUsize::MIN,
            pooling: None,
        };
        let attempt = Attempt::new(Arc::clone(traffic));
        Followed::new(engine.submit(request).unwrap(), attempt, None, (None, None))
    }

    fn envelope() -> Envelope {
        Envelope {
            kind: Kind::Text,
            id: "id-1".into(),
            created: 7,
            model: "m".into(),
            fingerprint: "fp_x".into(),
            include_usage: false,
        }
    }

    fn counts(summary: Summary) -> (u64, u64, Option<usize>) {
        let first_tokens = summary.time_to_first_token.map(|times| times.count);
        (summary.requests, summary.errors, first_tokens)
    }

    #[tokio::test]
    async fn answers_are_counted_and_so_are_streams_that_end_with_an_error() {
        let traffic = Arc::new(Traffic::default());
        let counted = || counts(traffic.summary(Instant::now()));
        collect(ask(&traffic, 1, false)).await.unwrap();
        assert_eq!(counted(), (1, 0, Some(1)));
        for (has_bug, expected) in [(false, (2, 1, Some(2))), (true, (3, 2, Some(3)))] {
            let events = events(envelope(), ask(&traffic, 5, has_bug));
            assert_eq!(events.count().await, 3, "not a text, an error and the end");
            assert_eq!(counted(), expected);
        }
        assert!(collect(ask(&traffic, 5, false)).await.is_err());
        assert_eq!(counted(), (4, 3, Some(4)));
        // Somebody who goes away after the first text.
        assert!(ask(&traffic, 5, false).next().await.unwrap().is_some());
        assert_eq!(counted(), (4, 3, Some(5)));
    }
}
