//! Status for every state that pods can be in: which condition, which reason, which words.

mod model;
mod pods;
mod serving;
mod spec;

use escadre_crds::condition::{self, ConditionType};
use serde_json::{Value, json};

use super::super::apply::{Error as ApplyError, Refusal};
use super::super::build::build;
use super::super::fixtures::{DIGEST, PodFixture, applied, at, object, pass, valid, watched, world};
use super::super::observe::{ForeignPod, ObservedPod};
use super::super::plan;
use super::*;
use crate::kube_ext::apply::CallError;

/// Judges a world in which every write succeeds.
fn status_of(object: &LlmDeployment, pods: Vec<ObservedPod>) -> LlmDeploymentStatus {
    let observed = world(pods);
    let outcome = pass(object, &observed, at(100));
    judge(object, &observed, &outcome, at(100)).status
}

fn one(status: &LlmDeploymentStatus, type_: ConditionType) -> (String, String, String) {
    let found = condition::get(&status.conditions, type_).unwrap();
    assert_eq!(found.observed_generation, Some(5));
    (found.status.clone(), found.reason.clone(), found.message.clone())
}

/// Checks status and reason of one condition, the reason of `Ready`, and words in its message.
#[track_caller]
fn says(status: &LlmDeploymentStatus, type_: ConditionType, expected: (&str, &str), ready: &str, words: &str) {
    let (is, reason, message) = one(status, type_);
    assert_eq!((is.as_str(), reason.as_str()), expected, "{type_}: {message}");
    let (_, summary, message) = one(status, ConditionType::Ready);
    assert_eq!(summary, ready, "Ready: {message}");
    assert!(message.contains(words), "Ready says: {message}");
}

fn solo() -> LlmDeployment {
    object(&json!({"replicas": 1}))
}

fn ended(code: i32, reason: &str, message: &str) -> Value {
    json!({"terminated": {"exitCode": code, "reason": reason, "message": message, "finishedAt": at(50).to_string()}})
}

fn waiting(reason: &str, message: &str) -> Value {
    json!({"waiting": {"reason": reason, "message": message}})
}

fn fetched(object: &LlmDeployment) -> PodFixture {
    PodFixture::new(object, 0)
        .scheduled()
        .fetch(&json!({"terminated": {"exitCode": 0}}), &json!({}), 0)
}

/// The object after it served with this many pods.
fn reached(spec: &Value, pods: u32) -> LlmDeployment {
    let mut object = object(spec);
    let mut whole = object.clone();
    whole.spec.replicas = i32::try_from(pods).unwrap();
    let serving = (0..pods)
        .map(|slot| PodFixture::new(&whole, slot).serving().done())
        .collect();
    object.status = Some(status_of(&whole, serving));
    assert_eq!(one(object.status.as_ref().unwrap(), ConditionType::Ready).0, "True");
    object
}
