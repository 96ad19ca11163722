//! A GGUF file, or several that are parts of one model: weights, vocabulary and chat template in one.

use super::inventory::{
    Entry, FUSED_ATTENTION, FUSED_ATTENTION_BIAS, FUSED_FEED_FORWARD, Inventory, Names, Part, Placed, Slot,
};
use super::memory;
use super::names::{layer_slots, part_name};
use super::pack::{self, Packed};
use super::{Facts, cause, defaults, limit_context, main_type, open_all, parameters, read_template, split};
use crate::backend::Backend;
use crate::model::decoder::Decoder;
use crate::model::spec::{ModelSpec, RopeFactors};
use crate::model::template::ChatTemplate;
use crate::model::tokenizer::Tokenizer;
use crate::model::{Format, LoadError, LoadOptions, Loaded, Pooling};
use crate::requirements;
use escadre_verify::license;
use escadre_verify::structure::gguf::{Gguf, TensorInfo, Value, parse_front};
use escadre_verify::{Reading, Reason, Refusal, VerifiedModel};

/// Divisors for every pair of a head, instead of a rule in the metadata.
const ROPE_DIVISORS: &str = "rope_freqs.weight";
const ROPE_SHORT: &str = "rope_factors_short.weight";
const ROPE_LONG: &str = "rope_factors_long.weight";
/// A template beside the file replaces the one inside.
const TEMPLATE_FILE: &str = "chat_template.jinja";

pub(super) fn load<B: Backend + 'static>(
    model: &VerifiedModel,
    files: &[String],
    options: &LoadOptions,
    backend: B,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Loaded, LoadError> {
    check_overlay(model)?;
    let mut readings = open_all(model, files)?;
    let loaded = load_from(model, &mut readings, options, backend, progress);
    loaded.map_err(|error| cause(&mut readings, error))
}

/// Loads from files that are hashed while they are read; returns when all of them were found to be the right ones.
fn load_from<B: Backend + 'static>(
    model: &VerifiedModel,
    readings: &mut [Reading],
    options: &LoadOptions,
    backend: B,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Loaded, LoadError> {
    let Headers { files, spec } = Headers::read(readings)?;
    let mut spec = spec?;
    limit_context(&mut spec, options)?;
    let (inventory, placed) = inventory(&files, &spec)?;
    let (first, gguf) = files.first().ok_or_else(no_files)?;
    pack::check_types(&backend, first, &inventory)?;
    let weights_bytes = pack::resident_bytes(&backend, &inventory, &spec, options.quantize);
    let sizes = (weights_bytes, memory::while_loading(&inventory));
    memory::check(&spec, options, sizes, backend.free_memory())?;
    let tokenizer = tokenizer(first, gguf, &spec)?;
    let template = template(model, first, gguf, &tokenizer)?;
    let template_digest = template.as_ref().map(ChatTemplate::digest);
    let licenses = license::find(model, Some((first, gguf)))?;
    options.requirements.check(&requirements::Facts {
        format: Format::Gguf,
        template_digest: template_digest.as_deref(),
        licenses: &licenses,
    })?;

    let mut packed = Packed::new(options.quantize);
    let total = readings.iter().map(Reading::bytes).sum();
    let mut before = 0;
    for (reading, placed) in readings.iter_mut().zip(&placed) {
        packed.add_file(&backend, reading, placed, &spec, &mut |done| {
            progress(before + done, total);
        })?;
        before += reading.bytes();
    }
    let facts = Facts {
        format: Format::Gguf,
        spec: &spec,
        kv_type: options.kv_type,
        parameters: parameters(&inventory),
        quantization: main_type(&inventory, options.quantize),
        weights_bytes,
        template_digest,
        licenses,
    };
    let description = facts.describe();
    let weights = packed.assemble(&spec)?;
    Ok(Loaded {
        description,
        generation: defaults::from_gguf(gguf, &tokenizer),
        pooling: Pooling::from_gguf(gguf.get(&format!("{}.pooling_type", spec.architecture))),
        tokenizer,
        template,
        decoder: Decoder::new(backend, &spec, weights),
    })
}

/// The headers of a model's files, in their order. Only the first has metadata.
pub(super) struct Headers {
    /// Every file and its header.
    pub(super) files: Vec<(String, Gguf)>,
    /// What the first one says the model is.
    pub(super) spec: Result<ModelSpec, LoadError>,
}

impl Headers {
    fn read(readings: &mut [Reading]) -> Result<Self, Refusal> {
        let count = readings.len();
        let mut files = Vec::with_capacity(count);
        for (index, reading) in readings.iter_mut().enumerate() {
            let name = reading.name().to_owned();
            let gguf = reading.header(|front, length| parse_front(&name, front, length))?;
            split::check(&name, &gguf, index, count)?;
            files.push((name, gguf));
        }
        let first = readings.first_mut().ok_or_else(no_files)?;
        let spec = specification(first, &files);
        Ok(Self { files, spec })
    }
}

fn no_files() -> Refusal {
    Refusal::new(Reason::ManifestEmpty, "the model has no files")
}

