//! What computes: the CPU's loops and matrix products.

pub mod cpu;
pub mod gemm;
mod real;

pub use real::{DType, Real};
