//! What to write now, as a value. Pure: the same world always gives the same plan, and a plan that was carried out
//! twice does no harm.
//!
//! Invariants, checked in the simulation at the end:
//! - a pod is created only in a slot that no pod holds, terminating ones included: a name is never used twice;
//! - creating never makes more living pods of the target revision than were asked for;
//! - scaling down takes pods that are not ready first, then the newest; it never takes more than the surplus;
//! - a pod that is already terminating is never deleted again;
//! - labels by which the Service and people find a pod are put right, a pod whose image was edited is replaced;
//! - a pod that has just failed rests before it is replaced, so that a pod that fails at once makes no storm;
//! - when the world stands still, so does the plan: `Complete`, and nothing is written.
//!
//! A new revision recreates: pods of other revisions are deleted, those of the target created, in the same pass.

#[cfg(test)]
mod simulation;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use escadre_crds::condition::Reason;
use escadre_crds::names;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;

use super::observe::Observed;
use super::validate::Valid;
use crate::kube_ext::orphans::Identity;
use crate::world::is_ready;

/// How many pods one pass creates. More follow in the next pass, which sees how these were taken.
const CREATE_LIMIT: usize = 32;
/// How long a failed pod stands before it is replaced.
const REST: Duration = Duration::from_secs(10);

/// What to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Writes to make.
    Progress(Step),
    /// The objects are as they should be.
    Complete,
    /// Nothing can be done before `retry` has passed.
    Blocked {
        /// Why.
        reason: Reason,
        /// How long to wait.
        retry: Duration,
    },
}

/// Writes of one pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Slots of the target revision to fill.
    pub create: Vec<u32>,
    /// Pods to delete.
    pub delete: Vec<Identity>,
    /// Pods whose labels were edited, and the labels that they must have.
    pub relabel: Vec<(Identity, BTreeMap<String, String>)>,
    /// Whether the target revision must be recorded first.
    pub record: bool,
    /// Records of revisions to delete, last of all.
    pub forget: Vec<Identity>,
    /// What this step is for.
    pub purpose: Option<Reason>,
}

/// What is wanted.
#[derive(Clone, Debug)]
pub struct Target {
    /// The revision.
    pub revision: String,
    /// How many pods.
    pub replicas: u32,
    /// Whether the revision is recorded.
    pub is_recorded: bool,
    /// Slots that pods of other owners hold by their names.
    pub held: BTreeSet<u32>,
    /// The record to throw away, with its pods, since it never served and its settings were edited.
    pub remake: Option<Identity>,
}

/// What a plan needs to know of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "they are independent of each other")]
pub struct PodFacts {
    /// Which pod.
    pub identity: Identity,
    /// Its revision.
    pub revision: String,
    /// Its slot. `None`: its name is none of ours, so it holds no slot.
    pub slot: Option<u32>,
    /// Labels of ours that it lacks.
    pub missing_labels: BTreeMap<String, String>,
    /// Somebody gave it another image: it serves what nobody asked for.
    pub is_altered: bool,
    /// It is on its way out.
    pub is_terminating: bool,
    /// It failed or completed as a whole, and will not run again.
    pub has_ended: bool,
    /// Its readiness probe succeeds.
    pub is_ready: bool,
    /// When it was made.
    pub created: Timestamp,
}

impl Plan {
    /// Throws a record away: the next pass makes it anew.
    pub fn remake(record: Identity) -> Self {
        Self::Progress(Step {
            forget: vec![record],
            purpose: Some(Reason::Recreating),
            ..Step::default()
        })
    }
}

