//! What a model must keep to beside its digest: who signed it, its licence, its chat template, its format.
//!
//! The operator hands them over as one argument, from the deployment's manifest and from the policies of the cluster.
//! All hold together. What this version does not know is refused, not passed over: a policy that nobody enforces would be
//! worse than none.

use crate::model::Format;
use escadre_verify::license::{self, Evidence, License, Terms};
use escadre_verify::signature::{Identity, Signature, SignedManifest, Trust};
use escadre_verify::{Digest, Reason, Refusal, VerifiedModel};
use serde::Deserialize;
use std::str::FromStr;
use std::time::SystemTime;

/// Requirements, each with the name of who makes it.
#[derive(Debug, Clone, Default)]
pub struct Requirements(Vec<Requirement>);

/// Why an argument is no list of requirements.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequirementsError {
    /// It is no such JSON, or has a field that this version does not know.
    #[error("it is not a list of requirements that this version knows: {0}")]
    Format(String),
    /// A value cannot be used.
    #[error("{by}, {field}: {problem}")]
    Value {
        /// Who makes the requirement.
        by: String,
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

#[derive(Debug, Clone)]
struct Requirement {
    by: String,
    signatures: Option<(String, Vec<Trust>)>,
    terms: Terms,
    declared: Option<License>,
    templates: Option<Vec<String>>,
    formats: Option<Vec<Format>>,
}

/// A requirement as it is written.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Written {
    by: String,
    #[serde(default)]
    signatures: Option<WrittenSignatures>,
    #[serde(default)]
    licenses: Option<WrittenLicenses>,
    #[serde(default)]
    license: Option<String>,
    #[serde(default)]
    templates: Option<Vec<Digest>>,
    #[serde(default)]
    formats: Option<Vec<WrittenFormat>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WrittenSignatures {
    bundle: String,
    any_of: Vec<WrittenSigner>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
enum WrittenSigner {
    PublicKey(String),
    CertificateAuthorities(String),
    Keyless(WrittenKeyless),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WrittenKeyless {
    identity: String,
    issuer: String,
    trusted_root: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct WrittenLicenses {
    allow: Vec<String>,
    deny: Vec<String>,
}

#[derive(Clone, Copy, Deserialize)]
enum WrittenFormat {
    Safetensors,
    #[serde(rename = "GGUF")]
    Gguf,
}

impl FromStr for Requirements {
    type Err = RequirementsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let written: Vec<Written> =
            serde_json::from_str(text).map_err(|error| RequirementsError::Format(error.to_string()))?;
        written
            .into_iter()
            .map(Requirement::read)
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl Requirement {
    fn read(written: Written) -> Result<Self, RequirementsError> {
        let Written {
            by,
            signatures,
            licenses,
            license,
            templates,
            formats,
        } = written;
        let wrong = |field: &'static str, problem: String| RequirementsError::Value {
            by: by.clone(),
            field,
            problem,
        };
        let signatures = signatures.map(|WrittenSignatures { bundle, any_of }| {
            let trusts = any_of
                .into_iter()
                .map(WrittenSigner::trust)
                .collect::<Result<Vec<_>, _>>();
            trusts.map(|trusts| (bundle, trusts))
        });
        let WrittenLicenses { allow, deny } = licenses.unwrap_or_default();
        let declared = license.map(|text| License::parse(&text));
        let format = |format| match format {
            WrittenFormat::Safetensors => Format::Safetensors,
            WrittenFormat::Gguf => Format::Gguf,
        };
        Ok(Self {
            signatures: signatures
                .transpose()
                .map_err(|error| wrong("signatures", error.to_string()))?,
            terms: Terms::parse(&allow, &deny).map_err(|error| wrong("licenses", error.to_string()))?,
            declared: declared
                .transpose()
                .map_err(|error| wrong("license", error.to_string()))?,
            templates: templates.map(|digests| digests.iter().map(Digest::to_string).collect()),
            formats: formats.map(|formats| formats.into_iter().map(format).collect()),
            by,
        })
    }

    /// Names who asks and for what, in front of why it is refused.
    fn blame(&self, field: &str, mut refusal: Refusal) -> Refusal {
        refusal.message = format!("{}, {field}: {}", self.by, refusal.message);
        refusal
    }

    /// What somebody who is trusted signed. `None`: no signature is demanded.
    fn signed(&self, model: &VerifiedModel, now: SystemTime) -> Result<Option<SignedManifest>, Refusal> {
        let Some((bundle, trusts)) = &self.signatures else {
            return Ok(None);
        };
        if !model.contains(bundle) {
            let message = "the model has no signature; have it signed, and name the signature among its files";
            return Err(Refusal::new(Reason::FileMissing, message).in_file(bundle));
        }
        let bytes = model.read(bundle)?;
        let mut refused = None;
        for trust in trusts {
            match Signature::verify(&bytes, trust, now) {
                Ok(mut signed) => {
                    signed.ignore(bundle)?;
                    return Ok(Some(signed));
                }
                Err(refusal) => refused = refused.or(Some(refusal.in_file(bundle))),
            }
        }
        let nobody = || Refusal::new(Reason::KeyNotTrusted, "no signer is trusted; name one").in_file(bundle);
        Err(refused.unwrap_or_else(nobody))
    }

    fn check(&self, facts: &Facts<'_>) -> Result<(), Refusal> {
        if let Some(formats) = &self.formats
            && !formats.contains(&facts.format)
        {
            let wanted: Vec<_> = formats.iter().map(Format::to_string).collect();
            let message =
                "the weights are stored in a format that may not be used; choose another model, or convert it";
            let refusal = Refusal::new(Reason::FormatRefused, message).values(wanted.join(" or "), facts.format);
            return Err(self.blame("formats", refusal));
        }
        if let Some(approved) = &self.templates
            && let Some(digest) = facts.template_digest
            && !approved.iter().any(|one| one == digest)
        {
            let message =
                "the chat template is not one that was approved; approve its digest, or lay an approved one over it";
            let refusal = Refusal::new(Reason::TemplateNotApproved, message).values(approved.join(" or "), digest);
            return Err(self.blame("templates", refusal));
        }
        self.check_license(facts.licenses)
    }

    fn check_license(&self, evidence: &[Evidence]) -> Result<(), Refusal> {
        if let Some(declared) = &self.declared {
            // What the manifest says counts where the model says nothing, and must be what the model says otherwise.
            return match license::agreed(evidence) {
                Ok(found) if found != *declared => {
                    let message =
                        "the model says that it is under another licence than the manifest; correct the manifest";
                    let refusal = Refusal::new(Reason::LicenseConflict, message).values(declared, found);
                    Err(self.blame("license", refusal))
                }
                Err(refusal) if refusal.reason == Reason::LicenseConflict => {
                    let named = evidence.iter().any(|one| one.license.as_ref() == Some(declared));
                    if named {
                        Ok(())
                    } else {
                        Err(self.blame("license", refusal))
                    }
                }
                Ok(_) | Err(_) => Ok(()),
            };
        }
        Ok(())
    }
}

/// What a model was found to be.
#[derive(Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) format: Format,
    /// Absent when it has no chat template.
    pub(crate) template_digest: Option<&'a str>,
    pub(crate) licenses: &'a [Evidence],
}

impl Requirements {
    /// Verifies the signatures that are demanded. Files that one of them leaves out cannot be read afterwards.
    ///
    /// # Errors
    /// Why a signature that is demanded is not there or not good, with who demands it.
    pub fn check_signatures(&self, model: &mut VerifiedModel, now: SystemTime) -> Result<(), Refusal> {
        let mut signed = Vec::new();
        for requirement in &self.0 {
            let found = requirement.signed(model, now);
            let found = found.map_err(|refusal| requirement.blame("signatures", refusal))?;
            signed.extend(found.map(|found| (requirement, found)));
        }
        for (requirement, signed) in signed {
            let checked = model.require_signed(&signed);
            checked.map_err(|refusal| requirement.blame("signatures", refusal))?;
        }
        Ok(())
    }

    /// Checks what is known of a model before its weights are packed.
    ///
    /// # Errors
    /// The first requirement that it does not keep to, with who makes it.
    pub(crate) fn check(&self, facts: &Facts<'_>) -> Result<(), Refusal> {
        for requirement in &self.0 {
            requirement.check(facts)?;
        }
        let bound: Vec<_> = self
            .0
            .iter()
            .filter(|requirement| !requirement.terms.is_empty())
            .collect();
        let Some(first) = bound.first() else {
            return Ok(());
        };
        let license = self
            .license(facts.licenses)
            .map_err(|refusal| first.blame("licenses", refusal))?;
        for requirement in bound {
            let checked = requirement.terms.check(&license);
            checked.map_err(|refusal| requirement.blame("licenses", refusal))?;
        }
        Ok(())
    }

    /// The licence that counts: the one of the manifest, else the one on which the model's files agree.
    fn license(&self, evidence: &[Evidence]) -> Result<License, Refusal> {
        let declared = self.0.iter().find_map(|requirement| requirement.declared.clone());
        declared.map_or_else(|| license::agreed(evidence), Ok)
    }
}

impl WrittenSigner {
    fn trust(self) -> Result<Trust, escadre_verify::signature::TrustError> {
        match self {
            Self::PublicKey(pem) => Trust::keys(pem.as_bytes()),
            Self::CertificateAuthorities(pem) => Trust::authorities(pem.as_bytes()),
            Self::Keyless(WrittenKeyless {
                identity,
                issuer,
                trusted_root,
            }) => Trust::keyless(trusted_root.as_bytes(), Identity { identity, issuer }),
        }
    }
}
