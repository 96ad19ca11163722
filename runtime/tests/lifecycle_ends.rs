//! How the process ends when it is asked to: nobody's request is lost.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod serving;

use futures::StreamExt;
use serde_json::json;
use serving::{Process, client, events, model, question, streamed_text};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const CHAT: &str = "/v1/chat/completions";
/// Long enough for every step of a test, short enough to wait for.
const DELAY: &str = "--endpoint-delay=3s";

/// Sends a request over a connection of its own and reads the whole answer's head.
fn ask(stream: &mut TcpStream, path: &str) -> String {
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    read_answer(stream)
}

fn read_answer(stream: &mut TcpStream) -> String {
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut text = Vec::new();
    let mut part = [0; 4096];
    loop {
        let read = stream.read(&mut part).expect("the connection broke");
        text.extend_from_slice(&part[..read]);
        let answer = String::from_utf8_lossy(&text);
        let length = answer
            .to_lowercase()
            .split("content-length: ")
            .nth(1)
            .and_then(|rest| rest.split("\r\n").next()?.parse::<usize>().ok());
        let complete = answer
            .split_once("\r\n\r\n")
            .is_some_and(|(_, body)| length.is_some_and(|length| body.len() >= length));
        if read == 0 || complete {
            return answer.into_owned();
        }
    }
}

fn asks_to_close(answer: &str) -> bool {
    answer.to_lowercase().contains("\r\nconnection: close\r\n")
}

async fn decode_speed(process: &Process) -> f64 {
    process.status().await["performance"]["decodeTokensPerSecond"]
        .as_f64()
        .unwrap()
}

async fn probe(process: &Process, page: &str) -> u16 {
    client()
        .get(process.admin(page))
        .send()
        .await
        .unwrap()
        .status()
        .as_u16()
}

#[tokio::test(flavor = "multi_thread")]
async fn ending_server_serves_everybody_until_endpoints_are_updated_and_finishes_streams() {
    let mut process = Process::ready(&[DELAY, "--drain-timeout=60s"]);
    // About five seconds of answer, so that it goes on when the delay is over.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
    let tokens = (decode_speed(&process).await * 5.0).clamp(8.0, 400.0) as u64;
    let body = question("Tell me a long story.", &json!({"max_tokens": tokens, "stream": true}));
    let request = client().post(process.api(CHAT)).json(&body);
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let mut stream = answer.bytes_stream();
    let mut text = String::from_utf8(stream.next().await.unwrap().unwrap().to_vec()).unwrap();
    let mut idle = TcpStream::connect(("127.0.0.1", process.port)).unwrap();
    assert!(!asks_to_close(&ask(&mut idle, "/v1/models")));

    process.terminate();
    process.wait_for_line("still accepting");
    assert_eq!(probe(&process, "/readyz").await, 200);
    let status: serde_json::Value = client()
        .get(process.admin("/status"))
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(status["stage"], "Draining");
    assert!(status["servedDigest"].is_string());
    // A connection that was idle, and one that is new: both are served, and told not to come back.
    let answer = ask(&mut idle, "/v1/models");
    assert!(answer.starts_with("HTTP/1.1 200") && asks_to_close(&answer), "{answer}");
    let mut new = TcpStream::connect(("127.0.0.1", process.port)).unwrap();
    let answer = ask(&mut new, "/v1/models");
    assert!(answer.starts_with("HTTP/1.1 200") && asks_to_close(&answer), "{answer}");
    assert_eq!(
        new.read(&mut [0; 1]).unwrap(),
        0,
        "the connection was not closed in order"
    );
    let still_idle = TcpStream::connect(("127.0.0.1", process.port)).unwrap();

    process.wait_for_line("no longer accepting");
    // The stream that was begun before is finished.
    while let Some(part) = stream.next().await {
        text.push_str(std::str::from_utf8(&part.expect("the stream was cut")).unwrap());
    }
    let events = events(&text);
    assert_eq!(events.last().unwrap(), "[DONE]");
    assert!(!streamed_text(&events).is_empty());
    let (status, log) = process.wait(Duration::from_secs(20));
    assert_eq!(status.code(), Some(0), "{log}");
    still_idle.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    assert_eq!(
        (&still_idle).read(&mut [0; 1]).unwrap(),
        0,
        "an idle connection was reset"
    );
}

