//! What the policies of the cluster demand of a deployment. Pure.
//!
//! What the manifest shows is judged here, before any pod is made: the source, the level of verification, a format or a
//! licence that it names. What only the model shows (who signed it, its licence, its template) is handed to the pods as a
//! requirement that they check before they are ready. A policy that cannot be used itself refuses everything that it
//! applies to: it was meant to keep something out.

mod requirement;

pub use requirement::Requirement;

use std::sync::Arc;

use escadre_crds::ModelPolicy;
use escadre_crds::v1alpha1::{
    LlmDeploymentSpec, ModelFormat, OnViolation, PolicyFormat, PolicyLicenses, Signatures, VerificationLevel,
};
use escadre_verify::license::{License, Terms};
use escadre_verify::signature::{Identity, Trust};
use globset::GlobBuilder;
use kube::ResourceExt as _;

/// The most bytes that a list of requirements may take: an argument of a process has at most 128 KiB.
const REQUIREMENTS_LIMIT: usize = 100 << 10;

/// Where a deployment does not keep to a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The policy, the field, what is wrong and what to do.
    pub message: String,
    /// What becomes of it when it runs already.
    pub on_violation: OnViolation,
}

/// What all policies together say to a spec.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Judgement {
    /// Where it does not keep to them.
    pub violations: Vec<Violation>,
    /// What its pods must check.
    pub requirements: Vec<Requirement>,
}

impl Judgement {
    /// What becomes of a deployment that runs, and why: the strictest of what is said.
    pub fn strictest(&self) -> Option<&Violation> {
        self.violations
            .iter()
            .rev()
            .max_by_key(|violation| violation.on_violation)
    }
}

/// Judges a spec by the policies that apply to it.
pub fn judge(spec: &LlmDeploymentSpec, policies: &[Arc<ModelPolicy>]) -> Judgement {
    let mut judgement = Judgement::default();
    if let Some(own) = own_requirement(spec) {
        judgement.requirements.push(own);
    }
    for policy in policies {
        let demands = Demands::new(policy);
        for (field, problem) in demands.problems(spec) {
            judgement.violations.push(Violation {
                message: format!("ModelPolicy {}, {field}: {problem}", policy.name_any()),
                on_violation: policy.spec.on_violation,
            });
        }
        judgement.requirements.extend(demands.requirement());
    }
    let length = serde_json::to_string(&judgement.requirements).map_or(usize::MAX, |text| text.len());
    if length > REQUIREMENTS_LIMIT {
        judgement.violations.push(Violation {
            message: format!(
                "signers and lists of all policies together take {length} bytes, and a pod can be told {REQUIREMENTS_LIMIT}; \
                 name fewer signers, or share their roots"
            ),
            on_violation: OnViolation::Refuse,
        });
    }
    judgement
}

/// What the manifest demands of its own model.
fn own_requirement(spec: &LlmDeploymentSpec) -> Option<Requirement> {
    let requirement = Requirement {
        by: "spec.model".to_owned(),
        signatures: spec.model.verification.signatures.clone(),
        license: spec.model.license.clone(),
        ..Requirement::default()
    };
    requirement.demands_something().then_some(requirement)
}

/// Whether what a manifest demands of its own model can be used.
///
/// # Errors
/// The field, and what is wrong with it.
pub fn check_own(spec: &LlmDeploymentSpec) -> Result<(), String> {
    if let Some(signatures) = &spec.model.verification.signatures {
        check_signers(signatures).map_err(|problem| format!("spec.model.verification.signatures.{problem}"))?;
    }
    if let Some(license) = &spec.model.license {
        License::parse(license).map_err(|error| format!("spec.model.license: {error}"))?;
    }
    Ok(())
}

/// The demands of one policy.
struct Demands<'a> {
    policy: &'a ModelPolicy,
}

impl<'a> Demands<'a> {
    fn new(policy: &'a ModelPolicy) -> Self {
        Self { policy }
    }

    /// Fields with what is wrong, of the policy itself and of the spec by it.
    fn problems(&self, spec: &LlmDeploymentSpec) -> Vec<(&'static str, String)> {
        let checks = [
            ("sources.allow", self.check_source(spec)),
            ("verification.minimumLevel", self.check_level(spec)),
            ("signatures.anyOf", self.check_signatures()),
            ("formats", self.check_format(spec)),
            ("licenses", self.check_license(spec)),
        ];
        let failed = checks
            .into_iter()
            .filter_map(|(field, check)| Some((field, check.err()?)));
        failed.collect()
    }

