//! A tiny random model in both formats: the same weights give the same logits, and what is wrong with a file is said
//! by name.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

#[path = "tiny/mod.rs"]
mod tiny;

use escadre_runtime::engine::Sequences;
use escadre_runtime::model::{KvType, LoadError, LoadOptions, Loaded, LogitsWanted, Quantize, SpecialTokens, load};
use escadre_verify::VerifiedModel;
use serde_json::json;
use std::fs;
use std::path::Path;
use tiny::gguf::{adjacent_pairs, file, float, string, unsigned, vocabulary};
use tiny::llama::{BASE, HEAD, HEADS, HIDDEN, INNER, KV_HEADS, LAYERS, Weights, config, weights, write_folder};
use tiny::{Stored, Tensor, tokenizer};

const CONTEXT: usize = 64;

type Change<'a> = &'a dyn Fn(&mut Vec<(String, Tensor)>);

fn safetensors(weights: &Weights, in_16_bits: bool) -> Vec<u8> {
    let stored = |tensor: &Tensor| {
        if !in_16_bits {
            return Stored::wide(tensor);
        }
        let values = tensor.values.iter().map(|value| half::bf16::from_f32(*value));
        Stored {
            kind: "BF16",
            shape: tensor.shape.clone(),
            bytes: values.flat_map(half::bf16::to_le_bytes).collect(),
        }
    };
    let tensors: Vec<_> = weights
        .iter()
        .map(|(name, tensor)| (name.clone(), stored(tensor)))
        .collect();
    tiny::safetensors(&tensors)
}

