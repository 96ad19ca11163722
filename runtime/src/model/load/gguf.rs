//! A GGUF file, or several that are parts of one model: weights, vocabulary and chat template in one.

use super::inventory::{
    Entry, FUSED_ATTENTION, FUSED_ATTENTION_BIAS, FUSED_FEED_FORWARD, Inventory, Names, Part, Slot,
};
use super::memory::{self, Sizes};
use super::names::{layer_slots, part_name};
use super::pack::{self, Packed};
use super::{Facts, defaults, limit_context, main_type, parameters, read_template, split};
use crate::backend::Backend;
use crate::model::decoder::Decoder;
use crate::model::spec::{ModelSpec, RopeFactors};
use crate::model::template::ChatTemplate;
use crate::model::tokenizer::Tokenizer;
use crate::model::{Format, LoadError, LoadOptions, Loaded, Pooling};
use escadre_verify::structure::gguf::{Gguf, TensorInfo, Value};
use escadre_verify::{Reason, Refusal, VerifiedModel};

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
    let sizes: Vec<u64> = files.iter().map(|file| size(model, file)).collect();
    let total = sizes.iter().sum();
    memory::check_file(total, options.memory_limit)?;
    let mut progress = |done| progress(done, total);
    let first = FirstPart::read(model, files, &mut |done| progress(done / 2))?;

    let mut spec = first.specification(model, files)?;
    limit_context(&mut spec, options)?;
    let names = GgufNames::new(&spec);
    let mut inventory = Inventory::default();
    let placed = inventory.add(first.file, first.gguf.tensors.iter().map(entry), &names, &spec)?;
    if files.len() == 1 {
        inventory
            .check_complete(&names, &spec)
            .map_err(|refusal| refusal.in_file(first.file))?;
    }
    pack::check_types(&backend, first.file, &inventory)?;
    check_memory(&backend, &inventory, &spec, &sizes, options)?;
    let tokenizer = tokenizer(first.file, &first.gguf, &spec)?;
    let template = template(model, first.file, &first.gguf, &tokenizer)?;
    let generation = defaults::from_gguf(&first.gguf, &tokenizer);
    let pooling = Pooling::from_gguf(first.gguf.get(&format!("{}.pooling_type", spec.architecture)));

    let mut packed = Packed::new(options.quantize);
    let mut done = sizes[0] / 2;
    packed.add_file(&backend, first.bytes, &placed, &spec, &mut |bytes| {
        done += bytes / 2;
        progress(done);
    })?;
    let mut before = sizes[0];
    progress(before);
    for (index, file) in files.iter().enumerate().skip(1) {
        let bytes = model.read_with(file, &mut |done, _| progress(before + done / 2))?;
        let gguf = parse(file, &bytes, index, files.len())?;
        let placed = inventory.add(file, later_entries(file, &gguf)?, &names, &spec)?;
        pack::check_types(&backend, file, &inventory)?;
        let mut done = before + sizes[index] / 2;
        packed.add_file(&backend, bytes, &placed, &spec, &mut |bytes| {
            done += bytes / 2;
            progress(done);
        })?;
        before += sizes[index];
        progress(before);
    }
    inventory.check_complete(&names, &spec)?;
    let facts = Facts {
        format: Format::Gguf,
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
        tokenizer,
        template,
        decoder: Decoder::new(backend, &spec, weights),
        generation,
        pooling,
    })
}

fn size(model: &VerifiedModel, file: &str) -> u64 {
    let found = model.files().find(|(name, _)| *name == file);
    found.map_or(0, |(_, size)| size)
}

fn parse(file: &str, bytes: &[u8], index: usize, count: usize) -> Result<Gguf, Refusal> {
    let gguf = escadre_verify::structure::gguf::parse(file, bytes)?;
    split::check(file, &gguf, index, count)?;
    Ok(gguf)
}

/// The weights of a single file are known exactly. Those of a split model are taken to grow as those of its first
/// part do, because a part is only read when it is loaded.
fn check_memory<B: Backend>(
    backend: &B,
    inventory: &Inventory,
    spec: &ModelSpec,
    sizes: &[u64],
    options: &LoadOptions,
) -> Result<(), LoadError> {
    let total: u64 = sizes.iter().sum();
    let held = pack::resident_bytes(backend, inventory, spec, options.quantize);
    let stored = inventory.entries().map(|entry| entry.range.len() as u64);
    let (stored, largest) = stored.fold((0_u64, 0), |(sum, largest), bytes| (sum + bytes, largest.max(bytes)));
    let weights = if sizes.len() == 1 || stored == 0 {
        held
    } else {
        u64::try_from(u128::from(held) * u128::from(total) / u128::from(stored)).unwrap_or(u64::MAX)
    };
    let device = backend.free_memory();
    memory::check(
        spec,
        options,
        &Sizes {
            // In the process's memory the file is there while it is packed.
            weights: if device.is_some() { weights } else { weights.max(total) },
            twice: largest,
            file: sizes.iter().copied().max().unwrap_or(0),
            device,
        },
    )
}

