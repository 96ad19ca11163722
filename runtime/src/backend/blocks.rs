//! Matrices as a file stores them, as candle's tensors of blocks.

use super::StoredMatrix;
use crate::model::ModelError;
use candle_core::Device;
use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use escadre_verify::structure::gguf::TensorType;
use std::borrow::Cow;

/// candle's name of a block type; absent for those that it cannot compute with.
pub(super) fn block_type(kind: TensorType) -> Option<GgmlDType> {
    Some(match kind {
        TensorType::F32 => GgmlDType::F32,
        TensorType::F16 => GgmlDType::F16,
        TensorType::Bf16 => GgmlDType::BF16,
        TensorType::Q4_0 => GgmlDType::Q4_0,
        TensorType::Q4_1 => GgmlDType::Q4_1,
        TensorType::Q5_0 => GgmlDType::Q5_0,
        TensorType::Q5_1 => GgmlDType::Q5_1,
        TensorType::Q8_0 => GgmlDType::Q8_0,
        TensorType::Q2K => GgmlDType::Q2K,
        TensorType::Q3K => GgmlDType::Q3K,
        TensorType::Q4K => GgmlDType::Q4K,
        TensorType::Q5K => GgmlDType::Q5K,
        TensorType::Q6K => GgmlDType::Q6K,
        _ => return None,
    })
}

/// Whether candle's product on the processor does not take a matrix of so many columns: it takes blocks of these two in
/// pairs.
pub(super) fn is_odd(kind: TensorType, columns: usize) -> bool {
    matches!(kind, TensorType::Q5_0 | TensorType::Q5_1) && !columns.is_multiple_of(64)
}

/// Checks that the bytes are as many as the shape needs, in whole blocks per row.
pub(super) fn check(stored: &StoredMatrix<'_>) -> Result<(), ModelError> {
    let StoredMatrix {
        kind,
        rows,
        columns,
        bytes,
    } = stored;
    let expected = (rows * columns) / kind.block_elements() * kind.block_bytes();
    if bytes.len() != expected || !columns.is_multiple_of(kind.block_elements()) {
        let message = format!("{rows} x {columns} of {kind} is not {} bytes", bytes.len());
        return Err(ModelError::Tensor(message));
    }
    Ok(())
}

/// The blocks on a device.
pub(super) fn pack(stored: &StoredMatrix<'_>, device: &Device) -> Result<QTensor, ModelError> {
    check(stored)?;
    let kind = stored.kind;
    let block = block_type(kind).ok_or_else(|| ModelError::Tensor(format!("no arithmetic for type {kind}")))?;
    let aligned = aligned(&stored.bytes);
    let storage = QStorage::from_data(aligned.as_cow(), device, block)?;
    Ok(QTensor::new(storage, (stored.rows, stored.columns))?)
}

/// The strictest alignment of a block type; candle panics when bytes lie otherwise.
const ALIGNMENT: usize = 8;

/// Bytes at an aligned address: the given ones, or a copy with some bytes before it.
struct Aligned<'a> {
    bytes: Cow<'a, [u8]>,
    skip: usize,
}

impl Aligned<'_> {
    fn as_cow(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes[self.skip..])
    }
}

fn aligned(bytes: &[u8]) -> Aligned<'_> {
    if bytes.as_ptr().addr().is_multiple_of(ALIGNMENT) {
        return Aligned {
            bytes: Cow::Borrowed(bytes),
            skip: 0,
        };
    }
    let mut copy: Vec<u8> = Vec::with_capacity(bytes.len() + ALIGNMENT);
    let skip = copy.as_ptr().addr().next_multiple_of(ALIGNMENT) - copy.as_ptr().addr();
    copy.resize(skip, 0);
    copy.extend_from_slice(bytes);
    Aligned {
        bytes: Cow::Owned(copy),
        skip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unaligned_bytes_are_copied() {
        let bytes: Vec<u8> = (0..64).collect();
        for skip in 0..16 {
            let aligned = aligned(&bytes[skip..]);
            assert!(aligned.as_cow().as_ptr().addr().is_multiple_of(ALIGNMENT));
            assert_eq!(&*aligned.as_cow(), &bytes[skip..]);
        }
    }

    #[test]
    fn every_supported_type_has_the_layout_that_candle_has() {
        for &kind in TensorType::ALL {
            if let Some(block) = block_type(kind) {
                assert_eq!(block.block_size(), kind.block_elements(), "{kind}");
                assert_eq!(block.type_size(), kind.block_bytes(), "{kind}");
            }
        }
    }
}
