//! A folder as Hugging Face's libraries write it: `config.json`, `tokenizer.json`, and weights in one or more
//! safetensors files.

use super::fp8::{self, BlockSize};
use super::inventory::{Entry, FUSED_ATTENTION, FUSED_FEED_FORWARD, Inventory, Names, Part, Slot};
use super::memory::{self, Sizes};
use super::names::{layer_slots, part_name};
use super::pack::{self, Packed};
use super::{Facts, defaults, has_extension, limit_context, main_type, parameters, read_side_file, read_template};
use crate::backend::Backend;
use crate::model::decoder::Decoder;
use crate::model::spec::{ModelSpec, Presence};
use crate::model::template::ChatTemplate;
use crate::model::tokenizer::Tokenizer;
use crate::model::{Format, LoadError, LoadOptions, Loaded, Pooling};
use escadre_verify::structure::gguf::TensorType;
use escadre_verify::structure::safetensors::{DataType, TensorInfo};
use escadre_verify::structure::{index, json, safetensors};
use escadre_verify::{Reason, Refusal, VerifiedModel};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

pub(super) const CONFIG: &str = "config.json";
const GENERATION: &str = "generation_config.json";
const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const TEMPLATE: &str = "chat_template.jinja";
const SINGLE: &str = "model.safetensors";
/// How Sentence Transformers makes the vector of a text.
const POOLING: &str = "1_Pooling/config.json";
const INDEX: &str = "model.safetensors.index.json";

pub(super) fn load<B: Backend + 'static>(
    model: &VerifiedModel,
    options: &LoadOptions,
    backend: B,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Loaded, LoadError> {
    let config = read_json(model, CONFIG, Reason::ConfigInvalid)?;
    let mut spec = ModelSpec::from_config(CONFIG, &config)?;
    limit_context(&mut spec, options)?;
    let shards = shards(model)?;
    check_memory(&backend, &spec, options, &shards)?;

    let side = side_files(model)?;
    let tokenizer = Tokenizer::from_json(TOKENIZER, &read_side_file(model, TOKENIZER)?, &side.tokenizer)?;
    if tokenizer.vocabulary() > spec.vocabulary {
        return Err(Refusal::new(
            Reason::TokenizerInvalid,
            "there are more tokens than rows of the embedding",
        )
        .in_file(TOKENIZER)
        .values(format!("at most {}", spec.vocabulary), tokenizer.vocabulary())
        .into());
    }
    let template = side.template(&tokenizer)?;

    let mut loading = Loading {
        model,
        backend: &backend,
        spec: &spec,
        names: HfNames::new(&spec),
        block: BlockSize::of(&config["quantization_config"]),
        inventory: Inventory::default(),
        packed: Packed::new(options.quantize),
    };
    loading.shards(&shards, progress)?;
    let Loading {
        inventory,
        packed,
        names,
        ..
    } = loading;
    inventory.check_complete(&names, &spec)?;
    let facts = Facts {
        format: Format::Safetensors,
        spec: &spec,
        kv_type: options.kv_type,
        parameters: parameters(&inventory),
        quantization: main_type(&inventory, options.quantize),
        weights_bytes: pack::resident_bytes(&backend, &inventory, &spec, options.quantize),
        template_digest: template.as_ref().map(ChatTemplate::digest),
    };
    let description = facts.describe();
    let weights = packed.assemble(&spec)?;
    Ok(Loaded {
        description,
        generation: defaults::from_config(&config, &side.generation, &tokenizer),
        tokenizer,
        template,
        decoder: Decoder::new(backend, &spec, weights),
        pooling: Pooling::from_config(&side.pooling),
    })
}

/// All headers of a model, for a look at it without loading.
pub(super) struct Contents {
    pub(super) config: Value,
    pub(super) tensors: Vec<TensorInfo>,
    /// Every file and its weights, or what is wrong with one of them.
    weights: Result<Vec<(String, Vec<Entry>)>, Refusal>,
    /// Bytes of the largest file.
    pub(super) largest: u64,
}

