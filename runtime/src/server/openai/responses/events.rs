//! The events of a response that is streamed.

use super::super::answer::{Answer, Call, Cost, Part, Said};
use super::super::generate::{Followed, Next};
use super::wire::{self, Frame};
use crate::context::random_id;
use crate::engine::FinishReason;
use crate::server::error::ApiError;
use axum::response::sse::Event;
use futures::{Stream, StreamExt as _, stream};
use serde_json::{Value, json};

/// The events of a response. Dropping it cancels the request.
pub(super) fn events(frame: Frame, followed: Followed) -> impl Stream<Item = Event> {
    let mut teller = Teller::new(frame);
    let opening = teller.open();
    let rest = stream::unfold(Some((teller, followed)), |state| async move {
        let (mut teller, mut followed) = state?;
        match followed.next().await {
            Ok(Some((_, Next::Part(part)))) => Some((teller.part(part), Some((teller, followed)))),
            Ok(Some((_, Next::End { reason, .. }))) => {
                teller.reason = Some(reason);
                Some((teller.close(), Some((teller, followed))))
            }
            Ok(None) => Some((teller.end(followed.cost()), None)),
            Err(error) => Some((teller.fail(&error), None)),
        }
    });
    stream::iter([opening]).chain(rest).flat_map(stream::iter)
}

/// An item that is being told.
enum Open {
    Reasoning { id: String, text: String },
    Message { id: String, text: String },
    Call { id: String, call: Call },
}

/// Tells one response.
struct Teller {
    frame: Frame,
    sequence: u64,
    /// Items that are complete.
    done: Vec<Value>,
    open: Option<Open>,
    reason: Option<FinishReason>,
}

impl Teller {
    fn new(frame: Frame) -> Self {
        Self {
            frame,
            sequence: 0,
            done: Vec::new(),
            open: None,
            reason: None,
        }
    }

    fn event(&mut self, kind: &str, mut body: Value) -> Event {
        body["type"] = kind.into();
        body["sequence_number"] = self.sequence.into();
        self.sequence += 1;
        Event::default().event(kind).data(body.to_string())
    }

    fn open(&mut self) -> Vec<Event> {
        let response = self.frame.response(&[], None, None);
        let body = json!({"response": response});
        vec![
            self.event("response.created", body.clone()),
            self.event("response.in_progress", body),
        ]
    }

    /// The place of the item that is being told.
    fn index(&self) -> usize {
        self.done.len()
    }

    fn part(&mut self, part: Part) -> Vec<Event> {
        match part.said {
            Said::Text(text) if text.is_empty() => vec![],
            Said::Text(text) => {
                let mut events = self.begin(&Said::Text(String::new()));
                if let Some(Open::Message { id, text: all }) = &mut self.open {
                    all.push_str(&text);
                    let id = id.clone();
                    let body = json!({"item_id": id, "output_index": self.index(), "content_index": 0, "delta": text, "logprobs": []});
                    events.push(self.event("response.output_text.delta", body));
                }
                events
            }
            Said::Reasoning(text) => {
                let mut events = self.begin(&Said::Reasoning(String::new()));
                if let Some(Open::Reasoning { id, text: all }) = &mut self.open {
                    all.push_str(&text);
                    let id = id.clone();
                    let body = json!({"item_id": id, "output_index": self.index(), "content_index": 0, "delta": text});
                    events.push(self.event("response.reasoning_text.delta", body));
                }
                events
            }
            Said::Arguments { text, .. } => {
                let Some(Open::Call { id, call }) = &mut self.open else {
                    return vec![];
                };
                call.arguments.push_str(&text);
                let id = id.clone();
                let body = json!({"item_id": id, "output_index": self.index(), "delta": text});
                vec![self.event("response.function_call_arguments.delta", body)]
            }
            call @ Said::Call { .. } => self.begin(&call),
        }
    }

