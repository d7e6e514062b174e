//! Opening a GPU: driver, cuBLASLt and their versions first, then the GPU of the number that was asked for.

use super::super::gpu::Driver;
use super::super::setup::{self, Surroundings};
use super::Cuda;
use crate::{Error, Kind, Result};
use cudarc::driver::result::{self as cu, DriverError};
use cudarc::driver::sys;

/// The version of the nvcc that compiled the kernels: 13000 is 13.0.
pub(super) const BUILT_WITH: &str = env!("QFORMER_CUDA_VERSION");

/// An error of opening, with advice for what a machine's set-up can cause.
pub(super) fn unopened(e: DriverError) -> Error {
    setup::failure(e.0 as u32, &surroundings())
}

pub(super) fn surroundings() -> Surroundings {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    Surroundings {
        visible: std::env::var("CUDA_VISIBLE_DEVICES").ok(),
        wsl: kernel.to_lowercase().contains("microsoft"),
    }
}

/// The file that a library was loaded from, by a part of its name.
pub(super) fn loaded_from(name: &str) -> Option<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let mut paths = maps.lines().filter_map(|line| line.find('/').map(|at| &line[at..]));
    paths.find(|path| path.contains(name)).map(str::to_string)
}

/// GPU number `number`, in the order of nvidia-smi (by PCI bus id), unless `CUDA_DEVICE_ORDER` asks for another.
///
/// The versions of driver and cuBLASLt are checked before any kernel is loaded.
pub fn open(number: usize) -> Result<Box<dyn Driver>> {
    // SAFETY: both only try to load a library.
    let (driver, blas) = unsafe { (sys::is_culib_present(), cudarc::cublaslt::sys::is_culib_present()) };
    if !driver {
        return Err(setup::no_driver(|p| std::path::Path::new(p).exists()));
    }
    let built: i32 = BUILT_WITH.parse().unwrap_or(0);
    let mut version = 0;
    // SAFETY: writes one integer; it may be called before `cuInit`.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(unopened)?;
    setup::check_driver(version, built)?;
    if !blas {
        return Err(Error::new(Kind::Device, "device cuda")
            .expected("libcublasLt.so.13")
            .got("none on this machine")
            .fix("install CUDA 13's cuBLAS and add its folder to LD_LIBRARY_PATH, or use --device cpu"));
    }
    // SAFETY: takes nothing and needs no GPU.
    let lt = unsafe { cudarc::cublaslt::sys::cublasLtGetVersion() };
    setup::check_cublaslt(lt, loaded_from("libcublasLt").as_deref(), built)?;
    cu::init().map_err(unopened)?;
    let ordinals = in_order()?;
    let ordinal = ordinals.get(number).copied().ok_or_else(|| {
        let visible = surroundings().visible.map(|v| format!(" (CUDA_VISIBLE_DEVICES={v:?})"));
        Error::argument("device", "number", format!("below {}", ordinals.len()), format!("cuda:{number}"))
            .fix(format!("nvidia-smi lists the GPUs{}", visible.unwrap_or_default()))
    })?;
    Cuda::new(ordinal).map(|c| Box::new(c) as Box<dyn Driver>)
}

/// The driver's numbers of the GPUs, in the order of their PCI bus ids.
pub(super) fn in_order() -> Result<Vec<i32>> {
    let count = cu::device::get_count().map_err(unopened)?;
    if std::env::var_os("CUDA_DEVICE_ORDER").is_some() {
        return Ok((0..count).collect());
    }
    let mut all = (0..count).map(|n| Ok((bus_id(n)?, n))).collect::<Result<Vec<_>>>()?;
    all.sort();
    Ok(all.into_iter().map(|(_, n)| n).collect())
}

/// `00000000:65:00.0`, as nvidia-smi writes it.
pub(super) fn bus_id(ordinal: i32) -> Result<String> {
    let device = cu::device::get(ordinal).map_err(unopened)?;
    let mut text: [std::ffi::c_char; 32] = [0; 32];
    // SAFETY: writes at most as many bytes as it is told there are, the last of them zero.
    unsafe { sys::cuDeviceGetPCIBusId(text.as_mut_ptr(), 32, device) }.result().map_err(unopened)?;
    Ok(text.iter().take_while(|c| **c != 0).map(|c| char::from(c.to_ne_bytes()[0])).collect())
}
