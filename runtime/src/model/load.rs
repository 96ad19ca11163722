//! Turns verified bytes into a decoder, a tokenizer and a chat template.
//!
//! One order for every format: names and structure, then the specification, then limits (context, memory), then
//! weights. Nothing large is packed before the numbers say that it fits.

mod defaults;
mod examine;
mod finite;
pub(crate) mod fp8;
mod gguf;
mod inventory;
mod memory;
mod names;
mod pack;
mod quantize;
mod safetensors;
mod split;

pub(crate) use examine::{Examined, examine};
pub(crate) use memory::CONTEXT_TO_FIT;
pub use quantize::Quantize;

use super::spec::ModelSpec;
use super::{Format, KvType, LoadError, LoadOptions, Loaded};
use crate::backend::device::Accelerator;
use crate::backend::kernels::Kernels;
use crate::backend::{Backend, Precision};
use escadre_verify::license::{self, Evidence};
use escadre_verify::structure::content;
use escadre_verify::{Reading, Reason, Refusal, VerifiedModel};
use inventory::Inventory;
use std::sync::Arc;

/// The largest file that is not weights: tokenizers of large vocabularies have about 35 MB.
const MAX_SIDE_FILE: u64 = 256 << 20;

/// Loads a model with its weights as they are stored.
///
/// `progress` gets the bytes of the weights that were read and packed, and how many there are in all.
pub fn load(
    model: &VerifiedModel,
    options: &LoadOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Loaded, LoadError> {
    let backend = Kernels::new(Arc::clone(&options.cores), Precision::AsStored).with_profile(options.profile.clone());
    load_with(model, options, backend, progress)
}

/// Loads a model with every weight widened to f32: several times the memory, but products are exact to f32. It is
/// how the graph is compared with a reference without the noise of quantised arithmetic.
pub fn load_exact(
    model: &VerifiedModel,
    options: &LoadOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Loaded, LoadError> {
    let backend = Kernels::new(Arc::clone(&options.cores), Precision::Widened);
    load_with(model, options, backend, progress)
}

/// Loads a model for the device that is to compute: the processor when there is no other.
pub fn load_on(
    accelerator: Option<&Accelerator>,
    model: &VerifiedModel,
    options: &LoadOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Loaded, LoadError> {
    match accelerator {
        None => load(model, options, progress),
        Some(accelerator) => load_with(model, options, accelerator.backend(), progress),
    }
}

/// Loads a model for a backend.
pub fn load_with<B: Backend + 'static>(
    model: &VerifiedModel,
    options: &LoadOptions,
    backend: B,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Loaded, LoadError> {
    let container = find(model)?;
    check_format(&container, options.format)?;
    match container {
        Container::Gguf(files) => gguf::load(model, &files, options, backend, progress),
        Container::Safetensors => safetensors::load(model, options, backend, progress),
    }
}

/// How a model is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Container {
    /// One file has everything, or its parts do, in their order.
    Gguf(Vec<String>),
    /// A folder with `config.json`.
    Safetensors,
}

/// Finds out by the names of the files; content is checked by the parsers.
pub(crate) fn find(model: &VerifiedModel) -> Result<Container, Refusal> {
    let with_extension = |extension: &str| {
        let files = model.files().map(|(name, _)| name);
        files.filter(|name| has_extension(name, extension)).collect::<Vec<_>>()
    };
    let (gguf, safetensors) = (with_extension("gguf"), with_extension("safetensors"));
    match (gguf.is_empty(), safetensors.is_empty()) {
        (false, true) => Ok(Container::Gguf(split::parts(&gguf)?)),
        (true, false) => Ok(Container::Safetensors),
        (true, true) => without_extension(model),
        (false, false) => Err(Refusal::new(
            Reason::FormatRefused,
            "there are GGUF and safetensors files; name those of one format",
        )),
    }
}

/// Refuses a model in another format than the one that was asked for.
fn check_format(found: &Container, wanted: Option<Format>) -> Result<(), Refusal> {
    let found = match found {
        Container::Gguf(_) => Format::Gguf,
        Container::Safetensors => Format::Safetensors,
    };
    match wanted.filter(|wanted| *wanted != found) {
        None => Ok(()),
        Some(wanted) => Err(Refusal::new(
            Reason::FormatRefused,
            "the model is in another format than was asked for; name other files, or change the format",
        )
        .values(wanted, found)),
    }
}

/// A single file is what its content says; a folder without weights is refused.
fn without_extension(model: &VerifiedModel) -> Result<Container, Refusal> {
    let files: Vec<_> = model.files().collect();
    let weights = files.iter().find(|(name, _)| {
        files.len() == 1
            || ["bin", "pt", "pth", "pkl", "ckpt"]
                .iter()
                .any(|extension| has_extension(name, extension))
    });
    let Some((name, _)) = weights else {
        return Err(Refusal::new(
            Reason::FormatRefused,
            "there are no weights: neither a .gguf file nor .safetensors files",
        ));
    };
    match content::require_weights(name, &model.read(name)?)? {
        content::Kind::Gguf if files.len() == 1 => Ok(Container::Gguf(vec![(*name).to_owned()])),
        kind => Err(Refusal::new(
            Reason::FormatRefused,
            format!("the content is {kind}, but the name does not say so, and the files that belong to it are missing"),
        )
        .in_file(*name)),
    }
}

fn has_extension(name: &str, extension: &str) -> bool {
    name.rsplit_once('.')
        .is_some_and(|(_, found)| found.eq_ignore_ascii_case(extension))
}

/// Opens files of weights, to be read once while they are hashed.
fn open_all<'a>(model: &VerifiedModel, names: impl IntoIterator<Item = &'a String>) -> Result<Vec<Reading>, Refusal> {
    names.into_iter().map(|name| model.reading(name)).collect()
}

/// Why loading failed. A file that is not the right one is the cause of whatever was found in it, so what is left of
/// the files is read and hashed first.
fn cause(readings: &mut [Reading], error: LoadError) -> LoadError {
    let wrong = readings.iter_mut().find_map(|reading| reading.finish().err());
    wrong.map_or(error, LoadError::from)
}

/// A small file of the model, whole.
fn read_side_file(model: &VerifiedModel, name: &str) -> Result<Vec<u8>, Refusal> {
    let size = model
        .files()
        .find(|(file, _)| *file == name)
        .map_or(0, |(_, size)| size);
    if size > MAX_SIDE_FILE {
        return Err(
            Refusal::new(Reason::SizeLimit, "the file is larger than any of its kind")
                .in_file(name)
                .values(format!("at most {MAX_SIDE_FILE} bytes"), size),
        );
    }
    model.read(name)
}

/// A template beside the weights.
fn read_template(model: &VerifiedModel, name: &str) -> Result<String, Refusal> {
    String::from_utf8(read_side_file(model, name)?)
        .map_err(|_| Refusal::new(Reason::TemplateRefused, "the template is not UTF-8").in_file(name))
}

/// Lowers the model's context to the one that was asked for.
fn limit_context(spec: &mut ModelSpec, options: &LoadOptions) -> Result<(), LoadError> {
    let Some(requested) = options.max_context else {
        return Ok(());
    };
    if requested > spec.context {
        return Err(LoadError::ContextTooLong {
            requested,
            limit: spec.context,
        });
    }
    spec.context = requested.max(1);
    Ok(())
}

/// The type that most weights have in the files, and what they were made into.
fn main_type(inventory: &Inventory, quantize: Option<Quantize>) -> String {
    let mut bytes = std::collections::BTreeMap::new();
    for entry in inventory.entries() {
        *bytes.entry(entry.type_name()).or_insert(0) += entry.range.len();
    }
    let largest = bytes.into_iter().max_by_key(|&(_, bytes)| bytes);
    let stored = largest.map_or_else(String::new, |(kind, _)| kind);
    match quantize {
        None => stored,
        Some(quantize) => format!("{quantize} of {stored}"),
    }
}

fn parameters(inventory: &Inventory) -> u64 {
    inventory.entries().map(|entry| entry.elements() as u64).sum()
}

/// What both formats know in the end, for the description of the loaded model.
struct Facts<'a> {
    format: Format,
    spec: &'a ModelSpec,
    kv_type: KvType,
    parameters: u64,
    quantization: String,
    weights_bytes: u64,
    template_digest: Option<String>,
    licenses: Vec<Evidence>,
}

impl Facts<'_> {
    fn describe(self) -> super::ModelDescription {
        let Self {
            format,
            spec,
            kv_type,
            parameters,
            quantization,
            weights_bytes,
            template_digest,
            licenses,
        } = self;
        super::ModelDescription {
            format,
            architecture: spec.architecture.clone(),
            parameters,
            quantization,
            context_length: spec.context,
            weights_bytes,
            kv_bytes_per_token: spec.kv_bytes_per_token(kv_type.bytes()),
            template_digest,
            license: license::agreed(&licenses).ok().map(|license| license.to_string()),
        }
    }
}
