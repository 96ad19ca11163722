//! Who is worked on next: a bounded number of passes at once, and the order of those that wait.
//!
//! The controller starts more passes than may work, for objects in no order that could be relied on; each pass waits here
//! for its turn. Among those that wait here a new spec comes before news of the world: in a rollout of the whole fleet a
//! single edit must not wait behind thousands of "another pod is ready".
//!
//! # Guarantees
//! - At most as many turns as asked for are out at any time.
//! - An edit waits for no progress, except every fourth turn, which goes to whoever has waited longest for progress.
//! - Of several edits the newest and the oldest go by turns: who edits one object while thousands were edited is not the
//!   last, and nobody waits for ever.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::world::cache::Key;

/// One in so many turns goes to progress while edits wait.
const PROGRESS_SHARE: u64 = 4;

/// What a pass is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A spec that was not acted on yet.
    Edit,
    /// Everything else.
    Progress,
}

/// The turns of one controller.
#[derive(Debug)]
pub struct Turns(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    free: usize,
    is_closed: bool,
    /// Counts those that came, so that a number is a place in the order.
    arrivals: u64,
    /// Counts turns that were handed on.
    given: u64,
    edits: BTreeMap<u64, Waiter>,
    progress: BTreeMap<u64, Waiter>,
    /// The place in `progress` of each object there.
    places: HashMap<Key, u64>,
}

#[derive(Debug)]
struct Waiter {
    key: Key,
    hand: oneshot::Sender<Turn>,
}

/// The right to work, until it is dropped.
#[derive(Debug)]
pub struct Turn(Option<Arc<Turns>>);

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(turns) = self.0.take() {
            turns.hand_on();
        }
    }
}

