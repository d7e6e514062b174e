//! The rules of the house that a compiler does not hold kernels to.

use qformer::device::emulator::signatures;
use std::path::{Path, PathBuf};

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
    let names: Vec<&str> = signatures().iter().map(|s| s.name.as_str()).collect();
    assert!(names.windows(2).all(|w| w[0] < w[1]));
    for types in ["f32", "f16", "bf16"] {
        for kernel in ["layer_norm_fwd", "gelu_bwd", "cross_entropy", "embedding_bwd", "adamw", "top_k"] {
            let name = format!("{kernel}_{types}");
            assert!(names.binary_search(&name.as_str()).is_ok(), "{name}");
        }
    }
}

/// The strings of the sources that launch kernels, in pieces: what stands between braces is whatever a program puts there.
fn launched() -> Vec<Vec<String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![root.join("ops"), root.join("device/gpu")];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).expect("sources").flatten().map(|e| e.path()) {
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("text");
            let code =
                text.lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
            for literal in code.split('"').skip(1).step_by(2) {
                let pieces = literal.split('{').enumerate().map(|(i, piece)| match piece.split_once('}') {
                    Some((_, rest)) if i > 0 => rest,
                    _ => piece,
                });
                found.push(pieces.map(String::from).collect());
            }
        }
    }
    found
}

/// Whether a name is these pieces with something between them; a name that nothing is said of is none.
fn is_made_of(name: &str, pieces: &[String]) -> bool {
    let [first, rest @ ..] = pieces else { return false };
    if first.len() < 4 {
        return false;
    }
    let Some(mut left) = name.strip_prefix(first.as_str()) else { return false };
    for (i, piece) in rest.iter().enumerate() {
        let at = if i + 1 == rest.len() {
            left.ends_with(piece.as_str()).then(|| left.len() - piece.len())
        } else {
            left.find(piece.as_str())
        };
        let Some(at) = at else { return false };
        left = &left[at + piece.len()..];
    }
    left.is_empty()
}

#[test]
fn every_kernel_is_launched() {
    let launched = launched();
    let own = |name: &&str| !name.starts_with("planted_") && !name.starts_with("wrapper_");
    let never: Vec<&str> = (signatures().iter().map(|s| s.name.as_str()))
        .filter(own)
        .filter(|name| !launched.iter().any(|pieces| is_made_of(name, pieces)))
        .collect();
    assert!(never.is_empty(), "kernels that nothing in src launches: {never:?}");
    let pieces = |literal: &[&str]| literal.iter().map(|p| p.to_string()).collect::<Vec<_>>();
    assert!(
        is_made_of("gelu_fwd_f32", &pieces(&["gelu_", "_", ""]))
            && !is_made_of("gelu_fwd_f32", &pieces(&["add_", ""]))
    );
}
