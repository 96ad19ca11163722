//! Vectors of texts: against those of llama.cpp, alone and beside each other, in every form, and what is refused.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod serving;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use serving::{NAME, Process, ask, post};

const PATH: &str = "/v1/embeddings";
const HIDDEN: usize = 576;

fn floats(text: &Value) -> Vec<f32> {
    let bytes = STANDARD.decode(text.as_str().unwrap()).unwrap();
    let (numbers, rest) = bytes.as_chunks();
    assert!(rest.is_empty());
    numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn reference() -> Value {
    serde_json::from_str(include_str!("reference/embeddings.json")).unwrap()
}

fn product(one: &[f32], other: &[f32]) -> f32 {
    assert_eq!(one.len(), other.len());
    one.iter().zip(other).map(|(one, other)| one * other).sum()
}

async fn embed(process: &Process, more: Value) -> Value {
    let mut body = json!({"model": NAME});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    ask(process, PATH, &body).await
}

/// The vectors of an answer, which come in the order of the texts.
fn vectors(answer: &Value) -> Vec<Vec<f32>> {
    let data = answer["data"].as_array().unwrap();
    assert!(
        data.iter()
            .enumerate()
            .all(|(at, one)| one["index"] == at && one["object"] == "embedding")
    );
    data.iter()
        .map(|one| serde_json::from_value(one["embedding"].clone()).unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn vectors_are_those_of_llama_cpp_and_come_in_every_form() {
    let process = Process::ready(&["--max-context=512", "--pooling=mean"]);
    let reference = reference();
    let texts = &reference["texts"];
    let answer = embed(&process, json!({"input": texts})).await;
    assert_eq!((&answer["object"], &answer["model"]), (&json!("list"), &json!(NAME)));
    let together = vectors(&answer);
    for (index, (ours, theirs)) in together.iter().zip(reference["mean"].as_array().unwrap()).enumerate() {
        assert!((product(ours, ours) - 1.0).abs() < 1e-4);
        let cosine = product(ours, &floats(theirs));
        assert!(cosine > 0.999, "text {index}: {cosine}");
    }

    let mut tokens = 0;
    for (text, together) in texts.as_array().unwrap().iter().zip(&together) {
        let alone = embed(&process, json!({"input": text})).await;
        assert!(product(&vectors(&alone)[0], together) > 0.9999, "{text}");
        let counted = ask(&process, "/tokenize", &json!({"prompt": text})).await;
        assert_eq!(alone["usage"]["prompt_tokens"], counted["count"]);
        tokens += counted["count"].as_u64().unwrap();
        let by_tokens = embed(&process, json!({"input": counted["tokens"]})).await;
        assert!(product(&vectors(&by_tokens)[0], together) > 0.9999, "{text}");
    }
    assert_eq!(
        answer["usage"],
        json!({"prompt_tokens": tokens, "total_tokens": tokens})
    );

    let packed = embed(&process, json!({"input": "Ahoy", "encoding_format": "base64"})).await;
    assert!(product(&floats(&packed["data"][0]["embedding"]), &together[0]) > 0.9999);
    let short = embed(&process, json!({"input": "Ahoy", "dimensions": 64, "user": "u"})).await;
    let short = &vectors(&short)[0];
    assert!((short.len(), product(short, short).sqrt() > 0.999) == (64, true));
    let length = product(&together[0][..64], &together[0][..64]).sqrt();
    assert!(product(short, &together[0][..64]) / length > 0.9999);
    mistakes_are_named(&process).await;
}

async fn mistakes_are_named(process: &Process) {
    for (more, code, param) in [
        (json!({}), "invalid_value", "input"),
        (json!({"input": ""}), "invalid_value", "input"),
        (json!({"input": ["a", ""]}), "invalid_value", "input"),
        (json!({"input": [1_000_000]}), "invalid_value", "input"),
        (json!({"input": vec!["a"; 2049]}), "invalid_value", "input"),
        (json!({"input": "a", "model": "other"}), "model_not_found", "model"),
        (
            json!({"input": "a", "dimensions": HIDDEN + 1}),
            "invalid_value",
            "dimensions",
        ),
        (
            json!({"input": "a", "encoding_format": "int8"}),
            "invalid_value",
            "encoding_format",
        ),
        (
            json!({"input": "a", "truncate_prompt_tokens": 1}),
            "unknown_parameter",
            "truncate_prompt_tokens",
        ),
        (
            json!({"input": ["a", "word ".repeat(600)]}),
            "context_length_exceeded",
            "input",
        ),
    ] {
        let mut body = json!({"model": NAME});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let (_, text) = post(process, PATH, &body).await;
        let error: Value = serde_json::from_str(&text).unwrap();
        let found = (&error["error"]["code"], &error["error"]["param"]);
        assert_eq!(found, (&json!(code), &json!(param)), "{text}");
    }
    let long = json!({"model": NAME, "input": ["a", "word ".repeat(600)]});
    let (_, text) = post(process, PATH, &long).await;
    assert!(
        text.contains("text 1 of `input` has 60") && text.contains("context is 512"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn pooling_is_what_is_said_and_a_model_that_says_nothing_makes_no_vectors() {
    let reference = reference();
    for (argument, pooling) in [("--pooling=last", "last"), ("--pooling=cls", "cls")] {
        let process = Process::ready(&["--max-context=512", argument]);
        let answer = embed(&process, json!({"input": reference["texts"]})).await;
        for (ours, theirs) in vectors(&answer).iter().zip(reference[pooling].as_array().unwrap()) {
            let cosine = product(ours, &floats(theirs));
            assert!(cosine > 0.999, "{pooling}: {cosine}");
        }
    }
    let silent = Process::ready(&["--max-context=512"]);
    let (status, text) = post(&silent, PATH, &json!({"model": NAME, "input": "a"})).await;
    assert_eq!(status, 400);
    assert!(
        text.contains("unsupported_parameter") && text.contains("--pooling=mean"),
        "{text}"
    );
}
