//! What must hold for every plan, and when everything has come to rest.

use escadre_crds::v1alpha1::Strategy;

use super::Life;
use super::cluster::Kind;
use crate::controllers::llm_deployment::plan::{Fleet, Plan, PodFacts, State};

/// What must hold for a plan, before it is carried out.
pub(super) fn before(fleet: &Fleet, plan: &Plan) {
    let is_gone = |pod: &PodFacts| plan.step.delete.contains(&pod.identity);
    let alive = || fleet.pods.iter().filter(|pod| pod.is_alive());
    let ready = ready(fleet);
    let left = alive().filter(|pod| pod.is_ready && !is_gone(pod)).count();
    assert!(
        left >= ready.min(floor(fleet)),
        "{ready} ready pods become {left}, less than {}: {plan:?} from {fleet:?}",
        floor(fleet)
    );
    let after = alive().filter(|pod| !is_gone(pod)).count() + plan.step.create.len();
    assert!(
        after <= alive().count().max(ceiling(fleet)),
        "{after} pods, more than {}: {plan:?}",
        ceiling(fleet)
    );
    for (revision, _) in &plan.step.create {
        assert!(
            !fleet.is_failed
                || *revision != fleet.target
                || fleet.stable.as_ref() == Some(&fleet.target)
                || fleet.stable.is_none(),
            "makes a pod of a failed revision: {plan:?}"
        );
        assert!(
            *revision != fleet.target || fleet.is_recorded || plan.step.record,
            "makes a pod of a revision without a record"
        );
    }
    let is_stable = |pod: &PodFacts| Some(&pod.revision) == fleet.stable.as_ref() && *pod.revision != fleet.target;
    let takes_stable = alive().any(|pod| is_gone(pod) && pod.is_ready && is_stable(pod));
    let is_stray = |pod: &PodFacts| Some(&pod.revision) != fleet.stable.as_ref() && *pod.revision != plan.goal;
    assert!(
        !takes_stable || alive().filter(|pod| is_stray(pod)).all(is_gone),
        "the stable revision does not go last: {plan:?}"
    );
    assert!(
        !takes_stable || alive().filter(|pod| is_stable(pod) && !pod.is_ready).all(is_gone),
        "a ready pod goes before one that is not: {plan:?}"
    );
}

fn ready(fleet: &Fleet) -> usize {
    fleet.pods.iter().filter(|pod| pod.is_alive() && pod.is_ready).count()
}

/// How many ready pods nothing may take away.
fn floor(fleet: &Fleet) -> usize {
    let policy = &fleet.policy;
    let least_one = policy.max_unavailable.max(1);
    let is_back = fleet.is_failed && policy.auto_rollback && fleet.stable.is_some();
    let seeks = fleet
        .pods
        .iter()
        .any(|pod| pod.is_alive() && pod.homeless_since.is_some());
    let without = |unavailable: usize| fleet.replicas.saturating_sub(unavailable);
    match policy.strategy {
        Strategy::Recreate => 0,
        _ if is_back && seeks => without(least_one).min(ready(fleet).saturating_sub(1)),
        // In place there is no other way than to stop what failed first.
        _ if is_back => without(least_one).max((ceiling(fleet) - fleet.replicas).min(fleet.replicas).min(1)),
        Strategy::InPlace => without(least_one),
        Strategy::Surge => without(policy.max_unavailable),
        Strategy::Auto | Strategy::Canary if seeks || policy.max_surge == Some(0) => {
            without(least_one).max(1.min(fleet.replicas))
        }
        Strategy::Auto | Strategy::Canary => without(policy.max_unavailable).max(1.min(fleet.replicas)),
    }
}

/// How many pods there may be.
fn ceiling(fleet: &Fleet) -> usize {
    let surge = match fleet.policy.strategy {
        Strategy::Recreate => 0,
        Strategy::InPlace => fleet.policy.max_surge.unwrap_or(0),
        Strategy::Surge | Strategy::Auto | Strategy::Canary => fleet.policy.max_surge.unwrap_or(1),
    };
    fleet.replicas + surge
}

/// What must hold when nothing more happens.
pub(super) fn at_rest(life: &Life, seed: u64) {
    let words = || format!("seed {seed}: {}", life.describe());
    let pods = life.cluster.facts();
    let serving = |revision: &str| {
        let of = pods
            .iter()
            .filter(|pod| pod.is_alive() && pod.is_serving && pod.revision == revision);
        of.count()
    };
    let (target, replicas) = (life.fleet.target.as_str(), life.fleet.replicas);
    let stable = life.fleet.stable.as_deref();
    if replicas == 0 {
        assert!(pods.is_empty(), "{}", words());
        return;
    }
    let has_room = life.cluster.gpus >= replicas;
    match &life.last.state {
        State::Idle | State::Working => {
            let serve = serving(target);
            let is_good = life.kinds[target] == Kind::Good;
            assert!(!is_good || !has_room || serve == replicas, "{}", words());
            assert!(
                !is_good || !has_room || pods.iter().all(|pod| pod.revision == target),
                "{}",
                words()
            );
        }
        State::RolledBack(_) => {
            assert!(!has_room || serving(stable.unwrap()) == replicas, "{}", words());
            assert!(
                pods.iter().all(|pod| pod.revision != target || pod.is_terminating),
                "pods of the failed revision are left: {}",
                words()
            );
        }
        State::Halted => assert!(!life.rollout.auto_rollback || stable.is_none(), "{}", words()),
        State::Stalled(_) => assert!(stable.is_none(), "{}", words()),
        State::Blocked(why) => assert!(!why.is_empty(), "{}", words()),
        other => panic!("{other:?} at rest: {}", words()),
    }
    let is_revised = life.kinds[target] == Kind::Good && life.cluster.gpus > replicas && life.failed.is_none();
    let surges = life.rollout.strategy != Strategy::Recreate;
    assert!(
        !is_revised || !surges || stable == Some(target),
        "a good revision does not get through: {}",
        words()
    );
}
