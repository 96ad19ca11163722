//! Answers that have to be something: JSON by a schema, a choice, a text of a pattern; with the real model.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod serving;

use futures::future::join_all;
use serde_json::{Value, json};
use serving::{NAME, Process, events, post, question, streamed_text};

const CHAT: &str = "/v1/chat/completions";

async fn ask(process: &Process, body: &Value) -> Value {
    serving::ask(process, CHAT, body).await
}

fn text(answer: &Value, index: usize) -> &str {
    answer["choices"][index]["message"]["content"].as_str().unwrap()
}

fn by_schema(schema: &Value) -> Value {
    json!({"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": true}})
}

/// One process for all of it: a start costs seconds.
#[tokio::test(flavor = "multi_thread")]
async fn answers_are_what_they_have_to_be() {
    let process = Process::ready(&["--max-context=512", "--max-concurrency=8"]);
    finished_answers_are_valid(&process).await;
    streams_and_several_answers_are_too(&process).await;
    texts_are_chosen_and_matched(&process).await;
    mistakes_are_named(&process).await;
}

fn schemas() -> Vec<Value> {
    let ship = json!({
        "type": "object", "additionalProperties": false, "required": ["name", "masts", "kind"],
        "properties": {
            "name": {"type": "string", "maxLength": 20},
            "masts": {"type": "integer", "minimum": 1, "maximum": 5},
            "kind": {"enum": ["brig", "frigate", "sloop"]}
        }
    });
    vec![
        ship.clone(),
        json!({"type": "array", "items": {"type": "string", "maxLength": 12}, "minItems": 2, "maxItems": 3}),
        json!({"$defs": {"ship": ship}, "type": "object", "properties": {"first": {"$ref": "#/$defs/ship"}}, "required": ["first"]}),
        json!({"anyOf": [{"type": "boolean"}, {"type": "integer", "minimum": 0, "maximum": 99}]}),
        json!({"type": "string", "pattern": "^[A-Z][a-z]{2,8}$"}),
        json!({"type": "object", "properties": {"day": {"type": "string", "format": "date"}}, "required": ["day"], "additionalProperties": false}),
        json!({"type": "number", "minimum": 0, "exclusiveMaximum": 1}),
        json!({"type": "null"}),
    ]
}

/// All at the same time, so that they share steps with each other and with one that is held to nothing.
async fn finished_answers_are_valid(process: &Process) {
    let free = question("Tell me of a ship.", &json!({"max_tokens": 40}));
    let alone = ask(process, &free).await;
    let mut bodies = vec![free];
    for schema in schemas() {
        let more = json!({"max_tokens": 120, "temperature": 0.8, "seed": 4, "response_format": by_schema(&schema)});
        bodies.push(question("Describe a ship as JSON.", &more));
    }
    let answers = join_all(bodies.iter().map(|body| ask(process, body))).await;
    assert_eq!(
        text(&answers[0], 0),
        text(&alone, 0),
        "whoever is held to nothing is not held"
    );
    let mut finished = 0;
    for (schema, answer) in schemas().iter().zip(&answers[1..]) {
        if answer["choices"][0]["finish_reason"] == "stop" {
            finished += 1;
            let value: Value =
                serde_json::from_str(text(answer, 0)).unwrap_or_else(|error| panic!("{error}: {answer}"));
            assert!(jsonschema::is_valid(schema, &value), "{value} is not valid by {schema}");
        }
    }
    assert!(finished >= 6, "{finished} answers came to their end: {answers:?}");
}

async fn streams_and_several_answers_are_too(process: &Process) {
    let more = json!({"max_tokens": 120, "response_format": by_schema(&schemas()[0])});
    let body = question("Describe a ship as JSON.", &more);
    let whole = ask(process, &body).await;
    let mut streamed = body.clone();
    streamed["stream"] = true.into();
    let (_, stream) = post(process, CHAT, &streamed).await;
    assert_eq!(streamed_text(&events(&stream)), text(&whole, 0));
    let mut several = body;
    several["n"] = 3.into();
    several["temperature"] = 1.0.into();
    several["seed"] = 9.into();
    let answer = ask(process, &several).await;
    for index in 0..3 {
        if answer["choices"][index]["finish_reason"] == "stop" {
            let value: Value = serde_json::from_str(text(&answer, index)).unwrap();
            assert!(jsonschema::is_valid(&schemas()[0], &value), "{value}");
        }
    }
    let cut = ask(
        process,
        &question(
            "A ship",
            &json!({"max_tokens": 3, "response_format": by_schema(&schemas()[0])}),
        ),
    )
    .await;
    assert_eq!(cut["choices"][0]["finish_reason"], "length");
    assert!(text(&cut, 0).starts_with('{'), "{cut}");
}

async fn texts_are_chosen_and_matched(process: &Process) {
    let choice = json!({"max_tokens": 20, "guided_choice": ["positive", "negative"]});
    let answer = ask(
        process,
        &question("I love ships. Is this positive or negative?", &choice),
    )
    .await;
    assert!(["positive", "negative"].contains(&text(&answer, 0)), "{answer}");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    let regex = json!({"max_tokens": 20, "structured_outputs": {"regex": "[0-9]{4}-[0-9]{2}"}});
    let answer = ask(process, &question("When was it?", &regex)).await;
    let text = text(&answer, 0);
    assert!(text.len() == 7 && text.as_bytes()[4] == b'-', "{text}");
    let body = json!({"model": NAME, "prompt": "It is", "max_tokens": 9, "structured_outputs": {"choice": [" black", " white"]}});
    let (_, plain) = post(process, "/v1/completions", &body).await;
    let plain: Value = serde_json::from_str(&plain).unwrap();
    assert!(
        [" black", " white"].contains(&plain["choices"][0]["text"].as_str().unwrap()),
        "{plain}"
    );
}

async fn mistakes_are_named(process: &Process) {
    for (more, code, part) in [
        (
            json!({"response_format": {"type": "xml"}}),
            "invalid_value",
            "json_schema",
        ),
        (json!({"guided_regex": "("}), "invalid_grammar", ""),
        (
            json!({"response_format": by_schema(&json!({"not": {"type": "string"}}))}),
            "invalid_grammar",
            "not",
        ),
        (
            json!({"response_format": by_schema(&json!({"type": "strin"}))}),
            "invalid_grammar",
            "strin",
        ),
        (
            json!({"response_format": by_schema(&json!(false))}),
            "invalid_grammar",
            "",
        ),
    ] {
        let (status, answer) = post(process, CHAT, &question("Hi", &more)).await;
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(
            (status, answer["error"]["code"].as_str()),
            (400, Some(code)),
            "{more} {answer}"
        );
        assert!(answer["error"]["message"].as_str().unwrap().contains(part), "{answer}");
    }
}
