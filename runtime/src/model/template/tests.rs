use super::*;
use serde_json::json;
use std::time::{Duration, Instant};

fn template(text: &str) -> ChatTemplate {
    let clock = || "2026-11-24T10:00:00[UTC]".parse().unwrap();
    ChatTemplate::with_clock("t", text, ("<s>".into(), "</s>".into()), clock).unwrap()
}

fn input(messages: serde_json::Value) -> ChatInput {
    ChatInput {
        messages,
        tools: None,
        add_generation_prompt: true,
        variables: serde_json::Map::new(),
    }
}

fn hello() -> ChatInput {
    input(json!([{"role": "user", "content": "Hello"}]))
}

#[test]
fn blocks_swallow_their_lines_as_in_python() {
    let text = "{% for message in messages %}\n    {% if true %}\n{{ message.role }}: {{ message['content'] }}\n    {% endif %}\n{% endfor %}\n{% if add_generation_prompt %}{{ bos_token }}assistant{% endif %}\n";
    assert_eq!(template(text).render(&hello()).unwrap(), "user: Hello\n<s>assistant");
}

#[test]
fn methods_of_python_work() {
    let text = "{% set m = messages[0] %}{{ m.content.upper() }} {{ m.get('name', 'nobody') }} {{ 'a,b'.split(',')|length }} {{ m.content.startswith('He') }} {{ m.items()|list|length }}{{ 'x'.strip() }}";
    assert_eq!(template(text).render(&hello()).unwrap(), "HELLO nobody 2 True 2x");
}

#[test]
fn absent_tools_are_none() {
    let text = "{% if tools is none %}none{% else %}{{ tools[0].name }}{% endif %}{% if not tools %}!{% endif %}";
    let template = template(text);
    assert_eq!(template.render(&hello()).unwrap(), "none!");
    let mut with_tools = hello();
    with_tools.tools = Some(json!([{"name": "clock"}]));
    assert_eq!(template.render(&with_tools).unwrap(), "clock");
}

