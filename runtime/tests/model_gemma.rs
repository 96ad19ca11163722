//! Gemma 3 270M as it is published, against `transformers` with the same weights in f32 (see reference/gemma3.py), and
//! its quantised weights beside llama.cpp. The text is longer than the window of the model.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]
#![expect(dead_code, reason = "the module has what other tests need too")]

#[path = "reference/mod.rs"]
mod reference;

use candle_core::Device;
use escadre_runtime::backend::Precision;
use escadre_runtime::backend::tensors::Tensors;
use escadre_runtime::kv::blocks_for;
use escadre_runtime::model::{KvType, LoadError, LoadOptions, Loaded, load, load_exact, load_with};
use escadre_verify::VerifiedModel;
use reference::{Reference, largest, mean, rows};
use serde_json::Value as Json;

const FILE: &str = "gemma-3-270m-q4_k_m.gguf";

type Loader = fn(&VerifiedModel, &LoadOptions, &mut dyn FnMut(u64, u64)) -> Result<Loaded, LoadError>;

fn model(loader: Loader) -> Loaded {
    let files = VerifiedModel::open(&reference::cached(FILE), None, &mut |_, _| {}).unwrap();
    // Keys and values of the whole context are not needed.
    let options = LoadOptions {
        max_context: Some(1024),
        ..LoadOptions::default()
    };
    let mut model = loader(&files, &options, &mut |_, _| {}).unwrap();
    model.decoder.allocate(blocks_for(1024), KvType::F32).unwrap();
    model
}

fn load_for_any_device(
    model: &VerifiedModel,
    options: &LoadOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Loaded, LoadError> {
    load_with(model, options, Tensors::new(Device::Cpu, Precision::AsStored), progress)
}

#[test]
fn log_probabilities_are_those_of_the_reference() {
    let reference = Reference::parse(include_bytes!("reference/gemma3.bin"));
    {
        let mut exact = model(load_exact);
        assert_eq!(exact.description.architecture, "gemma3");
        let rows = rows(&mut exact, &reference.tokens, 256);
        let divergences = reference.divergences(&rows);
        let (mean, largest) = (mean(&divergences), largest(&divergences));
        println!("KL(ours || reference) with f32 weights: mean {mean:.3e}, largest {largest:.3e} nats");
        assert!(mean <= 1e-5 && largest <= 1e-4, "mean {mean:e}, largest {largest:e}");
        assert_eq!(reference.flips(&rows, 0.01), 0);
    }
    // Quantised products round more: no further than 1.1 times what llama.cpp's own run of the file does.
    let report: Json = serde_json::from_str(include_str!("reference/gemma3.json")).unwrap();
    let theirs = report["divergence_in_nats"]["quantised, one batch"]["mean"]
        .as_f64()
        .unwrap();
    for (name, loader) in [("the processor", load as Loader), ("any device", load_for_any_device)] {
        let rows = rows(&mut model(loader), &reference.tokens, 256);
        let divergences = reference.divergences(&rows);
        let (mean, largest) = (mean(&divergences), largest(&divergences));
        println!(
            "KL to f32 by the backend for {name}: {mean:.3e} (largest {largest:.3e}), llama.cpp {theirs:.3e} nats"
        );
        assert!(mean <= 1.1 * theirs, "{name}: {mean:e}, llama.cpp {theirs:e}");
    }
}
