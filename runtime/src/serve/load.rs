//! The engine's thread from its first line: verify, load, warm up, then answer until it is drained.

use super::overlay;
use crate::backend::KvType;
use crate::backend::device::{self, Accelerator, DeviceChoice};
use crate::context::unix_seconds;
use crate::dialect::Dialect;
use crate::engine::{self, Admission, Engine, QueueLimits, Settings, WarmUpError, Worker};
use crate::failure::{Failure, chain};
use crate::grammar::Grammars;
use crate::kv::{self, BLOCK_TOKENS, blocks_for};
use crate::metrics::Metrics;
use crate::model::load::CONTEXT_TO_FIT;
use crate::model::{
    self, Decoder, Format, LoadError, LoadOptions, Loaded, ModelDescription, Pooling, Quantize, SpecialTokens,
    Tokenizer,
};
use crate::requirements::Requirements;
use crate::server::Served;
use crate::status::{Board, Performance, Progress, Stage, Verdict};
use crate::threads::{Threaded, Threads};
use escadre_kernels::{Cores, Level};
use escadre_verify::{Digest, Refusal, VerifiedModel};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::oneshot;
use tracing::info;

/// The most tokens of a step: more do not use the cores better.
const STEP_TOKENS: usize = 512;
/// Tokens that there is room for while the model warms up.
const WARM_UP_TOKENS: usize = 128;
/// How many requests may wait for each that is answered.
const WAITING_PER_RUNNING: usize = 16;
/// How many contexts of prompt tokens may wait.
const WAITING_CONTEXTS: usize = 16;
/// The part of the free memory that keys and values may take; the rest is for growth that nobody planned.
const KV_SHARE: f64 = 0.9;
/// What the model reads while it warms up.
const WARM_UP_TEXT: &str = "The quick brown fox jumps over the lazy dog. ";

/// What is to be served.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) path: PathBuf,
    pub(super) digest: Option<Digest>,
    pub(super) served_name: String,
    pub(super) aliases: Vec<String>,
    pub(super) max_context: Option<NonZeroUsize>,
    pub(super) concurrency: usize,
    pub(super) queue_wait: Duration,
    pub(super) kv_type: KvType,
    pub(super) quantize: Option<Quantize>,
    pub(super) device: DeviceChoice,
    pub(super) inter_token_latency: Option<Duration>,
    pub(super) format: Option<Format>,
    pub(super) pooling: Option<Pooling>,
    pub(super) overlay: Option<PathBuf>,
    pub(super) threads: Option<NonZeroUsize>,
    pub(super) memory_limit: Option<u64>,
    pub(super) requirements: Arc<Requirements>,
}

/// The engine's thread.
pub(super) struct EngineThread {
    served: oneshot::Receiver<Result<Served, Failure>>,
    ended: oneshot::Receiver<()>,
    handle: Option<JoinHandle<()>>,
}

/// Starts the thread.
pub(super) fn start(plan: Plan, board: Board, metrics: Arc<Metrics>) -> Result<EngineThread, Failure> {
    let (served_sender, served) = oneshot::channel();
    let (ended_sender, ended) = oneshot::channel::<()>();
    let thread = std::thread::Builder::new().name("engine".to_owned()).spawn(move || {
        // Dropped at the end of the thread, by a panic too: that is how its owner learns of it.
        let _ended = ended_sender;
        match prepare(&plan, &board, metrics) {
            Ok((served, worker)) => {
                if served_sender.send(Ok(served)).is_ok() {
                    worker.run();
                }
            }
            Err(failure) => {
                let _ = served_sender.send(Err(failure));
            }
        }
    });
    let handle =
        thread.map_err(|error| Failure::new("Internal", format!("could not start the engine's thread: {error}")))?;
    Ok(EngineThread {
        served,
        ended,
        handle: Some(handle),
    })
}

impl EngineThread {
    /// The model, as soon as it can answer.
    pub(super) async fn served(&mut self) -> Result<Served, Failure> {
        match (&mut self.served).await {
            Ok(result) => result,
            Err(_) => Err(self.ended().await),
        }
    }

    /// Returns when the thread has ended, with the reason.
    pub(super) async fn ended(&mut self) -> Failure {
        let _ = (&mut self.ended).await;
        // The channel closes in the thread's last moments, so this does not wait.
        let panic = self.handle.take().and_then(|handle| handle.join().err());
        let message = panic.as_ref().map(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
        });
        Failure::new(
            "EngineEnded",
            match message {
                Some(message) => format!("the engine panicked: {message}"),
                None => "the engine ended".to_owned(),
            },
        )
    }
}

