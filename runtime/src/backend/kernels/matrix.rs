//! Packed matrices.

use super::super::{Precision, Projection, StoredMatrix};
use super::Kernels;
use crate::model::ModelError;
use escadre_kernels::{Cores, Kind, Memory, PackError, Packed, TILE};
use escadre_verify::structure::gguf::TensorType;

/// A packed matrix, `[outputs, inputs]`.
#[derive(Debug)]
pub struct Matrix(Packed);

/// How the kernels name a type; absent for those that they cannot compute with.
pub(super) fn kind(kind: TensorType) -> Option<Kind> {
    Some(match kind {
        TensorType::F32 => Kind::F32,
        TensorType::F16 => Kind::F16,
        TensorType::Bf16 => Kind::BF16,
        TensorType::Q4_0 => Kind::Q4_0,
        TensorType::Q4_1 => Kind::Q4_1,
        TensorType::Q5_0 => Kind::Q5_0,
        TensorType::Q5_1 => Kind::Q5_1,
        TensorType::Q8_0 => Kind::Q8_0,
        TensorType::Q2K => Kind::Q2_K,
        TensorType::Q3K => Kind::Q3_K,
        TensorType::Q4K => Kind::Q4_K,
        TensorType::Q5K => Kind::Q5_K,
        TensorType::Q6K => Kind::Q6_K,
        _ => return None,
    })
}

/// Bytes of so many weights, in whole tiles.
pub(super) fn resident_bytes(stored: TensorType, elements: u64, precision: Precision) -> u64 {
    match kind(stored) {
        Some(kind) if precision == Precision::AsStored => {
            let block = kind.block_weights();
            let blocks = elements.div_ceil((TILE * block) as u64);
            blocks.saturating_mul(kind.resident_bytes(TILE, block) as u64)
        }
        _ => elements.saturating_mul(4),
    }
}

impl Matrix {
    pub(super) fn new(
        cores: &Cores,
        memory: &Memory,
        stored: &StoredMatrix<'_>,
        precision: Precision,
    ) -> Result<Self, ModelError> {
        let StoredMatrix {
            kind: stored_kind,
            rows,
            columns,
            bytes,
        } = stored;
        let kind =
            kind(*stored_kind).ok_or_else(|| ModelError::Tensor(format!("no arithmetic for type {stored_kind}")))?;
        let pack = |memory: &Memory, kind: Kind, bytes: &[u8]| {
            let packed = Packed::new(cores, memory, kind, (*rows, *columns), bytes);
            packed.map_err(|error: PackError| ModelError::Tensor(error.to_string()))
        };
        if precision == Precision::AsStored || kind == Kind::F32 {
            return Ok(Self(pack(memory, kind, bytes)?));
        }
        // Of its own, which is given back when it has been widened.
        let packed = pack(&Memory::default(), kind, bytes)?;
        let mut wide = vec![0_u8; rows * columns * 4];
        cores.chunks(&mut wide, columns * 4, |row, bytes| {
            let mut numbers = vec![0.0; *columns];
            escadre_kernels::look_up(cores, &packed, row, &mut numbers);
            for (bytes, number) in bytes.as_chunks_mut().0.iter_mut().zip(numbers) {
                *bytes = number.to_le_bytes();
            }
        });
        Ok(Self(pack(memory, Kind::F32, &wide)?))
    }

    pub(super) fn outputs(&self) -> usize {
        self.0.outputs()
    }

    pub(super) fn inputs(&self) -> usize {
        self.0.inputs()
    }

    /// The weights of one output.
    pub(super) fn look_up(&self, cores: &Cores, output: usize, out: &mut [f32]) {
        escadre_kernels::look_up(cores, &self.0, output, out);
    }

    /// Whether a few of its products are those of plain loops.
    pub(super) fn agrees(&self, cores: &Cores) -> bool {
        escadre_kernels::agrees(cores, &self.0)
    }

    /// Without a bias.
    pub(super) fn alone(&self) -> escadre_kernels::Projection<'_> {
        escadre_kernels::Projection {
            matrix: &self.0,
            bias: None,
        }
    }
}

pub(super) fn projection(projection: &Projection<Kernels>) -> escadre_kernels::Projection<'_> {
    escadre_kernels::Projection {
        bias: projection.bias.as_deref(),
        ..projection.weight.alone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_the_layout_that_the_kernels_have() {
        let mut count = 0;
        for &stored in TensorType::ALL {
            if let Some(kind) = kind(stored) {
                assert_eq!(kind.block_weights(), stored.block_elements(), "{stored}");
                assert_eq!(kind.block_bytes(), stored.block_bytes(), "{stored}");
                count += 1;
            }
        }
        assert_eq!(count, Kind::ALL.len());
    }

    #[test]
    fn type_without_arithmetic_and_bytes_of_another_size_are_refused() {
        let cores = Cores::default();
        let matrix = |kind, bytes: usize| {
            let stored = StoredMatrix {
                kind,
                rows: 2,
                columns: 32,
                bytes: vec![0; bytes].into(),
            };
            Matrix::new(&cores, &Memory::default(), &stored, Precision::AsStored).map_err(|error| error.to_string())
        };
        assert!(matrix(TensorType::Q4_0, 36).is_ok());
        assert!(matrix(TensorType::Q4_0, 35).unwrap_err().contains("35 bytes"));
        let unknown = TensorType::ALL.iter().find(|&&stored| kind(stored).is_none());
        assert!(matrix(*unknown.unwrap(), 36).unwrap_err().contains("no arithmetic"));
    }
}
