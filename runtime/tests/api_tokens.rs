//! What the API says about tokens: how likely they were, what moves them, and their ids.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod serving;

use serde_json::{Value, json};
use serving::{NAME, Process, events, post, question};

async fn ask(process: &Process, path: &str, body: &Value) -> Value {
    let (status, text) = post(process, path, body).await;
    assert_eq!(status, 200, "{text}");
    serde_json::from_str(&text).unwrap()
}

const CHAT: &str = "/v1/chat/completions";

/// One process for all of it: a start costs seconds.
#[tokio::test]
async fn tokens_are_told_moved_and_named() {
    let process = Process::ready(&["--max-context=512", "--max-concurrency=4"]);
    chats_tell_how_likely_tokens_were(&process).await;
    completions_tell_how_likely_tokens_were(&process).await;
    bias_moves_tokens(&process).await;
    tokens_of_a_prompt_can_be_asked_for(&process).await;
    mistakes_are_named(&process).await;
}

async fn chats_tell_how_likely_tokens_were(process: &Process) {
    let body = question(
        "Say: naïve café, 日本.",
        &json!({"max_tokens": 24, "logprobs": true, "top_logprobs": 4, "repetition_penalty": 1.1}),
    );
    let whole = ask(process, CHAT, &body).await;
    let choice = &whole["choices"][0];
    let tokens = choice["logprobs"]["content"].as_array().unwrap();
    assert_eq!(
        tokens.len() as u64,
        whole["usage"]["completion_tokens"].as_u64().unwrap()
    );
    let bytes = |token: &Value| -> Vec<u8> { serde_json::from_value(token["bytes"].clone()).unwrap() };
    let text: Vec<u8> = tokens.iter().flat_map(&bytes).collect();
    assert_eq!(
        String::from_utf8_lossy(&text),
        choice["message"]["content"].as_str().unwrap()
    );
    for token in tokens {
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 4);
        let of = |token: &Value| token["logprob"].as_f64().unwrap();
        assert!(top.windows(2).all(|pair| of(&pair[0]) >= of(&pair[1])), "{token}");
        assert!(of(token) <= of(&top[0]) && of(&top[0]) <= 0.0, "{token}");
        assert!(top.iter().map(|token| of(token).exp()).sum::<f64>() < 1.001, "{token}");
        if bytes(token) == bytes(&top[0]) {
            assert!((of(token) - of(&top[0])).abs() < 1e-6, "{token}");
        }
    }

    // The same in a stream, to the last number.
    let mut streamed = body;
    streamed["stream"] = true.into();
    let (_, text) = post(process, CHAT, &streamed).await;
    let chunks = events(&text).into_iter().filter(|event| event != "[DONE]");
    let parts =
        chunks.map(|chunk| serde_json::from_str::<Value>(&chunk).unwrap()["choices"][0]["logprobs"]["content"].clone());
    let parts: Vec<Value> = parts.filter_map(|part| part.as_array().cloned()).flatten().collect();
    assert_eq!(&parts, tokens);

    // What a stop string takes away has no tokens.
    let said = choice["message"]["content"].as_str().unwrap();
    let stop: String = said.chars().skip(6).take(3).collect();
    let stopped = ask(
        process,
        CHAT,
        &question(
            "Say: naïve café, 日本.",
            &json!({"max_tokens": 24, "logprobs": true, "stop": stop, "repetition_penalty": 1.1}),
        ),
    )
    .await;
    let choice = &stopped["choices"][0];
    assert_eq!(choice["finish_reason"], "stop");
    let kept = choice["message"]["content"].as_str().unwrap();
    let tokens = choice["logprobs"]["content"].as_array().unwrap();
    let text: Vec<u8> = tokens.iter().flat_map(&bytes).collect();
    let last = tokens.last().map(bytes).unwrap().len();
    assert!(
        text.starts_with(kept.as_bytes()) && text.len() - last < kept.len(),
        "{choice}"
    );

    let without = ask(process, CHAT, &question("Hi", &json!({"max_tokens": 1}))).await;
    assert_eq!(without["choices"][0]["logprobs"], Value::Null);
}

