//! The engine with a model whose answers are known: after token `t` comes `t + 1`.

use super::*;
use crate::args::Identity;
use crate::engine::{Engine, Generation, QueueLimits, Sampling, SubmitError};
use crate::kv::{BLOCK_TOKENS, BlockId};
use crate::model::{LogitsWanted, ModelError, Pooling};
use crate::status::Stage;
use futures::StreamExt as _;
use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::thread::JoinHandle;

const VOCABULARY: usize = 64;
const END: u32 = 60;

/// Counts up, checks that what a span continues is in its blocks, and waits for permission before each step.
struct Counting {
    blocks: usize,
    /// What was computed into each place of each block.
    cache: HashMap<(BlockId, usize), u32>,
    steps: Arc<Mutex<Vec<usize>>>,
    permits: Option<std::sync::mpsc::Receiver<()>>,
    fails_at: Option<u32>,
}

impl StepModel for Counting {
    fn forward(&mut self, batch: &StepBatch) -> Result<Logits, ModelError> {
        if let Some(permits) = &self.permits {
            let _ = permits.recv();
        }
        self.steps
            .lock()
            .unwrap()
            .push(batch.spans.iter().map(|span| span.tokens.len()).sum());
        let (mut values, mut states) = (Vec::new(), Vec::new());
        for span in &batch.spans {
            let place = |position: usize| (span.blocks[position / BLOCK_TOKENS], position % BLOCK_TOKENS);
            assert!((0..span.start).all(|position| self.cache.contains_key(&place(position))));
            for (position, token) in (span.start..).zip(&span.tokens) {
                self.cache.insert(place(position), *token);
            }
            let last = *span.tokens.last().unwrap();
            if self.fails_at == Some(last) {
                return Err(ModelError::Tensor("boom".into()));
            }
            let wanted = &span.tokens[span.states.rows(span.tokens.len())];
            states.extend(
                wanted
                    .iter()
                    .flat_map(|&token| [f32::from(u8::try_from(token).unwrap()), 1.0]),
            );
            if span.logits == LogitsWanted::Last {
                let mut row = vec![0.0; VOCABULARY];
                row[(last as usize + 1) % VOCABULARY] = if last == 62 { f32::NAN } else { 100.0 };
                values.extend(row);
            }
        }
        Ok(Logits::new(values, VOCABULARY).with_states(states, 2))
    }

    fn copy_block(&mut self, from: BlockId, to: BlockId) -> Result<(), ModelError> {
        for place in 0..BLOCK_TOKENS {
            if let Some(token) = self.cache.get(&(from, place)).copied() {
                self.cache.insert((to, place), token);
            }
        }
        Ok(())
    }

    fn blocks(&self) -> usize {
        self.blocks
    }
}

/// Token `t` is the text `<t>`.
struct Brackets;

impl TextStream for Brackets {
    fn push(&mut self, token: u32) -> String {
        format!("<{token}>")
    }

    fn finish(&mut self) -> String {
        String::new()
    }
}

struct Harness {
    engine: Engine,
    board: Board,
    metrics: Arc<Metrics>,
    steps: Arc<Mutex<Vec<usize>>>,
    permits: std::sync::mpsc::Sender<()>,
    thread: JoinHandle<()>,
}

fn start(concurrency: usize, gated: bool, fails_at: Option<u32>) -> Harness {
    start_with(concurrency, gated, fails_at, 8)
}

fn start_with(concurrency: usize, gated: bool, fails_at: Option<u32>, blocks: usize) -> Harness {
    let limits = QueueLimits {
        requests: 2,
        tokens: 1000,
        concurrency,
        wait: Duration::from_mins(1),
    };
    let admission = Arc::new(Admission::new(limits));
    let (engine, commands) = Engine::new(Arc::clone(&admission));
    let board = Board::new(Identity::default(), Stage::Ready);
    let metrics = Arc::new(Metrics::new("m"));
    let steps = Arc::default();
    let (permits, received) = std::sync::mpsc::channel();
    let model = Counting {
        blocks,
        cache: HashMap::new(),
        steps: Arc::clone(&steps),
        permits: gated.then_some(received),
        fails_at,
    };
    let settings = Settings::of_tests(concurrency, vec![END]);
    let text: NewText = Box::new(|_: &[u32]| Box::new(Brackets));
    let parts = (commands, admission);
    let worker = Worker::new(model, text, settings, parts, Arc::clone(&metrics), board.clone());
    Harness {
        engine,
        board,
        metrics,
        steps,
        permits,
        thread: std::thread::spawn(move || worker.run()),
    }
}

