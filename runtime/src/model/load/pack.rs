//! Packs tensors into a backend's matrices and vectors, and puts the decoder's weights together.

use super::finite::are_finite;
use super::inventory::{Entry, Inventory, Part, Shape, Slot};
use super::quantize::Quantize;
use crate::backend::{Backend, Projection, StoredMatrix};
use crate::model::decoder::{FeedForward, Layer, Weights};
use crate::model::spec::ModelSpec;
use crate::model::{LoadError, ModelError};
use escadre_verify::structure::gguf::TensorType;
use escadre_verify::{Reading, Reason, Refusal};
use std::borrow::Cow;
use std::collections::HashMap;

/// Weights that are packed already.
pub(super) struct Packed<B: Backend> {
    quantize: Option<Quantize>,
    matrices: HashMap<Slot, B::Matrix>,
    vectors: HashMap<Slot, B::Vector>,
}

impl<B: Backend> Packed<B> {
    pub(super) fn new(quantize: Option<Quantize>) -> Self {
        Self {
            quantize,
            matrices: HashMap::new(),
            vectors: HashMap::new(),
        }
    }

    /// Reads a file to its end and packs its tensors on the way. `progress` receives the bytes that were read so far.
    ///
    /// Only the tensor that is packed, and one that is still hashed, are in memory beside what is packed.
    pub(super) fn add_file(
        &mut self,
        backend: &B,
        reading: &mut Reading,
        entries: &[(Slot, Entry)],
        spec: &ModelSpec,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), LoadError> {
        let mut entries: Vec<_> = entries.iter().collect();
        entries.sort_by_key(|(_, entry)| entry.range.start);
        for (slot, entry) in entries {
            let bytes = reading.take(entry.range.clone())?;
            self.add(backend, &bytes, *slot, entry, spec)?;
            progress(reading.position());
        }
        reading.finish()?;
        progress(reading.bytes());
        Ok(())
    }

    fn add(&mut self, backend: &B, bytes: &[u8], slot: Slot, entry: &Entry, spec: &ModelSpec) -> Result<(), LoadError> {
        let failed = |source: ModelError| LoadError::Backend {
            tensor: entry.name.clone(),
            source,
        };
        match slot.shape(spec) {
            Shape::Vector(_) => {
                let mut values = widen(entry, bytes)?;
                if spec.norms.less_one && slot.is_norm() {
                    for value in &mut values {
                        *value += 1.0;
                    }
                }
                self.vectors.insert(slot, backend.vector(values).map_err(failed)?);
            }
            Shape::Matrix { rows, columns } => {
                let bytes = match &entry.scales {
                    None => Cow::Borrowed(bytes),
                    Some(scales) => Cow::Owned(scales.widen(bytes, columns)),
                };
                if !are_finite(entry.kind, &bytes) {
                    return Err(not_finite(entry).into());
                }
                let stored = StoredMatrix {
                    kind: entry.kind,
                    rows,
                    columns,
                    bytes,
                };
                let stored = match self.quantize {
                    None => stored,
                    Some(quantize) => quantize.pack(stored),
                };
                let matrix = backend.matrix(stored).map_err(failed)?;
                self.matrices.insert(slot, matrix);
            }
        }
        Ok(())
    }

    /// All weights of the decoder; [`Inventory::check_complete`] came before.
    pub(super) fn assemble(mut self, spec: &ModelSpec) -> Result<Weights<B>, Refusal> {
        let layers = (0..spec.layers.len())
            .map(|index| self.layer(index))
            .collect::<Result<_, _>>()?;
        Ok(Weights {
            embedding: self.matrix(Slot::Embedding)?,
            layers,
            norm: self.vector(Slot::Norm)?,
            head: self.matrices.remove(&Slot::Head),
        })
    }

