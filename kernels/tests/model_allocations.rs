//! Once a step has had a size, steps of that size allocate nothing, on no thread.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use escadre_kernels::rows::{self, Turns};
use escadre_kernels::{
    Activations, Attention, Cache, CacheShape, Cores, Gate, Kind, Level, Memory, Numbers, Packed, Partial, Product,
    Projection, Spans, attention, gated, linear, look_up,
};
use std::alloc::{GlobalAlloc, Layout, System};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The system's memory, whose uses are counted.
struct Counted;

static COUNT: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counted = Counted;

const WIDTH: usize = 256;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const SIZE: usize = 64;
const HIDDEN: usize = 512;

/// A layer, and all that it is computed in.
struct Layer {
    cores: Cores,
    matrices: [Packed; 6],
    norm: Vec<f32>,
    cache: Cache,
    turns: Turns,
    spans: Spans,
    scratch: Activations,
    partial: Partial,
    stream: Vec<f32>,
    normed: Vec<f32>,
    query: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    hidden: Vec<f32>,
}

fn projection(matrices: &[Packed; 6], index: usize) -> Projection<'_> {
    Projection {
        matrix: &matrices[index],
        bias: None,
    }
}

fn product<'a>(matrices: &'a [Packed; 6], index: usize, out: &'a mut [f32], adds: bool) -> Product<'a> {
    Product {
        projection: projection(matrices, index),
        out,
        adds,
    }
}

impl Layer {
    fn new(threads: usize, rows: usize, context: usize) -> Self {
        let cores = Cores::start(NonZeroUsize::new(threads).unwrap(), Level::detect()).unwrap();
        let memory = Memory::default();
        let shapes = [
            (Kind::Q4_0, HEADS * SIZE, WIDTH),
            (Kind::Q8_0, KV_HEADS * SIZE, WIDTH),
            (Kind::Q4_K, HIDDEN, WIDTH),
            (Kind::Q6_K, HIDDEN, WIDTH),
            (Kind::Q5_1, WIDTH, HIDDEN),
            (Kind::F16, WIDTH, HEADS * SIZE),
        ];
        let matrices = shapes.map(|(kind, outputs, inputs)| {
            let bytes = vec![1; outputs * inputs / kind.block_weights() * kind.block_bytes()];
            Packed::new(&cores, &memory, kind, (outputs, inputs), &bytes).unwrap()
        });
        let blocks = u32::try_from(context.div_ceil(32)).unwrap();
        let shape = CacheShape {
            kv_heads: KV_HEADS,
            head_size: SIZE,
            blocks: blocks as usize,
            numbers: Numbers::F16,
        };
        let mut spans = Spans::default();
        spans.push(0..blocks, 0..rows, context - rows);
        Self {
            matrices,
            norm: vec![1.0; WIDTH],
            cache: Cache::new(shape).unwrap(),
            turns: Turns {
                cosines: vec![1.0; rows * SIZE / 2],
                sines: vec![0.0; rows * SIZE / 2],
                pairs: SIZE / 2,
                are_adjacent: false,
            },
            spans,
            scratch: Activations::new(cores.level()),
            partial: Partial::default(),
            stream: vec![0.5; rows * WIDTH],
            normed: vec![0.0; rows * WIDTH],
            query: vec![0.0; rows * HEADS * SIZE],
            keys: vec![0.0; rows * KV_HEADS * SIZE],
            values: vec![0.0; rows * KV_HEADS * SIZE],
            hidden: vec![0.0; rows * HIDDEN],
            cores,
        }
    }

    fn compute(&mut self) {
        let cores = &self.cores;
        let matrices = &self.matrices;
        look_up(cores, &self.matrices[0], 3, &mut self.stream[..WIDTH]);
        rows::rms_norm(cores, &self.stream, &self.norm, 1e-5, &mut self.normed);
        let products = [
            product(matrices, 0, &mut self.query, false),
            product(matrices, 1, &mut self.keys, false),
            product(matrices, 1, &mut self.values, false),
        ];
        linear(cores, &mut self.scratch, &self.normed, products);
        rows::rotate(cores, &mut self.query, HEADS * SIZE, SIZE, &self.turns);
        rows::rotate(cores, &mut self.keys, KV_HEADS * SIZE, SIZE, &self.turns);
        self.cache.append(cores, &self.spans, &self.keys, &self.values);
        let of = Attention {
            query: &self.query,
            heads: HEADS,
            scale: 0.125,
            soft_cap: None,
            window: None,
            spans: &self.spans,
            cache: &self.cache,
        };
        let mut mixed = std::mem::take(&mut self.normed);
        attention(cores, &of, &mut self.partial, &mut mixed);
        linear(
            cores,
            &mut self.scratch,
            &mixed,
            [product(matrices, 5, &mut self.stream, true)],
        );
        rows::rms_norm(cores, &self.stream, &self.norm, 1e-5, &mut mixed);
        let projections = [projection(matrices, 2), projection(matrices, 3)];
        gated(
            cores,
            &mut self.scratch,
            &mixed,
            projections,
            Gate::Silu,
            &mut self.hidden,
        );
        linear(
            cores,
            &mut self.scratch,
            &self.hidden,
            [product(matrices, 4, &mut self.stream, true)],
        );
        self.normed = mixed;
    }
}

#[test]
fn steps_of_a_known_size_allocate_nothing() {
    for threads in [1, 3] {
        for (rows, context) in [(1, 900), (1, 20), (8, 64), (100, 700)] {
            let mut layer = Layer::new(threads, rows, context);
            // Every thread takes part at some time, and then has its memory.
            for _ in 0..50 {
                layer.compute();
            }
            let least = (0..20).map(|_| {
                let before = COUNT.load(Ordering::Relaxed);
                for _ in 0..10 {
                    layer.compute();
                }
                COUNT.load(Ordering::Relaxed) - before
            });
            // A thread that took no part so far may do so now, or the test's own harness may allocate.
            assert_eq!(least.min(), Some(0), "{threads} threads, {rows} rows of {context}");
            assert!(layer.stream.iter().all(|value| value.is_finite()));
        }
    }
}
