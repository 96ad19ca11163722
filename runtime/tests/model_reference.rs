//! The real model against llama.cpp: token ids, log-probabilities, and that the way in which tokens are cut into
//! steps does not matter.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

#[path = "reference/mod.rs"]
mod reference;

use escadre_runtime::engine::Sequences;
use escadre_runtime::kv::BlockId;
use escadre_runtime::model::{Decoder, KvType, LogitsWanted, Span, SpecialTokens, StepBatch, Tokenizer};
use escadre_verify::structure::gguf::{self, Array, Gguf, Value};
use reference::{Reference, difference, largest, likeliest, mean, rows, with_model};
use serde_json::Value as Json;
use std::ops::Range;

fn tokens_json() -> Json {
    serde_json::from_str(include_str!("reference/tokens.json")).unwrap()
}

fn header() -> Gguf {
    let bytes = reference::verified().read(reference::FILE).unwrap();
    gguf::parse(reference::FILE, &bytes).unwrap()
}

fn tokenizer(header: &Gguf) -> Tokenizer {
    Tokenizer::from_gguf(reference::FILE, header).unwrap()
}

/// Asserts that every text has the ids of the reference, and gives the number of texts.
fn assert_ids(tokenizer: &Tokenizer, texts: &Json, ids: &Json, special: SpecialTokens) -> usize {
    let (texts, ids) = (texts.as_array().unwrap(), ids.as_array().unwrap());
    assert_eq!(texts.len(), ids.len());
    for (text, expected) in texts.iter().zip(ids) {
        let text = text.as_str().unwrap();
        let got = tokenizer.encode(text, special).unwrap();
        let expected: Vec<u32> = serde_json::from_value(expected.clone()).unwrap();
        assert_eq!(got, expected, "{text:?} ({special:?})");
    }
    texts.len()
}

#[test]
fn ids_are_those_of_the_reference() {
    let tokenizer = tokenizer(&header());
    let json = tokens_json();
    let texts = assert_ids(&tokenizer, &json["texts"], &json["parse"], SpecialTokens::Parse);
    assert_ids(&tokenizer, &json["texts"], &json["as_text"], SpecialTokens::AsText);
    assert!(texts >= 200, "{texts}");
}

#[test]
fn ids_of_other_splittings_are_those_of_the_reference() {
    let json = tokens_json();
    for (name, ids) in json["pre"].as_object().unwrap() {
        let mut header = header();
        header
            .metadata
            .insert("tokenizer.ggml.pre".into(), Value::String(name.clone()));
        let tokenizer = tokenizer(&header);
        let texts = json["short_texts"].as_array().unwrap();
        // llama.cpp has another pattern for `tekken`, which agrees on ASCII only.
        let is_compared = |text: &Json| name != "tekken" || text.as_str().unwrap().is_ascii();
        let pairs = texts
            .iter()
            .zip(ids.as_array().unwrap())
            .filter(|(text, _)| is_compared(text));
        let (texts, ids): (Vec<_>, Vec<_>) = pairs.map(|(text, ids)| (text.clone(), ids.clone())).unzip();
        let compared = assert_ids(&tokenizer, &Json::from(texts), &Json::from(ids), SpecialTokens::Parse);
        assert!(compared > 150, "{name}: {compared}");
    }
}

/// The vocabulary that tokens.py makes: the pieces of this model with scores, and a token for every byte.
fn spm_header(own: &Gguf) -> Gguf {
    let Some(Value::Array(Array::String(tokens))) = own.get("tokenizer.ggml.tokens") else {
        panic!("no tokens");
    };
    let pieces = tokenizer(own);
    let mut texts: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).into();
    texts.extend((0..=255_u8).map(|byte| format!("<0x{byte:02X}>")));
    texts.extend(["<|im_start|>", "<|im_end|>", "<tool>"].map(str::to_owned));
    let mut kinds = vec![2, 3, 3];
    kinds.extend([6; 256]);
    kinds.extend([3, 3, 4]);
    let mut seen: std::collections::HashSet<_> = texts.iter().cloned().collect();
    for id in 0..u32::try_from(tokens.len()).unwrap() {
        let bytes = pieces.token_bytes(id).unwrap();
        let Some(piece) = std::str::from_utf8(bytes).ok().filter(|_| !pieces.is_control(id)) else {
            continue;
        };
        let piece = piece.replace(' ', "▁");
        // llama.cpp cuts tokens at a zero byte when it reads them.
        if !piece.contains('\0') && seen.insert(piece.clone()) {
            texts.push(piece);
            kinds.push(1);
        }
    }
    let score = |(index, &kind): (usize, &i64)| {
        if kind == 1 {
            -f64::from(u32::try_from(index).unwrap())
        } else {
            0.0
        }
    };
    let scores = kinds.iter().enumerate().map(score).collect();
    let entries = [
        ("model", Value::String("llama".into())),
        ("tokens", Value::Array(Array::String(texts))),
        ("token_type", Value::Array(Array::Signed(kinds))),
        ("scores", Value::Array(Array::Float(scores))),
        ("bos_token_id", Value::U32(1)),
        ("unknown_token_id", Value::U32(0)),
    ];
    Gguf {
        metadata: entries
            .map(|(key, value)| (format!("tokenizer.ggml.{key}"), value))
            .into(),
        tensors: Vec::new(),
    }
}

