//! `escadre-runtime sign`: signs a model with a key.

use crate::failure::{Failure, chain};
use crate::verify::{default_signature, path_inside};
use escadre_verify::Refusal;
use escadre_verify::signature::{SigningKey, sign};
use std::io::{self, Write};
use std::path::PathBuf;

/// Arguments of `sign`.
#[derive(Debug, Clone, clap::Args)]
pub struct SignArgs {
    /// The model: a file, or a folder
    #[arg(long, value_name = "DIR_OR_FILE")]
    pub model: PathBuf,
    /// A file with the private key (PEM): ECDSA with P-256, P-384 or P-521
    #[arg(long, value_name = "PEM")]
    pub key: PathBuf,
    /// Where the signature goes [default: `model.sig` in the folder, or the model's file with `.sig` after its name]
    #[arg(long, value_name = "FILE")]
    pub signature: Option<PathBuf>,
    /// A path in the folder that is left out, with all that is below it; never weights. May be repeated
    #[arg(long = "ignore-path", value_name = "REL")]
    pub ignore_paths: Vec<String>,
}

/// Why a model was not signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// Its files cannot be signed.
    #[error("{}: {_0}", .0.reason)]
    Refused(#[from] Refusal),
    /// The key cannot be used.
    #[error("{0}")]
    Usage(String),
    /// The signature could not be written.
    #[error("could not write the signature {}", path.display())]
    Write {
        /// Where it should go.
        path: PathBuf,
        /// What is wrong there.
        #[source]
        source: io::Error,
    },
    /// The answer could not be written.
    #[error("could not write the answer")]
    Output(#[from] io::Error),
}

impl From<SignError> for Failure {
    fn from(error: SignError) -> Self {
        let reason = match &error {
            SignError::Refused(refusal) => refusal.reason.into(),
            SignError::Usage(_) => Failure::USAGE,
            SignError::Write { .. } | SignError::Output(_) => "OutputFailed",
        };
        Self::new(reason, chain(&error))
    }
}

/// Signs a model, writes its signature, and says which key signed.
///
/// # Errors
/// When the key or the files cannot be used, or the signature cannot be written.
pub fn run(args: &SignArgs) -> Result<(), SignError> {
    run_to(args, &mut io::stdout().lock())
}

/// Like [`run`], to any writer.
///
/// # Errors
/// As of [`run`].
pub fn run_to(args: &SignArgs, out: &mut dyn Write) -> Result<(), SignError> {
    let at = args.key.display();
    let pem = std::fs::read(&args.key).map_err(|error| SignError::Usage(format!("could not read {at}: {error}")))?;
    let key = SigningKey::from_pem(&pem).map_err(|error| SignError::Usage(format!("{at}: {error}")))?;
    let path = args.signature.clone().unwrap_or_else(|| default_signature(&args.model));
    let mut ignored = args.ignore_paths.clone();
    ignored.extend(path_inside(&args.model, &path));
    let bundle = sign(&args.model, &key, &ignored, &mut |_, _| ())?;
    std::fs::write(&path, bundle).map_err(|source| SignError::Write {
        path: path.clone(),
        source,
    })?;
    writeln!(out, "signature     {}", path.display())?;
    writeln!(out, "signer        key {}", key.public().fingerprint())?;
    Ok(())
}
