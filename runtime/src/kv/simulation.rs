//! Random lives of sequences with fixed seeds; after each step the books are compared with what the tables say.

use super::*;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use std::collections::HashSet;

/// A sequence, and what its blocks hold by our own account.
struct Life {
    table: Table,
    tokens: Vec<u32>,
    computed: usize,
    root: Chain,
}

struct World {
    kv: Kv,
    lives: Vec<Life>,
    /// What was last written to each place of each block.
    written: Vec<Option<(Chain, Vec<u32>)>>,
    dice: StdRng,
}

impl World {
    fn new(seed: u64) -> Self {
        let blocks = 24;
        Self {
            kv: Kv::new(blocks),
            lives: vec![],
            written: vec![None; blocks],
            dice: StdRng::seed_from_u64(seed),
        }
    }

    /// Few beginnings, so that many are shared.
    fn prompt(&mut self) -> Vec<u32> {
        let length = self.dice.random_range(1..200_u32);
        let kind = self.dice.random_range(0..3_u32);
        let differs = self.dice.random_range(0..200);
        (0..length)
            .map(|at| if at < differs { kind } else { at + 9 * kind })
            .collect()
    }

    fn act(&mut self) {
        match self.dice.random_range(0..10) {
            0..3 => self.start(),
            3..7 => self.compute(),
            7 => self.fork(),
            _ => self.end(),
        }
    }

    fn start(&mut self) {
        let tokens = self.prompt();
        let root = root(["m", "n"].choose(&mut self.dice).unwrap());
        let known = self.kv.known(root, &tokens);
        let table = self.kv.begin(root, &tokens);
        assert_eq!(table.capacity(), known);
        assert!(known < tokens.len());
        for (at, id) in table.blocks().iter().enumerate() {
            let held = self.written[index(*id)].as_ref().unwrap();
            let wanted = (root, tokens[..(at + 1) * BLOCK_TOKENS].to_vec());
            assert_eq!(*held, wanted, "a prefix of somebody else");
        }
        self.lives.push(Life {
            table,
            computed: known,
            tokens,
            root,
        });
    }

    /// Computes a chunk of what is open, and draws a token when the prompt is done.
    fn compute(&mut self) {
        let Some(at) = self.any() else { return };
        let life = &mut self.lives[at];
        let open = life.tokens.len() - life.computed;
        let end = life.computed + self.dice.random_range(1..=open);
        let available = self.kv.available();
        let needed = Kv::needed(&life.table, end);
        let given = self.kv.grow(&mut life.table, end);
        assert_eq!(given.is_ok(), needed <= available, "{needed} of {available}");
        if given.is_err() {
            assert_eq!(self.kv.available(), available);
            return;
        }
        for position in life.computed..end {
            let id = life.table.blocks()[position / BLOCK_TOKENS];
            assert_eq!(self.kv.blocks[index(id)].users, 1, "a shared block is written");
            assert_eq!(self.kv.blocks[index(id)].name, None, "a named block is written");
            self.written[index(id)] = Some((life.root, life.tokens[..=position].to_vec()));
        }
        life.computed = end;
        self.kv.name(&mut life.table, &life.tokens[..end]);
        if end == life.tokens.len() {
            life.tokens.push(self.dice.random_range(0..4));
        }
    }

    fn fork(&mut self) {
        let Some(at) = self.any() else { return };
        let life = &self.lives[at];
        let Ok((table, pair)) = self.kv.fork(&life.table, life.computed) else {
            return;
        };
        if let Some((from, to)) = pair {
            self.written[index(to)] = self.written[index(from)].clone();
        }
        let copy = Life {
            table,
            tokens: life.tokens.clone(),
            computed: life.computed,
            root: life.root,
        };
        self.lives.push(copy);
    }

    fn end(&mut self) {
        if let Some(at) = self.any() {
            let life = self.lives.swap_remove(at);
            self.kv.release(life.table);
        }
    }

    fn any(&mut self) -> Option<usize> {
        (!self.lives.is_empty()).then(|| self.dice.random_range(0..self.lives.len()))
    }

    fn check(&self) {
        let kv = &self.kv;
        let mut users = vec![0; kv.total()];
        for id in self.lives.iter().flat_map(|life| life.table.blocks()) {
            users[index(*id)] += 1;
        }
        let free: HashSet<BlockId> = kv.free.iter().copied().collect();
        let idle: HashSet<BlockId> = kv.idle.values().copied().collect();
        assert_eq!(free.len(), kv.free.len(), "a block is free twice");
        for (at, block) in kv.blocks.iter().enumerate() {
            let id = BlockId(u32::try_from(at).unwrap());
            assert_eq!(block.users, users[at], "{id:?}");
            let places = [free.contains(&id), idle.contains(&id), block.users > 0];
            assert_eq!(
                places.iter().filter(|is_there| **is_there).count(),
                1,
                "{id:?}: {places:?}"
            );
            assert_eq!(
                block.name.is_some_and(|name| kv.named.get(&name) == Some(&id)),
                block.name.is_some()
            );
        }
        assert!(
            kv.named
                .iter()
                .all(|(name, id)| kv.blocks[index(*id)].name == Some(*name))
        );
        for life in &self.lives {
            for (at, id) in life
                .table
                .blocks()
                .iter()
                .enumerate()
                .take(life.computed.div_ceil(BLOCK_TOKENS))
            {
                let end = life.computed.min((at + 1) * BLOCK_TOKENS);
                let (root, held) = self.written[index(*id)].as_ref().unwrap();
                assert_eq!(
                    (*root, &held[..end]),
                    (life.root, &life.tokens[..end]),
                    "{id:?} holds something else"
                );
            }
        }
    }
}

#[test]
fn no_block_is_lost_or_shared_wrongly_in_any_order_of_events() {
    for seed in 0..200 {
        let mut world = World::new(seed);
        for _ in 0..400 {
            world.act();
            world.check();
        }
        for life in std::mem::take(&mut world.lives) {
            world.kv.release(life.table);
        }
        world.check();
        assert_eq!(world.kv.used(), 0, "seed {seed}");
    }
}
