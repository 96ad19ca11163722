//! Counting what happens in a cluster, and what a process uses.

use std::collections::HashSet;
use std::fs;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures::TryStreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ApiResource, DynamicObject};
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt as _};
use tokio::task::JoinHandle;

/// How often a count is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// What watches have seen: all pods that ever were, and the owners that are ready now.
#[derive(Debug, Default)]
struct Seen {
    pods: HashSet<String>,
    ready: HashSet<String>,
}

/// Counts pods and ready owners by two watches.
#[derive(Debug)]
pub(crate) struct Tally {
    seen: Arc<Mutex<Seen>>,
    watches: [JoinHandle<()>; 2],
}

impl Drop for Tally {
    fn drop(&mut self) {
        for watch in &self.watches {
            watch.abort();
        }
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tally {
    /// Counts pods that `selector` selects, and objects of `owners` for which `is_ready` holds.
    pub(crate) fn start(
        client: &Client,
        selector: &str,
        owners: &ApiResource,
        is_ready: fn(&DynamicObject) -> bool,
    ) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let pods = Api::<PartialObjectMeta<Pod>>::all(client.clone());
        let pods = watcher(pods, watcher::Config::default().labels(selector)).default_backoff();
        let owners = Api::<DynamicObject>::all_with(client.clone(), owners);
        let owners = watcher(owners, watcher::Config::default()).default_backoff();
        let (for_pods, for_owners) = (Arc::clone(&seen), Arc::clone(&seen));
        let count_pods = async move {
            let mut pods = pin!(pods);
            loop {
                match pods.try_next().await {
                    Ok(Some(Event::Apply(pod) | Event::InitApply(pod))) => {
                        lock(&for_pods).pods.extend(pod.uid());
                    }
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(error) => eprintln!("watching pods: {error}"),
                }
            }
        };
        let count_owners = async move {
            let mut owners = pin!(owners);
            loop {
                match owners.try_next().await {
                    Ok(Some(Event::Apply(owner) | Event::InitApply(owner))) => {
                        let mut seen = lock(&for_owners);
                        if is_ready(&owner) {
                            seen.ready.insert(owner.name_any());
                        } else {
                            seen.ready.remove(&owner.name_any());
                        }
                    }
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(error) => eprintln!("watching owners: {error}"),
                }
            }
        };
        Self {
            seen,
            watches: [tokio::spawn(count_pods), tokio::spawn(count_owners)],
        }
    }

    pub(crate) fn pods(&self) -> usize {
        lock(&self.seen).pods.len()
    }

    pub(crate) fn ready(&self) -> usize {
        lock(&self.seen).ready.len()
    }

    /// Seconds from `start` until so many pods were made and so many owners are ready; `None` for what did not come
    /// before the deadline.
    pub(crate) async fn until(
        &self,
        start: Instant,
        (pods, ready): (usize, usize),
        deadline: Duration,
    ) -> (Option<f64>, Option<f64>) {
        let mut times = (None, None);
        let mut said = Instant::now();
        while start.elapsed() < deadline && (times.0.is_none() || times.1.is_none()) {
            let now = Some(start.elapsed().as_secs_f64());
            if times.0.is_none() && self.pods() >= pods {
                times.0 = now;
            }
            if times.1.is_none() && self.ready() >= ready {
                times.1 = now;
            }
            if said.elapsed() > Duration::from_secs(10) {
                let made = if pods > 0 {
                    format!("{} of {pods} pods, ", self.pods())
                } else {
                    String::new()
                };
                let passed = start.elapsed().as_secs();
                eprintln!("  {passed:>4} s: {made}{} of {ready} ready", self.ready());
                said = Instant::now();
            }
            tokio::time::sleep(LOOK).await;
        }
        times
    }
}

/// Memory that a process uses now and used at most, in MiB.
pub(crate) fn memory(pid: i32) -> Result<(f64, f64)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("the operator is gone")?;
    let field = |name: &str| -> Result<f64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kilobytes = line.and_then(|line| line.split_whitespace().next());
        let kilobytes: f64 = kilobytes.with_context(|| format!("no {name} in /proc"))?.parse()?;
        Ok(kilobytes / 1024.0)
    };
    Ok((field("VmRSS:")?, field("VmHWM:")?))
}

/// Processor time that a process has used, in seconds.
pub(crate) fn processor_seconds(pid: i32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("the operator is gone")?;
    let (_, fields) = stat.rsplit_once(')').context("strange /proc")?;
    let ticks: Vec<f64> = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    // Linux counts in hundredths wherever this runs.
    Ok(ticks.iter().sum::<f64>() / 100.0)
}

/// The value that 99 of 100 do not exceed.
pub(crate) fn p99(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * 99).div_ceil(100);
    sorted.get(rank.checked_sub(1)?).copied()
}

/// The middle value.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(p99(&values), Some(99.0));
        assert_eq!(p99(&[7.0]), Some(7.0));
        assert_eq!(p99(&[]), None);
        assert_eq!(median(&values), Some(51.0));
    }

    #[test]
    fn own_process_uses_memory_and_time() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let (now, most) = memory(pid).unwrap();
        assert!(now > 0.0 && most >= now / 2.0);
        assert!(processor_seconds(pid).unwrap() >= 0.0);
    }
}
