//! A folder as Hugging Face's libraries write it: `config.json`, `tokenizer.json`, and weights in one or more
//! safetensors files.

use super::fp8::{self, BlockSize};
use super::inventory::{Entry, FUSED_ATTENTION, FUSED_FEED_FORWARD, Inventory, Names, Part, Placed, Slot};
use super::memory;
use super::names::{layer_slots, part_name};
use super::pack::{self, Packed};
use super::{
    Facts, cause, defaults, has_extension, limit_context, main_type, open_all, parameters, read_side_file,
    read_template,
};
use crate::backend::Backend;
use crate::model::decoder::{Decoder, Weights};
use crate::model::spec::ModelSpec;
use crate::model::template::ChatTemplate;
use crate::model::tokenizer::Tokenizer;
use crate::model::{Format, LoadError, LoadOptions, Loaded, Pooling};
use crate::requirements;
use escadre_verify::license;
use escadre_verify::structure::gguf::TensorType;
use escadre_verify::structure::safetensors::{DataType, TensorInfo};
use escadre_verify::structure::{index, json, safetensors};
use escadre_verify::{Reading, Reason, Refusal, VerifiedModel};
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
    let template_digest = template.as_ref().map(ChatTemplate::digest);
    let licenses = license::find(model, None)?;
    options.requirements.check(&requirements::Facts {
        format: Format::Safetensors,
        template_digest: template_digest.as_deref(),
        licenses: &licenses,
    })?;

    let shards = shards(model)?;
    let mut readings = open_all(model, shards.files.iter())?;
    let block = BlockSize::of(&config["quantization_config"]);
    let weights = load_weights((&mut readings, &shards, block), &spec, options, &backend, progress);
    let (inventory, weights) = weights.map_err(|error| cause(&mut readings, error))?;
    let facts = Facts {
        format: Format::Safetensors,
        spec: &spec,
        kv_type: options.kv_type,
        parameters: parameters(&inventory),
        quantization: main_type(&inventory, options.quantize),
        weights_bytes: pack::resident_bytes(&backend, &inventory, &spec, options.quantize),
        template_digest,
        licenses,
    };
    let description = facts.describe();
    Ok(Loaded {
        description,
        generation: defaults::from_config(&config, &side.generation, &tokenizer),
        tokenizer,
        template,
        decoder: Decoder::new(backend, &spec, weights),
        pooling: Pooling::from_config(&side.pooling),
    })
}

