//! Weights that are made smaller while they are loaded, because somebody chose so.

use crate::backend::StoredMatrix;
use escadre_verify::structure::gguf::TensorType;
use half::f16;
use std::borrow::Cow;

/// How matrices of numbers are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, strum::Display)]
pub enum Quantize {
    /// 8 bits per value and a scale for each 32 values (GGUF `Q8_0`).
    #[value(name = "q8_0")]
    Q8_0,
}

/// Values of a block.
const BLOCK: usize = 32;

impl Quantize {
    /// How a matrix of this type and width is held. Matrices that are quantised already stay as they are, and so do
    /// those whose rows are not whole blocks.
    pub(super) fn held(self, kind: TensorType, columns: usize) -> TensorType {
        let is_float = matches!(kind, TensorType::F32 | TensorType::F16 | TensorType::Bf16);
        match self {
            Self::Q8_0 if is_float && columns.is_multiple_of(BLOCK) => TensorType::Q8_0,
            Self::Q8_0 => kind,
        }
    }

    /// The matrix as it is held; values are finite. The scale of a block is the largest of its values over 127, as
    /// GGUF files have it.
    pub(super) fn pack(self, stored: StoredMatrix<'_>) -> StoredMatrix<'_> {
        let held = self.held(stored.kind, stored.columns);
        if held == stored.kind {
            return stored;
        }
        let bytes = match stored.kind {
            TensorType::F32 => blocks(
                stored
                    .bytes
                    .as_chunks()
                    .0
                    .iter()
                    .map(|bytes| f32::from_le_bytes(*bytes)),
            ),
            TensorType::F16 => blocks(
                stored
                    .bytes
                    .as_chunks()
                    .0
                    .iter()
                    .map(|bytes| f16::from_le_bytes(*bytes).to_f32()),
            ),
            _ => {
                let values = stored.bytes.as_chunks().0.iter();
                blocks(values.map(|bytes| half::bf16::from_le_bytes(*bytes).to_f32()))
            }
        };
        StoredMatrix {
            kind: held,
            bytes: Cow::Owned(bytes),
            ..stored
        }
    }
}

fn blocks(mut values: impl ExactSizeIterator<Item = f32>) -> Vec<u8> {
    let count = values.len() / BLOCK;
    let mut out = Vec::with_capacity(count * (2 + BLOCK));
    let mut block = [0.0; BLOCK];
    for _ in 0..count {
        for (place, value) in block.iter_mut().zip(values.by_ref()) {
            *place = value;
        }
        let largest = block.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        // Weights are far below the largest number of 16 bits; what is above is held as well as it can be.
        let scale = f16::from_f32((largest / 127.0).min(f16::MAX.to_f32()));
        let inverse = if scale.to_f32() > 0.0 {
            1.0 / scale.to_f32()
        } else {
            0.0
        };
        out.extend(scale.to_le_bytes());
        #[expect(clippy::cast_possible_truncation, reason = "clamped to the range")]
        out.extend(block.map(|value| ((value * inverse).round().clamp(-127.0, 127.0) as i8).cast_unsigned()));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(kind: TensorType, columns: usize, bytes: Vec<u8>) -> StoredMatrix<'static> {
        StoredMatrix {
            kind,
            rows: 1,
            columns,
            bytes: Cow::Owned(bytes),
        }
    }

    #[test]
    fn values_come_back_within_half_a_step_of_their_block() {
        let values: Vec<f32> = (0_u8..64)
            .map(|index| (f32::from(index) - 20.0) * if index < 32 { 0.01 } else { 3.0 })
            .collect();
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let packed = Quantize::Q8_0.pack(stored(TensorType::F32, 64, bytes));
        assert_eq!((packed.kind, packed.bytes.len()), (TensorType::Q8_0, 2 * 34));
        for (block, values) in packed.bytes.chunks(34).zip(values.chunks(32)) {
            let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
            for (byte, value) in block[2..].iter().zip(values) {
                let got = f32::from(byte.cast_signed()) * scale;
                assert!((got - value).abs() <= 0.51 * scale, "{got} {value}");
            }
        }
    }

    #[test]
    fn zeros_stay_zeros_and_other_matrices_stay_as_they_are() {
        let zeros = Quantize::Q8_0.pack(stored(TensorType::F16, 32, vec![0; 64]));
        assert_eq!(*zeros.bytes, [0; 34]);
        let odd = Quantize::Q8_0.pack(stored(TensorType::Bf16, 48, vec![1; 96]));
        assert_eq!((odd.kind, &*odd.bytes), (TensorType::Bf16, &[1; 96][..]));
        let packed = Quantize::Q8_0.pack(stored(TensorType::Q4_0, 32, vec![7; 18]));
        assert_eq!((packed.kind, &*packed.bytes), (TensorType::Q4_0, &[7; 18][..]));
    }
}
