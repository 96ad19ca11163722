//! Every level against the loops, and the loops against weights that are widened by the formats' definitions.

use crate::{
    Activations, Cores, Gate, Kind, Level, Memory, Packed, Product, Projection, agrees, gated, linear, look_up,
};
use std::num::NonZeroUsize;

/// Bytes that look random.
fn random(seed: u32) -> impl FnMut() -> u8 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    }
}

fn cores(level: Level, threads: usize) -> Cores {
    Cores::start(NonZeroUsize::new(threads).unwrap(), level).unwrap()
}

/// Random blocks, whose scales of 16 bits are about those given; or random numbers of that size.
fn matrix(kind: Kind, outputs: usize, inputs: usize, scale: f32) -> Vec<u8> {
    let mut next = random(7);
    if !kind.is_quantised() {
        let number = move |_| {
            let number = scale * (f32::from(next()) - 127.0);
            match kind {
                Kind::F32 => number.to_le_bytes().to_vec(),
                Kind::F16 => half::f16::from_f32(number).to_le_bytes().to_vec(),
                _ => half::bf16::from_f32(number).to_le_bytes().to_vec(),
            }
        };
        return (0..outputs * inputs).flat_map(number).collect();
    }
    let blocks = outputs * inputs / kind.block_weights();
    let mut bytes: Vec<u8> = (0..blocks * kind.block_bytes()).map(|_| next()).collect();
    for block in bytes.chunks_exact_mut(kind.block_bytes()) {
        let (first, second) = kind.scales_at();
        for at in std::iter::once(first).chain(second) {
            let scale = scale * (f32::from(next()) - 100.0) / 100.0;
            block[at..at + 2].copy_from_slice(&half::f16::from_f32(scale).to_le_bytes());
        }
    }
    bytes
}

fn packed(kind: Kind, outputs: usize, inputs: usize, scale: f32) -> Packed {
    let bytes = matrix(kind, outputs, inputs, scale);
    Packed::new(
        &cores(Level::PORTABLE, 2),
        &Memory::default(),
        kind,
        (outputs, inputs),
        &bytes,
    )
    .unwrap()
}

fn inputs(count: usize, seed: u32) -> Vec<f32> {
    let mut next = random(seed);
    (0..count).map(|_| (f32::from(next()) - 127.5) / 64.0).collect()
}

fn product(cores: &Cores, matrix: &Packed, x: &[f32]) -> Vec<f32> {
    let mut out = vec![f32::NAN; x.len() / matrix.inputs() * matrix.outputs()];
    let product = Product {
        projection: Projection { matrix, bias: None },
        out: &mut out,
        adds: false,
    };
    linear(cores, &mut Activations::new(cores.level()), x, [product]);
    out
}