#[test]
fn json_looks_like_python() {
    let text = "{{ messages[0].value | tojson }}|{{ messages[0].value | tojson(indent=2) }}|{{ messages[0].value | tojson(separators=(',', ':'), sort_keys=true, ensure_ascii=true) }}";
    let value = json!({"b": [1, 2.5, null, true, []], "a": "<é\"\n\u{1}>"});
    let got = template(&format!("{{% if messages[0].value is defined %}}{text}{{% endif %}}"))
        .render(&input(json!([{"role": "user", "content": "", "value": value}])))
        .unwrap();
    let parts: Vec<_> = got.split('|').collect();
    assert_eq!(parts[0], r#"{"b": [1, 2.5, null, true, []], "a": "<é\"\n\u0001>"}"#);
    assert!(parts[1].starts_with("{\n  \"b\": [\n    1,\n    2.5,"), "{}", parts[1]);
    assert_eq!(parts[2], r#"{"a":"<\u00e9\"\n\u0001>","b":[1,2.5,null,true,[]]}"#);
}

#[test]
fn the_clock_is_read_when_rendering() {
    assert_eq!(
        template("{{ strftime_now('%d %b %Y') }}").render(&hello()).unwrap(),
        "24 Nov 2026"
    );
}

#[test]
fn what_a_template_raises_is_told_apart() {
    let text = "{% macro check(m) %}{% if m.role == 'tool' %}{{ raise_exception('no tools: ' ~ m.role) }}{% endif %}{% endmacro %}{% for m in messages %}{{ check(m) }}{{ m.content }}{% endfor %}";
    let template = template(text);
    let error = template
        .render(&input(json!([{"role": "tool", "content": "x"}])))
        .unwrap_err();
    assert!(
        matches!(&error, TemplateError::Raised(message) if message == "no tools: tool"),
        "{error:?}"
    );
    let error = template.render(&input(json!(7))).unwrap_err();
    assert!(matches!(error, TemplateError::Other(_)), "{error:?}");
}

#[test]
fn limits_hold_while_serving() {
    let doubling = "{% set ns = namespace(x='xxxxxxxxxxxxxxxx') %}{% for m in messages if m.loop %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{% endfor %}done";
    let adding = doubling.replace("ns.x ~ ns.x", "ns.x + ns.x");
    let replacing = doubling.replace("ns.x ~ ns.x", "ns.x.replace('x', 'xxxxxxxx')");
    let joining = doubling.replace("ns.x ~ ns.x", "[ns.x, ns.x, ns.x]|join");
    let nesting = doubling
        .replace("ns.x ~ ns.x", "[ns.x, ns.x]")
        .replace("done", "{{ ns.x|tojson }}");
    let looping = "{% for m in messages if m.loop %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}{% endfor %}done";
    let printing = "{% for m in messages if m.loop %}{% for i in range(9999) %}{% for j in range(9999) %}{{ 'x' * 9999 }}{% endfor %}{% endfor %}{% endfor %}done";
    let templates = [doubling, &adding, &replacing, &joining, &nesting, looping, printing];
    for text in templates {
        let template = template(text);
        let started = Instant::now();
        let error = template
            .render(&input(json!([{"role": "user", "content": "", "loop": true}])))
            .unwrap_err();
        assert!(matches!(error, TemplateError::Limit), "{text}: {error:?}");
        assert!(started.elapsed() < Duration::from_secs(5), "{text}");
    }
}

#[test]
fn small_values_with_endless_texts_are_not_written() {
    let doubled = |rest: &str| {
        let doubling = "{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}";
        format!("{{% set ns = namespace(x=['x']) %}}{doubling}{{{{ {rest} }}}}")
    };
    for text in [
        doubled("','.join([ns.x])"),
        doubled("'{}'.format(ns.x)"),
        doubled("raise_exception(ns.x)"),
        "{% set s = 'a' * 50000000 %}{{ ''.join([s] * 100) | length }}".to_owned(),
        "{{ '{:>9999999999}'.format('x') | length }}".to_owned(),
        "{{ '{:}>9999999999}'.format('x') | length }}".to_owned(),
        "{{ ('{:>999}' * 1000000).format('x') | length }}".to_owned(),
    ] {
        let started = Instant::now();
        let refused = ChatTemplate::new("t", &text, String::new(), String::new()).is_err();
        assert!(refused && started.elapsed() < Duration::from_secs(5), "{text}");
    }
    let text = "{{ '-'.join(['a', 'b', 3]) }} {{ '{} {:>3} 2026'.format('c', 4) }}";
    assert_eq!(template(text).render(&hello()).unwrap(), "a-b-3 c   4 2026");
}

/// Each of these would come to the end of an ordinary stack, and end the process.
#[test]
fn templates_that_are_nested_deeply_are_only_strange() {
    let nested = |rest: &str| {
        let loops = "{% for i in range(50000) %}{% set ns.a = [ns.a] %}{% set ns.b = [ns.b] %}{% endfor %}";
        format!("{{% set ns = namespace(a=[1], b=[1]) %}}{loops}{rest}")
    };
    for text in [
        format!("{{{{ {}1 }}}}", "-".repeat(100_000)),
        format!("{{{{ {}1 }}}}", "not ".repeat(30_000)),
        format!("{{{{ 1{} }}}}", "+1".repeat(60_000)),
        format!("{{{{ 1{} }}}}", "**1".repeat(40_000)),
        format!("{{{{ x{} }}}}", ".a".repeat(60_000)),
        format!("{{{{ x{} }}}}", "()".repeat(60_000)),
        format!("{{{{ 1{} }}}}", "|int".repeat(30_000)),
        format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(10_000)),
        nested("{{ ns.a == ns.b }}"),
        nested("{{ ns.a }}"),
        nested("{{ ns.a | tojson }}"),
    ] {
        let _ = ChatTemplate::new("t", &text, String::new(), String::new());
    }
}

#[test]
fn broken_templates_are_refused_when_loading() {
    let table = [
        "{% for %}",
        "{{ messages[0].content.no_such_method() }}",
        "{{ raise_exception('never') }}",
        "{% include 'other' %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    ];
    for text in table {
        let refusal = ChatTemplate::new("t", text, String::new(), String::new()).unwrap_err();
        assert_eq!(refusal.reason, Reason::TemplateRefused, "{text}");
    }
}
