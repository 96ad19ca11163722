//! Random loads with fixed seeds: requests come, are computed by a model that only counts, draw tokens, end and go away.

use super::*;
use crate::kv::{BLOCK_TOKENS, root};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use std::collections::BTreeMap;

const BLOCKS: usize = 40;
const CONCURRENCY: usize = 6;
/// More steps than any request of the simulation needs while it competes with all others.
const PATIENCE: usize = 3000;

struct Client {
    prompt: Vec<u32>,
    /// Drawn tokens until it ends.
    wanted: usize,
    drawn: Vec<u32>,
    arrived: usize,
    was_started: bool,
    /// Others that fork from it.
    forks: u64,
}

struct World {
    scheduler: Scheduler,
    clients: BTreeMap<u64, Client>,
    next: u64,
    steps: usize,
    preempted: usize,
    known: usize,
    copied: usize,
    dice: StdRng,
}

/// What the model draws: it depends on all tokens before, so that a wrong recomputation shows.
fn draw(tokens: &[u32]) -> u32 {
    tokens
        .iter()
        .fold(7_u32, |sum, token| sum.wrapping_mul(31).wrapping_add(*token))
        % 5
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            scheduler: Scheduler::new(BLOCKS, CONCURRENCY),
            clients: BTreeMap::new(),
            next: 0,
            steps: 0,
            preempted: 0,
            known: 0,
            copied: 0,
            dice: StdRng::seed_from_u64(seed),
        }
    }

    fn arrive(&mut self) {
        let length = if self.dice.random_bool(0.2) {
            self.dice.random_range(300..700)
        } else {
            self.dice.random_range(1..120)
        };
        let kind = self.dice.random_range(0..3_u32);
        let prompt: Vec<u32> = (0..length).map(|at| if at < 64 { kind } else { kind + at }).collect();
        let wanted = self.dice.random_range(1..250);
        let forks = if self.dice.random_bool(0.2) {
            self.dice.random_range(1..CONCURRENCY as u64)
        } else {
            0
        };
        let id = self.next;
        self.next += 1 + forks;
        let room = (prompt.len() + wanted, usize::try_from(forks).unwrap() + 1);
        self.scheduler
            .add(RequestId(id), Some(root("m")), prompt.clone(), room)
            .unwrap();
        let client = Client {
            prompt,
            wanted,
            drawn: vec![],
            arrived: self.steps,
            was_started: false,
            forks,
        };
        self.clients.insert(id, client);
    }

    fn step(&mut self) {
        self.steps += 1;
        let prompt_tokens = self.dice.random_range(0..64);
        let plan = self.scheduler.plan(prompt_tokens);
        assert_eq!(plan.shares.is_empty(), self.scheduler.is_idle(), "{:?}", self.scheduler);
        self.preempted += plan.preempted.len();
        for (id, known) in &plan.started {
            self.known += known;
            let client = self.clients.get_mut(&id.0).unwrap();
            client.was_started = true;
        }
        self.check_order();
        self.check_shares(&plan, prompt_tokens);
        for share in &plan.shares {
            let span = self.scheduler.span(share).unwrap();
            let client = &self.clients[&share.id.0];
            let tokens = [client.prompt.as_slice(), &client.drawn].concat();
            assert_eq!(span.tokens, tokens[share.tokens.clone()], "tokens were lost");
            assert!(span.blocks.len() * BLOCK_TOKENS >= share.tokens.end);
            self.scheduler.computed(share);
            if share.draws {
                self.fork(share.id.0);
                self.draw(share.id.0, draw(&tokens));
            }
        }
        if let Some((id, client)) = self.clients.first_key_value() {
            assert!(self.steps - client.arrived < PATIENCE, "request {id} starves");
        }
    }

    fn draw(&mut self, id: u64, token: u32) {
        self.scheduler.push(RequestId(id), token);
        self.drawn(id, token);
    }

    fn drawn(&mut self, id: u64, token: u32) {
        let client = self.clients.get_mut(&id).unwrap();
        client.drawn.push(token);
        if client.drawn.len() == client.wanted {
            self.clients.remove(&id);
            assert!(self.scheduler.remove(RequestId(id)));
        }
    }

    /// Others draw another token than this one, and go on from there.
    fn fork(&mut self, id: u64) {
        let client = self.clients.get_mut(&id).unwrap();
        let forks = std::mem::take(&mut client.forks);
        let (prompt, arrived) = (client.prompt.clone(), client.arrived);
        for fork in (id + 1..=id + forks).rev() {
            let token = 100 + u32::try_from(fork - id).unwrap();
            if let Some((from, to)) = self.scheduler.fork(RequestId(id), RequestId(fork), token) {
                assert_ne!(from, to);
                self.copied += 1;
            }
            let client = Client {
                prompt: prompt.clone(),
                wanted: self.dice.random_range(1..100),
                drawn: vec![],
                arrived,
                was_started: true,
                forks: 0,
            };
            self.clients.insert(fork, client);
            self.drawn(fork, token);
        }
    }

    /// What runs is older than what waits.
    fn check_order(&self) {
        let ids = self.scheduler.running.iter().chain(&self.scheduler.waiting);
        assert!(ids.map(|one| one.id.0).is_sorted());
        let wide: usize = self.scheduler.running.iter().map(|one| one.width).sum();
        assert!(wide <= CONCURRENCY);
        assert!(
            self.scheduler
                .running
                .iter()
                .all(|one| one.width == 1 || !one.table.blocks().is_empty())
        );
    }

    fn check_shares(&self, plan: &Plan, prompt_tokens: usize) {
        let mut seen: Vec<u64> = plan.shares.iter().map(|share| share.id.0).collect();
        seen.sort_unstable();
        assert!(seen.is_sorted_by(|one, other| one < other), "a sequence has two shares");
        let generates = |one: &&Sequence| one.open() == 1;
        for one in self.scheduler.running.iter().filter(generates) {
            assert!(
                plan.shares.iter().any(|share| share.id == one.id && share.draws),
                "an answer stalls"
            );
        }
        let long = |share: &&Share| share.is_prompt && share.tokens.len() > 1;
        let tokens: usize = plan.shares.iter().filter(long).map(|share| share.tokens.len()).sum();
        assert!(
            tokens <= prompt_tokens.max(1),
            "{tokens} tokens of prompts, {prompt_tokens} allowed"
        );
    }
}

