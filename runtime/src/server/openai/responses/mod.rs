//! `POST /v1/responses`, without state: each request brings the whole conversation, and nothing is kept.

mod events;
mod items;
mod wire;

use super::chat::{ask, take_variables};
use super::fields::{Fields, invalid};
use super::generate::{Asked, Caller, begin, collect, event_stream};
use super::messages;
use super::parameters::{HARMLESS, Parameters, is_empty};
use super::structured::text_format;
use super::tools::{ToolUse, take_tools};
use super::traced::follow;
use crate::context::{random_id, unix_seconds};
use crate::server::body::json_object;
use crate::server::error::{ApiError, Code};
use crate::server::{App, Record, Served};
use crate::traffic::Attempt;
use axum::extract::{Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use wire::Frame;

/// Fields that say what an answer has to be in another API.
const ELSEWHERE: [&str; 3] = ["response_format", "max_tokens", "max_completion_tokens"];

/// Answers a conversation.
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    Extension(attempt): Extension<Attempt>,
    Extension(record): Extension<Arc<Record>>,
    request: Request,
) -> Result<Response, ApiError> {
    let served = app.served()?;
    let fields = Fields::new(json_object(request, app.max_body_bytes).await?);
    let Wanted {
        messages,
        tools,
        parameters,
        variables,
        frame,
    } = take(fields, &served, &record)?;
    let is_streamed = parameters.stream;
    let asked: Asked = ask(&app, &served, messages, tools, (parameters, variables))
        .await
        .map_err(|error| error.renamed("messages", "input"))?;
    let caller = Caller {
        attempt,
        record: Arc::clone(&record),
    };
    let followed = begin(&app, &served, caller, asked).await?;
    record.span().answers(&served.name, Some(&frame.id));
    if is_streamed {
        return Ok(event_stream(events::events(frame, followed)));
    }
    let (answers, cost) = collect(followed).await?;
    let answer = answers.into_iter().next().unwrap_or_default();
    let output = wire::output(&answer);
    let whole = frame.response(&output, answer.reason, Some(cost));
    Ok(([(CONTENT_TYPE, "application/json")], Json(whole)).into_response())
}

/// A request that was checked.
struct Wanted {
    messages: Vec<Value>,
    tools: ToolUse,
    parameters: Parameters,
    variables: Map<String, Value>,
    frame: Frame,
}

fn take(mut fields: Fields, served: &Served, record: &Record) -> Result<Wanted, ApiError> {
    let model = served.check_name(fields.required("model")?)?;
    follow(record, &model, &fields);
    let input = fields.required("input")?;
    let instructions = fields.string("instructions")?;
    let messages = items::messages(input, instructions.as_deref())?;
    let messages = messages::check(Value::Array(messages)).map_err(|error| error.renamed("messages", "input"))?;
    for name in ELSEWHERE {
        if fields.take(name).is_some() {
            let message = format!("`{name}` is not a field of this API; see `text.format` and `max_output_tokens`");
            return Err(ApiError::new(Code::UnknownParameter, message).param(name));
        }
    }
    let max_output_tokens = fields.count("max_output_tokens", 1)?;
    let metadata = fields.take("metadata").unwrap_or_else(|| json!({}));
    let (told_tools, told_choice) = take_flat_tools(&mut fields)?;
    let tools = take_tools(&mut fields).map_err(|error| error.renamed(".function", ""))?;
    let (format, told_format) = take_text(&mut fields)?;
    take_unsupported(&mut fields)?;
    let variables = take_variables(&mut fields)?;
    let mut parameters = Parameters::of(&mut fields, served)?;
    if parameters.answers.get() > 1 {
        return Err(invalid("n", "must be 1 in this API"));
    }
    parameters.max_tokens = max_output_tokens;
    parameters.grammar = format.or(parameters.grammar);
    fields.finish(&HARMLESS)?;
    let frame = Frame {
        id: random_id("resp_"),
        created_at: unix_seconds(),
        model: served.name.clone(),
        instructions,
        max_output_tokens,
        metadata,
        parallel_tool_calls: tools.parallel,
        temperature: parameters.sampling.temperature,
        top_p: parameters.sampling.top_p,
        text: told_format,
        tools: told_tools,
        tool_choice: told_choice,
    };
    Ok(Wanted {
        messages,
        tools,
        parameters,
        variables,
        frame,
    })
}

/// Brings tools, which are not wrapped here, into the form of chats. Gives them back as they came.
fn take_flat_tools(fields: &mut Fields) -> Result<(Value, Value), ApiError> {
    let told_tools = fields.take("tools").unwrap_or_else(|| json!([]));
    let Value::Array(tools) = &told_tools else {
        return Err(invalid("tools", "must be a list"));
    };
    fields.put("tools", tools.iter().map(wrap).collect());
    let told_choice = fields.take("tool_choice").unwrap_or_else(|| json!("auto"));
    fields.put("tool_choice", wrap(&told_choice));
    Ok((told_tools, told_choice))
}

/// A function as chats have it; anything else as it is.
fn wrap(flat: &Value) -> Value {
    match flat {
        Value::Object(members) if members.get("type") == Some(&json!("function")) => {
            let mut function = members.clone();
            function.remove("type");
            json!({"type": "function", "function": function})
        }
        other => other.clone(),
    }
}

/// What the text has to be, and the field as it is told.
fn take_text(fields: &mut Fields) -> Result<(Option<crate::grammar::Grammar>, Value), ApiError> {
    let plain = || json!({"format": {"type": "text"}});
    let text = match fields.take("text") {
        None => return Ok((None, plain())),
        Some(Value::Object(text)) => text,
        Some(_) => return Err(invalid("text", "must be an object")),
    };
    let told = text.get("format").map(|format| json!({"format": format}));
    let mut text = Fields::new(text);
    let format = text.take("format").map_or(Ok(None), text_format)?;
    text.neutral("verbosity", |value| value == "medium")?;
    text.finish(&[]).map_err(|error| error.param("text"))?;
    Ok((format, told.unwrap_or_else(plain)))
}

/// Fields of this API that need what this server does not keep or have.
fn take_unsupported(fields: &mut Fields) -> Result<(), ApiError> {
    fields.neutral("background", |value| value == false)?;
    fields.neutral("conversation", |_| false)?;
    fields.neutral("context_management", is_empty)?;
    fields.neutral("include", is_empty)?;
    fields.neutral("max_tool_calls", |_| false)?;
    fields.neutral("previous_response_id", |_| false)?;
    fields.neutral("prompt", |_| false)?;
    fields.neutral("top_logprobs", |value| value == 0)?;
    fields.neutral("truncation", |value| value == "disabled")?;
    // No effort and no summary are what there is; a client that names neither sends an empty object.
    fields.neutral("reasoning", |value| {
        value
            .as_object()
            .is_some_and(|members| members.values().all(Value::is_null))
    })
}
