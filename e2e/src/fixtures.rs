//! Manifests for scenarios, as JSON. Names differ from the defaults, so that a swapped field shows.

use serde_json::{Value, json};

/// Digest of nothing that exists: for scenarios whose pods never run a model.
pub const SOME_DIGEST: &str = "sha256:5f2b51ca2fdc5baa31ec02e002f69aec5a5e1b1a2d2d9ef9e8a3b2b6d7b2c0de";

/// An `LlmDeployment` under construction.
#[derive(Debug, Clone)]
pub struct Deployment(Value);

impl Deployment {
    /// The smallest valid one: name, source, digest; and rollouts that do not wait longer than they must.
    pub fn named(name: &str) -> Self {
        Self(json!({
            "apiVersion": "escadre.dev/v1alpha1",
            "kind": "LlmDeployment",
            "metadata": {"name": name},
            "spec": {
                "model": {
                    "source": "hf://fixture-owner/fixture-model",
                    "verification": {"digest": SOME_DIGEST},
                },
                "rollout": {"minReadySeconds": 0},
            },
        }))
    }

    /// Another model with its digest.
    #[must_use]
    pub fn model(self, source: &str, digest: &str) -> Self {
        self.set("/spec/model/source", json!(source))
            .set("/spec/model/verification/digest", json!(digest))
    }

    /// A mirror that plays the hub.
    #[must_use]
    pub fn endpoint(self, url: &str) -> Self {
        self.set("/spec/model/endpoint", json!(url))
    }

    /// A replica count.
    #[must_use]
    pub fn replicas(self, replicas: i64) -> Self {
        self.set("/spec/replicas", json!(replicas))
    }

    /// GPUs of each replica.
    #[must_use]
    pub fn gpus(self, gpus: u32) -> Self {
        self.set("/spec/resources/gpu/count", json!(gpus))
    }

    /// CPU and memory of each replica.
    #[must_use]
    pub fn resources(self, cpu: &str, memory: &str) -> Self {
        self.set("/spec/resources/cpu", json!(cpu))
            .set("/spec/resources/memory", json!(memory))
    }

    /// Any field by its JSON pointer; parents that are missing are made.
    #[must_use]
    pub fn set(mut self, pointer: &str, value: Value) -> Self {
        let target = pointer.split('/').skip(1).fold(&mut self.0, |parent, key| {
            if !parent.is_object() {
                *parent = json!({});
            }
            &mut parent[key]
        });
        *target = value;
        self
    }

    /// The manifest.
    pub fn into_value(self) -> Value {
        self.0
    }
}

/// A pod with one container of `image`, with what a restricted namespace asks for.
pub fn pod(name: &str, image: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "main",
                "image": image,
                "imagePullPolicy": "IfNotPresent",
                "securityContext": {
                    "runAsNonRoot": true,
                    "runAsUser": 65532,
                    "readOnlyRootFilesystem": true,
                    "allowPrivilegeEscalation": false,
                    "capabilities": {"drop": ["ALL"]},
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
            }],
        },
    })
}

/// A pod that wants `gpus` GPUs.
pub fn gpu_pod(name: &str, gpus: u32) -> Value {
    let mut pod = pod(name, "escadre.dev/pause:1");
    pod["spec"]["containers"][0]["resources"] = json!({"limits": {"nvidia.com/gpu": gpus}});
    pod["spec"]["tolerations"] = json!([{"key": "nvidia.com/gpu", "operator": "Exists"}]);
    pod
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_set_by_pointer() {
        let value = Deployment::named("chat")
            .gpus(2)
            .set("/spec/drain/timeoutSeconds", json!(7))
            .into_value();
        assert_eq!(value["spec"]["resources"]["gpu"]["count"], 2);
        assert_eq!(value["spec"]["drain"]["timeoutSeconds"], 7);
        assert_eq!(value["spec"]["model"]["source"], "hf://fixture-owner/fixture-model");
    }
}
