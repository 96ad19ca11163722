//! The real model of the tests, and reference values that llama.cpp computed (see the scripts beside this file).

use escadre_runtime::engine::Sequences;
use escadre_runtime::kv::blocks_for;
use escadre_runtime::model::{KvType, LoadOptions, Loaded, Logits, LogitsWanted, load, load_exact};
use escadre_verify::VerifiedModel;
use std::path::PathBuf;
use std::sync::Mutex;

/// One model at a time: tests of one process would otherwise hold several copies, and disturb each other's timing.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Tokens of all sequences of a test.
const CACHE: usize = 1024;

pub(crate) const FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
}

/// Where `make models` puts the model, or where `ESCADRE_TEST_MODEL` says that it is.
pub(crate) fn model_path() -> PathBuf {
    variable("ESCADRE_TEST_MODEL").unwrap_or_else(|| cached(FILE))
}

/// A model that `make models` puts into the cache.
pub(crate) fn cached(file: &str) -> PathBuf {
    let cache = || {
        let cache = variable("ESCADRE_CACHE").or_else(|| Some(variable("XDG_CACHE_HOME")?.join("escadre")));
        cache.or_else(|| Some(variable("HOME")?.join(".cache/escadre")))
    };
    let path = cache().expect("HOME is set").join("models").join(file);
    assert!(
        path.is_file(),
        "{} is not there; fetch it with `make models`",
        path.display()
    );
    path
}

pub(crate) fn verified() -> VerifiedModel {
    VerifiedModel::open(&model_path(), None, &mut |_, _| {}).unwrap()
}

/// Runs a test with the loaded model.
pub(crate) fn with_model<R>(exact: bool, test: impl FnOnce(Loaded) -> R) -> R {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let loader = if exact { load_exact } else { load };
    let mut model = loader(&verified(), &LoadOptions::default(), &mut |_, _| {}).unwrap();
    model.decoder.allocate(blocks_for(CACHE), KvType::F32).unwrap();
    test(model)
}

/// Rows of all tokens of one new sequence, computed `chunk` tokens at a time.
pub(crate) fn rows(loaded: &mut Loaded, tokens: &[u32], chunk: usize) -> Vec<Vec<f32>> {
    let mut sequences = Sequences::new(&mut loaded.decoder);
    let sequence = sequences.add();
    let parts = tokens.chunks(chunk);
    let rows = parts.map(|part| copies(&sequences.forward(&[(sequence, part, LogitsWanted::All)]).unwrap()));
    rows.flatten().collect()
}

pub(crate) fn copies(logits: &Logits) -> Vec<Vec<f32>> {
    (0..logits.rows()).map(|row| logits.row(row).to_vec()).collect()
}

pub(crate) fn likeliest(row: &[f32]) -> usize {
    let largest = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    largest.unwrap().0
}

/// The largest difference between two sets of rows.
pub(crate) fn difference(left: &[Vec<f32>], right: &[Vec<f32>]) -> f32 {
    assert_eq!(left.len(), right.len());
    let pairs = left.iter().flatten().zip(right.iter().flatten());
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// What logits.py wrote.
pub(crate) struct Reference {
    pub(crate) tokens: Vec<u32>,
    positions: Vec<Position>,
}

struct Position {
    ids: Vec<u32>,
    /// Of the ids, then of all other tokens together.
    logs: Vec<f64>,
}

impl Reference {
    pub(crate) fn read() -> Self {
        Self::parse(include_bytes!("logits.bin"))
    }

    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let (magic, mut rest) = bytes.split_at(8);
        assert_eq!(magic, b"ESCREF1\n");
        let mut word = || {
            let (word, behind) = rest.split_at(4);
            rest = behind;
            <[u8; 4]>::try_from(word).unwrap()
        };
        let mut number = || u32::from_le_bytes(word());
        let (positions, top) = (number(), number());
        let tokens = (0..positions).map(|_| number()).collect();
        let mut position = || Position {
            ids: (0..top).map(|_| number()).collect(),
            logs: (0..=top).map(|_| f32::from_bits(number()).into()).collect(),
        };
        let positions = (0..positions).map(|_| position()).collect();
        assert!(rest.is_empty());
        Self { tokens, positions }
    }

    /// KL(ours || reference) in nats at every position, over the reference's likeliest tokens and one bucket for all
    /// others. Merging the others can only lower a divergence, and does so for ours and for llama.cpp's alike.
    pub(crate) fn divergences(&self, rows: &[Vec<f32>]) -> Vec<f64> {
        assert_eq!(rows.len(), self.positions.len());
        rows.iter()
            .zip(&self.positions)
            .map(|(row, position)| position.divergence(row))
            .collect()
    }

    /// Positions at which ours has another likeliest token although the reference prefers its own by more than
    /// `margin` nats.
    pub(crate) fn flips(&self, rows: &[Vec<f32>], margin: f64) -> usize {
        let is_flip = |(row, position): (&Vec<f32>, &Position)| {
            likeliest(row) != position.ids[0] as usize && position.logs[0] - position.logs[1] > margin
        };
        rows.iter().zip(&self.positions).filter(|&pair| is_flip(pair)).count()
    }
}

impl Position {
    fn divergence(&self, row: &[f32]) -> f64 {
        let largest = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let mut masses: Vec<_> = row.iter().map(|&value| (f64::from(value) - largest).exp()).collect();
        let total: f64 = masses.iter().sum();
        let mut named: Vec<_> = self
            .ids
            .iter()
            .map(|&id| std::mem::take(&mut masses[id as usize]))
            .collect();
        named.push(masses.iter().sum());
        let logs = named.iter().map(|mass| mass / total);
        logs.zip(&self.logs)
            .map(|(ours, theirs)| ours * (ours.ln() - theirs))
            .sum()
    }
}

pub(crate) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / f64::from(u32::try_from(values.len()).unwrap())
}

pub(crate) fn largest(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}
