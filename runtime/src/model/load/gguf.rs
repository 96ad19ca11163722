//! A GGUF file: weights, vocabulary and chat template in one.

use super::inventory::{Entry, Inventory, Names, Part, Slot};
use super::memory::{self, Need};
use super::pack::{self, Packed, Target};
use super::{Facts, defaults, limit_context, main_type, parameters, read_template};
use crate::backend::Backend;
use crate::model::decoder::Decoder;
use crate::model::spec::{ModelSpec, RopeScaling};
use crate::model::template::ChatTemplate;
use crate::model::tokenizer::Tokenizer;
use crate::model::{Format, LoadError, LoadOptions, Loaded};
use escadre_verify::structure::gguf::{Gguf, TensorInfo, Value};
use escadre_verify::{Reason, Refusal, VerifiedModel};

/// A divisor for every pair of a head, instead of a rule in the metadata.
const ROPE_DIVISORS: &str = "rope_freqs.weight";
/// A template beside the file replaces the one inside.
const TEMPLATE_FILE: &str = "chat_template.jinja";

pub(super) fn load<B: Backend + 'static>(
    model: &VerifiedModel,
    file: &str,
    options: &LoadOptions,
    backend: B,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Loaded, LoadError> {
    check_overlay(model)?;
    let size = model
        .files()
        .find(|(name, _)| *name == file)
        .map_or(0, |(_, size)| size);
    memory::check_file(size, options.memory_limit)?;
    let bytes = model.read_with(file, &mut |done, total| progress(done / 2, total))?;
    let gguf = escadre_verify::structure::gguf::parse(file, &bytes)?;

    let mut spec = specification(file, &gguf, &bytes)?;
    limit_context(&mut spec, options)?;
    let inventory = inventory(file, &gguf, &spec)?;
    let tied = !inventory.has_head();
    let target = Target { spec: &spec, tied };
    pack::check_types(&backend, file, &inventory)?;
    let weights_bytes = pack::resident_bytes(&backend, &inventory, target);
    let largest = inventory.entries().map(|entry| entry.range.len()).max().unwrap_or(0);
    let context = memory::context_to_fit(&spec, options.max_context);
    let cache = (context, options.kv_type);
    Need::new(&spec, weights_bytes.max(size), largest as u64, cache).check(options.memory_limit)?;

    let tokenizer = tokenizer(file, &gguf, &spec)?;
    let template = template(model, file, &gguf, &tokenizer)?;
    let facts = Facts {
        format: Format::Gguf,
        spec: &spec,
        kv_type: options.kv_type,
        parameters: parameters(&inventory),
        quantization: main_type(&inventory),
        weights_bytes,
        template_digest: template.as_ref().map(ChatTemplate::digest),
    };
    let description = facts.describe();
    let generation = defaults::from_gguf(&gguf, &tokenizer);

    let entries: Vec<_> = inventory.iter().map(|(slot, entry)| (slot, entry.clone())).collect();
    let mut packed = Packed::new();
    let mut done = size / 2;
    packed.add_file(&backend, bytes, &entries, target, &mut |bytes| {
        done += bytes / 2;
        progress(done, size);
    })?;
    progress(size, size);
    let weights = packed.assemble(&spec)?;
    Ok(Loaded {
        description,
        tokenizer,
        template,
        decoder: Decoder::new(backend, &spec, weights),
        generation,
    })
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

/// The specification, with the divisors of the position embedding if the file has them.
pub(super) fn specification(file: &str, gguf: &Gguf, bytes: &[u8]) -> Result<ModelSpec, LoadError> {
    let mut spec = ModelSpec::from_gguf(file, gguf, embedding_rows(file, gguf)?)?;
    if let Some(divisors) = gguf.tensor(ROPE_DIVISORS) {
        let entry = entry(divisors);
        let values = pack::widen(&entry, &bytes[entry.range.clone()])?;
        let pairs = spec.rope.dimensions / 2;
        if values.len() != pairs || values.iter().any(|&value| value <= 0.0) {
            return Err(Refusal::new(
                Reason::WeightsMismatch,
                format!("tensor {ROPE_DIVISORS:?} is malformed"),
            )
            .in_file(file)
            .values(format!("{pairs} values above 0"), values.len())
            .into());
        }
        spec.rope.scaling = RopeScaling::Divisors(values);
    }
    Ok(spec)
}

/// The rows of the embedding: the size of the vocabulary.
fn embedding_rows(file: &str, gguf: &Gguf) -> Result<usize, Refusal> {
    let name = GgufNames.name(Slot::Embedding);
    match gguf.tensor(&name).map(|tensor| tensor.dims.as_slice()) {
        Some(&[_, rows]) => Ok(rows),
        // An unsupported architecture may have none; its error comes with the specification.
        _ if !is_supported(gguf) => Ok(1),
        Some(dims) => Err(
            Refusal::new(Reason::WeightsMismatch, format!("tensor {name:?} has the wrong shape"))
                .in_file(file)
                .values("2 dimensions", format!("{dims:?}")),
        ),
        None => Err(Refusal::new(Reason::WeightsMismatch, format!("the model lacks tensors: {name}")).in_file(file)),
    }
}

fn is_supported(gguf: &Gguf) -> bool {
    let architecture = gguf.get("general.architecture").and_then(Value::as_str);
    crate::model::spec::SUPPORTED
        .iter()
        .any(|names| Some(names.0) == architecture)
}

pub(super) fn inventory(file: &str, gguf: &Gguf, spec: &ModelSpec) -> Result<Inventory, Refusal> {
    let mut inventory = Inventory::default();
    inventory.add(file, gguf.tensors.iter().map(entry), &GgufNames, spec)?;
    // A file without a head says that the embedding is the head too.
    inventory
        .check_complete(&GgufNames, spec, true)
        .map_err(|refusal| refusal.in_file(file))?;
    Ok(inventory)
}

fn entry(tensor: &TensorInfo) -> Entry {
    Entry {
        name: tensor.name.clone(),
        shape: tensor.dims.iter().rev().copied().collect(),
        kind: tensor.kind,
        range: tensor.range.clone(),
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

/// The names of GGUF's `llama` architecture.
struct GgufNames;

const PARTS: [(&str, Part); 16] = [
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
];

impl Names for GgufNames {
    fn name(&self, slot: Slot) -> String {
        match slot {
            Slot::Embedding => "token_embd.weight".to_owned(),
            Slot::Norm => "output_norm.weight".to_owned(),
            Slot::Head => "output.weight".to_owned(),
            Slot::Layer(index, part) => format!("blk.{index}.{}", part_name(&PARTS, part)),
        }
    }

    fn slot(&self, name: &str) -> Option<Slot> {
        match name {
            "token_embd.weight" => Some(Slot::Embedding),
            "output_norm.weight" => Some(Slot::Norm),
            "output.weight" => Some(Slot::Head),
            _ => layer_slot(&PARTS, name.strip_prefix("blk.")?),
        }
    }

    fn is_ignored(&self, name: &str) -> bool {
        name == ROPE_DIVISORS
    }
}

/// The name of a part in a format's table.
pub(super) fn part_name(parts: &[(&'static str, Part)], part: Part) -> &'static str {
    let found = parts.iter().find(|(_, other)| *other == part);
    found.map_or("", |(name, _)| name)
}

/// The slot of `<index>.<part>`.
pub(super) fn layer_slot(parts: &[(&'static str, Part)], rest: &str) -> Option<Slot> {
    let (index, rest) = rest.split_once('.')?;
    let canonical = index == "0" || !index.starts_with(['0', '+']);
    let index = index.parse().ok().filter(|_| canonical)?;
    let (_, part) = parts.iter().find(|(name, _)| *name == rest)?;
    Some(Slot::Layer(index, *part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_slots_are_inverse() {
        let slots = PARTS.iter().map(|&(_, part)| Slot::Layer(17, part));
        for slot in slots.chain([Slot::Embedding, Slot::Norm, Slot::Head]) {
            assert_eq!(GgufNames.slot(&GgufNames.name(slot)), Some(slot));
        }
        for name in [
            "blk.07.attn_q.weight",
            "blk.+7.attn_q.weight",
            "blk.x.attn_q.weight",
            "blk.1.other",
            "",
        ] {
            assert_eq!(GgufNames.slot(name), None, "{name}");
        }
    }
}
