use super::*;
use escadre_verify::structure::gguf::{Gguf, Value};
use serde_json::json;

fn llama(layers: u64, hidden: u64, heads: u64, kv_heads: u64) -> Json {
    json!({
        "architectures": ["LlamaForCausalLM"], "num_hidden_layers": layers, "hidden_size": hidden,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "intermediate_size": 4 * hidden,
        "vocab_size": 128_256, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0,
    })
}

fn read(config: &Json) -> Result<ModelSpec, LoadError> {
    ModelSpec::from_config("config.json", config)
}

/// Another architecture with the fields that every configuration has.
fn other(architecture: &str, changes: &Json) -> Json {
    let mut config = llama(2, 64, 4, 2);
    config["architectures"] = json!([architecture]);
    for (name, value) in changes.as_object().unwrap() {
        config[name] = value.clone();
    }
    config
}

#[test]
fn keys_and_values_per_token_match_the_published_sizes() {
    let mistral_small = json!({
        "num_hidden_layers": 40, "hidden_size": 5120, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 128, "intermediate_size": 32_768, "vocab_size": 131_072, "max_position_embeddings": 32_768,
        "sliding_window": null,
    });
    let qwen = json!({
        "num_hidden_layers": 28, "hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4,
        "intermediate_size": 18_944, "vocab_size": 152_064, "max_position_embeddings": 32_768,
    });
    let table = [
        ("Llama 3.1 8B", llama(32, 4096, 32, 8), 131_072),
        ("Llama 3.1 70B", llama(80, 8192, 64, 8), 327_680),
        ("Llama 3.1 405B", llama(126, 16_384, 128, 8), 516_096),
        ("Mistral Small 3", other("MistralForCausalLM", &mistral_small), 163_840),
        ("Qwen2.5 7B", other("Qwen2ForCausalLM", &qwen), 57_344),
    ];
    for (name, config, expected) in table {
        assert_eq!(read(&config).unwrap().kv_bytes_per_token(2), expected, "{name}");
    }
}

/// Sizes are known where the graph comes later.
#[test]
fn keys_and_values_of_coming_architectures_have_the_published_sizes() {
    let mixtral = KvShape::Heads { heads: 8, size: 128 };
    assert_eq!(mixtral.bytes_per_token(32, 2), 131_072);
    let deepseek = KvShape::Latent { rank: 512, rotated: 64 };
    assert_eq!(deepseek.bytes_per_token(61, 2), 70_272);
}

#[test]
fn layers_have_the_windows_that_their_family_gives_them() {
    let windows = |config: &Json| {
        let layers = read(config).unwrap().layers;
        layers
            .into_iter()
            .map(|layer| layer.window.unwrap_or(0))
            .collect::<Vec<_>>()
    };
    let table = [
        (other("LlamaForCausalLM", &json!({"sliding_window": 8})), vec![0, 0]),
        (other("MistralForCausalLM", &json!({})), vec![4096, 4096]),
        (
            other("MistralForCausalLM", &json!({"sliding_window": null})),
            vec![0, 0],
        ),
        (other("Qwen2ForCausalLM", &json!({"sliding_window": 8})), vec![0, 0]),
        (
            other(
                "Qwen3ForCausalLM",
                &json!({"sliding_window": 8, "use_sliding_window": true, "max_window_layers": 1}),
            ),
            vec![0, 8],
        ),
        (
            other(
                "Gemma2ForCausalLM",
                &json!({"num_hidden_layers": 4, "sliding_window": 8}),
            ),
            vec![8, 0, 8, 0],
        ),
        (
            other(
                "Gemma3ForCausalLM",
                &json!({"num_hidden_layers": 7, "sliding_window": 8}),
            ),
            vec![8, 8, 8, 8, 8, 0, 8],
        ),
        (
            other(
                "Gemma3ForCausalLM",
                &json!({"sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"]}),
            ),
            vec![0, 8],
        ),
        (
            other("Phi3ForCausalLM", &json!({"sliding_window": 2047})),
            vec![2047, 2047],
        ),
        (other("SmolLM3ForCausalLM", &json!({"sliding_window": 8})), vec![0, 0]),
    ];
    for (config, expected) in table {
        assert_eq!(windows(&config), expected, "{config}");
    }
}

