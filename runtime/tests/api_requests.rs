//! The API with the real model: answers, streams, stopping, cancelling, and what the pages say meanwhile.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod serving;

use futures::StreamExt;
use reqwest::Response;
use serde_json::{Value, json};
use serving::{NAME, Process, client, events, question, streamed_text};
use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// One server for all tests, and one test at a time, so that counters can be compared. It ends with this process.
static SERVER: Mutex<Option<Process>> = Mutex::new(None);

struct Shared(MutexGuard<'static, Option<Process>>);

impl Shared {
    fn take() -> Self {
        let mut guard = SERVER.lock().unwrap_or_else(PoisonError::into_inner);
        guard.get_or_insert_with(|| {
            Process::ready(&["--max-context=2048", "--max-concurrency=4", "--max-queue-wait=1h"])
        });
        Self(guard)
    }

    fn process(&self) -> &Process {
        self.0.as_ref().unwrap()
    }

    async fn post(&self, path: &str, body: &Value) -> Response {
        client().post(self.process().api(path)).json(body).send().await.unwrap()
    }

    async fn chat(&self, body: &Value) -> Value {
        let response = self.post("/v1/chat/completions", body).await;
        assert_eq!(response.status(), 200);
        response.json().await.unwrap()
    }

    async fn status(&self) -> Value {
        self.process().status().await
    }

    async fn becomes_idle(&self) {
        self.process().becomes_idle().await;
    }

    async fn metrics(&self) -> String {
        client()
            .get(self.process().admin("/metrics"))
            .send()
            .await
            .unwrap()
            .text()
            .await
            .unwrap()
    }

    async fn metric(&self, name: &str) -> f64 {
        let text = self.metrics().await;
        let line = text.lines().find(|line| line.starts_with(&format!("{name}{{")));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok())
            .unwrap_or_else(|| panic!("no {name} in\n{text}"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn model_is_listed_with_its_digest() {
    let server = Shared::take();
    let list = serving::get(server.process().api("/v1/models")).await;
    let status = server.status().await;
    assert_eq!(list["data"][0]["id"], NAME);
    assert_eq!(list["data"][0]["digest"], status["servedDigest"]);
    assert_eq!(status["stage"], "Ready");
    assert_eq!(status["model"]["architecture"], "llama");
    assert_eq!(status["model"]["contextLength"], 2048);
    assert!(status["performance"]["decodeTokensPerSecond"].as_f64().unwrap() > 0.0);
    let one = client()
        .get(server.process().api("/v1/models/smol"))
        .send()
        .await
        .unwrap();
    assert_eq!(one.json::<Value>().await.unwrap(), list["data"][0]);
    let other = client()
        .get(server.process().api("/v1/models/org/other"))
        .send()
        .await
        .unwrap();
    assert_eq!(other.status(), 404);
    assert_eq!(other.json::<Value>().await.unwrap()["error"]["code"], "model_not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn answer_has_text_usage_reason_and_fingerprint() {
    let server = Shared::take();
    let answer = server
        .chat(&question("What is a ship?", &json!({"max_tokens": 12})))
        .await;
    assert!(
        !answer["choices"][0]["message"]["content"].as_str().unwrap().is_empty(),
        "{answer}"
    );
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["usage"]["completion_tokens"], 12);
    let prompt = answer["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(answer["usage"]["total_tokens"], prompt + 12);
    let digest = server.status().await["servedDigest"].as_str().unwrap()["sha256:".len()..][..12].to_owned();
    assert!(answer["system_fingerprint"].as_str().unwrap().contains(&digest));
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
}

#[tokio::test(flavor = "multi_thread")]
async fn stream_says_what_the_whole_answer_says() {
    let server = Shared::take();
    let whole = server
        .chat(&question("Count to five.", &json!({"max_tokens": 24})))
        .await;
    let body = question(
        "Count to five.",
        &json!({"max_tokens": 24, "stream": true, "stream_options": {"include_usage": true}}),
    );
    let response = server.post("/v1/chat/completions", &body).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let events = events(&response.text().await.unwrap());
    assert_eq!(events.last().unwrap(), "[DONE]");
    assert_eq!(
        streamed_text(&events),
        whole["choices"][0]["message"]["content"].as_str().unwrap()
    );
    let usage: Value = serde_json::from_str(&events[events.len() - 2]).unwrap();
    assert_eq!(usage["usage"]["total_tokens"], whole["usage"]["total_tokens"]);
    let finish: Value = serde_json::from_str(&events[events.len() - 3]).unwrap();
    assert_eq!(
        finish["choices"][0]["finish_reason"],
        whole["choices"][0]["finish_reason"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn seed_repeats_an_answer() {
    let server = Shared::take();
    let ask = |seed: u64| {
        question(
            "Tell me a story.",
            &json!({"temperature": 1.2, "seed": seed, "max_tokens": 24}),
        )
    };
    // From now on the same blocks of the prompt are there: where it is cut decides how numbers are rounded.
    server.chat(&ask(5)).await;
    let one = server.chat(&ask(5)).await;
    let again = server.chat(&ask(5)).await;
    let other = server.chat(&ask(6)).await;
    let text = |answer: &Value| answer["choices"][0]["message"]["content"].clone();
    assert_eq!(text(&one), text(&again));
    assert_ne!(text(&one), text(&other));
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_string_ends_an_answer_and_is_not_part_of_it() {
    let server = Shared::take();
    let free = server
        .chat(&question("Tell me about the sea.", &json!({"max_tokens": 16})))
        .await;
    let text = free["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    // A piece from the middle, that begins and ends within words: it lies across the borders of tokens.
    let letters: Vec<char> = text.chars().collect();
    let stop: String = letters[letters.len() / 2..letters.len() / 2 + 4].iter().collect();
    let stopped = server
        .chat(&question(
            "Tell me about the sea.",
            &json!({"max_tokens": 16, "stop": ["never occurs", stop]}),
        ))
        .await;
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    let expected = text.split(&stop).next().unwrap();
    assert_eq!(stopped["choices"][0]["message"]["content"], expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_completion_continues_text_and_tokens() {
    let server = Shared::take();
    let body = json!({"model": NAME, "prompt": "One, two, three,", "max_tokens": 8, "temperature": 0});
    let answer: Value = server.post("/v1/completions", &body).await.json().await.unwrap();
    assert_eq!(answer["object"], "text_completion");
    assert_eq!(answer["usage"]["completion_tokens"], 8);
    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    let response = server.post("/v1/completions", &streamed).await;
    let text: String = events(&response.text().await.unwrap())
        .iter()
        .filter_map(|event| serde_json::from_str::<Value>(event).ok())
        .filter_map(|chunk| chunk["choices"][0]["text"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(answer["choices"][0]["text"], text);
    let tokens = json!({"model": NAME, "prompt": [[1, 2, 3]], "max_tokens": 1});
    let answer: Value = server.post("/v1/completions", &tokens).await.json().await.unwrap();
    assert_eq!(answer["usage"]["prompt_tokens"], 3);
    let outside = json!({"model": NAME, "prompt": [4_000_000], "max_tokens": 1});
    assert_eq!(server.post("/v1/completions", &outside).await.status(), 400);
}

/// The tensor library rounds differently for other numbers of rows, so a close decision may fall otherwise in company:
/// only how the answers begin is compared.
#[tokio::test(flavor = "multi_thread")]
async fn requests_at_the_same_time_get_the_answers_that_they_get_alone() {
    let server = Shared::take();
    let questions = ["What is water?", "Who was Isaac Newton?", "Who are you?"];
    let beginning = async |text: &str| {
        let answer = server.chat(&question(text, &json!({"max_tokens": 3}))).await;
        answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    };
    let mut alone = Vec::new();
    for text in questions {
        alone.push(beginning(text).await);
    }
    assert!(alone[0] != alone[1] && alone[1] != alone[2], "{alone:?}");
    assert_eq!(futures::future::join_all(questions.map(beginning)).await, alone);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_answers_read_their_prompt_once_and_go_their_own_ways() {
    let shared = Shared::take();
    let ask = |more: Value| question("Tell me about sails, ships and the wind over the sea.", &more);
    let alone = shared.chat(&ask(json!({"max_tokens": 12, "temperature": 0}))).await;
    let before = shared.metric("escadre_prompt_tokens_total").await;
    let three = shared
        .chat(&ask(json!({"max_tokens": 12, "temperature": 0, "n": 3})))
        .await;
    let texts: Vec<&Value> = (0..3)
        .map(|index| &three["choices"][index]["message"]["content"])
        .collect();
    assert_eq!(
        texts, [&alone["choices"][0]["message"]["content"]; 3],
        "a copy of the cache is not the same"
    );
    let prompt = alone["usage"]["prompt_tokens"].as_f64().unwrap();
    assert!((shared.metric("escadre_prompt_tokens_total").await - before - prompt).abs() < 0.5);
    let drawn = alone["usage"]["completion_tokens"].as_u64().unwrap();
    assert_eq!(three["usage"]["completion_tokens"].as_u64(), Some(3 * drawn));

    let body = ask(json!({"max_tokens": 12, "temperature": 1.5, "seed": 4, "n": 3}));
    let choices = shared.chat(&body).await["choices"].clone();
    let texts: BTreeSet<&str> = (0..3)
        .filter_map(|index| choices[index]["message"]["content"].as_str())
        .collect();
    assert_eq!(texts.len(), 3, "{choices}");
    shared.becomes_idle().await;
    assert_eq!(shared.status().await["memory"]["kvCacheBytes"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn client_that_goes_away_ends_its_request() {
    let server = Shared::take();
    let before = server.metric("escadre_requests_cancelled_total").await;
    for stream in [true, false] {
        let body = question(
            "Write a very long story.",
            &json!({"max_tokens": 1500, "stream": stream, "logit_bias": {}}),
        );
        let request = client()
            .post(server.process().api("/v1/chat/completions"))
            .json(&body)
            .send();
        if stream {
            let mut parts = request.await.unwrap().bytes_stream();
            parts.next().await.unwrap().unwrap();
        } else {
            let _ = tokio::time::timeout(Duration::from_millis(500), request).await;
        }
    }
    server.becomes_idle().await;
    assert!(server.metric("escadre_requests_cancelled_total").await >= before + 1.0);
    assert_eq!(server.status().await["memory"]["kvCacheBytes"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn full_queue_is_429_with_a_time_to_come_back() {
    let server = Shared::take();
    let body = question("Write a very long story.", &json!({"max_tokens": 1500, "stream": true}));
    let flood = (0..75).map(|_| server.post("/v1/chat/completions", &body));
    let answers = futures::future::join_all(flood).await;
    let (taken, refused): (Vec<Response>, Vec<Response>) =
        answers.into_iter().partition(|answer| answer.status() == 200);
    assert_eq!(taken.len() + refused.len(), 75);
    assert!(!refused.is_empty() && taken.len() >= 64, "{} were taken", taken.len());
    for answer in refused {
        assert_eq!(answer.status(), 429);
        assert!(
            answer.headers()["retry-after"]
                .to_str()
                .unwrap()
                .parse::<u64>()
                .unwrap()
                >= 1
        );
        assert_eq!(answer.json::<Value>().await.unwrap()["error"]["code"], "queue_full");
    }
    drop(taken);
    server.becomes_idle().await;
    let after = server.chat(&question("Hi", &json!({"max_tokens": 1}))).await;
    assert_eq!(after["usage"]["completion_tokens"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_tell_what_was_done() {
    let server = Shared::take();
    server.chat(&question("Hi", &json!({"max_tokens": 3}))).await;
    assert!(server.metric("vllm:generation_tokens_total").await >= 3.0);
    assert!(server.metric("vllm:time_to_first_token_seconds_count").await >= 1.0);
    assert!(server.metric("vllm:request_prompt_tokens_count").await >= 1.0);
    assert!(server.metric("vllm:request_decode_time_seconds_count").await >= 1.0);
    assert!(server.metric("vllm:cache_config_info").await >= 1.0);
    let text = server.metrics().await;
    assert!(
        text.contains("escadre_http_requests_total{model_name=\"smol\",route=\"ChatCompletions\",code=\"200\"}"),
        "{text}"
    );
    for page in ["/livez", "/readyz", "/startupz"] {
        let answer = client().get(server.process().admin(page)).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{page}");
    }
    let memory = &server.status().await["memory"];
    assert!(
        memory["residentBytes"].as_u64().unwrap() > memory["weightsBytes"].as_u64().unwrap() / 2,
        "{memory}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn status_tells_how_requests_went() {
    let server = Shared::take();
    let traffic = async || server.status().await["traffic"].clone();
    let requests = |traffic: &Value| traffic["requests"].as_u64().unwrap();
    let before = traffic().await;
    server.chat(&question("Hi", &json!({"max_tokens": 2}))).await;
    let stream = question("Hi", &json!({"max_tokens": 2, "stream": true}));
    server.post("/v1/chat/completions", &stream).await.text().await.unwrap();
    // Neither is about the model: a mistake of the client, and a client that goes away.
    let wrong = server.post("/v1/chat/completions", &json!({"model": NAME})).await;
    assert_eq!(wrong.status(), 400);
    let long = question("Write a very long story.", &json!({"max_tokens": 1500, "stream": true}));
    let answer = server.post("/v1/chat/completions", &long).await;
    answer.bytes_stream().next().await.unwrap().unwrap();
    server.becomes_idle().await;
    let after = traffic().await;
    assert_eq!(requests(&after), requests(&before) + 2, "{after}");
    assert_eq!(after["errors"], 0);
    let times = &after["timeToFirstToken"];
    assert!(times["count"].as_u64().unwrap() >= 2, "{times}");
    let (p50, p90) = (times["p50Seconds"].as_f64(), times["p90Seconds"].as_f64());
    assert!(p50 > Some(0.0) && p90 >= p50, "{times}");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_found_again_by_their_identifiers_and_models_by_their_aliases() {
    let mut process = serving::Process::ready(&["--max-context=256", "--alias=gpt-4o", "--alias=llama"]);
    let body = question("a secret word", &json!({"max_tokens": 3, "model": "gpt-4o"}));
    let request = client()
        .post(process.api("/v1/chat/completions"))
        .header("x-request-id", "order-66")
        .header("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    let response = request.json(&body).send().await.unwrap();
    assert_eq!(response.headers()["x-request-id"], "order-66");
    let answer: Value = response.json().await.unwrap();
    assert_eq!(answer["model"], NAME, "{answer}");
    let line: Value = serde_json::from_str(&process.wait_for_line("order-66")).unwrap();
    for (name, value) in [
        ("message", json!("request")),
        ("trace_id", json!("4bf92f3577b34da6a3ce929d0e0e4736")),
        ("path", json!("/v1/chat/completions")),
        ("status", json!(200)),
        ("completion_tokens", json!(3)),
        ("prompt_tokens", answer["usage"]["prompt_tokens"].clone()),
    ] {
        assert_eq!(line[name], value, "{line}");
    }
    assert!(!line.to_string().contains("secret"), "{line}");
    // Whoever goes away before the end is in the log, too.
    let mut streamed = question("Go on.", &json!({"max_tokens": 200, "stream": true}));
    streamed["model"] = "llama".into();
    let stream = client()
        .post(process.api("/v1/chat/completions"))
        .json(&streamed)
        .send()
        .await
        .unwrap();
    let id = stream.headers()["x-request-id"].to_str().unwrap().to_owned();
    assert!(id.starts_with("req_"), "{id}");
    drop(stream);
    let line: Value = serde_json::from_str(&process.wait_for_line(&id)).unwrap();
    assert_eq!(line["message"], "request given up");
    let list = serving::get(process.api("/v1/models")).await;
    let names: Vec<&Value> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| &model["id"])
        .collect();
    assert_eq!(names, [NAME, "gpt-4o", "llama"]);
    assert_eq!(list["data"][1]["root"], NAME);
}
