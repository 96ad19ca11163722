//! Objects for the tests of the pure steps. Values are unlike the defaults, so that swapped fields show.

use std::sync::Arc;

use escadre_crds::{LlmDeployment, names};
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::core::{PartialObjectMeta, PartialObjectMetaExt as _};
use serde_json::{Value, json};

use super::dependencies::Dependencies;
use super::observe::{Observed, ObservedPod, Probed, Report};
use super::plan::{self, Plan};
use super::validate::{Valid, validate};
use super::{Outcome, Work, apply, build};
use crate::args::PullPolicy;
use crate::context::Defaults;
use crate::runtime_status::Said;

/// The digest of the fixtures' model.
pub(super) const DIGEST: &str = "sha256:ab0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0acd";

/// A time.
pub(super) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

/// An object with these fields over the usual spec.
pub(super) fn object(spec: &Value) -> LlmDeployment {
    let mut full = json!({
        "apiVersion": "escadre.dev/v1alpha1",
        "kind": "LlmDeployment",
        "metadata": {"name": "support", "namespace": "models", "uid": "owner-uid", "generation": 5, "resourceVersion": "77"},
        "spec": {"model": {"source": "hf://owner/name", "verification": {"digest": DIGEST}}, "replicas": 2},
    });
    merge(&mut full["spec"], spec);
    serde_json::from_value(full).unwrap()
}

fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}

/// A world with these pods.
pub(super) fn world(pods: Vec<ObservedPod>) -> Observed {
    Observed {
        pods,
        foreign: vec![],
        service: None,
        revisions: vec![],
        dependencies: Dependencies::default(),
        policies: vec![],
        defaults: Defaults {
            runtime_image: "registry.example.com/runtime:7".to_owned(),
            pull_policy: PullPolicy::Always,
        },
    }
}

/// A record as its watch tells of it.
pub(super) fn watched(record: &ControllerRevision) -> Arc<PartialObjectMeta<ControllerRevision>> {
    Arc::new(record.metadata.clone().into_response_partial())
}

/// The valid form of an object in a world.
pub(super) fn valid(object: &LlmDeployment, observed: &Observed) -> Valid {
    validate(object, observed).unwrap()
}

/// The outcome of a pass in which every write succeeds.
pub(super) fn pass(object: &LlmDeployment, observed: &Observed, now: Timestamp) -> Outcome {
    match validate(object, observed) {
        Err(rejected) => Outcome {
            rejected: Some(rejected),
            work: None,
        },
        Ok(valid) => {
            let plan = plan::next(&valid, observed, None, now);
            applied(valid, plan, None)
        }
    }
}

/// The outcome with a refused pod.
pub(super) fn applied(valid: Valid, plan: Plan, refused: Option<apply::Refusal>) -> Outcome {
    let children = build::build(&valid, &plan).into_stage(apply::Applied { refused });
    Outcome {
        rejected: None,
        work: Some(Work {
            valid,
            plan,
            applied: Ok(children),
        }),
    }
}

/// A pod of the object's revision.
pub(super) struct PodFixture {
    pod: Value,
    report: Report,
}

impl PodFixture {
    /// A pod that was just made.
    pub(super) fn new(object: &LlmDeployment, slot: u32) -> Self {
        let revision = valid(object, &world(vec![])).revision;
        let name = names::pod_name("support", revision.as_str(), slot);
        let pod = json!({
            "metadata": {
                "name": name, "namespace": "models", "uid": format!("uid-{slot}"),
                "creationTimestamp": at(0).to_string(),
                "labels": names::pod_labels("support", revision.as_str(), slot),
                "ownerReferences": [{"apiVersion": "escadre.dev/v1alpha1", "kind": "LlmDeployment", "name": "support", "uid": "owner-uid", "controller": true}],
            },
            "spec": {"containers": [{"name": "runtime", "image": "i:1"}], "initContainers": [{"name": "fetch", "image": "i:1"}], "nodeName": "node-9"},
            "status": {"phase": "Pending", "conditions": [], "initContainerStatuses": [], "containerStatuses": []},
        });
        Self {
            pod,
            report: Report::NotAsked,
        }
    }

    /// Sets a condition of the pod.
    pub(super) fn condition(mut self, type_: &str, status: &str, reason: &str, message: &str) -> Self {
        let condition = json!({"type": type_, "status": status, "reason": reason, "message": message});
        self.pod["status"]["conditions"].as_array_mut().unwrap().push(condition);
        self
    }

    /// Sets a condition of the pod, and since when it is so.
    pub(super) fn condition_since(mut self, type_: &str, status: &str, since: Timestamp) -> Self {
        let condition = json!({"type": type_, "status": status, "lastTransitionTime": since.to_string()});
        self.pod["status"]["conditions"].as_array_mut().unwrap().push(condition);
        self
    }

    /// It has a node.
    pub(super) fn scheduled(self) -> Self {
        self.condition("PodScheduled", "True", "", "")
    }

    /// State of the init container.
    pub(super) fn fetch(self, state: &Value, last: &Value, restarts: i32) -> Self {
        self.container("initContainerStatuses", "fetch", state, last, restarts)
    }

    /// State of the container.
    pub(super) fn runtime(self, state: &Value, last: &Value, restarts: i32) -> Self {
        self.container("containerStatuses", "runtime", state, last, restarts)
    }

    fn container(mut self, field: &str, name: &str, state: &Value, last: &Value, restarts: i32) -> Self {
        let status = json!({"name": name, "image": "i:1", "imageID": "", "ready": false, "restartCount": restarts, "state": state, "lastState": last});
        self.pod["status"][field].as_array_mut().unwrap().push(status);
        self
    }

    /// What the process says.
    pub(super) fn says(mut self, page: &Value) -> Self {
        let mut said = Said::read(page);
        said.pod_uid
            .get_or_insert_with(|| self.pod["metadata"]["uid"].as_str().unwrap().to_owned());
        self.report = Report::Said {
            said: Arc::new(said),
            stale: false,
        };
        self
    }

    /// The process does not answer.
    pub(super) fn silent(mut self) -> Self {
        self.report = Report::Unreachable("no answer from http://10.0.0.1:9090/status".to_owned());
        self
    }

    /// Sets any field.
    pub(super) fn set(mut self, pointer: &str, value: Value) -> Self {
        let mut place = &mut self.pod;
        for part in pointer.split('.') {
            place = &mut place[part];
        }
        *place = value;
        self
    }

    /// Fetched, running, ready and serving.
    pub(super) fn serving(self) -> Self {
        self.scheduled()
            .condition("Ready", "True", "", "")
            .fetch(&json!({"terminated": {"exitCode": 0}}), &json!({}), 0)
            .runtime(&json!({"running": {}}), &json!({}), 0)
            .says(&json!({
                "stage": "Ready", "servedDigest": DIGEST,
                "model": {"architecture": "llama", "bytes": 321},
                "verification": {"result": "Verified", "method": "Digest", "files": 1},
            }))
    }

    /// The pod.
    pub(super) fn done(self) -> ObservedPod {
        let pod: Pod = serde_json::from_value(self.pod).unwrap();
        ObservedPod {
            pod: Arc::new(pod),
            report: self.report,
            traffic: None,
            probed: Probed::NotAsked,
        }
    }
}