/// The rule of Llama 3 as its authors wrote it, for `rope_freqs.weight`.
fn divisors() -> Tensor {
    let (factor, low, high, original) = (8.0, 1.0, 4.0, 32.0);
    let divisor = |pair: usize| {
        let exponent = 2.0 * f64::from(u32::try_from(pair).unwrap()) / 16.0;
        let wavelength = std::f64::consts::TAU * BASE.powf(exponent);
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
    let values = (0..HEAD / 2).map(|pair| divisor(pair) as f32).collect();
    Tensor {
        shape: vec![HEAD / 2],
        values,
    }
}

fn gguf_tensors(weights: &Weights) -> Vec<(String, Tensor)> {
    let renamed = |name: &str| {
        let parts = [
            ("model.embed_tokens", "token_embd"),
            ("model.norm", "output_norm"),
            ("lm_head", "output"),
            ("model.layers", "blk"),
            ("input_layernorm", "attn_norm"),
            ("post_attention_layernorm", "ffn_norm"),
            ("self_attn.q_proj", "attn_q"),
            ("self_attn.k_proj", "attn_k"),
            ("self_attn.v_proj", "attn_v"),
            ("self_attn.o_proj", "attn_output"),
            ("mlp.gate_proj", "ffn_gate"),
            ("mlp.up_proj", "ffn_up"),
            ("mlp.down_proj", "ffn_down"),
        ];
        parts
            .iter()
            .fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
    };
    let mut tensors: Vec<_> = weights
        .iter()
        .map(|(name, tensor)| {
            let is_rotated = name.contains("q_proj") || name.contains("k_proj");
            (
                renamed(name),
                if is_rotated {
                    Tensor {
                        shape: tensor.shape.clone(),
                        values: adjacent_pairs(tensor, HEAD),
                    }
                } else {
                    tensor.clone()
                },
            )
        })
        .collect();
    tensors.push(("rope_freqs.weight".to_owned(), divisors()));
    tensors
}

fn gguf(architecture: &str, tensors: &[(String, Tensor)]) -> Vec<u8> {
    let integer = |name: &str, value: usize| unsigned(&format!("{architecture}.{name}"), value);
    let mut keys = vec![
        string("general.architecture", architecture),
        integer("block_count", LAYERS),
        integer("embedding_length", HIDDEN),
        integer("feed_forward_length", INNER),
        integer("attention.head_count", HEADS),
        integer("attention.head_count_kv", KV_HEADS),
        integer("attention.key_length", HEAD),
        integer("attention.value_length", HEAD),
        integer("rope.dimension_count", HEAD),
        integer("context_length", CONTEXT),
        float(&format!("{architecture}.attention.layer_norm_rms_epsilon"), 1e-5),
    ];
    keys.extend(vocabulary());
    file(&keys, tensors)
}

fn open(path: &Path) -> VerifiedModel {
    VerifiedModel::open(path, None, &mut |_, _| {}).unwrap()
}

fn load_path(path: &Path, options: &LoadOptions) -> Result<Loaded, LoadError> {
    load(&open(path), options, &mut |_, _| {})
}

fn logits(loaded: &mut Loaded) -> Vec<f32> {
    loaded.decoder.allocate(2, KvType::F32).unwrap();
    let mut sequences = Sequences::new(&mut loaded.decoder);
    let sequence = sequences.add();
    let tokens: Vec<u32> = (0..60).map(|index| (index * index + 3 * index) % 6).collect();
    let logits = sequences.forward(&[(sequence, &tokens, LogitsWanted::All)]).unwrap();
    (0..logits.rows()).flat_map(|row| logits.row(row).to_vec()).collect()
}

fn difference(left: &[f32], right: &[f32]) -> f32 {
    left.iter().zip(right).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn both_formats_give_the_same_model() {
    let folder = tempfile::tempdir().unwrap();
    write_folder(folder.path(), &weights(), CONTEXT);
    let file = folder.path().join("tiny.gguf");
    let tensors = gguf_tensors(&weights());
    let other = tempfile::tempdir().unwrap();
    let file = other.path().join(file.file_name().unwrap());
    fs::write(&file, gguf("llama", &tensors)).unwrap();

    let mut from_folder = load_path(folder.path(), &LoadOptions::default()).unwrap();
    let mut from_file = load_path(&file, &LoadOptions::default()).unwrap();
    let (left, right) = (logits(&mut from_folder), logits(&mut from_file));
    assert!(difference(&left, &right) < 1e-4, "{}", difference(&left, &right));
    let spread = left.iter().map(|value| value * value).sum::<f32>() / f32::from(u16::try_from(left.len()).unwrap());
    assert!(
        spread > 1.0,
        "logits that hardly differ would agree whatever the graph does: {spread}"
    );

    assert_eq!(from_folder.description.parameters, from_file.description.parameters);
    assert_eq!(from_folder.description.quantization, "F32");
    assert_eq!(from_folder.generation.end_tokens, [3]);
    for text in ["ab a<end>", "cc ab"] {
        let ids = |loaded: &Loaded| loaded.tokenizer.encode(text, SpecialTokens::Parse).unwrap();
        assert_eq!(ids(&from_folder), ids(&from_file));
    }
}

/// Each of these would be off by far if it were left out: that the comparison above sees it.
#[test]
fn the_comparison_sees_every_feature() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tiny.gguf");
    let tensors = gguf_tensors(&weights());
    fs::write(&file, gguf("llama", &tensors)).unwrap();
    let expected = logits(&mut load_path(&file, &LoadOptions::default()).unwrap());
    let without = |change: Change<'_>| {
        let mut tensors = tensors.clone();
        change(&mut tensors);
        fs::write(&file, gguf("llama", &tensors)).unwrap();
        difference(
            &expected,
            &logits(&mut load_path(&file, &LoadOptions::default()).unwrap()),
        )
    };
    let unstretched = without(&|tensors| tensors.retain(|(name, _)| name != "rope_freqs.weight"));
    let tied = without(&|tensors| tensors.retain(|(name, _)| name != "output.weight"));
    let unpermuted = without(&|tensors| {
        let original = &weights()["model.layers.0.self_attn.q_proj.weight"];
        let (_, tensor) = tensors
            .iter_mut()
            .find(|(name, _)| name == "blk.0.attn_q.weight")
            .unwrap();
        *tensor = original.clone();
    });
    let flat_norm = without(&|tensors| {
        let (_, tensor) = tensors
            .iter_mut()
            .find(|(name, _)| name == "blk.1.ffn_norm.weight")
            .unwrap();
        tensor.values.fill(1.0);
    });
    for (name, difference) in [
        ("stretch", unstretched),
        ("head", tied),
        ("pairs", unpermuted),
        ("norm", flat_norm),
    ] {
        assert!(difference > 1e-3, "{name}: {difference}");
    }
}

