//! The bill of materials of a model: a `CycloneDX` 1.6 document that says which bytes it consists of, what it is, and of each
//! statement whether it was verified or is only declared.
//!
//! The format: <https://cyclonedx.org/docs/1.6/json/>. It has no place for how well a statement is known, so that properties
//! named `escadre:evidence:…` say it.

use super::Report;
use escadre_verify::VerifiedModel;
use serde_json::{Value, json};

/// Bytes were hashed, or a structure was checked, by this program.
const VERIFIED: &str = "verified";
/// A file says so.
const DECLARED: &str = "declared";

/// The document. The same model gives the same document.
pub(super) fn document(model: &VerifiedModel, report: &Report, name: &str) -> Value {
    let (digest, short) = (model.digest(), model.digest().short());
    let files = model.digests().map(|(file, digest)| {
        json!({
            "type": "file",
            "bom-ref": format!("file:{file}"),
            "name": file,
            "hashes": [{"alg": "SHA-256", "content": digest.hex()}],
            "properties": [evidence("hashes", VERIFIED)],
        })
    });
    let mut properties = vec![
        json!({"name": "escadre:model-digest", "value": digest.to_string()}),
        json!({"name": "escadre:format", "value": report.format}),
        json!({"name": "escadre:parameters", "value": report.parameters.to_string()}),
        evidence("model-digest", VERIFIED),
        evidence("format", VERIFIED),
        evidence("parameters", VERIFIED),
        evidence("modelCard", DECLARED),
    ];
    for found in &report.licenses {
        properties.push(json!({"name": "escadre:license-found", "value": found.to_string()}));
    }
    let mut component = json!({
        "type": "machine-learning-model",
        "bom-ref": format!("model:{short}"),
        "name": name,
        "version": short,
        "modelCard": {"modelParameters": {"architectureFamily": "transformer", "modelArchitecture": report.architecture}},
        "components": files.collect::<Vec<_>>(),
    });
    if let Some(license) = &report.license {
        component["licenses"] = json!([{"expression": license}]);
        properties.push(evidence("licenses", DECLARED));
    }
    component["properties"] = json!(properties);
    json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "tools": {"components": [{
                "type": "application", "name": "escadre-runtime", "version": env!("CARGO_PKG_VERSION"),
            }]},
            "component": component,
        },
    })
}

fn evidence(field: &str, how: &str) -> Value {
    json!({"name": format!("escadre:evidence:{field}"), "value": how})
}
