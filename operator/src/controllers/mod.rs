//! One folder for each kind.

pub mod llm_deployment;
