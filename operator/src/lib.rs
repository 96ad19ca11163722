//! Turns `LlmDeployment` objects into pods that serve, and keeps them true.
//!
//! A library with a thin program around it, so that scenarios can run the operator in their own process.

pub mod admin;
pub mod app;
pub mod args;
pub mod audit;
#[cfg(test)]
mod chance;
pub mod context;
pub mod controllers;
pub mod due;
pub mod kube_ext;
pub mod leader;
pub mod metrics;
pub mod policy;
pub mod queue;
pub mod reference;
pub mod retry;
pub mod runtime_status;
pub mod telemetry;
pub mod world;