#[test]
fn shards_and_16_bits_load() {
    let folder = tempfile::tempdir().unwrap();
    write_folder(folder.path(), &weights(), CONTEXT);
    let expected = logits(&mut load_path(folder.path(), &LoadOptions::default()).unwrap());
    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let (mut first, mut second) = (weights(), weights());
    first.retain(|name, _| name.contains("layers.0"));
    second.retain(|name, _| !name.contains("layers.0"));
    let shards = [("model-1.safetensors", first), ("model-2.safetensors", second)];
    let mut map = serde_json::Map::new();
    for (file, weights) in &shards {
        fs::write(folder.path().join(file), safetensors(weights, true)).unwrap();
        map.extend(weights.keys().map(|name| (name.clone(), json!(file))));
    }
    let index = folder.path().join("model.safetensors.index.json");
    fs::write(&index, json!({"weight_map": map}).to_string()).unwrap();
    let mut loaded = load_path(folder.path(), &LoadOptions::default()).unwrap();
    assert_eq!(loaded.description.quantization, "BF16");
    let got = logits(&mut loaded);
    assert!(difference(&expected, &got) < 0.5, "{}", difference(&expected, &got));

    map.insert("model.norm.weight".into(), json!("model-1.safetensors"));
    fs::write(&index, json!({"weight_map": map}).to_string()).unwrap();
    assert_eq!(
        load_path(folder.path(), &LoadOptions::default()).unwrap_err().reason(),
        "IndexInvalid"
    );
    fs::remove_file(&index).unwrap();
    assert_eq!(
        load_path(folder.path(), &LoadOptions::default()).unwrap_err().reason(),
        "IndexInvalid"
    );
}

#[test]
fn weights_that_are_made_smaller_take_less_and_give_almost_the_same() {
    let folder = tempfile::tempdir().unwrap();
    write_folder(folder.path(), &weights(), CONTEXT);
    let other = tempfile::tempdir().unwrap();
    let single = other.path().join("tiny.gguf");
    fs::write(&single, gguf("llama", &gguf_tensors(&weights()))).unwrap();
    let smaller = LoadOptions {
        quantize: Some(Quantize::Q8_0),
        ..LoadOptions::default()
    };
    for path in [folder.path(), &single] {
        let mut wide = load_path(path, &LoadOptions::default()).unwrap();
        let mut small = load_path(path, &smaller).unwrap();
        assert_eq!(small.description.quantization, "Q8_0 of F32");
        let (held, before) = (small.description.weights_bytes, wide.description.weights_bytes);
        // Rows of the feed-forward block are no whole blocks, and stay.
        assert!(held * 2 < before && held * 4 > before, "{held} {before}");
        let apart = difference(&logits(&mut wide), &logits(&mut small));
        assert!(apart > 1e-6 && apart < 0.3, "{apart}");
    }
}