fn request(prompt: &[u32], max_tokens: usize) -> Request {
    Request {
        prompt: prompt.to_vec(),
        max_tokens,
        sampling: Sampling {
            temperature: 0.0,
            ..Sampling::default()
        },
        shown: vec![],
        stop: vec![],
        constraint: None,
        logprobs: None,
        answers: NonZeroUsize::MIN,
        pooling: None,
    }
}

async fn collect(mut generations: Vec<Generation>) -> (String, Event) {
    assert_eq!(generations.len(), 1);
    collect_one(generations.remove(0)).await
}

async fn collect_one(mut generation: Generation) -> (String, Event) {
    let mut text = String::new();
    loop {
        match generation.next().await.expect("the engine ended") {
            Event::Piece(piece) => text.push_str(&piece.text),
            last => return (text, last),
        }
    }
}

fn finish(reason: FinishReason, prompt_tokens: usize, completion_tokens: usize) -> Event {
    Event::Finished {
        reason,
        usage: Usage {
            cached_tokens: 0,
            prompt_tokens,
            completion_tokens,
        },
    }
}

#[tokio::test]
async fn answer_ends_at_its_length_and_the_prompt_is_computed_in_chunks() {
    let harness = start(1, false, None);
    let prompt: Vec<u32> = (0..20).map(|_| 5).collect();
    let (text, last) = collect(harness.engine.submit(request(&prompt, 3)).unwrap()).await;
    assert_eq!(
        (text.as_str(), last),
        ("<6><7><8>", finish(FinishReason::Length, 20, 3))
    );
    assert_eq!(*harness.steps.lock().unwrap(), [8, 8, 4, 1, 1]);
    harness.engine.drain();
    harness.thread.join().unwrap();
}

#[tokio::test]
async fn end_token_and_stop_string_end_an_answer_and_are_not_said() {
    let harness = start(1, false, None);
    let (text, last) = collect(harness.engine.submit(request(&[57], 30)).unwrap()).await;
    assert_eq!((text.as_str(), last), ("<58><59>", finish(FinishReason::Stop, 1, 3)));
    let mut with_stop = request(&[1], 30);
    with_stop.stop = vec!["><5".into()];
    let (text, last) = collect(harness.engine.submit(with_stop).unwrap()).await;
    assert_eq!((text.as_str(), last), ("<2><3><4", finish(FinishReason::Stop, 1, 4)));
}

#[tokio::test]
async fn held_back_text_is_said_when_the_answer_ends_otherwise() {
    let harness = start(1, false, None);
    let mut with_stop = request(&[1], 2);
    with_stop.stop = vec!["<3>!".into()];
    let (text, last) = collect(harness.engine.submit(with_stop).unwrap()).await;
    assert_eq!((text.as_str(), last), ("<2><3>", finish(FinishReason::Length, 1, 2)));
}

#[tokio::test]
async fn several_requests_share_steps_and_each_gets_its_own_answer() {
    let harness = start(2, true, None);
    let one = harness.engine.submit(request(&[1; 4], 4)).unwrap();
    let two = harness.engine.submit(request(&[20], 4)).unwrap();
    for _ in 0..20 {
        harness.permits.send(()).unwrap();
    }
    let (one, two) = tokio::join!(collect(one), collect(two));
    assert_eq!(one.0, "<2><3><4><5>");
    assert_eq!(two.0, "<21><22><23><24>");
    assert!(harness.steps.lock().unwrap().contains(&2), "no step was shared");
}

