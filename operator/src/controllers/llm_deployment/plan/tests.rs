//! Single decisions, one by one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use escadre_crds::v1alpha1::{RolloutStatus, Strategy};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::facts::Fault;
use super::policy::Policy;
use super::{Fleet, Identity, Plan, PodFacts, State, decide};
use crate::controllers::llm_deployment::observe::Probed;
use crate::runtime_status::Traffic;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// A pod that has served for long.
fn pod(revision: &str, slot: u32) -> PodFacts {
    PodFacts {
        identity: Identity {
            name: format!("m-{revision}-{slot}"),
            uid: format!("uid-{revision}-{slot}"),
        },
        revision: revision.to_owned(),
        slot: Some(slot),
        is_ready: true,
        was_ready: true,
        is_serving: true,
        ready_since: Some(at(0)),
        created: at(0),
        ..PodFacts::default()
    }
}

/// A pod that is on its way.
fn young(revision: &str, slot: u32) -> PodFacts {
    PodFacts {
        is_ready: false,
        was_ready: false,
        is_serving: false,
        ready_since: None,
        ..pod(revision, slot)
    }
}

/// A pod without a node since then.
fn homeless(slot: u32, since: i64) -> PodFacts {
    PodFacts {
        homeless_since: Some(at(since)),
        ..young("new", slot)
    }
}

/// The world in which `new` replaces `old`.
fn fleet(rollout: Value, replicas: usize, pods: Vec<PodFacts>) -> Fleet {
    let rollout = serde_json::from_value(rollout).unwrap();
    Fleet {
        target: "new".to_owned(),
        stable: Some("old".to_owned()),
        is_failed: false,
        is_frozen: false,
        replicas,
        policy: Policy::of(&rollout, replicas),
        is_recorded: true,
        held: BTreeSet::new(),
        remake: None,
        unused: vec![],
        memory: None,
        best: None,
        refusal: None,
        pods,
    }
}

/// The world in which `new` is what serves.
fn settled(replicas: usize, pods: Vec<PodFacts>) -> Fleet {
    Fleet {
        stable: Some("new".to_owned()),
        ..fleet(json!({}), replicas, pods)
    }
}

fn memory(step: Option<i32>, since: i64) -> RolloutStatus {
    RolloutStatus {
        revision: "new".to_owned(),
        from: Some("old".to_owned()),
        step,
        started_at: Some(Time(at(since))),
        ..RolloutStatus::default()
    }
}

fn made(plan: &Plan) -> Vec<String> {
    let made = plan.step.create.iter();
    made.map(|(revision, slot)| format!("{revision}-{slot}")).collect()
}

fn gone(plan: &Plan) -> Vec<&str> {
    plan.step.delete.iter().map(|pod| &pod.name[2..]).collect()
}

#[test]
fn first_pass_records_the_revision_and_fills_the_slots() {
    let fleet = Fleet {
        stable: None,
        is_recorded: false,
        ..fleet(json!({}), 2, vec![])
    };
    let plan = decide(&fleet, at(1));
    assert_eq!(made(&plan), ["new-0", "new-1"]);
    assert!(plan.step.record);
    assert_eq!(plan.state, State::Working);
}

#[test]
fn slot_of_a_terminating_pod_is_skipped() {
    let leaving = PodFacts {
        is_terminating: true,
        ..pod("new", 0)
    };
    let plan = decide(&settled(2, vec![leaving, pod("new", 1)]), at(1));
    assert_eq!(made(&plan), ["new-2"]);
    assert!(plan.step.delete.is_empty());
}

#[test]
fn deleted_pod_comes_back_in_its_slot() {
    assert_eq!(made(&decide(&settled(2, vec![pod("new", 1)]), at(1))), ["new-0"]);
}

#[test]
fn scaling_down_takes_pods_that_are_not_ready_then_the_newest() {
    let newer = |second, slot| PodFacts {
        created: at(second),
        ..pod("new", slot)
    };
    let pods = vec![newer(5, 0), newer(9, 1), young("new", 2)];
    assert_eq!(gone(&decide(&settled(2, pods.clone()), at(20))), ["new-2"]);
    assert_eq!(gone(&decide(&settled(1, pods), at(20))), ["new-2", "new-1"]);
}