impl PodFacts {
    /// Reads the facts of a pod of `deployment`. `images` has the image of each revision's pods. Revision and slot come
    /// from the name, which nobody can edit.
    pub fn of(pod: &Pod, deployment: &str, images: &BTreeMap<String, String>) -> Self {
        let status = pod.status.as_ref();
        let name = pod.name_any();
        let place = names::parse_pod_name(deployment, &name);
        let revision = place.map(|(revision, _)| revision).unwrap_or_default();
        let labels = place.map(|(revision, slot)| names::pod_labels(deployment, revision, slot));
        Self {
            identity: Identity {
                name: name.clone(),
                uid: pod.uid().unwrap_or_default(),
            },
            slot: place.map(|(_, slot)| slot),
            missing_labels: labels
                .into_iter()
                .flatten()
                .filter(|(key, value)| pod.labels().get(key) != Some(value))
                .collect(),
            is_altered: images.get(revision).is_some_and(|image| has_other_image(pod, image)),
            revision: revision.to_owned(),
            is_terminating: pod.metadata.deletion_timestamp.is_some(),
            has_ended: status.is_some_and(|status| matches!(status.phase.as_deref(), Some("Failed" | "Succeeded"))),
            is_ready: is_ready(pod),
            created: pod.creation_timestamp().map_or(Timestamp::UNIX_EPOCH, |time| time.0),
        }
    }

    fn is_alive(&self) -> bool {
        !self.is_terminating && !self.has_ended
    }
}

/// Whether a container of ours has another image than the revision's: of a pod's spec only images can be edited so that
/// it runs something else.
fn has_other_image(pod: &Pod, image: &str) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let ours = [names::CONTAINER_FETCH, names::CONTAINER_RUNTIME];
    let mut containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    containers.any(|one| ours.contains(&one.name.as_str()) && one.image.as_deref() != Some(image))
}

/// What to do now for one object.
pub fn next(valid: &Valid, observed: &Observed, now: Timestamp) -> Plan {
    let pods = observed.pods.iter();
    let pods: Vec<PodFacts> = pods
        .map(|one| PodFacts::of(&one.pod, &valid.name, &valid.images))
        .collect();
    let settings = valid.settings.fingerprint();
    let remake = valid.stored.as_ref().filter(|stored| {
        // A wrong mirror must be repairable.
        !valid.has_served && stored.settings.as_ref() != Some(&settings)
    });
    let foreign = observed.foreign.iter();
    let held = foreign.filter_map(|pod| names::parse_pod_name(&valid.name, &pod.name));
    let target = Target {
        revision: valid.revision.as_str().to_owned(),
        replicas: valid.replicas,
        is_recorded: valid.stored.is_some(),
        held: held
            .filter(|(revision, _)| *revision == valid.revision.as_str())
            .map(|(_, slot)| slot)
            .collect(),
        remake: remake.map(|stored| stored.identity.clone()),
    };
    let kept: BTreeSet<String> = pods
        .iter()
        .map(|pod| pod.revision.clone())
        .chain([target.revision.clone()])
        .chain(valid.current_revision.clone())
        .map(|revision| names::revision_name(&valid.name, &revision))
        .collect();
    let unused = observed
        .revisions
        .iter()
        .map(|revision| Identity {
            name: revision.name_any(),
            uid: revision.uid().unwrap_or_default(),
        })
        .filter(|revision| !kept.contains(&revision.name))
        .collect();
    decide(&target, &pods, unused, now)
}

