//! The parameters that chat and plain completions share. Pure.

use super::fields::{Fields, invalid};
use super::structured::take_grammar;
use crate::context::random_seed;
use crate::engine::Sampling;
use crate::grammar::Grammar;
use crate::model::GenerationDefaults;
use crate::server::Served;
use crate::server::error::{ApiError, Code};
use serde_json::Value;
use std::num::NonZeroUsize;

/// More stop strings than this are a mistake.
const MAX_STOPS: usize = 16;
/// A stop string that is longer never occurs.
const MAX_STOP_BYTES: usize = 1024;

/// Fields that cannot change an answer, whatever their value.
pub(super) const HARMLESS: [&str; 5] = [
    "user",
    "metadata",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
];

/// How an answer is generated and delivered.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Parameters {
    pub(super) max_tokens: Option<usize>,
    pub(super) sampling: Sampling,
    pub(super) stop: Vec<String>,
    /// What the answers have to be.
    pub(super) grammar: Option<Grammar>,
    /// Whether it is told how likely tokens were, and with how many of the likeliest ones.
    pub(super) logprobs: Option<usize>,
    pub(super) answers: NonZeroUsize,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
}

/// What is served.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// How many answers are generated at the same time.
    concurrency: usize,
    /// How many tokens there are.
    vocabulary: usize,
}

impl Parameters {
    /// Takes the shared fields of a request to what is served.
    pub(super) fn of(fields: &mut Fields, served: &Served) -> Result<Self, ApiError> {
        let limits = Limits {
            concurrency: served.engine.concurrency(),
            vocabulary: served.tokenizer.vocabulary(),
        };
        Self::take(fields, &served.generation, limits, random_seed())
    }

    /// Takes the shared fields. `random_seed` is used when the request names none.
    fn take(
        fields: &mut Fields,
        defaults: &GenerationDefaults,
        limits: Limits,
        random_seed: u64,
    ) -> Result<Self, ApiError> {
        take_unsupported(fields)?;
        let max_tokens = fields.count("max_tokens", 1)?;
        let max_completion_tokens = fields.count("max_completion_tokens", 1)?;
        if max_tokens.is_some() && max_completion_tokens.is_some() && max_tokens != max_completion_tokens {
            return Err(invalid(
                "max_tokens",
                "and `max_completion_tokens` contradict each other; leave one out",
            ));
        }
        let stream = fields.boolean("stream")?.unwrap_or(false);
        Ok(Self {
            max_tokens: max_completion_tokens.or(max_tokens),
            sampling: Sampling {
                bias: take_bias(fields, limits.vocabulary)?,
                ..take_sampling(fields, defaults, random_seed)?
            },
            stop: take_stop(fields)?,
            grammar: take_grammar(fields)?,
            // Each of the two APIs asks for it in its own way.
            logprobs: None,
            answers: take_answers(fields, limits.concurrency)?,
            stream,
            include_usage: take_stream_options(fields, stream)?,
        })
    }
}

fn take_sampling(fields: &mut Fields, defaults: &GenerationDefaults, random_seed: u64) -> Result<Sampling, ApiError> {
    let seed = match fields.take("seed") {
        None => random_seed,
        Some(value) => value
            .as_u64()
            .or_else(|| value.as_i64().map(i64::cast_unsigned))
            .ok_or_else(|| invalid("seed", "must be a whole number"))?,
    };
    // -1 is how some clients write "all".
    let top_k = match fields.take("top_k") {
        None => defaults.top_k,
        Some(value) if value.as_i64() == Some(-1) => Some(0),
        Some(value) => {
            let count = value.as_u64().and_then(|count| usize::try_from(count).ok());
            Some(count.ok_or_else(|| invalid("top_k", "must be a whole number of at least 0"))?)
        }
    };
    Ok(Sampling {
        temperature: fields
            .number("temperature", 0.0..=2.0)?
            .or(defaults.temperature)
            .unwrap_or(1.0),
        top_k: top_k.unwrap_or(0),
        top_p: fields.number("top_p", 0.0..=1.0)?.or(defaults.top_p).unwrap_or(1.0),
        min_p: fields.number("min_p", 0.0..=1.0)?.unwrap_or(0.0),
        frequency_penalty: fields.number("frequency_penalty", -2.0..=2.0)?.unwrap_or(0.0),
        presence_penalty: fields.number("presence_penalty", -2.0..=2.0)?.unwrap_or(0.0),
        repetition_penalty: fields
            .number("repetition_penalty", 0.01..=10.0)?
            .or(defaults.repetition_penalty)
            .unwrap_or(1.0),
        seed,
        bias: Vec::new(),
    })
}

