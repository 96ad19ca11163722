//! Activations as integers of 8 bits.

use crate::instructions::{Vectors, Work};
use crate::{BLOCK, Cores, GROUPS, Level, TILE};

/// Words of a row in a block: its groups, its sums (of the block, of its halves), its scale and its scaled sum.
pub(crate) const WORDS: usize = GROUPS + 5;
/// Where the sums begin: negative ones, of all 32 values and of each 16.
pub(crate) const SUMS: usize = GROUPS;
/// Where the scale is, as the bits of an f32.
pub(crate) const SCALE: usize = GROUPS + 3;
/// Where the sum of the values times the scale is, as the bits of an f32.
pub(crate) const SCALED: usize = GROUPS + 4;

/// Quantised rows, in memory that is used again. Each [`BLOCK`] values have a scale of their own, a 127th of the largest of
/// them, and are rounded to -127 to 127, halves to even.
///
/// Rows lie in panels, of as many as one level computes together, or 4, 3, 2 and 1: `[blocks, WORDS, rows of the panel]`.
#[derive(Debug)]
pub struct Activations {
    level: Level,
    rows: usize,
    inputs: usize,
    words: Vec<u32>,
}

impl Activations {
    /// None yet.
    pub fn new(level: Level) -> Self {
        Self {
            level,
            rows: 0,
            inputs: 0,
            words: Vec::new(),
        }
    }

    /// Quantises `[rows, inputs]` in place of what was there. Values that are not numbers count as zeros of their block.
    ///
    /// # Panics
    /// When `x` is not whole rows, or rows are not whole blocks.
    pub(crate) fn quantise(&mut self, cores: &Cores, x: &[f32], inputs: usize) {
        assert!(
            inputs > 0 && inputs.is_multiple_of(BLOCK),
            "rows are whole blocks of {BLOCK}, not {inputs}"
        );
        assert!(
            x.len().is_multiple_of(inputs),
            "{} values are whole rows of {inputs}",
            x.len()
        );
        (self.rows, self.inputs) = (x.len() / inputs, inputs);
        self.words.resize(x.len() / BLOCK * WORDS, 0);
        let of_row = inputs / BLOCK * WORDS;
        let together = self.together();
        // The last rows make several panels, which lie behind each other in one chunk.
        cores.chunks(&mut self.words, together * of_row, |chunk, words| {
            let (mut x, mut words) = (&x[chunk * together * inputs..], words);
            while !words.is_empty() {
                let rows = panel(together, words.len() / of_row);
                let (now, later) = words.split_at_mut(rows * of_row);
                self.level.run(Quantise {
                    x: &x[..rows * inputs],
                    inputs,
                    words: now,
                });
                (x, words) = (&x[rows * inputs..], later);
            }
        });
    }

    /// Rows of a panel at most.
    fn together(&self) -> usize {
        self.level.instructions().rows()
    }

    /// How many rows.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Values of a row.
    pub(crate) fn inputs(&self) -> usize {
        self.inputs
    }

    /// Panels with their first rows and their numbers of rows.
    pub(crate) fn panels(&self) -> impl Iterator<Item = (usize, usize, &[u32])> {
        let of_row = self.inputs / BLOCK * WORDS;
        let mut first = 0;
        std::iter::from_fn(move || {
            let rows = panel(self.together(), self.rows - first);
            let words = &self.words[first * of_row..(first + rows) * of_row];
            first += rows;
            (rows > 0).then_some((first - rows, rows, words))
        })
    }
}

/// How many of the rows that are left make a panel: as many as fit, of the numbers that products are built for.
#[inline(always)]
pub(crate) fn panel(together: usize, left: usize) -> usize {
    let most = if left < together { left } else { together };
    match most {
        5..8 => 4,
        most => most,
    }
}

/// Quantises the rows of a panel.
struct Quantise<'a> {
    x: &'a [f32],
    inputs: usize,
    words: &'a mut [u32],
}