impl Turns {
    /// So many at once.
    pub fn new(at_once: u16) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Inner {
            free: usize::from(at_once),
            is_closed: false,
            arrivals: 0,
            given: 0,
            edits: BTreeMap::new(),
            progress: BTreeMap::new(),
            places: HashMap::new(),
        })))
    }

    /// Waits for a turn. `None`: there are none any more, the process ends.
    pub async fn take(self: &Arc<Self>, key: Key, purpose: Purpose) -> Option<Turn> {
        let waits = {
            let mut inner = self.lock();
            if inner.is_closed {
                return None;
            }
            // Somebody waits only while nothing is free.
            if inner.free > 0 {
                inner.free -= 1;
                return Some(Turn(Some(Arc::clone(self))));
            }
            inner.enter(key, purpose)
        };
        waits.await.ok()
    }

    /// The object was edited: when it waits for news of the world, it goes on waiting as an edit.
    pub fn edited(&self, key: &Key) {
        let mut inner = self.lock();
        let Some(place) = inner.places.remove(key) else { return };
        if let Some(waiter) = inner.progress.remove(&place) {
            let place = inner.number();
            inner.edits.insert(place, waiter);
        }
    }

    /// No more turns: whoever waits is told so, whoever has one keeps it.
    pub fn close(&self) {
        let mut inner = self.lock();
        inner.is_closed = true;
        inner.edits.clear();
        inner.progress.clear();
        inner.places.clear();
    }

    fn hand_on(self: Arc<Self>) {
        loop {
            let waiter = {
                let mut inner = self.lock();
                let Some(waiter) = inner.next() else {
                    inner.free += 1;
                    return;
                };
                waiter
            };
            match waiter.hand.send(Turn(Some(Arc::clone(&self)))) {
                Ok(()) => return,
                // It waits no more: the turn is still ours to hand on.
                Err(mut unheard) => unheard.0 = None,
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn number(&mut self) -> u64 {
        self.arrivals += 1;
        self.arrivals
    }

    fn enter(&mut self, key: Key, purpose: Purpose) -> oneshot::Receiver<Turn> {
        let (hand, waits) = oneshot::channel();
        let place = self.number();
        let waiter = Waiter { key, hand };
        match purpose {
            Purpose::Edit => {
                self.edits.insert(place, waiter);
            }
            Purpose::Progress => {
                self.places.insert(waiter.key.clone(), place);
                self.progress.insert(place, waiter);
            }
        }
        waits
    }

    fn next(&mut self) -> Option<Waiter> {
        self.given += 1;
        let is_for_progress = self.edits.is_empty() || self.given.is_multiple_of(PROGRESS_SHARE);
        if is_for_progress && let Some((_, waiter)) = self.progress.pop_first() {
            self.places.remove(&waiter.key);
            return Some(waiter);
        }
        let edit = if self.given.is_multiple_of(2) {
            self.edits.pop_first()
        } else {
            self.edits.pop_last()
        };
        edit.map(|(_, waiter)| waiter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chance::Chance;
    use futures::FutureExt as _;
    use futures::future::BoxFuture;

    type Waiting = (Key, BoxFuture<'static, Option<Turn>>);

    fn key(number: usize) -> Key {
        ("n".to_owned(), format!("m-{number:03}"))
    }

    /// Asks, and waits as far as one can without a turn being given back.
    fn ask(turns: &Arc<Turns>, number: usize, purpose: Purpose) -> Result<Turn, Waiting> {
        let turns = Arc::clone(turns);
        let mut taking = async move { turns.take(key(number), purpose).await }.boxed();
        match (&mut taking).now_or_never() {
            Some(turn) => Ok(turn.unwrap()),
            None => Err((key(number), taking)),
        }
    }

    fn wait(turns: &Arc<Turns>, number: usize, purpose: Purpose) -> Waiting {
        ask(turns, number, purpose).err().unwrap()
    }

    /// Who has got a turn now; it is taken out of those that wait.
    fn served(waiting: &mut Vec<Waiting>) -> Option<(Key, Turn)> {
        let found = waiting.iter_mut().enumerate().find_map(|(index, (_, taking))| {
            let turn = taking.now_or_never()?;
            Some((index, turn.unwrap()))
        });
        found.map(|(index, turn)| (waiting.remove(index).0, turn))
    }

    /// The order in which those that wait get the one turn.
    fn order(turn: Turn, mut waiting: Vec<Waiting>) -> Vec<String> {
        let mut order = Vec::new();
        let mut turn = Some(turn);
        while let Some(before) = turn.take() {
            drop(before);
            if let Some((key, next)) = served(&mut waiting) {
                order.push(key.1);
                turn = Some(next);
            }
        }
        assert!(waiting.is_empty());
        order
    }

    #[test]
    fn edits_come_before_progress_which_is_not_forgotten() {
        let turns = Turns::new(1);
        let turn = ask(&turns, 0, Purpose::Edit).ok().unwrap();
        let mut waiting: Vec<Waiting> = (1..=3).map(|one| wait(&turns, one, Purpose::Progress)).collect();
        waiting.extend((11..=16).map(|one| wait(&turns, one, Purpose::Edit)));
        assert_eq!(
            order(turn, waiting),
            [
                "m-016", "m-011", "m-015", "m-001", "m-014", "m-012", "m-013", "m-002", "m-003"
            ]
        );
        assert!(ask(&turns, 1, Purpose::Progress).is_ok(), "the turn is free again");
    }

    #[test]
    fn edit_of_an_object_that_waits_brings_it_forward() {
        let turns = Turns::new(1);
        let turn = ask(&turns, 0, Purpose::Edit).ok().unwrap();
        let waiting: Vec<Waiting> = (1..=3).map(|one| wait(&turns, one, Purpose::Progress)).collect();
        turns.edited(&key(3));
        turns.edited(&key(99));
        assert_eq!(order(turn, waiting), ["m-003", "m-001", "m-002"]);
    }

    #[test]
    fn who_gave_up_waiting_holds_nobody_up() {
        let turns = Turns::new(1);
        let turn = ask(&turns, 0, Purpose::Edit).ok().unwrap();
        drop(wait(&turns, 1, Purpose::Edit));
        let unheard = wait(&turns, 2, Purpose::Edit);
        let mut waiting = vec![wait(&turns, 3, Purpose::Progress)];
        // The second gets the turn and is dropped before it looks.
        drop(turn);
        assert!(served(&mut waiting).is_none());
        drop(unheard);
        assert!(served(&mut waiting).is_some());
    }

    #[test]
    fn close_tells_everybody() {
        let turns = Turns::new(1);
        let turn = ask(&turns, 0, Purpose::Edit).ok().unwrap();
        let (_, taking) = wait(&turns, 1, Purpose::Edit);
        turns.close();
        assert!(taking.now_or_never().unwrap().is_none());
        drop(turn);
        let late = turns.take(key(2), Purpose::Edit).now_or_never();
        assert!(late.unwrap().is_none());
    }

    /// Whoever comes and goes, never more than the bound work, and in the end everybody has had a turn.
    #[test]
    fn bound_holds_and_nobody_is_lost() {
        for seed in 1..=200 {
            let mut chance = Chance::new(seed);
            let turns = Turns::new(3);
            let (mut out, mut waiting) = (Vec::new(), Vec::<Waiting>::new());
            for number in 0..200 {
                match chance.below(4) {
                    0 if !out.is_empty() => drop(out.swap_remove(chance.index(out.len()))),
                    1 if !waiting.is_empty() => turns.edited(&waiting[chance.index(waiting.len())].0),
                    2 if !waiting.is_empty() => drop(waiting.swap_remove(chance.index(waiting.len()))),
                    what => {
                        let purpose = if what < 2 { Purpose::Edit } else { Purpose::Progress };
                        match ask(&turns, number, purpose) {
                            Ok(turn) => out.push(turn),
                            Err(one) => waiting.push(one),
                        }
                    }
                }
                while let Some((_, turn)) = served(&mut waiting) {
                    out.push(turn);
                }
                assert!(out.len() <= 3, "seed {seed}");
                assert!(
                    waiting.is_empty() || out.len() == 3,
                    "seed {seed}: somebody waits while a turn is free"
                );
            }
            while out.pop().is_some() {
                while let Some((_, turn)) = served(&mut waiting) {
                    out.push(turn);
                }
            }
            assert!(waiting.is_empty(), "seed {seed}: somebody was forgotten");
        }
    }
}
