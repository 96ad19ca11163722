//! Whole lives of a deployment, with seeded chance: pods find nodes or not, load, fail and hang on lost nodes, other
//! people take GPUs, while somebody edits model, size and strategy, the operator restarts and its writes get lost. The
//! invariants of the plan are checked at every step, and at the end everything must come to rest by itself.

mod cluster;
mod invariants;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use escadre_crds::v1alpha1::{Rollout, Strategy};
use serde_json::json;

use super::policy::Policy;
use super::{Fleet, Plan, State, decide};
use cluster::{Cluster, Kind};

/// A small generator with a fixed sequence for each seed (xorshift).
pub(super) struct Chance(u64);

impl Chance {
    fn of(seed: u64) -> Self {
        Self(u64::wrapping_mul(seed, 0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    pub(super) fn one_in(&mut self, number: u64) -> bool {
        self.below(number) == 0
    }

    fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length.max(1) as u64)).unwrap()
    }
}

/// How long no simulated rollout may take once nothing more happens.
const LONGEST: i64 = 4 * 3600;

/// One deployment in its cluster, as the API server has it.
struct Life {
    cluster: Cluster,
    fleet: Fleet,
    rollout: Rollout,
    /// What is wrong with each revision.
    kinds: BTreeMap<String, Kind>,
    failed: Option<String>,
    /// Rollouts that began.
    edits: u64,
    last: Plan,
    told: Plan,
    /// What followed from what, without anybody's doing.
    followed: BTreeSet<(&'static str, &'static str)>,
}

impl Life {
    fn new(chance: &mut Chance) -> Self {
        let replicas = 1 + chance.index(5);
        // Full, nearly full, or with room for everything.
        let gpus = replicas + [0, 0, 1, 6][chance.index(4)];
        let rollout = random_rollout(chance);
        let first = if chance.one_in(8) { Kind::NeverReady } else { Kind::Good };
        Self {
            cluster: Cluster::new(gpus),
            fleet: Fleet {
                target: "r0".to_owned(),
                stable: None,
                is_failed: false,
                is_frozen: false,
                replicas,
                policy: Policy::of(&rollout, replicas),
                is_recorded: false,
                held: [].into(),
                remake: None,
                unused: vec![],
                memory: None,
                best: None,
                refusal: None,
                pods: vec![],
            },
            rollout,
            kinds: BTreeMap::from([("r0".to_owned(), first)]),
            failed: None,
            edits: 0,
            last: Plan::default(),
            told: Plan::default(),
            followed: BTreeSet::new(),
        }
    }

    /// Somebody edits the model.
    fn edit(&mut self, kind: Kind) {
        self.edits += 1;
        self.fleet.target = format!("r{}", self.edits);
        self.fleet.is_recorded = false;
        self.kinds.insert(self.fleet.target.clone(), kind);
    }

    /// Something happens.
    fn event(&mut self, chance: &mut Chance) {
        match chance.below(40) {
            0 => self.edit(Kind::random(chance)),
            1 => self.edit(Kind::Good),
            2 => {
                // Back to what served before.
                if let Some(stable) = self.fleet.stable.clone() {
                    self.edits += 1;
                    self.fleet.target = stable;
                }
            }
            3 => self.resize(1 + chance.index(5)),
            4 if chance.one_in(3) => self.resize(0),
            5 => self.rollout.paused = chance.one_in(2),
            6 => self.cluster.kill(chance),
            7 => self.cluster.lose_node(chance),
            8 => self.cluster.foreign(chance),
            9 => self.fleet.best = None,
            10 if chance.one_in(4) => {
                let paused = self.rollout.paused;
                self.rollout = random_rollout(chance);
                self.rollout.paused = paused;
            }
            11 => self.fleet.is_frozen = chance.one_in(3),
            _ => {}
        }
        self.cluster
            .advance(1 + i64::try_from(chance.below(20)).unwrap(), chance);
    }

    fn resize(&mut self, replicas: usize) {
        self.fleet.replicas = replicas;
    }

