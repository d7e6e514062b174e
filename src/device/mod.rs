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
    /// `auto`, `cpu`, `cuda`, `cuda:1`, .. or `host`.
    pub fn open(name: &str) -> crate::Result<Device> {
        match name {
            "auto" => Ok(Device::auto().0),
            "cpu" => Ok(Device::Cpu),
            name => gpu::Gpu::open(name).map(Device::Gpu),
        }
    }

    /// A GPU if this build has kernels for one and one answers, else the CPU; and in words which it is, and why.
    pub fn auto() -> (Device, String) {
        if cfg!(not(feature = "cuda")) {
            return (Device::Cpu, "device: CPU (this build has no CUDA kernels)".into());
        }
        match gpu::Gpu::open("cuda") {
            Ok(gpu) => {
                let line = format!("device: {}", gpu.name());
                (Device::Gpu(gpu), line)
            }
            Err(e) => (Device::Cpu, format!("device: CPU ({e})")),
        }
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
