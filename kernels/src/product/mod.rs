//! Products of packed matrices and activations.
//!
//! One algorithm for integers ([`tile`]) and one for numbers ([`numbers`]) are written against
//! [`Vectors`], which each level has its own instructions for.

mod formats;
mod numbers;
mod tile;

use crate::disjoint::Disjoint;
use crate::instructions::{Vectors, Work};
use crate::math::{exp, tanh};
use crate::pack::Tile;
use crate::{Activations, Cores, Kind, Level, Packed, TILE};
use formats::{
    Fives, FivesLeast, FivesLong, Format, Nibbles, NibblesLeast, NibblesLong, SixesLong, ThreesLong, TwosLong, Whole,
};
use numbers::{Halves, Numbers, Uppers, Wide};
use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;
use tile::Unpacked;

/// A matrix and what is added to its products.
#[derive(Debug, Clone, Copy)]
pub struct Projection<'a> {
    /// The weights.
    pub matrix: &'a Packed,
    /// One number for each output.
    pub bias: Option<&'a [f32]>,
}

/// A projection, and where its products go.
#[derive(Debug)]
pub struct Product<'a> {
    /// The weights.
    pub projection: Projection<'a>,
    /// `[rows, outputs]`.
    pub out: &'a mut [f32],
    /// Whether they are added to what is there.
    pub adds: bool,
}

/// The gate of a feed-forward block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// `x * sigmoid(x)`.
    Silu,
    /// The Gaussian error linear unit in its approximation by the hyperbolic tangent (Hendrycks and Gimpel,
    /// arXiv:1606.08415).
    GeluTanh,
}

