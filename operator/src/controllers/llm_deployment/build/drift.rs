//! Whether an applied child is as it should be. What is applied is written down beside it, so that a field that we
//! leave out now is noticed and taken back; what the API server or others added is ignored.

use escadre_crds::names;
use kube::Resource;
use serde::Serialize;
use serde_json::Value;

use super::super::revision::{fingerprint, json};

/// The child to apply. `None`: the one that is there is as it should be.
pub(super) fn unless_applied<K>(mut wanted: K, before: Option<&K>) -> Option<K>
where
    K: Resource + Serialize,
{
    let applied = fingerprint(&json(&wanted));
    wanted
        .meta_mut()
        .annotations
        .get_or_insert_default()
        .insert(names::ANNOTATION_APPLIED.to_owned(), applied);
    let is_there = before.is_some_and(|before| contains(&json(before), &json(&wanted)));
    (!is_there).then_some(wanted)
}

/// Whether everything in `wanted` is in `there` with the same value. What the API server or others added is ignored.
pub(super) fn contains(there: &Value, wanted: &Value) -> bool {
    match (there, wanted) {
        (Value::Object(there), Value::Object(wanted)) => wanted
            .iter()
            .all(|(key, value)| there.get(key).is_some_and(|there| contains(there, value))),
        (Value::Array(there), Value::Array(wanted)) => wanted
            .iter()
            .all(|wanted| there.iter().any(|there| contains(there, wanted))),
        (there, wanted) => there == wanted,
    }
}
