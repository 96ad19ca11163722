//! The only calls to the API server that write, each with a timeout and a count.

pub mod apply;
pub mod gated;
pub mod orphans;
pub mod services;
