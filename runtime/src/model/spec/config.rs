//! A specification from a `config.json` as Hugging Face's libraries write it.
//!
//! A field that is absent has the value that those libraries give it for the architecture. A field that would change
//! the answer, and that the architecture has no place for, is refused.

mod layers;
mod positions;

use super::family::Family;
use super::{
    Biases, Constants, Fields, MAX_CONTEXT, MAX_HEAD_SIZE, MAX_HEADS, MAX_LAYERS, MAX_VOCABULARY, MAX_WIDTH, ModelSpec,
    Presence, float, inverse_root, narrow, unsupported,
};
use crate::backend::Activation;
use crate::model::LoadError;
use crate::model::load::fp8::BlockSize;
use escadre_verify::Refusal;
use serde_json::Value;

const DEFAULT_EPSILON: f64 = 1e-6;
/// The size of a head in Qwen 3 and in Gemma when none is given.
const DEFAULT_QWEN3_HEAD: usize = 128;
const DEFAULT_GEMMA_HEAD: usize = 256;
/// Gemma 2's bounds, and the size whose root divides the scores of Gemma, when none is given.
const DEFAULT_ATTENTION_CAP: f64 = 50.0;
const DEFAULT_LOGIT_CAP: f64 = 30.0;
const DEFAULT_SCALAR: f64 = 256.0;

pub(super) fn read(file: &str, config: &Value) -> Result<ModelSpec, LoadError> {
    let number = |name: &str| present(config, name).map(|value| value.as_u64().ok_or_else(|| value.to_string()));
    let float = |name: &str| present(config, name).map(|value| value.as_f64().ok_or_else(|| value.to_string()));
    let fields = Fields {
        file,
        number: &number,
        float: &float,
    };
    let architecture = architecture(&fields, config)?;
    let Some(family) = Family::from_config(architecture) else {
        return Err(unsupported(architecture, Family::config_names()));
    };
    if present(config, "auto_map").is_some() {
        tracing::warn!(
            file,
            "the configuration names code of its own (auto_map); it is ignored"
        );
    }
    let source = Source { fields, config, family };
    source.refuse_foreign()?;
    Ok(source.spec(architecture)?)
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

/// Fields of other architectures, which some files carry with a value that does nothing.
const FOREIGN: [&str; 14] = [
    "attention_chunk_size",
    "attention_multiplier",
    "clip_qkv",
    "embedding_multiplier",
    "logit_scale",
    "logits_scaling",
    "num_experts",
    "num_local_experts",
    "qk_layernorm",
    "quantization_config",
    "residual_multiplier",
    "use_bidirectional_attention",
    "use_parallel_residual",
    "use_qk_norm",
];

/// Whether a value of such a field does nothing: off, or a factor of 1.
fn is_neutral(value: &Value) -> bool {
    let factors = [0.0, 1.0].map(f64::to_bits);
    value.as_bool() == Some(false) || value.as_f64().is_some_and(|value| factors.contains(&value.to_bits()))
}

/// Whether weights are quantised in the one way that can be loaded.
fn is_fp8(name: &str, value: &Value) -> bool {
    name == "quantization_config" && BlockSize::of(value).is_some()
}

/// A configuration of a known family.
struct Source<'a> {
    fields: Fields<'a>,
    config: &'a Value,
    family: Family,
}