/// Numbers that are added to the logits of tokens.
fn take_bias(fields: &mut Fields, vocabulary: usize) -> Result<Vec<(u32, f32)>, ApiError> {
    let wrong = || {
        let problem = format!("must be an object of token ids below {vocabulary} and numbers from -100 to 100");
        invalid("logit_bias", &problem)
    };
    let object = match fields.take("logit_bias") {
        None => return Ok(Vec::new()),
        Some(Value::Object(object)) => object,
        Some(_) => return Err(wrong()),
    };
    let biased = object.into_iter().map(|(token, bias)| {
        let token = token.parse().ok().filter(|&token: &u32| (token as usize) < vocabulary);
        let bias = bias.as_f64().filter(|bias| (-100.0..=100.0).contains(bias));
        #[expect(clippy::cast_possible_truncation, reason = "the range is small")]
        token.zip(bias.map(|bias| bias as f32)).ok_or_else(wrong)
    });
    biased.collect()
}

/// All answers of a request are generated at the same time, so there are no more than that.
fn take_answers(fields: &mut Fields, concurrency: usize) -> Result<NonZeroUsize, ApiError> {
    let answers = fields
        .count("n", 1)?
        .and_then(NonZeroUsize::new)
        .unwrap_or(NonZeroUsize::MIN);
    if answers.get() > concurrency {
        let problem = format!("must be at most {concurrency}, the answers that this server generates at the same time");
        return Err(invalid("n", &problem));
    }
    Ok(answers)
}

fn take_stop(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let wrong = || {
        let problem = format!(
            "must be a string or a list of at most {MAX_STOPS} strings, none empty or longer than {MAX_STOP_BYTES} bytes"
        );
        invalid("stop", &problem)
    };
    let stops = match fields.take("stop") {
        None => Vec::new(),
        Some(Value::String(stop)) => vec![stop],
        Some(Value::Array(stops)) => stops
            .into_iter()
            .map(|stop| match stop {
                Value::String(stop) => Ok(stop),
                _ => Err(wrong()),
            })
            .collect::<Result<_, _>>()?,
        Some(_) => return Err(wrong()),
    };
    let is_wrong = |stop: &String| stop.is_empty() || stop.len() > MAX_STOP_BYTES;
    if stops.len() > MAX_STOPS || stops.iter().any(is_wrong) {
        return Err(wrong());
    }
    Ok(stops)
}

fn take_stream_options(fields: &mut Fields, stream: bool) -> Result<bool, ApiError> {
    let options = match fields.take("stream_options") {
        None => return Ok(false),
        Some(Value::Object(options)) => options,
        Some(_) => return Err(invalid("stream_options", "must be an object")),
    };
    if !stream {
        return Err(invalid("stream_options", "is only allowed with `stream: true`"));
    }
    let mut options = Fields::new(options);
    let include_usage = options.boolean("include_usage")?.unwrap_or(false);
    // Padding against observers of the network; leaving it out changes no answer.
    options.boolean("include_obfuscation")?;
    options.finish(&[])?;
    Ok(include_usage)
}

/// Fields of OpenAI's API that this server does not have. Their neutral values are accepted, since clients send them.
fn take_unsupported(fields: &mut Fields) -> Result<(), ApiError> {
    fields.neutral("store", |value| value == false)?;
    fields.neutral("service_tier", |value| value == "auto" || value == "default")?;
    Ok(())
}

pub(super) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

