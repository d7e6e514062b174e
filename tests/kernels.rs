//! The CUDA kernels, run on the CPU under many schedules, or on a GPU, and compared with the CPU's definition in f64.
//!
//! `harness` holds the tolerance, `place` the schedules; `planted` proves that the emulator and its checker find mistakes.
//! On a GPU: `QFORMER_TEST_DEVICE=cuda cargo test --features cuda,host-kernels --test kernels`.
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
#[path = "kernels/place.rs"]
mod place;
#[path = "kernels/planted.rs"]
mod planted;
#[path = "kernels/pointwise.rs"]
mod pointwise;
#[path = "kernels/train.rs"]
mod train;
