//! Bounded parsers of model containers: they read headers from bytes that are in memory and verified, check every
//! rule, and hand out plain values. No tensors, no input or output, no panic on any input.

pub mod content;
pub mod gguf;
pub mod index;
pub mod json;
mod reader;
pub mod safetensors;
