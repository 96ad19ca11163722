//! Writes `docs/reference/llmdeployment.md` and the chart's CRD from the types. Pure: text in, text out.

use std::fmt::Write as _;

use kube::CustomResourceExt;
use serde_json::Value;
use strum::IntoEnumIterator;

use crate::condition::{self, ConditionType, VerifyReason};
use crate::v1alpha1::{LlmDeployment, ModelPolicy};

/// The CRD as a Helm template: behind `crds.install`, so that `helm upgrade` updates it. It carries the annotation
/// that keeps it, and with it every object, when the chart is uninstalled.
///
/// # Errors
/// When the CRD cannot be written as YAML.
pub fn chart_template<K: CustomResourceExt>() -> anyhow::Result<String> {
    let crd = serde_saphyr::to_string(&K::crd())?;
    anyhow::ensure!(!crd.contains("{{"), "the CRD contains a Helm template expression");
    Ok(format!(
        "{{{{- /* Written by `make generate`; edit crds/src/v1alpha1 instead. */ -}}}}\n{{{{- if .Values.crds.install }}}}\n{}\n{{{{- end }}}}\n",
        crd.trim_end()
    ))
}

/// The reference page of `LlmDeployment`.
///
/// # Errors
/// When the schema cannot be read as JSON.
pub fn page() -> anyhow::Result<String> {
    let schema = schema::<LlmDeployment>()?;
    let mut page = String::from(
        "<!-- Written by `make generate`; edit crds/src/v1alpha1 instead. -->\n\n# LlmDeployment (`escadre.dev/v1alpha1`)\n\nShort name `llm`. \
         Each field says whether an edit *rolls* (makes a new revision, so new pods), *works live*, or *waits for the next revision*.\n",
    );
    for part in ["spec", "status"] {
        write!(
            page,
            "\n## {part}\n\n| Field | Type | Default | Meaning |\n|---|---|---|---|\n"
        )?;
        rows(&schema["properties"][part], part, &mut page)?;
    }
    page.push_str("\n## Rules\n\nThe API server checks these at `kubectl apply`; the sentence is what it answers.\n\n");
    rules(&schema, "", &mut page)?;
    conditions(&mut page)?;
    Ok(page)
}

/// The reference page of `ModelPolicy`.
///
/// # Errors
/// When the schema cannot be read as JSON.
pub fn policy_page() -> anyhow::Result<String> {
    let schema = schema::<ModelPolicy>()?;
    let mut page = String::from(
        "<!-- Written by `make generate`; edit crds/src/v1alpha1 instead. -->\n\n# ModelPolicy (`escadre.dev/v1alpha1`)\n\n\
         Belongs to no namespace. All policies that apply to a namespace hold together.\n\n## spec\n\n\
         | Field | Type | Default | Meaning |\n|---|---|---|---|\n",
    );
    rows(&schema["properties"]["spec"], "spec", &mut page)?;
    page.push_str("\n## Rules\n\nThe API server checks these at `kubectl apply`; the sentence is what it answers.\n\n");
    rules(&schema, "", &mut page)?;
    Ok(page)
}

fn schema<K: CustomResourceExt>() -> anyhow::Result<Value> {
    let crd = K::crd();
    let version = crd.spec.versions.first();
    let schema = version.and_then(|version| version.schema.as_ref());
    Ok(serde_json::to_value(
        schema.and_then(|schema| schema.open_api_v3_schema.as_ref()),
    )?)
}

/// Kubernetes types whose inner fields are described by Kubernetes itself.
const OPAQUE: [&str; 8] = [
    "spec.rollout.canary.steps[].gates",
    "spec.model.verification.signatures",
    "spec.namespaceSelector",
    "spec.runtime.env[].valueFrom",
    "spec.placement.affinity",
    "spec.placement.tolerations",
    "spec.placement.topologySpread",
    "status.conditions",
];

