//! Version `v1alpha1` of the API.

pub mod access;
pub mod llm_deployment;
pub mod model;
pub mod model_policy;
pub mod placement;
pub mod pod;
pub mod resources;
pub mod rollout;
pub mod runtime;
pub mod serving;
pub mod signature;
pub mod span;
pub mod status;

#[cfg(test)]
mod tests;

pub use access::*;
pub use llm_deployment::*;
pub use model::*;
pub use model_policy::*;
pub use placement::*;
pub use pod::*;
pub use resources::*;
pub use rollout::*;
pub use runtime::*;
pub use serving::*;
pub use signature::*;
pub use span::*;
pub use status::*;
