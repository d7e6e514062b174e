//! Language models: one decoder over packed rows, families as data.
//!
//! Rows come as embeddings: image rows that a projection made, and rows of the model's own table. Attention is causal within
//! a sample; positions count its rows. All weights are frozen: gradients go through, none stays.

mod config;
mod decoder;
pub(crate) mod generate;
mod layer;
mod names;
mod rope;

pub use config::{Activation, Family, LlmConfig, Residual};
pub(crate) use decoder::{Decoder, Pack};
pub(crate) use layer::{Kept, Sums};