/// Computes `x` (`[rows, inputs]`) times several transposed matrices. A value depends on its row and its output and on
/// nothing else: neither on the other rows nor on the number of threads.
///
/// # Panics
/// When the sizes do not fit together.
pub fn linear<const N: usize>(cores: &Cores, scratch: &mut Activations, x: &[f32], products: [Product<'_>; N]) {
    let Some(first) = products.first() else { return };
    let inputs = first.projection.matrix.inputs();
    let rows = rows(x, inputs);
    let mut tiles = [0; N];
    let mut is_quantised = false;
    for (product, tiles) in products.iter().zip(&mut tiles) {
        check(&product.projection, inputs);
        let outputs = product.projection.matrix.outputs();
        assert_eq!(
            product.out.len(),
            rows * outputs,
            "a buffer has a number for each row and output"
        );
        is_quantised |= product.projection.matrix.kind().is_quantised();
        *tiles = outputs.div_ceil(TILE);
    }
    if is_quantised {
        scratch.quantise(cores, x, inputs);
    }
    let x = Inputs {
        numbers: x,
        quantised: scratch,
        width: inputs,
        rows,
    };
    let parts = products.map(|product| (product.projection, Disjoint::new(product.out), product.adds));
    cores.ranges(tiles.iter().sum(), 1, |range| {
        let mut before = 0;
        for ((projection, out, adds), tiles) in parts.iter().zip(tiles) {
            let from = range.start.saturating_sub(before).min(tiles);
            let to = range.end.saturating_sub(before).min(tiles);
            before += tiles;
            Tiles {
                matrices: [projection.matrix, projection.matrix],
                x,
                range: from..to,
                finish: Finish::Store {
                    bias: projection.bias,
                    adds: *adds,
                },
                out,
            }
            .run(cores);
        }
    });
}

/// Computes `gate(x * gates) * (x * ups)`, `[rows, outputs]`.
///
/// # Panics
/// When the sizes do not fit together.
pub fn gated(
    cores: &Cores,
    scratch: &mut Activations,
    x: &[f32],
    [gates, ups]: [Projection<'_>; 2],
    gate: Gate,
    out: &mut [f32],
) {
    let (inputs, outputs) = (gates.matrix.inputs(), gates.matrix.outputs());
    let rows = rows(x, inputs);
    check(&gates, inputs);
    check(&ups, inputs);
    assert_eq!(ups.matrix.outputs(), outputs, "as many gates as values");
    assert_eq!(
        out.len(),
        rows * outputs,
        "a buffer has a number for each row and output"
    );
    if gates.matrix.kind().is_quantised() || ups.matrix.kind().is_quantised() {
        scratch.quantise(cores, x, inputs);
    }
    let x = Inputs {
        numbers: x,
        quantised: scratch,
        width: inputs,
        rows,
    };
    let out = Disjoint::new(out);
    cores.ranges(outputs.div_ceil(TILE), 1, |tiles| {
        Tiles {
            matrices: [gates.matrix, ups.matrix],
            x,
            range: tiles,
            finish: Finish::Gate {
                biases: [gates.bias, ups.bias],
                gate,
            },
            out: &out,
        }
        .run(cores);
    });
}

/// Writes one output's weights: a row of the file.
///
/// # Panics
/// When there is no such output, or `out` is not a row.
pub fn look_up(cores: &Cores, matrix: &Packed, output: usize, out: &mut [f32]) {
    assert!(output < matrix.outputs(), "row {output} of {}", matrix.outputs());
    assert_eq!(out.len(), matrix.inputs(), "a row has a weight for each input");
    let (tile, output) = (matrix.tile(output / TILE), output % TILE);
    macro_rules! of_format {
        ($format:ty) => {
            cores.level().run(LookUp::<$format> {
                tile,
                output,
                out,
                format: PhantomData,
            })
        };
    }
    match matrix.kind() {
        Kind::Q4_0 => of_format!(Nibbles),
        Kind::Q4_1 => of_format!(NibblesLeast),
        Kind::Q5_0 => of_format!(Fives),
        Kind::Q5_1 => of_format!(FivesLeast),
        Kind::Q8_0 => of_format!(Whole),
        Kind::Q2_K => of_format!(TwosLong),
        Kind::Q3_K => of_format!(ThreesLong),
        Kind::Q4_K => of_format!(NibblesLong),
        Kind::Q5_K => of_format!(FivesLong),
        Kind::Q6_K => of_format!(SixesLong),
        kind @ (Kind::F32 | Kind::F16 | Kind::BF16) => numbers::look_up(kind, tile.lines, output, out),
    }
}

/// Whether the instructions of these cores give the same bits as plain loops, for a few tiles of a matrix as it lies in
/// memory, with one row and with more rows than are computed together.
pub fn agrees(cores: &Cores, matrix: &Packed) -> bool {
    same_products(cores.level(), matrix, matrix)
}

/// Compares what a level makes of the first and the last tile of one matrix with what plain loops make of those of another.
fn same_products(level: Level, one: &Packed, other: &Packed) -> bool {
    /// More than any level computes together.
    const ROWS: usize = 9;
    let last = one.outputs().div_ceil(TILE) - 1;
    // Any numbers but zero, in no order that blocks have.
    let number = |at: usize| f32::from(u8::try_from(at * 7 % 6).unwrap_or_default()) / 2.0 - 1.25;
    let x: Vec<f32> = (0..ROWS * one.inputs()).map(number).collect();
    let products = |level: Level, matrix: &Packed, rows: usize, tile: usize| {
        let cores = Cores::alone(level);
        let (mut scratch, x) = (Activations::new(level), &x[..rows * matrix.inputs()]);
        if matrix.kind().is_quantised() {
            scratch.quantise(&cores, x, matrix.inputs());
        }
        let x = Inputs {
            numbers: x,
            quantised: &scratch,
            width: matrix.inputs(),
            rows,
        };
        let mut sums = vec![[0.0; TILE]; rows];
        multiply(&cores, matrix, tile..tile + 1, x, &mut Unpacked::new(), &mut sums);
        sums
    };
    [(1, 0), (ROWS, last)].into_iter().all(|(rows, tile)| {
        let (fast, plain) = (
            products(level, one, rows, tile),
            products(Level::PORTABLE, other, rows, tile),
        );
        let pairs = fast.as_flattened().iter().zip(plain.as_flattened());
        pairs.into_iter().all(|(fast, plain)| fast.to_bits() == plain.to_bits())
    })
}

fn rows(x: &[f32], inputs: usize) -> usize {
    assert!(
        x.len().is_multiple_of(inputs),
        "{} values are whole rows of {inputs}",
        x.len()
    );
    x.len() / inputs
}

fn check(projection: &Projection<'_>, inputs: usize) {
    assert_eq!(projection.matrix.inputs(), inputs, "as many inputs as rows have");
    let outputs = projection.matrix.outputs();
    assert!(
        projection.bias.is_none_or(|bias| bias.len() == outputs),
        "a bias for each output"
    );
}

/// Activations, as a matrix needs them.
#[derive(Clone, Copy)]
struct Inputs<'a> {
    numbers: &'a [f32],
    /// Of this call only when one of its matrices is quantised.
    quantised: &'a Activations,
    width: usize,
    rows: usize,
}

/// What is done with sums.
#[derive(Clone, Copy)]
enum Finish<'a> {
    Store { bias: Option<&'a [f32]>, adds: bool },
    Gate { biases: [Option<&'a [f32]>; 2], gate: Gate },
}

/// Some tiles of a product; the second matrix counts only when sums are gated.
struct Tiles<'a> {
    matrices: [&'a Packed; 2],
    x: Inputs<'a>,
    range: Range<usize>,
    finish: Finish<'a>,
    /// No other thread writes the columns of these tiles.
    out: &'a Disjoint<'a, f32>,
}

/// Sums of one row and tile.
type Sums = [f32; TILE];

/// What a thread computes tiles in.
struct Scratch {
    /// `[tiles, rows]` for each matrix.
    sums: [Vec<Sums>; 2],
    unpacked: Unpacked,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch {
        sums: [Vec::new(), Vec::new()],
        unpacked: Unpacked::new(),
    });
}

/// Sums that are computed before something is done with them.
const SUMS_TOGETHER: usize = 64;

impl Tiles<'_> {
    fn run(&self, cores: &Cores) {
        let each = (SUMS_TOGETHER / self.x.rows.max(1)).max(1);
        SCRATCH.with_borrow_mut(|scratch| {
            for first in self.range.clone().step_by(each) {
                let tiles = first..self.range.end.min(first + each);
                let count = match self.finish {
                    Finish::Store { .. } => 1,
                    Finish::Gate { .. } => 2,
                };
                for (matrix, sums) in self.matrices[..count].iter().zip(&mut scratch.sums) {
                    sums.clear();
                    sums.resize(tiles.len() * self.x.rows, [0.0; TILE]);
                    multiply(cores, matrix, tiles.clone(), self.x, &mut scratch.unpacked, sums);
                }
                cores.level().run(Finishing {
                    of: self,
                    tiles,
                    sums: &scratch.sums,
                });
            }
        });
    }
}

/// Adds every row's products with some tiles to `sums`.
fn multiply(
    cores: &Cores,
    matrix: &Packed,
    tiles: Range<usize>,
    x: Inputs<'_>,
    unpacked: &mut Unpacked,
    sums: &mut [Sums],
) {
    macro_rules! of_format {
        ($format:ty) => {
            cores.level().run(Quantised::<$format> {
                matrix,
                tiles,
                x: x.quantised,
                unpacked,
                sums,
                format: PhantomData,
            })
        };
    }
    macro_rules! of_numbers {
        ($numbers:ty) => {
            cores.level().run(OfNumbers::<$numbers> {
                matrix,
                tiles,
                x,
                sums,
                numbers: PhantomData,
            })
        };
    }
    match matrix.kind() {
        Kind::Q4_0 => of_format!(Nibbles),
        Kind::Q4_1 => of_format!(NibblesLeast),
        Kind::Q5_0 => of_format!(Fives),
        Kind::Q5_1 => of_format!(FivesLeast),
        Kind::Q8_0 => of_format!(Whole),
        Kind::Q2_K => of_format!(TwosLong),
        Kind::Q3_K => of_format!(ThreesLong),
        Kind::Q4_K => of_format!(NibblesLong),
        Kind::Q5_K => of_format!(FivesLong),
        Kind::Q6_K => of_format!(SixesLong),
        Kind::F32 => of_numbers!(Wide),
        Kind::F16 => of_numbers!(Halves),
        Kind::BF16 => of_numbers!(Uppers),
    }
}

/// Products with quantised tiles. Each format is a piece of work of its own, so that the compiler has small ones.
struct Quantised<'a, F> {
    matrix: &'a Packed,
    tiles: Range<usize>,
    x: &'a Activations,
    unpacked: &'a mut Unpacked,
    sums: &'a mut [Sums],
    format: PhantomData<F>,
}

