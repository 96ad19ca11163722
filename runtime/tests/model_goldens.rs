//! Tiny random models of every architecture against `transformers`: the logits are the same however tokens are cut
//! into steps and batches and in whichever format weights are stored, and would not be if a feature were left out.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

#[path = "goldens/mod.rs"]
mod goldens;

use candle_core::Device;
use escadre_runtime::backend::Precision;
use escadre_runtime::backend::tensors::Tensors;
use escadre_runtime::engine::Sequences;
use escadre_runtime::kv::BlockId;
use escadre_runtime::model::{KvType, Loaded, LogitsWanted, Span, StatesWanted, StepBatch};
use goldens::{CASES, Case};
use serde_json::{Value as Json, json};

#[test]
fn logits_are_those_of_the_reference_however_tokens_are_cut() {
    for name in CASES {
        let case = Case::read(name);
        however_cut(name, &case, &mut case.load().unwrap());
    }
}

#[test]
fn logits_of_the_backend_for_every_device_are_those_of_the_reference() {
    for name in CASES {
        let case = Case::read(name);
        let mut loaded = case.load_with(Tensors::new(Device::Cpu, Precision::Widened)).unwrap();
        however_cut(name, &case, &mut loaded);
        unequal_lengths(name, &case, &mut loaded);
    }
}

/// What the head makes of the states of a model with a head of its own and no bound on logits is the logits.
#[test]
fn states_are_what_the_head_sees() {
    let case = Case::read("mistral");
    let mut loaded = case.load().unwrap();
    loaded.decoder.allocate(8, KvType::F32).unwrap();
    let blocks: Vec<BlockId> = (0..2).map(BlockId).collect();
    let span = |tokens: std::ops::Range<usize>, states| Span {
        blocks: blocks.clone(),
        tokens: case.tokens[tokens.clone()].to_vec(),
        start: tokens.start,
        logits: LogitsWanted::None,
        states,
        ..Span::default()
    };
    let mut states = Vec::new();
    for part in [
        span(0..30, StatesWanted::All),
        span(30..39, StatesWanted::All),
        span(39..40, StatesWanted::Last),
    ] {
        let given = loaded.decoder.forward(&StepBatch { spans: vec![part] }).unwrap();
        assert_eq!(given.rows(), 0);
        states.extend(given.states().map(<[f32]>::to_vec));
    }
    let head = &case.tensors["lm_head.weight"].values;
    let logits = states.iter().map(|state| {
        let rows = head.chunks_exact(state.len());
        rows.map(|row| row.iter().zip(state).map(|(one, other)| one * other).sum())
            .collect()
    });
    let difference = case.difference(&logits.collect::<Vec<Vec<f32>>>());
    assert!(difference <= case.tolerance(), "{difference:e}");
}

#[test]
fn models_that_only_make_vectors_may_leave_out_the_first_part_of_names() {
    let mut case = Case::read("qwen3");
    let tensors = case.tensors.into_iter();
    let tensors = tensors.map(|(name, tensor)| (name.trim_start_matches("model.").to_owned(), tensor));
    case.tensors = tensors.collect();
    however_cut("qwen3", &case, &mut case.load().unwrap());
}

#[test]
fn sequences_of_unequal_lengths_in_one_batch_do_not_disturb_each_other() {
    for name in CASES {
        let case = Case::read(name);
        unequal_lengths(name, &case, &mut case.load().unwrap());
    }
}

fn however_cut(name: &str, case: &Case, loaded: &mut Loaded) {
    for chunk in [usize::MAX, 7, 1] {
        let difference = case.difference(&case.rows(loaded, chunk));
        assert!(
            difference <= case.tolerance(),
            "{name}, {chunk} at a time: {difference:e}"
        );
    }
}

fn unequal_lengths(name: &str, case: &Case, loaded: &mut Loaded) {
    let mut sequences = Sequences::new(&mut loaded.decoder);
    let ids = [sequences.add(), sequences.add(), sequences.add()];
    let mut rows = vec![Vec::new(); 3];
    // A prompt beside a token, chunks of different lengths, one sequence that pauses, then all token by token.
    for ends in [[30, 1, 0], [31, 17, 9], [31, 18, 40], [40, 19, 40], [40, 20, 40]] {
        let mut parts = Vec::new();
        let mut owners = Vec::new();
        for index in [2, 0, 1] {
            let start = rows[index].len();
            if start < ends[index] {
                parts.push((ids[index], &case.tokens[start..ends[index]], LogitsWanted::All));
                owners.extend(std::iter::repeat_n(index, ends[index] - start));
            }
        }
        let logits = sequences.forward(&parts).unwrap();
        for (row, owner) in owners.into_iter().enumerate() {
            rows[owner].push(logits.row(row).to_vec());
        }
    }
    for rows in &rows {
        let difference = case.difference(rows);
        assert!(difference <= case.tolerance(), "{name}: {difference:e}");
    }
}

