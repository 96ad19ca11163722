//! The resource of Escadre as Rust types: schema, names that the cluster sees, conditions.
//!
//! No client and no async runtime: everything here is pure, so that the operator, the scenarios and the
//! generator of the manifests share one source of truth.

pub mod condition;
pub mod examples;
pub mod generated;
pub mod names;
pub mod reference;
pub mod v1alpha1;

pub use v1alpha1::{LlmDeployment, LlmDeploymentSpec, LlmDeploymentStatus, ModelPolicy};
