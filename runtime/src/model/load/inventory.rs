//! Which tensor of a file is which weight of the decoder, and whether all are there with the right shapes. Pure.

use crate::model::spec::ModelSpec;
use escadre_verify::structure::gguf::TensorType;
use escadre_verify::{Reason, Refusal};
use std::collections::BTreeMap;
use std::ops::Range;

/// The place of a weight in the decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Slot {
    Embedding,
    Norm,
    Head,
    Layer(usize, Part),
}

/// The place of a weight in a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Part {
    AttentionNorm,
    Query,
    Key,
    Value,
    Output,
    FeedForwardNorm,
    Gate,
    Up,
    Down,
    QueryBias,
    KeyBias,
    ValueBias,
    OutputBias,
    GateBias,
    UpBias,
    DownBias,
}

impl Part {
    pub(crate) const REQUIRED: [Self; 9] = [
        Self::AttentionNorm,
        Self::Query,
        Self::Key,
        Self::Value,
        Self::Output,
        Self::FeedForwardNorm,
        Self::Gate,
        Self::Up,
        Self::Down,
    ];
}

/// The shape that a slot must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    Vector(usize),
    Matrix { rows: usize, columns: usize },
}

impl std::fmt::Display for Shape {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Vector(length) => write!(formatter, "[{length}]"),
            Self::Matrix { rows, columns } => write!(formatter, "[{rows}, {columns}]"),
        }
    }
}

impl Slot {
    pub(crate) fn shape(self, spec: &ModelSpec) -> Shape {
        let matrix = |rows, columns| Shape::Matrix { rows, columns };
        let (hidden, inner) = (spec.hidden, spec.feed_forward);
        let (queries, keys) = (spec.heads * spec.head_size, spec.kv_heads * spec.head_size);
        match self {
            Self::Embedding | Self::Head => matrix(spec.vocabulary, hidden),
            Self::Norm => Shape::Vector(hidden),
            Self::Layer(_, part) => match part {
                Part::AttentionNorm | Part::FeedForwardNorm | Part::OutputBias | Part::DownBias => {
                    Shape::Vector(hidden)
                }
                Part::Query => matrix(queries, hidden),
                Part::Key | Part::Value => matrix(keys, hidden),
                Part::Output => matrix(hidden, queries),
                Part::Gate | Part::Up => matrix(inner, hidden),
                Part::Down => matrix(hidden, inner),
                Part::QueryBias => Shape::Vector(queries),
                Part::KeyBias | Part::ValueBias => Shape::Vector(keys),
                Part::GateBias | Part::UpBias => Shape::Vector(inner),
            },
        }
    }
}

/// A tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Its name in the file.
    pub(crate) name: String,
    /// Sizes, the slowest-moving first.
    pub(crate) shape: Vec<usize>,
    pub(crate) kind: TensorType,
    /// The bytes in its file.
    pub(crate) range: Range<usize>,
}

impl Entry {
    pub(crate) fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it can become a bias or a norm.
    fn is_float(&self) -> bool {
        matches!(self.kind, TensorType::F32 | TensorType::F16 | TensorType::Bf16)
    }

    fn has_shape(&self, shape: Shape) -> bool {
        match shape {
            Shape::Vector(length) => self.shape == [length],
            Shape::Matrix { rows, columns } => self.shape == [rows, columns],
        }
    }
}

/// Gives the name that a format has for a slot, and the slot of a name.
pub(crate) trait Names {
    fn name(&self, slot: Slot) -> String;
    fn slot(&self, name: &str) -> Option<Slot>;
    /// Tensors that carry nothing that the decoder needs, or that are read elsewhere.
    fn is_ignored(&self, name: &str) -> bool;
}

/// Checked tensors by their place.
#[derive(Debug, Clone, Default)]
pub(crate) struct Inventory {
    slots: BTreeMap<Slot, Entry>,
}

impl Inventory {
    /// Sorts tensors into their places. Unknown tensors are refused: the graph would leave out what they do.
    pub(crate) fn add(
        &mut self,
        file: &str,
        entries: impl IntoIterator<Item = Entry>,
        names: &dyn Names,
        spec: &ModelSpec,
    ) -> Result<(), Refusal> {
        let mismatch = |message: String| Refusal::new(Reason::WeightsMismatch, message).in_file(file);
        for entry in entries {
            if names.is_ignored(&entry.name) {
                continue;
            }
            let slot = match names.slot(&entry.name) {
                Some(Slot::Layer(index, _)) if index >= spec.layers => None,
                slot => slot,
            };
            let Some(slot) = slot else {
                let message = format!("tensor {:?} does not belong to this architecture", entry.name);
                return Err(mismatch(message));
            };
            let shape = slot.shape(spec);
            if !entry.has_shape(shape) {
                return Err(mismatch(format!("tensor {:?} has the wrong shape", entry.name))
                    .values(shape, format!("{:?}", entry.shape)));
            }
            if matches!(shape, Shape::Vector(_)) && !entry.is_float() {
                return Err(
                    mismatch(format!("tensor {:?} has a type that a vector cannot have", entry.name))
                        .values("F32, F16 or BF16", entry.kind),
                );
            }
            if let Some(other) = self.slots.insert(slot, entry) {
                return Err(mismatch(format!("tensor {:?} occurs twice", other.name)));
            }
        }
        Ok(())
    }

    /// Refuses when a weight is missing, naming the first few.
    pub(crate) fn check_complete(&self, names: &dyn Names, spec: &ModelSpec, tied: bool) -> Result<(), Refusal> {
        let layers = (0..spec.layers).flat_map(|index| Part::REQUIRED.map(|part| Slot::Layer(index, part)));
        let head = (!tied).then_some(Slot::Head);
        let required = [Slot::Embedding, Slot::Norm].into_iter().chain(head).chain(layers);
        let missing: Vec<_> = required.filter(|slot| !self.slots.contains_key(slot)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let first: Vec<_> = missing.iter().take(5).map(|&slot| names.name(slot)).collect();
        let more = match missing.len() - first.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        Err(Refusal::new(
            Reason::WeightsMismatch,
            format!("the model lacks tensors: {}{more}", first.join(", ")),
        ))
    }

    pub(crate) fn has_head(&self) -> bool {
        self.slots.contains_key(&Slot::Head)
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.slots.values()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Slot, &Entry)> {
        self.slots.iter().map(|(&slot, entry)| (slot, entry))
    }
}