    /// One pass of an operator. Its status is lost now and then, as after a conflict.
    fn pass(&mut self, is_lost: bool) {
        let now = self.cluster.now();
        self.fleet.policy = Policy::of(&self.rollout, self.fleet.replicas);
        self.fleet.pods = self.cluster.facts();
        self.fleet.is_failed = self.failed.as_ref() == Some(&self.fleet.target);
        let plan = decide(&self.fleet, now);
        assert_eq!(
            plan,
            decide(&self.fleet, now),
            "the plan depends on more than the world"
        );
        invariants::before(&self.fleet, &plan);
        for pod in &plan.step.delete {
            self.cluster.delete(&pod.uid);
        }
        for pod in &plan.probe {
            self.cluster.probe(&pod.uid);
        }
        for (revision, slot) in &plan.step.create {
            self.cluster.create(revision, *slot, self.kinds[revision]);
        }
        self.fleet.is_recorded |= plan.step.record;
        self.fleet.best = plan.best.map(|best| (plan.goal.clone(), best));
        if !is_lost {
            self.fleet.memory.clone_from(&plan.rollout);
            if plan.failure.is_some() {
                self.failed = Some(self.fleet.target.clone());
            } else if self.failed.as_ref() != Some(&self.fleet.target) {
                self.failed = None;
            }
            if plan.completes {
                self.fleet.stable = Some(self.fleet.target.clone());
            }
        }
        self.last = plan;
    }

    /// Nothing more happens from outside: time goes on until everything rests.
    fn rest(&mut self, chance: &mut Chance) {
        let end = self.cluster.second + LONGEST;
        self.fleet.is_frozen = false;
        self.cluster.is_calm = true;
        self.pass(false);
        while self.cluster.second < end {
            let before = stage(&self.last);
            self.pass(false);
            if before != stage(&self.last) {
                self.followed.insert((before, stage(&self.last)));
            }
            let is_news = !self.last.step.is_empty() || self.last.failure.is_some() || self.last.completes;
            let is_news = is_news && std::mem::replace(&mut self.told, self.last.clone()) != self.last;
            let wake = self.last.wake.map(|wake| i64::try_from(wake.as_secs()).unwrap() + 1);
            // What was written wakes the operator.
            let news = is_news.then_some(1);
            let waits = wake.into_iter().chain(self.cluster.next_change()).chain(news);
            let Some(wait) = waits.min() else { return };
            self.cluster.advance(wait, chance);
        }
        panic!("does not come to rest: {}", self.describe());
    }

    fn describe(&self) -> String {
        format!(
            "{:?}\nstrategy {:?}, {} replicas, {} GPUs ({} taken), target {} ({:?}), stable {:?}, failed {:?}\n{}",
            self.last.state,
            self.rollout.strategy,
            self.fleet.replicas,
            self.cluster.gpus,
            self.cluster.foreign,
            self.fleet.target,
            self.kinds[&self.fleet.target],
            self.fleet.stable,
            self.failed,
            self.cluster.describe(),
        )
    }
}

fn random_rollout(chance: &mut Chance) -> Rollout {
    let strategies = [
        Strategy::Auto,
        Strategy::Auto,
        Strategy::Surge,
        Strategy::InPlace,
        Strategy::Recreate,
        Strategy::Canary,
    ];
    let strategy = strategies[chance.index(strategies.len())];
    let mut rollout = json!({
        "strategy": strategy, "progressDeadline": "5m", "minReadySeconds": chance.below(2) * 10,
        "autoRollback": !chance.one_in(8),
    });
    if strategy == Strategy::Canary {
        rollout["canary"] = json!({"steps": [{"weight": 20, "pause": "30s"}, {"weight": 60}]});
    }
    if strategy != Strategy::Recreate && chance.one_in(3) {
        rollout["maxSurge"] = json!(chance.below(3));
        rollout["maxUnavailable"] = json!(if strategy == Strategy::Surge {
            1
        } else {
            chance.below(2)
        });
    }
    if chance.one_in(3) {
        rollout["gates"] = json!({
            "maxErrorRate": 0.1, "window": "20s", "probePrompt": {"prompt": "2+2", "expectContains": "4"},
        });
    }
    serde_json::from_value(rollout).unwrap()
}

/// What the diagram in `docs/concepts/rollouts.md` calls it.
fn stage(plan: &Plan) -> &'static str {
    match plan.state {
        _ if plan.completes => "Complete",
        State::Idle | State::Working | State::Resting(_) | State::Remaking => "Starting",
        State::RollingOut(_) => "RollingOut",
        State::Blocked(_) => "Blocked",
        State::Paused(_) => "Paused",
        State::Stalled(_) => "Stalled",
        State::Failed => "Failed",
        State::Halted => "RolloutStopped",
        State::RolledBack(_) => "RolledBack",
    }
}

