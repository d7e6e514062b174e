//! `qformer bench step|caption --device plan`: what a training step or captioning launches, moves and holds on a GPU, counted without one, and the
//! time that the roofline of a GPU predicts for each kernel: of an H200, or of the one that `plan:CARD` names. With `--profile` on
//! a real one, beside the time it took.

use super::Args;
use super::step::Steps;
use crate::Result;
use crate::commands::output::say;
use crate::device::cards::{self, Card};
use crate::device::gpu::{Counts, Launches};
use crate::model::Config;
use crate::nn::Precision;
use crate::tensor::{Device, Gpu};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Instant;

#[derive(Serialize)]
struct Line {
    name: String,
    launches: u64,
    bytes: u64,
    flops: u64,
    /// By the roofline.
    microseconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    measured: Option<f64>,
}

#[derive(Serialize)]
struct Plan {
    what: String,
    /// Whose roofline it is, and where its figures stand.
    card: &'static str,
    figures: &'static str,
    config: String,
    batch: usize,
    dtype: &'static str,
    vit_gelu: &'static str,
    launches: u64,
    products: u64,
    copies: u64,
    /// Times the host waits for the device.
    waits: u64,
    bytes: u64,
    flops: u64,
    peak_bytes: u64,
    /// Times the GPU was asked for memory in the first run, and in the second.
    allocations: [u64; 2],
    microseconds: f64,
    samples_per_s: f64,
    /// What this machine's CPU took to ask for all of it, the driver's own part left out: no GPU is faster than that.
    #[serde(skip_serializing_if = "Option::is_none")]
    asking_microseconds: Option<f64>,
    kernels: Vec<Line>,
}

pub(super) fn run(args: &Args, config: Config, gpu: &Gpu, precision: Precision) -> Result<()> {
    let place = (Device::Gpu(gpu.clone()), precision);
    if args.what == "caption" {
        let mut run = super::captioning(args, config, &place)?;
        return twice(args, gpu, precision, &mut run);
    }
    let mut steps = Steps::new(args, config, &place)?;
    twice(args, gpu, precision, &mut || steps.run())
}

/// The second run is what all later ones are like.
fn twice(args: &Args, gpu: &Gpu, precision: Precision, run: &mut dyn FnMut() -> Result<()>) -> Result<()> {
    run()?;
    let first = gpu.take_counts();
    let start = Instant::now();
    run()?;
    let asking = start.elapsed().as_secs_f64();
    let mut plan = plan(args, card(gpu), precision, [&first, &gpu.take_counts()], &BTreeMap::new());
    plan.asking_microseconds = Some(1e6 * asking);
    show(args, &plan)
}

/// One more run, kernel by kernel.
pub(super) fn profile(
    args: &Args,
    gpu: &Gpu,
    precision: Precision,
    run: impl FnOnce() -> Result<()>,
) -> Result<()> {
    gpu.take_counts();
    let seconds = gpu.profile(run)?;
    let counts = gpu.take_counts();
    show(args, &plan(args, card(gpu), precision, [&counts, &counts], &seconds))
}

/// Whose roofline it is: this GPU's, if its figures are known, else that of an H200.
fn card(gpu: &Gpu) -> &'static Card {
    gpu.card().unwrap_or(&cards::H200)
}

fn show(args: &Args, plan: &Plan) -> Result<()> {
    if args.json {
        return super::json(plan);
    }
    print(plan)
}

fn plan(
    args: &Args,
    card: &'static Card,
    precision: Precision,
    [first, counts]: [&Counts; 2],
    seconds: &BTreeMap<String, f64>,
) -> Plan {
    let (copy, rate) = (card.copy_rate(), card.matmul_rate(precision.rest));
    let line = |name: String, l: &Launches| Line {
        measured: seconds.get(&name).map(|s| 1e6 * s),
        name,
        launches: l.count,
        bytes: l.bytes,
        flops: l.flops,
        microseconds: 1e6 * (l.bytes as f64 / copy).max(l.flops as f64 / rate),
    };
    let mut kernels: Vec<Line> = counts.launches.iter().map(|(name, l)| line(name.clone(), l)).collect();
    kernels.extend(counts.matmuls.iter().map(|(name, l)| line(format!("matmul {name}"), l)));
    let weight = |l: &Line| l.measured.unwrap_or(l.microseconds);
    kernels.sort_by(|a, b| weight(b).total_cmp(&weight(a)).then(a.name.cmp(&b.name)));
    let microseconds: f64 = kernels.iter().map(|k| k.microseconds).sum();
    Plan {
        what: args.what.clone(),
        card: card.title.strip_prefix("NVIDIA ").unwrap_or(card.title),
        figures: card.source,
        config: args.config.clone(),
        batch: args.batch,
        dtype: precision.name(),
        vit_gelu: precision.vit_gelu.name(),
        launches: counts.launched(),
        products: counts.multiplied(),
        copies: counts.copies,
        waits: counts.waits,
        bytes: counts.moved(),
        flops: counts.flops,
        peak_bytes: first.peak.max(counts.peak),
        allocations: [first.allocations, counts.allocations],
        microseconds,
        samples_per_s: args.batch as f64 / microseconds * 1e6,
        asking_microseconds: None,
        kernels,
    }
}

fn print(p: &Plan) -> Result<()> {
    let measured: f64 = p.kernels.iter().filter_map(|k| k.measured).sum();
    let what = if measured > 0.0 { "kernel by kernel" } else { "nothing was computed" };
    let gelu = p.vit_gelu;
    say!("{} {}, batch {}, {}, GELU {gelu}: {what}", p.what, p.config, p.batch, p.dtype)?;
    say!("  {:>9} {:>9} {:>9} {:>10} {:>10}", "launches", "MB", "GFLOP", "us", "measured")?;
    for k in &p.kernels {
        say!(
            "  {:9} {:9.1} {:9.1} {:10.1} {:>10}  {}",
            k.launches,
            k.bytes as f64 / 1e6,
            k.flops as f64 / 1e9,
            k.microseconds,
            k.measured.map_or_else(String::new, |us| format!("{us:.1}")),
            k.name
        )?;
    }
    if measured > 0.0 {
        say!("{:.1} ms in kernels and matmuls", measured / 1e3)?;
    }
    say!(
        "{} launches, {} matmuls, {} copies, {} waits; {:.2} GB moved, {:.1} TFLOP; {:.2} GB at the peak; {} allocations in the first run, {} in the second",
        p.launches,
        p.products,
        p.copies,
        p.waits,
        p.bytes as f64 / 1e9,
        p.flops as f64 / 1e12,
        p.peak_bytes as f64 / 1e9,
        p.allocations[0],
        p.allocations[1]
    )?;
    let (card, ms) = (p.card, p.microseconds / 1e3);
    let a = if card.starts_with("GeForce") { "a" } else { "an" };
    say!("roofline of {a} {card}: {ms:.1} ms, {:.0} pictures/s; figures: {}", p.samples_per_s, p.figures)?;
    match p.asking_microseconds {
        Some(us) => say!("asking for it: {:.1} ms of this CPU, without the driver", us / 1e3),
        None => Ok(()),
    }
}