pub(super) fn contents(model: &VerifiedModel) -> Result<Contents, Refusal> {
    let config = read_json(model, CONFIG, Reason::ConfigInvalid)?;
    let shards = shards(model)?;
    let block = BlockSize::of(&config["quantization_config"]);
    let mut tensors = Vec::new();
    let mut weights = Ok(Vec::new());
    for file in shards.files.keys() {
        let bytes = model.read(file)?;
        let found = safetensors::parse(file, &bytes)?;
        shards.check(file, &found)?;
        weights = weights.and_then(|mut weights| {
            weights.push((file.clone(), entries(file, &bytes, found.clone(), block)?));
            Ok(weights)
        });
        tensors.extend(found);
    }
    let largest = shards.files.values().copied().max().unwrap_or(0);
    Ok(Contents {
        config,
        tensors,
        weights,
        largest,
    })
}

impl Contents {
    pub(super) fn inventory(self, spec: &ModelSpec) -> Result<Inventory, Refusal> {
        let names = HfNames::new(spec);
        let mut inventory = Inventory::default();
        for (file, weights) in self.weights? {
            inventory.add(&file, weights, &names, spec)?;
        }
        inventory.check_complete(&names, spec)?;
        Ok(inventory)
    }
}

/// Shards one after the other: only one is in memory beside what is packed.
struct Loading<'a, B: Backend> {
    model: &'a VerifiedModel,
    backend: &'a B,
    spec: &'a ModelSpec,
    names: HfNames,
    block: Option<BlockSize>,
    inventory: Inventory,
    packed: Packed<B>,
}

impl<B: Backend> Loading<'_, B> {
    fn shards(&mut self, shards: &Shards, progress: &mut dyn FnMut(u64, u64)) -> Result<(), LoadError> {
        let total = shards.files.values().sum();
        let mut before = 0;
        for (file, size) in &shards.files {
            let bytes = self
                .model
                .read_with(file, &mut |done, _| progress(before + done / 2, total))?;
            let tensors = safetensors::parse(file, &bytes)?;
            shards.check(file, &tensors)?;
            let entries = entries(file, &bytes, tensors, self.block)?;
            let mut placed = self.inventory.add(file, entries, &self.names, self.spec)?;
            // A head beside a tied embedding is a copy of it.
            placed.retain(|(slot, _)| !(self.spec.tied && *slot == Slot::Head));
            let mut done = before + size / 2;
            self.packed
                .add_file(self.backend, bytes, &placed, self.spec, &mut |bytes| {
                    done += bytes / 2;
                    progress(done, total);
                })?;
            before += size;
            progress(before, total);
        }
        Ok(())
    }
}

/// The weight files, and which of them must have which tensor.
struct Shards {
    files: BTreeMap<String, u64>,
    weight_map: Option<BTreeMap<String, String>>,
}

impl Shards {
    /// A shard must have exactly the tensors that the index says.
    fn check(&self, file: &str, tensors: &[TensorInfo]) -> Result<(), Refusal> {
        let Some(map) = &self.weight_map else {
            return Ok(());
        };
        let refuse = |message| Err(Refusal::new(Reason::IndexInvalid, message).in_file(file));
        for tensor in tensors {
            if map.get(&tensor.name).map(String::as_str) != Some(file) {
                return refuse(format!("tensor {:?} is not where the index says", tensor.name));
            }
        }
        let expected = map.values().filter(|shard| *shard == file).count();
        if expected != tensors.len() {
            return refuse(format!(
                "the shard has {} tensors, the index names {expected}",
                tensors.len()
            ));
        }
        Ok(())
    }
}

fn shards(model: &VerifiedModel) -> Result<Shards, Refusal> {
    let sizes: BTreeMap<_, _> = model
        .files()
        .filter(|(name, _)| has_extension(name, "safetensors"))
        .map(|(name, size)| (name.to_owned(), size))
        .collect();
    if model.contains(INDEX) {
        let index = index::parse(INDEX, &read_side_file(model, INDEX)?, |shard| sizes.contains_key(shard))?;
        let named = index.shards();
        let files = sizes.iter().filter(|(name, _)| named.contains(name.as_str()));
        return Ok(Shards {
            files: files.map(|(name, size)| (name.clone(), *size)).collect(),
            weight_map: Some(index.weight_map),
        });
    }
    match sizes.len() {
        1 => Ok(Shards {
            files: sizes,
            weight_map: None,
        }),
        _ => Err(Refusal::new(
            Reason::IndexInvalid,
            format!("there are several safetensors files, but no {INDEX} that says what they hold"),
        )
        .values(format!("{INDEX} or only {SINGLE}"), format!("{} files", sizes.len()))),
    }
}

