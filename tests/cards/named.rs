//! What commands say of the GPU they take, and `doctor --device`.

use crate::world::World;
use qformer::device::cards::Card;
use qformer::device::gpu::{Driver, Gpu, Kernels, Matmul, Memory};
use qformer::device::launch::{Arg, Launch};
use qformer::{Error, Kind, Result};
use std::ffi::c_void;
use std::path::Path;

/// A GPU that is opened and nothing more.
struct Named {
    bus_id: Option<&'static str>,
    memory: Memory,
}

fn none<T>() -> Result<T> {
    Err(Error::new(Kind::Device, "test"))
}

impl Driver for Named {
    fn name(&self) -> String {
        "NVIDIA GeForce RTX 3090".into()
    }
    fn bus_id(&self) -> Option<String> {
        self.bus_id.map(String::from)
    }
    fn versions(&self) -> Option<String> {
        Some("driver 580.65.06 (CUDA 13.0), cuBLASLt 13.0.2".into())
    }
    fn card(&self) -> Option<&'static Card> {
        qformer::device::cards::titled(&self.name())
    }
    fn memory(&self) -> Option<Memory> {
        Some(self.memory)
    }
    fn blocks(&self) -> usize {
        82
    }
    fn granule(&self) -> usize {
        512
    }
    fn allocate(&self, _: usize) -> Result<Option<*mut c_void>> {
        Ok(None)
    }
    fn free(&self, _: *mut c_void) {}
    fn fresh(&self, _: *mut c_void, _: usize) {}
    fn upload(&self, _: *mut c_void, _: &[u8]) -> Result<()> {
        none()
    }
    fn download(&self, _: *mut c_void, _: &mut [u8]) -> Result<()> {
        none()
    }
    fn copy(&self, _: *mut c_void, _: *mut c_void, _: usize) -> Result<()> {
        none()
    }
    fn zero(&self, _: *mut c_void, _: usize) -> Result<()> {
        none()
    }
    fn launch(&self, _: &Launch, _: &[Arg]) -> Result<()> {
        none()
    }
    fn load(&self, _: Kernels) -> Result<()> {
        none()
    }
    fn matmul(&self, _: &Matmul) -> Result<()> {
        none()
    }
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
    fn side(&self) -> Result<Box<dyn Driver>> {
        none()
    }
    fn mark(&self) -> Result<u64> {
        none()
    }
    fn wait(&self, _: u64) -> Result<()> {
        none()
    }
    fn stamp(&self) -> Result<u64> {
        none()
    }
    fn between(&self, _: u64, _: u64) -> Result<f64> {
        none()
    }
}

#[test]
fn a_gpu_is_named_with_its_place_and_its_free_memory() {
    let memory =
        Memory { usable: 20_000_000_000, free: 21_500_000_000, total: 25_300_000_000, shared: false };
    let gpu = |bus_id, memory| Gpu::of(Box::new(Named { bus_id, memory }));
    let line = gpu(Some("00000000:65:00.0"), memory).greeting().unwrap();
    assert_eq!(line, "NVIDIA GeForce RTX 3090 (00000000:65:00.0), 21.5 GB free of 25.3 GB");
    let shared = gpu(Some("0"), Memory { shared: true, ..memory }).greeting().unwrap();
    assert!(shared.ends_with(", shared with the system"), "{shared}");
    assert_eq!(gpu(None, memory).greeting(), None, "a plan or the host are no places");
    let identity = "NVIDIA GeForce RTX 3090, driver 580.65.06 (CUDA 13.0), cuBLASLt 13.0.2";
    assert_eq!(gpu(None, memory).identity(), identity);
}

/// A device is taken in one place, which says what it is.
#[test]
fn every_command_says_which_gpu_it_takes() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![root.clone()];
    let mut asking = Vec::new();
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let code = text.lines().filter(|l| !l.trim_start().starts_with("//"));
            let opens = |l: &str| {
                ["Device::open(", "Device::auto(", "Gpu::open("].iter().any(|call| l.contains(call))
            };
            let place = path.strip_prefix(&root).unwrap().to_str().unwrap().to_string();
            if code.into_iter().any(opens) && !place.starts_with("device/") {
                asking.push(place);
            }
        }
    }
    asking.sort();
    // doctor says more than the others do, and a rehearsal takes no GPU.
    assert_eq!(asking, ["commands/doctor/device.rs", "train/rehearsal.rs"]);
}

#[test]
fn doctor_without_a_gpu_is_one_clear_error() {
    if cfg!(feature = "cuda") {
        println!("SKIPPED: this build has CUDA kernels, and a GPU may answer");
        return;
    }
    let world = World::new();
    let done = world.run(&["doctor", "--device"]);
    done.refused(6, &["device: cuda: expected a build with CUDA kernels, got one without"]);
    assert!(done.text().contains("build        without CUDA kernels"), "{}", done.text());
    world.run(&["doctor", "--device", "plan"]).refused(2, &["plan, which computes nothing"]);
    world.run(&["doctor"]).refused(2, &["--images"]);
    assert!(world.run(&["doctor", "--device", "cpu"]).good().text().contains("instructions"));
}

/// What is checked of a GPU, on the emulated one.
#[cfg(feature = "host-kernels")]
#[test]
fn doctor_checks_copies_a_kernel_and_matmuls() {
    use crate::world::Done;
    let world = World::new();
    let done = world.run(&["doctor", "--device", "host"]).good();
    for line in [
        "opened       the kernels on the host",
        "copies ",
        "kernel ",
        "in f32, exact",
        "in f16, exact",
        "in bf16, exact",
    ] {
        assert!(done.text().contains(line), "no {line:?} in {}", done.text());
    }
    assert!(done.text().lines().last().unwrap().starts_with("healthy      checked in "), "{}", done.text());
    for (fault, words) in
        [("upload:999@1", "CUDA_ERROR_UNKNOWN"), ("matmul:719@2", "CUDA_ERROR_LAUNCH_FAILED")]
    {
        let done = Done(
            world.command(&["doctor", "--device", "host"]).env("QFORMER_FAULT", fault).output().unwrap(),
        );
        done.refused(6, &[words]);
        assert!(!done.text().contains("healthy"), "{}", done.text());
    }
}

#[test]
fn doctor_checks_a_models_folder_without_pictures() {
    let world = World::new();
    world.run(&["convert", "--random", "tiny", "--out", "model"]).good();
    let done = world.run(&["doctor", "--model", "model"]).good();
    assert!(done.text().starts_with("model: one whole model with a vocabulary of "), "{}", done.text());
    std::fs::write(world.path("model/vocab.txt"), "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n").unwrap();
    assert_eq!(world.run(&["doctor", "--model", "model"]).code(), Some(3));
}
