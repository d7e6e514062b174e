//! What kernels ask of a GPU: no more shared memory than GPUs of consumers have.

use std::collections::BTreeMap;
use std::path::Path;

/// Of a block on compute capabilities 8.6, 8.9 and 12.0 (CUDA C++ Programming Guide, technical specifications): 99 KB.
const CONSUMERS: u32 = 99 << 10;

/// Kernels that only compute capability 9.0 is given: they stand behind `has_warp_groups`.
fn only_hopper(kernel: &str) -> bool {
    kernel.starts_with("attention_whole")
}

/// The most static shared memory of each kernel, of all architectures, as stored.
fn fixed() -> BTreeMap<String, u32> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels/registers.txt");
    let mut most = BTreeMap::new();
    for line in std::fs::read_to_string(path).unwrap().lines().skip(1) {
        let words: Vec<&str> = line.split(' ').collect();
        let shared: u32 = words[5].parse().unwrap();
        let known = most.entry(words[0].to_string()).or_insert(0);
        *known = shared.max(*known);
    }
    assert!(most.len() > 100, "{} kernels", most.len());
    most
}

#[test]
fn shared_memory_fits_every_gpu() {
    let fixed = fixed();
    let mut largest = (0, String::new());
    for kernel in qformer::device::emulator::signatures().iter().filter(|s| !s.name.starts_with("planted_")) {
        let all = kernel.shared + fixed.get(&kernel.name).copied().unwrap_or(0);
        assert!(all <= CONSUMERS || only_hopper(&kernel.name), "{}: {all} bytes", kernel.name);
        if !only_hopper(&kernel.name) {
            largest = largest.max((all, kernel.name.clone()));
        }
    }
    println!("the largest: {largest:?}");
    assert!(largest.0 > 48 << 10, "{largest:?}: dynamic shared memory was not looked at");
}

/// Kernels that may ask for more are launched in one place, which asks for a GPU that has it.
#[test]
fn kernels_of_hopper_stand_behind_its_gate() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops");
    let mut launching = Vec::new();
    let mut folders = vec![source];
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            if text.contains("attention_whole") {
                assert!(text.contains("has_warp_groups()"), "{}", path.display());
                launching.push(path);
            }
        }
    }
    assert_eq!(launching.len(), 1, "{launching:?}");
}
