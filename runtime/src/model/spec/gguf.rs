//! A specification from the metadata of a GGUF file.

use super::{
    Fields, MAX_CONTEXT, MAX_HEAD_SIZE, MAX_HEADS, MAX_LAYERS, MAX_VOCABULARY, MAX_WIDTH, ModelSpec, RopeScaling,
    RopeSpec, SUPPORTED, narrow, unsupported,
};
use crate::backend::RopePairs;
use crate::model::LoadError;
use escadre_verify::structure::gguf::{Gguf, Value};
use escadre_verify::{Reason, Refusal};

/// The base when a file does not say it, as in the first models of the family.
const DEFAULT_BASE: f64 = 10_000.0;

pub(super) fn read(file: &str, gguf: &Gguf, vocabulary: usize) -> Result<ModelSpec, LoadError> {
    let architecture = architecture(file, gguf)?;
    if !SUPPORTED.iter().any(|names| names.0 == architecture) {
        return Err(unsupported(architecture, SUPPORTED.iter().map(|names| names.0)));
    }
    let key = |name: &str| format!("{architecture}.{name}");
    let number = |name: &str| gguf.get(&key(name)).map(whole_number);
    let float = |name: &str| {
        gguf.get(&key(name))
            .map(|value| value.as_f64().ok_or_else(|| value.type_name().into()))
    };
    let fields = Fields {
        file,
        number: &number,
        float: &float,
    };
    if number("expert_count").is_some_and(|count| count != Ok(0)) {
        let with_experts = format!("{architecture} with experts");
        return Err(unsupported(&with_experts, SUPPORTED.iter().map(|names| names.0)));
    }
    let hidden = fields.required("embedding_length", MAX_WIDTH)?;
    let heads = fields.required("attention.head_count", MAX_HEADS)?;
    let head_size = match fields.optional("attention.key_length", MAX_HEAD_SIZE)? {
        Some(size) => size,
        None => even_split(&fields, hidden, heads)?,
    };
    if let Some(size) = fields.optional("attention.value_length", MAX_HEAD_SIZE)?
        && size != head_size
    {
        let message = "heads of keys and of values have different sizes, which this architecture does not have";
        return Err(fields.refuse(message).values(head_size, size).into());
    }
    if vocabulary as u64 > MAX_VOCABULARY {
        return Err(fields
            .refuse("the embedding has too many rows")
            .values(format!("at most {MAX_VOCABULARY}"), vocabulary)
            .into());
    }
    let dimensions = fields
        .optional("rope.dimension_count", MAX_HEAD_SIZE)?
        .unwrap_or(head_size);
    let spec = ModelSpec {
        architecture: architecture.to_owned(),
        layers: fields.required("block_count", MAX_LAYERS)?,
        hidden,
        feed_forward: fields.required("feed_forward_length", MAX_WIDTH)?,
        heads,
        kv_heads: fields.optional("attention.head_count_kv", MAX_HEADS)?.unwrap_or(heads),
        head_size,
        vocabulary,
        context: fields.required("context_length", MAX_CONTEXT)?,
        norm_epsilon: fields
            .float("attention.layer_norm_rms_epsilon", 0.0, 1.0)?
            .map(narrow)
            .ok_or_else(|| fields.refuse("\"attention.layer_norm_rms_epsilon\" is missing"))?,
        rope: RopeSpec {
            base: fields.float("rope.freq_base", 0.0, 1e12)?.unwrap_or(DEFAULT_BASE),
            dimensions,
            pairs: RopePairs::Adjacent,
            scaling: scaling(&fields, gguf, &key("rope.scaling.type"))?,
        },
    };
    Ok(fields.check(spec)?)
}

pub(super) fn architecture<'a>(file: &str, gguf: &'a Gguf) -> Result<&'a str, Refusal> {
    gguf.get("general.architecture").and_then(Value::as_str).ok_or_else(|| {
        Refusal::new(Reason::ConfigInvalid, "\"general.architecture\" is missing or no text").in_file(file)
    })
}

/// Some converters write one number per layer; those that are all equal mean the same as a single number.
fn whole_number(value: &Value) -> Result<u64, String> {
    use escadre_verify::structure::gguf::Array;
    let number = match value {
        Value::Array(Array::Unsigned(numbers)) => all_equal(numbers),
        Value::Array(Array::Signed(numbers)) => all_equal(numbers).and_then(|number| number.try_into().ok()),
        other => other.as_u64(),
    };
    number.ok_or_else(|| value.type_name().to_owned())
}

fn all_equal<T: Copy + PartialEq>(values: &[T]) -> Option<T> {
    let first = *values.first()?;
    values.iter().all(|&value| value == first).then_some(first)
}

fn even_split(fields: &Fields<'_>, hidden: usize, heads: usize) -> Result<usize, Refusal> {
    if hidden.is_multiple_of(heads) {
        return Ok(hidden / heads);
    }
    Err(fields
        .refuse("\"embedding_length\" is no multiple of \"attention.head_count\", and no size of a head is given")
        .values(format!("a multiple of {heads}"), hidden))
}

fn scaling(fields: &Fields<'_>, gguf: &Gguf, kind: &str) -> Result<RopeScaling, Refusal> {
    let kind = gguf.get(kind).and_then(Value::as_str);
    let factor = fields.float("rope.scaling.factor", 0.0, 1e6)?;
    match (kind, factor) {
        (None | Some("none"), None) | (Some("none"), Some(_)) => Ok(RopeScaling::None),
        (None | Some("linear"), Some(factor)) => Ok(RopeScaling::Linear(factor)),
        (Some(kind), _) => Err(fields.refuse(format!(
            "the position scaling {kind:?} is not supported; supported are none and linear"
        ))),
    }
}