impl<F: Format> Work for Quantised<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vectors>(self, vectors: V) {
        for (tile, sums) in self.tiles.zip(self.sums.chunks_exact_mut(self.x.rows())) {
            tile::multiply::<V, F>(vectors, self.matrix.tile(tile), self.x, self.unpacked, sums);
        }
    }
}

/// Products with tiles of numbers.
struct OfNumbers<'a, N> {
    matrix: &'a Packed,
    tiles: Range<usize>,
    x: Inputs<'a>,
    sums: &'a mut [Sums],
    numbers: PhantomData<N>,
}

impl<N: Numbers> Work for OfNumbers<'_, N> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vectors>(self, vectors: V) {
        let Inputs {
            numbers, width, rows, ..
        } = self.x;
        for (tile, sums) in self.tiles.zip(self.sums.chunks_exact_mut(rows)) {
            numbers::multiply::<V, N>(vectors, self.matrix.tile(tile).lines, numbers, width, sums);
        }
    }
}

/// What is done with the sums of some tiles.
struct Finishing<'a> {
    of: &'a Tiles<'a>,
    tiles: Range<usize>,
    sums: &'a [Vec<Sums>; 2],
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

/// Looks rows of quantised blocks up.
struct LookUp<'a, F> {
    tile: Tile<'a>,
    output: usize,
    out: &'a mut [f32],
    format: PhantomData<F>,
}

impl<F: Format> Work for LookUp<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vectors>(self, vectors: V) {
        tile::look_up::<V, F>(vectors, self.tile, self.output, self.out);
    }
}

#[cfg(test)]
mod tests;