impl Work for Quantise<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vectors>(self, vectors: V) {
        let rows = self.x.len() / self.inputs;
        for (row, values) in self.x.chunks_exact(self.inputs).enumerate() {
            let blocks = values.as_chunks::<BLOCK>().0;
            for (values, words) in blocks.iter().zip(self.words.chunks_exact_mut(WORDS * rows)) {
                let block = block(vectors, values);
                for (word, value) in words.chunks_exact_mut(rows).zip(block) {
                    word[row] = value;
                }
            }
        }
    }
}

/// The words of one block of one row.
#[expect(clippy::cast_precision_loss, reason = "sums of a block are small")]
#[inline(always)]
fn block<V: Vectors>(vectors: V, values: &[f32; BLOCK]) -> [u32; WORDS] {
    let halves = values.as_chunks::<TILE>().0;
    let halves = [vectors.read(&halves[0]), vectors.read(&halves[1])];
    // What is not a number is not larger than zero.
    let zero = vectors.splat(0.0);
    let sizes = halves.map(|half| vectors.larger(vectors.absolute(half), zero));
    let largest = vectors.largest(vectors.larger(sizes[0], sizes[1]));
    let (scale, factor) = if largest >= f32::MIN_POSITIVE && largest.is_finite() {
        (largest / 127.0, 127.0 / largest)
    } else {
        (0.0, 0.0)
    };
    let quants = halves.map(|half| vectors.round(vectors.numbers(vectors.multiply(half, vectors.splat(factor)))));
    let mut words = [0; WORDS];
    for (words, quants) in words.as_chunks_mut::<{ GROUPS / 2 }>().0.iter_mut().zip(quants) {
        for (word, group) in words.iter_mut().zip(vectors.bytes(quants).as_chunks().0) {
            *word = u32::from_le_bytes(*group);
        }
    }
    let sums = quants.map(|quants| vectors.total(quants));
    let whole = sums[0] + sums[1];
    words[SUMS] = (-whole).cast_unsigned();
    words[SUMS + 1] = (-sums[0]).cast_unsigned();
    words[SUMS + 2] = (-sums[1]).cast_unsigned();
    words[SCALE] = scale.to_bits();
    words[SCALED] = (scale * whole as f32).to_bits();
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Block<'a>(&'a [f32; BLOCK]);

    impl Work for Block<'_> {
        type Output = [u32; WORDS];

        #[inline(always)]
        fn run<V: Vectors>(self, vectors: V) -> [u32; WORDS] {
            super::block(vectors, self.0)
        }
    }

    /// The same at every level.
    fn block(values: &[f32; BLOCK]) -> [u32; WORDS] {
        let expected = Level::PORTABLE.run(Block(values));
        for level in Level::available() {
            assert_eq!(level.run(Block(values)), expected, "{level:?}");
        }
        expected
    }

    #[test]
    fn block_has_its_values_sums_and_scale() {
        let values: [f32; BLOCK] = std::array::from_fn(|at| {
            if at == 3 {
                -254.0
            } else {
                f32::from(u8::try_from(at).unwrap())
            }
        });
        let words = block(&values);
        let quants: Vec<i8> = words[..GROUPS]
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .map(u8::cast_signed)
            .collect();
        assert_eq!(quants[..6], [0, 0, 1, -127, 2, 2], "halves go to even numbers");
        let sum: i32 = quants.iter().map(|quant| i32::from(*quant)).sum();
        assert_eq!(words[SUMS].cast_signed(), -sum);
        assert_eq!(
            words[SUMS].cast_signed(),
            words[SUMS + 1].cast_signed() + words[SUMS + 2].cast_signed()
        );
        assert_eq!(words[SCALE], 2.0_f32.to_bits());
        let sum = f32::from(i16::try_from(sum).unwrap());
        assert_eq!(words[SCALED], (2.0 * sum).to_bits());
    }

    #[test]
    fn zeros_and_values_that_are_no_numbers_do_no_harm() {
        assert_eq!(block(&[0.0; BLOCK]), [0; WORDS]);
        assert_eq!(block(&[f32::INFINITY; BLOCK]), [0; WORDS]);
        let mut values = [1.0; BLOCK];
        values[5] = f32::NAN;
        assert_eq!(block(&values)[1].to_le_bytes(), [127, 0, 127, 127]);
    }
}
