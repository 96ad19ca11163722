//! The page that the operator polls: what this process is doing and what it serves.
//!
//! [`Board`] is shared by everything that knows a part of the page. Its lock is held for the time of a copy, never
//! across an await.

use crate::args::Identity;
use crate::failure::Failure;
use crate::traffic::Summary;
use escadre_verify::Digest;
use serde::Serialize;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What the process is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Stage {
    /// Downloading a model.
    Fetching,
    /// Hashing files.
    Verifying,
    /// Reading weights into memory.
    Loading,
    /// Measuring speeds and checking that the numbers are finite.
    WarmingUp,
    /// Answering requests.
    Ready,
    /// Finishing what was begun, because the process was asked to end.
    Draining,
    /// About to end with an error.
    Failed,
}

/// The whole page. Absent parts are not known, or have no meaning in this stage.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The pod's UID.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
    /// The pod's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_name: Option<String>,
    /// The deployment's revision that the pod belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// What the process is doing.
    pub stage: Stage,
    /// The digest of the model that answers requests, from the first moment that it can until the process ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub served_digest: Option<Digest>,
    /// What computes: `cpu`, or the accelerator's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// How many threads compute on the processor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// What the model is.
    pub model: Model,
    /// Whether the bytes are the approved ones.
    pub verification: Verification,
    /// Progress of a download.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub download: Option<Download>,
    /// Progress of reading the weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load: Option<Progress>,
    /// Requests in the engine.
    pub requests: Requests,
    /// How requests went since the process became ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traffic: Option<Summary>,
    /// Memory, in bytes.
    pub memory: Memory,
    /// Speeds that were measured while warming up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub performance: Option<Performance>,
    /// Why the process is about to end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
}

/// What the model is.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the names say it all")]
pub struct Model {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub served_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolved_revision: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameters: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantization: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context_length: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template_digest: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub license: Option<String>,
}

/// The verdict of a verification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Verdict {
    /// The bytes are those that the digest names.
    Verified,
    /// The bytes were refused.
    Refused,
    /// Not all bytes were hashed yet.
    Pending,
}

/// Whether the bytes are the approved ones, and how that is known.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Verification {
    /// The verdict.
    pub result: Verdict,
    /// How it was reached.
    pub method: &'static str,
    /// Who signed, when a signature was demanded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signer: Option<String>,
    /// Files of the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files: Option<usize>,
    /// Bytes of the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// How long reading and hashing took, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_seconds: Option<f64>,
    /// The file that was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed_file: Option<String>,
}

/// Progress of a download.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Download {
    /// Bytes that are there.
    pub bytes_done: u64,
    /// Bytes in all, when the source says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_total: Option<u64>,
    /// The speed of the last seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
    /// How long the rest takes at this speed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remaining_seconds: Option<u64>,
}

/// Progress of something that is counted in bytes.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// Bytes done.
    pub bytes_done: u64,
    /// Bytes in all.
    pub bytes_total: u64,
}

/// Requests in the engine.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Requests {
    /// Requests that are being answered.
    pub running: usize,
    /// Requests that wait for their turn.
    pub waiting: usize,
}

/// Memory, in bytes.
#[derive(Debug, Clone, Copy, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Memory {
    /// Weights as they are held.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights_bytes: Option<u64>,
    /// Keys and values of the running requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv_cache_bytes: Option<u64>,
    /// What the process holds in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resident_bytes: Option<u64>,
    /// What it may hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_bytes: Option<u64>,
}

/// Speeds of one stream.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Performance {
    /// Prompt tokens per second.
    pub prefill_tokens_per_second: f64,
    /// Generated tokens per second.
    pub decode_tokens_per_second: f64,
}

/// The page, shared.
#[derive(Debug, Clone)]
pub struct Board(Arc<Mutex<Status>>);

impl Board {
    /// The page of a process that begins with `stage`.
    pub fn new(identity: Identity, stage: Stage) -> Self {
        let Identity {
            pod_uid,
            pod_name,
            revision,
        } = identity;
        Self(Arc::new(Mutex::new(Status {
            pod_uid,
            pod_name,
            revision,
            stage,
            served_digest: None,
            device: None,
            threads: None,
            model: Model::default(),
            verification: Verification {
                result: Verdict::Pending,
                method: "Digest",
                signer: None,
                files: None,
                bytes: None,
                duration_seconds: None,
                failed_file: None,
            },
            download: None,
            load: None,
            requests: Requests::default(),
            traffic: None,
            memory: Memory::default(),
            performance: None,
            failure: None,
        })))
    }