fn prepare(plan: &Plan, board: &Board, metrics: Arc<Metrics>) -> Result<(Served, Worker<Threaded<Decoder>>), Failure> {
    let began = Instant::now();
    // First: a pod that waits for an accelerator in vain says so before it reads gigabytes.
    let accelerator =
        Accelerator::find(plan.device).map_err(|missing| Failure::new("AcceleratorMissing", missing.to_string()))?;
    let device = device::name(accelerator.as_ref());
    board.update(|status| status.device = Some(device.clone()));
    let threads = Threads::start(plan.threads, Level::detect())
        .map_err(|error| Failure::new("Internal", format!("could not start the threads that compute: {error}")))?;
    let (verified, loaded) = load(plan, accelerator.as_ref(), threads.cores(), board, began)?;
    let Loaded {
        mut description,
        tokenizer,
        template,
        decoder,
        generation,
        pooling,
    } = loaded;
    let hidden = decoder.hidden();
    let mut model = Threaded::new(decoder, threads, board.clone());
    board.update(|status| status.stage = Stage::WarmingUp);
    let prompt = warm_up_prompt(&tokenizer);
    let failed = |error: WarmUpError| Failure::new("SelfTestFailed", error.to_string());
    model.model.self_test().map_err(|error| failed(error.into()))?;
    let allocate = |decoder: &mut Decoder, blocks| decoder.allocate(blocks, plan.kv_type).map_err(WarmUpError::from);
    allocate(&mut model.model, blocks_for(WARM_UP_TOKENS)).map_err(failed)?;
    let performance =
        engine::warm_up(&mut model, &prompt, description.context_length.min(WARM_UP_TOKENS)).map_err(failed)?;
    // What is prepared in the first steps is there now, and what is left can be given to keys and values.
    let blocks = cache_blocks(plan, &description, free_memory(&model.model, plan, board));
    allocate(&mut model.model, blocks).map_err(failed)?;
    description.context_length = description.context_length.min(blocks * BLOCK_TOKENS);
    describe(board, &description, performance);
    metrics.has_blocks(BLOCK_TOKENS, blocks);
    tell(plan, &description, (&device, performance), (blocks, began));
    let admission = Arc::new(Admission::new(QueueLimits {
        requests: plan.concurrency.saturating_mul(WAITING_PER_RUNNING),
        tokens: description.context_length.saturating_mul(WAITING_CONTEXTS),
        concurrency: plan.concurrency,
        wait: plan.queue_wait,
    }));
    let (engine, commands) = Engine::new(Arc::clone(&admission));
    let digest = verified.digest();
    let settings = Settings {
        concurrency: plan.concurrency,
        step_tokens: STEP_TOKENS,
        inter_token_latency: plan.inter_token_latency,
        rates: (
            performance.prefill_tokens_per_second,
            performance.decode_tokens_per_second,
        ),
        root: kv::root(&format!("{digest} {}", plan.kv_type)),
        block_bytes: description.kv_bytes_per_token * BLOCK_TOKENS as u64,
        end_tokens: generation.end_tokens.clone(),
    };
    let tokenizer = Arc::new(tokenizer);
    let for_text = Arc::clone(&tokenizer);
    let new_text = Box::new(move |shown: &[u32]| Box::new(for_text.decoder(shown)) as Box<dyn engine::TextStream>);
    let worker = Worker::new(model, new_text, settings, (commands, admission), metrics, board.clone());
    let served = Served {
        name: plan.served_name.clone(),
        aliases: plan.aliases.clone(),
        digest,
        fingerprint: fingerprint(digest, plan.quantize, plan.kv_type),
        created: unix_seconds(),
        context_length: description.context_length,
        grammars: Grammars::new(Arc::clone(&tokenizer), generation.end_tokens.clone()),
        dialect: template.map(|template| Dialect::of(template, |text| tokenizer.control_token(text))),
        tokenizer,
        generation,
        pooling: plan.pooling.or(pooling),
        hidden,
        engine,
    };
    Ok((served, worker))
}

fn load(
    plan: &Plan,
    accelerator: Option<&Accelerator>,
    cores: Arc<Cores>,
    board: &Board,
    began: Instant,
) -> Result<(VerifiedModel, Loaded), Failure> {
    let progress = |stage: Stage| {
        move |done, total| {
            board.update(|status| {
                status.stage = stage;
                status.load = Some(Progress {
                    bytes_done: done,
                    bytes_total: total,
                });
            });
        }
    };
    let refused = |refusal: &Refusal| {
        board.update(|status| {
            status.verification.result = Verdict::Refused;
            status.verification.failed_file.clone_from(&refusal.file);
        });
    };
    let mut verified =
        VerifiedModel::open(&plan.path, plan.digest.as_ref(), &mut progress(Stage::Verifying)).inspect_err(refused)?;
    board.update(|status| {
        status.stage = Stage::Loading;
        status.model.digest = Some(verified.digest());
        status.model.bytes = Some(verified.bytes());
    });
    // Before anything is laid over the files: what is signed is the model as it was published.
    let signed = plan.requirements.check_signatures(&mut verified, SystemTime::now());
    signed.inspect_err(refused)?;
    if let Some(folder) = &plan.overlay {
        verified.lay_over(overlay::read(folder)?).inspect_err(refused)?;
        let files: Vec<_> = verified.overlaid().collect();
        info!(files = files.join(", "), "files are laid over the model");
    }
    let options = LoadOptions {
        format: plan.format,
        max_context: plan.max_context.map(NonZeroUsize::get),
        memory_limit: plan.memory_limit,
        kv_type: plan.kv_type,
        quantize: plan.quantize,
        cores,
        profile: None,
        requirements: Arc::clone(&plan.requirements),
    };
    let loaded = model::load_on(accelerator, &verified, &options, &mut progress(Stage::Loading)).map_err(|error| {
        if let LoadError::Refused(refusal) = &error {
            refused(refusal);
        }
        Failure::new(error.reason(), chain(&error))
    })?;
    board.update(|status| {
        // Every byte was hashed while it was read. Without a digest to compare with, nothing was judged.
        let pinned = verified.is_pinned();
        status.verification.result = if pinned { Verdict::Verified } else { Verdict::Pending };
        status.verification.method = match (verified.signer(), pinned) {
            (Some(_), _) => "Signature",
            (None, true) => "Digest",
            (None, false) => "None",
        };
        status.verification.signer = verified.signer().map(ToString::to_string);
        status.verification.files = Some(verified.files().count());
        status.verification.bytes = Some(verified.bytes());
        status.verification.duration_seconds = Some(began.elapsed().as_secs_f64());
    });
    Ok((verified, loaded))
}

