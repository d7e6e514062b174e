//! The CUDA kernels, run on the CPU under many schedules and compared with a double reference written from the formula.
//!
//! `harness` holds the schedules and the tolerance; `planted` proves that the emulator and its checker find mistakes.
#![cfg(feature = "host-kernels")]

#[path = "kernels/harness.rs"]
mod harness;
#[path = "kernels/planted.rs"]
mod planted;
