//! Shares the outputs of a product out among the threads of the pool that the caller runs in. candle itself computes each
//! part with one thread: its own threads wait for each other in a circle, which costs milliseconds when somebody else
//! wants the same cores, and their number is fixed when the program starts.

use crate::model::ModelError;
use rayon::prelude::*;
use std::ops::Range;

/// Parts for each thread: whoever is disturbed gets fewer of them.
const PARTS_PER_THREAD: usize = 4;
/// Rows that one thread puts together at least.
const ROWS_TOGETHER: usize = 32;

/// `[rows, outputs]`, whose columns are computed in parts of at most `most` outputs by `part`: it is given a range of
/// outputs, and gives `[rows, range]`.
pub(super) fn by_outputs(
    (rows, outputs): (usize, usize),
    most: usize,
    part: impl Fn(Range<usize>) -> Result<Vec<f32>, ModelError> + Sync,
) -> Result<Vec<f32>, ModelError> {
    /// Fewer outputs than this in a part cost more than they gain.
    const LEAST: usize = 16;
    let even = outputs.div_ceil(PARTS_PER_THREAD * rayon::current_num_threads());
    let each = even.next_multiple_of(LEAST).min(most.max(1));
    in_parts((rows, outputs), each, |first| part(first..outputs.min(first + each)))
}

/// As [`by_outputs`] with parts of `each` outputs, which `part` is given the first of.
pub(super) fn in_parts(
    (rows, outputs): (usize, usize),
    each: usize,
    part: impl Fn(usize) -> Result<Vec<f32>, ModelError> + Sync,
) -> Result<Vec<f32>, ModelError> {
    let firsts: Vec<usize> = (0..outputs).step_by(each).collect();
    let parts: Vec<Vec<f32>> = firsts.par_iter().map(|first| part(*first)).collect::<Result<_, _>>()?;
    if rows == 1 {
        return Ok(parts.concat());
    }
    let mut out = vec![0.0; rows * outputs];
    let together = out
        .par_chunks_exact_mut(outputs)
        .with_min_len(ROWS_TOGETHER)
        .enumerate();
    together.for_each(|(row, out)| {
        for (out, part) in out.chunks_mut(each).zip(&parts) {
            out.copy_from_slice(&part[row * out.len()..][..out.len()]);
        }
    });
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_lie_where_they_belong() {
        let value = |row: usize, output: usize| f32::from(u16::try_from(row * 1000 + output).unwrap());
        for (rows, outputs, most) in [(1, 5, 100), (3, 100, 7), (2, 64, 16), (4, 33, 1000)] {
            let got = by_outputs((rows, outputs), most, |range| {
                assert!(range.len() <= most);
                let row = |row: usize| range.clone().map(move |output| value(row, output));
                Ok((0..rows).flat_map(row).collect())
            });
            let row = |row: usize| (0..outputs).map(move |output| value(row, output));
            assert_eq!(got.unwrap(), (0..rows).flat_map(row).collect::<Vec<_>>());
        }
    }
}
