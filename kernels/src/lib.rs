//! Products of quantised matrices with activations on a processor.
//!
//! A matrix is packed once into tiles of [`TILE`] outputs, whose quantised weights lie so that one vector has four
//! inputs of each output ([`Packed`]). Activations are quantised to 8 bits with a scale for each [`BLOCK`] inputs
//! ([`Activations`]). Their products are sums of integers within a block, which are exact, and sums of numbers of 32 bits
//! over the blocks, in the order of the blocks: a value depends on its row and its output and on nothing else, neither on
//! the other rows, nor on the width of the processor's vectors ([`Level`]).
//!
//! This is the only crate with `unsafe` code: vector instructions, whose presence [`Level`] proves, and threads that write
//! columns of one buffer, whose bounds [`Columns`] proves.

mod activations;
mod columns;
mod level;
mod line;
mod pack;
mod product;

pub use activations::Activations;
pub use columns::Columns;
pub use level::Level;
pub use pack::{Kind, Packed, Unfit};
pub use product::multiply;

/// Outputs that are packed and computed together.
pub const TILE: usize = 16;
/// Inputs that share a scale of activations.
pub const BLOCK: usize = 32;
/// Groups of four inputs in a block: what one instruction multiplies.
const GROUPS: usize = BLOCK / 4;
