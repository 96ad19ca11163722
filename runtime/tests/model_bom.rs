//! The bill of materials of a model.

#![expect(clippy::unwrap_used, reason = "a helper of tests fails the test")]

mod serving;

use clap::Parser;
use escadre_runtime::args::{Args, Command};
use escadre_runtime::inspect;
use escadre_verify::Digest;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

fn bom(model: &Path) -> Value {
    let args = Args::parse_from([
        "escadre-runtime",
        "inspect",
        "--bom",
        "--model",
        model.to_str().unwrap(),
    ]);
    let Command::Inspect(args) = args.command else {
        panic!("another command")
    };
    let mut out = Vec::new();
    inspect::run_to(&args, &mut out).unwrap();
    serde_json::from_slice(&out).unwrap()
}

#[test]
fn bill_names_every_file_by_its_digest_and_says_how_each_statement_is_known() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("smollm2");
    fs::create_dir(&root).unwrap();
    fs::copy(serving::model(), root.join("model.gguf")).unwrap();
    fs::write(root.join("NOTICE"), "made for a test").unwrap();
    let document = bom(&root);
    assert_eq!(
        (&document["bomFormat"], &document["specVersion"]),
        (&json!("CycloneDX"), &json!("1.6"))
    );
    let model = &document["metadata"]["component"];
    assert_eq!(
        (&model["type"], &model["name"]),
        (&json!("machine-learning-model"), &json!("smollm2"))
    );
    assert_eq!(model["licenses"], json!([{"expression": "Apache-2.0"}]));
    let files = model["components"].as_array().unwrap();
    let names: Vec<_> = files.iter().map(|file| file["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["NOTICE", "model.gguf"]);
    let notice = Digest::of(b"made for a test").hex();
    assert_eq!(files[0]["hashes"], json!([{"alg": "SHA-256", "content": notice}]));
    let property = |name: &str| {
        let properties = model["properties"].as_array().unwrap();
        let found = properties.iter().find(|property| property["name"] == name);
        found.map(|property| property["value"].as_str().unwrap().to_owned())
    };
    assert_eq!(property("escadre:evidence:model-digest").as_deref(), Some("verified"));
    assert_eq!(property("escadre:evidence:licenses").as_deref(), Some("declared"));
    assert!(
        property("escadre:license-found")
            .unwrap()
            .contains("general.license of model.gguf")
    );
    assert_eq!(bom(&root), document, "the same model gives the same document");
}
