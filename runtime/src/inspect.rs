//! `escadre-runtime inspect`: what a model is and what it needs, and whether its structure is valid.

use std::path::PathBuf;

/// Arguments of `inspect`.
#[derive(Debug, Clone, clap::Args)]
pub struct InspectArgs {
    /// The model: a GGUF file, or a folder with safetensors files
    #[arg(long, value_name = "FILE_OR_DIR")]
    pub model: PathBuf,
    /// Tokens per sequence to compute the memory for [default: the model's own context]
    #[arg(long, value_name = "TOKENS")]
    pub context: Option<usize>,
    /// Sequences at a time to compute the memory for [default: 1]
    #[arg(long, value_name = "N")]
    pub concurrency: Option<usize>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Why `inspect` ends with a failure.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The structure is invalid; the verdict was printed.
    #[error(transparent)]
    Invalid(#[from] escadre_verify::Refusal),
    /// The verdict could not be written.
    #[error("could not write the answer")]
    Output(#[from] std::io::Error),
}

/// Prints what the model is.
pub fn run(_args: &InspectArgs) -> Result<(), InspectError> {
    todo!()
}
