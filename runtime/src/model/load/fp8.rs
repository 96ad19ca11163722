//! Matrices of 8-bit floats (4 bits of exponent) with a scale for every block of rows and columns. Pure.

use super::inventory::Entry;
use super::pack;
use escadre_verify::structure::gguf::TensorType;
use escadre_verify::structure::safetensors::{DataType, TensorInfo};
use escadre_verify::{Reading, Reason, Refusal};
use serde_json::Value;

/// Rows and columns that share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlockSize {
    rows: usize,
    columns: usize,
}

impl BlockSize {
    /// What a `quantization_config` says; absent when weights are quantised in another way.
    pub(crate) fn of(quantization: &Value) -> Option<Self> {
        let is_fp8 = quantization.get("quant_method").and_then(Value::as_str) == Some("fp8");
        let format = quantization.get("fmt").filter(|format| !format.is_null());
        let is_e4m3 = format.is_none_or(|format| format == "e4m3");
        let sizes = quantization.get("weight_block_size")?.as_array()?;
        let size = |value: &Value| {
            usize::try_from(value.as_u64()?)
                .ok()
                .filter(|size| (1..=1 << 20).contains(size))
        };
        match sizes.as_slice() {
            [rows, columns] if is_fp8 && is_e4m3 => Some(Self {
                rows: size(rows)?,
                columns: size(columns)?,
            }),
            _ => None,
        }
    }
}

/// The scales of one matrix, or of some of its rows.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Scales {
    values: Vec<f32>,
    block: BlockSize,
    /// Scales of one row of blocks.
    width: usize,
    /// The row of the whole matrix that the first row here is.
    first: usize,
}

impl Scales {
    /// The same scales for rows from `first` on.
    pub(crate) fn behind(&self, first: usize) -> Self {
        Self {
            first: self.first + first,
            ..self.clone()
        }
    }

    /// The numbers of a matrix as f32, little endian.
    pub(crate) fn widen(&self, bytes: &[u8], columns: usize) -> Vec<u8> {
        let decoded: Vec<f32> = (0..=u8::MAX).map(decode).collect();
        let mut out = Vec::with_capacity(4 * bytes.len());
        for (row, bytes) in bytes.chunks_exact(columns).enumerate() {
            let scales = &self.values[(self.first + row) / self.block.rows * self.width..];
            for (bytes, scale) in bytes.chunks(self.block.columns).zip(scales) {
                let values = bytes.iter().map(|&byte| decoded[usize::from(byte)] * scale);
                out.extend(values.flat_map(f32::to_le_bytes));
            }
        }
        out
    }
}

/// The value of an 8-bit float; there are no infinities.
fn decode(byte: u8) -> f32 {
    let (exponent, fraction) = (i32::from(byte >> 3 & 15), f32::from(byte & 7) / 8.0);
    let size = match (exponent, byte & 7) {
        (15, 7) => f32::NAN,
        (0, _) => fraction * 2_f32.powi(-6),
        _ => (1.0 + fraction) * 2_f32.powi(exponent - 7),
    };
    if byte & 128 == 0 { size } else { -size }
}

/// The name of the tensor with the scales of a matrix.
pub(super) fn scales_name(matrix: &str) -> String {
    format!("{matrix}_scale_inv")
}

/// A matrix and its scales, which lie in the same file.
pub(super) fn entry(
    reading: &mut Reading,
    tensor: TensorInfo,
    scales: Option<&TensorInfo>,
    block: Option<BlockSize>,
) -> Result<Entry, Refusal> {
    let file = reading.name().to_owned();
    let refuse = |message: String| Refusal::new(Reason::WeightsMismatch, message).in_file(&file);
    let Some(block) = block else {
        return Err(refuse(format!(
            "tensor {:?} is quantised, but the configuration does not say how",
            tensor.name
        )));
    };
    let name = scales_name(&tensor.name);
    let scales = scales.ok_or_else(|| refuse(format!("tensor {name:?} is not in the file of its matrix")))?;
    let &[rows, columns] = tensor.shape.as_slice() else {
        return Err(refuse(format!("tensor {:?} is quantised and no matrix", tensor.name)));
    };
    let kind = match scales.kind {
        DataType::F32 => TensorType::F32,
        DataType::Bf16 => TensorType::Bf16,
        other => return Err(refuse(format!("tensor {name:?} has a type that scales cannot have")).values("F32", other)),
    };
    let shape = [rows.div_ceil(block.rows), columns.div_ceil(block.columns)];
    if scales.shape != shape {
        return Err(refuse(format!("tensor {name:?} has the wrong shape"))
            .values(format!("{shape:?}"), format!("{:?}", scales.shape)));
    }
    let stored = Entry {
        name,
        shape: scales.shape.clone(),
        kind,
        range: scales.range.clone(),
        scales: None,
    };
    let bytes = reading.look(scales.range.clone())?;
    let values = pack::widen(&stored, &bytes).map_err(|refusal| refusal.in_file(&file))?;
    Ok(Entry {
        name: tensor.name,
        shape: tensor.shape,
        kind: TensorType::F32,
        range: tensor.range,
        scales: Some(Scales {
            values,
            block,
            width: shape[1],
            first: 0,
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn bytes_have_the_published_values() {
        let table = [
            (0x00, 0.0),
            (0x01, 0.001_953_125),
            (0x08, 0.015_625),
            (0x38, 1.0),
            (0x3C, 1.5),
            (0x7E, 448.0),
            (0xB8, -1.0),
        ];
        for (byte, expected) in table {
            assert_eq!(decode(byte).to_bits(), f32::to_bits(expected), "{byte:x}");
        }
        assert!(decode(0x7F).is_nan());
    }

    #[test]
    fn only_blocks_of_8_bit_floats_are_known() {
        let known = json!({"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 64]});
        let size = BlockSize::of(&known);
        assert_eq!(size, Some(BlockSize { rows: 128, columns: 64 }));
        for (field, value) in [
            ("quant_method", json!("gptq")),
            ("fmt", json!("e5m2")),
            ("weight_block_size", json!(null)),
            ("weight_block_size", json!([0, 128])),
            ("weight_block_size", json!([128])),
        ] {
            let mut other = known.clone();
            other[field] = value;
            assert_eq!(BlockSize::of(&other), None, "{other}");
        }
    }

    #[test]
    fn every_block_has_its_scale() {
        let scales = Scales {
            values: vec![1.0, 2.0, 3.0, 4.0],
            block: BlockSize { rows: 2, columns: 2 },
            width: 2,
            first: 0,
        };
        let values = |scales: &Scales, rows: usize| {
            let bytes = scales.widen(&vec![0x38; rows * 3], 3);
            bytes
                .as_chunks()
                .0
                .iter()
                .map(|&bytes| f32::from_le_bytes(bytes))
                .collect::<Vec<_>>()
        };
        assert_eq!(values(&scales, 3), [1.0, 1.0, 2.0, 1.0, 1.0, 2.0, 3.0, 3.0, 4.0]);
        assert_eq!(values(&scales.behind(2), 1), [3.0, 3.0, 4.0]);
    }
}
