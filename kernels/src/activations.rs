//! Activations as integers of 8 bits.

use crate::{BLOCK, GROUPS, Level};

/// Words of a row in a block: its groups, its sums (of the block, of its halves), its scale and its scaled sum.
pub(crate) const WORDS: usize = GROUPS + 5;
/// Where the sums begin: negative ones, of all 32 values and of each 16.
pub(crate) const SUMS: usize = GROUPS;
/// Where the scale is, as the bits of an f32.
pub(crate) const SCALE: usize = GROUPS + 3;
/// Where the sum of the values times the scale is, as the bits of an f32.
pub(crate) const SCALED: usize = GROUPS + 4;

/// Quantised rows. Each [`BLOCK`] values have a scale of their own, a 127th of the largest of them, and are rounded to
/// -127 to 127, halves to even.
///
/// Rows lie in panels, as many together as one level computes together: `[blocks, WORDS, rows of the panel]`.
#[derive(Debug)]
pub struct Activations {
    level: Level,
    rows: usize,
    inputs: usize,
    words: Vec<u32>,
}

impl Activations {
    /// Quantises `[rows, inputs]`. Values that are not numbers count as zeros of their block.
    ///
    /// # Panics
    /// When `x` is not whole rows, or rows are not whole blocks.
    pub fn quantise(level: Level, x: &[f32], inputs: usize) -> Self {
        assert!(
            inputs > 0 && inputs.is_multiple_of(BLOCK),
            "rows are whole blocks of {BLOCK}, not {inputs}"
        );
        assert!(
            x.len().is_multiple_of(inputs),
            "{} values are whole rows of {inputs}",
            x.len()
        );
        let together = level.instructions().rows();
        let mut words = vec![0; x.len() / BLOCK * WORDS];
        let panels = x.chunks(together * inputs);
        for (panel, words) in panels.zip(words.chunks_mut(together * inputs / BLOCK * WORDS)) {
            let rows = panel.len() / inputs;
            for (row, values) in panel.chunks_exact(inputs).enumerate() {
                let blocks = values.as_chunks::<BLOCK>().0;
                for (values, words) in blocks.iter().zip(words.chunks_exact_mut(WORDS * rows)) {
                    let block = block(values);
                    for (word, value) in words.chunks_exact_mut(rows).zip(block) {
                        word[row] = value;
                    }
                }
            }
        }
        Self {
            level,
            rows: x.len() / inputs,
            inputs,
            words,
        }
    }

    /// How many rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values of a row.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// The level that they are laid out for.
    pub(crate) fn level(&self) -> Level {
        self.level
    }

    /// Panels with their first rows and their numbers of rows.
    pub(crate) fn panels(&self) -> impl Iterator<Item = (usize, usize, &[u32])> {
        let of_row = self.inputs / BLOCK * WORDS;
        let together = self.level.instructions().rows();
        let panels = self.words.chunks(together * of_row).enumerate();
        panels.map(move |(index, words)| (index * together, words.len() / of_row, words))
    }
}

/// The words of one block of one row.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "rounded values are -127 to 127, and sums of them are small"
)]
fn block(values: &[f32; BLOCK]) -> [u32; WORDS] {
    let mut largest = [0.0_f32; 16];
    for half in values.as_chunks::<16>().0 {
        for (largest, value) in largest.iter_mut().zip(half) {
            *largest = largest.max(value.abs());
        }
    }
    let largest = largest.iter().fold(0.0_f32, |one, other| one.max(*other));
    let (scale, factor) = if largest >= f32::MIN_POSITIVE && largest.is_finite() {
        (largest / 127.0, 127.0 / largest)
    } else {
        (0.0, 0.0)
    };
    let quants: [i8; BLOCK] = std::array::from_fn(|at| (values[at] * factor).round_ties_even() as i8);
    let sum = |half: &[i8]| half.iter().map(|quant| i32::from(*quant)).sum::<i32>();
    let halves = [sum(&quants[..16]), sum(&quants[16..])];
    let whole = halves[0] + halves[1];
    let mut words = [0; WORDS];
    for (word, group) in words.iter_mut().zip(quants.as_chunks::<4>().0) {
        *word = u32::from_le_bytes(group.map(i8::cast_unsigned));
    }
    words[SUMS] = (-whole).cast_unsigned();
    words[SUMS + 1] = (-halves[0]).cast_unsigned();
    words[SUMS + 2] = (-halves[1]).cast_unsigned();
    words[SCALE] = scale.to_bits();
    words[SCALED] = (scale * whole as f32).to_bits();
    words
}

#[cfg(test)]
mod tests {
    use super::*;

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
