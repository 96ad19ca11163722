//! The test bed: a real Kubernetes on one Linux machine, a mirror of models, and what scenarios are written with.
//!
//! Needs no cluster of its own to compile; [`cluster`] starts one. Everything it starts, it also ends, even after it
//! was killed.

pub mod chart;
pub mod client;
pub mod cluster;
pub mod escadre;
pub mod external;
pub mod faults;
pub mod fixtures;
pub mod floor;
pub mod metrics_api;
pub mod mirror;
pub mod operator;
pub mod policy;
pub mod rollouts;
pub mod scenario;
pub mod sources;
pub mod stage;
pub mod status_pages;
pub mod testing;
pub mod traffic;
pub mod wait;
pub mod world;
