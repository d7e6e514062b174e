//! The rules of the house that a compiler does not hold kernels to.

use crate::harness::needs_emulator;
use qformer::device::emulator::signatures;
use std::path::{Path, PathBuf};

const ABOUT_SOURCES: &str = "it is about the kernels' sources and the emulator's list of them";

/// The kernels' files, with their text.
fn sources() -> Vec<(PathBuf, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let entries = std::fs::read_dir(folder).expect("kernels/").flatten().map(|e| e.path());
    let mut files: Vec<PathBuf> = entries.filter(|p| p.extension().is_some()).collect();
    files.sort();
    files.into_iter().map(|p| (p.clone(), std::fs::read_to_string(p).expect("text"))).collect()
}

#[test]
fn only_dev_knows_gpu_and_host() {
    if needs_emulator(ABOUT_SOURCES) {
        return;
    }
    for (path, text) in sources().iter().filter(|(p, _)| !p.ends_with("dev.cuh")) {
        for banned in ["asm", "__CUDA", "__nv_", "__half", "cooperative", "atomicAdd", "extern", "goto"] {
            assert!(!text.contains(banned), "{}: {banned}", path.display());
        }
        for include in text.lines().filter(|l| l.starts_with("#include")) {
            let own = include.ends_with(".cuh\"") && !include.contains('/');
            assert!(own, "{}: {include}", path.display());
        }
    }
}

#[test]
fn every_file_states_its_contract() {
    if needs_emulator(ABOUT_SOURCES) {
        return;
    }
    for (path, text) in sources().iter().filter(|(p, _)| p.extension().is_some_and(|e| e == "cu")) {
        let header: Vec<&str> = text.lines().take_while(|l| l.starts_with("//")).collect();
        let name = path.file_name().expect("a name").to_string_lossy();
        assert!(header[0].starts_with(&format!("// {name}: ")), "{}", path.display());
        for part in ["math ", "launch ", "requires ", "numerics ", "aliasing "] {
            let stated = header.iter().any(|l| l.starts_with(&format!("// {part}")));
            assert!(stated, "{}: no line '{part}'", path.display());
        }
        assert!(text.lines().count() <= 450, "{}", path.display());
    }
}

/// The linker keeps every kernel, and no two have a name in common.
#[test]
fn every_kernel_is_linked() {
    if needs_emulator(ABOUT_SOURCES) {
        return;
    }
    let names: Vec<&str> = signatures().iter().map(|s| s.name.as_str()).collect();
    assert!(names.windows(2).all(|w| w[0] < w[1]));
    for types in ["f32", "f16", "bf16"] {
        for kernel in ["layer_norm_fwd", "gelu_bwd", "cross_entropy", "embedding_bwd", "adamw", "top_k"] {
            let name = format!("{kernel}_{types}");
            assert!(names.binary_search(&name.as_str()).is_ok(), "{name}");
        }
    }
}
