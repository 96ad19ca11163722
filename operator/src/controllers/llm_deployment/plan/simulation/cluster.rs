//! A cluster of GPUs, a scheduler that serves who came first, and pods that do what their revision is good for.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;

use super::Chance;
use crate::controllers::llm_deployment::observe::Probed;
use crate::controllers::llm_deployment::plan::facts::{Fault, Milestone, PodFacts};
use crate::kube_ext::orphans::Identity;
use crate::runtime_status::Traffic;

/// What a revision is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Kind {
    /// It serves.
    Good,
    /// It loads for ever.
    NeverReady,
    /// It ends again and again.
    Crashes,
    /// It serves, and ends now and then.
    CrashesLater,
    /// Its bytes are refused.
    Refused,
    /// Its answers are wrong.
    WrongAnswers,
    /// Its answers are errors.
    Errors,
    /// It asks for a device that no node has.
    NoSuchDevice,
}

impl Kind {
    pub(super) fn random(chance: &mut Chance) -> Self {
        let all = [
            Self::NeverReady,
            Self::Crashes,
            Self::CrashesLater,
            Self::Refused,
            Self::WrongAnswers,
            Self::Errors,
            Self::NoSuchDevice,
        ];
        all[usize::try_from(chance.below(all.len() as u64)).unwrap()]
    }
}

struct SimPod {
    facts: PodFacts,
    kind: Kind,
    has_node: bool,
    /// When it does its next step.
    next: Option<i64>,
    /// When it is gone.
    gone: Option<i64>,
    crashes: u8,
}

pub(super) struct Cluster {
    pub(super) gpus: usize,
    /// GPUs that other people hold.
    pub(super) foreign: usize,
    pub(super) second: i64,
    /// Nothing crashes any more that was ready.
    pub(super) is_calm: bool,
    pods: Vec<SimPod>,
    made: u64,
}

/// Bytes of the model, and how many come in one step.
const MODEL: u64 = 4;
const STEP: i64 = 3;

impl Cluster {
    pub(super) fn new(gpus: usize) -> Self {
        Self {
            gpus,
            foreign: 0,
            second: 1_000_000,
            is_calm: false,
            pods: vec![],
            made: 0,
        }
    }

    pub(super) fn now(&self) -> Timestamp {
        at(self.second)
    }

    pub(super) fn facts(&self) -> Vec<PodFacts> {
        self.pods.iter().map(|pod| pod.facts.clone()).collect()
    }

    pub(super) fn ready(&self) -> usize {
        self.pods
            .iter()
            .filter(|pod| pod.facts.is_alive() && pod.facts.is_ready)
            .count()
    }

    pub(super) fn create(&mut self, revision: &str, slot: u32, kind: Kind) {
        self.made += 1;
        let name = format!("m-{revision}-{slot}");
        assert!(
            self.pods.iter().all(|pod| pod.facts.identity.name != name),
            "uses a name twice: {name}"
        );
        let device = if kind == Kind::NoSuchDevice {
            "example.com/nothing"
        } else {
            "nvidia.com/gpu"
        };
        self.pods.push(SimPod {
            facts: PodFacts {
                identity: Identity {
                    name,
                    uid: format!("uid-{}", self.made),
                },
                revision: revision.to_owned(),
                slot: Some(slot),
                devices: BTreeMap::from([(device.to_owned(), "1".to_owned())]),
                created: self.now(),
                ..PodFacts::default()
            },
            kind,
            has_node: false,
            next: None,
            gone: None,
            crashes: 0,
        });
        self.schedule();
    }

    pub(super) fn delete(&mut self, uid: &str) {
        let second = self.second;
        let pod = self
            .pods
            .iter_mut()
            .find(|pod| pod.facts.identity.uid == uid)
            .expect("deletes a pod that is there");
        assert!(!pod.facts.is_terminating, "deletes twice");
        let drain = if pod.facts.is_ready { 15 } else { 1 };
        pod.end(second, drain);
    }

    pub(super) fn probe(&mut self, uid: &str) {
        if let Some(pod) = self.pods.iter_mut().find(|pod| pod.facts.identity.uid == uid) {
            pod.facts.probed = if pod.kind == Kind::WrongAnswers {
                Probed::Failed("5".to_owned())
            } else {
                Probed::Passed
            };
        }
    }

    /// Somebody deletes a pod, or it is evicted.
    pub(super) fn kill(&mut self, chance: &mut Chance) {
        let second = self.second;
        if let Some(pod) = self.any(chance) {
            if chance.one_in(2) {
                pod.facts.has_ended = true;
                pod.facts.is_ready = false;
                pod.facts.is_serving = false;
                pod.facts.ready_since = None;
                pod.next = None;
            } else {
                pod.end(second, 5);
            }
        }
    }

    /// A node is lost: its pod hangs, and holds its GPU, until the node comes back.
    pub(super) fn lose_node(&mut self, chance: &mut Chance) {
        let second = self.second;
        if let Some(pod) = self.any(chance) {
            pod.end(second, 20);
            pod.gone = Some(second + 600);
        }
    }

