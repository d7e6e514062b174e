//! `qformer bench kernels`: the kernels of a GPU one by one.

use super::Args;
use crate::commands::output::say;
use crate::nn::Precision;
use crate::tensor::{Device, Gpu};
use crate::{Error, Result, kernels};
use serde::Serialize;

/// Rows of a matmul that fills a GPU; the emulator's is no GPU.
pub(super) fn large(gpu: &Gpu) -> usize {
    if gpu.is_emulated() { 256 } else { 8192 }
}

#[derive(Serialize)]
struct Timed<'a> {
    kernel: &'a str,
    microseconds: f64,
    gb_per_s: f64,
    tflop_per_s: f64,
    /// Of the rate of a copy, or of a large matmul: whichever it is nearer to.
    share_of_limit: f64,
    device: &'a str,
    dtype: &'static str,
}

pub(super) fn run(args: &Args, (device, precision): &(Device, Precision)) -> Result<()> {
    let Device::Gpu(gpu) = device else {
        return Err(Error::argument("bench kernels", "--device", "cuda or host", "cpu"));
    };
    let sizes = match args.config.as_str() {
        "tiny" => kernels::Sizes::tiny(),
        "full" | "base" => kernels::Sizes::full(args.batch),
        other => return Err(Error::argument("bench kernels", "--config", "full or tiny", other)),
    };
    let emulated = gpu.is_emulated();
    let (copy, matmul) = (
        kernels::copy_rate(gpu, if emulated { 1 << 20 } else { 1 << 30 })?,
        kernels::matmul_rate(gpu, precision.rest, large(gpu))?,
    );
    let name = gpu.name();
    if !args.json {
        say!(
            "{name}, {}: copy {:.0} GB/s, matmul {:.1} TFLOP/s",
            precision.name(),
            copy / 1e9,
            matmul / 1e12
        )?;
    }
    for mut work in kernels::works(gpu, precision.rest, sizes, !emulated)? {
        work.seconds()?;
        let mut times = (0..args.steps.max(1)).map(|_| work.seconds()).collect::<Result<Vec<f64>>>()?;
        times.sort_by(f64::total_cmp);
        let seconds = times[times.len() / 2];
        let (bytes, flops) = (work.bytes as f64 / seconds, work.flops as f64 / seconds);
        let timed = Timed {
            kernel: &work.name,
            microseconds: seconds * 1e6,
            gb_per_s: bytes / 1e9,
            tflop_per_s: flops / 1e12,
            share_of_limit: (bytes / copy).max(flops / matmul),
            device: &name,
            dtype: precision.name(),
        };
        if args.json {
            super::json(&timed)?;
        } else {
            say!(
                "{:72} {:10.1} us {:8.0} GB/s {:8.1} TFLOP/s {:5.0} % of {}",
                timed.kernel,
                timed.microseconds,
                timed.gb_per_s,
                timed.tflop_per_s,
                100.0 * timed.share_of_limit,
                if bytes / copy > flops / matmul { "copy" } else { "matmul" }
            )?;
        }
    }
    Ok(())
}
