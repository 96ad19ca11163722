//! Files that are laid over a model, and a format that is asked for.

#![expect(clippy::unwrap_used, reason = "a helper of tests fails the test")]

mod serving;

use escadre_runtime::model::{ChatInput, Format, LoadError, LoadOptions, Loaded, load};
use escadre_verify::{Digest, VerifiedModel};
use std::collections::BTreeMap;

fn load_over(files: &[(&str, &str)], format: Option<Format>) -> Result<Loaded, LoadError> {
    let mut model = VerifiedModel::open(&serving::model(), None, &mut |_, _| {}).unwrap();
    let files = files
        .iter()
        .map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec()));
    model.lay_over(files.collect::<BTreeMap<_, _>>()).unwrap();
    let options = LoadOptions {
        max_context: Some(64),
        format,
        ..LoadOptions::default()
    };
    load(&model, &options, &mut |_, _| {})
}

fn refusal(result: Result<Loaded, LoadError>) -> String {
    match result {
        Err(LoadError::Refused(refusal)) => format!("{}: {refusal}", refusal.reason),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it was loaded"),
    }
}

#[test]
fn template_that_is_laid_over_the_model_is_the_one_that_is_used() {
    let text = "{% for message in messages %}[{{ message.content }}]{% endfor %}";
    let loaded = load_over(&[("chat_template.jinja", text)], Some(Format::Gguf)).unwrap();
    let digest = Digest::of(text.as_bytes()).to_string();
    assert_eq!(loaded.description.template_digest, Some(digest));
    let input = ChatInput {
        messages: serde_json::json!([{"role": "user", "content": "ahoy"}]),
        tools: None,
        add_generation_prompt: false,
        variables: serde_json::Map::new(),
    };
    assert_eq!(loaded.template.unwrap().render(&input).unwrap(), "[ahoy]");
}

#[test]
fn overlay_without_effect_and_another_format_are_refused_before_loading() {
    let text = refusal(load_over(&[("generation_config.json", "{}")], None));
    assert!(text.starts_with("PathInvalid: generation_config.json"), "{text}");
    assert!(text.contains("only chat_template.jinja can be laid over it"), "{text}");
    let text = refusal(load_over(&[], Some(Format::Safetensors)));
    assert!(text.starts_with("FormatRefused"), "{text}");
    assert!(text.contains("expected Safetensors, got GGUF"), "{text}");
}

#[test]
fn broken_template_is_refused_with_its_file() {
    let text = refusal(load_over(&[("chat_template.jinja", "{% for %}")], None));
    assert!(text.starts_with("TemplateRefused: chat_template.jinja"), "{text}");
}
