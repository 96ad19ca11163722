//! Position embeddings: their bases, and how they are stretched.

use super::{Source, present};
use crate::backend::RopePairs;
use crate::model::spec::family::Family;
use crate::model::spec::{Fields, Long, MAX_CONTEXT, RopeScaling, RopeSpec, Yarn, float, narrow};
use escadre_verify::Refusal;
use serde_json::Value;

const DEFAULT_BASE: f64 = 10_000.0;
/// The largest base that is believed.
const MAX_BASE: f64 = 1e12;

impl Source<'_> {
    /// One rotation, and a second one for the layers with a window where the family has it.
    ///
    /// Newer files keep everything in `rope_parameters`, older ones in `rope_theta` and `rope_scaling`.
    pub(super) fn ropes(&self, head_size: usize, context: usize) -> Result<Vec<RopeSpec>, Refusal> {
        let null = Value::Null;
        let nested = self.present("rope_parameters").or_else(|| self.present("rope_scaling"));
        let nested = nested.unwrap_or(&null);
        // One object per kind of layer, if there are several kinds.
        let global = present(nested, "full_attention").unwrap_or(nested);
        let mut ropes = vec![self.rope(global, head_size, context)?];
        if let Some(default) = self.family.local_base() {
            ropes.push(match present(nested, "sliding_attention") {
                Some(local) => self.rope(local, head_size, context)?,
                None => RopeSpec {
                    base: self
                        .fields
                        .float("rope_local_base_freq", 0.0, MAX_BASE)?
                        .unwrap_or(default),
                    dimensions: head_size,
                    pairs: RopePairs::Halves,
                    scaling: RopeScaling::None,
                },
            });
        }
        Ok(ropes)
    }

    fn rope(&self, nested: &Value, head_size: usize, context: usize) -> Result<RopeSpec, Refusal> {
        let number = |name: &str| present(nested, name).map(|value| value.as_u64().ok_or_else(|| value.to_string()));
        let float = |name: &str| present(nested, name).map(|value| value.as_f64().ok_or_else(|| value.to_string()));
        let stretch = Stretch {
            fields: Fields {
                file: self.fields.file,
                number: &number,
                float: &float,
            },
            nested,
            outer: &self.fields,
            context,
            family: self.family,
        };
        Ok(RopeSpec {
            base: stretch.either("rope_theta", MAX_BASE)?.unwrap_or(self.default_base()),
            dimensions: self.turned_dimensions(&stretch, head_size)?,
            pairs: RopePairs::Halves,
            scaling: stretch.scaling()?,
        })
    }

    fn default_base(&self) -> f64 {
        match self.family {
            Family::Gemma3 => 1_000_000.0,
            Family::SmolLm3 => 2_000_000.0,
            _ => DEFAULT_BASE,
        }
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a part of a size of a head, rounded down as the libraries do"
    )]
    fn turned_dimensions(&self, stretch: &Stretch<'_>, head_size: usize) -> Result<usize, Refusal> {
        let factor = match self.family {
            Family::Phi3 => stretch.either("partial_rotary_factor", 1.0)?.unwrap_or(1.0),
            _ => stretch.refuse_part()?,
        };
        Ok((float(head_size) * factor) as usize)
    }
}

/// How one rotation is stretched.
struct Stretch<'a> {
    /// Of the nested object.
    fields: Fields<'a>,
    nested: &'a Value,
    outer: &'a Fields<'a>,
    /// The context of the model.
    context: usize,
    family: Family,
}