#[test]
fn failed_pod_rests_and_is_then_replaced_and_removed() {
    let failed = PodFacts {
        has_ended: true,
        is_ready: false,
        created: at(100),
        ..pod("new", 0)
    };
    let early = decide(&settled(1, vec![failed.clone()]), at(103));
    assert_eq!(early.state, State::Resting(Duration::from_secs(7)));
    assert_eq!(early.wake, Some(Duration::from_secs(7)));
    let late = decide(&settled(1, vec![failed]), at(110));
    assert_eq!((made(&late), gone(&late)), (vec!["new-1".to_owned()], vec!["new-0"]));
}

#[test]
fn edited_settings_of_a_revision_that_never_served_remake_it() {
    let record = Identity {
        name: "m-new".to_owned(),
        uid: "u".to_owned(),
    };
    let fleet = Fleet {
        remake: Some(record.clone()),
        ..fleet(json!({}), 1, vec![young("new", 0), pod("old", 0)])
    };
    let plan = decide(&fleet, at(1));
    assert_eq!(gone(&plan), ["new-0"]);
    assert_eq!(plan.step.forget, [record]);
    assert!(
        plan.step.create.is_empty(),
        "the record must be gone before pods are made from it"
    );
}

#[test]
fn zero_replicas_remove_every_pod_and_record_nothing() {
    let empty = Fleet {
        is_recorded: false,
        ..fleet(json!({}), 0, vec![])
    };
    assert_eq!(decide(&empty, at(1)).state, State::Idle);
    let plan = decide(
        &fleet(json!({"paused": true}), 0, vec![pod("old", 0), pod("new", 0)]),
        at(1),
    );
    assert_eq!(gone(&plan), ["old-0", "new-0"]);
}

#[test]
fn name_that_a_foreign_pod_holds_is_skipped() {
    let fleet = Fleet {
        held: BTreeSet::from([("new".to_owned(), 0)]),
        ..settled(1, vec![])
    };
    assert_eq!(made(&decide(&fleet, at(1))), ["new-1"]);
}

#[test]
fn edited_labels_are_put_right_and_an_edited_image_is_replaced_in_another_slot() {
    let labels = BTreeMap::from([("k".to_owned(), "v".to_owned())]);
    let edited = PodFacts {
        missing_labels: labels.clone(),
        ..pod("new", 0)
    };
    let altered = PodFacts {
        is_altered: true,
        ..pod("new", 1)
    };
    let plan = decide(&settled(2, vec![edited.clone(), altered]), at(1));
    assert_eq!(plan.step.relabel, [(edited.identity, labels)]);
    assert_eq!((gone(&plan), made(&plan)), (vec!["new-1"], vec!["new-2".to_owned()]));
}

#[test]
fn pod_of_ours_with_a_strange_name_is_replaced() {
    let stray = PodFacts {
        slot: None,
        ..pod("new", 0)
    };
    assert_eq!(gone(&decide(&settled(1, vec![stray]), at(1))), ["new-0"]);
}

#[test]
fn new_pod_comes_first_and_an_old_one_goes_when_it_has_been_ready_for_long_enough() {
    let old = || vec![pod("old", 0), pod("old", 1)];
    let with = |new: PodFacts| [old(), vec![new]].concat();
    let plan = decide(&fleet(json!({}), 2, old()), at(100));
    assert_eq!((made(&plan), gone(&plan)), (vec!["new-0".to_owned()], vec![]));
    let ready = |since| PodFacts {
        ready_since: Some(at(since)),
        ..pod("new", 0)
    };
    let plan = decide(&fleet(json!({}), 2, with(ready(95))), at(100));
    assert!(plan.step.is_empty());
    assert_eq!(plan.wake, Some(Duration::from_secs(5)));
    assert_eq!(plan.rollout.unwrap().updated_percent, Some(33));
    let plan = decide(&fleet(json!({}), 2, with(ready(90))), at(100));
    assert_eq!((made(&plan), gone(&plan)), (vec!["new-1".to_owned()], vec!["old-0"]));
}

