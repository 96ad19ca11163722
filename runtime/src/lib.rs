//! Fetches, verifies and serves a language model over an OpenAI-compatible API.
//!
//! `fetch` fills a content-addressed store; `serve` verifies, loads and answers; `inspect` says what a model is;
//! `bench` measures how fast it is here.

pub mod access;
pub mod app;
pub mod args;
pub mod backend;
pub mod bench;
pub mod cgroup;
pub mod context;
mod deep_stack;
pub mod dialect;
pub mod engine;
pub mod failure;
pub mod fetch;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod grammar;
pub mod inspect;
pub mod kv;
pub mod metrics;
pub mod model;
pub mod requirements;
pub mod serve;
pub mod server;
pub mod sign;
pub mod status;
pub mod telemetry;
pub mod threads;
pub mod trace;
pub mod traffic;
pub mod verify;
mod watched;