/// Loads from files that are hashed while they are read; returns when all of them were found to be the right ones.
fn load_weights<B: Backend>(
    (readings, shards, block): (&mut [Reading], &Shards, Option<BlockSize>),
    spec: &ModelSpec,
    options: &LoadOptions,
    backend: &B,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(Inventory, Weights<B>), LoadError> {
    let mut files = Vec::with_capacity(readings.len());
    for reading in &mut *readings {
        let tensors = header(reading, shards)?;
        files.push(entries(reading, tensors, block)?);
    }
    let names: Vec<_> = readings.iter().map(|reading| reading.name().to_owned()).collect();
    let (inventory, placed) = inventory(names.iter().zip(files), spec)?;
    let sizes = (
        pack::resident_bytes(backend, &inventory, spec, options.quantize),
        memory::while_loading(&inventory),
    );
    memory::check(spec, options, sizes, backend.free_memory())?;
    let mut packed = Packed::new(options.quantize);
    let total = readings.iter().map(Reading::bytes).sum();
    let mut before = 0;
    for (reading, placed) in readings.iter_mut().zip(&placed) {
        packed.add_file(backend, reading, placed, spec, &mut |done| {
            progress(before + done, total);
        })?;
        before += reading.bytes();
    }
    Ok((inventory, packed.assemble(spec)?))
}

fn header(reading: &mut Reading, shards: &Shards) -> Result<Vec<TensorInfo>, Refusal> {
    let file = reading.name().to_owned();
    let tensors = reading.header(|front, length| safetensors::parse_front(&file, front, length))?;
    shards.check(&file, &tensors)?;
    Ok(tensors)
}

/// Checks that all weights are there. Returns them, and those of every file.
fn inventory<'a>(
    files: impl Iterator<Item = (&'a String, Vec<Entry>)>,
    spec: &ModelSpec,
) -> Result<(Inventory, Vec<Placed>), Refusal> {
    let names = HfNames::new(spec);
    let mut inventory = Inventory::default();
    let mut placed = Vec::new();
    for (file, weights) in files {
        placed.push(inventory.add(file, weights, &names, spec)?);
    }
    if spec.tied {
        // A head beside a tied embedding is a copy of it.
        inventory.leave_out(Slot::Head);
        for placed in &mut placed {
            placed.retain(|(slot, _)| *slot != Slot::Head);
        }
    }
    inventory.check_complete(&names, spec)?;
    Ok((inventory, placed))
}

/// All headers of a model, for a look at it without loading.
pub(super) struct Contents {
    pub(super) config: Value,
    pub(super) tensors: Vec<TensorInfo>,
    /// Every file and its weights, or what is wrong with one of them.
    weights: Result<Vec<(String, Vec<Entry>)>, Refusal>,
}

pub(super) fn contents(model: &VerifiedModel) -> Result<Contents, Refusal> {
    let config = read_json(model, CONFIG, Reason::ConfigInvalid)?;
    let shards = shards(model)?;
    let block = BlockSize::of(&config["quantization_config"]);
    let mut tensors = Vec::new();
    let mut weights = Ok(Vec::new());
    for mut reading in open_all(model, shards.files.iter())? {
        let found = header(&mut reading, &shards);
        let entries = found.clone().and_then(|found| entries(&mut reading, found, block));
        reading.finish()?;
        weights = weights.and_then(|mut weights| {
            weights.push((reading.name().to_owned(), entries?));
            Ok(weights)
        });
        tensors.extend(found?);
    }
    Ok(Contents {
        config,
        tensors,
        weights,
    })
}

impl Contents {
    pub(super) fn inventory(self, spec: &ModelSpec) -> Result<Inventory, Refusal> {
        let weights = self.weights?;
        let (files, entries): (Vec<_>, Vec<_>) = weights.into_iter().unzip();
        inventory(files.iter().zip(entries), spec).map(|(inventory, _)| inventory)
    }
}

/// The weight files, and which of them must have which tensor.
struct Shards {
    files: BTreeSet<String>,
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
    let names = model.files().map(|(name, _)| name);
    let mut files: BTreeSet<_> = names
        .filter(|name| has_extension(name, "safetensors"))
        .map(str::to_owned)
        .collect();
    if model.contains(INDEX) {
        let index = index::parse(INDEX, &read_side_file(model, INDEX)?, |shard| files.contains(shard))?;
        let listed = index.shards();
        files.retain(|name| listed.contains(name.as_str()));
        return Ok(Shards {
            files,
            weight_map: Some(index.weight_map),
        });
    }
    match files.len() {
        1 => Ok(Shards {
            files,
            weight_map: None,
        }),
        _ => Err(Refusal::new(
            Reason::IndexInvalid,
            format!("there are several safetensors files, but no {INDEX} that says what they hold"),
        )
        .values(format!("{INDEX} or only {SINGLE}"), format!("{} files", files.len()))),
    }
}

/// The tensors of a file. Those that hold the scales of others become part of them.
fn entries(reading: &mut Reading, tensors: Vec<TensorInfo>, block: Option<BlockSize>) -> Result<Vec<Entry>, Refusal> {
    let quantised = tensors.iter().filter(|tensor| tensor.kind == DataType::F8E4M3);
    let scales: BTreeSet<_> = quantised.map(|tensor| fp8::scales_name(&tensor.name)).collect();
    let (scales, tensors): (Vec<_>, Vec<_>) = tensors.into_iter().partition(|tensor| scales.contains(&tensor.name));
    let mut entry = |tensor: TensorInfo| {
        if tensor.kind != DataType::F8E4M3 {
            return entry(reading.name(), tensor);
        }
        let name = fp8::scales_name(&tensor.name);
        let scales = scales.iter().find(|scales| scales.name == name);
        fp8::entry(reading, tensor, scales, block)
    };
    tensors.into_iter().map(&mut entry).collect()
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
