//! Which tensor of a file is which weight of the decoder, and whether all are there with the right shapes. Pure.

use super::fp8::Scales;
use crate::model::spec::{ModelSpec, Presence};
use escadre_verify::structure::gguf::TensorType;
use escadre_verify::structure::safetensors::DataType;
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
    QueryNorm,
    KeyNorm,
    PostAttentionNorm,
    PostFeedForwardNorm,
}

impl Part {
    pub(crate) const ALL: [Self; 20] = [
        Self::AttentionNorm,
        Self::Query,
        Self::Key,
        Self::Value,
        Self::Output,
        Self::FeedForwardNorm,
        Self::Gate,
        Self::Up,
        Self::Down,
        Self::QueryBias,
        Self::KeyBias,
        Self::ValueBias,
        Self::OutputBias,
        Self::GateBias,
        Self::UpBias,
        Self::DownBias,
        Self::QueryNorm,
        Self::KeyNorm,
        Self::PostAttentionNorm,
        Self::PostFeedForwardNorm,
    ];

    /// Whether the layers of a model have it.
    pub(crate) fn presence(self, spec: &ModelSpec) -> Presence {
        let present = |flag| if flag { Presence::Present } else { Presence::Absent };
        match self {
            Self::AttentionNorm
            | Self::Query
            | Self::Key
            | Self::Value
            | Self::Output
            | Self::FeedForwardNorm
            | Self::Gate
            | Self::Up
            | Self::Down => Presence::Present,
            Self::QueryBias | Self::KeyBias | Self::ValueBias => spec.biases.query_key_value,
            Self::OutputBias => spec.biases.output,
            Self::GateBias | Self::UpBias | Self::DownBias => spec.biases.feed_forward,
            Self::QueryNorm | Self::KeyNorm => present(spec.norms.heads),
            Self::PostAttentionNorm | Self::PostFeedForwardNorm => present(spec.norms.post),
        }
    }
}

/// The shape that a slot must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    Vector(usize),
    Matrix { rows: usize, columns: usize },
}

impl Shape {
    /// The rows of a matrix, the values of a vector.
    fn rows(self) -> usize {
        match self {
            Self::Vector(length) => length,
            Self::Matrix { rows, .. } => rows,
        }
    }
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
                Part::AttentionNorm
                | Part::FeedForwardNorm
                | Part::PostAttentionNorm
                | Part::PostFeedForwardNorm
                | Part::OutputBias
                | Part::DownBias => Shape::Vector(hidden),
                Part::QueryNorm | Part::KeyNorm => Shape::Vector(spec.head_size),
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

    pub(crate) fn is_norm(self) -> bool {
        match self {
            Self::Embedding | Self::Head => false,
            Self::Norm => true,
            Self::Layer(_, part) => matches!(
                part,
                Part::AttentionNorm
                    | Part::FeedForwardNorm
                    | Part::PostAttentionNorm
                    | Part::PostFeedForwardNorm
                    | Part::QueryNorm
                    | Part::KeyNorm
            ),
        }
    }

    fn is_known(self, spec: &ModelSpec) -> bool {
        match self {
            Self::Embedding | Self::Norm | Self::Head => true,
            Self::Layer(index, part) => index < spec.layers.len() && part.presence(spec) != Presence::Absent,
        }
    }
}

/// A tensor of a file, or some rows of it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    /// Its name in the file.
    pub(crate) name: String,
    /// Sizes, the slowest-moving first.
    pub(crate) shape: Vec<usize>,
    pub(crate) kind: TensorType,
    /// The bytes in its file.
    pub(crate) range: Range<usize>,
    /// The bytes are 8-bit floats with these scales; `kind` is what they become.
    pub(crate) scales: Option<Scales>,
}

impl Entry {
    pub(crate) fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The type of the numbers in the file.
    pub(crate) fn type_name(&self) -> String {
        match self.scales {
            None => self.kind.to_string(),
            Some(_) => DataType::F8E4M3.to_string(),
        }
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

    /// The rows from `first` to `end`; absent when they are no whole blocks.
    fn rows(&self, first: usize, end: usize) -> Option<Self> {
        let (&rows, rest) = self.shape.split_first()?;
        let columns: usize = rest.iter().product();
        if rows == 0 || !columns.is_multiple_of(self.kind.block_elements()) {
            return None;
        }
        let stride = self.range.len() / rows;
        Some(Self {
            name: self.name.clone(),
            shape: [&[end - first], rest].concat(),
            kind: self.kind,
            range: self.range.start + first * stride..self.range.start + end * stride,
            scales: self.scales.as_ref().map(|scales| scales.behind(first)),
        })
    }
}

/// Several weights that a file has in one tensor, the rows of one after those of the other.
pub(crate) const FUSED_ATTENTION: [Part; 3] = [Part::Query, Part::Key, Part::Value];
/// The biases of [`FUSED_ATTENTION`].
pub(crate) const FUSED_ATTENTION_BIAS: [Part; 3] = [Part::QueryBias, Part::KeyBias, Part::ValueBias];
/// The same of a feed-forward block.
pub(crate) const FUSED_FEED_FORWARD: [Part; 2] = [Part::Gate, Part::Up];

/// The weights of one file, and where they belong.
pub(crate) type Placed = Vec<(Slot, Entry)>;

/// Gives the name that a format has for a slot, and the slots of a name.
pub(crate) trait Names {
    fn name(&self, slot: Slot) -> String;
    /// The slots whose weights a tensor has, one after the other; none for an unknown tensor.
    fn slots(&self, name: &str) -> Vec<Slot>;
    /// Tensors that carry nothing that the decoder needs, or that are read elsewhere.
    fn is_ignored(&self, name: &str) -> bool;
}

/// Checked tensors by their place.
#[derive(Debug, Clone, Default)]
pub(crate) struct Inventory {
    slots: BTreeMap<Slot, Entry>,
}

impl Inventory {
    /// Sorts tensors into their places, and gives those of this call. Unknown tensors are refused: the graph would
    /// leave out what they do.
    pub(crate) fn add(
        &mut self,
        file: &str,
        entries: impl IntoIterator<Item = Entry>,
        names: &dyn Names,
        spec: &ModelSpec,
    ) -> Result<Placed, Refusal> {
        let mut placed = Vec::new();
        for entry in entries {
            if !names.is_ignored(&entry.name) {
                placed.extend(place(&entry, names, spec).map_err(|refusal| refusal.in_file(file))?);
            }
        }
        for (slot, entry) in &placed {
            if let Some(other) = self.slots.insert(*slot, entry.clone()) {
                return Err(mismatch(format!("tensor {:?} occurs twice", other.name)).in_file(file));
            }
        }
        Ok(placed)
    }

