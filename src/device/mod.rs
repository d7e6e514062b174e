//! What computes: the CPU's loops and matrix products, and GPUs: real ones (`cuda`), and the CPU as one, through the
//! emulator (`host`).

pub mod attention;
pub mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "host-kernels")]
pub mod emulator;
pub mod gemm;
pub mod gpu;
pub mod launch;
pub mod meter;
mod real;
pub mod setup;

pub use real::{DType, Real};

/// Where tensors are and operations run.
#[derive(Clone, Debug)]
pub enum Device {
    Cpu,
    Gpu(gpu::Gpu),
}

impl Device {
    /// `cpu`, `cuda`, `cuda:1`, .. or `host`.
    pub fn open(name: &str) -> crate::Result<Device> {
        if name == "cpu" { Ok(Device::Cpu) } else { gpu::Gpu::open(name).map(Device::Gpu) }
    }

    /// An error unless there will be results: a plan only counts.
    pub fn check_computes(&self, operation: &str) -> crate::Result<()> {
        match self {
            Device::Gpu(gpu) if !gpu.computes() => Err(crate::Error::argument(
                operation,
                "--device",
                "cpu, cuda or host",
                "plan, which computes nothing",
            )
            .fix("plan is for `bench step` and `train --dry-run`")),
            _ => Ok(()),
        }
    }
}