/// The decision itself: `unused` are records that nothing needs any more.
pub fn decide(target: &Target, pods: &[PodFacts], unused: Vec<Identity>, now: Timestamp) -> Plan {
    let (mine, others): (Vec<&PodFacts>, Vec<&PodFacts>) = pods
        .iter()
        .partition(|pod| pod.revision == target.revision && pod.slot.is_some() && !pod.is_altered);
    let mut step = Step {
        forget: unused,
        relabel: relabel(&mine),
        ..Step::default()
    };

    step.delete.extend(
        others
            .iter()
            .filter(|pod| !pod.is_terminating)
            .map(|pod| pod.identity.clone()),
    );
    if !step.delete.is_empty() {
        step.purpose = Some(Reason::Recreating);
    }
    if let Some(record) = &target.remake {
        step.delete.extend(
            mine.iter()
                .filter(|pod| !pod.is_terminating)
                .map(|pod| pod.identity.clone()),
        );
        step.forget.push(record.clone());
        step.purpose = Some(Reason::Recreating);
        return Plan::Progress(step);
    }

    let wanted = usize::try_from(target.replicas).unwrap_or(usize::MAX);
    let alive: Vec<&PodFacts> = mine.iter().copied().filter(|pod| pod.is_alive()).collect();
    let ended = mine.iter().filter(|pod| pod.has_ended && !pod.is_terminating);
    let room = wanted.saturating_sub(alive.len());
    let (resting, tired): (Vec<&PodFacts>, Vec<&PodFacts>) = ended.partition(|pod| rest(pod, now).is_some());
    let resting: Vec<&PodFacts> = if room > 0 {
        resting
    } else {
        step.delete.extend(ids(&resting));
        Vec::new()
    };
    step.delete.extend(ids(&tired));

    let surplus = surplus(&alive, wanted);
    if !surplus.is_empty() {
        step.purpose.get_or_insert(Reason::Scaling);
        step.delete.extend(surplus);
    }
    let missing = room.saturating_sub(resting.len()).min(CREATE_LIMIT);
    if missing > 0 {
        let named = pods.iter().filter(|pod| pod.revision == target.revision);
        let mut held: BTreeSet<u32> = named.filter_map(|pod| pod.slot).collect();
        held.extend(&target.held);
        step.create = (0..).filter(|slot| !held.contains(slot)).take(missing).collect();
        step.record = !target.is_recorded;
        step.purpose.get_or_insert(if alive.is_empty() {
            Reason::Starting
        } else {
            Reason::Scaling
        });
    }

    let is_idle = step.create.is_empty() && step.delete.is_empty() && step.forget.is_empty() && step.relabel.is_empty();
    let wait = resting.iter().filter_map(|pod| rest(pod, now)).min();
    match (is_idle, wait) {
        (false, _) => Plan::Progress(step),
        (true, Some(retry)) => Plan::Blocked {
            reason: Reason::PodFailed,
            retry,
        },
        (true, None) => Plan::Complete,
    }
}

fn relabel(mine: &[&PodFacts]) -> Vec<(Identity, BTreeMap<String, String>)> {
    let edited = mine
        .iter()
        .filter(|pod| !pod.missing_labels.is_empty() && !pod.is_terminating);
    edited
        .map(|pod| (pod.identity.clone(), pod.missing_labels.clone()))
        .collect()
}

/// How long a failed pod still rests. `None`: long enough.
fn rest(pod: &PodFacts, now: Timestamp) -> Option<Duration> {
    let age = Duration::try_from(now.duration_since(pod.created)).unwrap_or_default();
    REST.checked_sub(age).filter(|left| !left.is_zero())
}

fn ids(pods: &[&PodFacts]) -> Vec<Identity> {
    pods.iter().map(|pod| pod.identity.clone()).collect()
}

