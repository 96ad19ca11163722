//! Chat templates as hostile models bring them: compiled, looked at for how they call tools, and rendered. An input is the
//! template, optionally followed by [`SEPARATOR`] and a JSON object with `messages`, `tools` and `variables`, and by another
//! and an answer that is taken apart.
//!
//! All of it ends in bounded time and memory. An answer says the same in one piece and in many.

#![no_main]

use escadre_fuzz::{SEPARATOR, count_our_panics};
use escadre_runtime::dialect::{Conversation, Dialect, Spoken, Tool};
use escadre_runtime::model::{ChatInput, ChatTemplate};
use libfuzzer_sys::{Corpus, fuzz_target};
use serde_json::{Map, Value, json};

/// What the module of the engine promises to give out at most.
const MAX_OUTPUT: usize = 16 << 20;

fuzz_target!(init: count_our_panics(), |data: &[u8]| -> Corpus {
    let Ok(text) = std::str::from_utf8(data) else {
        return Corpus::Reject;
    };
    let mut parts = text.splitn(3, SEPARATOR);
    let (template, conversation, answer) = (parts.next(), parts.next(), parts.next());
    let begin_and_end = ("<begin>".to_owned(), "<end>".to_owned());
    let Ok(template) = ChatTemplate::new("t", template.unwrap_or_default(), begin_and_end.0, begin_and_end.1) else {
        return Corpus::Keep;
    };
    let conversation = conversation.map_or_else(|| Ok(json!({})), serde_json::from_str);
    let Ok(Value::Object(mut conversation)) = conversation else {
        return Corpus::Reject;
    };
    let messages = conversation.remove("messages").unwrap_or_else(|| json!([{"role": "user", "content": "Hi"}]));
    let tools = conversation.remove("tools");
    let variables = match conversation.remove("variables") {
        Some(Value::Object(variables)) => variables,
        _ => Map::new(),
    };
    let input = ChatInput {
        messages: messages.clone(),
        tools: tools.clone(),
        add_generation_prompt: true,
        variables: variables.clone(),
    };
    if let Ok(rendered) = template.render(&input) {
        assert!(rendered.len() <= MAX_OUTPUT);
    }
    let dialect = Dialect::of(template, |_| None);
    if let Value::Array(messages) = messages
        && messages.iter().all(Value::is_object)
    {
        let conversation = Conversation {
            messages,
            tools: tools.as_ref().map(take_tools).unwrap_or_default(),
            with_answer: true,
            variables,
        };
        let _ = dialect.render(conversation);
    }
    take_apart(&dialect, answer.unwrap_or_default());
    Corpus::Keep
});

/// As they come out of a request: functions with names.
fn take_tools(tools: &Value) -> Vec<Tool> {
    let tools = tools.as_array().into_iter().flatten();
    let tools = tools.filter_map(|tool| {
        Some(Tool {
            name: tool["function"]["name"].as_str()?.to_owned(),
            parameters: tool["function"]["parameters"].clone(),
            definition: tool.clone(),
        })
    });
    tools.collect()
}

fn take_apart(dialect: &Dialect, answer: &str) {
    for is_reasoning in [false, true] {
        let splitter = || dialect.splitter(vec!["weather".to_owned(), "weather_report".to_owned()], is_reasoning);
        let (mut whole, mut pieces) = (splitter(), splitter());
        let at_once = [whole.push(answer), whole.finish()].concat();
        let mut one_by_one: Vec<Spoken> = answer
            .chars()
            .flat_map(|character| pieces.push(character.encode_utf8(&mut [0; 4])))
            .collect();
        one_by_one.extend(pieces.finish());
        assert_eq!(join(at_once), join(one_by_one));
    }
}

/// Neighbours of a kind are one.
fn join(spoken: Vec<Spoken>) -> Vec<Spoken> {
    let mut joined: Vec<Spoken> = Vec::new();
    for next in spoken {
        match (joined.last_mut(), next) {
            (Some(Spoken::Reasoning(text)), Spoken::Reasoning(more))
            | (Some(Spoken::Content(text)), Spoken::Content(more))
            | (Some(Spoken::Arguments(text)), Spoken::Arguments(more)) => text.push_str(&more),
            (_, next) => joined.push(next),
        }
    }
    joined
}
