//! Leader election: of all operators of one installation, the one that holds a `Lease` writes.
//!
//! The others keep their caches warm and wait; who loses the lease ends, and starts again as a follower.
//!
//! # Guarantees
//! - Every write is asked for at the [`Gate`], which shuts by our own monotonic clock before anybody else may claim the
//!   lease. A write that has not come back by then is dropped. No clock of another machine is ever read.
//! - A lease that is given back at a graceful stop is free at once.
//!
//! # Caveats
//! A write can be held up on its way and be carried out after the lease has passed on; nothing that a client does can
//! prevent that. It does no harm, because every write is such that an old one is refused or changes nothing:
//! - pods and revisions are created under names that follow from the object, the revision and the slot, so the same
//!   intent twice is one object, and what an old intent made is an orphan that the next pass removes;
//! - a delete carries the UID of what was seen, so it never meets a successor of the same name;
//! - status carries the resource version that was read, so an old one is a conflict;
//! - a Service is applied as a whole from the spec; the next pass compares it with the newest spec and puts it right.
//!
//! An administrator who deletes the lease by hand may get two leaders until the first one looks again, which is within
//! a renewal; the same holds.

mod candidate;
mod decide;
mod gate;
#[cfg(test)]
mod simulation;

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use tokio::time::{Instant, sleep, timeout};

use crate::context::Clock;
use crate::metrics::Metrics;
use candidate::{Answer, Call, Candidate, Step};

pub use decide::{Decision, Seen, Timing, decide};
pub use gate::{Gate, NotLeader};

/// The lease is lost: the process must end at once, without another write.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this operator led and does no more: {why}; it ends, to start again as a follower")]
pub struct Lost {
    why: &'static str,
}

/// Which lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseName {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
}

/// One process's part in the election.
pub struct Election {
    api: Api<Lease>,
    name: LeaseName,
    identity: String,
    timing: Timing,
    gate: Gate,
    metrics: Arc<Metrics>,
    /// The lease as it was stored last: labels of others stay.
    stored: Option<Lease>,
}

impl Election {
    /// Takes part with a client that has no gate.
    pub fn new(client: Client, name: LeaseName, timing: Timing, gate: Gate, metrics: Arc<Metrics>) -> Self {
        Self {
            api: Api::namespaced(client, &name.namespace),
            name,
            identity: identity(),
            timing,
            gate,
            metrics,
            stored: None,
        }
    }

    /// Takes part until `stop` completes, then gives the lease back.
    ///
    /// # Errors
    /// When the lease was held and is lost.
    pub async fn run(mut self, stop: impl Future<Output = ()>) -> Result<(), Lost> {
        tracing::info!(
            lease = self.name.name,
            namespace = self.name.namespace,
            identity = self.identity,
            "waits for the lease"
        );
        let result = tokio::select! {
            lost = self.campaign() => Err(lost),
            () = stop => Ok(()),
        };
        let has_led = self.gate.is_open();
        self.gate.set(None);
        self.metrics.leads(false);
        if result.is_ok() && has_led {
            self.release().await;
        }
        result
    }

    async fn campaign(&mut self) -> Lost {
        let start = Instant::now();
        let mut candidate = Candidate::new(self.identity.clone(), self.timing);
        let mut leads = false;
        let mut holder = None;
        loop {
            match candidate.next(start.elapsed()) {
                Step::Lost(why) => return Lost { why },
                Step::Sleep(pause) => sleep(pause).await,
                Step::Ask(call) => {
                    let sent = start.elapsed();
                    let answer = self.ask(&call).await;
                    candidate.answered(answer, sent, start.elapsed());
                }
            }
            self.gate.set(candidate.allowed_until().map(|until| start + until));
            if holder.as_deref() != candidate.holder() {
                holder = candidate.holder().map(str::to_owned);
                tracing::info!(holder = holder.as_deref().unwrap_or("nobody"), "the lease has a holder");
            }
            if leads != self.gate.is_open() {
                leads = !leads;
                self.metrics.leads(leads);
                if leads {
                    tracing::info!(lease = self.name.name, "leads from now on");
                }
            }
        }
    }