#[test]
fn in_place_takes_an_old_pod_for_each_new_one() {
    let plan = decide(
        &fleet(json!({"strategy": "InPlace"}), 2, vec![pod("old", 0), pod("old", 1)]),
        at(1),
    );
    assert_eq!((made(&plan), gone(&plan)), (vec!["new-0".to_owned()], vec!["old-0"]));
}

#[test]
fn recreate_waits_until_the_old_pods_are_gone_but_not_for_those_on_lost_nodes() {
    let recreate = |pods| decide(&fleet(json!({"strategy": "Recreate"}), 1, pods), at(100));
    let plan = recreate(vec![pod("old", 0)]);
    assert_eq!((made(&plan), gone(&plan)), (vec![], vec!["old-0"]));
    let leaving = |lost| PodFacts {
        is_terminating: true,
        lost_at: Some(at(lost)),
        ..pod("old", 0)
    };
    assert!(made(&recreate(vec![leaving(130)])).is_empty());
    assert_eq!(made(&recreate(vec![leaving(100)])), ["new-0"]);
}

#[test]
fn auto_waits_for_a_node_and_then_makes_room() {
    let auto = |pods: Vec<PodFacts>, second| decide(&fleet(json!({}), 2, pods), at(second));
    let pods = || vec![pod("old", 0), pod("old", 1), homeless(0, 100)];
    let early = auto(pods(), 129);
    assert!(early.step.is_empty());
    assert_eq!(early.wake, Some(Duration::from_secs(1)));
    let late = auto(pods(), 130);
    assert_eq!(gone(&late), ["old-0"]);
    let rollout = late.rollout.unwrap();
    assert_eq!(rollout.strategy_chosen, Some(Strategy::InPlace));
    assert_eq!(rollout.draining, ["m-old-0"]);
    assert!(rollout.why.unwrap().contains("no node had room"));
}

#[test]
fn auto_never_stops_the_last_pod_and_says_why() {
    let plan = decide(&fleet(json!({}), 1, vec![pod("old", 0), homeless(0, 0)]), at(60));
    assert!(plan.step.delete.is_empty());
    let State::Blocked(words) = plan.state else {
        panic!("{plan:?}")
    };
    assert!(words.contains("would leave none"), "{words}");
}

#[test]
fn no_pod_is_stopped_for_a_device_that_none_holds() {
    let other = PodFacts {
        devices: BTreeMap::from([("example.com/npu".to_owned(), "1".to_owned())]),
        ..homeless(0, 0)
    };
    let plan = decide(&fleet(json!({}), 2, vec![pod("old", 0), pod("old", 1), other]), at(60));
    assert!(plan.step.delete.is_empty());
    let State::Blocked(words) = plan.state else {
        panic!("{plan:?}")
    };
    assert!(words.contains("no old pod holds the devices"), "{words}");
}

#[test]
fn place_that_went_to_somebody_else_is_told() {
    let mut fleet = fleet(json!({}), 2, vec![pod("old", 1), homeless(0, 0)]);
    fleet.memory = Some(RolloutStatus {
        strategy_chosen: Some(Strategy::InPlace),
        ..memory(None, 0)
    });
    let State::Blocked(words) = decide(&fleet, at(60)).state else {
        panic!()
    };
    assert!(words.contains("was taken by another pod"), "{words}");
}

#[test]
fn pods_of_a_given_up_revision_go_first_and_at_once_when_they_never_served() {
    let pods = vec![pod("old", 0), pod("old", 1), young("mid", 0), pod("mid", 1)];
    let plan = decide(&fleet(json!({}), 2, pods), at(100));
    assert_eq!(gone(&plan), ["mid-0", "mid-1"]);
    assert_eq!(made(&plan), ["new-0"]);
}

