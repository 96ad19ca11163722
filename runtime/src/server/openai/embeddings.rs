//! `POST /v1/embeddings`: a vector of length 1 for each text.

use super::fields::{Fields, invalid, token_ids};
use super::generate::{Account, engine_failure, refusal};
use super::traced::follow;
use crate::engine::{Event, Request as EngineRequest};
use crate::model::{Pooling, SpecialTokens};
use crate::server::admission::limit_error;
use crate::server::body::json_object;
use crate::server::error::{ApiError, Code};
use crate::server::{App, Record, Served};
use crate::traffic::Attempt;
use axum::extract::{Request, State};
use axum::{Extension, Json};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::Serialize;
use serde_json::Value;
use std::sync::Arc;

/// The most texts of a request, as in OpenAI's API.
const MAX_INPUTS: usize = 2048;

/// What a vector is made of.
#[derive(Debug, Clone, PartialEq)]
enum Input {
    Text(String),
    Tokens(Vec<u32>),
}

/// How vectors are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Float,
    /// Numbers of 32 bits, little-endian.
    Base64,
}

/// What is asked for.
#[derive(Debug, PartialEq)]
struct Wanted {
    inputs: Vec<Input>,
    encoding: Encoding,
    dimensions: Option<usize>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Vector {
    Numbers(Vec<f32>),
    Text(String),
}

#[derive(Debug, Serialize)]
struct Item {
    object: &'static str,
    index: usize,
    #[serde(rename = "embedding")]
    vector: Vector,
}

#[derive(Debug, Serialize)]
struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

/// The answer.
#[derive(Debug, Serialize)]
pub(crate) struct Embeddings {
    object: &'static str,
    data: Vec<Item>,
    model: String,
    usage: Usage,
}

/// Makes a vector of each text.
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    Extension(attempt): Extension<Attempt>,
    Extension(record): Extension<Arc<Record>>,
    request: Request,
) -> Result<Json<Embeddings>, ApiError> {
    let served = app.served()?;
    let mut fields = Fields::new(json_object(request, app.max_body_bytes).await?);
    let model = served.check_name(fields.required("model")?)?;
    follow(&record, &model, &fields);
    let wanted = take(fields, served.hidden)?;
    let pooling = served.pooling.ok_or_else(|| {
        let message = "the files of this model do not say how the vector of a text is made; whoever runs it can say so with --pooling=mean or --pooling=last, and another model may be meant for it";
        ApiError::new(Code::UnsupportedParameter, message).param("model")
    })?;
    let inputs = wanted.inputs;
    let prompts = app.prepare(&served, move |served| tokens(served, inputs)).await?;
    let total = prompts.iter().map(Vec::len).sum();
    if let Some(client) = record.client() {
        client.take_prompt(total).map_err(limit_error)?;
    }
    let account = Account {
        record,
        metrics: Arc::clone(&app.metrics),
    };
    let vectors = vectors(&app, &served, (prompts, pooling), (&account, total)).await;
    let vectors = vectors.inspect_err(|error| {
        if error.is_ours() {
            attempt.failed();
        }
    })?;
    attempt.answered();
    account.record.span().answers(&served.name, None);
    let data = vectors.into_iter().enumerate().map(|(index, vector)| Item {
        object: "embedding",
        index,
        vector: write(shorten(vector, wanted.dimensions), wanted.encoding),
    });
    Ok(Json(Embeddings {
        object: "list",
        data: data.collect(),
        model: served.name.clone(),
        usage: Usage {
            prompt_tokens: total,
            total_tokens: total,
        },
    }))
}

/// The vectors, computed beside each other as far as the engine takes requests. What was not computed is given back.
async fn vectors(
    app: &App,
    served: &Served,
    (prompts, pooling): (Vec<Vec<u32>>, Pooling),
    (account, total): (&Account, usize),
) -> Result<Vec<Vec<f32>>, ApiError> {
    let one = async |prompt: Vec<u32>| {
        let tokens = prompt.len();
        let vector = vector(app, served, EngineRequest::embedding(prompt, pooling)).await?;
        account.charge_prompt(tokens);
        Ok((tokens, vector))
    };
    let mut computed = std::pin::pin!(stream::iter(prompts).map(one).buffered(served.engine.concurrency()));
    let (mut done, mut vectors) = (0, Vec::new());
    loop {
        match computed.try_next().await {
            Ok(Some((tokens, vector))) => {
                done += tokens;
                vectors.push(vector);
            }
            Ok(None) => return Ok(vectors),
            Err(error) => {
                if let Some(client) = account.record.client() {
                    client.give_back(total - done);
                }
                return Err(error);
            }
        }
    }
}

async fn vector(app: &App, served: &Served, request: EngineRequest) -> Result<Vec<f32>, ApiError> {
    let generations = served
        .engine
        .submit(request)
        .map_err(|error| refusal(&error, &app.metrics))?;
    let mut events = stream::select_all(generations);
    match events.next().await {
        Some(Event::Vector(vector)) => Ok(vector),
        last => Err(engine_failure(last)),
    }
}

/// Takes what is asked for; `hidden` is how many numbers a vector has.
fn take(mut fields: Fields, hidden: usize) -> Result<Wanted, ApiError> {
    let inputs = parse_inputs(fields.required("input")?)?;
    let encoding = match fields.string("encoding_format")?.as_deref() {
        None | Some("float") => Encoding::Float,
        Some("base64") => Encoding::Base64,
        Some(_) => return Err(invalid("encoding_format", "must be `float` or `base64`")),
    };
    let dimensions = fields.count("dimensions", 1)?;
    if dimensions.is_some_and(|wanted| wanted > hidden) {
        let message = format!("must be at most {hidden}: vectors of this model have no more numbers");
        return Err(invalid("dimensions", &message));
    }
    fields.finish(&["user"])?;
    Ok(Wanted {
        inputs,
        encoding,
        dimensions,
    })
}