    /// Begins an item of this kind, unless it is the one that is being told.
    fn begin(&mut self, said: &Said) -> Vec<Event> {
        match (said, &self.open) {
            (Said::Text(_), Some(Open::Message { .. })) | (Said::Reasoning(_), Some(Open::Reasoning { .. })) => {
                return vec![];
            }
            _ => {}
        }
        let mut events = self.close();
        let (open, item, first_part) = match said {
            Said::Reasoning(_) => {
                let id = random_id("rs_");
                let item = wire::reasoning(&id, "in_progress", None);
                let text = String::new();
                (
                    Open::Reasoning { id, text },
                    item,
                    Some(json!({"type": "reasoning_text", "text": ""})),
                )
            }
            Said::Text(_) | Said::Arguments { .. } => {
                let id = random_id("msg_");
                let item = wire::message(&id, "in_progress", None);
                let text = String::new();
                (Open::Message { id, text }, item, Some(wire::text_part("")))
            }
            Said::Call { id: call_id, name, .. } => {
                let id = random_id("fc_");
                let call = Call {
                    id: call_id.clone(),
                    name: name.clone(),
                    arguments: String::new(),
                };
                let item = wire::call(&id, "in_progress", &call);
                (Open::Call { id, call }, item, None)
            }
        };
        self.open = Some(open);
        let index = self.index();
        let id = item["id"].clone();
        events.push(self.event(
            "response.output_item.added",
            json!({"output_index": index, "item": item}),
        ));
        if let Some(part) = first_part {
            let body = json!({"item_id": id, "output_index": index, "content_index": 0, "part": part});
            events.push(self.event("response.content_part.added", body));
        }
        events
    }

    /// Completes the item that is being told.
    fn close(&mut self) -> Vec<Event> {
        let Some(open) = self.open.take() else {
            return vec![];
        };
        let (index, status) = (self.index(), wire::status(self.reason));
        let mut events = Vec::new();
        let item = match open {
            Open::Reasoning { id, text } => {
                let part = json!({"type": "reasoning_text", "text": text});
                let done = json!({"item_id": id, "output_index": index, "content_index": 0, "text": text});
                events.push(self.event("response.reasoning_text.done", done));
                let body = json!({"item_id": id, "output_index": index, "content_index": 0, "part": part});
                events.push(self.event("response.content_part.done", body));
                wire::reasoning(&id, status, Some(&text))
            }
            Open::Message { id, text } => {
                let done =
                    json!({"item_id": id, "output_index": index, "content_index": 0, "text": text, "logprobs": []});
                events.push(self.event("response.output_text.done", done));
                let body =
                    json!({"item_id": id, "output_index": index, "content_index": 0, "part": wire::text_part(&text)});
                events.push(self.event("response.content_part.done", body));
                wire::message(&id, status, Some(&text))
            }
            Open::Call { id, call } => {
                let done =
                    json!({"item_id": id, "output_index": index, "name": call.name, "arguments": call.arguments});
                events.push(self.event("response.function_call_arguments.done", done));
                wire::call(&id, status, &call)
            }
        };
        events.push(self.event(
            "response.output_item.done",
            json!({"output_index": index, "item": item}),
        ));
        self.done.push(item);
        events
    }

    fn end(&mut self, cost: Cost) -> Vec<Event> {
        if self.done.is_empty() {
            // An answer without a word.
            self.done = wire::output(&Answer {
                reason: self.reason,
                ..Answer::default()
            });
        }
        let response = self.frame.response(&self.done, self.reason, Some(cost));
        let kind = match self.reason {
            Some(FinishReason::Length) => "response.incomplete",
            _ => "response.completed",
        };
        vec![self.event(kind, json!({"response": response}))]
    }

    /// The response has failed in the middle.
    fn fail(&mut self, error: &ApiError) -> Vec<Event> {
        let body = serde_json::to_value(error.body()).unwrap_or_default();
        let mut response = self.frame.response(&self.done, None, None);
        response["status"] = "failed".into();
        response["error"] = json!({"code": body["error"]["code"], "message": body["error"]["message"]});
        vec![self.event("response.failed", json!({"response": response}))]
    }
}