async fn completions_tell_how_likely_tokens_were(process: &Process) {
    let body = json!({"model": NAME, "prompt": "One, two,", "max_tokens": 8, "temperature": 0, "logprobs": 2});
    let whole = ask(process, "/v1/completions", &body).await;
    let logprobs = &whole["choices"][0]["logprobs"];
    let list = |name: &str| logprobs[name].as_array().unwrap().clone();
    let tokens: Vec<String> = list("tokens")
        .iter()
        .map(|token| token.as_str().unwrap().to_owned())
        .collect();
    assert_eq!(tokens.concat(), whole["choices"][0]["text"].as_str().unwrap());
    assert_eq!(list("token_logprobs").len(), 8);
    let mut offset = 0;
    for (index, token) in tokens.iter().enumerate() {
        assert_eq!(list("text_offset")[index], offset);
        offset += token.chars().count();
        let top = list("top_logprobs")[index].as_object().unwrap().clone();
        assert!((2..=3).contains(&top.len()), "{top:?}");
        assert_eq!(top[token], list("token_logprobs")[index]);
    }
    let mut streamed = body;
    streamed["stream"] = true.into();
    let (_, text) = post(process, "/v1/completions", &streamed).await;
    let chunks = events(&text).into_iter().filter(|event| event != "[DONE]");
    let offsets = chunks
        .map(|chunk| serde_json::from_str::<Value>(&chunk).unwrap()["choices"][0]["logprobs"]["text_offset"].clone());
    let offsets: Vec<Value> = offsets.filter_map(|part| part.as_array().cloned()).flatten().collect();
    assert_eq!(offsets, list("text_offset"));
}

async fn bias_moves_tokens(process: &Process) {
    let body = |bias: &Value| {
        json!({
            "model": NAME, "prompt": "One, two,", "max_tokens": 1, "temperature": 0, "logprobs": 1, "logit_bias": bias
        })
    };
    let first = async |bias: &Value| {
        let answer = ask(process, "/v1/completions", &body(bias)).await;
        answer["choices"][0]["text"].as_str().unwrap().to_owned()
    };
    let usual = first(&json!({})).await;
    let id = async |text: &str| {
        let body = json!({"prompt": text, "add_special_tokens": false});
        ask(process, "/tokenize", &body).await["tokens"][0].to_string()
    };
    let banned = first(&json!({id(&usual).await: -100})).await;
    assert_ne!(banned, usual);
    assert_eq!(first(&json!({id(" zebra").await: 100})).await, " zebra");
}

async fn tokens_of_a_prompt_can_be_asked_for(process: &Process) {
    let text = "A ship <|im_end|> with 3 sails, naïve 日本";
    let tokens = ask(
        process,
        "/tokenize",
        &json!({"model": NAME, "prompt": text, "return_token_strs": true}),
    )
    .await;
    assert_eq!(tokens["count"], tokens["tokens"].as_array().unwrap().len());
    assert_eq!(tokens["max_model_len"], 512);
    assert!(
        tokens["token_strs"].as_array().unwrap().contains(&json!("<|im_end|>")),
        "{tokens}"
    );
    let back = ask(process, "/detokenize", &json!({"tokens": tokens["tokens"]})).await;
    assert_eq!(back, json!({"prompt": text}));

    // What a conversation costs is what its answer says that it did.
    let messages = json!([{"role": "user", "content": "What is a sail?"}]);
    let tokens = ask(process, "/tokenize", &json!({"messages": messages})).await;
    let answer = ask(process, CHAT, &question("What is a sail?", &json!({"max_tokens": 1}))).await;
    assert_eq!(tokens["count"], answer["usage"]["prompt_tokens"]);
    assert_eq!(tokens["token_strs"], Value::Null);
    let without = json!({"messages": messages, "add_generation_prompt": false});
    let fewer = ask(process, "/tokenize", &without).await;
    assert!(fewer["count"].as_u64() < tokens["count"].as_u64(), "{fewer}");
}

async fn mistakes_are_named(process: &Process) {
    let chat = |more: Value| (CHAT, question("Hi", &more));
    let text = |more: Value| {
        let mut body = json!({"model": NAME, "prompt": "Hi"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        ("/v1/completions", body)
    };
    for ((path, body), param) in [
        (chat(json!({"logprobs": "yes"})), "logprobs"),
        (chat(json!({"top_logprobs": 3})), "top_logprobs"),
        (chat(json!({"logprobs": true, "top_logprobs": 21})), "top_logprobs"),
        (chat(json!({"logit_bias": {"49152": 1}})), "logit_bias"),
        (chat(json!({"logit_bias": {"1": 100.5}})), "logit_bias"),
        (text(json!({"logprobs": 6})), "logprobs"),
        (text(json!({"logprobs": true})), "logprobs"),
        (("/tokenize", json!({})), "prompt"),
        (("/tokenize", json!({"prompt": "a", "typo": 1})), "typo"),
        (("/tokenize", json!({"prompt": "a", "model": "other"})), "model"),
        (("/tokenize", json!({"prompt": "a", "messages": []})), "messages"),
        (("/detokenize", json!({})), "tokens"),
        (("/detokenize", json!({"tokens": [49152]})), "tokens"),
        (("/detokenize", json!({"tokens": "1"})), "tokens"),
    ] {
        let (status, answer) = post(process, path, &body).await;
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(answer["error"]["param"], param, "{body} {answer}");
        assert!(status == 400 || (param == "model" && status == 404), "{answer}");
    }
}