    fn check_source(&self, spec: &LlmDeploymentSpec) -> Result<(), String> {
        let Some(sources) = &self.policy.spec.sources else {
            return Ok(());
        };
        let source = &spec.model.source;
        for glob in &sources.allow {
            let built = GlobBuilder::new(glob)
                .literal_separator(true)
                .backslash_escape(false)
                .build();
            let glob = built.map_err(|error| broken(&error.to_string()))?;
            if glob.compile_matcher().is_match(source) {
                return Ok(());
            }
        }
        Err(format!(
            "models may come from {} only, and spec.model.source is {source}; take the model from there",
            sources.allow.join(", ")
        ))
    }

    fn check_level(&self, spec: &LlmDeploymentSpec) -> Result<(), String> {
        let wanted = self
            .policy
            .spec
            .verification
            .as_ref()
            .map(|verification| verification.minimum_level);
        let is_signed = self.policy.spec.signatures.is_some() || spec.model.verification.signatures.is_some();
        match wanted {
            Some(VerificationLevel::Signed) if !is_signed => Err(
                "models must be signed, and nobody says by whom; name the signer in spec.model.verification.signatures"
                    .to_owned(),
            ),
            Some(VerificationLevel::Signed | VerificationLevel::Pinned) | None => Ok(()),
        }
    }

    fn check_signatures(&self) -> Result<(), String> {
        let signatures = self.policy.spec.signatures.as_ref();
        signatures
            .map_or(Ok(()), check_signers)
            .map_err(|problem| broken(&problem))
    }

    /// A format that the manifest does not name is seen by the pods.
    fn check_format(&self, spec: &LlmDeploymentSpec) -> Result<(), String> {
        let named = match spec.model.format {
            ModelFormat::Auto => None,
            ModelFormat::Safetensors => Some(PolicyFormat::Safetensors),
            ModelFormat::Gguf => Some(PolicyFormat::Gguf),
        };
        match (&self.policy.spec.formats, named) {
            (Some(formats), Some(named)) if !formats.contains(&named) => Err(
                "spec.model.format is not one of those that may be used; choose another model, or convert it"
                    .to_owned(),
            ),
            _ => Ok(()),
        }
    }

    /// A licence that the manifest does not name is seen by the pods.
    fn check_license(&self, spec: &LlmDeploymentSpec) -> Result<(), String> {
        let Some(PolicyLicenses { allow, deny }) = &self.policy.spec.licenses else {
            return Ok(());
        };
        let list = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
        let terms = Terms::parse(&list(allow), &list(deny)).map_err(|error| broken(&error.to_string()))?;
        let declared = spec.model.license.as_deref().and_then(|text| License::parse(text).ok());
        match declared.map(|license| terms.check(&license)) {
            Some(Err(refusal)) => Err(format!("spec.model.license: {refusal}")),
            Some(Ok(())) | None => Ok(()),
        }
    }

    fn requirement(&self) -> Option<Requirement> {
        let spec = &self.policy.spec;
        let requirement = Requirement {
            by: format!("ModelPolicy {}", self.policy.name_any()),
            signatures: spec.signatures.clone(),
            licenses: spec.licenses.clone(),
            license: None,
            templates: spec
                .templates
                .as_ref()
                .map(|templates| templates.approved_digests.clone()),
            formats: spec.formats.clone(),
        };
        requirement.demands_something().then_some(requirement)
    }
}

fn broken(problem: &str) -> String {
    format!("the policy itself cannot be used, so nothing is served under it; correct it: {problem}")
}

/// Whether every signer can be trusted as it is written.
fn check_signers(signatures: &Signatures) -> Result<(), String> {
    for (index, signer) in signatures.any_of.iter().enumerate() {
        let trust = match (&signer.public_key, &signer.certificate_authorities, &signer.keyless) {
            (Some(pem), None, None) => Trust::keys(pem.as_bytes()),
            (None, Some(pem), None) => Trust::authorities(pem.as_bytes()),
            (None, None, Some(keyless)) => Trust::keyless(
                keyless.trusted_root.as_bytes(),
                Identity {
                    identity: keyless.identity.clone(),
                    issuer: keyless.issuer.clone(),
                },
            ),
            _ => {
                return Err(format!(
                    "anyOf[{index}] must have exactly one of publicKey, certificateAuthorities and keyless"
                ));
            }
        };
        trust.map_err(|error| format!("anyOf[{index}]: {error}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
