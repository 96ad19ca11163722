//! Judges whether files are the model that was approved, and whether they are safe to parse.
//!
//! Knows files, digests and signatures; no Kubernetes, no async runtime, no tensors, no unsafe code. [`VerifiedModel`] is the
//! only way in which the loader, the tokenizer and the template code of the runtime get bytes: whatever it hands
//! out has the digest that was asked for.

mod digest;
pub mod license;
mod model;
mod reading;
mod refusal;
mod root;
pub mod signature;
pub mod structure;

pub use digest::{Digest, DigestFormatError, Hasher, model_digest};
pub use model::{Progress, Strictness, VerifiedModel};
pub use reading::Reading;
pub use refusal::{Reason, Refusal};
pub use signature::{Signature, SignedManifest, Signer, Trust, TrustError};
