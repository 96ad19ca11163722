//! `escadre-runtime inspect`: judges a model's structure, says what the model is and what memory it needs.
//!
//! The verdict is about structure only. An architecture that cannot be served is said, but is no fault.

mod bom;

use crate::backend::KvType;
use crate::model::load::{self, CONTEXT_TO_FIT, Examined};
use crate::model::{LoadError, Quantize};
use escadre_verify::license::{self, Evidence};
use escadre_verify::{Refusal, VerifiedModel};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Arguments of `inspect`.
#[derive(Debug, Clone, clap::Args)]
pub struct InspectArgs {
    /// The model: a GGUF file, or a folder with safetensors files
    #[arg(long, value_name = "FILE_OR_DIR")]
    pub model: PathBuf,
    /// Tokens per sequence that memory is computed for [default: the model's own context, at most 4096]
    #[arg(long, value_name = "TOKENS")]
    pub context: Option<usize>,
    /// Sequences at a time that memory is computed for [default: 1]
    #[arg(long, value_name = "N")]
    pub concurrency: Option<usize>,
    /// How keys and values are held that memory is computed for
    #[arg(long, value_enum, default_value_t)]
    pub kv_cache_dtype: KvType,
    /// What weights that are numbers of 16 or 32 bits are made into that memory is computed for
    #[arg(long, value_enum, value_name = "TYPE")]
    pub quantize: Option<Quantize>,
    /// Print one JSON object
    #[arg(long, conflicts_with = "bom")]
    pub json: bool,
    /// Print a bill of materials instead: `CycloneDX` 1.6 as JSON, with what was verified and what is only declared
    #[arg(long)]
    pub bom: bool,
}

/// Why `inspect` ends with a failure.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The structure is invalid. With `--json` the verdict was printed.
    #[error(transparent)]
    Invalid(#[from] Refusal),
    /// The structure is valid, but the question cannot be answered.
    #[error(transparent)]
    Model(LoadError),
    /// The answer could not be written.
    #[error("could not write the answer")]
    Output(#[from] io::Error),
}

impl InspectError {
    /// The stable CamelCase reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Invalid(refusal) => refusal.reason.into(),
            Self::Model(error) => error.reason(),
            Self::Output(_) => "OutputFailed",
        }
    }
}

/// Prints what the model is to standard output.
///
/// # Errors
/// When the structure is invalid; with `--json` the verdict was printed before.
pub fn run(args: &InspectArgs) -> Result<(), InspectError> {
    run_to(args, &mut io::stdout().lock())
}

/// Like [`run`], to any writer.
///
/// # Errors
/// As of [`run`].
pub fn run_to(args: &InspectArgs, out: &mut dyn Write) -> Result<(), InspectError> {
    match examine(args) {
        Ok((model, report)) if args.bom => print_json(out, &bom::document(&model, &report, &name_of(&args.model))),
        Ok((_, report)) if args.json => print_json(out, &Verdict::valid(report)),
        Ok((_, report)) => Ok(report.write(out)?),
        Err(InspectError::Invalid(refusal)) => {
            if args.json {
                print_json(out, &Verdict::invalid(&refusal))?;
            }
            Err(refusal.into())
        }
        Err(other) => Err(other),
    }
}

fn print_json(out: &mut dyn Write, answer: &impl Serialize) -> Result<(), InspectError> {
    serde_json::to_writer(&mut *out, answer).map_err(io::Error::from)?;
    Ok(writeln!(out)?)
}

/// The name of the file or folder.
fn name_of(path: &Path) -> String {
    let name = path.file_stem().or_else(|| path.file_name());
    name.map_or_else(
        || path.display().to_string(),
        |name| name.to_string_lossy().into_owned(),
    )
}

