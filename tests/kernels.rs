//! The CUDA kernels, run on the CPU under many schedules and compared with the CPU's definition in f64.
//!
//! `harness` holds the schedules and the tolerance; `planted` proves that the emulator and its checker find mistakes.
#![cfg(feature = "host-kernels")]

#[path = "kernels/attention.rs"]
mod attention;
#[path = "kernels/decode.rs"]
mod decode;
#[path = "kernels/harness.rs"]
mod harness;
#[path = "kernels/house.rs"]
mod house;
#[path = "kernels/layer_norm.rs"]
mod layer_norm;
#[path = "kernels/losses.rs"]
mod losses;
#[path = "kernels/planted.rs"]
mod planted;
#[path = "kernels/pointwise.rs"]
mod pointwise;
#[path = "kernels/train.rs"]
mod train;
