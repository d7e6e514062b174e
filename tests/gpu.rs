//! The whole step and inference by the kernels: on the host where they are built, or on the GPU that QFORMER_TEST_DEVICE
//! names (say `cuda`). Against the CPU and the recorded cases, bit for bit again, and counted.

#[cfg(feature = "host-kernels")]
#[path = "gpu/arrays.rs"]
mod arrays;
#[cfg(feature = "host-kernels")]
#[path = "gpu/chunks.rs"]
mod chunks;
#[cfg(feature = "host-kernels")]
#[path = "gpu/counted.rs"]
mod counted;
#[cfg(feature = "host-kernels")]
#[path = "gpu/feed.rs"]
mod feed;
#[path = "gpu/memory.rs"]
mod memory;
#[path = "gpu/plan.rs"]
mod plan;
#[path = "gpu/second.rs"]
mod second;
#[cfg(feature = "host-kernels")]
#[path = "gpu/step.rs"]
mod step;
mod tiny;
#[cfg(feature = "host-kernels")]
#[path = "gpu/update.rs"]
mod update;

#[cfg(feature = "host-kernels")]
use qformer::nn::Precision;
#[cfg(feature = "host-kernels")]
use qformer::tensor::{DType, Device};
use qformer::train::schedule::Schedule;
use qformer::train::trainer::{Contrast, Options};
#[cfg(feature = "host-kernels")]
use qformer::train::trainer::{Micro, Trainer};

/// The device of these tests.
#[cfg(feature = "host-kernels")]
fn device() -> Device {
    let name = std::env::var("QFORMER_TEST_DEVICE").unwrap_or_else(|_| "host".into());
    Device::open(&name).unwrap()
}

fn options(contrast: Contrast) -> Options {
    let schedule = Schedule { init_lr: 1e-3, min_lr: 1e-4, warmup_lr: 1e-4, warmup_steps: 2, max_epoch: 10 };
    tiny::options(contrast, schedule)
}

/// A model of the tiny sizes, its weights such that every parameter matters.
#[cfg(feature = "host-kernels")]
fn trainer(device: &Device, precision: Precision, contrast: Contrast) -> Trainer {
    let (model, params) = tiny::model(tiny::config(), false, DType::F32);
    Trainer::new(model, params.to(device, precision).unwrap(), options(contrast)).unwrap()
}

#[cfg(feature = "host-kernels")]
fn micro(seed: u64) -> Micro {
    tiny::micro(&tiny::config(), 3, seed)
}

/// Every trained parameter.
#[cfg(feature = "host-kernels")]
fn values(params: &qformer::nn::Params) -> Vec<(String, Vec<f64>)> {
    params
        .iter()
        .filter(|(_, s, _)| s.trained)
        .map(|(_, s, t)| (s.name.clone(), t.to_f64().unwrap()))
        .collect()
}