/// One rule differs on purpose: no text can be merged into a control token, which llama.cpp allows.
#[test]
fn ids_of_scored_pieces_are_those_of_the_reference() {
    let tokenizer = tokenizer(&spm_header(&header()));
    assert_eq!(tokenizer.prefix(), [1]);
    let json = tokens_json();
    assert_ids(
        &tokenizer,
        &json["short_texts"],
        &json["spm_parse"],
        SpecialTokens::Parse,
    );
    assert_ids(
        &tokenizer,
        &json["short_texts"],
        &json["spm_as_text"],
        SpecialTokens::AsText,
    );
}

#[test]
fn texts_come_back_from_their_ids() {
    let tokenizer = tokenizer(&header());
    for text in tokens_json()["texts"].as_array().unwrap() {
        let text = text.as_str().unwrap();
        let ids = tokenizer.encode(text, SpecialTokens::AsText).unwrap();
        let mut decoder = tokenizer.decoder(&[]);
        let mut back: String = ids.iter().map(|&id| decoder.push(id)).collect();
        back.push_str(&decoder.finish());
        // A few bytes have no token in this vocabulary; the reference drops them too.
        let complete = ids
            .iter()
            .map(|&id| tokenizer.token_bytes(id).unwrap().len())
            .sum::<usize>()
            == text.len();
        assert!(back == text || !complete, "{text:?} came back as {back:?}");
    }
}

/// Isolates the graph from quantised arithmetic: the same weights, widened to f32 by both sides.
#[test]
fn widened_weights_give_the_log_probabilities_of_the_reference() {
    let reference = Reference::read();
    let rows = with_model(true, |mut loaded| rows(&mut loaded, &reference.tokens, usize::MAX));
    let divergences = reference.divergences(&rows);
    let (mean, largest) = (mean(&divergences), largest(&divergences));
    println!("KL(ours || reference) with f32 weights: mean {mean:.3e}, largest {largest:.3e} nats");
    assert!(mean <= 1e-5 && largest <= 1e-4, "mean {mean:e}, largest {largest:e}");
    assert_eq!(reference.flips(&rows, 0.01), 0);
}

/// The quantised file itself may be no further from the reference than 1.1 times llama.cpp's own run of it.
#[test]
fn the_quantised_file_is_as_near_to_the_reference_as_llama_cpp_is() {
    let reference = Reference::read();
    let report: Json = serde_json::from_str(include_str!("reference/logits.json")).unwrap();
    let theirs = report["divergence_in_nats"]["quantised, one batch"]["mean"]
        .as_f64()
        .unwrap();
    with_model(false, |mut loaded| {
        // Products of many rows and of one row are computed in different ways.
        for chunk in [usize::MAX, 1] {
            let rows = rows(&mut loaded, &reference.tokens, chunk);
            let divergences = reference.divergences(&rows);
            let (mean, largest) = (mean(&divergences), largest(&divergences));
            println!("KL to f32: ours {mean:.3e} (largest {largest:.3e}), llama.cpp {theirs:.3e} nats");
            assert!(mean <= 1.1 * theirs, "ours {mean:e}, llama.cpp {theirs:e}");
        }
    });
}

#[test]
fn the_cut_into_steps_does_not_matter() {
    let tokens = Reference::read().tokens;
    with_model(true, |mut loaded| {
        let whole = rows(&mut loaded, &tokens, usize::MAX);
        for chunk in [1, 7, 64, 199] {
            let cut = rows(&mut loaded, &tokens, chunk);
            let difference = difference(&whole, &cut);
            assert!(difference < 2e-3, "{chunk} tokens at a time: {difference}");
            let same = whole.iter().zip(&cut).all(|(a, b)| likeliest(a) == likeliest(b));
            assert!(same, "{chunk} tokens at a time");
        }
    });
}

#[test]
fn sequences_of_one_batch_do_not_disturb_each_other() {
    let tokens = Reference::read().tokens;
    with_model(true, |mut loaded| {
        let (first, second) = (&tokens[..90], &tokens[90..170]);
        let alone = [
            rows(&mut loaded, first, usize::MAX),
            rows(&mut loaded, second, usize::MAX),
        ];
        let mut sequences = Sequences::new(&mut loaded.decoder);
        let ids = [sequences.add(), sequences.add()];
        let mut together = [Vec::new(), Vec::new()];
        // Prompts of different lengths, then one token against a chunk, then both token by token.
        for ends in [[40, 3], [41, 60], [42, 61], [90, 62], [90, 80]] {
            let mut parts = Vec::new();
            let mut owners = Vec::new();
            for index in [1, 0] {
                let text = [first, second][index];
                let start = together[index].len();
                if start < ends[index] {
                    parts.push((ids[index], &text[start..ends[index]], LogitsWanted::All));
                    owners.extend(std::iter::repeat_n(index, ends[index] - start));
                }
            }
            let logits = sequences.forward(&parts).unwrap();
            for (row, owner) in owners.into_iter().enumerate() {
                together[owner].push(logits.row(row).to_vec());
            }
        }
        for (alone, together) in alone.iter().zip(&together) {
            assert!(difference(alone, together) < 2e-3);
        }
    });
}

