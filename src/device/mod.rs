//! What computes: the CPU's loops and matrix products, and what it means to launch a kernel on a GPU or, through the
//! emulator, on the host.

pub mod attention;
pub mod cpu;
pub mod gemm;
#[cfg(feature = "host-kernels")]
pub mod host;
pub mod launch;
pub mod meter;
mod real;

pub use real::{DType, Real};
