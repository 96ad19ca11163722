//! Which sequences run, who gets how many tokens of the next step, and who gives way when the cache is full. Pure.
//!
//! Invariants, checked in the simulation:
//! - every sequence that generates gets its one token in every step, so that a long prompt never stalls running answers;
//! - prompts get what is left of the step: half of it the oldest, the rest the shortest, so that neither waits for ever;
//! - sequences start in the order of arrival, with room for their whole prompt; the youngest gives way first, so that
//!   the oldest always comes to its end;
//! - one that is going to fork starts when there is a place for each of its forks, which then follow it;
//! - who gave way loses no token: what was computed is computed again, or found in the cache.

use super::RequestId;
use crate::kv::{self, BlockId, Chain, Kv, Shortage, Table};
use crate::model::{LogitsWanted, Span};
use std::collections::VecDeque;
use std::ops::Range;

/// So many prompts are read beside each other, though the first uses the step up: a short one overtakes a long one.
const READERS: usize = 2;

/// One sequence's part in the next step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Share {
    /// Whose.
    pub(crate) id: RequestId,
    /// Which of its tokens.
    pub(crate) tokens: Range<usize>,
    /// It is a part of a prompt, or of what is computed again.
    pub(crate) is_prompt: bool,
    /// A token is drawn after it.
    pub(crate) draws: bool,
}

/// The next step.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Sequences that generate, then prompts.
    pub(crate) shares: Vec<Share>,
    /// Those that begin with it, and how many of their tokens are in the cache already.
    pub(crate) started: Vec<(RequestId, usize)>,
    /// Those that gave way. They start again by themselves.
    pub(crate) preempted: Vec<RequestId>,
}

#[derive(Debug)]
struct Sequence {
    id: RequestId,
    root: Chain,
    /// Its prompt, and what was drawn.
    tokens: Vec<u32>,
    /// Tokens in the cache.
    computed: usize,
    table: Table,
    /// Its blocks are found by nobody else, and it finds none.
    is_private: bool,
    /// How many it is and is going to be, when it forks.
    width: usize,
}

impl Sequence {
    fn open(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Gives its blocks back; everything is to be computed again.
    fn give_back(&mut self, kv: &mut Kv) {
        kv.release(std::mem::replace(&mut self.table, Table::new(self.root)));
        self.computed = 0;
    }
}

/// All sequences of the engine, and the books of the cache.
#[derive(Debug)]
pub(crate) struct Scheduler {
    kv: Kv,
    concurrency: usize,
    /// In the order of arrival.
    waiting: VecDeque<Sequence>,
    /// In the order of arrival.
    running: Vec<Sequence>,
}

impl Scheduler {
    /// For a cache of so many blocks, and so many sequences at the same time.
    pub(crate) fn new(blocks: usize, concurrency: usize) -> Self {
        Self {
            kv: Kv::new(blocks),
            concurrency: concurrency.max(1),
            waiting: VecDeque::new(),
            running: vec![],
        }
    }

    /// Takes a sequence that may come to have `most` tokens, and that is going to be `width` sequences: the others
    /// [fork](Self::fork) from it when its prompt is computed. Without a `root` its blocks have no names: nobody else finds them.
    ///
    /// # Errors
    /// When the whole cache is too small for it.
    pub(crate) fn add(
        &mut self,
        id: RequestId,
        root: Option<Chain>,
        prompt: Vec<u32>,
        (most, width): (usize, usize),
    ) -> Result<(), Shortage> {
        let is_private = root.is_none();
        // Nothing is ever named by this one.
        let root = root.unwrap_or_else(|| kv::root("private"));
        let table = Table::new(root);
        let missing = Kv::needed(&table, most).saturating_sub(self.kv.total());
        if missing > 0 {
            return Err(Shortage { missing });
        }
        self.waiting.push_back(Sequence {
            id,
            root,
            tokens: prompt,
            computed: 0,
            table,
            is_private,
            // One that is wider than everything starts when nothing else runs.
            width: width.clamp(1, self.concurrency),
        });
        Ok(())
    }

    /// Whether there is nothing to do.
    pub(crate) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// Sequences that have blocks.
    pub(crate) fn running(&self) -> usize {
        self.running.len()
    }

    /// Sequences that generate: each gets a token in every step.
    pub(crate) fn generating(&self) -> usize {
        self.running.iter().filter(|one| one.open() == 1).count()
    }

    /// The books of the cache.
    pub(crate) fn kv(&self) -> &Kv {
        &self.kv
    }

    /// Plans a step with at most so many tokens of prompts. Never empty unless it [is idle](Self::is_idle).
    pub(crate) fn plan(&mut self, prompt_tokens: usize) -> Plan {
        let mut plan = Plan::default();
        self.give_rooms(&mut plan);
        for one in self.running.iter().filter(|one| one.open() == 1) {
            plan.shares.push(one.share(1, false));
        }
        let least = usize::from(plan.shares.is_empty());
        let mut left = prompt_tokens.max(least);
        self.start(&mut plan, left);
        let mut reading: Vec<&Sequence> = self.running.iter().filter(|one| one.open() > 1).collect();
        // The oldest has half of it for sure, then the shortest go first.
        let half = left.div_ceil(2);
        if let Some(oldest) = reading.first().copied() {
            let others: usize = reading[1..].iter().map(|one| one.open()).sum();
            let tokens = oldest.open().min(half.max(left.saturating_sub(others)));
            if tokens > 0 {
                plan.shares.push(oldest.share(tokens, true));
                left -= tokens;
            }
            reading.remove(0);
        }
        reading.sort_by_key(|one| one.open());
        for one in reading {
            let tokens = one.open().min(left);
            if tokens == 0 {
                break;
            }
            plan.shares.push(one.share(tokens, true));
            left -= tokens;
        }
        plan
    }