/// The specification says how many numbers there are, so the memory is known before a shard is read.
fn check_memory<B: Backend>(
    backend: &B,
    spec: &ModelSpec,
    options: &LoadOptions,
    shards: &Shards,
) -> Result<(), LoadError> {
    let largest = shards.files.values().copied().max().unwrap_or(0);
    let parts = Part::ALL
        .into_iter()
        .filter(|part| part.presence(spec) == Presence::Present);
    let layer: u64 = parts.map(|part| Slot::Layer(0, part).shape(spec).elements()).sum();
    let layers = layer.saturating_mul(spec.layers.len() as u64);
    let tables = (spec.vocabulary * spec.hidden) as u64 * if spec.tied { 1 } else { 2 };
    let elements = layers.saturating_add(tables);
    let total: u64 = shards.files.values().sum();
    // Files of one byte per weight become numbers of 16 bits.
    let stored = if total / 3 > elements {
        TensorType::F32
    } else {
        TensorType::Bf16
    };
    let held = options
        .quantize
        .map_or(stored, |quantize| quantize.held(stored, spec.hidden));
    memory::check(
        spec,
        options,
        &Sizes {
            weights: backend.resident_bytes(held, elements),
            twice: largest,
            file: largest,
            device: backend.free_memory(),
        },
    )
}

/// The tensors of a file. Those that hold the scales of others become part of them.
fn entries(
    file: &str,
    bytes: &[u8],
    tensors: Vec<TensorInfo>,
    block: Option<BlockSize>,
) -> Result<Vec<Entry>, Refusal> {
    let quantised = tensors.iter().filter(|tensor| tensor.kind == DataType::F8E4M3);
    let scales: BTreeSet<_> = quantised.map(|tensor| fp8::scales_name(&tensor.name)).collect();
    let (scales, tensors): (Vec<_>, Vec<_>) = tensors.into_iter().partition(|tensor| scales.contains(&tensor.name));
    let entry = |tensor: TensorInfo| {
        if tensor.kind != DataType::F8E4M3 {
            return entry(file, tensor);
        }
        let name = fp8::scales_name(&tensor.name);
        let scales = scales.iter().find(|scales| scales.name == name);
        fp8::entry(file, bytes, tensor, scales, block)
    };
    tensors.into_iter().map(entry).collect()
}

fn entry(file: &str, tensor: TensorInfo) -> Result<Entry, Refusal> {
    let kind = match tensor.kind {
        DataType::F32 => TensorType::F32,
        DataType::F16 => TensorType::F16,
        DataType::Bf16 => TensorType::Bf16,
        other => {
            return Err(Refusal::new(
                Reason::WeightsMismatch,
                format!("tensor {:?} has a type that cannot be computed with", tensor.name),
            )
            .in_file(file)
            .values("F32, F16, BF16 or F8_E4M3", other));
        }
    };
    Ok(Entry {
        name: tensor.name,
        shape: tensor.shape,
        kind,
        range: tensor.range,
        scales: None,
    })
}

/// What stands beside the weights.
struct SideFiles {
    tokenizer: Value,
    generation: Value,
    pooling: Value,
    template: Option<(String, String)>,
}

impl SideFiles {
    fn template(&self, tokenizer: &Tokenizer) -> Result<Option<ChatTemplate>, Refusal> {
        let Some((file, text)) = &self.template else {
            return Ok(None);
        };
        ChatTemplate::new(file, text, tokenizer.begin_text(), tokenizer.end_text()).map(Some)
    }
}

fn side_files(model: &VerifiedModel) -> Result<SideFiles, Refusal> {
    let optional = |name, reason| {
        if model.contains(name) {
            read_json(model, name, reason)
        } else {
            Ok(Value::Null)
        }
    };
    let tokenizer = optional(TOKENIZER_CONFIG, Reason::TokenizerInvalid)?;
    let inside = template_in(&tokenizer);
    let beside = if model.contains(TEMPLATE) {
        Some(read_template(model, TEMPLATE)?)
    } else {
        None
    };
    let template = match (beside, inside) {
        // A template that was laid over the model wins; two of the model's own contradict each other.
        (Some(beside), Some(inside)) if beside != inside && !model.overlaid().any(|name| name == TEMPLATE) => {
            return Err(Refusal::new(
                Reason::TemplateRefused,
                format!("it differs from the template in {TOKENIZER_CONFIG}; leave one of the two files out"),
            )
            .in_file(TEMPLATE));
        }
        (Some(text), _) => Some((TEMPLATE.to_owned(), text)),
        (None, Some(text)) => Some((TOKENIZER_CONFIG.to_owned(), text)),
        (None, None) => None,
    };
    Ok(SideFiles {
        generation: optional(GENERATION, Reason::ConfigInvalid)?,
        pooling: optional(POOLING, Reason::ConfigInvalid)?,
        tokenizer,
        template,
    })
}

