//! Who may ask, and how much: API keys from a folder that is watched, and limits for each of them.

mod keys;
mod limits;
mod watch;

pub use keys::{KeyError, Keys};
pub use limits::{Budget, Limits, LimitsError, Refusal, Standing};
pub use watch::{watch_keys, watch_limits};

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Instant;

/// The name of callers who bring no key, where they may.
const NAMELESS: &str = "";

/// Who may ask.
#[derive(Debug)]
pub struct Access {
    keys: RwLock<Arc<Keys>>,
    /// Whether callers without a key are refused. Absent: there are no keys, and what callers send as one is not looked at.
    required: Option<bool>,
    clients: Mutex<Clients>,
}

#[derive(Debug)]
struct Clients {
    limits: Limits,
    /// By their names. Those that are gone stay until the process ends: there are as many as keys.
    known: HashMap<String, Arc<Client>>,
}

/// Somebody who asks.
#[derive(Debug)]
pub struct Client {
    /// The name of the key; empty without one.
    name: String,
    budget: Mutex<Budget>,
}

/// Why somebody may not ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stranger {
    /// There is no key.
    NoKey,
    /// Nobody has this key.
    WrongKey,
}

impl Access {
    /// Keys as they are now; `required`: whether callers without one are refused, absent when there are no keys.
    pub fn new(keys: Keys, required: Option<bool>, limits: Limits) -> Self {
        Self {
            keys: RwLock::new(Arc::new(keys)),
            required,
            clients: Mutex::new(Clients {
                limits,
                known: HashMap::new(),
            }),
        }
    }

    /// Replaces the limits of every client, and says whether they are others than before.
    pub fn limit(&self, limits: Limits) -> bool {
        let mut clients = self.clients();
        let has_changed = clients.limits != limits;
        if has_changed {
            clients.limits = limits;
            for client in clients.known.values() {
                client.with(|budget, now| budget.adapt(limits, now));
            }
        }
        has_changed
    }

    /// Replaces the keys, and says whether they are others than before. A client keeps what is left to it.
    pub fn replace(&self, keys: Keys) -> bool {
        let mut current = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        let has_changed = **current != keys;
        if has_changed {
            *current = Arc::new(keys);
        }
        has_changed
    }

    /// The client with this key.
    ///
    /// # Errors
    /// When there is none.
    pub fn client(&self, key: Option<&[u8]>) -> Result<Arc<Client>, Stranger> {
        let keys = Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner));
        let name = match (self.required, key) {
            (None, _) | (Some(false), None) => NAMELESS,
            (Some(_), Some(key)) => keys.find(key).ok_or(Stranger::WrongKey)?,
            (Some(true), None) => return Err(Stranger::NoKey),
        };
        let mut clients = self.clients();
        let limits = clients.limits;
        let client = clients.known.entry(name.to_owned()).or_insert_with(|| {
            Arc::new(Client {
                name: name.to_owned(),
                budget: Mutex::new(Budget::new(limits, Instant::now())),
            })
        });
        Ok(Arc::clone(client))
    }

    fn clients(&self) -> MutexGuard<'_, Clients> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Client {
    /// The name of the key; empty without one.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Takes a request from what is left.
    ///
    /// # Errors
    /// When nothing is.
    pub fn take_request(&self) -> Result<(), Refusal> {
        self.with(Budget::take_request)
    }

    /// Takes the tokens of a prompt from what is left.
    ///
    /// # Errors
    /// When there are not as many.
    pub fn take_prompt(&self, tokens: usize) -> Result<(), Refusal> {
        self.with(|budget, now| budget.take_prompt(tokens, now))
    }

    /// Takes tokens of an answer, which were not known before: what is left may become less than nothing.
    pub fn charge(&self, tokens: usize) {
        self.with(|budget, now| budget.charge(tokens, now));
    }

    /// Gives the tokens of a prompt back that was not read.
    pub fn give_back(&self, tokens: usize) {
        self.with(|budget, now| budget.give_back(tokens, now));
    }

    /// What is left; absent without limits.
    pub fn standing(&self) -> Option<Standing> {
        self.with(Budget::standing)
    }

    fn with<T>(&self, act: impl FnOnce(&mut Budget, Instant) -> T) -> T {
        act(
            &mut self.budget.lock().unwrap_or_else(PoisonError::into_inner),
            Instant::now(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(keys: &[(&str, &str)]) -> Keys {
        Keys::of(
            keys.iter()
                .map(|(name, key)| ((*name).to_owned(), key.as_bytes().to_vec())),
        )
        .unwrap()
    }

    #[test]
    fn callers_are_known_by_their_keys() {
        let access = Access::new(
            keys(&[("alice", "key-of-alice-0001"), ("bob", "key-of-bob-00000001")]),
            Some(true),
            Limits::default(),
        );
        assert_eq!(access.client(Some(b"key-of-bob-00000001")).unwrap().name(), "bob");
        assert_eq!(
            access.client(Some(b"key-of-bob-0000000")).unwrap_err(),
            Stranger::WrongKey
        );
        assert_eq!(access.client(Some(b"")).unwrap_err(), Stranger::WrongKey);
        assert_eq!(access.client(None).unwrap_err(), Stranger::NoKey);
        assert!(access.replace(keys(&[("bob", "another-key-of-bob")])));
        assert!(!access.replace(keys(&[("bob", "another-key-of-bob")])));
        assert_eq!(
            access.client(Some(b"key-of-bob-00000001")).unwrap_err(),
            Stranger::WrongKey
        );
        assert_eq!(access.client(Some(b"another-key-of-bob")).unwrap().name(), "bob");
    }

    #[test]
    fn nameless_callers_share_a_limit_where_they_may_ask() {
        let limits = Limits {
            requests_per_minute: std::num::NonZeroU32::new(2),
            tokens_per_minute: None,
        };
        let access = Access::new(keys(&[("alice", "key-of-alice-0001")]), Some(false), limits);
        access.client(None).unwrap().take_request().unwrap();
        access.client(None).unwrap().take_request().unwrap();
        assert!(access.client(None).unwrap().take_request().is_err());
        access
            .client(Some(b"key-of-alice-0001"))
            .unwrap()
            .take_request()
            .unwrap();
        assert_eq!(access.client(Some(b"wrong")).unwrap_err(), Stranger::WrongKey);
        assert!(!access.limit(limits));
        assert!(access.limit(Limits::default()));
        access.client(None).unwrap().take_request().unwrap();
        let open = Access::new(Keys::default(), None, limits);
        assert_eq!(open.client(Some(b"whatever clients send")).unwrap().name(), "");
    }
}