#[test]
fn gguf_files_give_the_same_logits() {
    for name in CASES {
        let case = Case::read(name);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        std::fs::write(&path, &case.gguf(1)[0]).unwrap();
        let difference = case.difference(&case.rows(&mut case.open(&path).unwrap(), usize::MAX));
        println!("{name}: {difference:e}");
        assert!(difference <= case.tolerance(), "{name}: {difference:e}");
    }
}

#[test]
fn parts_of_a_split_file_are_one_model() {
    for name in ["gemma3", "llama3", "phi3_long"] {
        let case = Case::read(name);
        let folder = tempfile::tempdir().unwrap();
        for (index, part) in case.gguf(3).iter().enumerate() {
            let file = folder.path().join(format!("m-{:05}-of-00003.gguf", index + 1));
            std::fs::write(file, part).unwrap();
        }
        let difference = case.difference(&case.rows(&mut case.open(folder.path()).unwrap(), usize::MAX));
        assert!(difference <= case.tolerance(), "{name}: {difference:e}");

        std::fs::remove_file(folder.path().join("m-00002-of-00003.gguf")).unwrap();
        let error = case.open(folder.path()).unwrap_err();
        assert_eq!(error.reason(), "FileMissing");
        assert!(error.to_string().contains("m-00002-of-00003.gguf"), "{error}");
        std::fs::write(folder.path().join("m-00002-of-00003.gguf"), &case.gguf(3)[0]).unwrap();
        assert_eq!(case.open(folder.path()).unwrap_err().reason(), "GgufInvalid");
    }
}

type Change = fn(&mut Case);

fn set(case: &mut Case, field: &str, value: Json) {
    case.config[field] = value;
}

/// Changes the values of all tensors whose names have a part.
fn fill(case: &mut Case, part: &str, change: fn(f32) -> f32) {
    let tensors = case.tensors.iter_mut().filter(|(name, _)| name.contains(part));
    let count = tensors.map(|(_, tensor)| tensor.values.iter_mut().for_each(|value| *value = change(*value)));
    assert!(count.count() > 0, "{part}");
}

fn remove(case: &mut Case, part: &str) {
    let before = case.tensors.len();
    case.tensors.retain(|name, _| !name.contains(part));
    assert!(case.tensors.len() < before, "{part}");
}

/// The embedding without its scale, which then is the head no longer.
fn unscale_embedding(case: &mut Case) {
    let head = case.tensors["model.embed_tokens.weight"].clone();
    case.tensors.insert("lm_head.weight".into(), head);
    fill(case, "embed_tokens", |value| value / 8.0);
    set(case, "tie_word_embeddings", json!(false));
}

/// The same layers, but all of one kind.
fn all_layers(case: &mut Case, kind: &str) {
    let count = case.config["layer_types"].as_array().unwrap().len();
    set(case, "layer_types", json!(vec![kind; count]));
}

