//! Three operators and one API server, with seeded chance: clocks that are apart and run at different rates, requests
//! that are held up and carried out late, answers that are lost, partitions, processes that stand still or crash,
//! graceful stops. At every moment at most one may act, and when the trouble ends one does.

use std::time::Duration;

use super::candidate::{Answer, Call, Candidate, Lease, Step};
use super::decide::Timing;
use crate::chance::Chance;

/// One step of true time, in milliseconds.
const TICK: u64 = 50;

struct Operator {
    candidate: Candidate,
    name: String,
    /// Milliseconds that its clock is ahead.
    offset: u64,
    /// Its clock runs at this many thousandths of true time.
    rate: u64,
    waits_for: Option<(u64, Duration)>,
    answer: Option<Answer>,
    still_until: u64,
    starts_at: u64,
    cut_until: u64,
}

impl Operator {
    fn clock(&self, now: u64) -> Duration {
        Duration::from_millis(self.offset + now * self.rate / 1000)
    }

    /// Whether a write would pass the gate; also while it stands still, since it may stop just behind the gate.
    fn may_act(&self, now: u64) -> bool {
        now >= self.starts_at
            && self
                .candidate
                .allowed_until()
                .is_some_and(|until| until > self.clock(now))
    }
}

enum Request {
    Election(Call),
    Release(String),
}

struct Travelling {
    arrives: u64,
    request: Request,
    operator: usize,
    name: String,
    id: u64,
    is_answer_lost: bool,
}

struct World {
    chance: Chance,
    timing: Timing,
    now: u64,
    stored: Option<(Option<String>, u64)>,
    version: u64,
    operators: Vec<Operator>,
    travelling: Vec<Travelling>,
    next_id: u64,
    has_trouble: bool,
    reigns: u64,
    last_leader: Option<String>,
}

impl World {
    fn new(seed: u64, rates: std::ops::Range<u64>) -> Self {
        let timing = Timing::default();
        let mut chance = Chance::new(seed);
        let operators = (0..3)
            .map(|number| Operator {
                candidate: Candidate::new(format!("{number}.0"), timing),
                name: format!("{number}.0"),
                offset: chance.below(1 << 40),
                rate: rates.start + chance.below(rates.end - rates.start),
                waits_for: None,
                answer: None,
                still_until: 0,
                starts_at: chance.below(5000),
                cut_until: 0,
            })
            .collect();
        Self {
            chance,
            timing,
            now: 0,
            stored: None,
            version: 0,
            operators,
            travelling: Vec::new(),
            next_id: 0,
            has_trouble: true,
            reigns: 0,
            last_leader: None,
        }
    }

    fn restart(&mut self, index: usize, pause: u64) {
        self.next_id += 1;
        let operator = &mut self.operators[index];
        operator.name = format!("{index}.{}", self.next_id);
        operator.candidate = Candidate::new(operator.name.clone(), self.timing);
        operator.waits_for = None;
        operator.answer = None;
        operator.starts_at = self.now + pause;
    }

    fn trouble(&mut self) {
        if !self.has_trouble || !self.chance.one_in(60) {
            return;
        }
        let index = usize::try_from(self.chance.below(3)).unwrap();
        let length = self.chance.below(30_000);
        match self.chance.below(5) {
            0 => self.operators[index].still_until = self.now + length,
            1 | 2 => self.operators[index].cut_until = self.now + length,
            3 => self.restart(index, length),
            _ => {
                let name = self.operators[index].name.clone();
                if self.operators[index].candidate.allowed_until().is_some() {
                    self.send(index, Request::Release(name));
                }
                self.restart(index, length);
            }
        }
    }

    fn send(&mut self, index: usize, request: Request) -> u64 {
        self.next_id += 1;
        if self.has_trouble && self.operators[index].cut_until > self.now && self.chance.one_in(2) {
            // Lost on the way there.
            return self.next_id;
        }
        let is_held_up = self.has_trouble && self.chance.one_in(10);
        let delay = self.chance.below(if is_held_up { 40_000 } else { 200 });
        self.travelling.push(Travelling {
            arrives: self.now + delay,
            request,
            operator: index,
            name: self.operators[index].name.clone(),
            id: self.next_id,
            is_answer_lost: self.has_trouble && self.operators[index].cut_until > self.now,
        });
        self.next_id
    }