fn parse_inputs(input: Value) -> Result<Vec<Input>, ApiError> {
    let wrong = || {
        invalid(
            "input",
            "must be one text, one list of tokens, or a list of texts or of lists of tokens; none of them empty",
        )
    };
    let inputs = match input {
        Value::Array(items) if items.len() > MAX_INPUTS && !items[0].is_number() => {
            let message = format!("has {} texts, and at most {MAX_INPUTS} are taken at once", items.len());
            return Err(invalid("input", &message));
        }
        Value::Array(items) if items.first().is_some_and(|item| !item.is_number()) => {
            items.iter().map(parse_input).collect()
        }
        input => parse_input(&input).map(|input| vec![input]),
    };
    inputs.ok_or_else(wrong)
}

fn parse_input(input: &Value) -> Option<Input> {
    match input {
        Value::String(text) if !text.is_empty() => Some(Input::Text(text.clone())),
        Value::Array(ids) if !ids.is_empty() => token_ids(ids).map(Input::Tokens),
        _ => None,
    }
}

/// The tokens of each input, with what the model wants around a text.
fn tokens(served: &Served, inputs: Vec<Input>) -> Result<Vec<Vec<u32>>, ApiError> {
    let context = served.context_length;
    let prompts = inputs.into_iter().enumerate().map(|(index, input)| {
        let ids = match input {
            Input::Text(text) => {
                let mut ids = served.tokens(&text, SpecialTokens::AsText)?;
                ids.extend_from_slice(served.tokenizer.suffix());
                ids
            }
            Input::Tokens(ids) => ids,
        };
        served.check_tokens(&ids, "input")?;
        if ids.len() > context {
            let message = format!(
                "text {index} of `input` has {} tokens, and this model's context is {context}; shorten or split it",
                ids.len()
            );
            return Err(ApiError::new(Code::ContextLengthExceeded, message).param("input"));
        }
        Ok(ids)
    });
    prompts.collect()
}

/// The first numbers of a vector, made to length 1 again. Models that were trained for it keep most of their meaning.
fn shorten(mut vector: Vec<f32>, dimensions: Option<usize>) -> Vec<f32> {
    let Some(dimensions) = dimensions else { return vector };
    vector.truncate(dimensions);
    let length = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
    if length > 0.0 {
        for value in &mut vector {
            *value /= length;
        }
    }
    vector
}

fn write(vector: Vec<f32>, encoding: Encoding) -> Vector {
    match encoding {
        Encoding::Float => Vector::Numbers(vector),
        Encoding::Base64 => {
            let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
            Vector::Text(STANDARD.encode(bytes))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn wanted(value: Value) -> Result<Wanted, ApiError> {
        let Value::Object(object) = value else { panic!() };
        take(Fields::new(object), 64)
    }

    #[test]
    fn inputs_are_texts_or_tokens_alone_or_in_a_list() {
        let inputs = |input: Value| parse_inputs(input).unwrap();
        let text = |text: &str| Input::Text(text.to_owned());
        assert_eq!(inputs(json!("a")), [text("a")]);
        assert_eq!(inputs(json!(["a", "b"])), [text("a"), text("b")]);
        assert_eq!(inputs(json!([1, 2])), [Input::Tokens(vec![1, 2])]);
        assert_eq!(
            inputs(json!([[1], "b", [2, 3]])),
            [Input::Tokens(vec![1]), text("b"), Input::Tokens(vec![2, 3])]
        );
        let long: Vec<u32> = vec![7; MAX_INPUTS + 1];
        assert_eq!(inputs(json!(long)), [Input::Tokens(long)]);
        for bad in [
            json!(""),
            json!([]),
            json!([[]]),
            json!(["a", ""]),
            json!(1),
            json!([1, "a"]),
            json!([-1]),
            json!({}),
            json!(vec!["a"; MAX_INPUTS + 1]),
        ] {
            assert!(parse_inputs(bad.clone()).is_err(), "{bad}");
        }
    }

    #[test]
    fn fields_are_those_of_the_api_and_no_others() {
        let plain = wanted(json!({"input": "a", "user": "u"})).unwrap();
        assert_eq!((plain.encoding, plain.dimensions), (Encoding::Float, None));
        let other = wanted(json!({"input": "a", "encoding_format": "base64", "dimensions": 64})).unwrap();
        assert_eq!((other.encoding, other.dimensions), (Encoding::Base64, Some(64)));
        for bad in [
            json!({}),
            json!({"input": "a", "encoding_format": "int8"}),
            json!({"input": "a", "dimensions": 0}),
            json!({"input": "a", "dimensions": 65}),
            json!({"input": "a", "truncate_prompt_tokens": 5}),
        ] {
            assert!(wanted(bad.clone()).is_err(), "{bad}");
        }
    }

    #[test]
    fn shortened_vectors_have_length_one_again() {
        assert_eq!(shorten(vec![0.6, 0.0, 0.8], Some(2)), [1.0, 0.0]);
        assert_eq!(shorten(vec![0.6, 0.8], None), [0.6, 0.8]);
        let Vector::Text(text) = write(vec![1.0], Encoding::Base64) else {
            panic!("no text")
        };
        assert_eq!(STANDARD.decode(text).unwrap(), 1.0_f32.to_le_bytes());
    }
}
