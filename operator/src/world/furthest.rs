//! How far the new revision of each deployment had come in the pass before, so that only what was never reached before
//! counts as progress. It is not kept over a restart: what is found then is not news.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use super::cache::Key;
use crate::controllers::llm_deployment::plan::Best;

/// How far each deployment's new revision had come.
#[derive(Debug, Default)]
pub struct Furthest(Mutex<HashMap<Key, (String, Best)>>);

impl Furthest {
    /// Which revision had come how far.
    pub fn of(&self, deployment: &Key) -> Option<(String, Best)> {
        self.lock().get(deployment).cloned()
    }

    /// Keeps it. `None`: there is no rollout.
    pub fn keep(&self, deployment: &Key, best: Option<(String, Best)>) {
        let mut known = self.lock();
        match best {
            Some(best) => known.insert(deployment.clone(), best),
            None => known.remove(deployment),
        };
    }

    /// The object is gone.
    pub fn forget(&self, deployment: &Key) {
        self.lock().remove(deployment);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, (String, Best)>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
