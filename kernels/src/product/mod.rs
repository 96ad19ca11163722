//! Products of packed matrices and activations.
//!
//! One algorithm for integers ([`tile`]) and one for numbers ([`numbers`]) are written against
//! [`Vectors`], which each level has its own instructions for.

mod agree;
mod finish;
mod formats;
mod numbers;
mod tile;

use crate::disjoint::Disjoint;
use crate::instructions::{Vectors, Work};
use crate::pack::Tile;
use crate::{Activations, Cores, Kind, Packed, TILE};
pub use agree::agrees;
use finish::Finishing;
use formats::{
    Fives, FivesLeast, FivesLong, Format, Nibbles, NibblesLeast, NibblesLong, SixesLong, ThreesLong, TwosLong, Whole,
};
use numbers::{Halves, Numbers, Uppers, Wide};
use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;
use tile::Unpacked;

/// Does something with the type of a kind: with the [`Format`] of quantised ones, or the [`Numbers`] of others.
macro_rules! by_kind {
    ($kind:expr, $format:ident => $quantised:expr, $numbers:ident => $dense:expr) => {
        by_kind!(@ $kind, $format => $quantised, $numbers => $dense,
            [Q4_0 Nibbles, Q4_1 NibblesLeast, Q5_0 Fives, Q5_1 FivesLeast, Q8_0 Whole,
             Q2_K TwosLong, Q3_K ThreesLong, Q4_K NibblesLong, Q5_K FivesLong, Q6_K SixesLong],
            [F32 Wide, F16 Halves, BF16 Uppers])
    };
    (@ $kind:expr, $format:ident => $quantised:expr, $numbers:ident => $dense:expr,
        [$($q:ident $of_q:ident),*], [$($d:ident $of_d:ident),*]) => {
        match $kind {
            $(Kind::$q => { type $format = $of_q; $quantised })*
            $(Kind::$d => { type $numbers = $of_d; $dense })*
        }
    };
}

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
    for (product, tiles) in products.iter().zip(&mut tiles) {
        check(&product.projection, inputs);
        let outputs = product.projection.matrix.outputs();
        assert_eq!(
            product.out.len(),
            rows * outputs,
            "a buffer has a number for each row and output"
        );
        *tiles = outputs.div_ceil(TILE);
    }
    let matrices = products.each_ref().map(|product| product.projection.matrix);
    let x = Inputs::new(cores, scratch, x, &matrices);
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
    let x = Inputs::new(cores, scratch, x, &[gates.matrix, ups.matrix]);
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
    by_kind!(
        matrix.kind(),
        Quantised => cores.level().run(LookUp::<Quantised> {
            tile,
            output,
            out,
            format: PhantomData,
        }),
        Dense => numbers::look_up::<Dense>(tile.lines, output, out)
    );
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

impl<'a> Inputs<'a> {
    /// Whole rows for some matrices, of which there is one at least; quantised when one of them is.
    fn new(cores: &Cores, scratch: &'a mut Activations, numbers: &'a [f32], matrices: &[&Packed]) -> Self {
        let width = matrices[0].inputs();
        if matrices.iter().any(|matrix| matrix.kind().is_quantised()) {
            scratch.quantise(cores, numbers, width);
        }
        Self {
            numbers,
            quantised: scratch,
            width,
            rows: numbers.len() / width,
        }
    }
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
    by_kind!(
        matrix.kind(),
        Quantised => cores.level().run(OfQuants::<Quantised> {
            matrix,
            tiles,
            x: x.quantised,
            unpacked,
            sums,
            format: PhantomData,
        }),
        Dense => cores.level().run(OfNumbers::<Dense> {
            matrix,
            tiles,
            x,
            sums,
            numbers: PhantomData,
        })
    );
}

/// Products with quantised tiles. Each format is a piece of work of its own, so that the compiler has small ones.
struct OfQuants<'a, F> {
    matrix: &'a Packed,
    tiles: Range<usize>,
    x: &'a Activations,
    unpacked: &'a mut Unpacked,
    sums: &'a mut [Sums],
    format: PhantomData<F>,
}

impl<F: Format> Work for OfQuants<'_, F> {
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