/// The pods that are too many: those that are not ready first, then the newest, then the highest slot.
fn surplus(alive: &[&PodFacts], wanted: usize) -> Vec<Identity> {
    let mut order = alive.to_vec();
    order.sort_by_key(|pod| {
        (
            pod.is_ready,
            std::cmp::Reverse(pod.created),
            std::cmp::Reverse(pod.slot),
        )
    });
    order.truncate(alive.len().saturating_sub(wanted));
    ids(&order)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn pod(revision: &str, slot: u32) -> PodFacts {
        PodFacts {
            identity: Identity {
                name: format!("m-{revision}-{slot}"),
                uid: format!("uid-{revision}-{slot}"),
            },
            revision: revision.to_owned(),
            slot: Some(slot),
            missing_labels: BTreeMap::new(),
            is_altered: false,
            is_terminating: false,
            has_ended: false,
            is_ready: true,
            created: at(0),
        }
    }

    fn target(replicas: u32) -> Target {
        Target {
            revision: "new".to_owned(),
            replicas,
            is_recorded: true,
            held: BTreeSet::new(),
            remake: None,
        }
    }

    fn step(plan: Plan) -> Step {
        match plan {
            Plan::Progress(step) => step,
            other => panic!("no step: {other:?}"),
        }
    }

    #[test]
    fn first_pass_records_the_revision_and_fills_the_slots() {
        let target = Target {
            is_recorded: false,
            ..target(2)
        };
        let step = step(decide(&target, &[], vec![], at(1)));
        assert_eq!(step.create, [0, 1]);
        assert!(step.record);
        assert_eq!(step.purpose, Some(Reason::Starting));
    }

    #[test]
    fn slot_of_a_terminating_pod_is_skipped() {
        let leaving = PodFacts {
            is_terminating: true,
            ..pod("new", 0)
        };
        let step = step(decide(&target(2), &[leaving, pod("new", 1)], vec![], at(1)));
        assert_eq!(step.create, [2]);
        assert!(step.delete.is_empty());
    }

    #[test]
    fn deleted_pod_comes_back_in_its_slot() {
        let step = step(decide(&target(2), &[pod("new", 1)], vec![], at(1)));
        assert_eq!(step.create, [0]);
    }

    #[test]
    fn scaling_down_takes_pods_that_are_not_ready_then_the_newest() {
        let pods = [
            PodFacts {
                created: at(5),
                ..pod("new", 0)
            },
            PodFacts {
                created: at(9),
                ..pod("new", 1)
            },
            PodFacts {
                created: at(1),
                is_ready: false,
                ..pod("new", 2)
            },
        ];
        let one = step(decide(&target(2), &pods, vec![], at(20)));
        assert_eq!(one.delete, [pods[2].identity.clone()]);
        let two = step(decide(&target(1), &pods, vec![], at(20)));
        assert_eq!(two.delete, [pods[2].identity.clone(), pods[1].identity.clone()]);
    }

    #[test]
    fn new_revision_recreates() {
        let step = step(decide(&target(1), &[pod("old", 0)], vec![], at(1)));
        assert_eq!(step.delete, [pod("old", 0).identity]);
        assert_eq!(step.create, [0]);
        assert_eq!(step.purpose, Some(Reason::Recreating));
    }

    #[test]
    fn failed_pod_rests_and_is_then_replaced_and_removed() {
        let failed = PodFacts {
            has_ended: true,
            is_ready: false,
            created: at(100),
            ..pod("new", 0)
        };
        let early = decide(&target(1), std::slice::from_ref(&failed), vec![], at(103));
        assert_eq!(
            early,
            Plan::Blocked {
                reason: Reason::PodFailed,
                retry: Duration::from_secs(7)
            }
        );
        let late = step(decide(&target(1), std::slice::from_ref(&failed), vec![], at(110)));
        assert_eq!(late.create, [1]);
        assert_eq!(late.delete, [failed.identity]);
    }

    #[test]
    fn edited_settings_of_a_revision_that_never_served_remake_it() {
        let record = Identity {
            name: "m-new".to_owned(),
            uid: "u".to_owned(),
        };
        let target = Target {
            remake: Some(record.clone()),
            ..target(1)
        };
        let step = step(decide(&target, &[pod("new", 0)], vec![], at(1)));
        assert_eq!(step.delete, [pod("new", 0).identity]);
        assert_eq!(step.forget, [record]);
        assert!(
            step.create.is_empty(),
            "the record must be gone before pods are made from it"
        );
    }

    #[test]
    fn zero_replicas_remove_every_pod_and_record_nothing() {
        let target = Target {
            is_recorded: false,
            ..target(0)
        };
        assert_eq!(decide(&target, &[], vec![], at(1)), Plan::Complete);
    }

    #[test]
    fn name_that_a_foreign_pod_holds_is_skipped() {
        let target = Target {
            held: BTreeSet::from([0]),
            ..target(1)
        };
        assert_eq!(step(decide(&target, &[], vec![], at(1))).create, [1]);
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
        let step = step(decide(&target(2), &[edited.clone(), altered.clone()], vec![], at(1)));
        assert_eq!(step.relabel, [(edited.identity, labels)]);
        assert_eq!(step.delete, [altered.identity]);
        assert_eq!(step.create, [2]);
    }

    #[test]
    fn pod_of_ours_with_a_strange_name_is_replaced() {
        let stray = PodFacts {
            slot: None,
            ..pod("new", 0)
        };
        let step = step(decide(&target(1), std::slice::from_ref(&stray), vec![], at(1)));
        assert_eq!(step.delete, [stray.identity]);
    }
}