/// How many tokens the answer may have: what was asked for, or else what the context leaves.
pub(super) fn answer_room(
    prompt: usize,
    max_tokens: Option<usize>,
    context: usize,
    param: &'static str,
) -> Result<usize, ApiError> {
    let wanted = max_tokens.unwrap_or(1);
    if prompt.saturating_add(wanted) <= context {
        return Ok(max_tokens.unwrap_or(context - prompt));
    }
    let message = format!(
        "this model's context is {context} tokens, but {} were asked for ({prompt} in the prompt, {wanted} for the answer); shorten the prompt or lower `max_tokens`",
        prompt.saturating_add(wanted)
    );
    Err(ApiError::new(Code::ContextLengthExceeded, message).param(param))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const LIMITS: Limits = Limits {
        concurrency: 4,
        vocabulary: 100,
    };

    fn take(value: Value) -> Result<Parameters, ApiError> {
        let Value::Object(object) = value else { panic!() };
        let mut fields = Fields::new(object);
        let defaults = GenerationDefaults {
            temperature: Some(0.6),
            ..GenerationDefaults::default()
        };
        let parameters = Parameters::take(&mut fields, &defaults, LIMITS, 99)?;
        fields.finish(&HARMLESS)?;
        Ok(parameters)
    }

    #[test]
    fn request_goes_before_the_model_and_the_model_before_the_api() {
        assert!((take(json!({})).unwrap().sampling.temperature - 0.6).abs() < 1e-6);
        assert!((take(json!({"temperature": 0})).unwrap().sampling.temperature).abs() < 1e-6);
        let parameters = take(json!({"seed": -1, "top_k": -1, "stop": "x", "max_completion_tokens": 5})).unwrap();
        assert_eq!(parameters.sampling.seed, u64::MAX);
        assert_eq!((parameters.sampling.top_k, parameters.max_tokens), (0, Some(5)));
        assert_eq!(parameters.stop, ["x"]);
        assert_eq!(take(json!({})).unwrap().sampling.seed, 99);
        assert_eq!(take(json!({"n": 4})).unwrap().answers.get(), 4);
        let biased = take(json!({"logit_bias": {"7": -100, "99": 1.5}})).unwrap();
        assert_eq!(biased.sampling.bias, [(7, -100.0), (99, 1.5)]);
    }

    #[test]
    fn whatever_would_change_the_answer_is_refused_by_name() {
        for (name, value) in [
            ("n", json!(5)),
            ("n", json!(0)),
            ("logit_bias", json!({"1": 101})),
            ("logit_bias", json!({"100": 1})),
            ("logit_bias", json!({"a": 1})),
            ("logit_bias", json!({"1": null})),
            ("logit_bias", json!([1])),
            ("store", json!(true)),
            ("temperature", json!(2.1)),
            ("top_p", json!(-0.1)),
            ("stop", json!([1])),
            ("stop", json!([""])),
            ("seed", json!(1.5)),
            ("max_tokens", json!(0)),
            ("stream", json!("yes")),
            ("stream_options", json!({"include_usage": true})),
            ("reasoning_effort", json!("high")),
        ] {
            let error = take(json!({name: value})).unwrap_err();
            let body = serde_json::to_value(error.body()).unwrap();
            assert_eq!(body["error"]["param"], name, "{body}");
        }
    }

    #[test]
    fn what_cannot_change_the_answer_is_accepted() {
        take(json!({"user": "me", "metadata": {"a": "b"}, "n": 1, "store": false, "logit_bias": {}, "service_tier": "auto"}))
            .unwrap();
    }

    #[test]
    fn answer_fills_the_context_unless_it_is_told_not_to() {
        assert_eq!(answer_room(10, None, 100, "messages").unwrap(), 90);
        assert_eq!(answer_room(10, Some(90), 100, "messages").unwrap(), 90);
        for (prompt, wanted) in [(10, Some(91)), (100, None), (1, Some(usize::MAX))] {
            let error = answer_room(prompt, wanted, 100, "messages").unwrap_err();
            let body = serde_json::to_value(error.body()).unwrap();
            assert_eq!(body["error"]["code"], "context_length_exceeded");
            assert!(body["error"]["message"].as_str().unwrap().contains(&prompt.to_string()));
        }
    }
}
