//! Whether a machine's driver, libraries and GPU will do for this build, and what to do where they will not. Plain tables
//! and comparisons: nothing here calls a driver, so all of it is tested without a GPU.
//!
//! Versions are CUDA's own numbers: 13000 is 13.0, 12080 is 12.8 (`cuDriverGetVersion`).

use crate::{Error, Kind, Result};

/// The oldest compute capability that the kernels run on.
pub const OLDEST: (i32, i32) = (8, 0);
/// The first driver branch of CUDA 13.
const DRIVER_13: u32 = 580;
const OP: &str = "device cuda";

/// A CUDA version in words: `13.0`.
pub fn words(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

fn wrong(expected: impl std::fmt::Display, got: impl std::fmt::Display, fix: &str) -> Error {
    Error::new(Kind::Device, OP).expected(expected).got(got).fix(format!("{fix}, or use --device cpu"))
}

/// Refuses a driver that cannot load what this build embeds: machine code needs a driver of the same major version.
/// `build` is the nvcc's version.
///
/// # Errors
/// [`Kind::Device`], with both versions and what to install.
pub fn check_driver(driver: i32, build: i32) -> Result<()> {
    if driver / 1000 >= build / 1000 {
        return Ok(());
    }
    let want = format!(
        "a driver of CUDA {} (branch {DRIVER_13} or newer; this build is of CUDA {})",
        build / 1000,
        words(build)
    );
    let got = format!("a driver of CUDA {}", words(driver));
    Err(wrong(want, got, "update the NVIDIA driver (the nvidia-smi command shows its version)"))
}

/// Refuses a cuBLASLt of another major version than the build's; `version` is what `cublasLtGetVersion` gives: 130002 is 13.0.2.
///
/// # Errors
/// [`Kind::Device`], with the version, the path it was loaded from if that is known, and what to change.
pub fn check_cublaslt(version: usize, path: Option<&str>, build: i32) -> Result<()> {
    let (major, want) = (version / 10_000, usize::try_from(build / 1000).unwrap_or(0));
    if major == want {
        return Ok(());
    }
    let from = path.map(|p| format!(" ({p})")).unwrap_or_default();
    let fix = format!(
        "put the folder with libcublasLt.so.{want} first in LD_LIBRARY_PATH (in a PyTorch environment: nvidia/cu{want}/lib)"
    );
    Err(wrong(format!("cuBLASLt {want}"), format!("cuBLASLt {major}{from}"), &fix))
}

/// Which of the embedded images serve a compute capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Image {
    /// Machine code of this architecture.
    Code(&'static str),
    /// PTX, which the driver compiles when the device is opened.
    Ptx,
}

/// The image for a GPU of compute capability `major.minor`. Machine code runs on its own and on later minor versions of the
/// same major one; `90a` and other architecture-specific code only on exactly its own.
///
/// # Errors
/// [`Kind::Device`] below 8.0.
pub fn image(major: i32, minor: i32) -> Result<Image> {
    Ok(match (major, minor) {
        (9, 0) => Image::Code("90a"),
        (8, 9) => Image::Code("89"),
        (8, _) => Image::Code("80"),
        (10, _) => Image::Code("100"),
        (12, _) => Image::Code("120"),
        _ if (major, minor) < OLDEST => {
            let (a, b) = OLDEST;
            let want = format!("a GPU of compute capability {a}.{b} or newer (Ampere: RTX 30, A100)");
            return Err(Error::new(Kind::Device, OP)
                .expected(want)
                .got(format!("one of {major}.{minor}"))
                .fix("use --device cpu on this machine"));
        }
        _ => Image::Ptx,
    })
}

/// What surrounds an error of the driver: names in the environment that explain it.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// `CUDA_VISIBLE_DEVICES`, if it is set.
    pub visible: Option<String>,
    /// Whether this is Linux inside Windows.
    pub wsl: bool,
}

/// Code and name of an error of the driver, and what to do about it.
struct Row {
    code: u32,
    name: &'static str,
    what: &'static str,
    fix: &'static str,
}

