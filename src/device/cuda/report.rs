//! What a machine has, line by line, before a GPU of it is opened: the build, the driver, the libraries, the GPUs.

use super::open::{BUILT_WITH, in_order, loaded_from, surroundings};
use super::{IMAGES, bus_id, setup};
use cudarc::driver::result as cu;
use cudarc::driver::sys;

pub fn report() -> Vec<(&'static str, String)> {
    let mut lines = vec![("build", build())];
    for name in ["CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_DISABLE_PTX_JIT"] {
        if let Ok(value) = std::env::var(name) {
            lines.push(("environment", format!("{name}={value:?}")));
        }
    }
    if surroundings().wsl {
        lines.push((
            "system",
            "WSL: the driver is Windows's own, and the GPU's memory is shared with it".into(),
        ));
    }
    // SAFETY: both only try to load a library.
    let (driver, blas) = unsafe { (sys::is_culib_present(), cudarc::cublaslt::sys::is_culib_present()) };
    let place = |library: &str| loaded_from(library).map(|path| format!(" ({path})")).unwrap_or_default();
    lines.push((
        "driver",
        match driver {
            true => driver_version() + &place("libcuda.so"),
            false => "none: libcuda was not found".into(),
        },
    ));
    lines.push((
        "cuBLASLt",
        match blas {
            true => cublaslt_version() + &place("libcublasLt"),
            false => "none: libcublasLt was not found".into(),
        },
    ));
    if driver {
        lines.extend(gpus().into_iter().map(|line| ("GPU", line)));
    }
    lines
}

fn build() -> String {
    let mut architectures: Vec<&str> = IMAGES.iter().map(|(architecture, _)| *architecture).collect();
    architectures.dedup();
    let built = BUILT_WITH.parse().unwrap_or(0);
    format!("kernels by nvcc {} for {}", setup::words(built), architectures.join(", "))
}

/// `580.65.06 (CUDA 13.0)`
pub(super) fn driver_version() -> String {
    let own = std::fs::read_to_string("/sys/module/nvidia/version").unwrap_or_default();
    let mut version = 0;
    // SAFETY: writes one integer; it may be called before `cuInit`.
    let known = unsafe { sys::cuDriverGetVersion(&mut version) }.result().is_ok();
    let cuda = if known { format!("CUDA {}", setup::words(version)) } else { "of unknown version".into() };
    match own.trim() {
        "" => cuda,
        own => format!("{own} ({cuda})"),
    }
}

/// `13.0.2`
pub(super) fn cublaslt_version() -> String {
    // SAFETY: takes nothing and needs no GPU.
    let version = unsafe { cudarc::cublaslt::sys::cublasLtGetVersion() };
    format!("{}.{}.{}", version / 10_000, version % 10_000 / 100, version % 100)
}

/// Every GPU by its number here, as nvidia-smi has it.
fn gpus() -> Vec<String> {
    let ordinals = match cu::init().map_err(super::unopened).and_then(|()| in_order()) {
        Ok(ordinals) => ordinals,
        Err(e) => return vec![e.to_string()],
    };
    let line = |(number, ordinal): (usize, i32)| {
        let device = cu::device::get(ordinal).ok();
        let name =
            device.and_then(|d| cu::device::get_name(d).ok()).unwrap_or_else(|| "of unknown name".into());
        use sys::CUdevice_attribute_enum as Attribute;
        // SAFETY: `device` came from the driver just now.
        let attribute = |a| unsafe { cu::device::get_attribute(device?, a) }.ok();
        let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
        let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
        let kernels = match major.zip(minor).map(|(major, minor)| setup::image(major, minor)) {
            Some(Ok(setup::Image::Code(code))) => format!("kernels for {code}"),
            Some(Ok(setup::Image::Ptx)) => "kernels compiled by the driver".into(),
            Some(Err(e)) => e.to_string(),
            None => "of unknown compute capability".into(),
        };
        let capability = format!("{}.{}", major.unwrap_or(0), minor.unwrap_or(0));
        let place = bus_id(ordinal).unwrap_or_default();
        format!("cuda:{number}: {name} ({place}), compute capability {capability}, {kernels}")
    };
    ordinals.into_iter().enumerate().map(line).collect()
}
