//! Whether the numbers of a tensor are numbers. One that is not spreads to every answer, and nothing says where it came
//! from. In blocks of quantised values only the scales can be such.

use escadre_verify::structure::gguf::TensorType;

/// Whether no value is infinite or not a number. Types without such values are always finite.
pub(super) fn are_finite(kind: TensorType, bytes: &[u8]) -> bool {
    // Infinity and what is no number have all bits of the exponent set (IEEE 754). The greatest of a part is found several values at a time.
    let mut parts = bytes.chunks(PART);
    match kind {
        TensorType::F32 => parts.all(|part| {
            let values = part.as_chunks().0.iter().map(|&bytes| u32::from_le_bytes(bytes));
            values.map(|bits| bits & 0x7F80_0000).max() != Some(0x7F80_0000)
        }),
        TensorType::Bf16 => parts.all(|part| halves(part).map(|bits| bits & 0x7F80).max() != Some(0x7F80)),
        TensorType::F16 => parts.all(|part| halves(part).map(|bits| bits & 0x7C00).max() != Some(0x7C00)),
        _ => {
            let scales = scales(kind);
            let mut blocks = bytes.chunks_exact(kind.block_bytes());
            blocks.all(|block| {
                let mut bits = scales.iter().map(|at| u16::from_le_bytes([block[*at], block[at + 1]]));
                bits.all(|bits| bits & 0x7C00 != 0x7C00)
            })
        }
    }
}

/// Bytes of a part: whole values of every type.
const PART: usize = 1 << 14;

fn halves(bytes: &[u8]) -> impl Iterator<Item = u16> {
    bytes.as_chunks().0.iter().map(|&bytes| u16::from_le_bytes(bytes))
}

/// Where a block has its scales and least values, which are of 16 bits (`ggml-common.h` of llama.cpp).
fn scales(kind: TensorType) -> &'static [usize] {
    match kind {
        TensorType::Q4_0 | TensorType::Q5_0 | TensorType::Q8_0 => &[0],
        TensorType::Q4_1 | TensorType::Q5_1 | TensorType::Q4K | TensorType::Q5K => &[0, 2],
        TensorType::Q2K => &[80, 82],
        TensorType::Q3K => &[108],
        TensorType::Q6K => &[208],
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_scale_that_is_no_number_is_found_in_every_type() {
        let kinds = [
            TensorType::Q4_0,
            TensorType::Q4_1,
            TensorType::Q5_0,
            TensorType::Q5_1,
            TensorType::Q8_0,
            TensorType::Q2K,
            TensorType::Q3K,
            TensorType::Q4K,
            TensorType::Q5K,
            TensorType::Q6K,
        ];
        for kind in kinds {
            assert!(!scales(kind).is_empty());
            // Everything but the scales may have any bits.
            let mut bytes = vec![0xFF; 3 * kind.block_bytes()];
            for block in bytes.chunks_exact_mut(kind.block_bytes()) {
                for at in scales(kind) {
                    block[*at..at + 2].copy_from_slice(&half::f16::from_f32(0.5).to_le_bytes());
                }
            }
            assert!(are_finite(kind, &bytes), "{kind}");
            for at in scales(kind) {
                let mut damaged = bytes.clone();
                let at = 2 * kind.block_bytes() + at;
                damaged[at..at + 2].copy_from_slice(&half::f16::NAN.to_le_bytes());
                assert!(!are_finite(kind, &damaged), "{kind} at {at}");
            }
        }
    }

    #[test]
    fn floats_are_finite_up_to_the_greatest() {
        let floats = |value: f32| value.to_le_bytes().to_vec();
        let halves = |value: f32| half::f16::from_f32(value).to_le_bytes().to_vec();
        let brains = |value: f32| half::bf16::from_f32(value).to_le_bytes().to_vec();
        for (kind, greatest, of) in [
            (TensorType::F32, f32::MAX, &floats as &dyn Fn(f32) -> Vec<u8>),
            (TensorType::F16, 65504.0, &halves),
            (TensorType::Bf16, 3.3e38, &brains),
        ] {
            for good in [0.0, -1.5, greatest, -greatest] {
                assert!(are_finite(kind, &[of(1.0), of(good)].concat()), "{kind} {good}");
            }
            for bad in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
                assert!(!are_finite(kind, &[of(1.0), of(bad)].concat()), "{kind} {bad}");
            }
        }
    }
}