/// Errors that the set-up of a machine causes. Codes and names are those of `CUresult` in CUDA's `cuda.h`.
const ROWS: &[Row] = &[
    Row {
        code: 3,
        name: "CUDA_ERROR_NOT_INITIALIZED",
        what: "the driver could not start",
        fix: "check that nvidia-smi runs as this user",
    },
    Row {
        code: 34,
        name: "CUDA_ERROR_STUB_LIBRARY",
        what: "libcuda is the toolkit's stub, not the driver",
        fix: "take …/lib64/stubs out of LD_LIBRARY_PATH",
    },
    Row {
        code: 36,
        name: "CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER",
        what: "the driver is too old for a call of this build",
        fix: "update the NVIDIA driver to branch 580 or newer",
    },
    Row {
        code: 46,
        name: "CUDA_ERROR_DEVICE_UNAVAILABLE",
        what: "another process has this GPU for itself (exclusive compute mode)",
        fix: "end that process (nvidia-smi lists it), or allow sharing with `nvidia-smi -c DEFAULT`",
    },
    Row {
        code: 100,
        name: "CUDA_ERROR_NO_DEVICE",
        what: "the driver sees no GPU",
        fix: "check that nvidia-smi lists one; in a container, start it with --gpus all",
    },
    Row {
        code: 101,
        name: "CUDA_ERROR_INVALID_DEVICE",
        what: "there is no GPU of this number",
        fix: "choose one that nvidia-smi lists: --device cuda:0",
    },
    Row {
        code: 200,
        name: "CUDA_ERROR_INVALID_IMAGE",
        what: "the driver does not understand the kernels in this binary",
        fix: "update the NVIDIA driver to branch 580 or newer, or build again with --features cuda",
    },
    Row {
        code: 209,
        name: "CUDA_ERROR_NO_BINARY_FOR_GPU",
        what: "this binary has no kernels for this GPU",
        fix: "build again with --features cuda and a newer nvcc 13",
    },
    Row {
        code: 218,
        name: "CUDA_ERROR_INVALID_PTX",
        what: "the driver could not compile the kernels for this GPU",
        fix: "update the NVIDIA driver; it must be at least as new as the nvcc of the build",
    },
    Row {
        code: 221,
        name: "CUDA_ERROR_JIT_COMPILER_NOT_FOUND",
        what: "the driver's compiler for newer GPUs is missing",
        fix: "install libnvidia-ptxjitcompiler.so.1 of the same version as the driver (in a container: NVIDIA_DRIVER_CAPABILITIES=compute,utility)",
    },
    Row {
        code: 222,
        name: "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
        what: "the driver is older than the nvcc that built this binary",
        fix: "update the NVIDIA driver, or build with nvcc 13.0",
    },
    Row {
        code: 223,
        name: "CUDA_ERROR_JIT_COMPILATION_DISABLED",
        what: "the driver may not compile kernels (CUDA_DISABLE_PTX_JIT is set)",
        fix: "unset CUDA_DISABLE_PTX_JIT",
    },
    Row {
        code: 304,
        name: "CUDA_ERROR_OPERATING_SYSTEM",
        what: "the operating system refused a call of the driver",
        fix: "check that this user may open /dev/nvidia*, and that the container was given the GPU",
    },
    Row {
        code: 802,
        name: "CUDA_ERROR_SYSTEM_NOT_READY",
        what: "the GPUs are not ready (on NVSwitch machines the fabric manager must run)",
        fix: "start nvidia-fabricmanager, or wait until the machine has started",
    },
    Row {
        code: 803,
        name: "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
        what: "the loaded kernel module and libcuda are of different versions",
        fix: "reboot after the driver's update; in a container, restart it",
    },
    Row {
        code: 804,
        name: "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE",
        what: "a compatibility package (cuda-compat) is in use, which this GPU does not support",
        fix: "remove cuda-compat or take it out of LD_LIBRARY_PATH, and update the driver itself",
    },
    Row {
        code: 999,
        name: "CUDA_ERROR_UNKNOWN",
        what: "the driver failed for a reason of its own, often after the machine was suspended",
        fix: "reload the module (`sudo rmmod nvidia_uvm && sudo modprobe nvidia_uvm`) or reboot",
    },
];

/// The error for a code that the driver gave while it was opened.
pub fn failure(code: u32, around: &Surroundings) -> Error {
    let base = Error::new(Kind::Device, OP).expected("an NVIDIA GPU with its driver");
    let hidden = around.visible.as_deref().filter(|_| matches!(code, 100 | 101));
    if let Some(visible) = hidden {
        return base
            .got(format!("error {code}: no GPU is visible with CUDA_VISIBLE_DEVICES={visible:?}"))
            .fix("unset CUDA_VISIBLE_DEVICES or name a GPU that nvidia-smi lists, or use --device cpu");
    }
    match ROWS.iter().find(|row| row.code == code) {
        Some(Row { code, name, what, fix }) => {
            let wsl = if around.wsl && *code == 100 { "; under WSL the driver is Windows's own" } else { "" };
            base.got(format!("{what} ({name}, {code}){wsl}")).fix(format!("{fix}, or use --device cpu"))
        }
        None => base
            .got(format!("CUDA error {code}"))
            .fix("nvidia-smi shows the state of the driver; or use --device cpu"),
    }
}

/// Where there is no libcuda: what to say, given the folders that exist. WSL keeps it in `/usr/lib/wsl/lib`.
pub fn no_driver(exists: impl Fn(&str) -> bool) -> Error {
    const WSL: &str = "/usr/lib/wsl/lib/libcuda.so.1";
    let base = Error::new(Kind::Device, OP).expected("libcuda, which comes with NVIDIA's driver").got("none");
    if exists(WSL) {
        return base.fix("add /usr/lib/wsl/lib to LD_LIBRARY_PATH, or use --device cpu");
    }
    base.fix("install the NVIDIA driver (nvidia-smi must list the GPU), or use --device cpu")
}