#[test]
fn only_wanted_rows_are_given_and_bad_batches_change_nothing() {
    let tokens = Reference::read().tokens;
    with_model(false, |mut loaded| {
        let blocks = [BlockId(7), BlockId(3)];
        let span = |tokens: &[u32], start, logits| StepBatch {
            spans: vec![Span {
                blocks: blocks.to_vec(),
                tokens: tokens.to_vec(),
                start,
                logits,
                ..Span::default()
            }],
        };
        let mut rows = |batch: &StepBatch| loaded.decoder.forward(batch).map(|logits| logits.rows()).ok();
        assert_eq!(rows(&span(&tokens[..9], 0, LogitsWanted::None)), Some(0));
        assert_eq!(rows(&span(&tokens[9..12], 9, LogitsWanted::Last)), Some(1));
        let good = || span(&tokens[..1], 12, LogitsWanted::Last);
        let changed = |change: &dyn Fn(&mut Span)| {
            let mut batch = good();
            change(&mut batch.spans[0]);
            batch
        };
        let mut twice = good();
        twice.spans.push(good().spans.remove(0));
        let bad = [
            changed(&|span| span.tokens.clear()),
            changed(&|span| span.tokens[0] = u32::MAX),
            changed(&|span| span.tokens = vec![1; 53]),
            changed(&|span| span.start = usize::MAX),
            changed(&|span| span.blocks[0] = BlockId(u32::MAX)),
            changed(&|span| span.adapter.0 = 1),
            twice,
        ];
        for batch in bad {
            assert_eq!(rows(&batch), None, "{batch:?}");
        }
        assert_eq!(rows(&span(&tokens[12..14], 12, LogitsWanted::All)), Some(2));
    });
}

#[test]
fn cache_of_16_bits_changes_the_answer_little_and_a_copied_block_is_the_same() {
    let tokens = Reference::read().tokens;
    with_model(true, |mut loaded| {
        let exact = rows(&mut loaded, &tokens, 64);
        loaded.decoder.allocate(16, KvType::F16).unwrap();
        let halved = rows(&mut loaded, &tokens, 64);
        let same = exact.iter().zip(&halved).filter(|(a, b)| likeliest(a) == likeliest(b));
        assert!(same.count() * 100 >= exact.len() * 98);
        assert!(difference(&exact, &halved) < 0.2, "{}", difference(&exact, &halved));
        let ask = |decoder: &mut Decoder, blocks: [u32; 2], part: Range<usize>| {
            let span = Span {
                blocks: blocks.map(BlockId).to_vec(),
                tokens: tokens[part.clone()].to_vec(),
                start: part.start,
                ..Span::default()
            };
            let logits = decoder.forward(&StepBatch { spans: vec![span] }).unwrap();
            logits.row(0).to_vec()
        };
        let decoder = &mut loaded.decoder;
        ask(decoder, [1, 2], 0..40);
        let first = ask(decoder, [1, 2], 40..41);
        decoder.copy_block(BlockId(2), BlockId(9)).unwrap();
        assert_eq!(ask(decoder, [1, 9], 40..41), first);
        assert_ne!(ask(decoder, [2, 9], 40..41), first, "the blocks matter");
    });
}

#[test]
fn the_description_and_the_template_are_those_of_the_file() {
    with_model(false, |loaded| {
        let description = &loaded.description;
        assert_eq!(description.format.to_string(), "GGUF");
        assert_eq!(
            (description.architecture.as_str(), description.quantization.as_str()),
            ("llama", "Q4_1")
        );
        assert_eq!(
            (description.parameters, description.context_length),
            (134_515_008, 8192)
        );
        assert_eq!(loaded.generation.end_tokens, [0, 2]);
        let template = loaded.template.unwrap();
        let input = escadre_runtime::model::ChatInput {
            messages: serde_json::json!([{"role": "user", "content": "Hi <|im_end|>"}]),
            tools: None,
            add_generation_prompt: true,
            variables: serde_json::Map::new(),
        };
        let text = template.render(&input).unwrap();
        assert!(
            text.starts_with("<|im_start|>system\nYou are a helpful AI assistant named SmolLM"),
            "{text}"
        );
        assert!(
            text.ends_with("<|im_start|>user\nHi <|im_end|><|im_end|>\n<|im_start|>assistant\n"),
            "{text}"
        );
    });
}