#[test]
fn what_is_wrong_with_a_file_is_said_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let valid = gguf("llama", &gguf_tensors(&weights()));
    let mut missing = gguf_tensors(&weights());
    missing.retain(|(name, _)| name != "blk.1.ffn_up.weight");
    let mut extra = gguf_tensors(&weights());
    extra.push(("blk.0.attn_q_norm.weight".into(), divisors()));
    let mut shape = gguf_tensors(&weights());
    shape[0].1.shape.reverse();
    let mut infinite = gguf_tensors(&weights());
    infinite
        .iter_mut()
        .find(|(name, _)| name == "output_norm.weight")
        .unwrap()
        .1
        .values[3] = f32::INFINITY;
    let mut not_a_number = gguf_tensors(&weights());
    not_a_number
        .iter_mut()
        .find(|(name, _)| name == "blk.1.ffn_up.weight")
        .unwrap()
        .1
        .values[77] = f32::NAN;
    let table = [
        (valid[..valid.len() - 1000].to_vec(), "GgufInvalid", "truncated"),
        (valid[..40].to_vec(), "GgufInvalid", "truncated"),
        (b"<html>not found</html>".to_vec(), "GgufInvalid", "not GGUF"),
        (b"\x80\x04\x95 pickle".to_vec(), "FormatRefused", "pickle"),
        (
            gguf("mamba", &gguf_tensors(&weights())),
            "ArchitectureUnsupported",
            "supported are: llama",
        ),
        (gguf("llama", &missing), "WeightsMismatch", "blk.1.ffn_up.weight"),
        (gguf("llama", &extra), "WeightsMismatch", "blk.0.attn_q_norm.weight"),
        (gguf("llama", &shape), "WeightsMismatch", "wrong shape"),
        (
            gguf("llama", &infinite),
            "WeightsMismatch",
            "output_norm.weight\" has values that are not finite",
        ),
        (
            gguf("llama", &not_a_number),
            "WeightsMismatch",
            "blk.1.ffn_up.weight\" has values that are not finite",
        ),
    ];
    for (bytes, reason, part) in table {
        let file = folder.path().join("tiny.gguf");
        fs::write(&file, bytes).unwrap();
        let error = load_path(&file, &LoadOptions::default()).unwrap_err();
        assert_eq!(error.reason(), reason, "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[test]
fn limits_are_checked_before_weights_are_packed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tiny.gguf");
    fs::write(&file, gguf("llama", &gguf_tensors(&weights()))).unwrap();
    let long = LoadOptions {
        max_context: Some(CONTEXT + 1),
        ..LoadOptions::default()
    };
    let error = load_path(&file, &long).unwrap_err();
    assert_eq!(error.reason(), "ContextTooLong");
    assert!(
        error.to_string().contains("65") && error.to_string().contains("64"),
        "{error}"
    );
    let short = LoadOptions {
        max_context: Some(10),
        ..LoadOptions::default()
    };
    assert_eq!(load_path(&file, &short).unwrap().decoder.context_length(), 10);
    let small = LoadOptions {
        memory_limit: Some(50 << 20),
        ..LoadOptions::default()
    };
    for path in [&file, &folder.path().to_path_buf()] {
        let error = load_path(path, &small).unwrap_err();
        assert_eq!(error.reason(), "OutOfMemoryHost");
        assert!(error.to_string().contains(&(50 << 20).to_string()), "{error}");
    }
    write_folder(folder.path(), &weights(), CONTEXT);
    fs::remove_file(&file).unwrap();
    assert_eq!(
        load_path(folder.path(), &small).unwrap_err().reason(),
        "OutOfMemoryHost"
    );
}

#[test]
fn progress_grows_to_the_size_of_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tiny.gguf");
    let bytes = gguf("llama", &gguf_tensors(&weights()));
    fs::write(&file, &bytes).unwrap();
    let mut seen = Vec::new();
    load(&open(&file), &LoadOptions::default(), &mut |done, total| {
        seen.push((done, total));
    })
    .unwrap();
    assert!(seen.windows(2).all(|pair| pair[0].0 <= pair[1].0), "{seen:?}");
    assert!(seen.iter().all(|&(_, total)| total == bytes.len() as u64));
    assert_eq!(seen.last().unwrap().0, bytes.len() as u64);
}

#[test]
fn folders_with_contradictions_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    write_folder(folder.path(), &weights(), CONTEXT);
    let reason = || load_path(folder.path(), &LoadOptions::default()).unwrap_err().reason();

    fs::write(path("config.json"), "{\"a\": 1, \"a\": 2}").unwrap();
    assert_eq!(reason(), "ConfigInvalid");
    let mut other = config(CONTEXT);
    other["architectures"] = json!(["GPT2LMHeadModel"]);
    fs::write(path("config.json"), other.to_string()).unwrap();
    assert_eq!(reason(), "ArchitectureUnsupported");
    fs::write(path("config.json"), config(CONTEXT).to_string()).unwrap();

    fs::write(path("chat_template.jinja"), "{{ messages[0].content }}").unwrap();
    fs::write(
        path("tokenizer_config.json"),
        json!({"chat_template": "other"}).to_string(),
    )
    .unwrap();
    assert_eq!(reason(), "TemplateRefused");
    fs::remove_file(path("tokenizer_config.json")).unwrap();
    assert!(
        load_path(folder.path(), &LoadOptions::default())
            .unwrap()
            .template
            .is_some()
    );

    fs::write(path("tokenizer.json"), "{}").unwrap();
    assert_eq!(reason(), "TokenizerInvalid");
    fs::remove_file(path("tokenizer.json")).unwrap();
    assert_eq!(reason(), "FileMissing");
    fs::write(path("tokenizer.json"), tokenizer().to_string()).unwrap();

    fs::write(path("model.safetensors"), b"\x80\x02}q\x00.").unwrap();
    assert_eq!(reason(), "FormatRefused");
    fs::remove_file(path("model.safetensors")).unwrap();
    fs::write(path("pytorch_model.bin"), b"PK\x03\x04").unwrap();
    assert_eq!(reason(), "FormatRefused");
}