    fn arrive(&mut self) {
        let now = self.now;
        let arrived: Vec<Travelling> = self.travelling.extract_if(.., |one| one.arrives <= now).collect();
        for one in arrived {
            let answer = match one.request {
                Request::Election(call) => self.serve(&call, &one.name),
                Request::Release(name) => {
                    if let Some((holder, version)) = &mut self.stored
                        && holder.as_ref() == Some(&name)
                    {
                        *holder = None;
                        self.version += 1;
                        *version = self.version;
                    }
                    continue;
                }
            };
            let operator = &mut self.operators[one.operator];
            if !one.is_answer_lost && operator.waits_for.is_some_and(|(id, _)| id == one.id) {
                operator.answer = Some(answer);
            }
        }
    }

    /// The API server.
    fn serve(&mut self, call: &Call, name: &str) -> Answer {
        match (call, &self.stored) {
            (Call::Read, None) => return Answer::Missing,
            (Call::Read, Some((holder, version))) => {
                return Answer::Found(Lease {
                    holder: holder.clone(),
                    version: version.to_string(),
                    length: Some(self.timing.lease),
                });
            }
            (Call::Create, None) => {}
            (Call::Replace { version, .. }, Some((_, stored))) if *version == stored.to_string() => {}
            (Call::Create | Call::Replace { .. }, _) => return Answer::Failed,
        }
        self.version += 1;
        self.stored = Some((Some(name.to_owned()), self.version));
        Answer::Stored(self.version.to_string())
    }

    fn work(&mut self, index: usize) {
        let operator = &mut self.operators[index];
        if operator.starts_at > self.now || operator.still_until > self.now {
            return;
        }
        let clock = operator.clock(self.now);
        if let Some((_, sent)) = operator.waits_for {
            // An answer that came while the process stood still is taken, however late.
            let answer = operator
                .answer
                .take()
                .or_else(|| (clock >= sent + self.timing.call()).then_some(Answer::Failed));
            let Some(answer) = answer else { return };
            operator.waits_for = None;
            operator.candidate.answered(answer, sent, clock);
        }
        match operator.candidate.next(clock) {
            Step::Sleep(_) => {}
            Step::Lost(_) => self.restart(index, 1000),
            Step::Ask(call) => {
                let id = self.send(index, Request::Election(call));
                self.operators[index].waits_for = Some((id, clock));
            }
        }
    }

    /// One step. Returns who may act.
    fn tick(&mut self) -> Vec<String> {
        self.now += TICK;
        self.trouble();
        self.arrive();
        for index in 0..self.operators.len() {
            self.work(index);
        }
        let acting: Vec<String> = self
            .operators
            .iter()
            .filter(|operator| operator.may_act(self.now))
            .map(|operator| operator.name.clone())
            .collect();
        if let Some(leader) = acting.first()
            && self.last_leader.as_ref() != Some(leader)
        {
            self.reigns += 1;
            self.last_leader = Some(leader.clone());
        }
        acting
    }
}

#[test]
fn at_most_one_acts_whatever_happens_and_one_does_when_trouble_ends() {
    let mut reigns = 0;
    for seed in 1..=300 {
        let mut world = World::new(seed, 950..1050);
        for _ in 0..6000 {
            let acting = world.tick();
            assert!(acting.len() <= 1, "seed {seed}, {} ms: {acting:?} act", world.now);
        }
        world.has_trouble = false;
        // What is still held up, what stands still, and then one length of the lease.
        let mut acting = Vec::new();
        for _ in 0..2000 {
            acting = world.tick();
            assert!(acting.len() <= 1, "seed {seed}, {} ms: {acting:?} act", world.now);
        }
        assert_eq!(acting.len(), 1, "seed {seed}: nobody acts");
        reigns += world.reigns;
    }
    // The schedules must be rough enough to mean something.
    assert!(reigns > 300 * 5, "only {reigns} changes of the leader");
}

#[test]
fn simulation_finds_two_leaders_when_clocks_run_apart_further_than_the_margin() {
    let found = (1..=300).any(|seed| {
        let mut world = World::new(seed, 400..1600);
        (0..6000).any(|_| world.tick().len() > 1)
    });
    assert!(found);
}

#[test]
fn lease_that_is_given_back_is_taken_within_two_looks() {
    let mut world = World::new(7, 1000..1001);
    world.has_trouble = false;
    while world.tick().is_empty() {}
    for _ in 0..200 {
        world.tick();
    }
    let leader = world.operators.iter().position(|one| one.may_act(world.now)).unwrap();
    let name = world.operators[leader].name.clone();
    world.send(leader, Request::Release(name));
    world.restart(leader, 60_000);
    let stopped = world.now;
    while world.tick().is_empty() {}
    assert!(world.now - stopped <= 4000, "took {} ms", world.now - stopped);
}
