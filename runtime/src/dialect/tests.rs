use super::*;
use crate::grammar::Grammar;
use serde_json::json;

/// Templates that write as the well-known ones do, without their rules for system messages and dates.
const HERMES: &str = r#"{%- if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}Answer with <tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>
{% endif %}{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content or '' }}{% for call in message.tool_calls or [] %}{% if message.content or not loop.first %}
{% endif %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"#;
const MISTRAL: &str = r#"{%- if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}{%- for message in messages %}{% if message.role == 'user' %}[INST]{{ message.content }}[/INST]{% elif message.tool_calls is defined and message.tool_calls %}[TOOL_CALLS][{% for call in message.tool_calls %}{% if call.id | length != 9 %}{{ raise_exception('nine') }}{% endif %}{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}, "id": "{{ call.id }}"}{% if not loop.last %}, {% endif %}{% endfor %}]{% elif message.role == 'tool' %}[TOOL_RESULTS]{{ message.content }}[/TOOL_RESULTS]{% else %}{{ message.content }}{% endif %}{% endfor %}"#;
const NAMED: &str = r"{%- if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}{%- for message in messages %}{% for call in message.tool_calls or [] %}[TOOL_CALLS]{{ call.function.name }}[ARGS]{{ '' + call.function.arguments }}{% endfor %}{{ message.content }}{% endfor %}";
const LLAMA: &str = r#"{%- if tools %}{% for tool in tools %}{{ tool | tojson(indent=4) }}{% endfor %}Respond as {"name": function name, "parameters": dictionary}{% endif %}{%- for message in messages %}{% if 'tool_calls' in message %}{% if not message.tool_calls | length == 1 %}{{ raise_exception('one') }}{% endif %}{"name": "{{ message.tool_calls[0].function.name }}", "parameters": {{ message.tool_calls[0].function.arguments | tojson }}}<|eot_id|>{% else %}{{ message.content }}{% endif %}{% endfor %}"#;
const PLAIN: &str = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
const FOREIGN: &str = "{% for tool in tools or [] %}{{ tool.function.name }}{% endfor %}{% for message in messages %}{{ message.content }}{% for call in message.tool_calls or [] %}functools[{{ call.function.name }} {{ call.function.arguments | tojson }}]{% endfor %}{% endfor %}";

fn template(text: &str) -> ChatTemplate {
    ChatTemplate::new("t", text, "<s>".into(), "</s>".into()).unwrap()
}

fn dialect(text: &str) -> Dialect {
    Dialect::of(template(text), |_| None)
}

fn tool(name: &str) -> Tool {
    Tool {
        name: name.to_owned(),
        parameters: json!({"type": "object"}),
        definition: json!({"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}),
    }
}

fn conversation(messages: Vec<Value>, tools: Vec<Tool>) -> Conversation {
    Conversation {
        messages,
        tools,
        with_answer: true,
        variables: serde_json::Map::new(),
    }
}

fn called() -> Vec<Value> {
    vec![
        json!({"role": "user", "content": "How warm?"}),
        json!({"role": "assistant", "content": "Let me see.", "tool_calls": [{
            "id": "abcdefgh1", "type": "function",
            "function": {"name": "weather", "arguments": {"city": "Köln", "of": [1, 2]}}
        }]}),
        json!({"role": "tool", "content": "21", "tool_call_id": "abcdefgh1"}),
    ]
}

/// What becomes of a text that comes in pieces of so many characters.
fn split(dialect: &Dialect, text: &str, step: usize, is_reasoning: bool) -> Vec<Spoken> {
    let mut splitter = dialect.splitter(vec!["weather".into(), "weather_long".into()], is_reasoning);
    let characters: Vec<char> = text.chars().collect();
    let mut spoken: Vec<Spoken> = Vec::new();
    let mut take = |parts: Vec<Spoken>| {
        for part in parts {
            match (spoken.last_mut(), part) {
                (Some(Spoken::Content(last)), Spoken::Content(more))
                | (Some(Spoken::Reasoning(last)), Spoken::Reasoning(more))
                | (Some(Spoken::Arguments(last)), Spoken::Arguments(more)) => last.push_str(&more),
                (_, part) => spoken.push(part),
            }
        }
    };
    for piece in characters.chunks(step) {
        take(splitter.push(&piece.iter().collect::<String>()));
    }
    take(splitter.finish());
    spoken
}

fn content(text: &str) -> Spoken {
    Spoken::Content(text.to_owned())
}

fn call(name: &str, arguments: &str) -> [Spoken; 2] {
    let name = name.to_owned();
    [Spoken::Call { name, id: None }, Spoken::Arguments(arguments.to_owned())]
}

#[test]
fn the_template_shows_how_calls_are_written() {
    for (text, syntax, arguments_are_text) in [
        (HERMES, &calls::HERMES, false),
        (MISTRAL, &calls::MISTRAL, false),
        (NAMED, &calls::MISTRAL_NAMED, true),
        (LLAMA, &calls::LLAMA, false),
    ] {
        let expected = Calls::Taught {
            syntax,
            arguments_are_text,
        };
        assert_eq!(dialect(text).calls, expected, "{text}");
    }
    assert_eq!(dialect(PLAIN).calls, Calls::Untaught);
    assert_eq!(dialect(FOREIGN).calls, Calls::Foreign);
    let refused = dialect(FOREIGN).render(conversation(called(), vec![tool("weather")]));
    assert!(matches!(refused, Err(DialectError::Foreign)), "{refused:?}");
}

#[test]
fn an_untaught_model_is_told_in_words() {
    let messages = [vec![json!({"role": "system", "content": "Be brief."})], called()].concat();
    let rendered = dialect(PLAIN).render(conversation(messages, vec![tool("weather")]));
    let text = rendered.unwrap().text;
    assert!(text.starts_with("<system>Be brief.\n\nYou can call"), "{text}");
    assert!(
        text.contains("\n{\"name\": \"weather\", \"parameters\": {\"type\": \"object\"}}\n</tools>"),
        "{text}"
    );
    let answer = "<assistant>Let me see.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Köln\", \"of\": [1, 2]}}\n</tool_call><user><tool_response>\n21\n</tool_response><assistant>";
    assert!(text.ends_with(answer), "{text}");
}

#[test]
fn what_a_template_writes_is_read_again() {
    for text in [HERMES, MISTRAL, LLAMA, NAMED] {
        let dialect = dialect(text);
        let mut messages = called();
        messages.truncate(2);
        messages[1]["content"] = json!("");
        let question = dialect
            .render(Conversation {
                with_answer: false,
                ..conversation(messages[..1].to_vec(), vec![tool("weather")])
            })
            .unwrap();
        let all = dialect
            .render(Conversation {
                with_answer: false,
                ..conversation(messages, vec![tool("weather")])
            })
            .unwrap();
        let answer = all.text.strip_prefix(&question.text).unwrap();
        let answer = answer.replace(", \"id\": \"abcdefgh1\"", "");
        let answer = answer.trim_start_matches("<|im_start|>assistant\n");
        let answer = answer.trim_end_matches("<|im_end|>\n").trim_end_matches("<|eot_id|>");
        for step in [1, 3, 1000] {
            let expected = call("weather", "{\"city\": \"Köln\", \"of\": [1, 2]}");
            assert_eq!(split(&dialect, answer, step, false), expected, "{answer}");
        }
    }
}

#[test]
fn text_before_calls_and_several_calls_are_told_apart() {
    let dialect = dialect(HERMES);
    let text = "Well <tool, so:\n\n<tool_call>\n{\"name\": \"weather_long\", \"arguments\": {\"a\": \"}\\\"{\"}}\n</tool_call>\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {}}\n</tool_call>";
    for step in [1, 2, 5, 1000] {
        let [first, arguments] = call("weather_long", "{\"a\": \"}\\\"{\"}");
        let [second, none] = call("weather", "{}");
        let expected = [content("Well <tool, so:"), first, arguments, second, none];
        assert_eq!(split(&dialect, text, step, false), expected);
    }
    assert_eq!(
        split(&dialect, "a <b> <tool_cal ", 1, false),
        [content("a <b> <tool_cal ")]
    );
}

#[test]
fn identifiers_of_the_model_are_kept() {
    let text = NAMED.replace("[ARGS]", "[CALL_ID]{{ call.id }}[ARGS]");
    let dialect = dialect(&text);
    let answer = "[TOOL_CALLS]weather[CALL_ID]a1b2c3d4e[ARGS]{}";
    for step in [1, 4, 1000] {
        let call = Spoken::Call {
            name: "weather".into(),
            id: Some("a1b2c3d4e".into()),
        };
        assert_eq!(
            split(&dialect, answer, step, false),
            [call, Spoken::Arguments("{}".into())]
        );
    }
    let tools = [tool("weather")];
    let wanted = Wanted {
        tools: &tools,
        choice: Choice::Required,
        parallel: true,
        content: None,
        is_reasoning: false,
    };
    let takes = taker(&text, wanted);
    assert!(takes(answer) && !takes("[TOOL_CALLS]weather[ARGS]{}") && !takes("[TOOL_CALLS]weather[CALL_ID]a[ARGS]{}"));
}

#[test]
fn json_that_is_no_call_is_text() {
    let dialect = dialect(LLAMA);
    for text in [
        "{\"name\": \"Bob\", \"age\": 3}",
        "{\"name\": \"wea",
        "{}",
        "Hello {\"name\": \"weather\"",
    ] {
        for step in [1, 1000] {
            assert_eq!(split(&dialect, text, step, false), [content(text)]);
        }
    }
}

#[test]
fn an_answer_that_is_cut_keeps_what_is_known() {
    let dialect = dialect(HERMES);
    let cut = "Yes.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"K";
    let [name, arguments] = call("weather", "{\"city\": \"K");
    assert_eq!(split(&dialect, cut, 1, false), [content("Yes."), name, arguments]);
    assert_eq!(split(&dialect, "Yes.\n<tool_call>\n{\"na", 1, false), [content("Yes.")]);
}

#[test]
fn reasoning_is_kept_apart() {
    let text = [HERMES, "{# <think> </think> #}"].concat();
    let dialect = dialect(&text);
    assert!(dialect.reasons());
    let thought = Spoken::Reasoning("Is it\nwarm?".into());
    for step in [1, 4, 1000] {
        for (said, is_reasoning, expected) in [
            (
                "<think>\nIs it\nwarm?\n</think>\n\nYes.",
                false,
                vec![thought.clone(), content("Yes.")],
            ),
            ("Is it\nwarm?</think>Yes.", true, vec![thought.clone(), content("Yes.")]),
            ("<think>\n\n</think>\n\nYes.", false, vec![content("Yes.")]),
            ("<thin ice", false, vec![content("<thin ice")]),
            ("Yes.", false, vec![content("Yes.")]),
            ("<think>Is it\nwarm?", false, vec![thought.clone()]),
        ] {
            assert_eq!(split(&dialect, said, step, is_reasoning), expected, "{said:?}");
        }
    }
}

fn taker(text: &str, wanted: Wanted<'_>) -> impl Fn(&str) -> bool {
    let grammars = crate::grammar::tests::grammars();
    let dialect = Dialect::of(template(text), |marker| grammars.control(marker));
    let grammar = dialect.grammar(wanted).unwrap();
    move |text| grammars.takes(&grammar, text)
}

fn weather() -> Tool {
    Tool {
        parameters: json!({"type": "object", "properties": {"c": {"enum": ["<tool_call>", "}"]}}, "required": ["c"], "additionalProperties": false}),
        ..tool("weather")
    }
}

#[test]
fn a_model_that_may_call_says_anything_or_calls_as_it_should() {
    let tools = [weather(), tool("weather_long")];
    let wanted = Wanted {
        tools: &tools,
        choice: Choice::Auto,
        parallel: true,
        content: None,
        is_reasoning: false,
    };
    let good = r#"{"name": "weather", "WORD": {"c": "}"}}"#;
    let other = r#"{"name": "weather_long", "WORD": {}}"#;
    for (text, calls, wrong) in [
        (
            HERMES,
            vec![
                "<tool_call>\nGOOD\n</tool_call>",
                "Well:\n\n<tool_call>\nGOOD\n</tool_call>\n<tool_call>\nOTHER\n</tool_call>",
            ],
            vec![
                "<tool_call>",
                "<tool_call>\nGOOD",
                "a <tool_call>{}",
                "<tool_call>\nGOOD\n</tool_call> and",
            ],
        ),
        (
            MISTRAL,
            vec!["[TOOL_CALLS][GOOD]", "Well: [TOOL_CALLS][OTHER, GOOD]"],
            vec!["[TOOL_CALLS]GOOD", "[TOOL_CALLS]", "[ARGS]"],
        ),
        (
            NAMED,
            vec![
                "[TOOL_CALLS]weather[ARGS]{\"c\": \"}\"}",
                "a[TOOL_CALLS]weather_long[ARGS]{}[TOOL_CALLS]weather_long[ARGS]{}",
            ],
            vec!["[TOOL_CALLS]weather{}", "[TOOL_CALLS]other[ARGS]{}"],
        ),
        (
            LLAMA,
            vec!["GOOD", "OTHER"],
            vec!["GOOD and", "{\"name\": \"Bob\"}", "{}"],
        ),
    ] {
        let word = if text == LLAMA { "parameters" } else { "arguments" };
        let spell = |text: &str| text.replace("GOOD", good).replace("OTHER", other).replace("WORD", word);
        for parallel in [true, false] {
            let takes = taker(
                text,
                Wanted {
                    parallel,
                    ..wanted.clone()
                },
            );
            assert!(takes("Hello, <you>!\n") && takes(""), "{text}");
            assert!(takes(&spell(calls[0])), "{text}");
            // The second has several calls, where there may be several.
            assert_eq!(takes(&spell(calls[1])), parallel || text == LLAMA, "{text}");
            for wrong in &wrong {
                assert!(!takes(&spell(wrong)), "{wrong} in {text}");
            }
        }
        let required = taker(
            text,
            Wanted {
                choice: Choice::Required,
                ..wanted.clone()
            },
        );
        assert!(
            required(&spell(calls[0])) && !required("Hello") && !required(""),
            "{text}"
        );
        let bad = spell(calls[0]).replace("\"}\"", "\"x\"").replace("weather\"", "w\"");
        assert!(!required(&bad), "{bad}");
    }
}

#[test]
fn text_is_held_to_something_unless_a_tool_is_called_and_behind_the_reasoning() {
    let tools = [weather()];
    let wanted = Wanted {
        tools: &tools,
        choice: Choice::Auto,
        parallel: true,
        content: Some(Grammar::JsonSchema(json!({"type": "integer"}))),
        is_reasoning: false,
    };
    let takes = taker(HERMES, wanted.clone());
    assert!(takes("12") && !takes("Well") && !takes("<tool_call>"));
    assert!(takes(
        "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"c\": \"<tool_call>\"}}\n</tool_call>"
    ));
    let reasoning = [HERMES, "{# <think> </think> #}"].concat();
    let takes = taker(
        &reasoning,
        Wanted {
            tools: &[],
            ..wanted.clone()
        },
    );
    assert!(takes("12") && takes("<think>\nIs it 12? <b>\n</think>\n\n12") && takes("<think></think>12"));
    assert!(!takes("<think>12") && !takes("hm</think>12") && !takes("<think>\n</think>x"));
    let inside = taker(
        &reasoning,
        Wanted {
            tools: &[],
            is_reasoning: true,
            ..wanted
        },
    );
    assert!(inside("hm</think>\n12") && !inside("12"));
}

#[test]
fn grammar_is_only_there_when_something_is_wanted() {
    let dialect = dialect(HERMES);
    let wanted = Wanted {
        tools: &[],
        choice: Choice::Auto,
        parallel: true,
        content: None,
        is_reasoning: false,
    };
    assert_eq!(dialect.grammar(wanted.clone()), None);
    let json = Wanted {
        content: Some(Grammar::JsonObject),
        ..wanted.clone()
    };
    assert_eq!(dialect.grammar(json), Some(Grammar::JsonObject));
    let tools = [tool("weather")];
    let with_tools = Wanted {
        tools: &tools,
        ..wanted
    };
    assert!(matches!(dialect.grammar(with_tools), Some(Grammar::Composed { parts, .. }) if parts.len() == 1));
}
