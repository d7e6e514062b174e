//! The CUDA kernels, run on the CPU under many schedules and compared with the CPU's definition in f64.
//!
//! `harness` holds the schedules and the tolerance; `planted` proves that the emulator and its checker find mistakes.
#![cfg(feature = "host-kernels")]

#[path = "kernels/attention.rs"]
mod attention;
#[path = "kernels/harness.rs"]
mod harness;
#[path = "kernels/planted.rs"]
mod planted;
