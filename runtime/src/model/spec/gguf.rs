//! A specification from the metadata of a GGUF file.

use super::family::Family;
use super::{
    Constants, Fields, LayerSpec, Long, MAX_CONTEXT, MAX_HEAD_SIZE, MAX_HEADS, MAX_LAYERS, MAX_VOCABULARY, MAX_WIDTH,
    ModelSpec, RopeScaling, RopeSpec, Yarn, float, inverse_root, narrow, unsupported,
};
use crate::model::LoadError;
use escadre_verify::structure::gguf::{Array, Gguf, Value};
use escadre_verify::{Reason, Refusal};

/// The base when a file does not say it, as in the first models of the family.
const DEFAULT_BASE: f64 = 10_000.0;
/// Gemma 2's window and bounds when a file does not say them.
const DEFAULT_WINDOW: usize = 4096;
const DEFAULT_ATTENTION_CAP: f64 = 50.0;
const DEFAULT_LOGIT_CAP: f64 = 30.0;

/// What the tensors of a file say about positions: divisors of frequencies, one per pair.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RopeFactors {
    /// For all contexts.
    pub always: Option<Vec<f32>>,
    /// For contexts up to the original one.
    pub short: Option<Vec<f32>>,
    /// For longer contexts.
    pub long: Option<Vec<f32>>,
}

pub(super) fn read(file: &str, gguf: &Gguf, vocabulary: usize, factors: RopeFactors) -> Result<ModelSpec, LoadError> {
    let architecture = architecture(file, gguf)?;
    let Some(family) = Family::from_gguf(architecture) else {
        return Err(unsupported(architecture, Family::gguf_names()));
    };
    let key = |name: &str| format!("{architecture}.{name}");
    let number = |name: &str| gguf.get(&key(name)).map(whole_number);
    let float = |name: &str| {
        gguf.get(&key(name))
            .map(|value| value.as_f64().ok_or_else(|| value.type_name().into()))
    };
    if number("expert_count").is_some_and(|count| count != Ok(0)) {
        let with_experts = format!("{architecture} with experts");
        return Err(unsupported(&with_experts, Family::gguf_names()));
    }
    let source = Source {
        fields: Fields {
            file,
            number: &number,
            float: &float,
        },
        get: &|name| gguf.get(&key(name)),
        family,
    };
    source.refuse_foreign()?;
    let mut spec = source.spec(architecture, vocabulary, factors)?;
    spec.tied = gguf.tensor("output.weight").is_none();
    Ok(source.fields.check(spec)?)
}

pub(super) fn architecture<'a>(file: &str, gguf: &'a Gguf) -> Result<&'a str, Refusal> {
    gguf.get("general.architecture").and_then(Value::as_str).ok_or_else(|| {
        Refusal::new(Reason::ConfigInvalid, "\"general.architecture\" is missing or no text").in_file(file)
    })
}

/// Some converters write one number per layer; those that are all equal mean the same as a single number.
fn whole_number(value: &Value) -> Result<u64, String> {
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

/// Metadata of other architectures that would change the answer.
const FOREIGN: [&str; 12] = [
    "attention.clamp_kqv",
    "attention.key_length_swa",
    "attention.max_alibi_bias",
    "attention.output_scale",
    "attention.shared_kv_layers",
    "attention.temperature_length",
    "attention.temperature_scale",
    "embedding_scale",
    "logit_scale",
    "residual_scale",
    "rope.dimension_count_swa",
    "rope.scaling.alpha",
];

/// Metadata of a known family.
struct Source<'a> {
    fields: Fields<'a>,
    get: &'a dyn Fn(&str) -> Option<&'a Value>,
    family: Family,
}

