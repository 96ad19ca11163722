//! Well-known chat templates: each conversation comes out as `transformers` renders it, and the calls that a template
//! writes are read again. `make templates` fetches them.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod serving;

use escadre_runtime::dialect::{Conversation, Dialect, Spoken, Tool};
use escadre_runtime::model::{ChatInput, ChatTemplate};
use escadre_verify::Digest;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;

const CONVERSATIONS: &str = include_str!("templates/conversations.json");
/// What templates write that ask for the day, and what stands there in the renderings (see `make.py`).
const TODAY: &str = "strftime_now(\"%Y-%m-%d\")";
const ONE_DAY: &str = "\"2026-11-28\"";
const RENDERINGS: &str = include_str!("templates/renderings.json");
/// Templates that write calls in a way that is read here.
const TAUGHT: [&str; 12] = [
    "HuggingFaceTB-SmolLM3-3B",
    "Mistral-Small-3.2-24B-Instruct-2506",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
    "Qwen-QwQ-32B",
    "Qwen-Qwen2.5-7B-Instruct",
    "Qwen-Qwen3-0.6B",
    "meta-llama-Llama-3.1-8B-Instruct",
    "meta-llama-Llama-3.2-3B-Instruct",
    "meta-llama-Llama-3.3-70B-Instruct",
    "mistralai-Mistral-Nemo-Instruct-2407",
    "unsloth-mistral-Devstral-Small-2507",
];

fn template(name: &str) -> ChatTemplate {
    let folder = std::env::var_os("ESCADRE_TEST_TEMPLATES")
        .map_or_else(|| serving::cache().join("templates-0.3.36"), Into::into);
    let path = Path::new(&folder).join(format!("{name}.jinja"));
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}; run `make templates`", path.display()));
    let text = text.replace(TODAY, ONE_DAY);
    ChatTemplate::new(name, &text, "<s>".to_owned(), "</s>".to_owned()).unwrap()
}

/// What would otherwise be today.
fn variables() -> Map<String, Value> {
    Map::from_iter([("date_string".to_owned(), json!("26 Jul 2024"))])
}

#[test]
fn conversations_come_out_as_in_transformers() {
    let conversations: BTreeMap<String, Value> = serde_json::from_str(CONVERSATIONS).unwrap();
    let renderings: BTreeMap<String, BTreeMap<String, Option<String>>> = serde_json::from_str(RENDERINGS).unwrap();
    let mut different = Vec::new();
    for (name, cases) in &renderings {
        let template = template(name);
        for (case, expected) in cases {
            let conversation = &conversations[case];
            let input = ChatInput {
                messages: conversation["messages"].clone(),
                tools: conversation.get("tools").cloned(),
                add_generation_prompt: conversation["add_generation_prompt"] != false,
                variables: variables(),
            };
            let rendered = template.render(&input);
            let digest = rendered.as_ref().ok().map(|text| Digest::of(text.as_bytes()).hex());
            if digest != *expected {
                different.push(format!("{name}, {case}: {rendered:?}"));
            }
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n\n"));
}

fn tools(conversation: &Value) -> Vec<Tool> {
    let tools = conversation["tools"].as_array().unwrap().iter();
    tools
        .map(|tool| Tool {
            name: tool["function"]["name"].as_str().unwrap().to_owned(),
            parameters: tool["function"]["parameters"].clone(),
            definition: tool.clone(),
        })
        .collect()
}

/// The call that an answer with this text makes.
fn called(dialect: &Dialect, names: Vec<String>, answer: &str) -> (String, String) {
    let mut splitter = dialect.splitter(names, false);
    let (mut name, mut arguments) = (String::new(), String::new());
    let mut spoken = splitter.push(answer);
    spoken.extend(splitter.finish());
    for part in spoken {
        match part {
            Spoken::Call { name: called, .. } => name = called,
            Spoken::Arguments(text) => arguments.push_str(&text),
            Spoken::Content(_) | Spoken::Reasoning(_) => {}
        }
    }
    (name, arguments)
}

#[test]
fn calls_are_read_as_templates_write_them() {
    let conversations: BTreeMap<String, Value> = serde_json::from_str(CONVERSATIONS).unwrap();
    let case = &conversations["called"];
    let messages = case["messages"].as_array().unwrap();
    for name in TAUGHT {
        let dialect = Dialect::of(template(name), |_| None);
        let render = |count: usize, with_answer: bool| {
            let conversation = Conversation {
                messages: messages[..count].to_vec(),
                tools: tools(case),
                with_answer,
                variables: variables(),
            };
            dialect
                .render(conversation)
                .unwrap_or_else(|error| panic!("{name}: {error}"))
                .text
        };
        // Some open the reasoning, of which there is none here.
        let (before, all) = (render(1, !dialect.reasons()), render(2, false));
        let common = before
            .bytes()
            .zip(all.bytes())
            .take_while(|(one, other)| one == other)
            .count();
        let names = tools(case).into_iter().map(|tool| tool.name).collect();
        let answer = all[common..].trim_start();
        let (called, arguments) = called(&dialect, names, answer);
        let expected = &messages[1]["tool_calls"][0]["function"];
        assert_eq!(called, expected["name"], "{name}: {answer}");
        assert_eq!(
            serde_json::from_str::<Value>(&arguments).unwrap(),
            expected["arguments"],
            "{name}"
        );
    }
}