    /// Refuses when a weight is missing, naming the first few.
    pub(crate) fn check_complete(&self, names: &dyn Names, spec: &ModelSpec) -> Result<(), Refusal> {
        let layers = 0..spec.layers.len();
        let has = |slot: &Slot| self.slots.contains_key(slot);
        let is_required = |part: &Part| match part.presence(spec) {
            Presence::Absent => false,
            Presence::Present => true,
            Presence::AsStored => layers.clone().any(|index| has(&Slot::Layer(index, *part))),
        };
        let parts: Vec<_> = Part::ALL.into_iter().filter(is_required).collect();
        let in_layers = layers
            .clone()
            .flat_map(|index| parts.iter().map(move |&part| Slot::Layer(index, part)));
        let head = (!spec.tied).then_some(Slot::Head);
        let required = [Slot::Embedding, Slot::Norm].into_iter().chain(head).chain(in_layers);
        let missing: Vec<_> = required.filter(|slot| !has(slot)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let first: Vec<_> = missing.iter().take(5).map(|&slot| names.name(slot)).collect();
        let more = match missing.len() - first.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        Err(mismatch(format!("the model lacks tensors: {}{more}", first.join(", "))))
    }

    /// Leaves a weight out that is not needed.
    pub(crate) fn leave_out(&mut self, slot: Slot) {
        self.slots.remove(&slot);
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.slots.values()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Slot, &Entry)> {
        self.slots.iter().map(|(&slot, entry)| (slot, entry))
    }
}

fn mismatch(message: String) -> Refusal {
    Refusal::new(Reason::WeightsMismatch, message)
}

/// The place or, of a fused tensor, the places of an entry.
fn place(entry: &Entry, names: &dyn Names, spec: &ModelSpec) -> Result<Placed, Refusal> {
    let slots = names.slots(&entry.name);
    if slots.is_empty() || !slots.iter().all(|slot| slot.is_known(spec)) {
        let message = format!("tensor {:?} does not belong to this architecture", entry.name);
        return Err(mismatch(message));
    }
    let shapes: Vec<_> = slots.iter().map(|slot| slot.shape(spec)).collect();
    let whole = stacked(&shapes);
    if !entry.has_shape(whole) {
        return Err(mismatch(format!("tensor {:?} has the wrong shape", entry.name))
            .values(whole, format!("{:?}", entry.shape)));
    }
    if matches!(whole, Shape::Vector(_)) && !entry.is_float() {
        return Err(
            mismatch(format!("tensor {:?} has a type that a vector cannot have", entry.name))
                .values("F32, F16 or BF16", entry.kind),
        );
    }
    let mut first = 0;
    let mut placed = Vec::with_capacity(slots.len());
    for (slot, shape) in slots.into_iter().zip(shapes) {
        let end = first + shape.rows();
        let rows = entry.rows(first, end).ok_or_else(|| {
            mismatch(format!(
                "tensor {:?} has rows that are no whole blocks of its type",
                entry.name
            ))
        })?;
        placed.push((slot, rows));
        first = end;
    }
    Ok(placed)
}

/// The shape of tensors whose rows lie one after the other; all have the same columns.
fn stacked(shapes: &[Shape]) -> Shape {
    let total = shapes.iter().map(|shape| shape.rows()).sum();
    match shapes.first() {
        Some(&Shape::Matrix { columns, .. }) => Shape::Matrix { rows: total, columns },
        _ => Shape::Vector(total),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_tensor_are_a_range_of_its_bytes() {
        let entry = Entry {
            name: "qkv".into(),
            shape: vec![6, 64],
            kind: TensorType::Q8_0,
            range: 100..100 + 6 * 68,
            scales: None,
        };
        let rows = entry.rows(4, 6).unwrap();
        assert_eq!(
            (rows.shape.as_slice(), rows.range),
            ([2, 64].as_slice(), 100 + 4 * 68..100 + 6 * 68)
        );
        let odd = Entry {
            shape: vec![12, 16],
            range: 0..204,
            ..entry
        };
        assert_eq!(odd.rows(0, 4), None);
    }
}
