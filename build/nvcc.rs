//! Where nvcc is, whether its version will do, and what its failures mean. Nothing here runs a program: the build script and
//! a test with a made-up machine use the same functions.
//!
//! Order of the search, first hit wins: `NVCC` (a file, or an error); `CUDA_HOME/bin`; the wheels of the active Python
//! environment (`VIRTUAL_ENV`, then `CONDA_PREFIX`); `PATH`; `/usr/local/cuda/bin`; the wheels of `python3` on `PATH`.
//! An active environment comes before `PATH`, since a distribution's old nvcc often stands there.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// CUDA's major version that the kernels are built with, and the oldest release of it.
pub const MAJOR: u32 = 13;

pub const HOW_TO_GET: &str = "feature cuda needs nvcc 13. Looked in NVCC, CUDA_HOME/bin, the Python environment \
     (VIRTUAL_ENV or CONDA_PREFIX), PATH, /usr/local/cuda/bin, and the packages of python3. To get it: install the CUDA 13 \
     toolkit, or in a Python environment run `pip install 'nvidia-cuda-nvcc==13.0.*' 'nvidia-cuda-crt==13.0.*' \
     'nvidia-nvvm==13.0.*' 'nvidia-cuda-runtime==13.0.*' 'nvidia-cuda-cccl==13.0.*'` and build with VIRTUAL_ENV set to it";

/// What the search depends on: environment variables, the root of the file system, and where python3 keeps packages.
pub struct Machine {
    pub variables: BTreeMap<&'static str, OsString>,
    pub root: PathBuf,
    pub site_packages: Vec<PathBuf>,
}

/// The variables that decide.
pub const VARIABLES: [&str; 5] = ["NVCC", "CUDA_HOME", "VIRTUAL_ENV", "CONDA_PREFIX", "PATH"];

impl Machine {
    /// The nvcc to use.
    pub fn find(&self) -> Result<PathBuf, String> {
        let variable = |name: &str| self.variables.get(name).filter(|v| !v.is_empty());
        if let Some(nvcc) = variable("NVCC") {
            let nvcc = PathBuf::from(nvcc);
            let missing = || format!("NVCC={} is not a file; unset it or correct it", nvcc.display());
            return if nvcc.is_file() { Ok(nvcc) } else { Err(missing()) };
        }
        let mut folders = Vec::new();
        folders.extend(variable("CUDA_HOME").map(|home| PathBuf::from(home).join("bin")));
        for environment in ["VIRTUAL_ENV", "CONDA_PREFIX"] {
            folders.extend(variable(environment).into_iter().flat_map(|v| wheels_of(Path::new(v))));
        }
        folders.extend(variable("PATH").into_iter().flat_map(std::env::split_paths));
        folders.push(self.root.join("usr/local/cuda/bin"));
        folders.extend(self.site_packages.iter().map(|s| s.join("nvidia/cu13/bin")));
        folders.into_iter().map(|f| f.join("nvcc")).find(|f| f.is_file()).ok_or_else(|| HOW_TO_GET.into())
    }
}

/// `lib/python3.*/site-packages/nvidia/cu13/bin` of a Python environment, and `bin` of a Conda environment.
fn wheels_of(environment: &Path) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = std::fs::read_dir(environment.join("lib"))
        .map(|entries| entries.flatten().map(|e| e.path().join("site-packages/nvidia/cu13/bin")).collect())
        .unwrap_or_default();
    folders.sort();
    folders.push(environment.join("bin"));
    folders
}

/// Major and minor version in what `nvcc --version` prints: `Cuda compilation tools, release 13.0, V13.0.88`.
pub fn version(printed: &str) -> Option<(u32, u32)> {
    let (_, rest) = printed.split_once("release ")?;
    let number = rest.split([',', ' ', '\n']).next()?;
    let (major, minor) = number.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Refuses an nvcc of another major version; warns of one that is newer than CUDA 13.0.
pub fn check(nvcc: &Path, found: Option<(u32, u32)>) -> Result<Option<String>, String> {
    let place = nvcc.display();
    match found {
        Some((MAJOR, 0)) => Ok(None),
        Some((MAJOR, minor)) => Ok(Some(format!(
            "{place} is nvcc {MAJOR}.{minor}. Its PTX needs a driver of CUDA {MAJOR}.{minor} or newer; GPUs whose \
             machine code is in the binary run with any driver of CUDA {MAJOR}"
        ))),
        Some((major, minor)) => Err(format!(
            "{place} is nvcc {major}.{minor}, and the kernels need nvcc {MAJOR}. Put CUDA {MAJOR}'s nvcc first, or \
             name it with NVCC=/path/to/nvcc. {HOW_TO_GET}"
        )),
        None => Err(format!("{place} does not tell its version; name another nvcc with NVCC=/path/to/nvcc")),
    }
}

/// What to do about a compilation that failed, where its text shows the cause.
pub fn hint(printed: &str) -> Option<&'static str> {
    let has = |text: &str| printed.contains(text);
    if has("unsupported GNU version") || has("unsupported clang version") || has("is too new") {
        Some(
            "the C++ compiler is newer than this nvcc knows: name an older one with NVCC_CCBIN=/usr/bin/g++-14",
        )
    } else if has("rsqrt") && (has("exception specification") || has("noexcept")) {
        Some("glibc 2.42 declares functions that this CUDA declares differently: use CUDA 13.1 or newer")
    } else if has("No space left on device") {
        Some("the disk with the build folder or TMPDIR is full")
    } else if has("cannot find -l") || has("cuda_runtime.h: No such file") || has("crt/host_config.h") {
        Some(
            "parts of the toolkit are missing: install all five packages named in the README, or the whole toolkit",
        )
    } else if has("gcc: No such file") || has("g++: No such file") || has("cannot find compiler") {
        Some("nvcc needs a C++ compiler: install g++, or name one with NVCC_CCBIN")
    } else {
        None
    }
}