/// Bytes that a run may plan with: what is free, less what drivers, displays and allocation in segments take of it.
/// Under WSL and on GPUs that share the machine's memory the system takes more.
pub fn usable(free: u64, total: u64, shared: bool) -> u64 {
    let share = if shared { 10 } else { 40 };
    free.saturating_sub((total / share).max(256 << 20))
}

/// Of this much free memory, what the system has left, too: for GPUs whose memory is the system's.
pub fn at_most_available(free: u64) -> u64 {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    available(&meminfo).map_or(free, |available| free.min(available))
}

/// Bytes in the line `MemAvailable` of Linux's `/proc/meminfo`.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_of_an_older_major_version_is_refused_with_both_versions() {
        for (driver, build) in [(13000, 13000), (13010, 13000), (13000, 13010), (14000, 13000)] {
            assert!(check_driver(driver, build).is_ok(), "{driver} {build}");
        }
        for (driver, name) in [(12080, "12.8"), (12020, "12.2"), (11040, "11.4")] {
            let error = check_driver(driver, 13000).unwrap_err();
            let text = error.to_string();
            assert_eq!(error.exit_code(), 6);
            for part in [name, "13.0", "580", "--device cpu"] {
                assert!(text.contains(part), "{text}");
            }
        }
    }

    #[test]
    fn cublaslt_of_another_major_version_is_refused_with_its_path() {
        assert!(check_cublaslt(130_002, None, 13000).is_ok());
        let text =
            check_cublaslt(120_804, Some("/usr/lib/libcublasLt.so.12"), 13000).unwrap_err().to_string();
        assert!(text.contains("/usr/lib/libcublasLt.so.12") && text.contains("libcublasLt.so.13"), "{text}");
    }

    /// Compute capabilities from NVIDIA's list of CUDA GPUs.
    #[test]
    fn every_compute_capability_has_its_image() {
        let code = |a| Ok(Image::Code(a));
        for ((major, minor), want) in [
            ((8, 0), code("80")),      // A100
            ((8, 6), code("80")),      // RTX 3090
            ((8, 7), code("80")),      // Orin
            ((8, 9), code("89")),      // RTX 4080
            ((9, 0), code("90a")),     // H100, H200
            ((10, 0), code("100")),    // B200
            ((10, 3), code("100")),    // B300
            ((11, 0), Ok(Image::Ptx)), // Thor
            ((12, 0), code("120")),    // RTX 5090
            ((12, 1), code("120")),    // GB10
            ((13, 0), Ok(Image::Ptx)),
        ] {
            assert_eq!(image(major, minor), want, "{major}.{minor}");
        }
        for (major, minor) in [(7, 5), (6, 1)] {
            let text = image(major, minor).unwrap_err().to_string();
            assert!(text.contains(&format!("{major}.{minor}")) && !text.contains("install"), "{text}");
        }
    }

    #[test]
    fn every_error_of_a_set_up_has_its_own_advice() {
        let plain = Surroundings::default();
        let mut fixes = std::collections::BTreeSet::new();
        for row in ROWS {
            let error = failure(row.code, &plain);
            let text = error.to_string();
            assert_eq!(error.exit_code(), 6);
            assert!(text.contains(row.name) && text.contains(&row.code.to_string()), "{text}");
            assert!(fixes.insert(row.fix), "{text}");
        }
        assert!(failure(700, &plain).to_string().contains("CUDA error 700"));
        let hidden = Surroundings { visible: Some("7".into()), wsl: false };
        assert!(failure(100, &hidden).to_string().contains("CUDA_VISIBLE_DEVICES=\"7\""));
        let wsl = Surroundings { visible: None, wsl: true };
        assert!(failure(100, &wsl).to_string().contains("WSL"));
    }

    #[test]
    fn a_missing_libcuda_names_the_folder_of_wsl() {
        assert!(no_driver(|p| p.starts_with("/usr/lib/wsl")).to_string().contains("LD_LIBRARY_PATH"));
        assert!(no_driver(|_| false).to_string().contains("install the NVIDIA driver"));
    }

    #[test]
    fn memory_that_is_the_systems_is_no_more_than_is_left() {
        let meminfo = "MemTotal:       32 kB\nMemFree: 1 kB\nMemAvailable:   20 kB\n";
        assert_eq!((available(meminfo), available("MemTotal: 1 kB")), (Some(20 << 10), None));
        assert_eq!(at_most_available(0), 0);
        assert!(at_most_available(u64::MAX) < u64::MAX, "this machine has some left");
    }

    #[test]
    fn what_fits_is_less_than_what_is_free() {
        let gb = |n: u64| n << 30;
        assert_eq!(usable(gb(10), gb(12), false), gb(10) - gb(12) / 40);
        assert_eq!(usable(gb(10), gb(12), true), gb(10) - gb(12) / 10);
        assert_eq!(usable(gb(1), gb(4), false), gb(1) - (256 << 20));
        assert_eq!(usable(100, gb(4), false), 0);
    }
}
