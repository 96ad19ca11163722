//! What pods must check of their model, as the runtime's argument `--requirements` has it.

use escadre_crds::v1alpha1::{PolicyFormat, PolicyLicenses, Signatures};
use serde::Serialize;

/// What one policy, or the manifest itself, demands of a model.
#[derive(Serialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Requirement {
    /// Who demands it, for messages.
    pub by: String,
    /// Who must have signed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signatures: Option<Signatures>,
    /// Under which licences it may be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub licenses: Option<PolicyLicenses>,
    /// Under which licence it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub license: Option<String>,
    /// The chat templates that it may have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub templates: Option<Vec<String>>,
    /// How its weights may be stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub formats: Option<Vec<PolicyFormat>>,
}

impl Requirement {
    /// Whether there is anything to check.
    pub(super) fn demands_something(&self) -> bool {
        let Self {
            by: _,
            signatures,
            licenses,
            license,
            templates,
            formats,
        } = self;
        signatures.is_some() || licenses.is_some() || license.is_some() || templates.is_some() || formats.is_some()
    }
}