impl Source<'_> {
    fn present(&self, name: &str) -> Option<&Value> {
        present(self.config, name)
    }

    fn refuse(&self, message: impl Into<String>) -> Refusal {
        self.fields.refuse(message)
    }

    /// Refuses what this family does not have.
    fn refuse_foreign(&self) -> Result<(), Refusal> {
        let family = self.family;
        let own = |name: &str| match name {
            "attention_bias" => !matches!(family, Family::Mistral | Family::Phi3),
            "mlp_bias" => matches!(family, Family::Llama | Family::SmolLm3),
            "attn_logit_softcapping" => family == Family::Gemma2,
            "final_logit_softcapping" | "query_pre_attn_scalar" => family.is_gemma(),
            "partial_rotary_factor" => family == Family::Phi3,
            "no_rope_layers" => family == Family::SmolLm3,
            _ => false,
        };
        let features = [
            "attention_bias",
            "attn_logit_softcapping",
            "final_logit_softcapping",
            "mlp_bias",
            "no_rope_layers",
            "partial_rotary_factor",
            "query_pre_attn_scalar",
        ];
        let refused = FOREIGN.iter().chain(features.iter().filter(|name| !own(name)));
        for name in refused {
            if let Some(value) = self
                .present(name)
                .filter(|value| !is_neutral(value) && !is_fp8(name, value))
            {
                let message = format!("{name:?} would change the answer and is not supported for this architecture");
                return Err(self.refuse(message).values("nothing", shortened(value)));
            }
        }
        Ok(())
    }

    fn spec(&self, architecture: &str) -> Result<ModelSpec, Refusal> {
        let fields = &self.fields;
        let hidden = fields.required("hidden_size", MAX_WIDTH)?;
        let heads = fields.required("num_attention_heads", MAX_HEADS)?;
        let head_size = self.head_size(hidden, heads)?;
        let count = fields.required("num_hidden_layers", MAX_LAYERS)?;
        let context = fields.required("max_position_embeddings", MAX_CONTEXT)?;
        let spec = ModelSpec {
            architecture: architecture.to_owned(),
            layers: self.layers(count)?,
            hidden,
            feed_forward: fields.required("intermediate_size", MAX_WIDTH)?,
            heads,
            kv_heads: fields.optional("num_key_value_heads", MAX_HEADS)?.unwrap_or(heads),
            head_size,
            vocabulary: fields.required("vocab_size", MAX_VOCABULARY)?,
            context,
            constants: self.constants(hidden, head_size)?,
            norms: self.family.norms(true),
            biases: self.biases()?,
            ropes: self.ropes(head_size, context)?,
            tied: self.is_tied()?,
        };
        fields.check(spec)
    }

    fn head_size(&self, hidden: usize, heads: usize) -> Result<usize, Refusal> {
        if let Some(size) = self.fields.optional("head_dim", MAX_HEAD_SIZE)? {
            return Ok(size);
        }
        match self.family {
            Family::Qwen3 => Ok(DEFAULT_QWEN3_HEAD),
            Family::Gemma2 | Family::Gemma3 => Ok(DEFAULT_GEMMA_HEAD),
            _ if hidden.is_multiple_of(heads) => Ok(hidden / heads),
            _ => Err(self
                .refuse("\"hidden_size\" is no multiple of \"num_attention_heads\", and there is no \"head_dim\"")
                .values(format!("a multiple of {heads}"), hidden)),
        }
    }

    fn constants(&self, hidden: usize, head_size: usize) -> Result<Constants, Refusal> {
        let fields = &self.fields;
        let scalar = match self.family {
            Family::Gemma2 | Family::Gemma3 => fields
                .float("query_pre_attn_scalar", 0.0, 1e9)?
                .unwrap_or(DEFAULT_SCALAR),
            _ => float(head_size),
        };
        let (attention, logits) = match self.family {
            Family::Gemma2 => (Some(DEFAULT_ATTENTION_CAP), Some(DEFAULT_LOGIT_CAP)),
            _ => (None, None),
        };
        Ok(Constants {
            norm_epsilon: narrow(fields.float("rms_norm_eps", 0.0, 1.0)?.unwrap_or(DEFAULT_EPSILON)),
            activation: self.activation()?,
            embedding_scale: self.family.is_gemma().then(|| narrow(float(hidden).sqrt())),
            attention_scale: inverse_root(scalar),
            attention_soft_cap: self.cap("attn_logit_softcapping", attention)?,
            logit_soft_cap: self.cap("final_logit_softcapping", logits)?,
        })
    }

    /// A bound, which `null` switches off.
    fn cap(&self, name: &str, default: Option<f64>) -> Result<Option<f32>, Refusal> {
        if self.config.get(name).is_none() {
            return Ok(default.map(narrow));
        }
        Ok(self.fields.float(name, 0.0, 1e9)?.map(narrow))
    }

    fn activation(&self) -> Result<Activation, Refusal> {
        // Gemma's files have both, and only the second counts.
        let names = if self.family.is_gemma() {
            ["hidden_activation", "hidden_act"]
        } else {
            ["hidden_act", "hidden_act"]
        };
        let Some((name, value)) = names.iter().find_map(|name| Some((name, self.present(name)?))) else {
            return Ok(self.family.activation());
        };
        match value.as_str() {
            Some("silu") => Ok(Activation::Silu),
            Some("gelu_pytorch_tanh") => Ok(Activation::GeluTanh),
            _ => Err(self
                .refuse(format!("{name:?} is not supported"))
                .values("silu or gelu_pytorch_tanh", shortened(value))),
        }
    }

    fn biases(&self) -> Result<Biases, Refusal> {
        let present = |flag| if flag { Presence::Present } else { Presence::Absent };
        let attention = present(self.flag("attention_bias", false)?);
        Ok(match self.family {
            Family::Qwen2 => Biases {
                query_key_value: Presence::Present,
                ..Biases::default()
            },
            _ => Biases {
                query_key_value: attention,
                output: attention,
                feed_forward: present(self.flag("mlp_bias", false)?),
            },
        })
    }

    fn is_tied(&self) -> Result<bool, Refusal> {
        let default = self.family.is_gemma() || self.family == Family::SmolLm3;
        self.flag("tie_word_embeddings", default)
    }

    fn flag(&self, name: &str, default: bool) -> Result<bool, Refusal> {
        match self.present(name) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self
                .refuse(format!("{name:?} is neither true nor false"))
                .values("true or false", shortened(other))),
        }
    }
}

/// A value for an error text, cut when it is long.
fn shortened(value: &Value) -> String {
    value.to_string().chars().take(80).collect()
}
