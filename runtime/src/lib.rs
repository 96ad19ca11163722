//! Serves a language model: fetches and verifies its files, loads them, answers over HTTP.

pub mod backend;
pub mod inspect;
pub mod model;
