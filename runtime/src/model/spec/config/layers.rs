//! What differs between layers: which of them have a window, and which of them turn queries and keys.

use super::{Source, shortened};
use crate::model::spec::family::Family;
use crate::model::spec::{LayerSpec, MAX_CONTEXT, MAX_LAYERS};
use escadre_verify::Refusal;
use serde_json::Value;

/// The window when a file does not say it.
const DEFAULT_WINDOW: usize = 4096;
/// The first layer with a window in Qwen's models that use one, when a file does not say it.
const DEFAULT_FULL_LAYERS: u64 = 28;

impl Source<'_> {
    /// A table with one entry per layer.
    pub(super) fn layers(&self, count: usize) -> Result<Vec<LayerSpec>, Refusal> {
        let turned = self.turned(count)?;
        let windowed = self.windowed(&turned)?;
        let window = self.window()?;
        let layer = |(windowed, turned): (bool, bool)| LayerSpec {
            window: window.filter(|_| windowed),
            rope: turned.then_some(usize::from(self.family.local_base().is_some() && windowed)),
        };
        Ok(windowed.into_iter().zip(turned).map(layer).collect())
    }

    /// The window of those layers that have one.
    fn window(&self) -> Result<Option<usize>, Refusal> {
        const NAME: &str = "sliding_window";
        let is_used = match self.family {
            Family::Llama => false,
            Family::Mistral | Family::Gemma2 | Family::Gemma3 | Family::Phi3 => true,
            Family::Qwen2 | Family::Qwen3 | Family::SmolLm3 => self.flag("use_sliding_window", false)?,
        };
        if !is_used {
            return Ok(None);
        }
        let is_default = self.config.get(NAME).is_none() && !matches!(self.family, Family::Phi3 | Family::SmolLm3);
        if is_default {
            return Ok(Some(DEFAULT_WINDOW));
        }
        self.fields.optional(NAME, MAX_CONTEXT)
    }

    /// Which layers have a window.
    fn windowed(&self, turned: &[bool]) -> Result<Vec<bool>, Refusal> {
        let count = turned.len();
        let usual: Vec<bool> = match self.family {
            Family::Llama => vec![false; count],
            Family::Mistral | Family::Phi3 => vec![true; count],
            Family::Gemma2 | Family::Gemma3 => {
                let period = self.fields.optional("sliding_window_pattern", MAX_LAYERS)?;
                let period = period.or(self.family.window_period()).unwrap_or(1);
                (1..=count).map(|layer| !layer.is_multiple_of(period)).collect()
            }
            Family::Qwen2 | Family::Qwen3 => {
                let full = self.present("max_window_layers").and_then(Value::as_u64);
                let full = full.unwrap_or(DEFAULT_FULL_LAYERS);
                (0..count as u64).map(|layer| layer >= full).collect()
            }
            Family::SmolLm3 => turned.iter().map(|turned| !turned).collect(),
        };
        let Some(named) = self.layer_types(count)? else {
            return Ok(usual);
        };
        let is_used = self.window()?.is_some();
        // These have one window for all layers or none at all, and their code does not look at the list.
        let is_fixed = matches!(self.family, Family::Llama | Family::Mistral | Family::Phi3);
        let contradicts = named
            .iter()
            .zip(&usual)
            .any(|(named, usual)| *named != (*usual && is_used));
        if is_fixed && contradicts || !is_used && named.contains(&true) {
            return Err(self.refuse("\"layer_types\" contradicts the architecture or the window"));
        }
        Ok(if is_fixed { usual } else { named })
    }

    fn layer_types(&self, count: usize) -> Result<Option<Vec<bool>>, Refusal> {
        let Some(types) = self.present("layer_types") else {
            return Ok(None);
        };
        let named = types.as_array().and_then(|types| {
            let types = types.iter().map(|kind| match kind.as_str()? {
                "full_attention" => Some(false),
                "sliding_attention" => Some(true),
                _ => None,
            });
            types.collect::<Option<Vec<_>>>()
        });
        match named.filter(|named| named.len() == count) {
            Some(named) => Ok(Some(named)),
            None => Err(self.refuse("\"layer_types\" is not supported").values(
                format!("{count} times full_attention or sliding_attention"),
                shortened(types),
            )),
        }
    }

    /// Which layers turn queries and keys. Where a list says so, 1 means that a layer does, in spite of its name.
    fn turned(&self, count: usize) -> Result<Vec<bool>, Refusal> {
        let Some(period) = self.family.unturned_period() else {
            return Ok(vec![true; count]);
        };
        let Some(list) = self.present("no_rope_layers") else {
            let period = self
                .fields
                .optional("no_rope_layer_interval", MAX_LAYERS)?
                .unwrap_or(period);
            return Ok((1..=count).map(|layer| !layer.is_multiple_of(period)).collect());
        };
        let flags = list.as_array().and_then(|flags| {
            let flags = flags.iter().map(|flag| match flag.as_u64()? {
                0 => Some(false),
                1 => Some(true),
                _ => None,
            });
            flags.collect::<Option<Vec<_>>>()
        });
        flags.filter(|flags| flags.len() == count).ok_or_else(|| {
            self.refuse("\"no_rope_layers\" is malformed")
                .values(format!("{count} times 0 or 1"), shortened(list))
        })
    }
}