fn specification(first: &mut Reading, files: &[(String, Gguf)]) -> Result<ModelSpec, LoadError> {
    let (file, gguf) = files.first().ok_or_else(no_files)?;
    let vocabulary = vocabulary(files)?;
    let mut factors = |name| factors(first, gguf, name);
    let factors = RopeFactors {
        always: factors(ROPE_DIVISORS)?,
        short: factors(ROPE_SHORT)?,
        long: factors(ROPE_LONG)?,
    };
    ModelSpec::from_gguf(file, gguf, vocabulary, factors)
}

/// Everything but the weights, for a look at a model without loading it.
pub(super) fn headers(model: &VerifiedModel, names: &[String]) -> Result<Headers, Refusal> {
    let mut readings = open_all(model, names)?;
    let headers = Headers::read(&mut readings);
    for reading in &mut readings {
        reading.finish()?;
    }
    headers
}

/// Checks that all weights are there. Returns them, and those of every file.
pub(super) fn inventory(headers: &[(String, Gguf)], spec: &ModelSpec) -> Result<(Inventory, Vec<Placed>), Refusal> {
    let names = GgufNames::new(spec);
    let mut inventory = Inventory::default();
    let mut placed = Vec::with_capacity(headers.len());
    for (index, (file, gguf)) in headers.iter().enumerate() {
        let entries = if index == 0 {
            gguf.tensors.iter().map(entry).collect()
        } else {
            later_entries(file, gguf)?
        };
        placed.push(inventory.add(file, entries, &names, spec)?);
    }
    match (inventory.check_complete(&names, spec), headers) {
        (Err(refusal), [(file, _)]) => Err(refusal.in_file(file)),
        (complete, _) => complete.map(|()| (inventory, placed)),
    }
}

/// Tensors of a part behind the first. What the specification needs was looked for in the first only.
fn later_entries(file: &str, gguf: &Gguf) -> Result<Vec<Entry>, Refusal> {
    match gguf.tensors.iter().find(|tensor| is_about_positions(&tensor.name)) {
        None => Ok(gguf.tensors.iter().map(entry).collect()),
        Some(tensor) => Err(Refusal::new(
            Reason::WeightsMismatch,
            format!("tensor {:?} must be in the first part of the model", tensor.name),
        )
        .in_file(file)),
    }
}

fn is_about_positions(name: &str) -> bool {
    matches!(name, ROPE_DIVISORS | ROPE_SHORT | ROPE_LONG)
}

/// A GGUF file has its configuration inside; a file that is laid over it without effect is refused.
fn check_overlay(model: &VerifiedModel) -> Result<(), Refusal> {
    match model.overlaid().find(|name| *name != TEMPLATE_FILE) {
        None => Ok(()),
        Some(name) => Err(Refusal::new(
            Reason::PathInvalid,
            format!(
                "a GGUF file has this configuration inside, and only {TEMPLATE_FILE} can be laid over it; remove it"
            ),
        )
        .in_file(name)),
    }
}

/// Divisors of frequencies. Whether there are as many as pairs is checked with the specification.
fn factors(first: &mut Reading, gguf: &Gguf, name: &str) -> Result<Option<Vec<f32>>, Refusal> {
    let Some(tensor) = gguf.tensor(name) else {
        return Ok(None);
    };
    let entry = entry(tensor);
    let bytes = first.look(entry.range.clone())?;
    let values = pack::widen(&entry, &bytes).map_err(|refusal| refusal.in_file(first.name()))?;
    Ok(Some(values))
}

/// The rows of the embedding, which is in the first part or in one of the later ones.
fn vocabulary(files: &[(String, Gguf)]) -> Result<usize, Refusal> {
    let name = "token_embd.weight";
    let (first, gguf) = files.first().ok_or_else(no_files)?;
    let architecture = gguf.get("general.architecture").and_then(Value::as_str);
    if !architecture.is_some_and(crate::model::spec::is_supported_gguf) {
        // It may have no embedding; its error comes with the specification.
        return Ok(1);
    }
    let found = files
        .iter()
        .find_map(|(file, gguf)| Some((file, gguf.tensor(name)?.dims.as_slice())));
    match found {
        Some((_, &[_, rows])) => Ok(rows),
        Some((file, dims)) => Err(Refusal::new(
            Reason::WeightsMismatch,
            format!("tensor {name:?} has the wrong shape"),
        )
        .in_file(file)
        .values("2 dimensions", format!("{dims:?}"))),
        None => Err(Refusal::new(Reason::WeightsMismatch, format!("the model lacks tensors: {name}")).in_file(first)),
    }
}

fn entry(tensor: &TensorInfo) -> Entry {
    Entry {
        name: tensor.name.clone(),
        shape: tensor.dims.iter().rev().copied().collect(),
        kind: tensor.kind,
        range: tensor.range.clone(),
        scales: None,
    }
}

/// The tokenizer, whose every token must have an embedding.
pub(super) fn tokenizer(file: &str, gguf: &Gguf, spec: &ModelSpec) -> Result<Tokenizer, Refusal> {
    let tokenizer = Tokenizer::from_gguf(file, gguf)?;
    if tokenizer.vocabulary() > spec.vocabulary {
        return Err(Refusal::new(
            Reason::TokenizerInvalid,
            "there are more tokens than rows of the embedding",
        )
        .in_file(file)
        .values(format!("at most {}", spec.vocabulary), tokenizer.vocabulary()));
    }
    Ok(tokenizer)
}