    /// Room for the next token of each sequence that generates. The youngest give way when there is none.
    fn give_rooms(&mut self, plan: &mut Plan) {
        let mut at = 0;
        while at < self.running.len() {
            let one = &mut self.running[at];
            let tokens = one.tokens.len();
            if self.kv.grow(&mut one.table, tokens).is_ok() {
                at += 1;
            } else if let Some(mut youngest) = self.running.pop() {
                youngest.give_back(&mut self.kv);
                plan.preempted.push(youngest.id);
                self.waiting.push_front(youngest);
            }
        }
    }

    /// Starts what waits, in the order of arrival, as long as there is room and something left to compute it with.
    fn start(&mut self, plan: &mut Plan, prompt_tokens: usize) {
        let reading = self.running.iter().map(Sequence::open).filter(|open| *open > 1);
        let (mut reading, mut open) = reading.fold((0, 0), |(count, sum), open| (count + 1, sum + open));
        while reading < READERS || open < prompt_tokens {
            let Some(next) = self.waiting.front() else { return };
            let wide: usize = self.running.iter().map(|one| one.width).sum();
            if wide + next.width > self.concurrency {
                return;
            }
            // Those that run need a block each before long.
            let needed = self.kv.cost(next.root, &next.tokens, next.tokens.len() + 1) + wide + next.width - 1;
            if needed > self.kv.available() && !self.running.is_empty() {
                return;
            }
            let Some(mut next) = self.waiting.pop_front() else {
                return;
            };
            next.table = self.kv.begin(next.root, &next.tokens);
            next.computed = next.table.capacity();
            if self.kv.grow(&mut next.table, next.tokens.len()).is_err() {
                // Only when nothing runs, and then everything is available; `add` made sure that this is enough.
                next.give_back(&mut self.kv);
                self.waiting.push_front(next);
                return;
            }
            plan.started.push((next.id, next.computed));
            if next.open() == 1 {
                plan.shares.push(next.share(1, true));
            } else {
                reading += 1;
                open += next.open();
            }
            self.running.push(next);
        }
    }

    /// What the model computes for a share.
    pub(crate) fn span(&self, share: &Share) -> Option<Span> {
        let one = self.find(share.id)?;
        Some(Span {
            blocks: one.table.blocks().to_vec(),
            tokens: one.tokens[share.tokens.clone()].to_vec(),
            start: share.tokens.start,
            logits: if share.draws {
                LogitsWanted::Last
            } else {
                LogitsWanted::None
            },
            ..Span::default()
        })
    }

    /// A share was computed.
    pub(crate) fn computed(&mut self, share: &Share) {
        if let Some(one) = self.running.iter_mut().find(|one| one.id == share.id) {
            one.computed = share.tokens.end;
            if one.is_private {
                return;
            }
            self.kv.name(&mut one.table, &one.tokens[..one.computed]);
        }
    }

    /// A token was drawn.
    pub(crate) fn push(&mut self, id: RequestId, token: u32) {
        if let Some(one) = self.running.iter_mut().find(|one| one.id == id) {
            one.tokens.push(token);
        }
    }

    /// Begins a sequence with what `of` has computed, and `token`, which was drawn after it. Returns which block is to
    /// be copied to which before the next step. Does nothing when `of` does not run.
    pub(crate) fn fork(&mut self, of: RequestId, id: RequestId, token: u32) -> Option<(BlockId, BlockId)> {
        let at = self.running.iter().position(|one| one.id == of)?;
        let one = &mut self.running[at];
        let mut tokens = one.tokens[..one.computed].to_vec();
        tokens.push(token);
        let (table, computed, copied) = if let Ok((table, copied)) = self.kv.fork(&one.table, one.computed) {
            (table, one.computed, copied)
        } else {
            // There is no block for the copy: its last tokens are computed again.
            let table = self.kv.begin(one.root, &tokens);
            let computed = table.capacity();
            (table, computed, None)
        };
        one.width = one.width.saturating_sub(1).max(1);
        let fork = Sequence {
            id,
            root: one.root,
            tokens,
            computed,
            table,
            is_private: one.is_private,
            width: 1,
        };
        self.running.insert(at + 1, fork);
        copied
    }

    /// Forgets a sequence. Returns whether it was there.
    pub(crate) fn remove(&mut self, id: RequestId) -> bool {
        if let Some(at) = self.running.iter().position(|one| one.id == id) {
            let one = self.running.remove(at);
            self.kv.release(one.table);
            return true;
        }
        let at = self.waiting.iter().position(|one| one.id == id);
        at.and_then(|at| self.waiting.remove(at)).is_some_and(|one| {
            self.kv.release(one.table);
            true
        })
    }

    fn find(&self, id: RequestId) -> Option<&Sequence> {
        self.running.iter().find(|one| one.id == id)
    }
}

impl Sequence {
    fn share(&self, tokens: usize, is_prompt: bool) -> Share {
        let end = self.computed + tokens;
        Share {
            id: self.id,
            tokens: self.computed..end,
            is_prompt,
            draws: end == self.tokens.len(),
        }
    }
}

#[cfg(test)]
#[path = "scheduler_simulation.rs"]
mod simulation;