impl Source<'_> {
    fn refuse(&self, message: impl Into<String>) -> Refusal {
        self.fields.refuse(message)
    }

    fn refuse_foreign(&self) -> Result<(), Refusal> {
        let is_neutral = |value: &Value| value.as_u64() == Some(0) || value.as_f64() == Some(0.0);
        let caps = match self.family {
            Family::Gemma2 => None,
            Family::Gemma3 => Some("attn_logit_softcapping"),
            _ => Some("final_logit_softcapping"),
        };
        let foreign = FOREIGN.into_iter().chain(caps);
        let found = foreign
            .into_iter()
            .find(|name| (self.get)(name).is_some_and(|value| !is_neutral(value)));
        let found = found.or_else(|| {
            let is_causal = (self.get)("attention.causal").and_then(Value::as_bool);
            (is_causal == Some(false)).then_some("attention.causal")
        });
        match found {
            None => Ok(()),
            Some(name) => Err(self.refuse(format!(
                "{name:?} would change the answer and is not supported for this architecture"
            ))),
        }
    }

    fn spec(&self, architecture: &str, vocabulary: usize, factors: RopeFactors) -> Result<ModelSpec, Refusal> {
        let fields = &self.fields;
        let hidden = fields.required("embedding_length", MAX_WIDTH)?;
        let heads = fields.required("attention.head_count", MAX_HEADS)?;
        let head_size = self.head_size(hidden, heads)?;
        if vocabulary as u64 > MAX_VOCABULARY {
            return Err(fields
                .refuse("the embedding has too many rows")
                .values(format!("at most {MAX_VOCABULARY}"), vocabulary));
        }
        let count = fields.required("block_count", MAX_LAYERS)?;
        let context = fields.required("context_length", MAX_CONTEXT)?;
        Ok(ModelSpec {
            architecture: architecture.to_owned(),
            layers: self.layers(count)?,
            hidden,
            feed_forward: fields.required("feed_forward_length", MAX_WIDTH)?,
            heads,
            kv_heads: fields.optional("attention.head_count_kv", MAX_HEADS)?.unwrap_or(heads),
            head_size,
            vocabulary,
            context,
            constants: self.constants(count, hidden, heads, head_size)?,
            norms: self.family.norms(false),
            biases: self.family.stored_biases(),
            ropes: self.ropes(head_size, context, factors)?,
            tied: false,
        })
    }

    fn head_size(&self, hidden: usize, heads: usize) -> Result<usize, Refusal> {
        let fields = &self.fields;
        let size = match fields.optional("attention.key_length", MAX_HEAD_SIZE)? {
            Some(size) => size,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                let message =
                    "\"embedding_length\" is no multiple of \"attention.head_count\", and no size of a head is given";
                return Err(fields.refuse(message).values(format!("a multiple of {heads}"), hidden));
            }
        };
        match fields.optional("attention.value_length", MAX_HEAD_SIZE)? {
            Some(values) if values != size => {
                let message = "heads of keys and of values have different sizes, which this architecture does not have";
                Err(fields.refuse(message).values(size, values))
            }
            _ => Ok(size),
        }
    }

    fn constants(&self, layers: usize, hidden: usize, heads: usize, head_size: usize) -> Result<Constants, Refusal> {
        let fields = &self.fields;
        let epsilon = fields
            .float("attention.layer_norm_rms_epsilon", 0.0, 1.0)?
            .ok_or_else(|| fields.refuse("\"attention.layer_norm_rms_epsilon\" is missing"))?;
        // The largest Gemma of each generation scales scores by another size, which files do not say.
        let is_largest_gemma = match self.family {
            Family::Gemma2 => layers == 46,
            Family::Gemma3 => layers == 62,
            _ => false,
        };
        let usual = inverse_root(float(if is_largest_gemma { hidden / heads } else { head_size }));
        let (attention, logits) = match self.family {
            Family::Gemma2 => (Some(DEFAULT_ATTENTION_CAP), Some(DEFAULT_LOGIT_CAP)),
            _ => (None, None),
        };
        Ok(Constants {
            norm_epsilon: narrow(epsilon),
            activation: self.family.activation(),
            embedding_scale: self.family.is_gemma().then(|| narrow(float(hidden).sqrt())),
            attention_scale: self.positive("attention.scale")?.map_or(usual, narrow),
            attention_soft_cap: self.positive("attn_logit_softcapping")?.or(attention).map(narrow),
            logit_soft_cap: self.positive("final_logit_softcapping")?.or(logits).map(narrow),
        })
    }

    /// A number, of which 0 means that it is not used.
    fn positive(&self, name: &str) -> Result<Option<f64>, Refusal> {
        match (self.get)(name).and_then(Value::as_f64) {
            Some(0.0) => Ok(None),
            _ => self.fields.float(name, 0.0, 1e9),
        }
    }

    fn layers(&self, count: usize) -> Result<Vec<LayerSpec>, Refusal> {
        let window = self.window()?;
        let windowed = match window {
            None => vec![false; count],
            Some(_) => self.windowed(count)?,
        };
        let turned = self.family.unturned_period();
        let layers = windowed.into_iter().enumerate().map(|(index, windowed)| {
            let is_turned = turned.is_none_or(|period| !(index + 1).is_multiple_of(period));
            LayerSpec {
                window: window.filter(|_| windowed),
                rope: is_turned.then_some(usize::from(windowed && self.family.local_base().is_some())),
            }
        });
        Ok(layers.collect())
    }

    fn window(&self) -> Result<Option<usize>, Refusal> {
        const NAME: &str = "attention.sliding_window";
        match (self.get)(NAME).map(whole_number) {
            // How converters say that there is none.
            Some(Ok(0)) => Ok(None),
            None if self.family == Family::Gemma2 => Ok(Some(DEFAULT_WINDOW)),
            _ => self.fields.optional(NAME, MAX_CONTEXT),
        }
    }

    /// Which layers have the window: a list, a period, or what the family does.
    fn windowed(&self, count: usize) -> Result<Vec<bool>, Refusal> {
        const NAME: &str = "attention.sliding_window_pattern";
        let by_period = |period: usize| (1..=count).map(|layer| !layer.is_multiple_of(period)).collect();
        match (self.get)(NAME) {
            Some(Value::Array(Array::Bool(flags))) if flags.len() == count => Ok(flags.clone()),
            Some(Value::Array(_)) => Err(self
                .refuse(format!("{NAME:?} is malformed"))
                .values(format!("{count} times true or false"), "another list")),
            Some(_) => {
                let period = self.fields.required(NAME, MAX_LAYERS)?;
                Ok(by_period(period))
            }
            None => match (self.family, self.family.window_period()) {
                (_, Some(period)) => Ok(by_period(period)),
                (Family::Llama | Family::Mistral | Family::Phi3, None) => Ok(vec![true; count]),
                (_, None) => Err(self.refuse(format!("there is a window, but {NAME:?} is missing"))),
            },
        }
    }

    fn ropes(&self, head_size: usize, context: usize, factors: RopeFactors) -> Result<Vec<RopeSpec>, Refusal> {
        let fields = &self.fields;
        let base = fields.float("rope.freq_base", 0.0, 1e12)?.unwrap_or(DEFAULT_BASE);
        let global = RopeSpec {
            base,
            dimensions: fields
                .optional("rope.dimension_count", MAX_HEAD_SIZE)?
                .unwrap_or(head_size),
            pairs: self.family.stored_pairs(),
            scaling: self.scaling(context, factors)?,
        };
        let local = fields.float("rope.freq_base_swa", 0.0, 1e12)?;
        let Some(default) = self.family.local_base() else {
            return match local {
                Some(local) if local.to_bits() != base.to_bits() => Err(fields
                    .refuse("\"rope.freq_base_swa\" is not supported for this architecture")
                    .values(base, local)),
                _ => Ok(vec![global]),
            };
        };
        let local = RopeSpec {
            base: local.unwrap_or(default),
            scaling: RopeScaling::None,
            ..global.clone()
        };
        Ok(vec![global, local])
    }

    fn scaling(&self, context: usize, factors: RopeFactors) -> Result<RopeScaling, Refusal> {
        let kind = (self.get)("rope.scaling.type").and_then(Value::as_str);
        let factor = self.fields.float("rope.scaling.factor", 0.0, 1e6)?;
        let by_rule = match (kind, factor) {
            (None | Some("none" | "longrope"), None)
            | (Some("none" | "longrope"), Some(_))
            | (None | Some("linear"), Some(1.0)) => RopeScaling::None,
            (None | Some("linear"), Some(factor)) => RopeScaling::Linear(factor),
            (Some("yarn"), Some(factor)) => self.yarn(factor, context)?,
            (Some(kind), _) => {
                return Err(self.refuse(format!(
                    "the position scaling {kind:?} is not supported; supported are none, linear, yarn and longrope"
                )));
            }
        };
        let found = match factors {
            RopeFactors {
                always: None,
                short: None,
                long: None,
            } => {
                if kind == Some("longrope") {
                    return Err(self.refuse("the position scaling is longrope, but the lists of divisors are missing"));
                }
                return Ok(by_rule);
            }
            RopeFactors {
                always: Some(divisors),
                short: None,
                long: None,
            } => RopeScaling::Divisors(divisors),
            RopeFactors {
                always: None,
                short: Some(short),
                long: Some(long),
            } => self.long(short, long, context)?,
            _ => return Err(self.refuse("the lists of divisors for positions contradict each other")),
        };
        if by_rule == RopeScaling::None {
            return Ok(found);
        }
        Err(self.refuse("positions are stretched by a rule and by a list of divisors"))
    }

    fn original_context(&self) -> Result<Option<usize>, Refusal> {
        self.fields
            .optional("rope.scaling.original_context_length", MAX_CONTEXT)
    }

    fn yarn(&self, factor: f64, context: usize) -> Result<RopeScaling, Refusal> {
        for name in ["yarn_ext_factor", "yarn_log_multiplier", "attn_factor"] {
            let name = &format!("rope.scaling.{name}");
            if self
                .positive(name)?
                .is_some_and(|value| value.to_bits() != 1_f64.to_bits())
            {
                return Err(self.refuse(format!("{name:?} is not supported for this architecture")));
            }
        }
        let positive = |name: &str| self.positive(&format!("rope.scaling.{name}"));
        Ok(RopeScaling::Yarn(Yarn {
            factor,
            original_context: float(self.original_context()?.unwrap_or(context)),
            fast: positive("yarn_beta_fast")?.unwrap_or(32.0),
            slow: positive("yarn_beta_slow")?.unwrap_or(1.0),
            truncate: true,
            magnitude: positive("yarn_attn_factor")?.unwrap_or_else(|| Yarn::default_magnitude(factor)),
        }))
    }

    fn long(&self, short: Vec<f32>, long: Vec<f32>, context: usize) -> Result<RopeScaling, Refusal> {
        let original = self
            .original_context()?
            .ok_or_else(|| self.refuse("\"rope.scaling.original_context_length\" is missing"))?;
        let factor = float(context) / float(original);
        let magnitude = self.positive("rope.scaling.attn_factor")?;
        Ok(RopeScaling::Long(Long {
            short,
            long,
            original_context: original,
            magnitude: magnitude.unwrap_or_else(|| Long::default_magnitude(factor, original)),
        }))
    }
}