/// The bits of every number.
fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// A row of weights by the definition of its format (ggml's `dequantize_row_…`).
fn widen(kind: Kind, row: &[u8]) -> Vec<f64> {
    if !kind.is_quantised() {
        let number = |bytes: &[u8]| match *bytes {
            [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
            [low, high] if kind == Kind::F16 => half::f16::from_le_bytes([low, high]).to_f32(),
            _ => half::bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
        };
        return row
            .chunks_exact(kind.block_bytes())
            .map(|bytes| f64::from(number(bytes)))
            .collect();
    }
    let half = |block: &[u8], at: usize| f64::from(half::f16::from_le_bytes([block[at], block[at + 1]]).to_f32());
    let block = |block: &[u8]| -> Vec<f64> {
        let scale = half(block, 0);
        let nibble = |from: usize, at: usize| f64::from(block[from + at % 16] >> (at / 16 * 4) & 15);
        let fifth = |from: usize, at: usize| f64::from((block[from + at / 8] >> (at % 8) & 1) * 16);
        match kind {
            Kind::Q4_0 => (0..32).map(|at| (nibble(2, at) - 8.0) * scale).collect(),
            Kind::Q4_1 => (0..32).map(|at| nibble(4, at) * scale + half(block, 2)).collect(),
            Kind::Q5_0 => (0..32)
                .map(|at| (nibble(6, at) + fifth(2, at) - 16.0) * scale)
                .collect(),
            Kind::Q5_1 => {
                let weight = |at| (nibble(8, at) + fifth(4, at)) * scale + half(block, 2);
                (0..32).map(weight).collect()
            }
            Kind::Q8_0 => (0..32)
                .map(|at| f64::from(block[2 + at].cast_signed()) * scale)
                .collect(),
            Kind::Q2_K | Kind::Q3_K => (0..256)
                .map(|at| {
                    let (half_of, quarter, byte) = (at / 128, at % 128 / 32, at % 32);
                    let quants = if kind == Kind::Q2_K { 16 } else { 32 };
                    let two = f64::from(block[quants + half_of * 32 + byte] >> (2 * quarter) & 3);
                    let part = at / 16;
                    if kind == Kind::Q2_K {
                        let (of_scale, of_least) = (block[part] & 15, block[part] >> 4);
                        return half(block, 80) * f64::from(of_scale) * two - half(block, 82) * f64::from(of_least);
                    }
                    let third = f64::from(block[byte] >> (half_of * 4 + quarter) & 1);
                    // Four words of four scales: the low four bits of each in the first two words, the high two in
                    // the third.
                    let low = if part < 8 {
                        block[96 + part] & 15
                    } else {
                        block[88 + part] >> 4
                    };
                    let high = block[104 + part % 4] >> (2 * (part / 4)) & 3;
                    half(block, 108) * (f64::from(low | high << 4) - 32.0) * (two + 4.0 * third - 4.0)
                })
                .collect(),
            Kind::F32 | Kind::F16 | Kind::BF16 => unreachable!("numbers"),
            Kind::Q4_K | Kind::Q5_K => (0..256)
                .map(|at| {
                    let (sub, quants) = (at / 32, if kind == Kind::Q4_K { 16 } else { 48 });
                    let six = &block[4..16];
                    let (of_scale, of_least) = if sub < 4 {
                        (six[sub] & 63, six[sub + 4] & 63)
                    } else {
                        let (low, high) = (six[sub + 4], six[sub - 4] >> 6 << 4);
                        (low & 15 | high, low >> 4 | (six[sub] >> 6) << 4)
                    };
                    let mut weight = block[quants + at / 64 * 32 + at % 32] >> (sub % 2 * 4) & 15;
                    if kind == Kind::Q5_K {
                        weight += (block[16 + at % 32] >> sub & 1) * 16;
                    }
                    scale * f64::from(of_scale) * f64::from(weight) - half(block, 2) * f64::from(of_least)
                })
                .collect(),
            Kind::Q6_K => (0..256)
                .map(|at| {
                    let (part, at) = (at / 128, at % 128);
                    let (quarter, at) = (at / 32, at % 32);
                    let low = block[part * 64 + quarter % 2 * 32 + at] >> (quarter / 2 * 4) & 15;
                    let high = block[128 + part * 32 + at] >> (quarter * 2) & 3;
                    let scales = block[192 + part * 8 + at / 16 + quarter * 2].cast_signed();
                    half(block, 208) * f64::from(scales) * (f64::from(low | high << 4) - 32.0)
                })
                .collect(),
        }
    };
    row.chunks_exact(kind.block_bytes()).flat_map(block).collect()
}

#[test]
fn every_level_and_number_of_threads_has_the_bits_of_the_loops_for_every_kind_and_number_of_rows() {
    for kind in Kind::ALL {
        for (outputs, width) in [(48, 512), (37, 768), (16, 2048)] {
            let matrix = packed(kind, outputs, width, 0.01);
            for rows in [1, 2, 3, 4, 7, 8, 9, 16, 23, 32, 33, 64] {
                let x = inputs(rows * width, 3);
                let expected = product(&cores(Level::PORTABLE, 1), &matrix, &x);
                for level in Level::available() {
                    let got = product(&cores(level, 2), &matrix, &x);
                    assert_eq!(
                        bits(&got),
                        bits(&expected),
                        "{kind:?} {outputs}x{width} {rows} {level:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn value_depends_on_its_row_and_output_alone() {
    for level in Level::available() {
        let cores = cores(level, 3);
        for kind in Kind::ALL {
            let (outputs, width) = (40, 1792);
            let matrix = packed(kind, outputs, width, 0.01);
            let x = inputs(33 * width, 5);
            let together = product(&cores, &matrix, &x);
            for row in [0, 7, 8, 32] {
                let alone = product(&cores, &matrix, &x[row * width..(row + 1) * width]);
                let of_all = &together[row * outputs..(row + 1) * outputs];
                assert_eq!(bits(of_all), bits(&alone), "{kind:?} {row} {level:?}");
            }
        }
    }
}

#[test]
fn rows_of_any_length_and_outputs_of_any_number_are_computed() {
    let cores = cores(Level::detect(), 2);
    for (kind, outputs, width) in [
        (Kind::Q4_0, 1, 32),
        (Kind::Q4_1, 100, 576),
        (Kind::Q8_0, 17, 640),
        (Kind::Q4_0, 33, 1536),
        (Kind::Q6_K, 31, 8192),
        (Kind::F32, 5, 3),
        (Kind::F16, 50, 37),
        (Kind::BF16, 1, 1),
    ] {
        let matrix = packed(kind, outputs, width, 0.01);
        for rows in [1, 512] {
            let x = inputs(rows * width, 3);
            let got = product(&cores, &matrix, &x);
            let mut weights = vec![0.0; width];
            for output in [0, outputs - 1] {
                look_up(&cores, &matrix, output, &mut weights);
                let expected: f32 = weights
                    .iter()
                    .zip(&x[x.len() - width..])
                    .map(|(weight, x)| weight * x)
                    .sum();
                let got = got[(rows - 1) * outputs + output];
                let size: f32 = weights
                    .iter()
                    .zip(&x[x.len() - width..])
                    .map(|(weight, x)| (weight * x).abs())
                    .sum();
                assert!(
                    (got - expected).abs() <= 0.01 * size,
                    "{kind:?} {rows} {output}: {got} {expected}"
                );
            }
        }
    }
}

#[test]
fn products_are_those_of_the_formats_definitions() {
    let cores = cores(Level::detect(), 1);
    for kind in Kind::ALL {
        for scale in [1e-5, 0.01, 300.0] {
            let (outputs, width) = (19, 768);
            let bytes = matrix(kind, outputs, width, scale);
            let packed = Packed::new(&cores, &Memory::default(), kind, (outputs, width), &bytes).unwrap();
            // Integers to 127 in every block: quantised without an error.
            let mut next = random(11);
            let x: Vec<f32> = (0..3 * width)
                .map(|at| {
                    if at % 32 == 5 {
                        127.0
                    } else {
                        f32::from(next().cast_signed().max(-127))
                    }
                })
                .collect();
            let got = product(&cores, &packed, &x);
            for (output, weights) in bytes.chunks_exact(bytes.len() / outputs).enumerate() {
                let weights = widen(kind, weights);
                let mut found = vec![0.0; width];
                look_up(&cores, &packed, output, &mut found);
                for (found, weight) in found.iter().zip(&weights) {
                    // A least value and a multiple of a scale may cancel each other.
                    let tolerance = 1e-6 * (weight.abs() + 2e3 * f64::from(scale));
                    assert!(
                        (f64::from(*found) - weight).abs() <= tolerance,
                        "{kind:?} {scale}: {found} {weight}"
                    );
                }
                for (row, x) in x.chunks_exact(width).enumerate() {
                    let terms = weights.iter().zip(x).map(|(weight, x)| weight * f64::from(*x));
                    let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + f64::abs(term)));
                    let got = f64::from(got[row * outputs + output]);
                    assert!((got - sum).abs() <= size * 2e-6, "{kind:?} {scale}: {got} {sum}");
                }
            }
        }
    }
}

#[test]
fn largest_integers_do_not_overflow() {
    for kind in Kind::ALL.into_iter().filter(|kind| kind.is_quantised()) {
        let mut bytes = vec![0xff; 16 * 256 / kind.block_weights() * kind.block_bytes()];
        for block in bytes.chunks_exact_mut(kind.block_bytes()) {
            let (first, second) = kind.scales_at();
            for at in std::iter::once(first).chain(second) {
                block[at..at + 2].copy_from_slice(&half::f16::ONE.to_le_bytes());
            }
        }
        let matrix = Packed::new(&cores(Level::PORTABLE, 1), &Memory::default(), kind, (16, 256), &bytes).unwrap();
        for sign in [1.0, -1.0] {
            let expected = product(&cores(Level::PORTABLE, 1), &matrix, &[sign; 256]);
            for level in Level::available() {
                assert_eq!(
                    bits(&product(&cores(level, 1), &matrix, &[sign; 256])),
                    bits(&expected),
                    "{kind:?} {level:?}"
                );
            }
        }
    }
}

/// Several matrices at once, biases, additions and gates against one matrix at a time.
#[test]
fn what_is_done_with_products_is_done_to_their_bits() {
    let (width, outputs, rows) = (576, 52, 11);
    let [one, other, third] = [Kind::Q4_0, Kind::Q6_K, Kind::F16];
    let one = packed(one, outputs, width, 0.01);
    let other = packed(other, 30, 768, 0.01);
    let third = packed(third, 40, width, 0.01);
    let (x, bias) = (inputs(rows * width, 3), inputs(outputs, 4));
    for threads in [1, 3] {
        let cores = cores(Level::detect(), threads);
        let mut scratch = Activations::new(cores.level());
        let (first, last) = (product(&cores, &one, &x), product(&cores, &third, &x));
        let (mut sums, mut plain) = (inputs(rows * outputs, 5), vec![0.0; rows * 40]);
        let there = sums.clone();
        let products = [
            Product {
                projection: Projection {
                    matrix: &one,
                    bias: Some(&bias),
                },
                out: &mut sums,
                adds: true,
            },
            Product {
                projection: Projection {
                    matrix: &third,
                    bias: None,
                },
                out: &mut plain,
                adds: false,
            },
        ];
        linear(&cores, &mut scratch, &x, products);
        assert_eq!(bits(&plain), bits(&last));
        for (at, sum) in sums.iter().enumerate() {
            let expected = first[at] + bias[at % outputs] + there[at];
            assert!((sum - expected).abs() < 1e-5, "{at}: {sum} {expected}");
        }
        // The scratch memory of one width is used for another.
        let x_other = inputs(2 * 768, 6);
        assert_eq!(bits(&product(&cores, &other, &x_other)), {
            let mut out = vec![0.0; 2 * 30];
            let projection = Projection {
                matrix: &other,
                bias: None,
            };
            let product = Product {
                projection,
                out: &mut out,
                adds: false,
            };
            linear(&cores, &mut scratch, &x_other, [product]);
            bits(&out)
        });
        for gate in [Gate::Silu, Gate::GeluTanh] {
            let gates = Projection {
                matrix: &one,
                bias: Some(&bias),
            };
            let ups = Projection {
                matrix: &one,
                bias: None,
            };
            let mut gated_values = vec![0.0; rows * outputs];
            gated(&cores, &mut scratch, &x, [gates, ups], gate, &mut gated_values);
            for (at, got) in gated_values.iter().enumerate() {
                let value = f64::from(first[at] + bias[at % outputs]);
                let factor = match gate {
                    Gate::Silu => 1.0 / (1.0 + (-value).exp()),
                    Gate::GeluTanh => {
                        let inner = (2.0 / std::f64::consts::PI).sqrt() * (value + 0.044_715 * value.powi(3));
                        0.5 * (1.0 + inner.tanh())
                    }
                };
                let expected = value * factor * f64::from(first[at]);
                assert!(
                    (f64::from(*got) - expected).abs() < 1e-5 * (1.0 + expected.abs()),
                    "{gate:?} {got} {expected}"
                );
            }
        }
    }
}

#[test]
fn self_test_finds_one_weight_that_is_not_the_same() {
    for kind in Kind::ALL {
        let (outputs, width) = (37, 512);
        let bytes = matrix(kind, outputs, width, 0.01);
        let pack = |bytes: &[u8]| {
            Packed::new(
                &cores(Level::PORTABLE, 1),
                &Memory::default(),
                kind,
                (outputs, width),
                bytes,
            )
            .unwrap()
        };
        let (right, mut damaged) = (pack(&bytes), bytes.clone());
        // In the last row, which is in the last tile.
        let at = damaged.len() - bytes.len() / outputs + 22;
        damaged[at] ^= 0x15;
        let damaged = pack(&damaged);
        for level in Level::available() {
            assert!(agrees(&cores(level, 1), &right), "{kind:?} {level:?}");
            assert!(
                !super::agree::same_products(level, &damaged, &right),
                "{kind:?} {level:?}"
            );
        }
    }
}
