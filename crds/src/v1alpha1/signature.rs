//! Who signed a model, and what proves it: public material only, so that it stands in the manifest.

#![expect(
    unreachable_pub,
    reason = "the derive of the schema makes public copies inside a function"
)]

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// Who must have signed a model.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Signatures {
    /// bundle is the path of the signature in the model. Defaults to `model.sig`.
    #[serde(default = "default_bundle")]
    #[schemars(length(min = 1, max = 256))]
    #[x_kube(validation = Rule::new("!self.startsWith('/') && !('..' in self.split('/')) && !self.contains('\\\\')")
        .message("must be a path in the model, for example model.sig: no leading '/', no '..', no backslash"))]
    pub bundle: String,
    /// anyOf are the signers of whom one must have signed. Required.
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub any_of: Vec<Signer>,
}

/// Where a signature lies when nobody says.
pub fn default_bundle() -> String {
    "model.sig".to_owned()
}

/// One signer, and what proves that it was the one. All of it is public.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.publicKey), has(self.certificateAuthorities), has(self.keyless)].filter(one, one).size() == 1")
    .message("must have exactly one of publicKey, certificateAuthorities and keyless"))]
pub struct Signer {
    /// publicKey is a PEM block with an ECDSA key (P-256, P-384 or P-521): its private half made the signature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 8192))]
    #[x_kube(validation = Rule::new("self.contains('-----BEGIN PUBLIC KEY-----')")
        .message("must be a public key in PEM, beginning with -----BEGIN PUBLIC KEY-----; `openssl pkey -in key.pem -pubout` prints it"))]
    pub public_key: Option<String>,
    /// certificateAuthorities are PEM blocks: the signer's certificate must lead to one of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32768))]
    #[x_kube(validation = Rule::new("self.contains('-----BEGIN CERTIFICATE-----')")
        .message("must be certificates in PEM, beginning with -----BEGIN CERTIFICATE-----"))]
    pub certificate_authorities: Option<String>,
    /// keyless is an identity that a Sigstore certificate authority confirmed and a transparency log recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keyless: Option<KeylessSigner>,
}

/// An identity, and the roots that confirm it.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct KeylessSigner {
    /// identity is the signer's name in the certificate, exactly. Required.
    #[schemars(length(min = 1, max = 512))]
    pub identity: String,
    /// issuer is who logged the signer in, exactly. Required.
    #[schemars(length(min = 1, max = 512))]
    pub issuer: String,
    /// trustedRoot is the content of a Sigstore `trusted_root.json`. Required: nothing is fetched.
    #[schemars(length(min = 2, max = 65536))]
    pub trusted_root: String,
}
