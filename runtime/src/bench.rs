//! `escadre-runtime bench`: how fast this machine reads prompts and gives answers, without an API around it.
//!
//! Everything is measured once per round, one after the other, so that a disturbance of the machine falls on one round
//! of everything and not on all rounds of one thing; what counts is the median.

mod report;

use crate::backend::KvType;
use crate::backend::device::{self, Accelerator, AcceleratorMissing, DeviceChoice};
use crate::backend::kernels::{Operation, Profile};
use crate::cgroup;
use crate::engine::{SequenceId, Sequences};
use crate::kv::blocks_for;
use crate::model::{self, Decoder, LoadError, LoadOptions, Loaded, Logits, LogitsWanted, ModelError, Quantize};
use crate::status::resident_bytes;
use crate::threads::Threads;
use escadre_kernels::Level;
use escadre_verify::{Refusal, VerifiedModel};
use report::{Measured, PromptRate, Report, Series, StreamRate};
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Tokens that a stream has read before its answer is measured.
const QUESTION: usize = 32;

/// Arguments of `bench`.
#[derive(Debug, Clone, clap::Args)]
pub struct BenchArgs {
    /// The model: a GGUF file, or a folder with safetensors files
    #[arg(long, value_name = "FILE_OR_DIR")]
    pub model: PathBuf,
    /// Lengths of prompts that are read, in tokens
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', default_value = "128,512")]
    pub prompts: Vec<NonZeroUsize>,
    /// How many answers are given at the same time
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,4,8,16")]
    pub streams: Vec<NonZeroUsize>,
    /// Tokens of each answer
    #[arg(long, value_name = "TOKENS", default_value = "32")]
    pub answer: NonZeroUsize,
    /// How often everything is measured
    #[arg(long, value_name = "N", default_value = "5")]
    pub rounds: NonZeroUsize,
    /// Worker threads for the arithmetic; without it what the container may use
    #[arg(long)]
    pub threads: Option<NonZeroUsize>,
    /// Instructions that the processor must have, to compare them; without it the fastest that it has
    #[arg(long, value_name = "LEVEL", value_parser = ["avx512", "avxvnni", "avx2", "portable"])]
    pub instructions: Option<String>,
    /// How keys and values are held
    #[arg(long, value_enum, default_value_t)]
    pub kv_cache_dtype: KvType,
    /// What weights that are numbers of 16 or 32 bits are made into
    #[arg(long, value_enum, value_name = "TYPE")]
    pub quantize: Option<Quantize>,
    /// What computes
    #[arg(long, value_enum, default_value_t)]
    pub device: DeviceChoice,
    /// Also print where the time of prompts and answers goes; it costs a little time itself
    #[arg(long)]
    pub profile: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Why there are no numbers.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The accelerator that was asked for is not there.
    #[error(transparent)]
    Accelerator(#[from] AcceleratorMissing),
    /// The model's structure is invalid.
    #[error(transparent)]
    Invalid(#[from] Refusal),
    /// The model cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The system gave no threads.
    #[error("could not start the threads that compute")]
    Threads(#[source] io::Error),
    /// The processor lacks the instructions that were asked for.
    #[error("this processor does not have {0:?}; it has {1:?}")]
    Instructions(String, Vec<Level>),
    /// A step failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The model's context is shorter than what was asked for.
    #[error("{what} of {tokens} tokens does not fit the model's context of {context}; choose a smaller number")]
    TooLong {
        /// What is too long.
        what: &'static str,
        /// Its length.
        tokens: usize,
        /// The context.
        context: usize,
    },
    /// The numbers could not be written.
    #[error("could not write the numbers")]
    Output(#[from] io::Error),
}

/// Measures, and prints to standard output.
///
/// # Errors
/// When the model cannot be loaded, or is too small for what was asked for.
pub fn run(args: &BenchArgs) -> Result<(), BenchError> {
    let report = measure(args)?;
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer(&mut out, &report).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        report.write(&mut out)?;
    }
    Ok(())
}

/// The instructions of this name; without one the fastest.
fn level(name: Option<&str>) -> Result<Level, BenchError> {
    match name {
        None => Ok(Level::detect()),
        Some(name) => Level::named(name).ok_or_else(|| BenchError::Instructions(name.to_owned(), Level::available())),
    }
}

fn measure(args: &BenchArgs) -> Result<Report, BenchError> {
    let began = Instant::now();
    let accelerator = Accelerator::find(args.device)?;
    let verified = VerifiedModel::open(&args.model, None, &mut |_, _| {})?;
    let level = level(args.instructions.as_deref())?;
    let threads = Threads::start(args.threads, level).map_err(BenchError::Threads)?;
    let options = LoadOptions {
        memory_limit: cgroup::read().memory,
        kv_type: args.kv_cache_dtype,
        quantize: args.quantize,
        cores: threads.cores(),
        profile: args.profile.then(Arc::default),
        ..LoadOptions::default()
    };
    let loaded = model::load_on(accelerator.as_ref(), &verified, &options, &mut |_, _| {})?;
    let load_seconds = began.elapsed().as_secs_f64();
    let Loaded {
        description,
        mut decoder,
        ..
    } = loaded;
    let of = |counts: &[NonZeroUsize]| counts.iter().map(|count| count.get()).collect::<Vec<_>>();
    let (prompts, streams) = (of(&args.prompts), of(&args.streams));
    let answer = args.answer.get();
    let context = description.context_length;
    let longest = prompts.iter().copied().max().unwrap_or(0);
    for (what, tokens) in [("a prompt", longest), ("a question with its answer", QUESTION + answer)] {
        if tokens > context {
            return Err(BenchError::TooLong { what, tokens, context });
        }
    }
    let widest = streams.iter().copied().max().unwrap_or(0);
    let blocks = blocks_for(longest).max(blocks_for(QUESTION + answer) * widest);
    decoder.allocate(blocks, args.kv_cache_dtype)?;
    let vocabulary = decoder.vocabulary();
    let mut bench = Bench {
        sequences: Sequences::new(&mut decoder),
        profile: options.profile,
        vocabulary,
    };
    // What is prepared lazily is prepared now.
    bench.answers(1, 1)?;
    let mut reading: Vec<Series> = prompts.iter().map(|_| Series::default()).collect();
    let mut giving: Vec<Series> = streams.iter().map(|_| Series::default()).collect();
    for round in 1..=args.rounds.get() {
        eprintln!("round {round} of {}", args.rounds);
        for (series, tokens) in reading.iter_mut().zip(&prompts) {
            series.add(bench.prompt(*tokens)?);
        }
        for (series, streams) in giving.iter_mut().zip(&streams) {
            series.add(bench.answers(*streams, answer)?);
        }
    }
    Ok(Report {
        version: env!("CARGO_PKG_VERSION"),
        device: device::name(accelerator.as_ref()),
        digest: verified.digest().to_string(),
        architecture: description.architecture,
        quantization: description.quantization,
        parameters: description.parameters,
        kv_cache_type: args.kv_cache_dtype.to_string(),
        instructions: level.name(),
        threads: threads.count(),
        rounds: args.rounds.get(),
        load_seconds,
        resident_bytes: resident_bytes(),
        prompts: prompts.iter().zip(&reading).map(PromptRate::of).collect(),
        streams: streams.iter().zip(&giving).map(StreamRate::of).collect(),
    })
}

/// A model that is measured.
struct Bench<'a> {
    sequences: Sequences<'a, Decoder>,
    profile: Option<Arc<Profile>>,
    vocabulary: usize,
}

impl Bench<'_> {
    /// Tokens that have nothing to do with each other.
    fn tokens(&self, count: usize) -> Vec<u32> {
        let size = u32::try_from(self.vocabulary).unwrap_or(u32::MAX);
        (0..)
            .map(|index: u32| index.wrapping_mul(2_654_435_761) % size)
            .take(count)
            .collect()
    }

    fn step(&mut self, parts: &[(SequenceId, &[u32], LogitsWanted)]) -> Result<Logits, ModelError> {
        self.sequences.forward(parts)
    }

    /// What operations took since the last call.
    fn times(&self) -> Vec<(Operation, Duration)> {
        self.profile.as_ref().map_or_else(Vec::new, |profile| profile.take())
    }

    /// A prompt up to its first logits.
    fn prompt(&mut self, count: usize) -> Result<Measured, ModelError> {
        let tokens = self.tokens(count);
        let id = self.sequences.add();
        self.times();
        let began = Instant::now();
        self.step(&[(id, &tokens, LogitsWanted::Last)])?;
        let measured = Measured {
            tokens: count,
            time: began.elapsed(),
            operations: self.times(),
        };
        self.sequences.remove(id);
        Ok(measured)
    }

    /// So many answers together.
    fn answers(&mut self, streams: usize, count: usize) -> Result<Measured, ModelError> {
        let ids: Vec<SequenceId> = (0..streams).map(|_| self.sequences.add()).collect();
        let question = self.tokens(QUESTION);
        for id in &ids {
            self.step(&[(*id, &question, LogitsWanted::None)])?;
        }
        let tokens = self.tokens(count);
        self.times();
        let began = Instant::now();
        for token in &tokens {
            let parts: Vec<_> = ids
                .iter()
                .map(|id| (*id, std::slice::from_ref(token), LogitsWanted::Last))
                .collect();
            self.step(&parts)?;
        }
        let measured = Measured {
            tokens: streams * count,
            time: began.elapsed(),
            operations: self.times(),
        };
        for id in ids {
            self.sequences.remove(id);
        }
        Ok(measured)
    }
}
