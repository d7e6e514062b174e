//! `qformer doctor --device`: all that is checked of a GPU before it computes, line by line, and that its copies, a kernel and
//! matmuls give the numbers that the CPU gives. Two seconds.

use crate::commands::output::say;
use crate::device;
use crate::device::cpu;
use crate::ops::{self, Options, Weight};
use crate::tensor::{Device, Gpu, Storage, Tensor};
use crate::{Error, Kind, Result};
use std::time::Instant;

/// Rows, columns and terms of the matmuls; sums of so many terms of -1, 0 and 1 are exact in every precision.
const SIDE: usize = 128;
/// Bytes that are copied up and down.
const COPIED: usize = 8 << 20;
/// GELU in f32: a few roundings of numbers up to 4.
const GELU: f32 = 1e-5;

pub fn run(name: &str) -> Result<()> {
    let begun = Instant::now();
    for (what, value) in device::surroundings() {
        line(what, value)?;
    }
    let device = Device::open(name)?;
    device.check_computes("doctor")?;
    let Device::Gpu(gpu) = &device else {
        return line("CPU", format!("instructions: {}", cpu::instructions()));
    };
    line("opened", gpu.greeting().unwrap_or_else(|| gpu.name()))?;
    line("computes as", gpu.identity())?;
    if let Some(memory) = gpu.memory() {
        let gb = |n: u64| n as f64 / 1e9;
        line("memory", format!("a run may use {:.1} GB of {:.1} GB", gb(memory.usable), gb(memory.total)))?;
    }
    copies(gpu)?;
    line("copies", format!("{} MiB up and down, equal", COPIED >> 20))?;
    kernel(&device)?;
    line("kernel", "gelu in f32, as on the CPU")?;
    for storage in [Storage::F32, Storage::F16, Storage::BF16] {
        matmul(&device, storage)?;
        line("matmul", format!("{SIDE} x {SIDE} x {SIDE} in {}, exact", storage.name()))?;
    }
    if let Some(side) = device.side()? {
        side.after(&device)?;
        kernel(&side)?;
        line("stream", "a second one, for the next step's pictures")?;
    }
    line("healthy", format!("checked in {:.1} s", begun.elapsed().as_secs_f64()))
}

fn line(what: &str, value: impl std::fmt::Display) -> Result<()> {
    say!("{what:<12} {value}")
}

fn wrong(what: &str, got: impl std::fmt::Display) -> Error {
    Error::new(Kind::Device, "doctor")
        .about(what)
        .expected("the numbers of the CPU")
        .got(got)
        .fix("the GPU or its driver computes wrongly: update the driver, look at dmesg (NVRM: Xid), try another GPU")
}

fn copies(gpu: &Gpu) -> Result<()> {
    let bytes: Vec<u8> = (0..COPIED as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let back = gpu.upload("doctor", Storage::U8, &bytes)?.read::<u8>()?;
    match bytes.iter().zip(&back).position(|(a, b)| a != b) {
        None => Ok(()),
        Some(at) => Err(wrong("copies", format!("another byte {at}"))),
    }
}

fn kernel(device: &Device) -> Result<()> {
    let x: Vec<f32> = (0..1 << 14).map(|i| (i % 1001) as f32 / 125.0 - 4.0).collect();
    let x = Tensor::new(x, &[1 << 14])?;
    let there = ops::gelu(&x.to(device, Storage::F32)?)?.to_cpu()?.to_f32()?;
    let here = ops::gelu(&x)?.to_f32()?;
    let largest = here.iter().zip(&there).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let finite = there.iter().all(|y| y.is_finite());
    if finite && largest <= GELU { Ok(()) } else { Err(wrong("gelu", format!("off by up to {largest:e}"))) }
}

fn matmul(device: &Device, storage: Storage) -> Result<()> {
    let digits = |step: usize| {
        let values = (0..SIDE * SIDE).map(|i| ((i * step) % 3) as f32 - 1.0).collect::<Vec<f32>>();
        Tensor::new(values, &[SIDE, SIDE])
    };
    let (x, w) = (digits(7)?, digits(11)?);
    let product = |x: &Tensor, w: &Tensor| ops::linear(x, Weight::Dense(w, None), Options::default());
    let there = product(&x.to(device, storage)?, &w.to(device, storage)?)?.to_cpu()?.to_f32()?;
    let here = product(&x, &w)?.to_f32()?;
    match here.iter().zip(&there).position(|(a, b)| a != b) {
        None => Ok(()),
        Some(at) => {
            let got = format!("{} in place of {} at element {at}", there[at], here[at]);
            Err(wrong(&format!("matmul in {}", storage.name()), got))
        }
    }
}
