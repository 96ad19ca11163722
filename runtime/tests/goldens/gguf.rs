//! A case as the converters of GGUF write it: other names, other keys, heads rearranged for some architectures,
//! Gemma's norms with 1 added.

use super::Case;
use super::tiny::Tensor;
use super::tiny::gguf::{adjacent_pairs, array, file, float, string, unsigned, unsigned16, vocabulary};
use std::f64::consts::TAU;

impl Case {
    /// The file, or its parts when there is more than one.
    pub(crate) fn gguf(&self, parts: usize) -> Vec<Vec<u8>> {
        let tensors = self.gguf_tensors();
        let size = tensors.len().div_ceil(parts);
        let chunk = |(index, tensors): (usize, &[(String, Tensor)])| {
            let mut keys = if index == 0 { self.keys() } else { Vec::new() };
            if parts > 1 {
                keys.push(unsigned16("split.no", index));
                keys.push(unsigned16("split.count", parts));
            }
            file(&keys, tensors)
        };
        tensors.chunks(size).enumerate().map(chunk).collect()
    }

    fn architecture(&self) -> &'static str {
        match self.config["architectures"][0].as_str().unwrap() {
            "LlamaForCausalLM" | "MistralForCausalLM" => "llama",
            "Qwen2ForCausalLM" => "qwen2",
            "Qwen3ForCausalLM" => "qwen3",
            "Gemma2ForCausalLM" => "gemma2",
            "Gemma3ForCausalLM" => "gemma3",
            "Phi3ForCausalLM" => "phi3",
            "SmolLM3ForCausalLM" => "smollm3",
            other => panic!("{other}"),
        }
    }

    fn size(&self, name: &str) -> usize {
        usize::try_from(self.config[name].as_u64().unwrap()).unwrap()
    }

    fn head_size(&self) -> usize {
        match self.config["head_dim"].as_u64() {
            Some(size) => usize::try_from(size).unwrap(),
            None => self.size("hidden_size") / self.size("num_attention_heads"),
        }
    }

    /// The values of a head that are turned.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a part of a small size"
    )]
    fn turned(&self) -> usize {
        let part = self.config["partial_rotary_factor"].as_f64().unwrap_or(1.0);
        (f64::from(u32::try_from(self.head_size()).unwrap()) * part) as usize
    }

    fn keys(&self) -> Vec<Vec<u8>> {
        let architecture = self.architecture();
        let key = |name: &str| format!("{architecture}.{name}");
        let mut keys = vec![string("general.architecture", architecture)];
        let sizes = [
            ("block_count", "num_hidden_layers"),
            ("embedding_length", "hidden_size"),
            ("feed_forward_length", "intermediate_size"),
            ("attention.head_count", "num_attention_heads"),
            ("attention.head_count_kv", "num_key_value_heads"),
            ("context_length", "max_position_embeddings"),
            ("attention.sliding_window", "sliding_window"),
            (
                "rope.scaling.original_context_length",
                "original_max_position_embeddings",
            ),
        ];
        for (name, field) in sizes {
            if self.config[field].is_u64() {
                keys.push(unsigned(&key(name), self.size(field)));
            }
        }
        for name in ["attention.key_length", "attention.value_length"] {
            keys.push(unsigned(&key(name), self.head_size()));
        }
        keys.push(unsigned(&key("rope.dimension_count"), self.turned()));
        let floats = [
            ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
            ("rope.freq_base", "rope_theta"),
            ("rope.freq_base_swa", "rope_local_base_freq"),
            ("attn_logit_softcapping", "attn_logit_softcapping"),
            ("final_logit_softcapping", "final_logit_softcapping"),
        ];
        for (name, field) in floats {
            if let Some(value) = self.config[field].as_f64() {
                keys.push(float(&key(name), value));
            }
        }
        if let Some(scalar) = self.config["query_pre_attn_scalar"].as_f64() {
            keys.push(float(&key("attention.scale"), 1.0 / scalar.sqrt()));
        }
        let scaling = &self.config["rope_scaling"];
        if let kind @ ("linear" | "yarn") = scaling["rope_type"].as_str().unwrap_or_default() {
            keys.push(string(&key("rope.scaling.type"), kind));
            keys.push(float(&key("rope.scaling.factor"), scaling["factor"].as_f64().unwrap()));
        }
        if scaling["rope_type"] == "yarn" {
            let original = scaling["original_max_position_embeddings"].as_u64().unwrap();
            keys.push(unsigned(
                &key("rope.scaling.original_context_length"),
                usize::try_from(original).unwrap(),
            ));
            for name in ["beta_fast", "beta_slow"] {
                keys.push(float(
                    &key(&format!("rope.scaling.yarn_{name}")),
                    scaling[name].as_f64().unwrap(),
                ));
            }
        }
        if architecture == "qwen2" {
            let types = self.config["layer_types"].as_array().unwrap();
            let flags: Vec<u8> = types.iter().map(|kind| u8::from(kind == "sliding_attention")).collect();
            keys.push(array(&key("attention.sliding_window_pattern"), 7, flags.len(), &flags));
        }
        keys.extend(vocabulary());
        keys
    }

    fn gguf_tensors(&self) -> Vec<(String, Tensor)> {
        let is_gemma = self.architecture().starts_with("gemma");
        let is_rearranged = matches!(self.architecture(), "llama" | "smollm3");
        let mut tensors = Vec::new();
        for (name, tensor) in &self.tensors {
            let mut tensor = tensor.clone();
            if is_gemma && name.contains("norm") {
                tensor.values.iter_mut().for_each(|value| *value += 1.0);
            }
            if is_rearranged && (name.contains("q_proj") || name.contains("k_proj")) {
                tensor.values = adjacent_pairs(&tensor, self.head_size());
            }
            tensors.push((renamed(name, is_gemma), tensor));
        }
        let scaling = &self.config["rope_scaling"];
        if scaling["rope_type"] == "llama3" {
            tensors.insert(0, ("rope_freqs.weight".to_owned(), self.llama3_divisors()));
        }
        for name in ["long", "short"] {
            if let Some(list) = scaling[format!("{name}_factor")].as_array() {
                let values: Vec<f32> = list.iter().map(super::number).collect();
                let shape = vec![values.len()];
                tensors.insert(0, (format!("rope_factors_{name}.weight"), Tensor { shape, values }));
            }
        }
        tensors
    }

    /// The rule of Llama 3 as its authors wrote it.
    fn llama3_divisors(&self) -> Tensor {
        let scaling = &self.config["rope_scaling"];
        let get = |name: &str| scaling[name].as_f64().unwrap();
        let (low, high, factor) = (get("low_freq_factor"), get("high_freq_factor"), get("factor"));
        let (original, base) = (
            get("original_max_position_embeddings"),
            self.config["rope_theta"].as_f64().unwrap(),
        );
        let size = u32::try_from(self.head_size()).unwrap();
        let divisor = |pair: u32| {
            let wavelength = TAU * base.powf(2.0 * f64::from(pair) / f64::from(size));
            if wavelength < original / high {
                1.0
            } else if wavelength > original / low {
                factor
            } else {
                let smooth = (original / wavelength - low) / (high - low);
                1.0 / ((1.0 - smooth) / factor + smooth)
            }
        };
        #[expect(clippy::cast_possible_truncation, reason = "the format has f32")]
        let values: Vec<f32> = (0..size / 2).map(|pair| divisor(pair) as f32).collect();
        Tensor {
            shape: vec![values.len()],
            values,
        }
    }
}

fn renamed(name: &str, is_gemma: bool) -> String {
    let behind_attention = if is_gemma { "post_attention_norm" } else { "ffn_norm" };
    let parts = [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("model.layers", "blk"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", behind_attention),
        ("pre_feedforward_layernorm", "ffn_norm"),
        ("post_feedforward_layernorm", "post_ffw_norm"),
        ("self_attn.qkv_proj", "attn_qkv"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("mlp.gate_up_proj", "ffn_up"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    parts
        .iter()
        .fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}
