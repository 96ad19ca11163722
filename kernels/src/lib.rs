//! Arithmetic of language models on a processor.
//!
//! A matrix is packed once into tiles of [`TILE`] outputs, whose quantised weights lie so that one vector has four
//! inputs of each output ([`Packed`]). Activations are quantised to 8 bits with a scale for each [`BLOCK`] inputs
//! ([`Activations`]). Their products ([`linear`]) are sums of integers within a block, which are exact, and sums of
//! numbers of 32 bits over the blocks, in the order of the blocks: a value depends on its row and its output and on
//! nothing else, neither on the other rows, nor on the width of the processor's vectors ([`Level`]), nor on the number
//! of threads ([`Cores`]). The same holds for [`attention()`] over keys and values in blocks ([`Cache`]), which goes
//! through the keys of a sequence in spans that begin at fixed positions, and for what is done row by row ([`rows`]).
//!
//! This is the only crate with `unsafe` code: vector instructions, whose presence [`Level`] proves, and threads that write
//! parts of one buffer, whose bounds one type proves.

mod activations;
mod attention;
mod cache;
mod cores;
mod disjoint;
mod instructions;
mod level;
mod line;
mod math;
mod memory;
mod pack;
mod product;
pub mod rows;

pub use activations::Activations;
pub use attention::{Attention, Partial, attention};
pub use cache::{BLOCK_KEYS, Cache, CacheShape, Numbers, Spans};
pub use cores::Cores;
pub use level::Level;
pub use memory::Memory;
pub use pack::{Kind, PackError, Packed};
pub use product::{Gate, Product, Projection, agrees, gated, linear, look_up};

/// Outputs that are packed and computed together.
pub const TILE: usize = 16;
/// Inputs that share a scale of activations.
pub const BLOCK: usize = 32;
/// Groups of four inputs in a block: what one instruction multiplies.
const GROUPS: usize = BLOCK / 4;
