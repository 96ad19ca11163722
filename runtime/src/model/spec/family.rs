//! The architectures that the decoder covers, and what follows from their names alone.

use super::{Biases, Norms, Presence};
use crate::backend::{Activation, RopePairs};

/// A family of models that one name in a file stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
    Gemma2,
    Gemma3,
    Phi3,
    SmolLm3,
}

impl Family {
    const ALL: [Self; 8] = [
        Self::Llama,
        Self::Mistral,
        Self::Qwen2,
        Self::Qwen3,
        Self::Gemma2,
        Self::Gemma3,
        Self::Phi3,
        Self::SmolLm3,
    ];

    pub(super) fn from_gguf(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|family| family.gguf_name() == Some(name))
    }

    pub(super) fn from_config(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|family| family.config_name() == name)
    }

    pub(super) fn gguf_names() -> impl Iterator<Item = &'static str> {
        Self::ALL.into_iter().filter_map(Self::gguf_name)
    }

    pub(super) fn config_names() -> impl Iterator<Item = &'static str> {
        Self::ALL.into_iter().map(Self::config_name)
    }

    fn gguf_name(self) -> Option<&'static str> {
        match self {
            Self::Llama => Some("llama"),
            // Comes as `llama`.
            Self::Mistral => None,
            Self::Qwen2 => Some("qwen2"),
            Self::Qwen3 => Some("qwen3"),
            Self::Gemma2 => Some("gemma2"),
            Self::Gemma3 => Some("gemma3"),
            Self::Phi3 => Some("phi3"),
            Self::SmolLm3 => Some("smollm3"),
        }
    }

    fn config_name(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
            Self::Gemma2 => "Gemma2ForCausalLM",
            Self::Gemma3 => "Gemma3ForCausalLM",
            Self::Phi3 => "Phi3ForCausalLM",
            Self::SmolLm3 => "SmolLM3ForCausalLM",
        }
    }

    pub(super) fn is_gemma(self) -> bool {
        matches!(self, Self::Gemma2 | Self::Gemma3)
    }

    /// The gate when a file does not name one.
    pub(super) fn activation(self) -> Activation {
        if self.is_gemma() {
            Activation::GeluTanh
        } else {
            Activation::Silu
        }
    }

    /// The norms; `less_one` is how the family's own files store them.
    pub(super) fn norms(self, less_one: bool) -> Norms {
        Norms {
            less_one: less_one && self.is_gemma(),
            heads: matches!(self, Self::Qwen3 | Self::Gemma3),
            post: self.is_gemma(),
        }
    }

    /// The biases of a GGUF file, whose metadata does not name them.
    pub(super) fn stored_biases(self) -> Biases {
        match self {
            Self::Qwen2 => Biases {
                query_key_value: Presence::Present,
                ..Biases::default()
            },
            Self::Llama | Self::Mistral | Self::Qwen3 | Self::SmolLm3 => Biases {
                query_key_value: Presence::AsStored,
                output: Presence::AsStored,
                feed_forward: Presence::AsStored,
            },
            Self::Gemma2 | Self::Gemma3 | Self::Phi3 => Biases::default(),
        }
    }

    /// Where GGUF files have the pairs that are turned: converters rearrange the heads of some families.
    pub(super) fn stored_pairs(self) -> RopePairs {
        match self {
            Self::Llama | Self::Mistral | Self::SmolLm3 => RopePairs::Adjacent,
            Self::Qwen2 | Self::Qwen3 | Self::Gemma2 | Self::Gemma3 | Self::Phi3 => RopePairs::Halves,
        }
    }

    /// Every how manieth layer sees all tokens, where the others have a window and no file says otherwise.
    pub(super) fn window_period(self) -> Option<usize> {
        match self {
            Self::Gemma2 => Some(2),
            Self::Gemma3 => Some(6),
            Self::Llama | Self::Mistral | Self::Qwen2 | Self::Qwen3 | Self::Phi3 | Self::SmolLm3 => None,
        }
    }

    /// The base of positions in layers with a window, where it differs from that of the others.
    pub(super) fn local_base(self) -> Option<f64> {
        (self == Self::Gemma3).then_some(10_000.0)
    }

    /// Every how manieth layer does not turn queries and keys.
    pub(super) fn unturned_period(self) -> Option<usize> {
        (self == Self::SmolLm3).then_some(4)
    }
}