    fn any(&mut self, chance: &mut Chance) -> Option<&mut SimPod> {
        let alive: Vec<usize> = (0..self.pods.len())
            .filter(|index| self.pods[*index].facts.is_alive())
            .collect();
        let index = *alive.get(chance.index(alive.len()))?;
        Some(&mut self.pods[index])
    }

    /// Somebody else takes or gives back a GPU.
    pub(super) fn foreign(&mut self, chance: &mut Chance) {
        if self.foreign > 0 {
            self.foreign -= 1;
        } else if chance.one_in(2) && self.held() < self.gpus {
            self.foreign += 1;
        }
    }

    fn held(&self) -> usize {
        self.foreign + self.pods.iter().filter(|pod| pod.has_node).count()
    }

    fn schedule(&mut self) {
        let (now, second) = (self.now(), self.second);
        for index in 0..self.pods.len() {
            let is_full = self.held() >= self.gpus;
            let pod = &mut self.pods[index];
            if pod.has_node || !pod.facts.is_alive() {
                continue;
            }
            if is_full || pod.kind == Kind::NoSuchDevice {
                pod.facts.homeless_since.get_or_insert(now);
                continue;
            }
            pod.has_node = true;
            pod.facts.homeless_since = None;
            pod.facts.milestone = Milestone { stage: 2, bytes: 0 };
            pod.next = Some(second + STEP);
        }
    }

    /// Seconds until a pod does something by itself.
    pub(super) fn next_change(&self) -> Option<i64> {
        let times = self.pods.iter().flat_map(|pod| pod.next.into_iter().chain(pod.gone));
        times.map(|time| (time - self.second).max(1)).min()
    }

    pub(super) fn advance(&mut self, seconds: i64, chance: &mut Chance) {
        self.second += seconds;
        let second = self.second;
        self.pods.retain(|pod| pod.gone.is_none_or(|gone| gone > second));
        for pod in &mut self.pods {
            if pod.next.is_some_and(|next| next <= second) {
                pod.advance(second, self.is_calm, chance);
            }
        }
        self.schedule();
    }

    pub(super) fn describe(&self) -> String {
        let pods = self.pods.iter().map(|pod| {
            let facts = &pod.facts;
            format!(
                "  {} {:?} node {} ready {} ended {} terminating {} stage {:?}",
                facts.identity.name,
                pod.kind,
                pod.has_node,
                facts.is_ready,
                facts.has_ended,
                facts.is_terminating,
                facts.milestone
            )
        });
        pods.collect::<Vec<_>>().join("\n")
    }
}

impl SimPod {
    fn end(&mut self, second: i64, after: i64) {
        self.facts.is_terminating = true;
        self.facts.lost_at = Some(at(second + after + 30));
        self.gone = Some(second + after);
        self.next = None;
    }

    fn advance(&mut self, second: i64, is_calm: bool, chance: &mut Chance) {
        self.next = Some(second + STEP);
        let facts = &mut self.facts;
        if facts.is_ready {
            facts.traffic = Some(Traffic {
                requests: 40,
                errors: if self.kind == Kind::Errors { 30 } else { 0 },
                first_token: None,
            });
            if self.kind != Kind::CrashesLater || is_calm {
                self.next = None;
            } else if chance.one_in(4) {
                self.crash(second);
            }
            return;
        }
        if facts.is_crashing {
            if is_calm && self.crashes > 5 {
                self.next = None;
                return;
            }
            facts.is_crashing = false;
            facts.milestone = Milestone { stage: 4, bytes: 0 };
            return;
        }
        if facts.milestone.bytes < MODEL {
            facts.milestone.bytes += 1;
            return;
        }
        if facts.milestone.stage < 4 {
            facts.milestone = Milestone { stage: 4, bytes: 0 };
            return;
        }
        match self.kind {
            Kind::NeverReady | Kind::NoSuchDevice => self.next = None,
            Kind::Crashes => self.crash(second),
            Kind::Refused => {
                facts.fault = Some(Fault {
                    reason: "DigestMismatch".to_owned(),
                    message: "other bytes".to_owned(),
                    is_final: true,
                });
                self.next = None;
            }
            Kind::Good | Kind::CrashesLater | Kind::WrongAnswers | Kind::Errors => {
                facts.is_ready = true;
                facts.was_ready = true;
                facts.is_serving = true;
                facts.ready_since = Some(at(second));
                facts.milestone = Milestone { stage: 5, bytes: 0 };
            }
        }
    }

    fn crash(&mut self, second: i64) {
        self.crashes += 1;
        let facts = &mut self.facts;
        facts.is_ready = false;
        facts.is_serving = false;
        facts.ready_since = None;
        facts.is_crashing = true;
        facts.milestone = Milestone { stage: 3, bytes: 0 };
        facts.fault = Some(Fault {
            reason: "CrashLoop".to_owned(),
            message: "it ended".to_owned(),
            is_final: self.crashes >= 3,
        });
        self.next = Some(second + 10 * i64::from(self.crashes.min(20)));
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}
