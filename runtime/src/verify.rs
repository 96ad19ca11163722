//! `escadre-runtime verify`: judges whether files are those that were approved, by a signature, a digest, or both.
//!
//! It says nothing about formats, so it works on any folder.

use crate::context;
use crate::failure::Failure;
use clap::ArgGroup;
use escadre_verify::signature::{FileHash, Identity};
use escadre_verify::structure::json;
use escadre_verify::{Digest, Reason, Refusal, Signature, SignedManifest, Strictness, Trust, VerifiedModel};
use serde::Serialize;
use std::fs::File;
use std::io::{self, Read as _, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Arguments of `verify`.
#[derive(Debug, Clone, clap::Args)]
#[command(group = ArgGroup::new("trust").required(true).multiple(true).args(["key", "ca", "trusted_root", "digest"]))]
pub struct VerifyArgs {
    /// The model: a file, or a folder
    #[arg(long, value_name = "DIR_OR_FILE")]
    pub model: PathBuf,
    /// The signature [default: `model.sig` in the folder, or the model's file with `.sig` after its name]
    #[arg(long, value_name = "FILE", requires = "signer")]
    pub signature: Option<PathBuf>,
    /// A file with public keys (PEM), one of which must have signed
    #[arg(long, value_name = "PEM", group = "signer")]
    pub key: Option<PathBuf>,
    /// A file with certificates (PEM), to one of which the signer's must lead
    #[arg(long, value_name = "PEM", group = "signer")]
    pub ca: Option<PathBuf>,
    /// The trusted root of a Sigstore, for keyless signatures
    #[arg(long, value_name = "JSON", group = "signer", requires_all = ["identity", "issuer"])]
    pub trusted_root: Option<PathBuf>,
    /// Who must have signed: the exact name in the certificate, an address or the URL of a workflow
    #[arg(long, value_name = "ID", requires = "trusted_root", conflicts_with_all = ["key", "ca"])]
    pub identity: Option<String>,
    /// Who must vouch for the name: the exact URL
    #[arg(long, value_name = "URL", requires = "trusted_root", conflicts_with_all = ["key", "ca"])]
    pub issuer: Option<String>,
    /// The digest that the model must have: `sha256:` and 64 hex digits
    #[arg(long)]
    pub digest: Option<Digest>,
    /// A path in the folder that need not be signed, with all that is below it; never weights. May be repeated
    #[arg(long = "ignore-path", value_name = "REL", requires = "signer")]
    pub ignore_paths: Vec<String>,
    /// Let files be missing that were signed
    #[arg(long, requires = "signer", conflicts_with = "ignore_unsigned_files")]
    pub subset: bool,
    /// Let files be there that were not signed. `serve` never does
    #[arg(long, requires = "signer")]
    pub ignore_unsigned_files: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Why `verify` gives no good verdict.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The model was refused. With `--json` the verdict was printed.
    #[error("{}: {_0}", .0.reason)]
    Refused(#[from] Refusal),
    /// There is no verdict, since what should be trusted cannot be used.
    #[error("{0}")]
    Usage(String),
    /// The answer could not be written.
    #[error("could not write the answer")]
    Output(#[from] io::Error),
}

impl From<VerifyError> for Failure {
    fn from(error: VerifyError) -> Self {
        let reason = match &error {
            VerifyError::Refused(refusal) => refusal.reason.into(),
            VerifyError::Usage(_) => Failure::USAGE,
            VerifyError::Output(_) => "OutputFailed",
        };
        Self::new(reason, crate::failure::chain(&error))
    }
}

/// Judges a model, and prints the verdict to standard output.
///
/// # Errors
/// When it is refused; with `--json` the verdict was printed before.
pub fn run(args: &VerifyArgs) -> Result<(), VerifyError> {
    run_to(args, &mut io::stdout().lock())
}

/// Like [`run`], to any writer.
///
/// # Errors
/// As of [`run`].
pub fn run_to(args: &VerifyArgs, out: &mut dyn Write) -> Result<(), VerifyError> {
    let trust = trust(args)?;
    match judge(args, trust.as_ref()) {
        Ok(report) if args.json => print_json(out, &Verdict::verified(report)),
        Ok(report) => Ok(report.write(out)?),
        Err(refusal) => {
            if args.json {
                print_json(out, &Verdict::refused(&refusal))?;
            }
            Err(refusal.into())
        }
    }
}

fn print_json(out: &mut dyn Write, verdict: &Verdict) -> Result<(), VerifyError> {
    serde_json::to_writer(&mut *out, verdict).map_err(io::Error::from)?;
    Ok(writeln!(out)?)
}

/// Reads what is trusted. Without a signer only a digest is.
fn trust(args: &VerifyArgs) -> Result<Option<Trust>, VerifyError> {
    let read = |path: &Path| {
        std::fs::read(path).map_err(|error| VerifyError::Usage(format!("could not read {}: {error}", path.display())))
    };
    let (path, trust) = if let Some(path) = &args.key {
        (path, Trust::keys(&read(path)?))
    } else if let Some(path) = &args.ca {
        (path, Trust::authorities(&read(path)?))
    } else if let Some(path) = &args.trusted_root {
        let wanted = Identity {
            identity: args.identity.clone().unwrap_or_default(),
            issuer: args.issuer.clone().unwrap_or_default(),
        };
        (path, Trust::keyless(&read(path)?, wanted))
    } else {
        return Ok(None);
    };
    trust
        .map(Some)
        .map_err(|error| VerifyError::Usage(format!("{}: {error}", path.display())))
}

fn judge(args: &VerifyArgs, trust: Option<&Trust>) -> Result<Report, Refusal> {
    let nothing = &mut |_, _| ();
    let Some(trust) = trust else {
        let model = VerifiedModel::open(&args.model, args.digest.as_ref(), nothing)?;
        model.check(nothing)?;
        return Ok(Report::new(&model, None));
    };
    let signature = args.signature.clone().unwrap_or_else(|| default_signature(&args.model));
    let bundle = read_bundle(&signature)?;
    let mut manifest = Signature::verify(&bundle, trust, context::wall_clock(Instant::now()))?;
    for path in &args.ignore_paths {
        manifest.ignore(path)?;
    }
    if let Some(path) = path_inside(&args.model, &signature) {
        manifest.ignore(&path)?;
    }
    let strictness = match (args.subset, args.ignore_unsigned_files) {
        (true, _) => Strictness::Subset,
        (false, true) => Strictness::IgnoreUnsigned,
        (false, false) => Strictness::Exact,
    };
    let model = VerifiedModel::open_signed(&args.model, &manifest, strictness, nothing)?;
    model.check(nothing)?;
    match args.digest.filter(|expected| *expected != model.digest()) {
        Some(expected) => Err(Refusal::new(
            Reason::DigestMismatch,
            "the files are signed, but they are not the model of this digest; name the digest of what was signed",
        )
        .values(expected, model.digest())),
        None => Ok(Report::new(&model, Some((trust, &manifest)))),
    }
}

/// Where a signature is when nobody says.
pub(crate) fn default_signature(model: &Path) -> PathBuf {
    if model.is_dir() {
        return model.join("model.sig");
    }
    let mut name = model.as_os_str().to_owned();
    name.push(".sig");
    name.into()
}

/// The path of a signature relative to a model's folder, when it is in it.
pub(crate) fn path_inside(model: &Path, signature: &Path) -> Option<String> {
    // The signature may not be there yet, its folder is.
    let name = signature.file_name()?;
    let parent = signature.parent().filter(|parent| !parent.as_os_str().is_empty());
    let folder = parent.unwrap_or(Path::new(".")).canonicalize().ok()?;
    let model = model.canonicalize().ok().filter(|model| model.is_dir())?;
    let inside = folder.join(name).strip_prefix(model).ok()?.to_owned();
    Some(inside.to_str()?.to_owned())
}

fn read_bundle(path: &Path) -> Result<Vec<u8>, Refusal> {
    let at = path.display().to_string();
    let mut bundle = Vec::new();
    let file = File::open(path).map_err(|error| {
        Refusal::new(
            Reason::FileMissing,
            format!("could not read the signature: {error}; name it with --signature, or sign the model"),
        )
        .in_file(&at)
    })?;
    file.take(json::MAX_BYTES as u64 + 1)
        .read_to_end(&mut bundle)
        .map_err(|error| Refusal::new(Reason::StorageFault, format!("could not be read: {error}")).in_file(&at))?;
    Ok(bundle)
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
    fn verified(report: Report) -> Self {
        Self {
            result: "Verified",
            reason: None,
            file: None,
            expected: None,
            got: None,
            message: report.summary(),
            model: Some(report),
        }
    }

    fn refused(refusal: &Refusal) -> Self {
        Self {
            result: "Refused",
            reason: Some(refusal.reason.into()),
            file: refusal.file.clone(),
            expected: refusal.expected.clone(),
            got: refusal.got.clone(),
            message: refusal.message.clone(),
            model: None,
        }
    }
}

/// What a verified model is.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    digest: String,
    files: usize,
    bytes: u64,
    signature: Option<SignatureReport>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct SignatureReport {
    method: &'static str,
    signer: String,
    root_digest: String,
    signed_files: Vec<SignedFile>,
    ignored_paths: Vec<String>,
}

#[derive(Debug, Serialize)]
struct SignedFile {
    name: String,
    /// The hash of the whole file, unless it was hashed in parts.
    hash: Option<String>,
}

impl Report {
    fn new(model: &VerifiedModel, signed: Option<(&Trust, &SignedManifest)>) -> Self {
        Self {
            digest: model.digest().to_string(),
            files: model.files().count(),
            bytes: model.bytes(),
            signature: signed.map(|(trust, manifest)| SignatureReport::new(trust, manifest)),
        }
    }

    fn summary(&self) -> String {
        let files = if self.files == 1 { "file" } else { "files" };
        let what = match &self.signature {
            Some(_) => "as they were signed",
            None => "with this digest",
        };
        format!("{} {files} of {} bytes, {what}", self.files, self.bytes)
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "verified      {}", self.summary())?;
        writeln!(out, "digest        {}", self.digest)?;
        let Some(signature) = &self.signature else {
            return Ok(());
        };
        writeln!(out, "method        {}", signature.method)?;
        writeln!(out, "signer        {}", signature.signer)
    }
}

impl SignatureReport {
    fn new(trust: &Trust, manifest: &SignedManifest) -> Self {
        let hash = |hash: &FileHash| match hash {
            FileHash::Whole(sum) => Some(sum.to_string()),
            FileHash::Shards { .. } => None,
        };
        let file = |(name, found): (&str, &FileHash)| SignedFile {
            name: name.to_owned(),
            hash: hash(found),
        };
        Self {
            method: trust.method(),
            signer: manifest.signer().to_string(),
            root_digest: manifest.root_digest().to_string(),
            signed_files: manifest.files().map(file).collect(),
            ignored_paths: manifest.ignore_paths().map(str::to_owned).collect(),
        }
    }
}
