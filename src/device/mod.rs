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
mod real;
pub mod setup;

pub use real::{DType, Real};

use crate::{Error, Result};

/// Where tensors are and operations run.
#[derive(Clone, Debug, Default)]
pub enum Device {
    /// The processor, in f32 or f64.
    #[default]
    Cpu,
    /// A GPU, or what stands for one.
    Gpu(gpu::Gpu),
}

impl gpu::Gpu {
    /// `cuda` (or `cuda:1`, ..) or `host`. One message that says what to do if this build or this machine has none.
    pub fn open(name: &str) -> Result<gpu::Gpu> {
        driver(name).map(gpu::Gpu::of)
    }
}

fn driver(name: &str) -> Result<Box<dyn gpu::Driver>> {
    let (kind, number) = name.split_once(':').unwrap_or((name, "0"));
    let number: usize = number.parse().map_err(|_| unknown(name))?;
    match kind {
        #[cfg(feature = "cuda")]
        "cuda" => cuda::open(number),
        #[cfg(not(feature = "cuda"))]
        "cuda" => Err(Error::new(crate::Kind::Device, "device")
            .about("cuda")
            .expected("a build with CUDA kernels")
            .got("one without")
            .fix("build with `cargo build --release --features cuda`, or use --device cpu")),
        #[cfg(feature = "host-kernels")]
        "host" => Ok(Box::new(gpu::host::Host::with(emulator::Schedule::numbered(number as u64)))),
        #[cfg(not(feature = "host-kernels"))]
        "host" => Err(Error::argument("device", "host", "a build with kernels for the host", "one without")
            .fix("build with `--features host-kernels`, or use --device cpu")),
        "plan" if name == "plan" => Ok(gpu::plan::of(gpu::plan::H200)),
        "plan" => {
            let bytes = (number as u64).checked_mul(1_000_000_000).ok_or_else(|| unknown(name))?;
            Ok(gpu::plan::of(bytes))
        }
        _ => Err(unknown(name)),
    }
}

fn unknown(name: &str) -> Error {
    Error::argument(
        "device",
        "name",
        "auto, cpu, cuda (or cuda:1, ..), host or plan (plan:80 has 80 GB)",
        name,
    )
}

impl Device {
    /// `auto`, `cpu`, `cuda`, `cuda:1`, .. or `host`, which runs the threads of a block in order (`host:1`, ..: in another
    /// one).
    pub fn open(name: &str) -> Result<Device> {
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

    /// The GPU, if it is one.
    pub fn gpu(&self) -> Option<&gpu::Gpu> {
        if let Device::Gpu(gpu) = self { Some(gpu) } else { None }
    }

    /// Whether tensors are stored there in the bits that they are told to be; the CPU has them in f32 or f64.
    pub fn keeps_storages(&self) -> bool {
        matches!(self, Device::Gpu(_))
    }

    /// Whether work can run beside other work, in a second stream.
    pub fn has_streams(&self) -> bool {
        matches!(self, Device::Gpu(_))
    }

    /// This device with a stream and a memory pool of its own ([`gpu::Gpu::side`]); None where there are no streams.
    pub fn side(&self) -> Result<Option<Device>> {
        match self {
            Device::Cpu => Ok(None),
            Device::Gpu(gpu) => gpu.side().map(|gpu| Some(Device::Gpu(gpu))),
        }
    }

    /// What comes next here waits for everything that the other stream was asked for so far.
    pub fn after(&self, other: &Device) -> Result<()> {
        match (self, other) {
            (Device::Gpu(gpu), Device::Gpu(other)) => gpu.after(other),
            _ => Ok(()),
        }
    }

    /// Bytes that the memory pool has of the driver: for small blocks, for large ones. None on the CPU.
    pub fn held(&self) -> [usize; 2] {
        if let Device::Gpu(gpu) = self { gpu.held() } else { [0; 2] }
    }

    /// Asks at once for as much memory as another pool `held`. False if there is not as much.
    pub fn reserve(&self, held: [usize; 2]) -> Result<bool> {
        if let Device::Gpu(gpu) = self { gpu.reserve(held) } else { Ok(true) }
    }

    /// What was asked of a GPU so far; counts begin again. Of the CPU, nothing is counted.
    pub fn take_counts(&self) -> gpu::Counts {
        if let Device::Gpu(gpu) = self { gpu.take_counts() } else { gpu::Counts::default() }
    }

    /// An error unless there will be results: a plan only counts.
    pub fn check_computes(&self, operation: &str) -> Result<()> {
        match self {
            Device::Gpu(gpu) if !gpu.computes() => Err(Error::argument(
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