    async fn ask(&mut self, call: &Call) -> Answer {
        let answered = timeout(self.timing.call(), async {
            match call {
                Call::Read => self.api.get_opt(&self.name.name).await,
                Call::Create => {
                    let lease = self.held(None, true);
                    self.api.create(&PostParams::default(), &lease).await.map(Some)
                }
                Call::Replace { version, is_claim } => {
                    let lease = self.held(Some(version), *is_claim);
                    let parameters = PostParams::default();
                    self.api.replace(&self.name.name, &parameters, &lease).await.map(Some)
                }
            }
        });
        match answered.await {
            Ok(Ok(Some(lease))) => {
                let answer = read(call, &lease);
                self.stored = Some(lease);
                answer
            }
            Ok(Ok(None)) => {
                self.stored = None;
                Answer::Missing
            }
            Ok(Err(kube::Error::Api(status))) if status.is_conflict() || status.is_already_exists() => {
                tracing::debug!(message = status.message, "somebody else wrote the lease");
                Answer::Failed
            }
            Ok(Err(error)) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    lease = self.name.name,
                    namespace = self.name.namespace,
                    "the lease cannot be read or written"
                );
                Answer::Failed
            }
            Err(_) => {
                tracing::warn!(lease = self.name.name, "no answer about the lease in time");
                Answer::Failed
            }
        }
    }

    /// The lease as we want it: held by us.
    fn held(&self, version: Option<&str>, is_claim: bool) -> Lease {
        let now = MicroTime(Clock.now());
        let mut lease = self.stored.clone().unwrap_or_default();
        let spec = lease.spec.take().unwrap_or_default();
        let transitions = spec.lease_transitions.unwrap_or(0);
        lease.metadata = ObjectMeta {
            name: Some(self.name.name.clone()),
            namespace: Some(self.name.namespace.clone()),
            resource_version: version.map(str::to_owned),
            managed_fields: None,
            ..lease.metadata
        };
        if version.is_none() {
            lease.metadata.uid = None;
            lease.metadata.creation_timestamp = None;
        }
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(self.timing.lease.as_secs()).ok(),
            acquire_time: if is_claim { Some(now.clone()) } else { spec.acquire_time },
            renew_time: Some(now),
            lease_transitions: Some(if is_claim {
                transitions.saturating_add(1)
            } else {
                transitions
            }),
            ..LeaseSpec::default()
        });
        lease
    }

    /// Gives the lease back: the next one need not wait until it has run out. Best effort; it runs out by itself.
    async fn release(&self) {
        let given_back = timeout(self.timing.call(), async {
            let Some(mut lease) = self.api.get_opt(&self.name.name).await? else {
                return Ok(false);
            };
            let spec = lease.spec.get_or_insert_default();
            if spec.holder_identity.as_ref() != Some(&self.identity) {
                return Ok(false);
            }
            spec.holder_identity = None;
            spec.lease_duration_seconds = Some(1);
            spec.renew_time = Some(MicroTime(Clock.now()));
            lease.metadata.managed_fields = None;
            // With the resource version that was just read: a lease that has passed on meanwhile is a conflict.
            self.api
                .replace(&self.name.name, &PostParams::default(), &lease)
                .await
                .map(|_| true)
        });
        match given_back.await {
            Ok(Ok(true)) => tracing::info!(lease = self.name.name, "gave the lease back"),
            Ok(Ok(false)) => {}
            Ok(Err(error)) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "could not give the lease back"
                );
            }
            Err(_) => tracing::warn!("could not give the lease back in time"),
        }
    }
}

fn read(call: &Call, lease: &Lease) -> Answer {
    let version = lease.metadata.resource_version.clone().unwrap_or_default();
    match call {
        Call::Create | Call::Replace { .. } => Answer::Stored(version),
        Call::Read => {
            let spec = lease.spec.as_ref();
            Answer::Found(candidate::Lease {
                holder: spec.and_then(|spec| spec.holder_identity.clone()),
                version,
                length: spec
                    .and_then(|spec| spec.lease_duration_seconds)
                    .and_then(|seconds| u64::try_from(seconds).ok())
                    .map(Duration::from_secs),
            })
        }
    }
}

/// A name that no other process has or had: the host's (a pod's own) name, and chance.
fn identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    // The keys of a hash map are random for each process; hashing nothing under them gives a random number.
    let chance = RandomState::new().build_hasher().finish();
    format!("{}_{chance:016x}", host.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_differ() {
        assert_ne!(identity(), identity());
    }
}
