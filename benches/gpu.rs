//! The kernels of a GPU on BLIP-2's shapes, timed by events, the L2 cache overwritten between runs. Criterion keeps the
//! times; each line before its report says GB/s or TFLOP/s and the share of what a copy or a large matmul reaches.
//!
//! `cargo bench --features cuda --bench gpu`; QFORMER_BENCH_DEVICE names the device (cuda, or host with the tiny sizes),
//! QFORMER_BENCH_DTYPE f32, f16 or bf16 (default), QFORMER_BENCH_BATCH the batch (128).

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use qformer::kernels::{self, Sizes};
use qformer::nn::Precision;
use qformer::tensor::Device;
use std::time::Duration;

fn setting(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.into())
}

fn bench(c: &mut Criterion) {
    let default = if cfg!(feature = "cuda") { "cuda" } else { "host" };
    let device = match Device::open(&setting("QFORMER_BENCH_DEVICE", default)) {
        Ok(Device::Gpu(gpu)) => gpu,
        Ok(Device::Cpu) => return println!("SKIPPED: the CPU has no kernels"),
        Err(e) => return println!("SKIPPED: {e}"),
    };
    let precision = Precision::named(&setting("QFORMER_BENCH_DTYPE", "bf16")).expect("f32, f16 or bf16");
    let emulated = device.is_emulated();
    let batch = setting("QFORMER_BENCH_BATCH", "128").parse().expect("a number of pictures");
    let sizes = if emulated { Sizes::tiny() } else { Sizes::full(batch) };
    let copy = kernels::copy_rate(&device, if emulated { 1 << 20 } else { 1 << 30 }).expect("a copy");
    let matmul = kernels::matmul_rate(&device, precision.rest, if emulated { 128 } else { 8192 });
    let matmul = matmul.expect("a matmul");
    println!("{}: copy {:.0} GB/s, matmul {:.1} TFLOP/s", device.name(), copy / 1e9, matmul / 1e12);
    let mut group = c.benchmark_group("gpu");
    for mut work in kernels::works(&device, precision.rest, sizes, !emulated).expect("memory for the cases") {
        let (bytes, flops, name) = (work.bytes as f64, work.flops as f64, work.name.clone());
        group.throughput(Throughput::Bytes(work.bytes as u64));
        let mut best = f64::INFINITY;
        group.bench_function(&name, |b| {
            b.iter_custom(|n| {
                let mut sum = 0.0;
                for _ in 0..n {
                    let seconds = work.seconds().expect("a run");
                    best = best.min(seconds);
                    sum += seconds;
                }
                Duration::from_secs_f64(sum)
            });
        });
        let (b, f) = (bytes / best, flops / best);
        let share = 100.0 * (b / copy).max(f / matmul);
        let of = if b / copy > f / matmul { "copy" } else { "matmul" };
        println!("{name}: {:.0} GB/s, {:.1} TFLOP/s, {share:.0} % of {of}", b / 1e9, f / 1e12);
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1)).without_plots();
    targets = bench
}
criterion_main!(benches);