fn examine(args: &InspectArgs) -> Result<(VerifiedModel, Report), InspectError> {
    let model = VerifiedModel::open(&args.model, None, &mut |_, _| {})?;
    let examined = load::examine(&model, args.quantize).map_err(|error| match error {
        LoadError::Refused(refusal) => InspectError::Invalid(refusal),
        other => InspectError::Model(other),
    })?;
    let report = Report::new(&model, examined, args)?;
    Ok((model, report))
}

/// The object of `--json`. Every field is always there.
#[derive(Debug, Serialize)]
struct Verdict {
    result: &'static str,
    reason: Option<&'static str>,
    file: Option<String>,
    expected: Option<String>,
    got: Option<String>,
    message: String,
    model: Option<Report>,
}

impl Verdict {
    fn valid(report: Report) -> Self {
        let message = if report.supported {
            "the structure is valid".to_owned()
        } else {
            format!(
                "the structure is valid, but architecture {:?} cannot be served",
                report.architecture
            )
        };
        Self {
            result: "Valid",
            reason: None,
            file: None,
            expected: None,
            got: None,
            message,
            model: Some(report),
        }
    }

    fn invalid(refusal: &Refusal) -> Self {
        Self {
            result: "Invalid",
            reason: Some(refusal.reason.into()),
            file: refusal.file.clone(),
            expected: refusal.expected.clone(),
            got: refusal.got.clone(),
            message: refusal.message.clone(),
            model: None,
        }
    }
}

/// What a valid model is.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    digest: String,
    format: String,
    architecture: String,
    supported: bool,
    /// The licence on which the files agree, as an SPDX expression.
    license: Option<String>,
    /// Where it is named.
    licenses: Vec<LicenseReport>,
    parameters: u64,
    weight_bytes: u64,
    /// By type.
    tensors: BTreeMap<String, TypeReport>,
    serving: Option<Serving>,
}

/// One place where a licence is named.
#[derive(Debug, Serialize)]
struct LicenseReport {
    file: String,
    field: String,
    text: String,
    license: Option<String>,
}

impl LicenseReport {
    fn new(evidence: &Evidence) -> Self {
        Self {
            file: evidence.file.clone(),
            field: evidence.field.clone(),
            text: evidence.text.clone(),
            license: evidence.license.as_ref().map(ToString::to_string),
        }
    }
}

impl fmt::Display for LicenseReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = self.license.as_deref().unwrap_or("nothing known");
        write!(formatter, "{named} ({} of {}: {:?})", self.field, self.file, self.text)
    }
}

#[derive(Debug, Serialize)]
struct TypeReport {
    tensors: u64,
    parameters: u64,
    bytes: u64,
}

/// What serving the model takes, in bytes.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Serving {
    model_context: usize,
    kv_cache_type: String,
    kv_bytes_per_token: u64,
    context: usize,
    concurrency: usize,
    memory_weights: u64,
    memory_kv_cache: u64,
    memory_headroom: u64,
    memory_total: u64,
}