/// A text, or a list of named texts of which `default` counts.
fn template_in(config: &Value) -> Option<String> {
    match config.get("chat_template")? {
        Value::String(text) => Some(text.clone()),
        Value::Array(entries) => {
            let default = entries.iter().find(|entry| entry["name"] == "default")?;
            default["template"].as_str().map(str::to_owned)
        }
        _ => None,
    }
}

fn read_json(model: &VerifiedModel, name: &str, reason: Reason) -> Result<Value, Refusal> {
    if !model.contains(name) {
        return Err(Refusal::new(Reason::FileMissing, "the model needs this file beside its weights").in_file(name));
    }
    json::parse(&read_side_file(model, name)?)
        .map_err(|error| Refusal::new(reason, format!("it {error}")).in_file(name))
}

/// The names that Hugging Face's libraries have.
struct HfNames {
    parts: Vec<(&'static str, Part)>,
}

const PARTS: [(&str, Part); 17] = [
    ("input_layernorm.weight", Part::AttentionNorm),
    ("self_attn.q_proj.weight", Part::Query),
    ("self_attn.k_proj.weight", Part::Key),
    ("self_attn.v_proj.weight", Part::Value),
    ("self_attn.o_proj.weight", Part::Output),
    ("mlp.gate_proj.weight", Part::Gate),
    ("mlp.up_proj.weight", Part::Up),
    ("mlp.down_proj.weight", Part::Down),
    ("self_attn.q_proj.bias", Part::QueryBias),
    ("self_attn.k_proj.bias", Part::KeyBias),
    ("self_attn.v_proj.bias", Part::ValueBias),
    ("self_attn.o_proj.bias", Part::OutputBias),
    ("mlp.gate_proj.bias", Part::GateBias),
    ("mlp.up_proj.bias", Part::UpBias),
    ("mlp.down_proj.bias", Part::DownBias),
    ("self_attn.q_norm.weight", Part::QueryNorm),
    ("self_attn.k_norm.weight", Part::KeyNorm),
];

impl HfNames {
    /// A name means another norm in layers that have norms behind attention and feed-forward too.
    fn new(spec: &ModelSpec) -> Self {
        let norms: &[_] = if spec.norms.post {
            &[
                ("post_attention_layernorm.weight", Part::PostAttentionNorm),
                ("pre_feedforward_layernorm.weight", Part::FeedForwardNorm),
                ("post_feedforward_layernorm.weight", Part::PostFeedForwardNorm),
            ]
        } else {
            &[("post_attention_layernorm.weight", Part::FeedForwardNorm)]
        };
        Self {
            parts: [&PARTS, norms].concat(),
        }
    }
}

impl Names for HfNames {
    fn name(&self, slot: Slot) -> String {
        match slot {
            Slot::Embedding => "model.embed_tokens.weight".to_owned(),
            Slot::Norm => "model.norm.weight".to_owned(),
            Slot::Head => "lm_head.weight".to_owned(),
            Slot::Layer(index, part) => format!("model.layers.{index}.{}", part_name(&self.parts, part)),
        }
    }

    fn slots(&self, name: &str) -> Vec<Slot> {
        // Models that only make vectors are often stored without the first part of the names.
        match name.strip_prefix("model.").unwrap_or(name) {
            "embed_tokens.weight" => vec![Slot::Embedding],
            "norm.weight" => vec![Slot::Norm],
            "lm_head.weight" => vec![Slot::Head],
            name => name.strip_prefix("layers.").map_or_else(Vec::new, |rest| {
                layer_slots(rest, &|rest| match rest {
                    "self_attn.qkv_proj.weight" => FUSED_ATTENTION.to_vec(),
                    "mlp.gate_up_proj.weight" => FUSED_FEED_FORWARD.to_vec(),
                    _ => self
                        .parts
                        .iter()
                        .filter(|(name, _)| *name == rest)
                        .map(|part| part.1)
                        .collect(),
                })
            }),
        }
    }

    /// Old files carry the frequencies that follow from the configuration.
    fn is_ignored(&self, name: &str) -> bool {
        name.ends_with(".rotary_emb.inv_freq")
    }
}
