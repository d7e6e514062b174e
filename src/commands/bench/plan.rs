//! `qformer bench step --device plan`: what a training step launches, moves and holds on a GPU, counted without one, and the
//! time that the roofline of an H200 predicts for each kernel.

use super::Args;
use crate::device::gpu::{Counts, Launches};
use crate::model::Config;
use crate::nn::Precision;
use crate::tensor::{Device, Gpu, Storage};
use crate::{Error, Result};
use serde::Serialize;

/// Measured on an H200: bytes per second of a copy, and operations per second of a product of 8192 in bf16. In f32 the
/// maker's figure.
const COPY: f64 = 4.3e12;
const PRODUCT_16: f64 = 790e12;
const PRODUCT_32: f64 = 67e12;

#[derive(Serialize)]
struct Line {
    name: String,
    launches: u64,
    bytes: u64,
    flops: u64,
    microseconds: f64,
}

#[derive(Serialize)]
struct Plan {
    config: String,
    batch: usize,
    dtype: &'static str,
    launches: u64,
    products: u64,
    copies: u64,
    bytes: u64,
    flops: u64,
    peak_bytes: u64,
    /// Times the GPU was asked for memory in the first step, and in the second.
    allocations: [u64; 2],
    microseconds: f64,
    samples_per_s: f64,
    kernels: Vec<Line>,
}

pub(super) fn run(args: &Args, config: Config, gpu: &Gpu, precision: Precision) -> Result<()> {
    if args.what != "step" {
        return Err(Error::argument("bench", "--device plan", "step", &args.what));
    }
    let (mut trainer, batch) = super::trainer(args, config, &(Device::Gpu(gpu.clone()), precision))?;
    trainer.step_ahead(&batch, &batch)?;
    let first = gpu.take_counts();
    trainer.step_ahead(&batch, &batch)?;
    let plan = plan(args, precision, &first, &gpu.take_counts());
    if args.json {
        return super::json(&plan);
    }
    print(&plan);
    Ok(())
}

fn plan(args: &Args, precision: Precision, first: &Counts, counts: &Counts) -> Plan {
    let rate = if precision.rest == Storage::F32 { PRODUCT_32 } else { PRODUCT_16 };
    let line = |(name, l): (&String, &Launches)| Line {
        name: name.clone(),
        launches: l.count,
        bytes: l.bytes,
        flops: l.flops,
        microseconds: 1e6 * (l.bytes as f64 / COPY).max(l.flops as f64 / rate),
    };
    let mut kernels: Vec<Line> = counts.launches.iter().map(line).collect();
    kernels.extend(counts.products.iter().map(|(name, l)| line((&format!("product {name}"), l))));
    kernels.sort_by(|a, b| b.microseconds.total_cmp(&a.microseconds).then(a.name.cmp(&b.name)));
    let microseconds: f64 = kernels.iter().map(|k| k.microseconds).sum();
    Plan {
        config: args.config.clone(),
        batch: args.batch,
        dtype: precision.name(),
        launches: counts.launched(),
        products: counts.multiplied(),
        copies: counts.copies,
        bytes: counts.moved(),
        flops: counts.flops,
        peak_bytes: first.peak.max(counts.peak),
        allocations: [first.allocations, counts.allocations],
        microseconds,
        samples_per_s: args.batch as f64 / microseconds * 1e6,
        kernels,
    }
}

fn print(p: &Plan) {
    println!("step {}, batch {}, {}: nothing was computed", p.config, p.batch, p.dtype);
    println!("  {:>9} {:>9} {:>9} {:>10}", "launches", "MB", "GFLOP", "us (H200)");
    for k in &p.kernels {
        println!(
            "  {:9} {:9.1} {:9.1} {:10.1}  {}",
            k.launches,
            k.bytes as f64 / 1e6,
            k.flops as f64 / 1e9,
            k.microseconds,
            k.name
        );
    }
    println!(
        "{} launches, {} products, {} copies; {:.2} GB moved, {:.1} TFLOP; {:.2} GB at the peak; {} allocations in the first step, {} in the second",
        p.launches,
        p.products,
        p.copies,
        p.bytes as f64 / 1e9,
        p.flops as f64 / 1e12,
        p.peak_bytes as f64 / 1e9,
        p.allocations[0],
        p.allocations[1]
    );
    println!("roofline of an H200: {:.1} ms, {:.0} pictures/s", p.microseconds / 1e3, p.samples_per_s);
}
