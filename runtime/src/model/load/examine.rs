//! What a model is, without loading it: every structure rule is checked, no weight is packed.

use super::inventory::Inventory;
use super::memory::Need;
use super::quantize::Quantize;
use super::{Container, find, gguf, pack, safetensors};
use crate::backend::kernels::Kernels;
use crate::backend::{KvType, Precision};
use crate::model::spec::ModelSpec;
use crate::model::{Format, LoadError};
use escadre_verify::VerifiedModel;
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
    /// Absent when the architecture is not supported.
    pub(crate) plan: Option<Plan>,
}

/// What serving the model would take.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) spec: ModelSpec,
    /// Bytes of weights as they would be held.
    pub(crate) weights: u64,
    /// The most that loading holds twice.
    pub(crate) largest: u64,
}

impl Plan {
    /// Memory for `concurrency` sequences of `context` tokens whose keys and values are held so.
    pub(crate) fn need(&self, context: usize, concurrency: usize, kv_type: KvType) -> Need {
        let mut need = Need::new(&self.spec, self.weights, self.largest, (context, kv_type));
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

/// Bytes of weights on the processor.
fn weights_bytes(inventory: &Inventory, spec: &ModelSpec, quantize: Option<Quantize>) -> u64 {
    let backend = Kernels::new(Arc::default(), Precision::AsStored);
    pack::resident_bytes(&backend, inventory, spec, quantize)
}

fn examine_gguf(model: &VerifiedModel, files: &[String], quantize: Option<Quantize>) -> Result<Examined, LoadError> {
    let gguf::Headers { files, spec } = gguf::headers(model, files)?;
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
            let inventory = gguf::inventory(&files, &spec)?;
            let plan = Plan {
                weights: weights_bytes(&inventory, &spec, quantize),
                largest: inventory
                    .entries()
                    .map(|entry| entry.range.len() as u64)
                    .max()
                    .unwrap_or(0),
                spec,
            };
            (plan.spec.architecture.clone(), Some(plan))
        }
    };
    Ok(Examined {
        format: Format::Gguf,
        architecture,
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
            let largest = contents.largest;
            let inventory = contents.inventory(&spec)?;
            let plan = Plan {
                weights: weights_bytes(&inventory, &spec, quantize),
                largest,
                spec,
            };
            (plan.spec.architecture.clone(), Some(plan))
        }
    };
    Ok(Examined {
        format: Format::Safetensors,
        architecture,
        types,
        plan,
    })
}
