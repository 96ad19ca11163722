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

#[test]
fn keys_and_values_per_token_match_the_published_sizes() {
    let table = [
        ("Llama 3.1 8B", llama(32, 4096, 32, 8), 131_072),
        ("Llama 3.1 70B", llama(80, 8192, 64, 8), 327_680),
        ("Llama 3.1 405B", llama(126, 16_384, 128, 8), 516_096),
    ];
    for (name, config, expected) in table {
        assert_eq!(read(&config).unwrap().kv_bytes_per_token(2), expected, "{name}");
    }
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
