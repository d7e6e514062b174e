//! Builds what stands between us and libjpeg, and the kernels in `kernels/*.cu`, for as many of two targets as there are features switched on:
//!
//! - `host-kernels`: as C++ with the system's compiler, for the emulator in `kernels/host` (see `src/device/emulator.rs`);
//!   `host-check` adds the memory checker.
//! - `cuda`: with nvcc to one cubin per architecture and one PTX text per file, in parallel, warnings as errors.
//!   The table of registers, shared memory and spills is left where `tests/registers.rs` finds it.
//!
//! Without these features there is `src/vision/jpeg.c` alone, for any C compiler.

#[path = "build/nvcc.rs"]
mod nvcc;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// The architectures with their own machine code; PTX of the first one serves any other.
const ARCHITECTURES: [&str; 5] = ["80", "89", "90a", "100", "120"];
/// Of these, where a spill to local memory is allowed; `tests/registers.rs` lists each with its reason.
const MAY_SPILL: [&str; 2] = ["100", "120"];

type Outcome<T> = Result<T, String>;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed=kernels");
    println!("cargo::rerun-if-changed=src/vision/jpeg.c");
    println!("cargo::rerun-if-changed=src/group/mpi.c");
    println!("cargo::rerun-if-changed=src/vision/jpeg_lanes.h");
    if let Err(message) = build() {
        for line in message.lines() {
            println!("cargo::error={line}");
        }
    }
}

fn build() -> Outcome<()> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    build_jpeg()?;
    if env::var_os("CARGO_FEATURE_HOST_KERNELS").is_some() {
        build_host()?;
    }
    if env::var_os("CARGO_FEATURE_MPI").is_some() {
        build_mpi()?;
    }
    if env::var_os("CARGO_FEATURE_CUDA").is_some() {
        build_cuda(&out)?;
    }
    Ok(())
}

/// `src/group/mpi.c` with the compiler of the system's MPI, `MPICC` or mpicc, which also says what to link.
fn build_mpi() -> Outcome<()> {
    println!("cargo::rerun-if-env-changed=MPICC");
    let mpicc = env::var("MPICC").unwrap_or_else(|_| "mpicc".into());
    let asked = |flag: &str| Command::new(&mpicc).arg(flag).output().ok().filter(|o| o.status.success());
    // OpenMPI's, else MPICH's.
    let said = asked("--showme:link").or_else(|| asked("-link_info")).ok_or_else(|| {
        format!("the feature mpi needs {mpicc} (Debian: apt-get install libopenmpi-dev openmpi-bin), or MPICC=its path")
    })?;
    let mut shim = cc::Build::new();
    shim.compiler(&mpicc).file("src/group/mpi.c").warnings_into_errors(true).opt_level(2);
    shim.try_compile("qformer_mpi").map_err(|e| format!("src/group/mpi.c: {e}"))?;
    for flag in String::from_utf8_lossy(&said.stdout).split_whitespace() {
        if let Some(folder) = flag.strip_prefix("-L") {
            println!("cargo::rustc-link-search=native={folder}");
        } else if let Some(library) = flag.strip_prefix("-l") {
            println!("cargo::rustc-link-lib={library}");
        }
    }
    Ok(())
}

/// `src/vision/jpeg.c` with the headers of the libjpeg that mozjpeg-sys built.
fn build_jpeg() -> Outcome<()> {
    let headers = env::var_os("DEP_JPEG_INCLUDE").ok_or("mozjpeg-sys does not say where its headers are")?;
    let mut shim = cc::Build::new();
    // Coefficients of a damaged file overflow: to some number, not to anything.
    shim.flag_if_supported("-fwrapv")
        .file("src/vision/jpeg.c")
        .includes(env::split_paths(&headers))
        .opt_level(3);
    shim.try_compile("qformer_jpeg").map_err(|e| format!("JPEGs need a C compiler: {e}"))
}

/// The files of `folder` with one of these extensions, sorted by name.
fn sources(folder: &str, extension: &str) -> Outcome<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).map_err(|e| format!("cannot list {folder}: {e}"))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
    files.retain(|p| p.extension().is_some_and(|e| e == extension));
    files.sort();
    Ok(files)
}

// ---- the host ----------------------------------------------------------------------------------------------

