//! Which block of the cache of keys and values holds what: counted users, prefixes that are used again, eviction. Pure:
//! no tensor, no clock, no lock.
//!
//! The cache is a pool of blocks of [`BLOCK_TOKENS`] tokens. A sequence has a [`Table`] of blocks in the order of its
//! tokens. Blocks that are full and computed get a name, the [`Chain`] of everything before and in them, by which a
//! later sequence with the same beginning finds them. A block without users that has a name stays as it is until its
//! place is needed; the one that was used longest ago goes first, and of one sequence its last block.
//!
//! Invariants, checked in the simulation:
//! - a block is free, idle (named and without users), or used by as many tables as it counts;
//! - a block that is written has one user and no name; a named block never changes;
//! - two tables share a block only when all tokens up to its end are the same, under the same root;
//! - what is asked for is given whole or not at all, and always given when free and idle blocks suffice.

mod chain;
#[cfg(test)]
mod simulation;

use std::collections::{BTreeMap, HashMap};

pub use chain::{Chain, root};

/// Tokens of a block.
pub const BLOCK_TOKENS: usize = 32;

/// A block of the cache, by its place in the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);

/// How many blocks hold so many tokens.
pub const fn blocks_for(tokens: usize) -> usize {
    tokens.div_ceil(BLOCK_TOKENS)
}

/// There are too few blocks for what was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{missing} blocks of keys and values are missing")]
pub struct Shortage {
    /// How many more would be needed.
    pub missing: usize,
}

/// The blocks of one sequence. Given back by [`Kv::release`], never dropped.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "blocks that are not given back are lost"]
pub struct Table {
    blocks: Vec<BlockId>,
    /// The name of the last block that has one; the root when none has.
    chain: Chain,
    /// How many of the blocks were named, or found by their names.
    named: usize,
}

impl Table {
    /// A table without blocks. `root` tells apart what must not be shared: models, adapters, types of the cache.
    pub fn new(root: Chain) -> Self {
        Self {
            blocks: vec![],
            chain: root,
            named: 0,
        }
    }

    /// The blocks, in the order of the tokens.
    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    /// Tokens that there is room for.
    pub fn capacity(&self) -> usize {
        self.blocks.len() * BLOCK_TOKENS
    }
}

#[derive(Debug, Clone, Default)]
struct Block {
    users: u32,
    name: Option<Chain>,
    /// Its key in `idle`, while it is there.
    since: u64,
}

/// The pool's books.
#[derive(Debug, Clone)]
pub struct Kv {
    blocks: Vec<Block>,
    /// Blocks that hold nothing of use, the next one last.
    free: Vec<BlockId>,
    /// Named blocks without users, the one that was used longest ago first.
    idle: BTreeMap<u64, BlockId>,
    named: HashMap<Chain, BlockId>,
    clock: u64,
}

impl Kv {
    /// Books of so many blocks, all free.
    ///
    /// # Panics
    /// If there are more than 2³² blocks: no memory is that large.
    pub fn new(blocks: usize) -> Self {
        let count = u32::try_from(blocks).expect("fewer than 2^32 blocks");
        Self {
            blocks: vec![Block::default(); blocks],
            free: (0..count).rev().map(BlockId).collect(),
            idle: BTreeMap::new(),
            named: HashMap::new(),
            clock: 0,
        }
    }