impl Report {
    fn new(model: &VerifiedModel, examined: Examined, args: &InspectArgs) -> Result<Self, InspectError> {
        let serving = Serving::new(&examined, args).map_err(InspectError::Model)?;
        let tensors = examined.types.iter().map(|(name, total)| {
            let report = TypeReport {
                tensors: total.tensors,
                parameters: total.elements,
                bytes: total.bytes,
            };
            (name.clone(), report)
        });
        Ok(Self {
            digest: model.digest().to_string(),
            format: examined.format.to_string(),
            supported: examined.plan.is_some(),
            license: license::agreed(&examined.licenses)
                .ok()
                .map(|license| license.to_string()),
            licenses: examined.licenses.iter().map(LicenseReport::new).collect(),
            parameters: examined.types.values().map(|total| total.elements).sum(),
            weight_bytes: examined.types.values().map(|total| total.bytes).sum(),
            tensors: tensors.collect(),
            serving,
            architecture: examined.architecture,
        })
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "digest        {}", self.digest)?;
        writeln!(out, "format        {}", self.format)?;
        let remark = if self.supported { "" } else { " (cannot be served)" };
        writeln!(out, "architecture  {}{remark}", self.architecture)?;
        for found in &self.licenses {
            writeln!(out, "license       {found}")?;
        }
        writeln!(out, "parameters    {}", self.parameters)?;
        writeln!(out, "weights       {} in the file", bytes(self.weight_bytes))?;
        for (name, report) in &self.tensors {
            writeln!(
                out,
                "  {name:<11} {} in {} tensors",
                bytes(report.bytes),
                report.tensors
            )?;
        }
        let Some(serving) = &self.serving else {
            return Ok(());
        };
        writeln!(out, "context       {} tokens", serving.model_context)?;
        writeln!(
            out,
            "KV cache      {} bytes per token in {}",
            serving.kv_bytes_per_token, serving.kv_cache_type
        )?;
        writeln!(
            out,
            "memory        {} for {} x {} tokens",
            bytes(serving.memory_total),
            serving.concurrency,
            serving.context
        )?;
        writeln!(out, "  weights     {}", bytes(serving.memory_weights))?;
        writeln!(out, "  KV cache    {}", bytes(serving.memory_kv_cache))?;
        writeln!(out, "  headroom    {}", bytes(serving.memory_headroom))
    }
}

impl Serving {
    fn new(examined: &Examined, args: &InspectArgs) -> Result<Option<Self>, LoadError> {
        let Some(plan) = &examined.plan else {
            return Ok(None);
        };
        let limit = plan.spec.context;
        let context = args.context.unwrap_or(limit.min(CONTEXT_TO_FIT));
        if context > limit {
            return Err(LoadError::ContextTooLong {
                requested: context,
                limit,
            });
        }
        let concurrency = args.concurrency.unwrap_or(1);
        let need = plan.need(context, concurrency, args.kv_cache_dtype);
        Ok(Some(Self {
            model_context: limit,
            kv_cache_type: args.kv_cache_dtype.to_string(),
            kv_bytes_per_token: plan.spec.kv_bytes_per_token(args.kv_cache_dtype.bytes()),
            context,
            concurrency,
            memory_weights: need.weights,
            memory_kv_cache: need.kv_cache,
            memory_headroom: need.headroom,
            memory_total: need.total(),
        }))
    }
}

/// A number of bytes for people: exact, and rounded.
fn bytes(count: u64) -> String {
    let tenths = u128::from(count) * 10 / (1 << 20);
    format!("{}.{} MiB ({count} bytes)", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_exact_and_rounded() {
        assert_eq!(bytes(98_362_432), "93.8 MiB (98362432 bytes)");
        assert_eq!(bytes(0), "0.0 MiB (0 bytes)");
    }

    #[test]
    fn what_is_no_model_is_invalid_with_a_reason() {
        let folder = tempfile::tempdir().unwrap();
        let table: [(&str, &[u8], &str); 4] = [
            ("m.gguf", b"GGUF\x03\0\0\0", "GgufInvalid"),
            ("m.gguf", b"not a model", "GgufInvalid"),
            ("m.gguf", b"\x80\x02}q\0.", "FormatRefused"),
            ("m.bin", b"whatever", "FormatRefused"),
        ];
        for (name, content, reason) in table {
            let path = folder.path().join(name);
            std::fs::write(&path, content).unwrap();
            let args = InspectArgs {
                model: path.clone(),
                context: None,
                concurrency: None,
                kv_cache_dtype: KvType::default(),
                quantize: None,
                json: true,
                bom: false,
            };
            let mut out = Vec::new();
            let error = run_to(&args, &mut out).unwrap_err();
            assert_eq!(error.reason(), reason);
            let verdict: serde_json::Value = serde_json::from_slice(&out).unwrap();
            assert_eq!(verdict["result"], "Invalid");
            assert_eq!(verdict["reason"], reason);
            assert_eq!(verdict["file"], name);
            std::fs::remove_file(path).unwrap();
        }
    }
}
