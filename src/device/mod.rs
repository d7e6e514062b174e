//! What computes: the CPU's loops and matmuls, and GPUs: real ones (`cuda`), and the CPU as one, through the
//! emulator (`host`).

pub mod attention;
pub mod cards;
mod chunk;
pub mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "host-kernels")]
pub mod emulator;
pub mod gemm;
pub mod gpu;
pub mod launch;
mod real;
pub mod running;
pub mod setup;
mod storage;

pub use chunk::Chunk;
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
    let (kind, which) = name.split_once(':').unwrap_or((name, "0"));
    let number = || which.parse::<u32>().map_err(|_| unknown(name));
    match kind {
        #[cfg(feature = "cuda")]
        "cuda" => cuda::open(number()? as usize),
        #[cfg(not(feature = "cuda"))]
        "cuda" => number().and_then(|_| Err(no_kernels())),
        #[cfg(feature = "host-kernels")]
        "host" => gpu::host::open(u64::from(number()?)),
        #[cfg(not(feature = "host-kernels"))]
        "host" => Err(Error::argument("device", "host", "a build with kernels for the host", "one without")
            .fix("build with `--features host-kernels`, or use --device cpu")),
        "plan" if name == "plan" => Ok(gpu::plan::of(gpu::plan::H200)),
        "plan" => match cards::named(which) {
            Some(card) => Ok(gpu::plan::card(card)),
            None => Ok(gpu::plan::of(u64::from(number()?) * 1_000_000_000)),
        },
        _ => Err(unknown(name)),
    }
}

#[cfg(not(feature = "cuda"))]
fn no_kernels() -> Error {
    Error::new(crate::Kind::Device, "device")
        .about("cuda")
        .expected("a build with CUDA kernels")
        .got("one without")
        .fix("build with `cargo build --release --features cuda`, or use --device cpu")
}

/// What is known of the machine's GPUs, driver and libraries, line by line (name, value), before one of them is opened. Never
/// an error: what is missing is said.
pub fn surroundings() -> Vec<(&'static str, String)> {
    #[cfg(feature = "cuda")]
    return cuda::report();
    #[cfg(not(feature = "cuda"))]
    vec![("build", "without CUDA kernels (cargo build --release --features cuda)".into())]
}

fn unknown(name: &str) -> Error {
    let cards: Vec<&str> = cards::CARDS.iter().map(|card| card.name).collect();
    let known = "auto, cpu, cuda (or cuda:1, ..), host or plan (plan:80 has 80 GB, plan:CARD is one of";
    Error::argument("device", "name", format!("{known} {})", cards.join(", ")), name)
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

    /// A device by its name; `say` is told which one `auto` is, and of a GPU its name, bus id and free memory.
    pub fn announced(name: &str, say: impl FnOnce(String)) -> Result<Device> {
        if name == "auto" {
            let (device, line) = Device::auto();
            say(line);
            return Ok(device);
        }
        let device = Device::open(name)?;
        if let Some(line) = device.gpu().and_then(gpu::Gpu::greeting) {
            say(format!("device: {line}"));
        }
        Ok(device)
    }

    /// A GPU if this build has kernels for one and one answers, else the CPU; and in words which it is, and why.
    pub fn auto() -> (Device, String) {
        if cfg!(not(feature = "cuda")) {
            return (Device::Cpu, "device: CPU (this build has no CUDA kernels)".into());
        }
        match gpu::Gpu::open("cuda") {
            Ok(gpu) => {
                let line = format!("device: {}", gpu.greeting().unwrap_or_else(|| gpu.name()));
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

    /// What the last bits of its numbers depend on: the CPU's instruction set, or GPU, driver and libraries.
    pub fn identity(&self) -> String {
        match self {
            Device::Cpu => cpu::instructions().to_string(),
            Device::Gpu(gpu) => gpu.identity(),
        }
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
