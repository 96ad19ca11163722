use super::*;
use crate::{CacheShape, Level, Numbers};
use std::num::NonZeroUsize;

/// Numbers of -1 to 1 that look random.
fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f32::from(u16::try_from(state >> 16).unwrap()) / 32_768.0 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

const TOKENS: usize = 900;
const KV_HEADS: usize = 2;
const HEADS: usize = 6;
const SIZE: usize = 24;

/// A cache of so many tokens, whose blocks lie in no order.
struct Known {
    cache: Cache,
    keys: Vec<f32>,
    values: Vec<f32>,
    query: Vec<f32>,
}

#[derive(Clone, Copy)]
struct Options {
    window: Option<usize>,
    soft_cap: Option<f32>,
}

const OPTIONS: [Options; 3] = [
    Options {
        window: None,
        soft_cap: None,
    },
    Options {
        window: Some(300),
        soft_cap: None,
    },
    Options {
        window: Some(5),
        soft_cap: Some(2.0),
    },
];

fn blocks() -> impl Iterator<Item = u32> {
    (0..29).map(|block| block * 5 % 29)
}

impl Known {
    fn new(numbers_of: Numbers) -> Self {
        let shape = CacheShape {
            kv_heads: KV_HEADS,
            head_size: SIZE,
            blocks: 29,
            numbers: numbers_of,
        };
        let cores = Cores::default();
        let mut cache = Cache::new(shape).unwrap();
        let mut spans = Spans::default();
        spans.push(blocks(), 0..TOKENS, 0);
        let width = KV_HEADS * SIZE;
        let (keys, values) = (numbers(TOKENS * width, 1), numbers(TOKENS * width, 2));
        cache.append(&cores, &spans, &keys, &values);
        Self {
            cache,
            keys,
            values,
            query: numbers(TOKENS * HEADS * SIZE, 3),
        }
    }

    /// Of the rows from position `start` to `end`, in calls with spans of the given lengths.
    fn attend(&self, cores: &Cores, options: Options, spans: &[Range<usize>]) -> Vec<f32> {
        let mut layout = Spans::default();
        let mut query = Vec::new();
        let mut rows = 0;
        for span in spans {
            layout.push(blocks(), rows..rows + span.len(), span.start);
            rows += span.len();
            query.extend_from_slice(&self.query[span.start * HEADS * SIZE..span.end * HEADS * SIZE]);
        }
        let mut out = vec![f32::NAN; query.len()];
        let of = Attention {
            query: &query,
            heads: HEADS,
            scale: 1.5,
            soft_cap: options.soft_cap,
            window: options.window,
            spans: &layout,
            cache: &self.cache,
        };
        attention(cores, &of, &mut Partial::default(), &mut out);
        out
    }

    /// Of the query at `position`, one number after the other.
    fn by_definition(&self, position: usize, options: Options) -> Vec<f64> {
        let mut out = Vec::new();
        let query = &self.query[position * HEADS * SIZE..];
        for head in 0..HEADS {
            let of_head = head * KV_HEADS / HEADS * SIZE;
            let at = |side: &[f32], position: usize, number: usize| {
                f64::from(side[position * KV_HEADS * SIZE + of_head + number])
            };
            let first = options.window.map_or(0, |window| (position + 1).saturating_sub(window));
            let weights = (first..=position).map(|key| {
                let products =
                    (0..SIZE).map(|number| f64::from(query[head * SIZE + number]) * at(&self.keys, key, number));
                let score = products.sum::<f64>() * 1.5;
                let cap = options.soft_cap.map(f64::from);
                (key, cap.map_or(score, |cap| cap * (score / cap).tanh()).exp())
            });
            let weights: Vec<(usize, f64)> = weights.collect();
            let sum: f64 = weights.iter().map(|(_, weight)| weight).sum();
            out.extend((0..SIZE).map(|number| {
                let mixed = weights
                    .iter()
                    .map(|(key, weight)| weight / sum * at(&self.values, *key, number));
                mixed.sum::<f64>()
            }));
        }
        out
    }
}

/// One span of all tokens.
fn whole() -> Vec<Range<usize>> {
    std::iter::once(0..TOKENS).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn it_is_what_its_definition_says() {
    let cores = Cores::start(NonZeroUsize::new(2).unwrap(), Level::detect()).unwrap();
    for (kind, tolerance) in [(Numbers::F32, 1e-5), (Numbers::F16, 3e-3)] {
        let known = Known::new(kind);
        for options in OPTIONS {
            let got = known.attend(&cores, options, &whole());
            for position in [0, 31, 255, 256, 300, 700, TOKENS - 1] {
                let expected = known.by_definition(position, options);
                for (got, expected) in got[position * HEADS * SIZE..].iter().zip(expected) {
                    let difference = (f64::from(*got) - expected).abs();
                    assert!(
                        difference < tolerance,
                        "{:?} {position}: {got} {expected}",
                        options.window
                    );
                }
            }
        }
    }
}

#[test]
fn bits_of_a_row_depend_on_its_sequence_alone() {
    let oracle = Cores::alone(Level::PORTABLE);
    for kind in [Numbers::F16, Numbers::F32] {
        let known = Known::new(kind);
        for options in OPTIONS {
            let expected = known.attend(&oracle, options, &whole());
            let of = |range: Range<usize>| bits(&expected[range.start * HEADS * SIZE..range.end * HEADS * SIZE]);
            for level in Level::available() {
                for threads in [1, 2, 7] {
                    let cores = Cores::start(NonZeroUsize::new(threads).unwrap(), level).unwrap();
                    let ends: [&[(usize, usize)]; 5] = [
                        &[(899, 900)],
                        &[(700, 733)],
                        &[(256, 257), (3, 4), (511, 512)],
                        &[(0, 1), (250, 262), (899, 900), (898, 899), (5, 6), (640, 641), (31, 64)],
                        &[(600, 900)],
                    ];
                    for ends in ends {
                        let spans: Vec<Range<usize>> = ends.iter().map(|(start, end)| *start..*end).collect();
                        let spans = spans.as_slice();
                        let got = known.attend(&cores, options, spans);
                        let expected: Vec<u32> = spans.iter().flat_map(|span| of(span.clone())).collect();
                        assert_eq!(
                            bits(&got),
                            expected,
                            "{kind:?} {:?} {spans:?} {cores:?}",
                            options.window
                        );
                    }
                }
            }
        }
    }
}