fn rows(schema: &Value, path: &str, page: &mut String) -> std::fmt::Result {
    let Some(properties) = schema["properties"].as_object() else {
        return Ok(());
    };
    let required: Vec<&str> = schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    for (name, property) in properties {
        let path = format!("{path}.{name}");
        let meaning = property["description"]
            .as_str()
            .unwrap_or_default()
            .replace('\n', " ")
            .replace('|', "\\|");
        let default = match &property["default"] {
            Value::Null if required.contains(&name.as_str()) => "required".to_owned(),
            Value::Null => String::new(),
            Value::Object(_) => "see below".to_owned(),
            value => format!("`{value}`"),
        };
        writeln!(page, "| `{path}` | {} | {default} | {meaning} |", type_of(property))?;
        if !OPAQUE.contains(&path.as_str()) {
            rows(property, &path, page)?;
            rows(&property["items"], &format!("{path}[]"), page)?;
        }
    }
    Ok(())
}

fn type_of(property: &Value) -> String {
    if property["x-kubernetes-int-or-string"] == Value::Bool(true) {
        return "number or text".to_owned();
    }
    if let Some(values) = property["enum"].as_array() {
        let names: Vec<String> = values
            .iter()
            .filter_map(Value::as_str)
            .map(|name| format!("`{name}`"))
            .collect();
        return names.join(" \\| ");
    }
    match property["type"].as_str() {
        Some("array") => format!("list of {}", property["items"]["type"].as_str().unwrap_or("values")),
        Some("object") if property["additionalProperties"].is_object() => "map of strings".to_owned(),
        Some(name) => name.to_owned(),
        None => "object".to_owned(),
    }
}

fn rules(schema: &Value, path: &str, page: &mut String) -> std::fmt::Result {
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        let place = if path.is_empty() { "the object" } else { path };
        writeln!(page, "- `{place}`: {}", rule["message"].as_str().unwrap_or_default())?;
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() {
            name.clone()
        } else {
            format!("{path}.{name}")
        };
        rules(property, &path, page)?;
        rules(&property["items"], &format!("{path}[]"), page)?;
    }
    Ok(())
}

fn conditions(page: &mut String) -> std::fmt::Result {
    page.push_str(
        "\n## Conditions\n\n`Ready` takes the reason of the first condition that is `False` in this order, else of the first that is `Unknown`: ",
    );
    let order: Vec<String> = condition::READY_ORDER.iter().map(|one| format!("`{one}`")).collect();
    writeln!(page, "{}.\n\n| Condition | Reasons |\n|---|---|", order.join(", "))?;
    for one in ConditionType::iter() {
        let mut names: Vec<String> = condition::reasons(one)
            .iter()
            .map(|reason| format!("`{reason}`"))
            .collect();
        if one == ConditionType::ModelVerified {
            names.extend(VerifyReason::iter().map(|reason| format!("`{reason}`")));
        }
        if names.is_empty() {
            names.push(match one {
                ConditionType::Ready => "those above; `VerifyFailed` where `ModelVerified` is false".to_owned(),
                _ => "those above".to_owned(),
            });
        }
        writeln!(page, "| `{one}` | {} |", names.join(", "))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Client-side `kubectl apply` keeps the whole object in one annotation.
    #[test]
    fn crd_fits_client_side_apply() {
        let size = serde_json::to_vec(&LlmDeployment::crd()).unwrap().len();
        assert!(size <= 64 * 1024, "the CRD has {size} bytes");
    }

    #[test]
    fn every_field_is_described() {
        let page = page().unwrap();
        for line in page
            .lines()
            .filter(|line| line.starts_with("| `spec.") || line.starts_with("| `status."))
        {
            assert!(!line.ends_with("|  |"), "no description: {line}");
        }
    }

    #[test]
    fn chart_template_is_the_crd() {
        let template = chart_template::<LlmDeployment>().unwrap();
        let lines: Vec<&str> = template.lines().filter(|line| !line.starts_with("{{")).collect();
        let yaml = lines.join("\n");
        let parsed: Value = serde_saphyr::from_str(&yaml).unwrap();
        assert_eq!(parsed, serde_json::to_value(LlmDeployment::crd()).unwrap());
    }
}