/// The arrows of the diagram.
fn documented() -> BTreeSet<(&'static str, &'static str)> {
    let text = include_str!("../../../../../../docs/concepts/rollouts.md");
    let arrows = text.lines().filter_map(|line| line.trim().split_once(" --> "));
    arrows
        .filter(|(from, to)| !from.contains('*') && !to.contains('*'))
        .collect()
}

fn live(seed: u64) -> Life {
    let mut chance = Chance::of(seed);
    let mut life = Life::new(&mut chance);
    life.rest(&mut chance);
    life.cluster.is_calm = false;
    for _ in 0..60 {
        life.event(&mut chance);
        let is_lost = chance.one_in(12);
        life.pass(is_lost);
    }
    life.rollout.paused = false;
    life.cluster.foreign = 0;
    life.cluster.advance(1, &mut chance);
    life.rest(&mut chance);
    invariants::at_rest(&life, seed);
    life
}

#[test]
fn every_life_keeps_the_invariants_and_comes_to_rest() {
    let part = |part: u64| {
        let lives = (1..=LIVES / 4).map(|life| live(part * LIVES + life));
        lives.fold((0, BTreeSet::new()), |(edits, mut followed), life| {
            followed.extend(&life.followed);
            (edits + life.edits, followed)
        })
    };
    let threads: Vec<_> = (0..4).map(|number| std::thread::spawn(move || part(number))).collect();
    let parts: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    let rollouts: u64 = parts.iter().map(|(edits, _)| edits).sum();
    assert!(rollouts >= 100_000, "{rollouts} rollouts");
    let followed: BTreeSet<_> = parts.into_iter().flat_map(|(_, followed)| followed).collect();
    assert_eq!(followed, documented(), "docs/concepts/rollouts.md shows something else");
}

/// How many lives are lived: each has about four rollouts.
const LIVES: u64 = 30_000;

#[test]
fn rollout_of_a_full_cluster_goes_on_in_place_and_loses_no_more_than_one() {
    let mut chance = Chance::of(7);
    let mut life = Life::new(&mut chance);
    life.kinds.insert("r0".to_owned(), Kind::Good);
    life.rollout = serde_json::from_value(json!({"minReadySeconds": 0})).unwrap();
    life.resize(4);
    life.cluster.gpus = 4;
    life.rest(&mut chance);
    life.edit(Kind::Good);
    let start = life.cluster.second;
    let mut least = 4;
    while life.fleet.stable.as_deref() != Some("r1") {
        life.pass(false);
        let made = &life.last.step.create;
        assert!(
            made.iter().all(|(revision, _)| revision == "r1"),
            "an old pod comes back: {made:?}"
        );
        life.cluster.advance(1, &mut chance);
        least = least.min(life.cluster.ready());
        assert!(life.cluster.second - start < 1800, "{}", life.describe());
    }
    assert_eq!(least, 3);
}

#[test]
fn last_ready_pod_is_never_stopped_for_a_pod_without_a_node() {
    let mut chance = Chance::of(8);
    let mut life = Life::new(&mut chance);
    life.kinds.insert("r0".to_owned(), Kind::Good);
    life.rollout = serde_json::from_value(json!({"progressDeadline": "10m"})).unwrap();
    life.resize(1);
    life.cluster.gpus = 1;
    life.rest(&mut chance);
    life.edit(Kind::Good);
    for _ in 0..100 {
        life.pass(false);
        life.cluster.advance(1, &mut chance);
        assert_eq!(life.cluster.ready(), 1);
    }
    let State::Blocked(words) = &life.last.state else {
        panic!("{}", life.describe())
    };
    assert!(words.contains("nothing is stopped"), "{words}");
    // It is not blocked for ever: what stands still fails, and the old one serves on.
    life.cluster
        .advance(i64::try_from(Duration::from_mins(10).as_secs()).unwrap(), &mut chance);
    life.rest(&mut chance);
    assert!(matches!(life.last.state, State::RolledBack(_)), "{}", life.describe());
    assert_eq!(life.cluster.ready(), 1);
}