fn build_host() -> Outcome<()> {
    let check = env::var_os("CARGO_FEATURE_HOST_CHECK").is_some();
    let base = || {
        let mut b = cc::Build::new();
        b.cpp(true)
            .std("c++17")
            .opt_level(2)
            .debug(true)
            .pic(true)
            .warnings_into_errors(true)
            .include("kernels");
        for flag in ["-fno-strict-aliasing", "-ffp-contract=off", "-fstack-clash-protection"] {
            b.flag(flag);
        }
        for warning in ["-Wall", "-Wextra", "-Wno-psabi", "-Wno-unknown-pragmas"] {
            b.flag(warning);
        }
        b
    };
    let mut runtime = base();
    for file in sources("kernels/host", "cpp")? {
        let is_checker = file.file_stem().is_some_and(|s| s == "check");
        if check || !is_checker {
            runtime.file(file);
        }
    }
    if check {
        runtime.define("QFORMER_HOST_CHECK", None);
    }
    let mut kernels = base();
    kernels.flag("-x").flag("c++");
    if check {
        // the compiler's hooks; host/check.cpp defines what they call
        kernels.flag("-fsanitize=thread");
    }
    kernels.files(sources("kernels", "cu")?).files(sources("kernels/host", "cu")?);
    let failed = |e: cc::Error| format!("feature host-kernels needs a C++17 compiler (g++ 12 or newer): {e}");
    let objects = [
        runtime.try_compile_intermediates().map_err(failed)?,
        kernels.try_compile_intermediates().map_err(failed)?,
    ];
    // Kernels register themselves and nothing refers to them by name: whole-archive keeps the linker from dropping them.
    base()
        .objects(objects.iter().flatten())
        .link_lib_modifier("+whole-archive")
        .try_compile("qformer_host_kernels")
        .map_err(failed)?;
    // What kernels loaded later call (see `Gpu::load`) is found in the program.
    println!("cargo::rustc-link-arg-examples=-rdynamic");
    println!("cargo::rustc-link-arg-tests=-rdynamic");
    Ok(())
}

// ---- CUDA --------------------------------------------------------------------------------------------------

/// nvcc, its version in words and in numbers.
struct Compiler {
    path: PathBuf,
    words: String,
    version: (u32, u32),
}