/// Tells the log that the model is loaded.
fn tell(
    plan: &Plan,
    description: &ModelDescription,
    (device, performance): (&str, Performance),
    (blocks, began): (usize, Instant),
) {
    info!(
        device,
        architecture = description.architecture,
        quantization = description.quantization,
        context_length = description.context_length,
        kv_cache_tokens = blocks * BLOCK_TOKENS,
        kv_cache_type = %plan.kv_type,
        prefill_tokens_per_second = performance.prefill_tokens_per_second,
        decode_tokens_per_second = performance.decode_tokens_per_second,
        seconds = began.elapsed().as_secs_f64(),
        "model is loaded"
    );
}

/// What answers depend on beside the request: the model's bytes, this program, what it made of the weights, and how keys
/// and values are held. The processor's instructions are not among them.
fn fingerprint(digest: Digest, quantize: Option<Quantize>, kv_type: KvType) -> String {
    let made = quantize.map_or_else(String::new, |quantize| format!("_{quantize}"));
    format!("fp_{}_{}{made}_{kv_type}", digest.short(), env!("CARGO_PKG_VERSION"))
}

fn warm_up_prompt(tokenizer: &Tokenizer) -> Vec<u32> {
    let text = tokenizer
        .encode(WARM_UP_TEXT, SpecialTokens::AsText)
        .unwrap_or_default();
    let prompt = [tokenizer.prefix(), text.as_slice()].concat();
    if prompt.is_empty() { vec![0] } else { prompt }
}

fn describe(board: &Board, description: &ModelDescription, performance: Performance) {
    let ModelDescription {
        format,
        architecture,
        parameters,
        quantization,
        context_length,
        weights_bytes,
        kv_bytes_per_token: _,
        template_digest,
        license,
    } = description;
    board.update(|status| {
        status.model.format = Some(format.to_string());
        status.model.architecture = Some(architecture.clone());
        status.model.parameters = Some(*parameters);
        status.model.quantization = Some(quantization.clone());
        status.model.context_length = Some(*context_length);
        status.model.template_digest.clone_from(template_digest);
        status.model.license.clone_from(license);
        status.memory.weights_bytes = Some(*weights_bytes);
        status.performance = Some(performance);
    });
}

/// Bytes that are left where keys and values are held. Absent when there is no limit.
fn free_memory(decoder: &Decoder, plan: &Plan, board: &Board) -> Option<u64> {
    decoder.free_memory().or_else(|| {
        let resident = board.snapshot().memory.resident_bytes?;
        Some(plan.memory_limit?.saturating_sub(resident))
    })
}

/// Blocks of keys and values: for as many whole contexts as there may be requests, if there is room; for one context if
/// that was asked for, else for what can be served at least.
fn cache_blocks(plan: &Plan, description: &ModelDescription, free: Option<u64>) -> usize {
    let context = description.context_length;
    let wanted = blocks_for(context).saturating_mul(plan.concurrency);
    let Some(free) = free else {
        return wanted;
    };
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of some gigabytes"
    )]
    let free = (free as f64 * KV_SHARE) as u64;
    let room = free.checked_div(description.kv_bytes_per_token * BLOCK_TOKENS as u64);
    let room = room.and_then(|room| usize::try_from(room).ok()).unwrap_or(usize::MAX);
    // The loader made sure that this fits.
    let least = if plan.max_context.is_some() {
        context
    } else {
        context.min(CONTEXT_TO_FIT)
    };
    room.clamp(blocks_for(least).min(wanted), wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn panic_of_the_engine_is_a_failure_with_its_message() {
        let (served_sender, served) = oneshot::channel();
        let (ended_sender, ended) = oneshot::channel::<()>();
        let handle = std::thread::spawn(move || {
            let _both = (ended_sender, served_sender);
            panic!("a tensor of {} rows", 3);
        });
        let mut engine = EngineThread {
            served,
            ended,
            handle: Some(handle),
        };
        let failure = engine.served().await.err().unwrap();
        assert_eq!(failure.reason, "EngineEnded");
        assert!(failure.message.contains("a tensor of 3 rows"), "{failure}");
    }
}