/// The next turn of a conversation comes over the same connection, a moment after the answer to the one before.
#[tokio::test(flavor = "multi_thread")]
async fn connection_is_kept_for_the_request_that_follows_the_last_answer() {
    let mut process = Process::ready(&["--endpoint-delay=1s", "--drain-timeout=60s"]);
    // Goes on when the delay is over.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
    let tokens = (decode_speed(&process).await * 4.0).clamp(8.0, 400.0) as u64;
    let body = question("Tell me a long story.", &json!({"max_tokens": tokens, "stream": true})).to_string();
    let mut stream = TcpStream::connect(("127.0.0.1", process.port)).unwrap();
    let (length, kind) = (body.len(), "content-type: application/json");
    write!(
        stream,
        "POST {CHAT} HTTP/1.1\r\nhost: x\r\n{kind}\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut text = Vec::new();
    let mut part = [0; 4096];
    let mut read_on = |stream: &mut TcpStream| {
        let read = stream.read(&mut part).unwrap();
        assert!(read > 0, "the stream was cut");
        text.extend_from_slice(&part[..read]);
        String::from_utf8_lossy(&text).into_owned()
    };
    assert!(!asks_to_close(&read_on(&mut stream)));
    let mut idle = TcpStream::connect(("127.0.0.1", process.port)).unwrap();
    assert!(!asks_to_close(&ask(&mut idle, "/v1/models")));
    process.terminate();
    process.wait_for_line("no longer accepting");
    while !read_on(&mut stream).ends_with("0\r\n\r\n") {}
    std::thread::sleep(Duration::from_secs(2));
    for connection in [&mut stream, &mut idle] {
        let answer = ask(connection, "/v1/models");
        assert!(answer.starts_with("HTTP/1.1 200") && asks_to_close(&answer), "{answer}");
    }
    // Nobody is left to wait for.
    let (status, log) = process.wait(Duration::from_secs(4));
    assert_eq!(status.code(), Some(0), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ready_ends_with_the_delay_and_no_connection_is_accepted_after_it() {
    let mut process = Process::ready(&["--endpoint-delay=1s", "--drain-timeout=60s"]);
    let body = question(
        "Tell me a long story.",
        &json!({"max_tokens": 1500, "stream": true, "temperature": 1.5, "seed": 1}),
    );
    let answer = client().post(process.api(CHAT)).json(&body).send().await.unwrap();
    process.terminate();
    process.wait_for_line("no longer accepting");
    assert_eq!(probe(&process, "/readyz").await, 503);
    assert_eq!(probe(&process, "/livez").await, 200);
    let deadline = Instant::now() + Duration::from_secs(2);
    let refused = loop {
        match TcpStream::connect(("127.0.0.1", process.port)) {
            Err(error) => break error.kind(),
            Ok(_) => assert!(Instant::now() < deadline, "connections are still accepted"),
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    assert_eq!(refused, ErrorKind::ConnectionRefused);
    drop(answer);
    assert_eq!(process.wait(Duration::from_secs(20)).0.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn second_request_to_end_skips_the_delay() {
    let mut process = Process::ready(&["--endpoint-delay=60s"]);
    process.terminate();
    process.wait_for_line("still accepting");
    process.terminate();
    let (status, log) = process.wait(Duration::from_secs(10));
    assert_eq!(status.code(), Some(0), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn stream_that_takes_longer_than_the_drain_timeout_is_cut() {
    let mut process = Process::ready(&["--endpoint-delay=0s", "--drain-timeout=1s"]);
    let body = question(
        "Tell me a long story.",
        &json!({"max_tokens": 6000, "stream": true, "temperature": 1.5, "seed": 1}),
    );
    let answer = client().post(process.api(CHAT)).json(&body).send().await.unwrap();
    let mut stream = answer.bytes_stream();
    stream.next().await.unwrap().unwrap();
    let began = Instant::now();
    process.terminate();
    let (status, log) = process.wait(Duration::from_secs(15));
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("did not finish in time"), "{log}");
}

#[test]
fn loading_server_answers_503_and_ends_at_once() {
    let model = format!("--model={}", model().display());
    let mut process = Process::start(&[&model, "--endpoint-delay=60s"]);
    let mut stream = TcpStream::connect(("127.0.0.1", process.port)).unwrap();
    let answer = ask(&mut stream, "/v1/models");
    // A very fast machine may have loaded it already.
    if answer.starts_with("HTTP/1.1 503") {
        assert!(
            answer.contains("model_loading") && answer.to_lowercase().contains("\r\nretry-after: "),
            "{answer}"
        );
        let mut page = TcpStream::connect(("127.0.0.1", process.admin_port)).unwrap();
        assert!(ask(&mut page, "/livez").starts_with("HTTP/1.1 200"));
        assert!(ask(&mut page, "/readyz").starts_with("HTTP/1.1 503"));
        assert!(!ask(&mut page, "/status").contains("\"traffic\""));
        process.terminate();
        let (status, log) = process.wait(Duration::from_secs(5));
        assert_eq!(status.code(), Some(0), "{log}");
    }
}
