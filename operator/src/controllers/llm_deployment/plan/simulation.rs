//! Whole lives of a deployment, with seeded chance: pods become ready, fail, are deleted, hang on a lost node, while
//! people edit the size and the model. The invariants of the plan are checked at every step.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::Timestamp;

use super::{Plan, PodFacts, Target, decide};
use crate::kube_ext::orphans::Identity;

/// A small generator with a fixed sequence for each seed (xorshift).
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

struct World {
    pods: Vec<PodFacts>,
    lost: BTreeSet<String>,
    second: i64,
    made: u64,
    target: Target,
}

impl World {
    fn now(&self) -> Timestamp {
        Timestamp::from_second(self.second).unwrap()
    }

    fn alive(&self) -> usize {
        self.pods
            .iter()
            .filter(|pod| pod.is_alive() && pod.revision == self.target.revision)
            .count()
    }

    /// Something happens.
    fn event(&mut self, chance: &mut Chance) {
        self.second += i64::try_from(chance.below(6)).unwrap();
        let count = self.pods.len() as u64;
        let index = (count > 0).then(|| usize::try_from(chance.below(count)).unwrap());
        match (chance.below(9), index) {
            (0..=2, Some(index)) => {
                let pod = &mut self.pods[index];
                pod.is_ready = pod.is_alive();
            }
            (3, Some(index)) => {
                self.pods[index].has_ended = true;
                self.pods[index].is_ready = false;
            }
            (4, Some(index)) => self.pods[index].is_terminating = true,
            (5, Some(index)) => {
                self.lost.insert(self.pods[index].identity.uid.clone());
                self.pods[index].is_terminating = true;
            }
            (6, _) => self.target.replicas = u32::try_from(chance.below(6)).unwrap(),
            (7, _) => {
                self.target.revision = format!("r{}", chance.below(4));
                self.target.is_recorded = false;
            }
            _ => self.collect(),
        }
    }

    /// Terminating pods go away, but for those on lost nodes.
    fn collect(&mut self) {
        let lost = &self.lost;
        self.pods
            .retain(|pod| !pod.is_terminating || lost.contains(&pod.identity.uid));
    }

    /// Carries out one plan and checks it.
    fn pass(&mut self) -> Plan {
        let plan = decide(&self.target, &self.pods, vec![], self.now());
        assert_eq!(
            plan,
            decide(&self.target, &self.pods, vec![], self.now()),
            "the plan depends on more than the world"
        );
        if let Plan::Progress(step) = &plan {
            let before = self.alive();
            for victim in &step.delete {
                let pod = self
                    .pods
                    .iter_mut()
                    .find(|pod| pod.identity == *victim)
                    .expect("deletes a pod that is there");
                assert!(!pod.is_terminating, "deletes twice");
                pod.is_terminating = true;
            }
            let wanted = self.target.replicas as usize;
            assert!(self.alive() >= wanted.min(before), "takes more than the surplus");
            for slot in &step.create {
                let name = format!("m-{}-{slot}", self.target.revision);
                assert!(
                    self.pods.iter().all(|pod| pod.identity.name != name),
                    "uses a name twice: {name}"
                );
                self.made += 1;
                self.pods.push(PodFacts {
                    identity: Identity {
                        name,
                        uid: format!("uid-{}", self.made),
                    },
                    revision: self.target.revision.clone(),
                    slot: Some(*slot),
                    missing_labels: BTreeMap::new(),
                    is_altered: false,
                    is_terminating: false,
                    has_ended: false,
                    is_ready: false,
                    created: self.now(),
                });
            }
            assert!(
                step.create.is_empty() || self.alive() <= wanted,
                "creates more than was asked for"
            );
            self.target.is_recorded |= step.record;
            assert!(
                step.create.is_empty() || self.target.is_recorded,
                "makes pods of a revision without a record"
            );
        }
        plan
    }
}

#[test]
fn every_life_keeps_the_invariants_and_settles() {
    for seed in 1..=400 {
        let mut chance = Chance(u64::wrapping_mul(seed, 0x9E37_79B9_7F4A_7C15));
        let target = Target {
            revision: "r0".to_owned(),
            replicas: 2,
            is_recorded: false,
            held: BTreeSet::new(),
            remake: None,
        };
        let mut world = World {
            pods: vec![],
            lost: BTreeSet::new(),
            second: 1000,
            made: 0,
            target,
        };
        for _ in 0..120 {
            world.event(&mut chance);
            world.pass();
        }
        // Nothing more happens but time.
        for _ in 0..4 {
            world.second += 20;
            world.collect();
            world.pass();
        }
        assert_eq!(world.pass(), Plan::Complete, "seed {seed} does not settle");
        assert_eq!(
            world.alive(),
            world.target.replicas as usize,
            "seed {seed} has another size"
        );
        let foreign = world
            .pods
            .iter()
            .filter(|pod| pod.revision != world.target.revision && !pod.is_terminating);
        assert_eq!(foreign.count(), 0, "seed {seed} keeps another revision");
    }
}