fn template(
    model: &VerifiedModel,
    file: &str,
    gguf: &Gguf,
    tokenizer: &Tokenizer,
) -> Result<Option<ChatTemplate>, Refusal> {
    let inside = gguf.get("tokenizer.chat_template").and_then(Value::as_str);
    let (name, text) = if model.contains(TEMPLATE_FILE) {
        (TEMPLATE_FILE, read_template(model, TEMPLATE_FILE)?)
    } else if let Some(text) = inside {
        (file, text.to_owned())
    } else {
        return Ok(None);
    };
    ChatTemplate::new(name, &text, tokenizer.begin_text(), tokenizer.end_text()).map(Some)
}

/// The names that all architectures have in common.
struct GgufNames {
    /// The gate is in front of what has its name alone elsewhere.
    has_gate_in_up: bool,
}

const PARTS: [(&str, Part); 20] = [
    ("attn_norm.weight", Part::AttentionNorm),
    ("attn_q.weight", Part::Query),
    ("attn_k.weight", Part::Key),
    ("attn_v.weight", Part::Value),
    ("attn_output.weight", Part::Output),
    ("ffn_norm.weight", Part::FeedForwardNorm),
    ("ffn_gate.weight", Part::Gate),
    ("ffn_up.weight", Part::Up),
    ("ffn_down.weight", Part::Down),
    ("attn_q.bias", Part::QueryBias),
    ("attn_k.bias", Part::KeyBias),
    ("attn_v.bias", Part::ValueBias),
    ("attn_output.bias", Part::OutputBias),
    ("ffn_gate.bias", Part::GateBias),
    ("ffn_up.bias", Part::UpBias),
    ("ffn_down.bias", Part::DownBias),
    ("attn_q_norm.weight", Part::QueryNorm),
    ("attn_k_norm.weight", Part::KeyNorm),
    ("post_attention_norm.weight", Part::PostAttentionNorm),
    ("post_ffw_norm.weight", Part::PostFeedForwardNorm),
];

impl GgufNames {
    fn new(spec: &ModelSpec) -> Self {
        Self {
            has_gate_in_up: spec.architecture == "phi3",
        }
    }

    fn parts(&self, name: &str) -> Vec<Part> {
        match name {
            "attn_qkv.weight" => FUSED_ATTENTION.to_vec(),
            "attn_qkv.bias" => FUSED_ATTENTION_BIAS.to_vec(),
            "ffn_up.weight" if self.has_gate_in_up => FUSED_FEED_FORWARD.to_vec(),
            _ => PARTS.iter().filter(|part| part.0 == name).map(|part| part.1).collect(),
        }
    }
}

impl Names for GgufNames {
    fn name(&self, slot: Slot) -> String {
        match slot {
            Slot::Embedding => "token_embd.weight".to_owned(),
            Slot::Norm => "output_norm.weight".to_owned(),
            Slot::Head => "output.weight".to_owned(),
            Slot::Layer(index, Part::Gate) if self.has_gate_in_up => format!("blk.{index}.ffn_up.weight"),
            Slot::Layer(index, part) => format!("blk.{index}.{}", part_name(&PARTS, part)),
        }
    }

    fn slots(&self, name: &str) -> Vec<Slot> {
        match name {
            "token_embd.weight" => vec![Slot::Embedding],
            "output_norm.weight" => vec![Slot::Norm],
            "output.weight" => vec![Slot::Head],
            _ => name
                .strip_prefix("blk.")
                .map_or_else(Vec::new, |rest| layer_slots(rest, &|name| self.parts(name))),
        }
    }

    fn is_ignored(&self, name: &str) -> bool {
        is_about_positions(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_slots_are_inverse() {
        let names = GgufNames { has_gate_in_up: false };
        let slots = PARTS.iter().map(|&(_, part)| Slot::Layer(17, part));
        for slot in slots.chain([Slot::Embedding, Slot::Norm, Slot::Head]) {
            assert_eq!(names.slots(&names.name(slot)), [slot]);
        }
        for name in [
            "blk.07.attn_q.weight",
            "blk.+7.attn_q.weight",
            "blk.x.attn_q.weight",
            "blk.1.other",
            "",
        ] {
            assert_eq!(names.slots(name), [], "{name}");
        }
    }

    #[test]
    fn fused_tensors_have_several_slots() {
        let names = GgufNames { has_gate_in_up: true };
        let slots = |parts: &[Part]| parts.iter().map(|&part| Slot::Layer(2, part)).collect::<Vec<_>>();
        assert_eq!(names.slots("blk.2.ffn_up.weight"), slots(&FUSED_FEED_FORWARD));
        assert_eq!(names.slots("blk.2.attn_qkv.weight"), slots(&FUSED_ATTENTION));
        assert_eq!(names.slots("blk.2.attn_qkv.bias"), slots(&FUSED_ATTENTION_BIAS));
    }
}
