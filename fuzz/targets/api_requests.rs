//! Bodies of requests, through the whole API to an engine that refuses everything: they are read, checked, rendered, made
//! into tokens and grammars. An input is a line with the number of a server and a path, then the body.
//!
//! Whatever is sent, the answer is JSON; a mistake is the client's and is told, never an internal error.

#![no_main]

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use escadre_fuzz::{END, control, count_our_panics, gpt2, llama, tokenizer_json};
use escadre_runtime::access::{Access, Keys, Limits};
use escadre_runtime::dialect::Dialect;
use escadre_runtime::fuzzing::ended_engine;
use escadre_runtime::grammar::Grammars;
use escadre_runtime::metrics::Metrics;
use escadre_runtime::model::{ChatTemplate, GenerationDefaults, Pooling, Tokenizer};
use escadre_runtime::server::{App, Served, router};
use escadre_runtime::traffic::Traffic;
use escadre_verify::Digest;
use http_body_util::BodyExt as _;
use libfuzzer_sys::{Corpus, fuzz_target};
use serde_json::Value;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use tokio::runtime::{Builder, Runtime};
use tower_service::Service as _;

/// A template that teaches tools and reasoning, and one that does neither.
const TAUGHT: &str = include_str!("../seeds/chat_templates/taught");
const PLAIN: &str = include_str!("../seeds/chat_templates/plain");

const PATHS: [&str; 6] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/tokenize",
    "/detokenize",
    "/v1/embeddings",
];

struct Servers {
    runtime: Runtime,
    routers: [Router; 3],
}

static SERVERS: LazyLock<Mutex<Servers>> = LazyLock::new(|| {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("there are threads");
    let routers = [
        serve(gpt2("llama-bpe"), Some(TAUGHT)),
        serve(llama(), Some(PLAIN)),
        serve(tokenizer_json(), None),
    ];
    Mutex::new(Servers { runtime, routers })
});

fn serve(tokenizer: Tokenizer, template: Option<&str>) -> Router {
    let end = control(&tokenizer, END).expect("it is in the vocabulary");
    let tokenizer = Arc::new(tokenizer);
    let template = template.map(|text| text.split(escadre_fuzz::SEPARATOR).next().unwrap_or_default());
    let template = template.map(|text| {
        ChatTemplate::new("template", text, "<begin>".to_owned(), END.to_owned()).expect("the template is well-formed")
    });
    let app = App::new(
        Arc::new(Metrics::new("m")),
        Arc::new(Traffic::default()),
        Arc::new(Access::new(Keys::default(), None, Limits::default())),
        1 << 20,
        1,
    );
    app.begin_serving(Served {
        name: "m".to_owned(),
        aliases: vec![],
        digest: Digest::of(b"m"),
        fingerprint: "fp".to_owned(),
        created: 0,
        context_length: 512,
        dialect: template.map(|template| Dialect::of(template, |text| control(&tokenizer, text))),
        grammars: Grammars::new(Arc::clone(&tokenizer), vec![end]),
        tokenizer,
        generation: GenerationDefaults::default(),
        pooling: Some(Pooling::Mean),
        hidden: 8,
        engine: ended_engine(),
    });
    router(Arc::new(app))
}

fuzz_target!(init: count_our_panics(), |data: &[u8]| -> Corpus {
    let Some((server, path, body)) = parse(data) else {
        return Corpus::Reject;
    };
    let mut servers = SERVERS.lock().unwrap_or_else(PoisonError::into_inner);
    let Servers { runtime, routers } = &mut *servers;
    let request = Request::post(path).header("content-type", "application/json");
    let request = request.body(Body::from(body.to_vec())).expect("the request is well-formed");
    let (status, answer) = runtime.block_on(async {
        let answer = match routers[server].call(request).await {
            Ok(answer) => answer,
            Err(impossible) => match impossible {},
        };
        let status = answer.status();
        (status, answer.into_body().collect().await.expect("the answer is whole").to_bytes())
    });
    let answer: Value = serde_json::from_slice(&answer).expect("the answer is JSON");
    if status == StatusCode::OK {
        return Corpus::Keep;
    }
    let is_told = answer["error"]["message"].as_str().is_some_and(|message| !message.is_empty());
    let is_refused_by_the_engine = status == StatusCode::SERVICE_UNAVAILABLE;
    assert!(is_told && (status.is_client_error() || is_refused_by_the_engine), "{status}: {answer}");
    assert_ne!(status, StatusCode::TOO_MANY_REQUESTS, "{answer}");
    Corpus::Keep
});

fn parse(data: &[u8]) -> Option<(usize, &'static str, &[u8])> {
    let end = data.iter().position(|byte| *byte == b'\n')?;
    let (server, path) = std::str::from_utf8(&data[..end]).ok()?.split_once(' ')?;
    let server = server.parse().ok().filter(|server| *server < 3)?;
    let path = PATHS.into_iter().find(|known| *known == path)?;
    Some((server, path, &data[end + 1..]))
}
