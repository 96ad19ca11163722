//! What a model is, without loading it: every structure rule is checked, no weight is packed.

use super::inventory::Inventory;
use super::memory::{self, Need};
use super::quantize::Quantize;
use super::{Container, find, gguf, pack, safetensors};
use crate::backend::kernels::Kernels;
use crate::backend::{KvType, Precision};
use crate::model::spec::ModelSpec;
use crate::model::{Format, LoadError};
use escadre_verify::VerifiedModel;
use escadre_verify::license::{self, Evidence};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Tensors of one type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct TypeTotal {
    pub(crate) tensors: u64,
    pub(crate) elements: u64,
    pub(crate) bytes: u64,
}

/// The facts about a valid model.
#[derive(Debug)]
pub(crate) struct Examined {
    pub(crate) format: Format,
    pub(crate) architecture: String,
    /// By the name of the type.
    pub(crate) types: BTreeMap<String, TypeTotal>,
    /// Where a licence is named.
    pub(crate) licenses: Vec<Evidence>,
    /// Absent when the architecture is not supported.
    pub(crate) plan: Option<Plan>,
}

/// What serving the model would take.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) spec: ModelSpec,
    /// Bytes of weights as they would be held.
    pub(crate) weights: u64,
    /// What is held beside them while they are loaded.
    pub(crate) loading: u64,
}

impl Plan {
    /// What it takes on the processor.
    fn new(spec: ModelSpec, inventory: &Inventory, quantize: Option<Quantize>) -> Self {
        let backend = Kernels::new(Arc::default(), Precision::AsStored);
        Self {
            weights: pack::resident_bytes(&backend, inventory, &spec, quantize),
            loading: memory::while_loading(inventory),
            spec,
        }
    }

    /// Memory for `concurrency` sequences of `context` tokens whose keys and values are held so.
    pub(crate) fn need(&self, context: usize, concurrency: usize, kv_type: KvType) -> Need {
        let mut need = Need::new(&self.spec, self.weights, self.loading, (context, kv_type));
        need.kv_cache = need.kv_cache.saturating_mul(concurrency as u64);
        need
    }
}

/// Checks a model and tells what it is.
pub(crate) fn examine(model: &VerifiedModel, quantize: Option<Quantize>) -> Result<Examined, LoadError> {
    match find(model)? {
        Container::Gguf(files) => examine_gguf(model, &files, quantize),
        Container::Safetensors => examine_safetensors(model, quantize),
    }
}

fn examine_gguf(model: &VerifiedModel, files: &[String], quantize: Option<Quantize>) -> Result<Examined, LoadError> {
    let gguf::Headers { files, spec } = gguf::headers(model, files)?;
    let first = files.first().map(|(file, gguf)| (file.as_str(), gguf));
    let licenses = license::find(model, first)?;
    let mut types: BTreeMap<String, TypeTotal> = BTreeMap::new();
    for tensor in files.iter().flat_map(|(_, gguf)| &gguf.tensors) {
        let total = types.entry(tensor.kind.to_string()).or_default();
        total.tensors += 1;
        total.elements += tensor.elements() as u64;
        total.bytes += tensor.range.len() as u64;
    }
    let (architecture, plan) = match spec {
        Err(LoadError::ArchitectureUnsupported { architecture, .. }) => (architecture, None),
        Err(other) => return Err(other),
        Ok(spec) => {
            if let Some((file, gguf)) = files.first() {
                gguf::tokenizer(file, gguf, &spec)?;
            }
            let (inventory, _) = gguf::inventory(&files, &spec)?;
            (spec.architecture.clone(), Some(Plan::new(spec, &inventory, quantize)))
        }
    };
    Ok(Examined {
        format: Format::Gguf,
        architecture,
        licenses,
        types,
        plan,
    })
}

fn examine_safetensors(model: &VerifiedModel, quantize: Option<Quantize>) -> Result<Examined, LoadError> {
    let contents = safetensors::contents(model)?;
    let mut types: BTreeMap<String, TypeTotal> = BTreeMap::new();
    for tensor in &contents.tensors {
        let total = types.entry(tensor.kind.to_string()).or_default();
        total.tensors += 1;
        total.elements += tensor.elements() as u64;
        total.bytes += tensor.range.len() as u64;
    }
    let (architecture, plan) = match ModelSpec::from_config(safetensors::CONFIG, &contents.config) {
        Err(LoadError::ArchitectureUnsupported { architecture, .. }) => (architecture, None),
        Err(other) => return Err(other),
        Ok(spec) => {
            let inventory = contents.inventory(&spec)?;
            (spec.architecture.clone(), Some(Plan::new(spec, &inventory, quantize)))
        }
    };
    Ok(Examined {
        format: Format::Safetensors,
        architecture,
        licenses: license::find(model, None)?,
        types,
        plan,
    })
}
