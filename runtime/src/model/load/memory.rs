//! How much memory a model needs, before it is loaded. Pure.

use super::inventory::Inventory;
use crate::backend::KvType;
use crate::model::spec::ModelSpec;
use crate::model::{LoadError, LoadOptions};

/// The context for which keys and values must fit when none was asked for. Longer sequences are then served when there
/// is room for them.
pub(crate) const CONTEXT_TO_FIT: usize = 4096;
/// Bytes for the process itself: code, stacks, tokenizer, HTTP buffers.
const PROCESS: u64 = 96 << 20;

/// The parts of a model's memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Need {
    pub(crate) weights: u64,
    pub(crate) kv_cache: u64,
    /// Activations, logits, and the process itself.
    pub(crate) headroom: u64,
    /// Tokens that `kv_cache` is for.
    pub(crate) context: usize,
}

impl Need {
    /// `loading` is what is held beside the weights while they are loaded, and given back before the first step.
    pub(crate) fn new(spec: &ModelSpec, weights: u64, loading: u64, (context, kv_type): (usize, KvType)) -> Self {
        Self {
            weights,
            kv_cache: spec.kv_bytes_per_token(kv_type.bytes()).saturating_mul(context as u64),
            headroom: PROCESS.saturating_add(loading.max(activations(spec))),
            context,
        }
    }

    pub(crate) fn total(&self) -> u64 {
        self.weights.saturating_add(self.kv_cache).saturating_add(self.headroom)
    }

    fn check_device(&self, free: u64) -> Result<(), LoadError> {
        if self.total() <= free {
            return Ok(());
        }
        Err(LoadError::OutOfMemoryGpu {
            needed: self.total(),
            available: free,
            weights: self.weights,
            kv_cache: self.kv_cache,
            headroom: self.headroom,
            context: self.context,
        })
    }

    fn check(&self, limit: Option<u64>) -> Result<(), LoadError> {
        match limit {
            Some(available) if self.total() > available => Err(LoadError::OutOfMemoryHost {
                needed: self.total(),
                available,
                weights: self.weights,
                kv_cache: self.kv_cache,
                headroom: self.headroom,
                context: self.context,
            }),
            _ => Ok(()),
        }
    }
}

/// What is held beside the weights while they are loaded: one tensor is hashed while the next is read and packed.
pub(super) fn while_loading(inventory: &Inventory) -> u64 {
    let (mut largest, mut second) = (0, 0);
    for entry in inventory.entries() {
        let bytes = entry.range.len() as u64;
        second = second.max(bytes.min(largest));
        largest = largest.max(bytes);
    }
    largest.saturating_add(second)
}

/// Refuses a model that does not fit into the process's memory, or into the device's, of which `free` bytes are left
/// when it has one of its own. `weights` and `loading` are as in [`Need`].
pub(super) fn check(
    spec: &ModelSpec,
    options: &LoadOptions,
    (weights, loading): (u64, u64),
    free: Option<u64>,
) -> Result<(), LoadError> {
    let cache = (context_to_fit(spec, options.max_context), options.kv_type);
    let need = Need::new(spec, weights, loading, cache);
    let Some(free) = free else {
        return need.check(options.memory_limit);
    };
    let process = Need {
        weights: 0,
        kv_cache: 0,
        headroom: PROCESS.saturating_add(loading),
        context: 0,
    };
    process.check(options.memory_limit)?;
    let device = Need {
        headroom: activations(spec),
        ..need
    };
    device.check_device(free)
}

/// The tokens whose keys and values must fit.
pub(super) fn context_to_fit(spec: &ModelSpec, requested: Option<usize>) -> usize {
    match requested {
        Some(_) => spec.context,
        None => spec.context.min(CONTEXT_TO_FIT),
    }
}

/// Buffers of one step with all its rows (the stream, the projections, both halves of the feed-forward block), and
/// the scores of attention.
fn activations(spec: &ModelSpec) -> u64 {
    let width = 4 * spec.hidden + 3 * spec.feed_forward + 3 * spec.heads * spec.head_size;
    let rows = crate::model::decoder::MAX_STEP_ROWS;
    4 * (rows * width + 2 * spec.vocabulary) as u64 + (64 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec() -> ModelSpec {
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 32, "hidden_size": 4096,
            "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14_336,
            "vocab_size": 128_256, "max_position_embeddings": 131_072,
        });
        ModelSpec::from_config("config.json", &config).unwrap()
    }

    #[test]
    fn too_little_memory_is_said_with_all_numbers() {
        let cache = (context_to_fit(&spec(), None), KvType::F16);
        let need = Need::new(&spec(), 5_000_000_000, 600_000_000, cache);
        assert_eq!(need.kv_cache, 4096 * 131_072);
        let error = need.check(Some(4_000_000_000)).unwrap_err();
        assert_eq!(error.reason(), "OutOfMemoryHost");
        let text = error.to_string();
        for number in [need.total(), need.kv_cache, need.headroom, 5_000_000_000, 4_000_000_000] {
            assert!(text.contains(&number.to_string()), "{text}");
        }
        assert!(need.check(Some(need.total())).is_ok());
        assert!(need.check(None).is_ok());
    }

    #[test]
    fn device_with_memory_of_its_own_holds_the_weights_and_the_process_what_is_read() {
        let options = LoadOptions {
            memory_limit: Some(2_000_000_000),
            ..LoadOptions::default()
        };
        let fits = |loading, device| {
            let sizes = (16_000_000_000, loading);
            check(&spec(), &options, sizes, device).map_err(|error| (error.reason(), error.to_string()))
        };
        assert_eq!(fits(1_000_000_000, Some(20_000_000_000)), Ok(()));
        assert_eq!(fits(1_000_000_000, None).unwrap_err().0, "OutOfMemoryHost");
        assert_eq!(
            fits(3_000_000_000, Some(20_000_000_000)).unwrap_err().0,
            "OutOfMemoryHost"
        );
        let (reason, text) = fits(1_000_000_000, Some(16_000_000_000)).unwrap_err();
        assert_eq!(reason, "OutOfMemoryGpu");
        let cache = (4096 * 131_072_u64).to_string();
        for number in ["16000000000 for weights", "16000000000 are free", &cache] {
            assert!(text.contains(number), "{text}");
        }
    }

    #[test]
    fn an_explicit_context_must_fit_whole() {
        let mut spec = spec();
        spec.context = 100_000;
        assert_eq!(context_to_fit(&spec, Some(100_000)), 100_000);
        assert_eq!(context_to_fit(&spec, None), CONTEXT_TO_FIT);
    }
}