#[tokio::test]
async fn full_queue_refuses_at_once_and_cancelled_requests_make_room() {
    let harness = start(1, true, None);
    let running = harness.engine.submit(request(&[1], 50)).unwrap();
    while harness.board.snapshot().requests.running == 0 {
        tokio::task::yield_now().await;
    }
    let waiting = harness.engine.submit(request(&[1], 1)).unwrap();
    let _also_waiting = harness.engine.submit(request(&[1], 1)).unwrap();
    assert!(matches!(
        harness.engine.submit(request(&[1], 1)),
        Err(SubmitError::Full { .. })
    ));
    drop((running, waiting));
    for _ in 0..5 {
        harness.permits.send(()).unwrap();
    }
    while harness.metrics.requests_cancelled.get() < 2 {
        tokio::task::yield_now().await;
    }
    harness.engine.submit(request(&[1], 1)).unwrap();
    assert!(harness.steps.lock().unwrap().len() < 10, "a cancelled request went on");
}

#[tokio::test]
async fn youngest_gives_way_when_the_cache_is_full_and_its_answer_is_whole_all_the_same() {
    let harness = start_with(2, true, None, 3);
    let first = harness.engine.submit(request(&[1; 30], 50)).unwrap();
    let second = harness.engine.submit(request(&[20; 30], 30)).unwrap();
    for _ in 0..200 {
        harness.permits.send(()).unwrap();
    }
    let (first, second) = tokio::join!(collect(first), collect(second));
    assert_eq!(first.1, finish(FinishReason::Length, 30, 50));
    let expected = (21..51).fold(String::new(), |text, token| text + &format!("<{token}>"));
    assert_eq!(second, (expected, finish(FinishReason::Length, 30, 30)));
    assert!(harness.metrics.preemptions.get() > 0, "there was room for both");
    assert_eq!(harness.board.snapshot().requests.waiting, 0);
}

#[tokio::test]
async fn request_that_the_whole_cache_cannot_hold_is_refused() {
    let harness = start_with(2, false, None, 2);
    let (_, last) = collect(harness.engine.submit(request(&[1; 30], 35)).unwrap()).await;
    let refused = EngineError::TooLong {
        tokens: 65,
        missing_blocks: 1,
    };
    assert_eq!(last, Event::Failed(refused));
    assert_eq!(
        collect(harness.engine.submit(request(&[1; 30], 34)).unwrap()).await.1,
        finish(FinishReason::Length, 30, 34)
    );
}

#[tokio::test]
async fn beginning_that_was_computed_before_is_not_computed_again() {
    let harness = start(1, false, None);
    let prompt = [[7; 40].as_slice(), &[1]].concat();
    collect(harness.engine.submit(request(&prompt, 1)).unwrap()).await;
    let before = harness.steps.lock().unwrap().iter().sum::<usize>();
    let (text, _) = collect(harness.engine.submit(request(&prompt, 1)).unwrap()).await;
    assert_eq!(text, "<2>");
    assert_eq!(
        harness.steps.lock().unwrap().iter().sum::<usize>() - before,
        41 - BLOCK_TOKENS
    );
    assert_eq!(harness.metrics.prefix_cache_hits.get(), BLOCK_TOKENS as u64);
}

#[tokio::test]
async fn vector_is_made_of_the_whole_text_beside_answers_and_finds_and_leaves_no_block() {
    let harness = start(2, false, None);
    let text: Vec<u32> = [[7; 40].as_slice(), &[17]].concat();
    for (pooling, expected) in [
        (Pooling::Mean, (7.0 * 40.0 + 17.0) / 41.0),
        (Pooling::Mean, (7.0 * 40.0 + 17.0) / 41.0),
        (Pooling::Last, 17.0),
        (Pooling::Cls, 7.0),
    ] {
        let answer = harness.engine.submit(request(&[1; 4], 4)).unwrap();
        let mut generations = harness
            .engine
            .submit(Request::embedding(text.clone(), pooling))
            .unwrap();
        let mut events = generations.remove(0);
        let Some(Event::Vector(vector)) = events.next().await else {
            panic!("no vector")
        };
        assert!((vector[0] / vector[1] - expected).abs() < 1e-3, "{pooling}: {vector:?}");
        assert_eq!(events.next().await, Some(finish(FinishReason::Stop, 41, 0)));
        assert_eq!(collect(answer).await.0, "<2><3><4><5>");
    }
    collect(harness.engine.submit(request(&text, 1)).unwrap()).await;
    assert_eq!(harness.metrics.prefix_cache_hits.get(), 0);
}