impl Stretch<'_> {
    /// A field of the nested object or of the whole.
    fn either(&self, name: &str, limit: f64) -> Result<Option<f64>, Refusal> {
        match self.fields.float(name, 0.0, limit)? {
            Some(value) => Ok(Some(value)),
            None => self.outer.float(name, 0.0, limit),
        }
    }

    fn required(&self, name: &str) -> Result<f64, Refusal> {
        self.fields
            .float(name, 0.0, 1e9)?
            .ok_or_else(|| self.refuse(format!("{name:?} is missing from the position scaling")))
    }

    fn refuse(&self, message: impl Into<String>) -> Refusal {
        self.fields.refuse(message)
    }

    /// Gives 1, or refuses a head of which only a part is turned.
    fn refuse_part(&self) -> Result<f64, Refusal> {
        match self.fields.float("partial_rotary_factor", 0.0, 1.0)? {
            Some(part) if part < 1.0 => Err(self
                .refuse("\"partial_rotary_factor\" is not supported for this architecture")
                .values(1, part)),
            _ => Ok(1.0),
        }
    }

    fn scaling(&self) -> Result<RopeScaling, Refusal> {
        let kind = present(self.nested, "rope_type").or_else(|| present(self.nested, "type"));
        let kind = kind.map(|kind| kind.as_str().unwrap_or_default());
        match kind {
            None | Some("default") => Ok(RopeScaling::None),
            // The first files of the family had other names for it.
            Some("longrope" | "su" | "yarn") if self.family == Family::Phi3 => self.long(),
            Some("linear") => Ok(RopeScaling::Linear(self.required("factor")?)),
            Some("llama3") => self.llama3(),
            Some("yarn") => self.yarn(),
            Some(other) => {
                let long = if self.family == Family::Phi3 { ", longrope" } else { "" };
                Err(self.refuse(format!(
                    "the position scaling {other:?} is not supported; supported are default, linear, llama3, yarn{long}"
                )))
            }
        }
    }

    fn llama3(&self) -> Result<RopeScaling, Refusal> {
        let (low, high) = (self.required("low_freq_factor")?, self.required("high_freq_factor")?);
        if low >= high {
            return Err(self
                .refuse("\"high_freq_factor\" must be above \"low_freq_factor\"")
                .values(format!("above {low}"), high));
        }
        Ok(RopeScaling::Llama3 {
            factor: self.required("factor")?,
            low,
            high,
            original_context: self.required("original_max_position_embeddings")?,
        })
    }

    fn yarn(&self) -> Result<RopeScaling, Refusal> {
        let optional = |name| self.fields.float(name, 0.0, 1e9);
        let factor = self.required("factor")?;
        let (scale, all) = (optional("mscale")?, optional("mscale_all_dim")?);
        let magnitude = match (optional("attention_factor")?, scale, all) {
            (Some(magnitude), _, _) => magnitude,
            (None, Some(scale), Some(all)) => {
                let scaled = |scale: f64| 1.0 + scale * (Yarn::default_magnitude(factor) - 1.0);
                scaled(scale) / scaled(all)
            }
            (None, _, _) => Yarn::default_magnitude(factor),
        };
        let original = optional("original_max_position_embeddings")?;
        Ok(RopeScaling::Yarn(Yarn {
            factor,
            original_context: original.unwrap_or(float(self.context)),
            fast: optional("beta_fast")?.unwrap_or(32.0),
            slow: optional("beta_slow")?.unwrap_or(1.0),
            truncate: present(self.nested, "truncate").is_none_or(|flag| flag.as_bool() != Some(false)),
            magnitude,
        }))
    }

    fn long(&self) -> Result<RopeScaling, Refusal> {
        const ORIGINAL: &str = "original_max_position_embeddings";
        let original = match self.fields.optional(ORIGINAL, MAX_CONTEXT)? {
            Some(original) => Some(original),
            None => self.outer.optional(ORIGINAL, MAX_CONTEXT)?,
        };
        let original = original.ok_or_else(|| self.refuse(format!("{ORIGINAL:?} is missing")))?;
        let factor = float(self.context) / float(original);
        let magnitude = self.fields.float("attention_factor", 0.0, 1e9)?;
        Ok(RopeScaling::Long(Long {
            short: self.divisors("short_factor")?,
            long: self.divisors("long_factor")?,
            original_context: original,
            magnitude: magnitude.unwrap_or_else(|| Long::default_magnitude(factor, original)),
        }))
    }

    /// A list of numbers; how many there must be is checked with the rest.
    fn divisors(&self, name: &str) -> Result<Vec<f32>, Refusal> {
        let list = present(self.nested, name).and_then(Value::as_array);
        let list = list.and_then(|list| list.iter().map(|value| value.as_f64().map(narrow)).collect());
        list.ok_or_else(|| {
            self.refuse(format!(
                "{name:?} is missing from the position scaling or no list of numbers"
            ))
        })
    }
}