#[test]
fn stable_pod_that_got_lost_is_made_again_while_the_new_one_is_not_ready() {
    let mut fleet = fleet(json!({}), 2, vec![pod("old", 1), young("new", 0)]);
    fleet.memory = Some(memory(None, 0));
    assert_eq!(made(&decide(&fleet, at(60))), ["old-0"]);
    fleet.memory.as_mut().unwrap().from = None;
    assert_eq!(made(&decide(&fleet, at(60))), ["new-1"], "there was none when it began");
}

#[test]
fn paused_rollout_heals_and_scales_and_does_not_go_on() {
    let pods = vec![pod("old", 0), pod("new", 0)];
    let mut fleet = fleet(json!({"paused": true}), 2, pods);
    fleet.memory = Some(memory(None, 0));
    let plan = decide(&fleet, at(100));
    assert!(plan.step.is_empty());
    assert!(matches!(plan.state, State::Paused(_)));
    fleet.replicas = 3;
    assert_eq!(made(&decide(&fleet, at(100))), ["old-1"]);
    fleet.pods[0].is_terminating = true;
    fleet.replicas = 2;
    assert_eq!(made(&decide(&fleet, at(100))), ["old-1"]);
}

#[test]
fn refused_bytes_fail_the_revision_at_once_and_the_stable_one_comes_back() {
    let bad = PodFacts {
        fault: Some(Fault {
            reason: "DigestMismatch".to_owned(),
            message: "other bytes".to_owned(),
            is_final: true,
        }),
        ..young("new", 0)
    };
    let mut fleet = fleet(json!({}), 2, vec![pod("old", 1), bad]);
    let plan = decide(&fleet, at(10));
    assert!(plan.step.is_empty(), "it is written down first");
    assert_eq!(plan.failure.unwrap().reason, "DigestMismatch");
    fleet.is_failed = true;
    let plan = decide(&fleet, at(11));
    assert_eq!((gone(&plan), made(&plan)), (vec!["new-0"], vec!["old-0".to_owned()]));
    assert!(matches!(plan.state, State::RolledBack(_)));
    fleet.policy.auto_rollback = false;
    let plan = decide(&fleet, at(11));
    assert!(plan.step.delete.is_empty());
    assert_eq!(plan.state, State::Halted);
}

#[test]
fn first_revision_has_nothing_to_go_back_to() {
    let mut fleet = fleet(json!({"progressDeadline": "60s"}), 1, vec![young("new", 0)]);
    fleet.stable = None;
    fleet.memory = Some(memory(None, 0));
    let plan = decide(&fleet, at(60));
    assert_eq!(plan.failure, None);
    let State::Stalled(failure) = plan.state else {
        panic!("{plan:?}")
    };
    assert_eq!(failure.reason, "ProgressDeadlineExceeded");
}

#[test]
fn deadline_counts_from_the_last_progress() {
    let mut fleet = fleet(
        json!({"progressDeadline": "60s"}),
        1,
        vec![pod("old", 0), young("new", 0)],
    );
    fleet.memory = Some(memory(None, 0));
    let mut far = fleet.clone();
    far.pods[1].milestone.bytes = 5;
    let first = decide(&fleet, at(50));
    let more = Fleet {
        best: Some(("new".to_owned(), first.best.unwrap())),
        ..far
    };
    let second = decide(&more, at(59));
    assert_eq!(second.wake, Some(Duration::from_mins(1)));
    let still = Fleet {
        best: Some(("new".to_owned(), second.best.unwrap())),
        memory: second.rollout,
        refusal: Some("exceeded quota".to_owned()),
        ..more
    };
    assert_eq!(decide(&still, at(118)).failure, None);
    let failure = decide(&still, at(119)).failure.unwrap();
    assert!(failure.message.contains("exceeded quota"), "{}", failure.message);
}

