//! Which deployment is worked on next: a queue of names, in which edits come before progress.
//!
//! In a rollout of the whole fleet a single edit must not wait behind thousands of "another pod is ready".
//!
//! # Guarantees
//! - One pass at a time for one deployment. What is heard of it meanwhile leads to another pass; nothing that was heard
//!   before a pass begins is left for a later one.
//! - An edit waits for no progress, except every fourth pass, which goes to whoever has waited longest for progress.
//! - Of several edits the newest and the oldest go by turns: who edits one object while thousands were edited is not the
//!   last, and nobody waits for ever.
//! - Each operation costs the logarithm of what waits.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use crate::due::due;
use crate::world::cache::Key;

/// One in so many passes goes to progress while edits wait.
const PROGRESS_SHARE: u64 = 4;
/// News that come together are worked on together.
const GATHER: Duration = Duration::from_millis(20);

/// What a pass is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// Everything else.
    Progress,
    /// A spec that was not acted on yet.
    Edit,
}

/// The deployments that wait for a pass.
#[derive(Debug)]
pub struct Queue {
    inner: Mutex<Inner>,
    /// As many permits as there are names in `edits` and `progress`.
    ready: Semaphore,
    /// Something is due before the keeper of the time wakes up.
    sooner: Notify,
    depth: Gauge,
}

#[derive(Debug, Default)]
struct Inner {
    states: HashMap<Key, State>,
    edits: BTreeMap<u64, Key>,
    progress: BTreeMap<u64, Key>,
    later: BTreeMap<(Instant, u64), Key>,
    /// Counts what came, so that a number is a place in the order.
    arrivals: u64,
    /// Counts the passes.
    given: u64,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Ready(Purpose, u64),
    Later(Purpose, (Instant, u64)),
    /// With the purpose of the next pass, when something was heard meanwhile.
    Running(Option<Purpose>),
}

/// The right to work on one deployment, until it is dropped.
#[derive(Debug)]
pub struct Pass {
    queue: Arc<Queue>,
    key: Key,
    purpose: Purpose,
    next: Option<(Purpose, Duration)>,
}

impl Pass {
    /// The namespace and name of the deployment.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Work on it again after this time, or earlier when something is heard of it.
    pub fn look_again(&mut self, after: Duration) {
        self.next = Some((Purpose::Progress, after));
    }

    /// As [`Pass::look_again`], for the same purpose as this time.
    pub fn retry(&mut self, after: Duration) {
        self.next = Some((self.purpose, after));
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let key = std::mem::take(&mut self.key);
        self.queue.done(key, self.next);
    }
}

