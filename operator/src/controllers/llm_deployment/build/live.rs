//! Annotations that follow the spec while pods run.

use super::super::validate::Valid;
use super::{Annotation, access, disruption};

/// The annotations that every pod should have now.
pub(super) fn annotations(valid: &Valid) -> Vec<(&'static str, String)> {
    let mut annotations = access::annotations(valid);
    annotations.push(disruption::annotation(valid));
    annotations
}

/// Those of living pods that are otherwise.
pub(super) fn outdated(valid: &Valid) -> Vec<Annotation> {
    let wanted = annotations(valid);
    let all = valid
        .annotated
        .iter()
        .flat_map(|pod| wanted.iter().map(move |one| (pod, one)));
    let others = all.filter(|((_, there), (key, value))| there.get(*key) != Some(value));
    others
        .map(|((pod, _), (key, value))| Annotation {
            pod: pod.clone(),
            key,
            value: value.clone(),
        })
        .collect()
}
