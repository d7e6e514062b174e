//! What a step launches is counted alike where it is computed and where it is only planned; after the first step no memory
//! is asked for.

use super::{device, micro, trainer};
use qformer::nn::{Gelu, Precision};
use qformer::tensor::Device;
use qformer::train::trainer::Contrast;

#[test]
fn a_plan_counts_what_a_step_does() {
    for (name, vit_gelu) in [("f32", Gelu::Exact), ("bf16", Gelu::Exact), ("bf16", Gelu::Tanh)] {
        let precision = Precision { vit_gelu, ..Precision::named(name).unwrap() };
        let counts = |device: Device| {
            let mut t = trainer(&device, precision, Contrast::MicroBatch);
            // Weights that stay as they are, and the same step twice: the same negatives, so the same sizes.
            let schedule = &mut t.options.schedule;
            (schedule.init_lr, schedule.min_lr, schedule.warmup_lr) = (0.0, 0.0, 0.0);
            let Device::Gpu(gpu) = &device else { panic!("a CPU") };
            gpu.take_counts();
            t.step(&[micro(3)]).unwrap();
            let first = gpu.take_counts();
            t.step = 0;
            t.step(&[micro(3)]).unwrap();
            let second = gpu.take_counts();
            assert_eq!(second.matmuls, first.matmuls);
            assert_eq!(second.launches, first.launches);
            assert_eq!(second.allocations, 0, "{name}: memory was asked for in the second step");
            assert!(second.peak > 0);
            // For the negatives, whose captions' lengths the next launches depend on, and for what a step is reported by.
            assert_eq!(second.waits, 2, "{name}");
            second
        };
        // Negatives are drawn from similarities, which a plan has not: lengths of pairs differ, launches do not.
        let (done, planned) = (counts(device()), counts(Device::open("plan").unwrap()));
        let launches = |c: &qformer::device::gpu::Counts| -> Vec<(String, u64)> {
            c.launches.iter().map(|(name, l)| (name.clone(), l.count)).collect()
        };
        assert_eq!(launches(&done), launches(&planned), "{name}");
        assert_eq!((done.multiplied(), done.copies), (planned.multiplied(), planned.copies), "{name}");
        assert_eq!(done.waits, planned.waits, "{name}");
    }
}

/// Kernels of the benchmark run, whatever they are timed for.
#[test]
fn the_benchmarked_kernels_run() {
    let Device::Gpu(gpu) = device() else { panic!("a CPU") };
    for name in ["f32", "bf16"] {
        let storage = Precision::named(name).unwrap().rest;
        let mut names = Vec::new();
        for mut work in
            qformer::kernels::works(&gpu, storage, qformer::kernels::Sizes::tiny(), false).unwrap()
        {
            assert!(work.seconds().unwrap() >= 0.0 && work.bytes > 0, "{}", work.name);
            names.push(work.name);
        }
        assert!(names.len() > 20, "{names:?}");
    }
}

/// A profile takes the time of everything that is counted, under the same names.
#[test]
fn a_profile_knows_every_kernel_and_matmul() {
    let device = device();
    let Device::Gpu(gpu) = &device else { panic!("a CPU") };
    let mut t = trainer(&device, Precision::BF16, Contrast::MicroBatch);
    gpu.take_counts();
    let seconds = gpu.profile(|| t.step(&[micro(3)]).map(drop)).unwrap();
    let counts = gpu.take_counts();
    let matmuls = counts.matmuls.keys().map(|name| format!("matmul {name}"));
    for name in counts.launches.keys().cloned().chain(matmuls) {
        assert!(seconds.get(&name).is_some_and(|s| *s > 0.0), "no time of {name}");
    }
    let named = |n: &&String| !n.starts_with("matmul ") && !counts.launches.contains_key(*n);
    assert!(seconds.keys().filter(named).all(|n| n == "copy" || n == "zero"));
}