#[test]
fn gemma_turns_layers_with_a_window_by_another_base() {
    let old =
        json!({"num_hidden_layers": 6, "rope_theta": 1e6, "rope_scaling": {"rope_type": "linear", "factor": 8.0}});
    let new = json!({"num_hidden_layers": 6, "rope_theta": null, "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    }});
    let read = |changes: &Json| read(&other("Gemma3ForCausalLM", changes)).unwrap();
    let (old, new) = (read(&old), read(&new));
    assert_eq!(old.ropes, new.ropes);
    assert_eq!(old.ropes[0].scaling, RopeScaling::Linear(8.0));
    assert_eq!(
        (old.ropes[1].base.to_bits(), &old.ropes[1].scaling),
        (10_000_f64.to_bits(), &RopeScaling::None)
    );
    let turned: Vec<_> = old.layers.iter().map(|layer| layer.rope.unwrap()).collect();
    assert_eq!(turned, [1, 1, 1, 1, 1, 0]);
    assert!(old.tied && old.norms.less_one && old.norms.heads && old.norms.post);
}

#[test]
fn every_fourth_layer_of_smollm3_does_not_turn() {
    let spec = read(&other("SmolLM3ForCausalLM", &json!({"num_hidden_layers": 5}))).unwrap();
    let turned: Vec<_> = spec.layers.iter().map(|layer| layer.rope.is_some()).collect();
    assert_eq!(turned, [true, true, true, false, true]);
}

#[test]
fn fields_that_the_architecture_has_no_place_for_are_refused_by_name() {
    let table = [
        ("LlamaForCausalLM", "final_logit_softcapping", json!(30.0)),
        ("LlamaForCausalLM", "query_pre_attn_scalar", json!(256)),
        ("LlamaForCausalLM", "partial_rotary_factor", json!(0.5)),
        (
            "LlamaForCausalLM",
            "quantization_config",
            json!({"quant_method": "gptq"}),
        ),
        ("LlamaForCausalLM", "residual_multiplier", json!(0.22)),
        (
            "LlamaForCausalLM",
            "layer_types",
            json!(["full_attention", "sliding_attention"]),
        ),
        ("LlamaForCausalLM", "tie_word_embeddings", json!("yes")),
        ("MistralForCausalLM", "attention_bias", json!(true)),
        (
            "MistralForCausalLM",
            "layer_types",
            json!(["full_attention", "sliding_attention"]),
        ),
        ("Qwen2ForCausalLM", "mlp_bias", json!(true)),
        (
            "Qwen3ForCausalLM",
            "layer_types",
            json!(["full_attention", "sliding_attention"]),
        ),
        ("Gemma2ForCausalLM", "hidden_activation", json!("gelu")),
        ("Gemma3ForCausalLM", "attn_logit_softcapping", json!(50.0)),
        ("Gemma3ForCausalLM", "use_bidirectional_attention", json!(true)),
        (
            "Gemma3ForCausalLM",
            "layer_types",
            json!(["chunked_attention", "full_attention"]),
        ),
        ("Gemma3ForCausalLM", "layer_types", json!(["full_attention"])),
        ("Phi3ForCausalLM", "original_max_position_embeddings", Json::Null),
        (
            "Phi3ForCausalLM",
            "rope_scaling",
            json!({"type": "longrope", "short_factor": [1.0]}),
        ),
        ("SmolLM3ForCausalLM", "no_rope_layers", json!([1])),
        ("SmolLM3ForCausalLM", "no_rope_layers", json!([2, 1])),
    ];
    for (architecture, field, value) in table {
        let mut config = other(architecture, &json!({}));
        if architecture == "Phi3ForCausalLM" {
            config["original_max_position_embeddings"] = json!(4096);
            config["rope_scaling"] = json!({"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]});
        }
        config[field] = value.clone();
        let error = read(&config).unwrap_err();
        assert_eq!(
            error.reason(),
            "ConfigInvalid",
            "{architecture} {field} = {value}: {error}"
        );
    }
    let neutral = json!({"attention_bias": false, "residual_multiplier": 1.0, "final_logit_softcapping": null});
    assert!(read(&other("LlamaForCausalLM", &neutral)).is_ok());
}

#[test]
fn unsupported_architectures_are_named_and_the_supported_ones_listed() {
    let mut config = llama(1, 64, 4, 4);
    config["architectures"] = json!(["MambaForCausalLM"]);
    let error = read(&config).unwrap_err();
    assert_eq!(error.reason(), "ArchitectureUnsupported");
    let text = error.to_string();
    assert!(
        text.contains("MambaForCausalLM") && text.contains("LlamaForCausalLM"),
        "{text}"
    );
}

#[test]
fn configurations_out_of_bounds_are_refused_by_field() {
    let table = [
        ("num_hidden_layers", json!(0)),
        ("num_hidden_layers", json!(1_u64 << 60)),
        ("hidden_size", json!(-1)),
        ("hidden_size", json!("64")),
        ("hidden_size", json!(63)),
        ("num_attention_heads", json!(null)),
        ("num_key_value_heads", json!(3)),
        ("head_dim", json!(7)),
        ("vocab_size", json!(1_u64 << 40)),
        ("max_position_embeddings", json!(0)),
        ("rms_norm_eps", json!(-1.0)),
        ("rope_theta", json!(0)),
        ("rope_scaling", json!({"rope_type": "dynamic", "factor": 4.0})),
        ("rope_scaling", json!({"rope_type": "llama3", "factor": 8.0})),
        ("hidden_act", json!("gelu")),
        ("architectures", json!([])),
    ];
    for (field, value) in table {
        let mut config = llama(2, 64, 4, 2);
        config[field] = value.clone();
        let error = read(&config).unwrap_err();
        assert_eq!(error.reason(), "ConfigInvalid", "{field} = {value}");
    }
}

#[test]
fn position_scaling_is_read_from_both_places() {
    let parameters = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192, "rope_theta": 400_000.0
    });
    let mut old = llama(2, 64, 4, 2);
    old["rope_scaling"] = parameters.clone();
    let mut new = llama(2, 64, 4, 2);
    new["rope_parameters"] = parameters;
    let (old, new) = (read(&old).unwrap().ropes.remove(0), read(&new).unwrap().ropes.remove(0));
    assert_eq!(old, new);
    assert!(matches!(old.scaling, RopeScaling::Llama3 { .. }));
}

fn metadata(changes: &[(&str, Option<Value>)]) -> Gguf {
    let base = [
        ("general.architecture", Value::String("llama".into())),
        ("llama.block_count", Value::U32(30)),
        ("llama.embedding_length", Value::U32(576)),
        ("llama.feed_forward_length", Value::U32(1536)),
        ("llama.attention.head_count", Value::U32(9)),
        ("llama.attention.head_count_kv", Value::U32(3)),
        ("llama.context_length", Value::U32(8192)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
        ("llama.rope.dimension_count", Value::U32(64)),
    ];
    let mut metadata: std::collections::BTreeMap<_, _> =
        base.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    for (key, value) in changes {
        match value {
            Some(value) => metadata.insert((*key).to_owned(), value.clone()),
            None => metadata.remove(*key),
        };
    }
    Gguf {
        metadata,
        tensors: Vec::new(),
    }
}

fn from_gguf(gguf: &Gguf) -> Result<ModelSpec, LoadError> {
    ModelSpec::from_gguf("m.gguf", gguf, 49_152, RopeFactors::default())
}

#[test]
fn gguf_metadata_gives_a_specification() {
    let spec = from_gguf(&metadata(&[])).unwrap();
    assert_eq!((spec.layers.len(), spec.head_size, spec.kv_heads), (30, 64, 3));
    assert_eq!(spec.kv_bytes_per_token(2), 23_040);
}

/// The same metadata under the name of another architecture.
fn renamed(architecture: &str, changes: &[(&str, Value)]) -> Gguf {
    let mut gguf = metadata(&[]);
    gguf.metadata = gguf
        .metadata
        .into_iter()
        .map(|(key, value)| (key.replace("llama.", &format!("{architecture}.")), value))
        .collect();
    gguf.metadata
        .insert("general.architecture".into(), Value::String(architecture.into()));
    for (key, value) in changes {
        gguf.metadata.insert(format!("{architecture}.{key}"), value.clone());
    }
    gguf
}

#[test]
fn what_gguf_metadata_leaves_out_follows_from_the_architecture() {
    let window = [("attention.sliding_window", Value::U32(512))];
    let gemma3 = from_gguf(&renamed("gemma3", &window)).unwrap();
    assert_eq!(gemma3.layers[4].window, Some(512));
    assert_eq!((gemma3.layers[5].window, gemma3.layers[5].rope), (None, Some(0)));
    assert_eq!(gemma3.ropes[1].base.to_bits(), 10_000_f64.to_bits());
    assert!(!gemma3.norms.less_one, "files have the weights with 1 added");
    assert_eq!(gemma3.constants.attention_scale.to_bits(), 0.125_f32.to_bits());

    let gemma2 = from_gguf(&renamed("gemma2", &[])).unwrap();
    assert_eq!((gemma2.layers[0].window, gemma2.layers[1].window), (Some(4096), None));
    assert_eq!(
        (gemma2.constants.attention_soft_cap, gemma2.constants.logit_soft_cap),
        (Some(50.0), Some(30.0))
    );

    // The largest Gemma of a generation scales scores by the width that a head would have in an even split.
    let large = [
        ("block_count", Value::U32(46)),
        ("attention.key_length", Value::U32(128)),
    ];
    let scale = from_gguf(&renamed("gemma2", &large)).unwrap().constants.attention_scale;
    assert_eq!(scale.to_bits(), 0.125_f32.to_bits());

    let llama = from_gguf(&renamed("llama", &window)).unwrap();
    assert!(llama.layers.iter().all(|layer| layer.window == Some(512)));
    let phi3 = from_gguf(&renamed("phi3", &[("attention.sliding_window", Value::U32(0))])).unwrap();
    assert!(phi3.layers.iter().all(|layer| layer.window.is_none()));
    let smollm3 = from_gguf(&renamed("smollm3", &[])).unwrap();
    assert_eq!((smollm3.layers[2].rope, smollm3.layers[3].rope), (Some(0), None));
}

#[test]
fn gguf_metadata_that_would_change_the_answer_is_refused() {
    let table = [
        ("llama", "logit_scale", Value::F32(0.5)),
        ("llama", "residual_scale", Value::F32(0.5)),
        ("llama", "attention.causal", Value::Bool(false)),
        ("llama", "final_logit_softcapping", Value::F32(30.0)),
        ("gemma3", "attn_logit_softcapping", Value::F32(50.0)),
        ("llama", "rope.freq_base_swa", Value::F32(1000.0)),
        ("llama", "rope.scaling.type", Value::String("longrope".into())),
        ("qwen2", "attention.sliding_window", Value::U32(8)),
    ];
    for (architecture, key, value) in table {
        let error = from_gguf(&renamed(architecture, &[(key, value)])).unwrap_err();
        assert_eq!(error.reason(), "ConfigInvalid", "{architecture} {key}: {error}");
    }
    let one_list = RopeFactors {
        short: Some(vec![1.0; 32]),
        ..RopeFactors::default()
    };
    let too_short = RopeFactors {
        always: Some(vec![1.0; 31]),
        ..RopeFactors::default()
    };
    for factors in [one_list, too_short] {
        let error = ModelSpec::from_gguf("m.gguf", &metadata(&[]), 100, factors).unwrap_err();
        assert_eq!(error.reason(), "ConfigInvalid");
    }
}

#[test]
fn gguf_metadata_out_of_bounds_is_refused() {
    let table = [
        ("llama.block_count", None),
        ("llama.block_count", Some(Value::U32(0))),
        ("llama.block_count", Some(Value::U64(u64::MAX))),
        ("llama.block_count", Some(Value::I32(-3))),
        ("llama.attention.head_count_kv", Some(Value::U32(4))),
        ("llama.attention.head_count", Some(Value::U32(7))),
        ("llama.attention.value_length", Some(Value::U32(32))),
        ("llama.rope.dimension_count", Some(Value::U32(63))),
        ("llama.rope.dimension_count", Some(Value::U32(128))),
        ("llama.rope.freq_base", Some(Value::F32(f32::NAN))),
        ("llama.rope.freq_base", Some(Value::F32(f32::INFINITY))),
        ("llama.rope.scaling.type", Some(Value::String("yarn".into()))),
        ("llama.attention.layer_norm_rms_epsilon", Some(Value::F32(0.0))),
        ("general.architecture", None),
    ];
    for (key, value) in table {
        let error = from_gguf(&metadata(&[(key, value.clone())])).unwrap_err();
        assert_eq!(error.reason(), "ConfigInvalid", "{key} = {value:?}");
    }
}

#[test]
fn experts_are_another_architecture() {
    let error = from_gguf(&metadata(&[("llama.expert_count", Some(Value::U32(8)))])).unwrap_err();
    assert_eq!(error.reason(), "ArchitectureUnsupported");
}
