//! The logits of a token depend on the tokens before it alone, to the last bit: not on how they were cut into steps, nor on
//! what else was computed with them, nor on the number of threads, nor on the processor's vectors. Chunks of a prompt, a
//! prefix that another request had computed, and an answer that is computed again as a prompt after a preemption are all
//! ways to cut.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]
#![expect(dead_code, reason = "the modules have what other tests need too")]

#[path = "goldens/mod.rs"]
mod goldens;
#[path = "reference/mod.rs"]
mod reference;

use escadre_kernels::{Cores, Level};
use escadre_runtime::backend::Precision;
use escadre_runtime::backend::kernels::Kernels;
use escadre_runtime::kv::{BlockId, blocks_for};
use escadre_runtime::model::{Decoder, KvType, LoadOptions, LogitsWanted, Span, StepBatch, load};
use goldens::Case;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;

/// Blocks of a sequence of a test, in no order.
fn blocks(sequence: u32, count: u32) -> Vec<BlockId> {
    (0..count)
        .map(|block| BlockId(sequence * count + block * 5 % count))
        .collect()
}

/// Some tokens of a sequence, whose logits are all wanted.
fn span(tokens: &[u32], range: Range<usize>, blocks: &[BlockId]) -> Span {
    Span {
        tokens: tokens[range.clone()].to_vec(),
        start: range.start,
        blocks: blocks.to_vec(),
        logits: LogitsWanted::All,
        ..Span::default()
    }
}

/// The bits of all logits of the first span of each step.
fn bits(decoder: &mut Decoder, steps: Vec<Vec<Span>>) -> Vec<Vec<u32>> {
    let mut rows = Vec::new();
    for spans in steps {
        let first = spans[0].tokens.len();
        let logits = decoder.forward(&StepBatch { spans }).unwrap();
        rows.extend((0..first).map(|row| logits.row(row).iter().map(|value| value.to_bits()).collect::<Vec<_>>()));
    }
    rows
}

/// Steps of one sequence, `chunk` tokens each.
fn cut(tokens: &[u32], chunk: usize, blocks: &[BlockId]) -> Vec<Vec<Span>> {
    let starts = (0..tokens.len()).step_by(chunk);
    starts
        .map(|start| vec![span(tokens, start..tokens.len().min(start + chunk), blocks)])
        .collect()
}

#[test]
fn bits_of_tiny_models_are_those_of_the_loops_at_every_level_and_number_of_threads() {
    for name in ["llama3", "gemma2", "gemma3", "qwen3", "phi3_long"] {
        let case = Case::read(name);
        let mut expected = None;
        let mut levels = Level::available();
        levels.reverse();
        for level in levels {
            for threads in [1, 3] {
                let cores = Arc::new(Cores::start(NonZeroUsize::new(threads).unwrap(), level).unwrap());
                let mut loaded = case.load_with(Kernels::new(cores, Precision::Widened)).unwrap();
                loaded.decoder.allocate(8, KvType::F16).unwrap();
                for chunk in [case.tokens.len(), 1, 7] {
                    let got = bits(&mut loaded.decoder, cut(&case.tokens, chunk, &blocks(1, 4)));
                    let expected = expected.get_or_insert_with(|| got.clone());
                    assert!(got == *expected, "{name} {level:?} {threads} {chunk}");
                }
            }
        }
    }
}

#[test]
fn bits_of_a_real_model_do_not_depend_on_steps_nor_on_company() {
    let tokens: Vec<u32> = (0..600_u32).map(|at| at * 7919 % 49_000 + 20).collect();
    let other: Vec<u32> = (0..600_u32).map(|at| at * 104_729 % 49_000 + 20).collect();
    for threads in [1, 2] {
        let options = LoadOptions {
            cores: Arc::new(Cores::start(NonZeroUsize::new(threads).unwrap(), Level::detect()).unwrap()),
            ..LoadOptions::default()
        };
        let mut loaded = load(&reference::verified(), &options, &mut |_, _| {}).unwrap();
        let decoder = &mut loaded.decoder;
        decoder.allocate(blocks_for(600) * 3, KvType::F16).unwrap();
        let count = u32::try_from(blocks_for(600)).unwrap();
        let (mine, theirs) = (blocks(0, count), blocks(1, count));
        let whole = bits(decoder, cut(&tokens, 600, &mine));
        assert!(bits(decoder, cut(&tokens, 173, &mine)) == whole, "chunks");
        // Answers token by token, beside a prompt that is read.
        let mut steps = cut(&tokens[..560], 560, &mine);
        steps.extend((560..600).map(|at| {
            let beside = (at - 560) * 15..(at - 559) * 15;
            vec![span(&tokens, at..at + 1, &mine), span(&other, beside, &theirs)]
        }));
        assert!(bits(decoder, steps) == whole, "answers beside a prompt");
        // The first blocks of another sequence with the same beginning.
        let mut shared = blocks(2, count);
        shared[..9].copy_from_slice(&mine[..9]);
        let after = vec![vec![span(&tokens, 9 * 32..600, &shared)]];
        assert!(bits(decoder, after) == whole[9 * 32..], "a prefix that was there");
    }
}