impl Queue {
    /// An empty queue that shows in `depth` how many could be worked on now.
    pub fn new(depth: Gauge) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::default(),
            ready: Semaphore::new(0),
            sooner: Notify::new(),
            depth,
        })
    }

    /// Something was heard of a deployment.
    pub fn add(&self, key: Key, purpose: Purpose) {
        self.change(|inner| inner.add(key, purpose));
    }

    /// The next pass, when there is one. `None`: there are none any more, the process ends.
    pub async fn next(self: &Arc<Self>) -> Option<Pass> {
        loop {
            self.ready.acquire().await.ok()?.forget();
            let next = self.lock().next();
            if let Some((key, purpose)) = next {
                self.depth.dec();
                return Some(Pass {
                    queue: Arc::clone(self),
                    key,
                    purpose,
                    next: None,
                });
            }
        }
    }

    /// No more passes; those that run go on.
    pub fn close(&self) {
        self.ready.close();
    }

    /// Makes ready what was to be looked at later. Never ends.
    pub async fn keep_time(&self) {
        loop {
            let mut next = None;
            self.change(|inner| {
                inner.make_ready(Instant::now());
                next = inner.due();
            });
            tokio::select! {
                () = due(next) => {}
                () = self.sooner.notified() => {}
            }
        }
    }

    fn done(&self, key: Key, next: Option<(Purpose, Duration)>) {
        self.change(|inner| {
            let heard = match inner.states.remove(&key) {
                Some(State::Running(heard)) => heard,
                _ => None,
            };
            match (heard, next) {
                (Some(purpose), _) => inner.add(key, purpose),
                (None, Some((purpose, after))) => inner.put_later(key, purpose, Instant::now() + after),
                (None, None) => {}
            }
        });
    }

    /// Changes what waits, and tells those who wait for it.
    fn change(&self, change: impl FnOnce(&mut Inner)) {
        let mut inner = self.lock();
        let (before, due) = (inner.ready(), inner.due());
        change(&mut inner);
        let (new, next) = (inner.ready().saturating_sub(before), inner.due());
        drop(inner);
        if new > 0 {
            self.depth.inc_by(i64::try_from(new).unwrap_or(i64::MAX));
            self.ready.add_permits(new);
        }
        if next.is_some_and(|next| due.is_none_or(|due| next < due)) {
            self.sooner.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn ready(&self) -> usize {
        self.edits.len() + self.progress.len()
    }

    fn due(&self) -> Option<Instant> {
        self.later.first_key_value().map(|((when, _), _)| *when)
    }

    fn number(&mut self) -> u64 {
        self.arrivals += 1;
        self.arrivals
    }

    fn add(&mut self, key: Key, purpose: Purpose) {
        let gathered = Instant::now() + GATHER;
        match self.states.get(&key).copied() {
            Some(State::Running(heard)) => {
                let heard = heard.map_or(purpose, |heard| heard.max(purpose));
                self.states.insert(key, State::Running(Some(heard)));
            }
            Some(State::Ready(before, place)) => {
                if purpose > before {
                    self.progress.remove(&place);
                    self.put_ready(key, purpose);
                }
            }
            Some(State::Later(before, place)) => {
                let purpose = purpose.max(before);
                if purpose == Purpose::Edit {
                    self.later.remove(&place);
                    self.put_ready(key, purpose);
                } else if gathered < place.0 {
                    self.later.remove(&place);
                    self.put_later(key, purpose, gathered);
                }
            }
            None if purpose == Purpose::Edit => self.put_ready(key, purpose),
            None => self.put_later(key, purpose, gathered),
        }
    }

    fn put_ready(&mut self, key: Key, purpose: Purpose) {
        let place = self.number();
        match purpose {
            Purpose::Edit => self.edits.insert(place, key.clone()),
            Purpose::Progress => self.progress.insert(place, key.clone()),
        };
        self.states.insert(key, State::Ready(purpose, place));
    }

    fn put_later(&mut self, key: Key, purpose: Purpose, when: Instant) {
        let place = (when, self.number());
        self.later.insert(place, key.clone());
        self.states.insert(key, State::Later(purpose, place));
    }

    /// Makes ready what is due.
    fn make_ready(&mut self, now: Instant) {
        while let Some(first) = self.later.first_entry() {
            if first.key().0 > now {
                return;
            }
            let key = first.remove();
            let purpose = match self.states.get(&key) {
                Some(State::Later(purpose, _)) => *purpose,
                _ => Purpose::Progress,
            };
            self.put_ready(key, purpose);
        }
    }

    fn next(&mut self) -> Option<(Key, Purpose)> {
        self.given += 1;
        let is_for_progress = self.edits.is_empty() || self.given.is_multiple_of(PROGRESS_SHARE);
        let progress = if is_for_progress {
            self.progress.pop_first()
        } else {
            None
        };
        let (next, purpose) = match progress {
            Some(progress) => (Some(progress), Purpose::Progress),
            None if self.given.is_multiple_of(2) => (self.edits.pop_first(), Purpose::Edit),
            None => (self.edits.pop_last(), Purpose::Edit),
        };
        let (_, key) = next?;
        self.states.insert(key.clone(), State::Running(None));
        Some((key, purpose))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chance::Chance;
    use std::collections::HashSet;

    use futures::FutureExt as _;

    const SOON: Duration = Duration::from_millis(50);

    fn queue() -> Arc<Queue> {
        let queue = Queue::new(Gauge::default());
        let keeper = Arc::clone(&queue);
        tokio::spawn(async move { keeper.keep_time().await });
        queue
    }

    fn key(number: usize) -> Key {
        ("n".to_owned(), format!("m-{number:03}"))
    }

    fn take(queue: &Arc<Queue>) -> Option<Pass> {
        queue.next().now_or_never().flatten()
    }

    /// Takes everything that is ready, one after the other.
    fn order(queue: &Arc<Queue>) -> Vec<String> {
        std::iter::from_fn(|| take(queue).map(|pass| pass.key.1.clone())).collect()
    }

    /// Lets the keeper of the time work.
    async fn pause(time: Duration) {
        tokio::time::sleep(time).await;
        tokio::task::yield_now().await;
    }

    /// Three deployments wait for progress.
    async fn queue_of_progress() -> Arc<Queue> {
        let queue = queue();
        for number in 1..=3 {
            queue.add(key(number), Purpose::Progress);
        }
        pause(SOON).await;
        queue
    }

    #[tokio::test(start_paused = true)]
    async fn edits_come_before_progress_which_is_not_forgotten() {
        let queue = queue_of_progress().await;
        for number in 11..=16 {
            queue.add(key(number), Purpose::Edit);
        }
        assert_eq!(queue.depth.get(), 9);
        assert_eq!(
            order(&queue),
            [
                "m-016", "m-011", "m-015", "m-001", "m-014", "m-012", "m-013", "m-002", "m-003"
            ]
        );
        assert_eq!(queue.depth.get(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn edit_brings_forward_what_waits() {
        let queue = queue_of_progress().await;
        queue.add(key(3), Purpose::Edit);
        queue.add(key(3), Purpose::Progress);
        assert_eq!(order(&queue), ["m-003", "m-001", "m-002"]);
    }

    #[tokio::test(start_paused = true)]
    async fn edit_goes_at_once_and_news_are_gathered() {
        let queue = queue();
        queue.add(key(1), Purpose::Progress);
        queue.add(key(1), Purpose::Progress);
        queue.add(key(2), Purpose::Edit);
        pause(Duration::ZERO).await;
        assert_eq!(order(&queue), ["m-002"]);
        pause(SOON).await;
        assert_eq!(order(&queue), ["m-001"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_heard_in_a_pass_leads_to_another_one() {
        let queue = queue();
        queue.add(key(1), Purpose::Edit);
        let pass = take(&queue).unwrap();
        queue.add(key(1), Purpose::Progress);
        queue.add(key(1), Purpose::Edit);
        queue.add(key(1), Purpose::Progress);
        pause(SOON).await;
        assert!(take(&queue).is_none(), "one pass at a time");
        drop(pass);
        assert_eq!(order(&queue), ["m-001"], "an edit, so at once");
        pause(SOON).await;
        assert!(order(&queue).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn looks_again_in_time_or_when_something_is_heard() {
        let queue = queue();
        let again = async |purpose| {
            queue.add(key(1), purpose);
            pause(SOON).await;
            take(&queue).unwrap()
        };
        again(Purpose::Edit).await.look_again(Duration::from_mins(1));
        pause(Duration::from_secs(59)).await;
        assert!(take(&queue).is_none());
        pause(Duration::from_secs(1)).await;
        let mut pass = take(&queue).unwrap();
        assert_eq!(pass.purpose, Purpose::Progress);
        pass.look_again(Duration::from_mins(1));
        drop(pass);
        again(Purpose::Progress).await.look_again(Duration::from_mins(1));
        // What is heard while it runs is not put off.
        let mut pass = again(Purpose::Edit).await;
        queue.add(key(1), Purpose::Progress);
        pass.retry(Duration::from_mins(1));
        drop(pass);
        pause(SOON).await;
        take(&queue).unwrap().retry(Duration::from_secs(1));
        pause(Duration::from_secs(2)).await;
        assert_eq!(order(&queue).len(), 1);
        again(Purpose::Edit).await.retry(Duration::from_secs(1));
        pause(Duration::from_secs(2)).await;
        assert_eq!(
            take(&queue).unwrap().purpose,
            Purpose::Edit,
            "it was not carried out yet"
        );
    }

    #[tokio::test]
    async fn close_tells_everybody() {
        let queue = Queue::new(Gauge::default());
        queue.add(key(1), Purpose::Edit);
        let pass = take(&queue).unwrap();
        let waiting = tokio::spawn({
            let queue = Arc::clone(&queue);
            async move { queue.next().await.is_none() }
        });
        tokio::task::yield_now().await;
        queue.add(key(2), Purpose::Progress);
        queue.close();
        assert!(waiting.await.unwrap());
        drop(pass);
        assert!(queue.next().await.is_none());
    }

    /// Whatever is heard, never two passes for one deployment at once, and everything heard is followed by a pass that
    /// begins after it.
    #[tokio::test(start_paused = true)]
    async fn nothing_that_was_heard_is_lost() {
        for seed in 1..=200 {
            let mut chance = Chance::new(seed);
            let queue = queue();
            let (mut running, mut heard) = (Vec::<Pass>::new(), HashSet::new());
            for _ in 0..300 {
                match chance.below(8) {
                    0 => {
                        queue.add(key(chance.index(20)), Purpose::Progress);
                        pause(Duration::from_millis(chance.below(30))).await;
                    }
                    1 | 2 => {
                        let (number, purpose) = (chance.index(20), chance.below(2));
                        let purpose = if purpose == 0 { Purpose::Edit } else { Purpose::Progress };
                        queue.add(key(number), purpose);
                        heard.insert(key(number));
                    }
                    3 | 4 if !running.is_empty() => {
                        let mut pass = running.swap_remove(chance.index(running.len()));
                        match chance.below(3) {
                            0 => pass.look_again(Duration::from_millis(chance.below(100))),
                            1 => pass.retry(Duration::from_millis(chance.below(100))),
                            _ => {}
                        }
                    }
                    _ => {
                        if running.len() < 3
                            && let Some(pass) = take(&queue)
                        {
                            assert!(running.iter().all(|other| other.key != pass.key), "seed {seed}");
                            heard.remove(&pass.key);
                            running.push(pass);
                        }
                    }
                }
                let depth = queue.lock().ready();
                assert_eq!(queue.depth.get(), i64::try_from(depth).unwrap(), "seed {seed}");
                assert_eq!(queue.ready.available_permits(), depth, "seed {seed}");
            }
            running.clear();
            for _ in 0..3 {
                pause(Duration::from_millis(100)).await;
                while let Some(pass) = take(&queue) {
                    heard.remove(&pass.key);
                }
            }
            assert!(heard.is_empty(), "seed {seed}: {heard:?} was lost");
            let inner = queue.lock();
            assert!(inner.states.is_empty() && inner.later.is_empty(), "seed {seed}");
        }
    }
}
