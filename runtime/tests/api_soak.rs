//! Thousands of requests of every kind to a tiny model, many of them given up: nothing is left behind. Short here;
//! `make soak-serving` sets the variables for the long form.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod serving;
#[path = "tiny/mod.rs"]
mod tiny;

use futures::StreamExt as _;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use reqwest::{Client, StatusCode};
use serde_json::json;
use serving::{NAME, Process, client};
use std::env;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const CONTEXT: usize = 1024;
/// Clients that ask at the same time: four times as many as are answered.
const CLIENTS: u64 = 32;
/// How much more memory the process may have at its end than after the first two fifths, in which all that grows once
/// has grown, for each of its threads.
const GROWTH: f64 = 1.1;

fn variable(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text:?} is not a number"))
    })
}

/// What became of the requests.
#[derive(Debug, Default)]
struct Tally {
    answered: AtomicU64,
    abandoned: AtomicU64,
    refused: AtomicU64,
}

fn prompt(dice: &mut StdRng, length: usize) -> Vec<u32> {
    // Token 3 ends an answer. Some prompts begin alike.
    let shared = dice.random_range(0..3);
    let token = |at, dice: &mut StdRng| if at < 64 { shared } else { dice.random_range(0..3) };
    (0..length).map(|at| token(at, dice)).collect()
}

/// One request of a random kind.
async fn request(client: &Client, url: &str, dice: &mut StdRng, tally: &Tally) {
    let length = if dice.random_bool(0.1) {
        dice.random_range(500..900)
    } else {
        dice.random_range(1..100)
    };
    let is_streamed = dice.random_bool(0.5);
    let mut body = json!({
        "model": NAME, "prompt": prompt(dice, length), "max_tokens": dice.random_range(1..100), "stream": is_streamed,
        "temperature": dice.random_range(0.0..2.0_f32), "seed": dice.random_range(0..1000),
    });
    match dice.random_range(0..5) {
        0 => body["stop"] = json!(["ab", "c c"]),
        1 => body["n"] = json!(dice.random_range(2..5)),
        2 => body["max_tokens"] = json!(2 * CONTEXT),
        _ => {}
    }
    let is_too_long = body["max_tokens"] == json!(2 * CONTEXT);
    let patience = dice
        .random_bool(0.3)
        .then(|| Duration::from_millis(dice.random_range(0..50)));
    let ask = async {
        let response = client.post(url).json(&body).send().await.unwrap();
        let status = response.status();
        let mut bytes = response.bytes_stream();
        let mut text = Vec::new();
        while let Some(more) = bytes.next().await {
            text.extend(more.unwrap());
        }
        (status, String::from_utf8(text).unwrap())
    };
    let answer = match patience {
        Some(patience) => tokio::time::timeout(patience, ask).await.ok(),
        None => Some(ask.await),
    };
    let counter = match answer {
        None => &tally.abandoned,
        Some((status, text)) if is_too_long => {
            assert_eq!(status, StatusCode::BAD_REQUEST, "{text}");
            &tally.refused
        }
        Some((status, text)) => {
            assert_eq!(status, StatusCode::OK, "{text}");
            let ends = text.matches("\"finish_reason\":\"").count();
            assert_eq!(ends as u64, body["n"].as_u64().unwrap_or(1), "{text}");
            assert!(!is_streamed || text.ends_with("data: [DONE]\n\n"), "{text}");
            &tally.answered
        }
    };
    counter.fetch_add(1, Ordering::Relaxed);
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_requests_leave_nothing_behind() {
    let total = variable("ESCADRE_SOAK_REQUESTS", 1500);
    let seed = variable("ESCADRE_SOAK_SEED", 20_261_128);
    let folder = tempfile::tempdir().unwrap();
    tiny::llama::write_folder(folder.path(), &tiny::llama::weights(), CONTEXT);
    let model = format!("--model={}", folder.path().display());
    let mut process = Process::start(&[&model, "--served-name", NAME, "--max-concurrency=8"]);
    process.wait_for_line("\"ready\"");
    let (tally, next) = (Arc::new(Tally::default()), Arc::new(AtomicU64::new(0)));
    let url = process.api("/v1/completions");
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let (tally, next, url) = (Arc::clone(&tally), Arc::clone(&next), url.clone());
            tokio::spawn(async move {
                let client = client();
                let mut dice = StdRng::seed_from_u64(seed + number);
                while next.fetch_add(1, Ordering::Relaxed) < total {
                    request(&client, &url, &mut dice, &tally).await;
                }
            })
        })
        .collect();
    while next.load(Ordering::Relaxed) < 2 * total / 5 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let early = process.resident_bytes();
    for client in clients {
        client.await.unwrap();
    }
    let late = process.resident_bytes();
    eprintln!("seed {seed}: {tally:?}, {early} bytes resident after two fifths, {late} at the end");
    assert!(tally.answered.load(Ordering::Relaxed) > total / 3, "{tally:?}");
    assert!(tally.abandoned.load(Ordering::Relaxed) > total / 50, "{tally:?}");
    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    let growth = late as f64 / early as f64;
    assert!(growth < GROWTH, "{early} bytes became {late}");

    process.becomes_idle().await;
    assert_eq!(process.status().await["memory"]["kvCacheBytes"], 0);
    process.terminate();
    let (ended, log) = process.wait(Duration::from_secs(30));
    assert!(ended.success() && !log.contains("panicked"), "{log}");
}