    /// All blocks.
    pub fn total(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that can be had: free ones and idle ones.
    pub fn available(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    /// Blocks that have users.
    pub fn used(&self) -> usize {
        self.total() - self.available()
    }

    /// How many of the first tokens are computed already by a sequence before. Whole blocks, and never all tokens: the
    /// last one must be computed to know what follows.
    pub fn known(&self, root: Chain, tokens: &[u32]) -> usize {
        self.prefix(root, tokens).count() * BLOCK_TOKENS
    }

    /// A table that begins with the blocks that are [`known`](Self::known).
    pub fn begin(&mut self, root: Chain, tokens: &[u32]) -> Table {
        let mut table = Table::new(root);
        let found: Vec<(Chain, BlockId)> = self.prefix(root, tokens).collect();
        for (name, id) in found {
            self.hold(id);
            table.blocks.push(id);
            table.chain = name;
            table.named += 1;
        }
        table
    }

    fn prefix<'a>(&'a self, root: Chain, tokens: &'a [u32]) -> impl Iterator<Item = (Chain, BlockId)> + 'a {
        let most = tokens.len().saturating_sub(1) / BLOCK_TOKENS;
        let mut chain = root;
        tokens.chunks_exact(BLOCK_TOKENS).take(most).map_while(move |block| {
            chain = chain.then(block);
            Some((chain, *self.named.get(&chain)?))
        })
    }

    /// How many of the [`available`](Self::available) blocks a table that [begins](Self::begin) with these tokens takes,
    /// until it has room for `total` tokens. Those that others use too cost nothing.
    pub fn cost(&self, root: Chain, tokens: &[u32], total: usize) -> usize {
        let shared = self.prefix(root, tokens);
        let shared = shared.filter(|(_, id)| self.blocks[index(*id)].users > 0).count();
        blocks_for(total).saturating_sub(shared)
    }

    /// How many blocks a table needs to hold `tokens` tokens.
    pub fn needed(table: &Table, tokens: usize) -> usize {
        blocks_for(tokens).saturating_sub(table.blocks.len())
    }

    /// Makes room for `tokens` tokens in all.
    ///
    /// # Errors
    /// When there are too few blocks; nothing is given then.
    pub fn grow(&mut self, table: &mut Table, tokens: usize) -> Result<(), Shortage> {
        let needed = Self::needed(table, tokens);
        if let Some(missing) = needed.checked_sub(self.available()).filter(|missing| *missing > 0) {
            return Err(Shortage { missing });
        }
        for _ in 0..needed {
            let id = self.free.pop().or_else(|| self.evict());
            let id = id.ok_or(Shortage { missing: 1 })?;
            self.blocks[index(id)].users = 1;
            table.blocks.push(id);
        }
        Ok(())
    }

    /// Names the blocks that are full now: `tokens` are those of the sequence whose keys and values are computed.
    pub fn name(&mut self, table: &mut Table, tokens: &[u32]) {
        let full = tokens.len() / BLOCK_TOKENS;
        while table.named < full {
            let at = table.named;
            table.chain = table.chain.then(&tokens[at * BLOCK_TOKENS..(at + 1) * BLOCK_TOKENS]);
            table.named += 1;
            let id = table.blocks[at];
            // Another sequence may have computed the same meanwhile: then that block keeps the name.
            self.named.entry(table.chain).or_insert_with(|| {
                self.blocks[index(id)].name = Some(table.chain);
                id
            });
        }
    }

    /// Another table with the same first `tokens` tokens. Full blocks are shared; the last one, when it is not full, is
    /// written by both, so that the copy gets one of its own: the pair says which is to be copied to which.
    ///
    /// # Errors
    /// When there is no block for the copy; nothing changes then.
    pub fn fork(&mut self, table: &Table, tokens: usize) -> Result<(Table, Option<(BlockId, BlockId)>), Shortage> {
        let shared = tokens / BLOCK_TOKENS;
        let mut copy = Table {
            blocks: vec![],
            chain: table.chain,
            named: table.named.min(shared),
        };
        let own = if tokens.is_multiple_of(BLOCK_TOKENS) {
            None
        } else {
            self.grow(&mut copy, 1)?;
            copy.blocks.pop()
        };
        for id in &table.blocks[..shared] {
            self.hold(*id);
            copy.blocks.push(*id);
        }
        copy.blocks.extend(own);
        Ok((copy, own.map(|own| (table.blocks[shared], own))))
    }

    /// Takes a table back.
    pub fn release(&mut self, table: Table) {
        // The last block first: it is the first to be evicted, since without those before it it is of no use.
        for id in table.blocks.into_iter().rev() {
            let block = &mut self.blocks[index(id)];
            block.users -= 1;
            if block.users > 0 {
                continue;
            }
            if block.name.is_some() {
                self.clock += 1;
                block.since = self.clock;
                self.idle.insert(self.clock, id);
            } else {
                self.free.push(id);
            }
        }
    }

    /// Forgets every name: what is computed from now on has nothing to do with what was before.
    pub fn forget(&mut self) {
        for block in &mut self.blocks {
            block.name = None;
        }
        self.named.clear();
        self.free.extend(std::mem::take(&mut self.idle).into_values());
    }

    /// Counts another user.
    fn hold(&mut self, id: BlockId) {
        let block = &mut self.blocks[index(id)];
        if block.users == 0 {
            self.idle.remove(&block.since);
        }
        block.users += 1;
    }

    fn evict(&mut self) -> Option<BlockId> {
        let (_, id) = self.idle.pop_first()?;
        if let Some(name) = self.blocks[index(id)].name.take() {
            self.named.remove(&name);
        }
        Some(id)
    }
}

fn index(id: BlockId) -> usize {
    id.0 as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(count: usize) -> Vec<u32> {
        (0..).take(count).collect()
    }

    /// A sequence that was computed and left.
    fn computed(kv: &mut Kv, tokens: &[u32]) {
        let mut table = kv.begin(root("m"), tokens);
        kv.grow(&mut table, tokens.len()).unwrap();
        kv.name(&mut table, tokens);
        kv.release(table);
    }

    #[test]
    fn prefix_of_whole_blocks_is_found_again_but_never_the_last_token() {
        let mut kv = Kv::new(8);
        let prompt = tokens(100);
        computed(&mut kv, &prompt);
        assert_eq!(kv.used(), 0);
        assert_eq!(kv.known(root("m"), &prompt), 96);
        assert_eq!(
            kv.known(root("m"), &prompt[..96]),
            64,
            "its last token is computed again"
        );
        assert_eq!(kv.known(root("m"), &prompt[..40]), 32);
        assert_eq!(kv.known(root("other"), &prompt), 0);
        let mut other = prompt.clone();
        other[33] = 7;
        assert_eq!(kv.known(root("m"), &other), 32);
        let table = kv.begin(root("m"), &prompt);
        assert_eq!((table.capacity(), kv.used()), (96, 3));
        kv.release(table);
    }

    #[test]
    fn last_block_of_the_oldest_sequence_is_evicted_first() {
        let mut kv = Kv::new(4);
        computed(&mut kv, &tokens(64));
        let other: Vec<u32> = (500..564).collect();
        computed(&mut kv, &other);
        assert_eq!(kv.available(), 4);
        let mut table = Table::new(root("m"));
        kv.grow(&mut table, 1).unwrap();
        assert_eq!(kv.known(root("m"), &tokens(65)), 32, "its second block went");
        assert_eq!(kv.known(root("m"), &[other.as_slice(), &[1]].concat()), 64);
        kv.release(table);
    }

    #[test]
    fn what_does_not_fit_is_refused_and_nothing_is_taken() {
        let mut kv = Kv::new(3);
        let mut table = Table::new(root("m"));
        kv.grow(&mut table, 33).unwrap();
        assert_eq!(kv.grow(&mut table, 4 * BLOCK_TOKENS), Err(Shortage { missing: 1 }));
        assert_eq!((table.blocks().len(), kv.available()), (2, 1));
        kv.release(table);
        assert_eq!(kv.available(), 3);
    }

    #[test]
    fn fork_shares_full_blocks_and_copies_the_last() {
        let mut kv = Kv::new(4);
        let mut table = Table::new(root("m"));
        kv.grow(&mut table, 40).unwrap();
        kv.name(&mut table, &tokens(40));
        let (copy, pair) = kv.fork(&table, 40).unwrap();
        assert_eq!(pair, Some((table.blocks()[1], copy.blocks()[1])));
        assert_eq!(copy.blocks()[0], table.blocks()[0]);
        assert_eq!(kv.used(), 3);
        let (whole, pair) = kv.fork(&table, 32).unwrap();
        assert_eq!((pair, whole.blocks().len()), (None, 1));
        for table in [table, copy, whole] {
            kv.release(table);
        }
        assert_eq!(kv.used(), 0);
    }

    #[test]
    fn forgotten_prefixes_are_not_found() {
        let mut kv = Kv::new(4);
        computed(&mut kv, &tokens(70));
        kv.forget();
        assert_eq!((kv.known(root("m"), &tokens(70)), kv.available()), (0, 4));
    }
}
