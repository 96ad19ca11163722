//! What is done with the sums of tiles: biases, additions, gates.

use super::{Finish, Gate, Sums, Tiles};
use crate::TILE;
use crate::instructions::{Vectors, Work};
use crate::math::{exp, tanh};
use std::ops::Range;

/// What is done with the sums of some tiles.
pub(super) struct Finishing<'a> {
    pub(super) of: &'a Tiles<'a>,
    pub(super) tiles: Range<usize>,
    pub(super) sums: &'a [Vec<Sums>; 2],
}

impl Work for Finishing<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vectors>(self, vectors: V) {
        let (outputs, rows) = (self.of.matrices[0].outputs(), self.of.x.rows);
        for (index, tile) in self.tiles.enumerate() {
            let columns = tile * TILE..outputs.min((tile + 1) * TILE);
            let biases = match self.of.finish {
                Finish::Store { bias, .. } => [bias, None],
                Finish::Gate { biases, .. } => biases,
            };
            let biases = biases.map(|bias| bias.map(|bias| padded(&bias[columns.clone()])));
            for row in 0..rows {
                // SAFETY: rows and tiles do not overlap, and no other thread has these tiles.
                let out = unsafe {
                    self.of
                        .out
                        .slice(row * outputs + columns.start..row * outputs + columns.end)
                };
                let mut values = self.sums[0][index * rows + row];
                add(&mut values, biases[0].as_ref());
                match self.of.finish {
                    Finish::Store { adds: false, .. } => {}
                    Finish::Store { adds: true, .. } => add(&mut values, Some(&padded(out))),
                    Finish::Gate { gate, .. } => {
                        let mut ups = self.sums[1][index * rows + row];
                        add(&mut ups, biases[1].as_ref());
                        let x = vectors.read(&values);
                        let gated = match gate {
                            Gate::Silu => silu(vectors, x),
                            Gate::GeluTanh => gelu_tanh(vectors, x),
                        };
                        vectors.write(vectors.multiply(gated, vectors.read(&ups)), &mut values);
                    }
                }
                out.copy_from_slice(&values[..out.len()]);
            }
        }
    }
}

/// The numbers of a tile, whose last may lack some.
#[inline(always)]
fn padded(numbers: &[f32]) -> Sums {
    let mut padded = [0.0; TILE];
    padded[..numbers.len()].copy_from_slice(numbers);
    padded
}

#[inline(always)]
fn add(values: &mut Sums, others: Option<&Sums>) {
    if let Some(others) = others {
        for (value, other) in values.iter_mut().zip(others) {
            *value += other;
        }
    }
}

#[inline(always)]
fn silu<V: Vectors>(vectors: V, x: V::Floats) -> V::Floats {
    let negative = vectors.subtract(vectors.splat(0.0), x);
    vectors.divide(x, vectors.add(exp(vectors, negative), vectors.splat(1.0)))
}

#[inline(always)]
fn gelu_tanh<V: Vectors>(vectors: V, x: V::Floats) -> V::Floats {
    /// The square root of 2 / pi.
    const FACTOR: f32 = 0.797_884_6;
    let cube = vectors.multiply(vectors.multiply(x, x), x);
    let inner = vectors.multiply(
        vectors.multiply_add(cube, vectors.splat(0.044_715), x),
        vectors.splat(FACTOR),
    );
    let half = vectors.multiply(x, vectors.splat(0.5));
    vectors.multiply_add(half, tanh(vectors, inner), half)
}
