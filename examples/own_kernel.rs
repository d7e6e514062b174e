//! A kernel that the crate does not have: compiled by the C++ compiler when this runs, launched on the host driver, and checked for
//! races. With a GPU (`--features cuda`) and PTX made by nvcc the same launch runs there.
//!
//!     cargo run --features host-check --example own_kernel -- FOLDER
//!     nvcc -ptx -arch=sm_80 -I kernels FOLDER/mirror.cu -o mirror.ptx
//!     cargo run --features cuda,host-check --example own_kernel -- FOLDER mirror.ptx

use qformer::device::emulator::is_checked;
use qformer::device::gpu::{Kernels, kernel_headers};
use qformer::tensor::{Gpu, Storage};
use qformer::{Error, Kind, Result, args};
use std::path::{Path, PathBuf};
use std::process::Command;

/// y of every block of 64 is x in reverse, by way of shared memory. `mirror_racy` forgets the barrier.
const SOURCE: &str = r#"
#include "dev.cuh"
#define MIRROR(NAME, BARRIER)                                                  \
    DEV_KERNEL(NAME, 64, 0, const float *x, float *y, uint64_t n) {            \
        DEV_SHARED(float, tile, [64]);                                         \
        const uint64_t first = uint64_t(blockIdx.x) * 64;                      \
        const int i = int(threadIdx.x);                                        \
        tile[i] = first + i < n ? x[first + i] : 0.f;                          \
        BARRIER;                                                               \
        if (first + i < n) y[first + i] = tile[63 - i];                        \
    }
MIRROR(mirror, __syncthreads())
MIRROR(mirror_racy, (void)0)
"#;

/// Compiles the kernels for the host driver into a folder.
pub fn compile(folder: &Path) -> Result<PathBuf> {
    let [source, object, library] = ["mirror.cu", "mirror.o", "mirror.so"].map(|name| folder.join(name));
    std::fs::write(&source, SOURCE).map_err(|e| Error::io("compile", &source, &e))?;
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "g++".into());
    let mut words = compiler.split_whitespace();
    let program = words.next().unwrap_or("g++");
    let words: Vec<&str> = words.collect();
    let mut compile = Command::new(program);
    compile.args(&words).args(["-x", "c++", "-std=c++17", "-O2", "-g", "-fPIC", "-ffp-contract=off"]);
    if is_checked() {
        compile.arg("-fsanitize=thread"); // the checker sees every access
    }
    compile.arg("-I").arg(kernel_headers()).arg("-c").arg(&source).arg("-o").arg(&object);
    let mut link = Command::new(program);
    link.args(&words).arg("-shared").arg(&object).arg("-o").arg(&library);
    for mut command in [compile, link] {
        let done = command.output().map_err(|e| Error::new(Kind::File, "compile").about(program).got(e))?;
        if !done.status.success() {
            let text = String::from_utf8_lossy(&done.stderr).into_owned();
            return Err(Error::new(Kind::File, "compile").about(source.display().to_string()).got(text));
        }
    }
    Ok(library)
}

/// Launches a kernel on n numbers.
pub fn mirror(gpu: &Gpu, kernel: &str, x: &[f32]) -> Result<Vec<f32>> {
    let (n, x) = (x.len(), gpu.upload("mirror", Storage::F32, x)?);
    let y = gpu.array("mirror", Storage::F32, n)?;
    // SAFETY: both arrays hold n elements in f32, as the kernel asks, and live until the copy below.
    unsafe { gpu.launch(kernel, (n.div_ceil(64), 1), (64, 1), 0, args![&x, &y, n as u64])? };
    y.read_f32()
}

/// Everything on the host driver.
pub fn run(folder: &Path) -> Result<()> {
    let gpu = Gpu::open("host")?;
    // SAFETY: the kernels above, which their launch takes for what they are.
    unsafe { gpu.load(Kernels::Object(&compile(folder)?))? };
    let x: Vec<f32> = (0..128).map(|i| i as f32).collect();
    let expected: Vec<f32> = x.chunks(64).flat_map(|block| block.iter().rev().copied()).collect();
    assert_eq!(mirror(&gpu, "mirror", &x)?, expected);
    println!("mirror: right");
    match mirror(&gpu, "mirror_racy", &x) {
        Err(e) => println!("mirror_racy: found: {e}"),
        Ok(_) => assert!(!is_checked(), "the checker did not see the race"),
    }
    Ok(())
}

#[allow(dead_code)]
fn main() -> Result<()> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    match &arguments[..] {
        [folder] => run(folder),
        [_, ptx] => {
            let gpu = Gpu::open("cuda")?;
            let bytes = std::fs::read(ptx).map_err(|e| Error::io("read PTX", ptx, &e))?;
            // SAFETY: compiled from the source above.
            unsafe { gpu.load(Kernels::Ptx(&bytes))? };
            assert_eq!(mirror(&gpu, "mirror", &[1.0, 2.0])?, [0.0, 0.0]);
            println!("mirror on {}: right", gpu.name());
            Ok(())
        }
        _ => Err(Error::argument("own_kernel", "arguments", "FOLDER, or FOLDER PTX", "others")),
    }
}
