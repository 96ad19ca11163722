//! Every level against the loops, and the loops against weights that are widened by the formats' definitions.

use crate::{Activations, Columns, Kind, Level, Packed, multiply};

/// Bytes that look random.
fn random(seed: u32) -> impl FnMut() -> u8 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    }
}

/// Random blocks, whose scales of 16 bits are those given.
fn matrix(kind: Kind, outputs: usize, inputs: usize, scale: f32) -> Vec<u8> {
    let mut next = random(7);
    let blocks = outputs * inputs / kind.block_weights();
    let mut bytes: Vec<u8> = (0..blocks * kind.block_bytes()).map(|_| next()).collect();
    for block in bytes.chunks_exact_mut(kind.block_bytes()) {
        let at: &[usize] = match kind {
            Kind::Q4_0 | Kind::Q5_0 | Kind::Q8_0 => &[0],
            Kind::Q4_1 | Kind::Q5_1 | Kind::Q4_K | Kind::Q5_K => &[0, 2],
            Kind::Q6_K => &[208],
        };
        for &at in at {
            let scale = scale * (f32::from(next()) - 100.0) / 100.0;
            block[at..at + 2].copy_from_slice(&half::f16::from_f32(scale).to_le_bytes());
        }
    }
    bytes
}

fn inputs(count: usize, seed: u32) -> Vec<f32> {
    let mut next = random(seed);
    (0..count).map(|_| (f32::from(next()) - 127.5) / 64.0).collect()
}

fn product(level: Level, matrix: &Packed, x: &[f32], parts: usize) -> Vec<f32> {
    let x = Activations::quantise(level, x, matrix.inputs());
    let mut out = vec![f32::NAN; x.rows() * matrix.outputs()];
    for mut columns in Columns::split(&mut out, x.rows(), matrix.outputs(), parts) {
        multiply(matrix, &x, &mut columns);
    }
    out
}

/// The bits of every number.
fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// A row of weights by the definition of its format (ggml's `dequantize_row_…`).
fn widen(kind: Kind, row: &[u8]) -> Vec<f64> {
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
fn every_level_has_the_bits_of_the_loops_for_every_kind_and_number_of_rows() {
    for kind in Kind::ALL {
        for (outputs, width) in [(48, 512), (37, 768), (16, 2048)] {
            let matrix = Packed::new(kind, outputs, width, &matrix(kind, outputs, width, 0.01)).unwrap();
            for rows in [1, 2, 3, 4, 7, 8, 9, 16, 23, 32, 33, 64] {
                let x = inputs(rows * width, 3);
                let expected = product(Level::PORTABLE, &matrix, &x, 1);
                for level in Level::available() {
                    let got = product(level, &matrix, &x, 2);
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
        for kind in Kind::ALL {
            let (outputs, width) = (40, 1792);
            let matrix = Packed::new(kind, outputs, width, &matrix(kind, outputs, width, 0.01)).unwrap();
            let x = inputs(33 * width, 5);
            let together = product(level, &matrix, &x, 3);
            for row in [0, 7, 8, 32] {
                let alone = product(level, &matrix, &x[row * width..(row + 1) * width], 1);
                let of_all = &together[row * outputs..(row + 1) * outputs];
                assert_eq!(bits(of_all), bits(&alone), "{kind:?} {row} {level:?}");
            }
        }
    }
}

#[test]
fn products_are_those_of_the_formats_definitions() {
    for kind in Kind::ALL {
        for scale in [1e-5, 0.01, 300.0] {
            let (outputs, width) = (19, 768);
            let bytes = matrix(kind, outputs, width, scale);
            let packed = Packed::new(kind, outputs, width, &bytes).unwrap();
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
            let got = product(Level::detect(), &packed, &x, 1);
            for (row, x) in x.chunks_exact(width).enumerate() {
                for (output, weights) in bytes.chunks_exact(bytes.len() / outputs).enumerate() {
                    let terms = widen(kind, weights)
                        .into_iter()
                        .zip(x)
                        .map(|(weight, x)| weight * f64::from(*x));
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
    for kind in Kind::ALL {
        let mut bytes = vec![0xff; 16 * 256 / kind.block_weights() * kind.block_bytes()];
        for block in bytes.chunks_exact_mut(kind.block_bytes()) {
            let at: &[usize] = if kind == Kind::Q6_K { &[208] } else { &[0, 2] };
            for &at in at.iter().take(if kind.scale_bytes() == 32 { 1 } else { 2 }) {
                block[at..at + 2].copy_from_slice(&half::f16::ONE.to_le_bytes());
            }
        }
        let matrix = Packed::new(kind, 16, 256, &bytes).unwrap();
        for sign in [1.0, -1.0] {
            let expected = product(Level::PORTABLE, &matrix, &[sign; 256], 1);
            for level in Level::available() {
                assert_eq!(
                    bits(&product(level, &matrix, &[sign; 256], 1)),
                    bits(&expected),
                    "{kind:?} {level:?}"
                );
            }
        }
    }
}
