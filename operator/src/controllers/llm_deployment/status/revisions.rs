//! `status.revisions`: what runs and what is kept, and what became of it. Pure.

use escadre_crds::v1alpha1::{RevisionOutcome, RevisionStatus};

use super::count;
use super::scene::Scene;

/// The revisions, the last used first.
pub(super) fn of(scene: &Scene<'_>) -> Vec<RevisionStatus> {
    let known = scene.before.revisions.iter().map(|one| one.name.clone());
    let with_pods = scene.pods.iter().map(|pod| pod.facts.revision.clone());
    let mut names: Vec<String> = scene.target.iter().cloned().chain(known).chain(with_pods).collect();
    names.retain(|name| is_kept(scene, name));
    let mut revisions: Vec<RevisionStatus> = Vec::new();
    for name in names {
        if revisions.iter().all(|one| one.name != name) {
            revisions.push(revision(scene, name));
        }
    }
    revisions
}

/// Whether there is anything left of a revision: its record, or pods.
fn is_kept(scene: &Scene<'_>, name: &str) -> bool {
    let Some(work) = &scene.outcome.work else {
        return !name.is_empty();
    };
    let is_forgotten = |uid: &str| work.plan.step.forget.iter().any(|gone| gone.uid == uid);
    let recorded = work.valid.recorded.get(name);
    let is_recorded = recorded.is_some_and(|recorded| !is_forgotten(&recorded.identity.uid));
    let has_pods = scene.pods.iter().any(|pod| pod.facts.revision == name);
    !name.is_empty() && (is_recorded || has_pods || scene.target.as_deref() == Some(name))
}

fn revision(scene: &Scene<'_>, name: String) -> RevisionStatus {
    let before = scene.before.revisions.iter().find(|one| one.name == name);
    let is_target = scene.target.as_deref() == Some(&name);
    let is_new_target = is_target && scene.before.target_revision.as_deref() != Some(&name);
    let failure = scene
        .plan()
        .and_then(|plan| plan.failure.as_ref())
        .filter(|_| is_target);
    let has_failed = is_target && scene.failure().is_some();
    let is_current = if scene.is_reached() {
        is_target
    } else {
        scene.before.current_revision.as_deref() == Some(&name)
    };
    let outcome = if has_failed {
        Some(RevisionOutcome::Failed)
    } else if is_current {
        Some(RevisionOutcome::Complete)
    } else if is_target {
        Some(RevisionOutcome::Progressing)
    } else {
        match before.and_then(|before| before.outcome) {
            Some(RevisionOutcome::Complete) => Some(RevisionOutcome::Replaced),
            Some(RevisionOutcome::Progressing) => Some(RevisionOutcome::Abandoned),
            other => other,
        }
    };
    let is_failed = outcome == Some(RevisionOutcome::Failed);
    let kept = before.filter(|_| is_failed);
    let work = scene.outcome.work.as_ref();
    let recorded = work.and_then(|work| work.valid.recorded.get(&name)?.digest.clone());
    RevisionStatus {
        generation: before
            .filter(|_| !is_new_target)
            .and_then(|before| before.generation)
            .or_else(|| scene.object.metadata.generation.filter(|_| is_target)),
        digest: recorded
            .or_else(|| before.and_then(|before| before.digest.clone()))
            .or_else(|| is_target.then(|| scene.digest().to_owned())),
        replicas: count(scene.of(Some(&name)).count()),
        ready: count(scene.of(Some(&name)).filter(|pod| pod.is_serving()).count()),
        outcome,
        reason: failure
            .map(|failure| failure.reason.clone())
            .or_else(|| kept.and_then(|kept| kept.reason.clone())),
        message: failure
            .map(|failure| failure.message.clone())
            .or_else(|| kept.and_then(|kept| kept.message.clone())),
        name,
    }
}
