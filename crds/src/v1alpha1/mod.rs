//! Version `v1alpha1` of the API.

pub mod llm_deployment;
pub mod placement;
pub mod status;

#[cfg(test)]
mod tests;

pub use llm_deployment::*;
pub use placement::*;
pub use status::*;