fn find_nvcc() -> Outcome<Compiler> {
    for name in nvcc::VARIABLES {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let variables = nvcc::VARIABLES.into_iter().filter_map(|name| Some((name, env::var_os(name)?)));
    let machine = nvcc::Machine {
        variables: variables.collect(),
        root: PathBuf::from("/"),
        site_packages: python_site_packages(),
    };
    let path = machine.find()?;
    let words = version_of(&path)?;
    let version = nvcc::version(&words);
    if let Some(warning) = nvcc::check(&path, version)? {
        println!("cargo::warning={warning}");
    }
    Ok(Compiler { path, words, version: version.unwrap_or_default() })
}

fn python_site_packages() -> Vec<PathBuf> {
    let script =
        "import site, sysconfig; print(sysconfig.get_path('purelib')); print(site.getusersitepackages())";
    let Ok(out) = Command::new("python3").args(["-c", script]).output() else { return Vec::new() };
    String::from_utf8_lossy(&out.stdout).lines().map(PathBuf::from).collect()
}

/// One run of nvcc: a kernel file for one architecture, to machine code or (`"ptx"`) to text.
struct Job {
    source: PathBuf,
    architecture: &'static str,
    kind: &'static str,
}

impl Job {
    fn stem(&self) -> String {
        self.source.file_stem().unwrap_or_default().to_string_lossy().into_owned()
    }

    fn output(&self, out: &Path) -> PathBuf {
        out.join(format!("{}.sm_{}.{}", self.stem(), self.architecture, self.kind))
    }

    /// Runs nvcc; gives what ptxas printed.
    fn run(&self, nvcc: &Path, out: &Path) -> Outcome<String> {
        let a = self.architecture;
        let target = if self.kind == "ptx" {
            format!("arch=compute_{a},code=compute_{a}")
        } else {
            format!("arch=compute_{a},code=sm_{a}")
        };
        let mut command = Command::new(nvcc);
        command.args(["-std=c++17", "-O3", "-lineinfo", "-Werror", "all-warnings", "-gencode", &target]);
        command.arg(if self.kind == "ptx" { "-ptx" } else { "-cubin" });
        if self.kind == "cubin" {
            command.args(["-Xptxas", if MAY_SPILL.contains(&a) { "-v" } else { "-v,-warn-spills" }]);
        }
        command.arg("-o").arg(self.output(out)).arg(&self.source);
        let done = command.output().map_err(|e| format!("cannot run {}: {e}", nvcc.display()))?;
        let text =
            format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        let what = format!("{} for sm_{a}", self.source.display());
        if done.status.success() {
            return Ok(text);
        }
        let hint = nvcc::hint(&text).map(|h| format!("\n{h}")).unwrap_or_default();
        Err(format!("nvcc could not compile {what}:\n{text}{hint}"))
    }
}

/// What nvcc says of itself in its last line but one, such as `Cuda compilation tools, release 13.0, V13.0.88`.
fn version_of(nvcc: &Path) -> Outcome<String> {
    let failed = |e: &dyn std::fmt::Display| format!("cannot run {}: {e}", nvcc.display());
    let done = Command::new(nvcc).arg("--version").output().map_err(|e| failed(&e))?;
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    text.lines().find(|l| l.contains("release")).map(str::to_string).ok_or_else(|| failed(&text))
}

fn build_cuda(out: &Path) -> Outcome<()> {
    let compiler = find_nvcc()?;
    let (major, minor) = compiler.version;
    println!("cargo::rustc-env=QFORMER_CUDA_VERSION={}", major * 1000 + minor * 10);
    let mut jobs = Vec::new();
    for source in sources("kernels", "cu")? {
        for architecture in ARCHITECTURES {
            jobs.push(Job { source: source.clone(), architecture, kind: "cubin" });
        }
        jobs.push(Job { source, architecture: ARCHITECTURES[0], kind: "ptx" });
    }
    let printed = run_all(&jobs, &compiler.path, out)?;
    let mut table = Vec::new();
    for (job, text) in jobs.iter().zip(&printed) {
        if job.kind == "cubin" {
            table.extend(resources(text, job.architecture));
        }
    }
    table.sort();
    table.insert(0, compiler.words);
    let path = out.join("resources.txt");
    fs::write(&path, table.join("\n") + "\n").map_err(|e| format!("cannot write {}: {e}", path.display()))?;
    println!("cargo::rustc-env=QFORMER_KERNEL_RESOURCES={}", path.display());
    embed(&jobs, out)
}

/// `IMAGES`, which `src/device/cuda` includes: what was compiled for every architecture; PTX ends with a zero.
fn embed(jobs: &[Job], out: &Path) -> Outcome<()> {
    let mut text = String::from("static IMAGES: &[(&str, &[u8])] = &[\n");
    for job in jobs {
        let path = job.output(out);
        let name = if job.kind == "ptx" { "ptx" } else { job.architecture };
        if job.kind == "ptx" {
            let mut ptx = fs::read(&path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
            ptx.retain(|b| *b != 0);
            ptx.push(0);
            fs::write(&path, ptx).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
        }
        text += &format!("    ({name:?}, include_bytes!({path:?})),\n");
    }
    let path = out.join("kernel_images.rs");
    fs::write(&path, text + "];\n").map_err(|e| format!("cannot write {}: {e}", path.display()))
}

/// Runs the jobs on as many threads as cargo gives this build; the first failure is reported.
fn run_all(jobs: &[Job], nvcc: &Path, out: &Path) -> Outcome<Vec<String>> {
    let threads = env::var("NUM_JOBS")
        .ok()
        .and_then(|n| n.parse::<usize>().ok())
        .unwrap_or(1)
        .clamp(1, jobs.len().max(1));
    let next = std::sync::atomic::AtomicUsize::new(0);
    let mut results: Vec<(usize, Outcome<String>)> = Vec::new();
    std::thread::scope(|scope| {
        let work = || {
            let mut mine = Vec::new();
            loop {
                let i = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let Some(job) = jobs.get(i) else { return mine };
                mine.push((i, job.run(nvcc, out)));
            }
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        results.extend(workers.into_iter().flat_map(|w| w.join().unwrap_or_default()));
    });
    results.sort_by_key(|(i, _)| *i);
    results.into_iter().map(|(_, r)| r).collect()
}

/// Lines `kernel sm_80 registers R shared S spilled B` out of what ptxas prints with -v.
fn resources(text: &str, architecture: &str) -> Vec<String> {
    let number_before = |line: &str, unit: &str| -> u32 {
        let head = line.split(unit).next().unwrap_or_default().trim_end();
        if line.contains(unit) {
            head.rsplit([' ', ',']).next().and_then(|n| n.parse().ok()).unwrap_or(0)
        } else {
            0
        }
    };
    let mut lines = Vec::new();
    let (mut kernel, mut spilled) = (String::new(), 0);
    for line in text.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            kernel = rest.split('\'').next().unwrap_or_default().to_string();
        } else if line.contains("bytes spill stores") {
            spilled = number_before(line, " bytes spill stores");
        } else if line.contains("Used ") && !kernel.is_empty() {
            let registers = number_before(line, " registers");
            let shared = number_before(line, " bytes smem");
            lines.push(format!(
                "{kernel} sm_{architecture} registers {registers} shared {shared} spilled {spilled}"
            ));
            kernel.clear();
        }
    }
    lines
}
