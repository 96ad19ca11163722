//! A small client of the OpenAI API: what applications would send, and the streamed answer piece by piece.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};

/// An HTTP client that uses no proxy.
pub fn plain_client() -> Result<reqwest::Client> {
    // Fails only when another part of the program was first, which is as good.
    let _installed_before = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .no_proxy()
        .connect_timeout(Duration::from_secs(5))
        .build()
        .context("could not make an HTTP client")
}

/// A client of one server.
#[derive(Debug, Clone)]
pub struct OpenAi {
    http: reqwest::Client,
    base: String,
}

/// A complete streamed answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Streamed {
    /// The pieces of text, in order.
    pub pieces: Vec<String>,
    /// Why it ended: `stop`, `length`.
    pub finish_reason: Option<String>,
    /// Whether the closing `[DONE]` came.
    pub done: bool,
    /// The field `usage`, if it was asked for.
    pub usage: Option<Value>,
}

impl Streamed {
    /// The whole text.
    pub fn text(&self) -> String {
        self.pieces.concat()
    }
}

impl OpenAi {
    /// A client of the server at `base`, such as `http://127.0.0.1:8080`.
    pub fn new(base: &str) -> Result<Self> {
        Ok(Self {
            http: plain_client()?,
            base: base.trim_end_matches('/').to_owned(),
        })
    }

    /// Another way to send its requests: with a key, or over TLS.
    #[must_use]
    pub fn sending(self, http: reqwest::Client) -> Self {
        Self { http, ..self }
    }

    /// Names of the served models.
    pub async fn models(&self) -> Result<Vec<String>> {
        let answer = self
            .http
            .get(format!("{}/v1/models", self.base))
            .send()
            .await
            .context("could not ask for models")?;
        let body: Value = ok(answer)
            .await?
            .json()
            .await
            .context("the list of models is not JSON")?;
        Ok(body["data"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|model| Some(model["id"].as_str()?.to_owned()))
            .collect())
    }

    /// A whole answer to one user message; further fields of the request come from `more`.
    pub async fn chat(&self, model: &str, content: &str, more: &Value) -> Result<Value> {
        let answer = self
            .post("/v1/chat/completions", &chat_request(model, content, more))
            .await?;
        ok(answer).await?.json().await.context("the answer is not JSON")
    }

    /// A streamed answer to one user message, collected to its end.
    pub async fn chat_streamed(&self, model: &str, content: &str, more: &Value) -> Result<Streamed> {
        let mut request = chat_request(model, content, more);
        request["stream"] = json!(true);
        let answer = ok(self.post("/v1/chat/completions", &request).await?).await?;
        let mut streamed = Streamed::default();
        let mut events = std::pin::pin!(events(answer));
        while let Some(event) = events.next().await {
            let event = event?;
            if event == "[DONE]" {
                streamed.done = true;
                continue;
            }
            take(
                &serde_json::from_str(&event).with_context(|| format!("an event is not JSON: {event}"))?,
                &mut streamed,
            )?;
        }
        Ok(streamed)
    }

    /// Any request with a JSON body; the answer as it is, whatever its status.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Response> {
        self.http
            .post(format!("{}{path}", self.base))
            .json(body)
            .send()
            .await
            .with_context(|| format!("could not send to {path}"))
    }

    /// Any request with any body.
    pub async fn post_bytes(&self, path: &str, body: Vec<u8>) -> Result<Response> {
        self.http
            .post(format!("{}{path}", self.base))
            .header("content-type", "application/json")
            .body(body)
            .send()
            .await
            .with_context(|| format!("could not send to {path}"))
    }
}

fn chat_request(model: &str, content: &str, more: &Value) -> Value {
    let mut request = json!({"model": model, "messages": [{"role": "user", "content": content}]});
    for (name, value) in more.as_object().into_iter().flatten() {
        request[name] = value.clone();
    }
    request
}

fn take(event: &Value, streamed: &mut Streamed) -> Result<()> {
    if let Some(error) = event.get("error").filter(|error| !error.is_null()) {
        bail!("the stream ended with an error: {error}");
    }
    if let Some(usage) = event.get("usage").filter(|usage| !usage.is_null()) {
        streamed.usage = Some(usage.clone());
    }
    let choice = &event["choices"][0];
    if let Some(text) = choice["delta"]["content"].as_str().filter(|text| !text.is_empty()) {
        streamed.pieces.push(text.to_owned());
    }
    if let Some(reason) = choice["finish_reason"].as_str() {
        streamed.finish_reason = Some(reason.to_owned());
    }
    Ok(())
}

async fn ok(answer: Response) -> Result<Response> {
    let status = answer.status();
    if status == StatusCode::OK {
        return Ok(answer);
    }
    let body = answer.text().await.unwrap_or_default();
    bail!("the server answered {status}: {body}")
}

/// The data of each server-sent event of a body, as it comes.
pub fn events(answer: Response) -> impl Stream<Item = Result<String>> {
    let bytes = answer.bytes_stream().map_err(anyhow::Error::from).boxed();
    futures::stream::try_unfold((bytes, Vec::<u8>::new()), |(mut bytes, mut buffer)| async move {
        loop {
            if let Some((event, rest)) = split_event(&buffer) {
                let data = data_of(event)?;
                buffer = rest.to_vec();
                if let Some(data) = data {
                    return Ok(Some((data, (bytes, buffer))));
                }
                continue;
            }
            match bytes.try_next().await.context("the stream broke")? {
                Some(piece) => buffer.extend_from_slice(&piece),
                None if buffer.iter().all(u8::is_ascii_whitespace) => return Ok(None),
                None => bail!("the stream ended inside an event"),
            }
        }
    })
}

/// Splits after the first empty line.
fn split_event(buffer: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = |pattern: &[u8]| {
        buffer
            .windows(pattern.len())
            .position(|window| window == pattern)
            .map(|at| (at, pattern.len()))
    };
    let (end, length) = [at(b"\n\n"), at(b"\r\n\r\n")].into_iter().flatten().min()?;
    Some((&buffer[..end], &buffer[end + length..]))
}

/// The `data` lines of an event, joined; `None` for a comment.
fn data_of(event: &[u8]) -> Result<Option<String>> {
    let text = std::str::from_utf8(event).context("an event is not UTF-8")?;
    let lines: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("data:"))
        .map(|data| data.strip_prefix(' ').unwrap_or(data))
        .collect();
    Ok((!lines.is_empty()).then(|| lines.join("\n")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_split_at_empty_lines() {
        assert_eq!(split_event(b"data: a\n\nrest"), Some((&b"data: a"[..], &b"rest"[..])));
        assert_eq!(split_event(b"data: a\r\n\r\n"), Some((&b"data: a"[..], &b""[..])));
        assert_eq!(split_event(b"data: a\n"), None);
    }

    #[test]
    fn data_lines_are_joined_and_comments_skipped() {
        assert_eq!(data_of(b"data: a\ndata: b").unwrap().as_deref(), Some("a\nb"));
        assert_eq!(data_of(b": keep alive").unwrap(), None);
    }
}