#[test]
fn every_request_comes_to_its_end_in_any_load() {
    let (mut preempted, mut known, mut copied) = (0, 0, 0);
    for seed in 0..40 {
        let mut world = World::new(seed);
        for _ in 0..1500 {
            if world.clients.len() < 12 && world.dice.random_bool(0.1) {
                world.arrive();
            }
            if world.dice.random_bool(0.01) {
                let ids: Vec<u64> = world.clients.keys().copied().collect();
                if let Some(id) = ids.get(world.dice.random_range(0..ids.len().max(1))) {
                    world.clients.remove(id);
                    assert!(world.scheduler.remove(RequestId(*id)));
                    assert!(!world.scheduler.remove(RequestId(*id)));
                }
            }
            world.step();
        }
        while !world.clients.is_empty() {
            world.step();
        }
        assert!(world.scheduler.is_idle());
        assert_eq!(world.scheduler.kv().used(), 0, "seed {seed}");
        preempted += world.preempted;
        known += world.known;
        copied += world.copied;
    }
    assert!(preempted > 100, "nobody had to give way: {preempted}");
    assert!(known > 1000, "no prefix was used again: {known}");
    assert!(copied > 1000, "nobody forked: {copied}");
}

#[test]
fn short_prompt_does_not_wait_for_a_long_one() {
    let mut scheduler = Scheduler::new(BLOCKS, CONCURRENCY);
    scheduler
        .add(RequestId(0), Some(root("m")), vec![1; 900], (901, 1))
        .unwrap();
    scheduler
        .add(RequestId(1), Some(root("m")), vec![2; 30], (31, 1))
        .unwrap();
    let shares = |scheduler: &mut Scheduler| -> Vec<(u64, usize)> {
        let plan = scheduler.plan(40);
        plan.shares.iter().for_each(|share| scheduler.computed(share));
        plan.shares
            .iter()
            .map(|share| (share.id.0, share.tokens.len()))
            .collect()
    };
    assert_eq!(shares(&mut scheduler), [(0, 20), (1, 20)]);
    assert_eq!(shares(&mut scheduler), [(0, 30), (1, 10)]);
}

#[test]
fn sequence_that_never_fits_is_refused() {
    let mut scheduler = Scheduler::new(4, 2);
    let most = 4 * BLOCK_TOKENS;
    assert_eq!(
        scheduler.add(RequestId(0), Some(root("m")), vec![1], (most + 1, 1)),
        Err(Shortage { missing: 1 })
    );
    scheduler
        .add(RequestId(0), Some(root("m")), vec![1], (most, 1))
        .unwrap();
}