    fn layer(&mut self, index: usize) -> Result<Layer<B>, Refusal> {
        let mut projection = |weight, bias| {
            Ok(Projection {
                weight: self.matrix(Slot::Layer(index, weight))?,
                bias: self.vectors.remove(&Slot::Layer(index, bias)),
            })
        };
        Ok(Layer {
            query: projection(Part::Query, Part::QueryBias)?,
            key: projection(Part::Key, Part::KeyBias)?,
            value: projection(Part::Value, Part::ValueBias)?,
            output: projection(Part::Output, Part::OutputBias)?,
            feed_forward: FeedForward {
                gate: projection(Part::Gate, Part::GateBias)?,
                up: projection(Part::Up, Part::UpBias)?,
                down: projection(Part::Down, Part::DownBias)?,
                norm: self.vector(Slot::Layer(index, Part::FeedForwardNorm))?,
                post_norm: self.optional(index, Part::PostFeedForwardNorm),
            },
            attention_norm: self.vector(Slot::Layer(index, Part::AttentionNorm))?,
            query_norm: self.optional(index, Part::QueryNorm),
            key_norm: self.optional(index, Part::KeyNorm),
            post_attention_norm: self.optional(index, Part::PostAttentionNorm),
        })
    }

    fn optional(&mut self, index: usize, part: Part) -> Option<B::Vector> {
        self.vectors.remove(&Slot::Layer(index, part))
    }

    fn matrix(&mut self, slot: Slot) -> Result<B::Matrix, Refusal> {
        self.matrices.remove(&slot).ok_or_else(|| absent(slot))
    }

    fn vector(&mut self, slot: Slot) -> Result<B::Vector, Refusal> {
        self.vectors.remove(&slot).ok_or_else(|| absent(slot))
    }
}

fn absent(slot: Slot) -> Refusal {
    Refusal::new(
        Reason::WeightsMismatch,
        format!("the model lacks the tensor for {slot:?}"),
    )
}

/// Refuses types that the backend has no arithmetic for.
pub(super) fn check_types<B: Backend>(backend: &B, file: &str, inventory: &Inventory) -> Result<(), Refusal> {
    match inventory.entries().find(|entry| !backend.supports(entry.kind)) {
        None => Ok(()),
        Some(entry) => Err(Refusal::new(
            Reason::WeightsMismatch,
            format!(
                "tensor {:?} has a type that cannot be computed with; use another quantisation",
                entry.name
            ),
        )
        .in_file(file)
        .values(
            "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 or Q2_K to Q6_K",
            entry.kind,
        )),
    }
}

/// Bytes of all weights as the backend will hold them.
pub(crate) fn resident_bytes<B: Backend>(
    backend: &B,
    inventory: &Inventory,
    spec: &ModelSpec,
    quantize: Option<Quantize>,
) -> u64 {
    let bytes = inventory.iter().map(|(slot, entry)| match slot.shape(spec) {
        Shape::Vector(length) => 4 * length as u64,
        Shape::Matrix { columns, .. } => {
            let kind = quantize.map_or(entry.kind, |quantize| quantize.held(entry.kind, columns));
            backend.resident_bytes(kind, entry.elements() as u64)
        }
    });
    bytes.fold(0, u64::saturating_add)
}

/// The values of a float tensor.
pub(super) fn widen(entry: &Entry, bytes: &[u8]) -> Result<Vec<f32>, Refusal> {
    let values: Vec<f32> = match entry.kind {
        TensorType::F32 => bytes
            .as_chunks()
            .0
            .iter()
            .map(|&bytes| f32::from_le_bytes(bytes))
            .collect(),
        TensorType::F16 => bytes
            .as_chunks()
            .0
            .iter()
            .map(|&bytes| half::f16::from_le_bytes(bytes).to_f32())
            .collect(),
        TensorType::Bf16 => bytes
            .as_chunks()
            .0
            .iter()
            .map(|&bytes| half::bf16::from_le_bytes(bytes).to_f32())
            .collect(),
        other => {
            return Err(Refusal::new(
                Reason::WeightsMismatch,
                format!("tensor {:?} has type {other}, which a vector cannot have", entry.name),
            ));
        }
    };
    if values.iter().all(|value| value.is_finite()) {
        return Ok(values);
    }
    Err(not_finite(entry))
}

fn not_finite(entry: &Entry) -> Refusal {
    Refusal::new(
        Reason::WeightsMismatch,
        format!(
            "tensor {:?} has values that are not finite: the weights are damaged",
            entry.name
        ),
    )
}