const WITHOUT: [(&str, &str, Change); 40] = [
    ("llama", "shared heads", |case| {
        fill(case, "v_proj", |value| value * 1.01);
    }),
    ("llama", "the base of positions", |case| {
        set(case, "rope_theta", json!(11_000.0));
    }),
    ("llama", "a head of its own", |case| {
        set(case, "tie_word_embeddings", json!(true));
    }),
    ("llama3", "stretched positions", |case| {
        set(case, "rope_scaling", Json::Null);
    }),
    ("llama3", "biases of attention", |case| {
        set(case, "attention_bias", json!(false));
        for part in ["q_proj.bias", "k_proj.bias", "v_proj.bias", "o_proj.bias"] {
            remove(case, part);
        }
    }),
    ("llama3", "biases of keys", |case| fill(case, "k_proj.bias", |_| 0.0)),
    ("llama3", "biases of outputs", |case| fill(case, "o_proj.bias", |_| 0.0)),
    ("llama3", "biases of feed-forward blocks", |case| {
        set(case, "mlp_bias", json!(false));
        remove(case, "mlp.gate_proj.bias");
        remove(case, "mlp.up_proj.bias");
        remove(case, "mlp.down_proj.bias");
    }),
    ("mistral", "the window", |case| set(case, "sliding_window", Json::Null)),
    ("mistral", "one token of the window", |case| {
        set(case, "sliding_window", json!(7));
    }),
    ("mistral", "the end of the window", |case| {
        set(case, "sliding_window", json!(9));
    }),
    ("mistral_small", "the base of positions", |case| {
        set(case, "rope_theta", json!(1e4));
    }),
    ("qwen2", "biases of queries", |case| fill(case, "q_proj.bias", |_| 0.0)),
    ("qwen2", "biases of keys", |case| fill(case, "k_proj.bias", |_| 0.0)),
    ("qwen2", "biases of values", |case| fill(case, "v_proj.bias", |_| 0.0)),
    ("qwen2", "the window", |case| {
        set(case, "use_sliding_window", json!(false));
        set(case, "layer_types", Json::Null);
    }),
    ("qwen2", "layers without a window", |case| {
        all_layers(case, "sliding_attention");
    }),
    ("qwen3", "norms of heads", |case| {
        set(case, "architectures", json!(["LlamaForCausalLM"]));
        remove(case, "q_norm");
        remove(case, "k_norm");
    }),
    ("qwen3", "stretched positions", |case| {
        set(case, "rope_scaling", Json::Null);
    }),
    ("qwen3", "the magnitude of positions", |case| {
        case.config["rope_scaling"]["attention_factor"] = json!(1.0);
    }),
    ("gemma2", "bounds of scores", |case| {
        set(case, "attn_logit_softcapping", Json::Null);
    }),
    ("gemma2", "bounds of logits", |case| {
        set(case, "final_logit_softcapping", Json::Null);
    }),
    ("gemma2", "the window", |case| all_layers(case, "full_attention")),
    ("gemma2", "layers without a window", |case| {
        all_layers(case, "sliding_attention");
    }),
    ("gemma2", "the scale of scores", |case| {
        set(case, "query_pre_attn_scalar", json!(24));
    }),
    ("gemma2", "the scale of embeddings", unscale_embedding),
    ("gemma2", "the gate", |case| {
        set(case, "hidden_activation", json!("silu"));
    }),
    ("gemma2", "norms stored less 1", |case| {
        fill(case, "norm", |value| value - 1.0);
    }),
    ("gemma2", "norms behind attention", |case| {
        fill(case, "post_attention", |_| 0.0);
    }),
    ("gemma2", "norms behind feed-forward", |case| {
        fill(case, "post_feedforward", |_| 0.0);
    }),
    ("gemma3", "norms of queries", |case| fill(case, "q_norm", |_| 0.0)),
    ("gemma3", "norms of keys", |case| fill(case, "k_norm", |_| 0.0)),
    ("gemma3", "the second base", |case| {
        set(case, "rope_local_base_freq", json!(1e6));
    }),
    ("gemma3", "stretched positions", |case| {
        set(case, "rope_scaling", Json::Null);
    }),
    ("gemma3", "the window", |case| set(case, "sliding_window", json!(100))),
    ("gemma3", "the pattern of windows", |case| {
        set(case, "layer_types", Json::Null);
        set(case, "sliding_window_pattern", json!(2));
    }),
    ("phi3_short", "the list for short contexts", |case| {
        case.max_context = None;
    }),
    ("phi3_short", "the window", |case| {
        set(case, "sliding_window", Json::Null);
    }),
    ("phi3_long", "the magnitude of positions", |case| {
        case.config["rope_scaling"]["attention_factor"] = json!(1.0);
    }),
    ("smollm3", "layers that do not turn", |case| {
        set(case, "no_rope_layers", json!([1, 1, 1, 1]));
    }),
];

/// Shows that the comparisons above would see it if a feature were left out.
#[test]
fn every_feature_matters_tenfold() {
    for (name, feature, change) in WITHOUT {
        let mut case = Case::read(name);
        let tolerance = case.tolerance();
        change(&mut case);
        let mut loaded = case.load().unwrap();
        let difference = case.difference(&case.rows(&mut loaded, usize::MAX));
        println!("{name} without {feature}: {difference:e}");
        assert!(
            difference > 10.0 * tolerance,
            "{name} without {feature}: {difference:e}"
        );
    }
}

#[test]
fn tensors_that_the_configuration_does_not_expect_are_refused_by_name() {
    let table: [(&str, &str, Change); 6] = [
        ("llama3", "self_attn.k_proj.bias", |case| {
            set(case, "attention_bias", json!(false));
        }),
        ("llama3", "mlp.up_proj.bias", |case| {
            remove(case, "layers.2.mlp.up_proj.bias");
        }),
        ("qwen3", "self_attn.k_norm.weight", |case| {
            set(case, "architectures", json!(["LlamaForCausalLM"]));
        }),
        ("qwen3", "self_attn.q_norm.weight", |case| {
            remove(case, "layers.1.self_attn.q_norm");
        }),
        ("gemma2", "post_feedforward_layernorm.weight", |case| {
            remove(case, "layers.3.post_feedforward");
        }),
        ("phi3_long", "self_attn.qkv_proj.weight", |case| {
            set(case, "num_key_value_heads", json!(1));
        }),
    ];
    for (name, tensor, change) in table {
        let mut case = Case::read(name);
        change(&mut case);
        let error = case.load().unwrap_err();
        assert_eq!(error.reason(), "WeightsMismatch", "{name}");
        assert!(error.to_string().contains(tensor), "{name}: {error}");
    }
}