    /// Changes the page.
    pub fn update(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.lock());
    }

    /// The page as it is now.
    pub fn snapshot(&self) -> Status {
        let mut status = self.lock().clone();
        status.memory.resident_bytes = resident_bytes();
        status
    }

    /// What the process is doing.
    pub fn stage(&self) -> Stage {
        self.lock().stage
    }

    /// Records why the process is about to end.
    pub fn fail(&self, failure: &Failure) {
        self.update(|status| {
            status.stage = Stage::Failed;
            status.failure = Some(failure.clone());
        });
    }

    fn lock(&self) -> MutexGuard<'_, Status> {
        // A page that a panicking thread left behind is still the best that there is to show.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Resident memory of this process, in bytes, where the system tells.
pub(crate) fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// The speed of a download over its last seconds.
#[derive(Debug)]
pub struct Meter {
    total: Option<u64>,
    samples: VecDeque<(Instant, u64)>,
}

impl Meter {
    /// How far back the speed looks: long enough to be steady, short enough to show a stall.
    const WINDOW: Duration = Duration::from_secs(10);
    /// The distance of samples.
    const STEP: Duration = Duration::from_millis(250);

    /// A meter for a download that has `done` bytes already.
    pub fn new(now: Instant, done: u64, total: Option<u64>) -> Self {
        Self {
            total,
            samples: VecDeque::from([(now, done)]),
        }
    }

    /// Adds what is known now and returns the progress.
    pub fn progress(&mut self, now: Instant, done: u64) -> Download {
        let oldest = self.samples[0];
        if self
            .samples
            .back()
            .is_some_and(|(at, _)| now.duration_since(*at) >= Self::STEP)
        {
            self.samples.push_back((now, done));
            while self.samples.len() > 2 && now.duration_since(self.samples[0].0) > Self::WINDOW {
                self.samples.pop_front();
            }
        }
        let elapsed = now.duration_since(oldest.0).as_millis();
        let per_second = (elapsed > 0)
            .then(|| u128::from(done.saturating_sub(oldest.1)) * 1000 / elapsed)
            .and_then(|speed| u64::try_from(speed).ok());
        Download {
            bytes_done: done,
            bytes_total: self.total,
            bytes_per_second: per_second,
            remaining_seconds: self
                .total
                .zip(per_second)
                .and_then(|(total, speed)| total.saturating_sub(done).checked_div(speed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_has_the_names_that_the_operator_reads() {
        let identity = Identity {
            pod_uid: Some("uid-1".into()),
            pod_name: Some("m-abcdefgh-0".into()),
            revision: Some("abcdefgh".into()),
        };
        let board = Board::new(identity, Stage::WarmingUp);
        let digest = Digest::of(b"weights");
        board.update(|status| {
            status.served_digest = Some(digest);
            status.performance = Some(Performance {
                prefill_tokens_per_second: 100.0,
                decode_tokens_per_second: 20.0,
            });
        });
        let page = serde_json::to_value(board.snapshot()).unwrap();
        assert_eq!(page["podUid"], "uid-1");
        assert_eq!(page["stage"], "WarmingUp");
        assert_eq!(page["servedDigest"], digest.to_string());
        assert_eq!(page["verification"]["result"], "Pending");
        assert_eq!(page["performance"]["prefillTokensPerSecond"], 100.0);
        assert!(page["memory"]["residentBytes"].as_u64().unwrap() > 0);
        assert!(page.get("failure").is_none());
    }

    #[test]
    fn meter_shows_the_speed_of_the_last_seconds() {
        let start = Instant::now();
        let mut meter = Meter::new(start, 1000, Some(101_000));
        let mut last = meter.progress(start, 1000);
        assert_eq!(last.bytes_per_second, None);
        for second in 1..=100_u64 {
            let done = 1000
                + if second <= 50 {
                    second * 100
                } else {
                    5000 + (second - 50) * 1000
                };
            last = meter.progress(start + Duration::from_secs(second), done);
        }
        assert_eq!(last.bytes_per_second, Some(1000));
        assert_eq!(last.remaining_seconds, Some(45));
    }
}