/// The first file of a model: only it has metadata.
struct FirstPart<'a> {
    file: &'a str,
    gguf: Gguf,
    bytes: Vec<u8>,
}

impl<'a> FirstPart<'a> {
    fn read(model: &VerifiedModel, files: &'a [String], progress: &mut dyn FnMut(u64)) -> Result<Self, Refusal> {
        let file = files.first().map_or("", String::as_str);
        let bytes = model.read_with(file, &mut |done, _| progress(done))?;
        let gguf = parse(file, &bytes, 0, files.len())?;
        Ok(Self { file, gguf, bytes })
    }

    fn specification(&self, model: &VerifiedModel, files: &[String]) -> Result<ModelSpec, LoadError> {
        let Self { file, gguf, bytes } = self;
        let later = files.get(1..).unwrap_or_default().iter().enumerate();
        let mut later = later.map(|(index, file)| {
            let gguf = parse(file, &model.read(file)?, index + 1, files.len())?;
            Ok((file.as_str(), gguf))
        });
        let vocabulary = vocabulary(file, gguf, &mut later)?;
        let factors = |name| factors(file, gguf, bytes, name);
        let factors = RopeFactors {
            always: factors(ROPE_DIVISORS)?,
            short: factors(ROPE_SHORT)?,
            long: factors(ROPE_LONG)?,
        };
        ModelSpec::from_gguf(file, gguf, vocabulary, factors)
    }
}

/// Everything but the bytes, for a look at a model without loading it.
pub(super) struct Headers {
    /// Every file and its header.
    pub(super) files: Vec<(String, Gguf)>,
    /// What the first one says the model is.
    pub(super) spec: Result<ModelSpec, LoadError>,
}

pub(super) fn headers(model: &VerifiedModel, names: &[String]) -> Result<Headers, Refusal> {
    let first = FirstPart::read(model, names, &mut |_| {})?;
    let spec = first.specification(model, names);
    let mut files = vec![(first.file.to_owned(), first.gguf)];
    for (index, name) in names.iter().enumerate().skip(1) {
        files.push((name.clone(), parse(name, &model.read(name)?, index, names.len())?));
    }
    Ok(Headers { files, spec })
}

/// Checks that all weights are there, and the tokenizer.
pub(super) fn inventory(headers: &[(String, Gguf)], spec: &ModelSpec) -> Result<Inventory, Refusal> {
    let names = GgufNames::new(spec);
    let mut inventory = Inventory::default();
    for (index, (file, gguf)) in headers.iter().enumerate() {
        if index == 0 {
            tokenizer(file, gguf, spec)?;
            inventory.add(file, gguf.tensors.iter().map(entry), &names, spec)?;
        } else {
            inventory.add(file, later_entries(file, gguf)?, &names, spec)?;
        }
    }
    inventory.check_complete(&names, spec)?;
    Ok(inventory)
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
fn factors(file: &str, gguf: &Gguf, bytes: &[u8], name: &str) -> Result<Option<Vec<f32>>, Refusal> {
    let Some(tensor) = gguf.tensor(name) else {
        return Ok(None);
    };
    let entry = entry(tensor);
    let values = pack::widen(&entry, &bytes[entry.range.clone()]).map_err(|refusal| refusal.in_file(file))?;
    Ok(Some(values))
}

/// The rows of the embedding, which is in the first part or in one of the later ones.
fn vocabulary(
    file: &str,
    first: &Gguf,
    later: &mut dyn Iterator<Item = Result<(&str, Gguf), Refusal>>,
) -> Result<usize, Refusal> {
    let name = "token_embd.weight";
    let rows = |file: &str, gguf: &Gguf| match gguf.tensor(name).map(|tensor| tensor.dims.as_slice()) {
        None => Ok(None),
        Some(&[_, rows]) => Ok(Some(rows)),
        Some(dims) => Err(
            Refusal::new(Reason::WeightsMismatch, format!("tensor {name:?} has the wrong shape"))
                .in_file(file)
                .values("2 dimensions", format!("{dims:?}")),
        ),
    };
    let architecture = first.get("general.architecture").and_then(Value::as_str);
    if !architecture.is_some_and(crate::model::spec::is_supported_gguf) {
        // It may have no embedding; its error comes with the specification.
        return Ok(1);
    }
    if let Some(rows) = rows(file, first)? {
        return Ok(rows);
    }
    for part in later {
        let (file, gguf) = part?;
        if let Some(rows) = rows(file, &gguf)? {
            return Ok(rows);
        }
    }
    Err(Refusal::new(Reason::WeightsMismatch, format!("the model lacks tensors: {name}")).in_file(file))
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