#[tokio::test]
async fn answers_to_one_prompt_compute_it_once_and_end_each_for_itself() {
    let harness = start_with(3, false, None, 16);
    let prompt = vec![5; 40];
    let mut three = request(&prompt, 3);
    three.answers = NonZeroUsize::new(3).unwrap();
    let generations = harness.engine.submit(three).unwrap();
    assert_eq!(generations.len(), 3);
    for generation in generations {
        let (text, last) = collect_one(generation).await;
        assert_eq!(
            (text.as_str(), last),
            ("<6><7><8>", finish(FinishReason::Length, 40, 3))
        );
    }
    assert_eq!(*harness.steps.lock().unwrap(), [8, 8, 8, 8, 8, 3, 3]);
    harness.engine.drain();
    harness.thread.join().unwrap();
    assert_eq!(harness.board.snapshot().memory.kv_cache_bytes, Some(0));
}

#[tokio::test]
async fn forks_without_a_block_of_their_own_lose_nothing() {
    let harness = start_with(3, false, None, 3);
    let mut three = request(&[5; 40], 40);
    three.answers = NonZeroUsize::new(3).unwrap();
    let expected = (6..46).fold(String::new(), |text, token| text + &format!("<{token}>"));
    for generation in harness.engine.submit(three).unwrap() {
        let (text, last) = collect_one(generation).await;
        assert_eq!((&text, last), (&expected, finish(FinishReason::Length, 40, 40)));
    }
    assert!(harness.metrics.preemptions.get() > 0, "there was room for all");
}

#[tokio::test]
async fn one_of_several_answers_that_is_cancelled_leaves_the_others() {
    let harness = start_with(3, true, None, 16);
    let mut three = request(&[5; 4], 5);
    three.answers = NonZeroUsize::new(3).unwrap();
    let mut generations = harness.engine.submit(three).unwrap();
    harness.permits.send(()).unwrap();
    generations[1].next().await.unwrap();
    drop(generations.remove(1));
    for _ in 0..10 {
        harness.permits.send(()).unwrap();
    }
    for generation in generations {
        assert_eq!(collect_one(generation).await.0, "<6><7><8><9><10>");
    }
    assert_eq!(harness.metrics.requests_cancelled.get(), 1);
}

#[tokio::test]
async fn failed_step_fails_its_requests_and_the_engine_goes_on() {
    let harness = start(1, false, Some(33));
    let (_, last) = collect(harness.engine.submit(request(&[33], 5)).unwrap()).await;
    assert!(matches!(last, Event::Failed(EngineError::Model(_))), "{last:?}");
    let (_, last) = collect(harness.engine.submit(request(&[62], 5)).unwrap()).await;
    assert_eq!(last, Event::Failed(EngineError::NotFinite));
    let (text, _) = collect(harness.engine.submit(request(&[1], 1)).unwrap()).await;
    assert_eq!(text, "<2>");
    while harness.board.snapshot().memory.kv_cache_bytes != Some(0) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn draining_finishes_what_was_begun_and_takes_nothing_new() {
    let harness = start(1, true, None);
    let begun = harness.engine.submit(request(&[1], 3)).unwrap();
    harness.engine.drain();
    let late = harness.engine.submit(request(&[1], 3)).unwrap();
    for _ in 0..10 {
        harness.permits.send(()).unwrap();
    }
    assert_eq!(collect(begun).await.0, "<2><3><4>");
    assert_eq!(collect(late).await.1, Event::Failed(EngineError::Ending));
    harness.thread.join().unwrap();
    assert!(harness.engine.submit(request(&[1], 3)).is_err());
}

#[tokio::test]
async fn engine_that_has_ended_says_so_however_often_it_is_asked() {
    let harness = start(1, false, None);
    harness.engine.drain();
    harness.thread.join().unwrap();
    for _ in 0..10 {
        assert_eq!(harness.engine.submit(request(&[1], 1)).unwrap_err(), SubmitError::Ended);
    }
}