#[test]
fn canary_goes_by_steps_and_keeps_the_rest() {
    let canary = json!({"strategy": "Canary", "minReadySeconds": 0, "canary": {"steps": [{"replicas": 1, "pause": "60s"}, {"replicas": 2}]}});
    let mut pods: Vec<PodFacts> = (0..4).map(|slot| pod("old", slot)).collect();
    assert_eq!(made(&decide(&fleet(canary.clone(), 4, pods.clone()), at(1))), ["new-0"]);
    pods.push(pod("new", 0));
    let mut with = fleet(canary, 4, pods);
    with.memory = Some(memory(Some(1), 0));
    let plan = decide(&with, at(10));
    assert_eq!((gone(&plan), made(&plan).len()), (vec!["old-0"], 0));
    with.memory = plan.rollout;
    assert_eq!(with.memory.as_ref().unwrap().step_ready_at, Some(Time(at(10))));
    with.pods.remove(0);
    let plan = decide(&with, at(69));
    assert!(plan.step.is_empty());
    assert_eq!(plan.wake, Some(Duration::from_secs(1)));
    let plan = decide(&with, at(70));
    assert_eq!(made(&plan), ["new-1"]);
    assert_eq!(plan.rollout.unwrap().step, Some(2));
}

#[test]
fn canary_of_one_replica_says_what_it_does() {
    let canary = json!({"strategy": "Canary", "canary": {"steps": [{"weight": 10}]}});
    let plan = decide(&fleet(canary, 1, vec![pod("old", 0)]), at(1));
    assert!(
        plan.rollout
            .unwrap()
            .why
            .unwrap()
            .contains("every step of the canary is the whole")
    );
}

#[test]
fn gates_are_shown_by_the_first_new_pod_before_the_last_old_one_goes() {
    let gates = json!({"minReadySeconds": 0, "gates": {"maxErrorRate": 0.1, "window": "30s"}});
    let mut fleet = fleet(gates, 1, vec![pod("old", 0), pod("new", 0)]);
    fleet.memory = Some(memory(Some(1), 0));
    let plan = decide(&fleet, at(10));
    assert!(plan.step.is_empty());
    assert_eq!(plan.watch, ["uid-new-0"]);
    fleet.memory = plan.rollout;
    fleet.pods[1].traffic = Some(Traffic {
        requests: 5,
        errors: 2,
        first_token: None,
    });
    assert_eq!(decide(&fleet, at(39)).failure, None);
    assert_eq!(decide(&fleet, at(40)).failure.unwrap().reason, "GateFailed");
    fleet.pods[1].traffic = None;
    let plan = decide(&fleet, at(40));
    assert_eq!(gone(&plan), ["old-0"]);
    let State::RollingOut(words) = plan.state else {
        panic!("{:?}", plan.state)
    };
    assert!(words.contains("no evidence"), "{words}");
}

#[test]
fn probe_is_asked_of_a_new_pod_and_its_answer_decides() {
    let probe = json!({"minReadySeconds": 0, "gates": {"probePrompt": {"prompt": "2+2", "expectContains": "4"}}});
    let mut fleet = fleet(probe, 1, vec![pod("old", 0), pod("new", 0)]);
    let plan = decide(&fleet, at(10));
    assert_eq!(plan.probe, [pod("new", 0).identity]);
    assert!(plan.step.is_empty());
    fleet.pods[1].probed = Probed::Failed("5".to_owned());
    let failure = decide(&fleet, at(10)).failure.unwrap();
    assert_eq!(failure.reason, "ProbeFailed");
    fleet.pods[1].probed = Probed::Passed;
    assert_eq!(gone(&decide(&fleet, at(10))), ["old-0"]);
}

#[test]
fn spec_that_cannot_be_followed_stops_a_rollout_and_heals_what_serves() {
    let mut fleet = fleet(json!({}), 2, vec![pod("old", 0), young("new", 0)]);
    fleet.memory = Some(memory(None, 0));
    fleet.is_frozen = true;
    let plan = decide(&fleet, at(10));
    assert_eq!((made(&plan), gone(&plan)), (vec!["old-1".to_owned()], vec![]));
    assert!(!plan.completes);
}
