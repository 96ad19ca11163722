//! Tiny models whose logits `transformers` computed (see make.py), written in both formats.

use escadre_runtime::backend::kernels::Kernels;
use escadre_runtime::backend::{Backend, Precision};
use escadre_runtime::engine::Sequences;
use escadre_runtime::model::{KvType, LoadError, LoadOptions, Loaded, LogitsWanted, load_with};
use escadre_verify::VerifiedModel;
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tiny::{Stored, Tensor, safetensors, tokenizer};

pub(crate) mod gguf;
#[path = "../tiny/mod.rs"]
pub(crate) mod tiny;

/// Blocks for all sequences of a test.
const CACHE_BLOCKS: usize = 16;

pub(crate) const CASES: [&str; 11] = [
    "gemma2",
    "gemma3",
    "llama",
    "llama3",
    "mistral",
    "mistral_small",
    "phi3_long",
    "phi3_short",
    "qwen2",
    "qwen3",
    "smollm3",
];

pub(crate) type Tensors = BTreeMap<String, Tensor>;

/// A model and what it must compute.
#[derive(Clone)]
pub(crate) struct Case {
    pub(crate) config: Json,
    pub(crate) max_context: Option<usize>,
    pub(crate) tensors: Tensors,
    pub(crate) tokens: Vec<u32>,
    /// One row per token.
    pub(crate) logits: Vec<Vec<f32>>,
}

impl Case {
    pub(crate) fn read(name: &str) -> Self {
        let path = |extension: &str| {
            let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
            folder.join(format!("{name}.{extension}"))
        };
        let case: Json = serde_json::from_slice(&std::fs::read(path("json")).unwrap()).unwrap();
        let tensors = case["tensors"].as_object().unwrap().iter().map(|(name, tensor)| {
            let shape: Vec<usize> = serde_json::from_value(tensor[0].clone()).unwrap();
            let (scale, offset) = (number(&tensor[1]), number(&tensor[2]));
            let values = values(name, shape.iter().product(), scale, offset);
            (name.clone(), Tensor { shape, values })
        });
        let bytes = std::fs::read(path("f32")).unwrap();
        let logits: Vec<f32> = bytes
            .as_chunks()
            .0
            .iter()
            .map(|&bytes| f32::from_le_bytes(bytes))
            .collect();
        let width = usize::try_from(case["config"]["vocab_size"].as_u64().unwrap()).unwrap();
        Self {
            max_context: serde_json::from_value(case["max_context"].clone()).unwrap(),
            tensors: tensors.collect(),
            tokens: serde_json::from_value(case["tokens"].clone()).unwrap(),
            logits: logits.chunks_exact(width).map(<[f32]>::to_vec).collect(),
            config: case["config"].clone(),
        }
    }

    /// The largest difference that is still rounding: a ten-thousandth of the standard deviation of the logits.
    pub(crate) fn tolerance(&self) -> f32 {
        let values: Vec<f32> = self.logits.concat();
        let count = f32::from(u16::try_from(values.len()).unwrap());
        let mean = values.iter().sum::<f32>() / count;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f32>() / count;
        1e-4 * variance.sqrt()
    }

    /// The largest difference from what `transformers` computed.
    pub(crate) fn difference(&self, rows: &[Vec<f32>]) -> f32 {
        difference(&self.logits[..rows.len()], rows)
    }

    fn options(&self) -> LoadOptions {
        LoadOptions {
            max_context: self.max_context,
            ..LoadOptions::default()
        }
    }

    /// Writes a folder as Hugging Face's libraries do and loads it.
    pub(crate) fn load(&self) -> Result<Loaded, LoadError> {
        self.load_with(Kernels::new(Arc::default(), Precision::Widened))
    }

    /// The same, for a backend.
    pub(crate) fn load_with<B: Backend + 'static>(&self, backend: B) -> Result<Loaded, LoadError> {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &[u8]| std::fs::write(folder.path().join(name), content).unwrap();
        write("config.json", self.config.to_string().as_bytes());
        write("tokenizer.json", tokenizer().to_string().as_bytes());
        let tensors: Vec<_> = self
            .tensors
            .iter()
            .map(|(name, tensor)| (name.clone(), Stored::wide(tensor)))
            .collect();
        write("model.safetensors", &safetensors(&tensors));
        self.open_with(folder.path(), backend)
    }

    /// Loads what lies at a path.
    pub(crate) fn open(&self, path: &Path) -> Result<Loaded, LoadError> {
        self.open_with(path, Kernels::new(Arc::default(), Precision::Widened))
    }

    fn open_with<B: Backend + 'static>(&self, path: &Path, backend: B) -> Result<Loaded, LoadError> {
        let model = VerifiedModel::open(path, None, &mut |_, _| {}).unwrap();
        let mut loaded = load_with(&model, &self.options(), backend, &mut |_, _| {})?;
        loaded.decoder.allocate(CACHE_BLOCKS, KvType::F32).unwrap();
        Ok(loaded)
    }

    /// The logits of a new sequence with all tokens, computed `chunk` at a time.
    pub(crate) fn rows(&self, loaded: &mut Loaded, chunk: usize) -> Vec<Vec<f32>> {
        let mut sequences = Sequences::new(&mut loaded.decoder);
        let sequence = sequences.add();
        let mut rows = Vec::new();
        for tokens in self.tokens.chunks(chunk) {
            let logits = sequences.forward(&[(sequence, tokens, LogitsWanted::All)]).unwrap();
            rows.extend((0..logits.rows()).map(|row| logits.row(row).to_vec()));
        }
        rows
    }
}

/// The same numbers as the function of this name in make.py.
fn values(name: &str, count: usize, scale: f32, offset: f32) -> Vec<f32> {
    let seed = name.bytes().fold(0xCBF2_9CE4_8422_2325_u64, |seed, byte| {
        (seed ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
    });
    let value = |index: u64| {
        let mixed = seed.wrapping_add(index.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let mixed = mixed ^ (mixed >> 31);
        let unit = f32::from(u16::try_from(mixed >> 48).unwrap()) / 32_768.0 - 1.0;
        unit * scale + offset
    };
    (1..=count as u64).map(value).collect()
}

#[expect(clippy::cast_possible_truncation, reason = "the rule of make.py has f32")]
pub(crate) fn number(value: &Json) -> f32 {
    value.as_f64().unwrap() as f32
}

pub(crate) fn difference(left: &[Vec<f32>], right: &[Vec<f32>]) -> f32 {
    assert_eq!(left.len(), right.len());
    let pairs = left.iter().flatten().zip(right.iter().flatten());
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}
