//! From a checked request to an answer: submits to the engine, then streams or collects.

use super::answer::{Envelope, Kind};
use super::parameters::Parameters;
use crate::context::{random_id, unix_seconds};
use crate::engine::{Event, FinishReason, Generation, Request, SubmitError, Usage};
use crate::server::error::{ApiError, Code};
use crate::server::{App, Served};
use axum::http::header::CONTENT_TYPE;
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::{Stream, StreamExt, stream};
use std::convert::Infallible;
use std::time::Duration;

/// A comment is sent when nothing else was for this long, so that nobody in between gives up during a long prompt.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Answers a prompt of tokens.
pub(super) async fn answer(
    app: &App,
    served: &Served,
    kind: Kind,
    prompt: Vec<u32>,
    (parameters, max_tokens): (Parameters, usize),
) -> Result<Response, ApiError> {
    let Parameters {
        max_tokens: _,
        sampling,
        stop,
        stream,
        include_usage,
    } = parameters;
    let request = Request {
        prompt,
        max_tokens,
        sampling,
        stop,
    };
    let generation = served.engine.submit(request).map_err(|error| {
        if matches!(error, SubmitError::Full { .. }) {
            app.metrics.requests_refused.inc();
        }
        refusal(&error)
    })?;
    let envelope = Envelope {
        kind,
        id: random_id(kind.id_prefix()),
        created: unix_seconds(),
        model: served.name.clone(),
        fingerprint: served.fingerprint.clone(),
        include_usage,
    };
    if stream {
        let events = events(envelope, generation).map(Ok::<_, Infallible>);
        return Ok(Sse::new(events)
            .keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
            .into_response());
    }
    let (text, reason, usage) = collect(generation).await?;
    let body = envelope.whole(&text, reason, usage);
    Ok(([(CONTENT_TYPE, "application/json")], body).into_response())
}

fn refusal(error: &SubmitError) -> ApiError {
    match error {
        SubmitError::Full { retry_after } => ApiError::new(
            Code::QueueFull,
            "too many requests are waiting already; try again later",
        )
        .retry_after(*retry_after),
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
fn engine_failure(event: Option<Event>) -> ApiError {
    use crate::engine::EngineError;
    match event {
        Some(Event::Failed(EngineError::Ending)) => shutting_down(),
        Some(Event::Failed(error)) => ApiError::new(Code::InternalError, error.to_string()),
        _ => ApiError::new(Code::InternalError, "the engine ended before the answer was complete"),
    }
}

async fn collect(mut generation: Generation) -> Result<(String, FinishReason, Usage), ApiError> {
    let mut text = String::new();
    loop {
        match generation.next().await {
            Some(Event::Text(piece)) => text.push_str(&piece),
            Some(Event::Finished { reason, usage }) => return Ok((text, reason, usage)),
            last => return Err(engine_failure(last)),
        }
    }
}

/// The events of a stream. Dropping it drops the generation, which cancels the request.
fn events(envelope: Envelope, generation: Generation) -> impl Stream<Item = SseEvent> {
    let opening: Vec<String> = envelope.opening().into_iter().collect();
    let rest = stream::unfold(Some((envelope, generation)), |state| async move {
        let (envelope, mut generation) = state?;
        let (lines, is_last) = match generation.next().await {
            Some(Event::Text(text)) => (vec![envelope.text_chunk(&text)], false),
            Some(Event::Finished { reason, usage }) => {
                let mut lines = vec![envelope.finish_chunk(reason)];
                lines.extend(envelope.usage_chunk(usage));
                (lines, true)
            }
            last => {
                let error = engine_failure(last);
                let line = serde_json::to_string(&error.body()).expect("strings are always JSON");
                (vec![line], true)
            }
        };
        let lines = if is_last {
            lines.into_iter().chain(std::iter::once("[DONE]".to_owned())).collect()
        } else {
            lines
        };
        Some((lines, (!is_last).then_some((envelope, generation))))
    });
    stream::iter([opening])
        .chain(rest)
        .flat_map(stream::iter)
        .map(|line| SseEvent::default().data(line))
}
