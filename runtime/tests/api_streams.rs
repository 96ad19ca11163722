//! What a stream says in parts is what the whole answer says, whatever the parameters.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod serving;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};
use serving::{NAME, Process, events, post};

const SETS: usize = 300;

/// A random request, and whether it is a chat.
fn request(dice: &mut StdRng) -> (Value, bool) {
    let words = [
        "Ahoy",
        "日本語 and emoji 😀🚢",
        "Zähle: eins, zwei",
        "",
        "{\"a\": [1, 2",
        "def f(x):\n\t",
    ];
    let word = *words.choose(dice).unwrap();
    let is_chat = dice.random_bool(0.3);
    let mut body = json!({
        "model": NAME, "max_tokens": dice.random_range(1..10), "seed": dice.random_range(0..1_000_000),
        "temperature": dice.random_range(0.0..2.0_f64),
    });
    if is_chat {
        body["messages"] = json!([{"role": "system", "content": "Go on."}, {"role": "user", "content": word}]);
    } else {
        body["prompt"] = json!(format!("{word} "));
    }
    let mut sometimes = |odds: f64, name: &str, value: Value| {
        if dice.random_bool(odds) {
            body[name] = value;
        }
    };
    sometimes(0.3, "top_p", json!(0.7));
    sometimes(0.3, "top_k", json!(40));
    sometimes(0.2, "min_p", json!(0.05));
    sometimes(0.2, "frequency_penalty", json!(1.5));
    sometimes(0.2, "presence_penalty", json!(-0.5));
    sometimes(0.2, "repetition_penalty", json!(1.2));
    sometimes(0.2, "logit_bias", json!({"28": 5, "30": -100}));
    sometimes(0.2, "stop", json!([" a", "e", "\n\n", "😀"]));
    sometimes(0.1, "n", json!(2));
    sometimes(0.1, "guided_regex", json!("[a-zé日 ]{3,40}"));
    sometimes(0.2, "logprobs", if is_chat { json!(true) } else { json!(2) });
    (body, is_chat)
}

/// The text, the reason and the tokens of each answer, in a whole answer or put together from chunks.
fn told(bodies: &[Value], answers: usize, is_chat: bool) -> Vec<(String, Value, Vec<Value>)> {
    let mut told = vec![(String::new(), Value::Null, Vec::new()); answers];
    for choice in bodies.iter().filter_map(|body| body["choices"].as_array()).flatten() {
        let (text, reason, tokens) = &mut told[usize::try_from(choice["index"].as_u64().unwrap()).unwrap()];
        let said = if is_chat {
            choice
                .get("message")
                .or(choice.get("delta"))
                .map_or(&Value::Null, |said| &said["content"])
        } else {
            &choice["text"]
        };
        text.push_str(said.as_str().unwrap_or_default());
        let list = if is_chat { "content" } else { "tokens" };
        tokens.extend(choice["logprobs"][list].as_array().into_iter().flatten().cloned());
        if !choice["finish_reason"].is_null() {
            assert!(reason.is_null(), "two ends: {bodies:?}");
            *reason = choice["finish_reason"].clone();
        }
    }
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_and_whole_answers_say_the_same() {
    let process = Process::ready(&["--max-context=256", "--max-concurrency=2"]);
    let mut dice = StdRng::seed_from_u64(7);
    for number in 0..SETS {
        let (body, is_chat) = request(&mut dice);
        let path = if is_chat {
            "/v1/chat/completions"
        } else {
            "/v1/completions"
        };
        let answers = body["n"].as_u64().map_or(1, |n| usize::try_from(n).unwrap());
        let (status, whole) = post(&process, path, &body).await;
        assert_eq!(status, 200, "{number} {body}: {whole}");
        let whole: Value = serde_json::from_str(&whole).unwrap();
        let mut streamed = body.clone();
        streamed["stream"] = true.into();
        streamed["stream_options"] = json!({"include_usage": true});
        let (status, stream) = post(&process, path, &streamed).await;
        assert_eq!(status, 200, "{number} {body}: {stream}");
        let mut lines = events(&stream);
        assert_eq!(lines.pop().as_deref(), Some("[DONE]"), "{stream}");
        let chunks: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(
            told(&chunks, answers, is_chat),
            told(std::slice::from_ref(&whole), answers, is_chat),
            "{number} {body}"
        );
        let last = chunks.last().unwrap();
        for count in [
            "prompt_tokens",
            "completion_tokens",
            "total_tokens",
            "completion_tokens_details",
        ] {
            assert_eq!(last["usage"][count], whole["usage"][count], "{number} {body}");
        }
        assert!(
            chunks
                .iter()
                .all(|chunk| chunk["id"] == last["id"] && chunk["created"] == last["created"])
        );
    }
}
