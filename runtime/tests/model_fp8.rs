//! safetensors with 8-bit floats and a scale per block give the logits of the numbers that they stand for.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]
#![expect(dead_code, reason = "the module has what other tests need too")]

#[path = "goldens/mod.rs"]
mod goldens;

use goldens::Case;
use goldens::tiny::{self, Stored, Tensor, tokenizer};
use serde_json::{Value as Json, json};

const BLOCK: usize = 32;

/// The bytes of a matrix, its scales, and the numbers that both stand for.
fn quantised(tensor: &Tensor) -> (Stored, Stored, Tensor) {
    let (rows, columns) = (tensor.shape[0], tensor.shape[1]);
    let width = columns.div_ceil(BLOCK);
    let scales: Vec<f32> = (0..rows.div_ceil(BLOCK) * width)
        .map(|index| 0.125 + 0.0625 * f32::from(u8::try_from(index).unwrap()))
        .collect();
    let mut bytes = Vec::new();
    let mut values = Vec::new();
    for (index, value) in tensor.values.iter().enumerate() {
        let scale = scales[index / columns / BLOCK * width + index % columns / BLOCK];
        // One binary digit behind the point, and the exponent of 1, are enough for a test.
        let (byte, size) = if value.abs() > 0.15 { (0x3C, 1.5) } else { (0x30, 0.5) };
        bytes.push(if *value < 0.0 { byte | 0x80 } else { byte });
        values.push(size * scale * value.signum());
    }
    let wide = Tensor {
        shape: tensor.shape.clone(),
        values,
    };
    let scales = Stored {
        kind: "F32",
        shape: vec![rows.div_ceil(BLOCK), width],
        bytes: scales.iter().flat_map(|scale| scale.to_le_bytes()).collect(),
    };
    let stored = Stored {
        kind: "F8_E4M3",
        shape: tensor.shape.clone(),
        bytes,
    };
    (stored, scales, wide)
}

fn is_quantised(name: &str) -> bool {
    name.ends_with("_proj.weight")
}

#[test]
fn blocks_of_8_bit_floats_are_the_numbers_that_they_stand_for() {
    for name in ["qwen3", "phi3_long"] {
        let mut case = Case::read(name);
        let mut stored: Vec<_> = case
            .tensors
            .iter()
            .map(|(name, tensor)| (name.clone(), Stored::wide(tensor)))
            .collect();
        let mut wide = case.clone();
        for (name, tensor) in case.tensors.iter().filter(|(name, _)| is_quantised(name)) {
            let (matrix, scales, values) = quantised(tensor);
            stored.retain(|(other, _)| other != name);
            stored.push((name.clone(), matrix));
            stored.push((format!("{name}_scale_inv"), scales));
            wide.tensors.insert(name.clone(), values);
        }
        let expected = wide.rows(&mut wide.load().unwrap(), usize::MAX);
        let method = json!({"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [BLOCK, BLOCK]});
        case.config["quantization_config"] = method;
        let folder = tempfile::tempdir().unwrap();
        let write = |config: &Json, stored: &[(String, Stored)]| {
            let write = |name: &str, content: &[u8]| std::fs::write(folder.path().join(name), content).unwrap();
            write("config.json", config.to_string().as_bytes());
            write("tokenizer.json", tokenizer().to_string().as_bytes());
            write("model.safetensors", &tiny::safetensors(stored));
            case.open(folder.path())
        };
        let mut loaded = write(&case.config, &stored).unwrap();
        assert_eq!(loaded.description.quantization, "F8_E4M3");
        let difference = goldens::difference(&expected, &case.rows(&mut loaded, usize::MAX));
        assert!(difference <= case.tolerance(), "{name}: {difference:e}");

        let mut without = case.config.clone();
        without.as_object_mut().unwrap().remove("quantization_config");
        assert_eq!(write(&without, &stored).unwrap_err().reason(), "WeightsMismatch");
        stored.retain(|(name, _)| !name.ends_with("layers.1.mlp.down_proj.weight_scale_inv"));
        let error = write(&case.config, &stored).unwrap_err();
        assert!(
            error.to_string().contains("layers.1.mlp.down_proj.weight_scale_inv"),
            "{error}"
        );
    }
}
