//! A specification from a `config.json` as Hugging Face's libraries write it.

use super::{
    Fields, MAX_CONTEXT, MAX_HEAD_SIZE, MAX_HEADS, MAX_LAYERS, MAX_VOCABULARY, MAX_WIDTH, ModelSpec, RopeScaling,
    RopeSpec, SUPPORTED, narrow, unsupported,
};
use crate::backend::RopePairs;
use crate::model::LoadError;
use escadre_verify::Refusal;
use serde_json::Value;

const DEFAULT_BASE: f64 = 10_000.0;
const DEFAULT_EPSILON: f64 = 1e-6;

pub(super) fn read(file: &str, config: &Value) -> Result<ModelSpec, LoadError> {
    let number = |name: &str| present(config, name).map(|value| value.as_u64().ok_or_else(|| value.to_string()));
    let float = |name: &str| present(config, name).map(|value| value.as_f64().ok_or_else(|| value.to_string()));
    let fields = Fields {
        file,
        number: &number,
        float: &float,
    };
    let architecture = architecture(&fields, config)?;
    if !SUPPORTED.iter().any(|names| names.1 == architecture) {
        return Err(unsupported(architecture, SUPPORTED.iter().map(|names| names.1)));
    }
    if present(config, "auto_map").is_some() {
        tracing::warn!(
            file,
            "the configuration names code of its own (auto_map); it is ignored"
        );
    }
    if let Some(activation) = present(config, "hidden_act")
        && activation != "silu"
    {
        return Err(fields
            .refuse("\"hidden_act\" is not supported")
            .values("silu", activation)
            .into());
    }
    let hidden = fields.required("hidden_size", MAX_WIDTH)?;
    let heads = fields.required("num_attention_heads", MAX_HEADS)?;
    let head_size = match fields.optional("head_dim", MAX_HEAD_SIZE)? {
        Some(size) => size,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => {
            let message = "\"hidden_size\" is no multiple of \"num_attention_heads\", and there is no \"head_dim\"";
            return Err(fields
                .refuse(message)
                .values(format!("a multiple of {heads}"), hidden)
                .into());
        }
    };
    let epsilon = fields.float("rms_norm_eps", 0.0, 1.0)?.unwrap_or(DEFAULT_EPSILON);
    let spec = ModelSpec {
        architecture: architecture.to_owned(),
        layers: fields.required("num_hidden_layers", MAX_LAYERS)?,
        hidden,
        feed_forward: fields.required("intermediate_size", MAX_WIDTH)?,
        heads,
        kv_heads: fields.optional("num_key_value_heads", MAX_HEADS)?.unwrap_or(heads),
        head_size,
        vocabulary: fields.required("vocab_size", MAX_VOCABULARY)?,
        context: fields.required("max_position_embeddings", MAX_CONTEXT)?,
        norm_epsilon: narrow(epsilon),
        rope: rope(&fields, config, head_size)?,
    };
    Ok(fields.check(spec)?)
}

/// A field that is neither absent nor null.
fn present<'a>(config: &'a Value, name: &str) -> Option<&'a Value> {
    config.get(name).filter(|value| !value.is_null())
}

fn architecture<'a>(fields: &Fields<'_>, config: &'a Value) -> Result<&'a str, Refusal> {
    let names = config.get("architectures").and_then(Value::as_array);
    match names.map(Vec::as_slice) {
        Some([Value::String(name)]) => Ok(name),
        _ => Err(fields.refuse("\"architectures\" must be a list with one name")),
    }
}

/// Newer files keep everything in `rope_parameters`, older ones in `rope_theta` and `rope_scaling`.
fn rope(outer: &Fields<'_>, config: &Value, head_size: usize) -> Result<RopeSpec, Refusal> {
    let nested = present(config, "rope_parameters").or_else(|| present(config, "rope_scaling"));
    let nested = nested.cloned().unwrap_or(Value::Null);
    let float = |name: &str| present(&nested, name).map(|value| value.as_f64().ok_or_else(|| value.to_string()));
    let inner = Fields {
        file: outer.file,
        number: outer.number,
        float: &float,
    };
    let base = match inner.float("rope_theta", 0.0, 1e12)? {
        Some(base) => Some(base),
        None => outer.float("rope_theta", 0.0, 1e12)?,
    };
    Ok(RopeSpec {
        base: base.unwrap_or(DEFAULT_BASE),
        dimensions: head_size,
        pairs: RopePairs::Halves,
        scaling: scaling(&inner, &nested)?,
    })
}

fn scaling(fields: &Fields<'_>, nested: &Value) -> Result<RopeScaling, Refusal> {
    let kind = present(nested, "rope_type").or_else(|| present(nested, "type"));
    let required = |name: &str| {
        fields
            .float(name, 0.0, 1e9)?
            .ok_or_else(|| fields.refuse(format!("{name:?} is missing from the position scaling")))
    };
    match kind.map(|kind| kind.as_str().unwrap_or_default()) {
        None | Some("default") => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear(required("factor")?)),
        Some("llama3") => {
            let (low, high) = (required("low_freq_factor")?, required("high_freq_factor")?);
            if low >= high {
                return Err(fields
                    .refuse("\"high_freq_factor\" must be above \"low_freq_factor\"")
                    .values(format!("above {low}"), high));
            }
            Ok(RopeScaling::Llama3 {
                factor: required("factor")?,
                low,
                high,
                original_context: required("original_max_position_embeddings")?,
            })
        }
        Some(other) => Err(fields.refuse(format!(
            "the position scaling {other:?} is not supported; supported are default, linear and llama3"
        ))),
    }
}
