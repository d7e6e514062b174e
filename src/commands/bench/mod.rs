//! `qformer bench`: a training step or captioning on random weights and inputs, timed.

mod data;
mod kernels;
mod llm;
mod meter;
mod pictures;
mod plan;
mod step;
mod train;

use super::engine::PlaceArgs;
use super::output::say;
use crate::device::gemm;
use crate::device::gpu::Counts;
use crate::model::{CLS, Config, GenerateOptions, Model, Profile, SEP};
use crate::nn::{Params, Pass, Precision, Spec};
use crate::tensor::{DType, Device, Stream, Tensor};
use crate::terminal::note;
use crate::train::optimizer::Hyper;
use crate::train::schedule::Schedule;
use crate::train::trainer::{Contrast, Options, Trainer};
use crate::{Error, Kind, Result};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Instant;
use step::Steps;

/// Time a training step or captioning on random weights and inputs
///
/// `step` is a whole stage-1 training step (image encoder, three losses, backward, AdamW; dropout 0.1), `caption` a batch of
/// pictures to captions of exactly --text tokens by beam search. Says seconds (the median), processor time, samples/s,
/// GFLOP/s (2mnk of every matmul that is computed, nothing else), the share of that in the rate a plain matmul
/// reaches on the same threads in the same run, and the peak of memory.
///
/// `data` reads a data set: captions a second, the peak of memory, and with --images pictures a second, read and decoded.
/// `train` makes training steps of a data set (--captions, --images), loader and step together, from picture files or with
/// --cache from image tokens, and says what the thread that trains waited for.
///
/// `--device plan` computes nothing: it counts what a run launches, moves and holds on a GPU, and gives the roofline
/// time on an H200; `--device plan:CARD` that of another card, which is a prediction. `kernels` times the kernels of a GPU one by one (--device cuda, or host with --config tiny): GB/s or TFLOP/s of the bytes
/// and operations they cannot do without, and the share of that in what a copy or a large matmul reaches in the same run.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  qformer bench step --config base --batch 8\n  qformer bench caption --config base --batch 1 --json\n  qformer bench kernels --device cuda --batch 128\n  qformer bench step --device plan:rtx-4090 --config full --batch 25\n  qformer bench data --captions captions.json --images photos\n  qformer bench train --config base --captions captions.json --images photos --cache tokens"
)]
pub struct Args {
    /// What to time
    #[arg(value_parser = ["step", "train", "caption", "kernels", "data"])]
    what: String,
    /// Sizes: tiny, heads, base (ViT-B/16 and the full Q-Former), full (BLIP-2), or a config.json
    #[arg(long, default_value = "base")]
    config: String,
    /// Pictures in a batch
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Tokens of a caption; in `step` lengths are drawn from 6 below to 6 above
    #[arg(long, default_value_t = 16)]
    text: usize,
    /// In `step`: a second stage with a language model of these sizes: opt-2.7b, rinna-3.6b, llm-jp-3-1.8b,
    /// tinyswallow-1.5b, sarashina2.2-1b, llama-150m, or those of a folder; random numbers
    #[arg(long, value_name = "NAME")]
    llm: Option<String>,
    /// In `step` with --llm: compute inside its layers twice instead of keeping it
    #[arg(long, requires = "llm")]
    recompute: bool,
    /// In `step`: from image tokens that are there already (train --cache)
    #[arg(long)]
    cached: bool,
    /// Beams of `caption`
    #[arg(long, default_value_t = 3)]
    beams: usize,
    #[command(flatten)]
    place: PlaceArgs,
    /// Threads (0: one per core)
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Runs that are timed, behind one that is not
    #[arg(long, default_value_t = 5)]
    steps: usize,
    /// On a GPU, one more run, in which the time of every kernel is taken, beside what the roofline says: that of the same card, or
    /// of an H200 where its figures are not known
    #[arg(long)]
    profile: bool,
    /// In `data` and `train`: a file of captions, tar shards, parquet files or a folder
    #[arg(long, value_name = "FILE")]
    captions: Option<PathBuf>,
    /// In `data` and `train`: where the pictures lie
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// In `caption`: a folder of pictures, which are decoded beside it and captioned once
    #[arg(long, value_name = "DIR")]
    pictures: Option<PathBuf>,
    /// In `train`: a folder for image tokens, which are computed first and trained on instead of pictures
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// In `train` with --cache: all image tokens in the GPU's memory
    #[arg(long)]
    cache_on_gpu: bool,
    /// One JSON object instead of lines
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Measured {
    what: String,
    cached: bool,
    config: String,
    batch: usize,
    text: usize,
    threads: usize,
    steps: usize,
    /// Median of a run.
    seconds: f64,
    /// Mean of a run, all threads.
    processor_seconds: f64,
    samples_per_s: f64,
    gflop: f64,
    gflop_per_s: f64,
    product_gflop_per_s: f64,
    share_of_limit: f64,
    /// Of the process, or of the GPU's pool.
    peak_bytes: u64,
    device: String,
    dtype: &'static str,
    vit_gelu: &'static str,
    /// Of a run on a GPU: kernels and matmuls launched, times it was asked for memory, bytes up and down.
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu: Option<GpuCounts>,
}

#[derive(Serialize)]
struct GpuCounts {
    launches: u64,
    products: u64,
    copies: u64,
    /// Times the host waited for the device, once at the end of a run among them.
    waits: u64,
    allocations: u64,
    uploaded: u64,
    downloaded: u64,
}

pub fn run(args: &Args) -> Result<()> {
    let config = configuration(&args.config)?;
    if args.batch == 0 || args.steps == 0 || args.text < 3 {
        let got = format!("{}, {} and {}", args.batch, args.steps, args.text);
        return Err(Error::argument("bench", "--batch, --steps, --text", "at least 1, 1 and 3", got));
    }
    let threads = rayon::ThreadPoolBuilder::new().num_threads(args.threads);
    let pool = threads.build().map_err(|e| Error::argument("bench", "--threads", "threads to start", e))?;
    if args.what == "data" {
        return pool.install(|| data::run(args));
    }
    let place = args.place.open(|line| note!("{line}"))?;
    if args.what == "kernels" {
        return kernels::run(args, &place);
    }
    if let ("caption", Some(folder)) = (args.what.as_str(), &args.pictures) {
        return pool.install(|| pictures::run(args, folder, config, &place));
    }
    if args.what == "train" {
        return pool.install(|| train::run(args, config, &place));
    }
    if let Device::Gpu(gpu) = &place.0
        && !gpu.computes()
    {
        return plan::run(args, config, gpu, place.1);
    }
    pool.install(|| match args.what.as_str() {
        "step" => step(args, config, &place),
        _ => caption(args, config, &place),
    })
}

/// Says what was measured, and then, where it is asked for, of one more run what each kernel took.
fn show(
    args: &Args,
    place: &(Device, Precision),
    measured: &Measured,
    run: impl FnOnce() -> Result<()>,
) -> Result<()> {
    if args.json {
        json(measured)?;
    } else {
        print(measured)?;
    }
    match &place.0 {
        Device::Gpu(gpu) if args.profile => plan::profile(args, gpu, place.1, run),
        _ => Ok(()),
    }
}

/// A line of JSON.
fn json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string(value).map_err(|e| Error::new(Kind::Write, "bench").got(e))?;
    say!("{text}")
}

fn configuration(name: &str) -> Result<Config> {
    match Config::named(name) {
        Some(config) => Ok(config),
        None if Path::new(name).exists() => {
            let text = std::fs::read_to_string(name).map_err(|e| Error::io("bench", name, &e))?;
            Config::from_json(&text)
        }
        None => Err(Error::argument("bench", "--config", "tiny, heads, base, full or a config.json", name)),
    }
}

fn stream(site: u32) -> Stream {
    Stream { seed: 1, step: 0, site }
}

fn noise(c: &Config, batch: usize) -> Result<Tensor> {
    let n = batch * 3 * c.image_size * c.image_size;
    let values = (0..n as u64).map(|i| stream(0).normal(i) as f32).collect();
    Tensor::new::<f32>(values, &[batch, 3, c.image_size, c.image_size])
}

/// [CLS] words [SEP]; as long as `text` give or take 6, within what the model takes.
fn texts(c: &Config, args: &Args) -> Vec<Vec<u32>> {
    let pick =
        |site, i, low: usize, high: usize| low + (stream(site).uniform(i) * (high + 1 - low) as f64) as usize;
    let longest = (args.text + 6).min(c.max_txt_len).max(3);
    let shortest = args.text.saturating_sub(6).clamp(3, longest);
    let word = |i: usize, j: usize| pick(2, (i * longest + j) as u64, 5.min(c.vocab - 2), c.vocab - 2) as u32;
    let text = |i: usize| {
        let words = pick(1, i as u64, shortest, longest) - 2;
        std::iter::once(CLS).chain((0..words).map(|j| word(i, j))).chain([SEP]).collect()
    };
    (0..args.batch).map(text).collect()
}

fn step(args: &Args, config: Config, place: &(Device, Precision)) -> Result<()> {
    let mut steps = Steps::new(args, config, place)?;
    let measured = measure(args, place, || steps.run())?;
    if args.profile {
        // Uses up what the last step saw to.
        steps.last()?;
    }
    show(args, place, &measured, || steps.last())
}

fn trainer_of(model: Model, params: Params) -> Result<Trainer> {
    let schedule =
        Schedule { init_lr: 1e-4, min_lr: 1e-5, warmup_lr: 1e-6, warmup_steps: 5000, max_epoch: 10 };
    let options = Options {
        seed: 1,
        dropout: 0.1,
        profile: Profile::LavisDiagonal,
        contrast: Contrast::MicroBatch,
        steps_per_epoch: 1 << 20,
        schedule,
        hyper: Hyper::default(),
    };
    Trainer::new(model, params, options)
}

fn caption(args: &Args, config: Config, place: &(Device, Precision)) -> Result<()> {
    let mut run = captioning(args, config, place)?;
    let measured = measure(args, place, &mut run)?;
    show(args, place, &measured, run)
}

/// A model of random numbers that captions; of zeros where nothing is computed.
struct Captioner {
    model: Model,
    params: Params,
    options: GenerateOptions,
}

impl Captioner {
    fn new(args: &Args, config: Config, place: &(Device, Precision)) -> Result<Captioner> {
        let options = GenerateOptions {
            num_beams: args.beams,
            // [DEC] and the tokens: none may end early, so that every run is as long
            max_length: args.text + 1,
            min_length: args.text + 1,
            ..GenerateOptions::default()
        };
        let (model, specs) = Model::new(config, false)?;
        Ok(Captioner { model, params: parameters(specs, place)?, options })
    }
}

/// A batch of noise to captions.
fn captioning(
    args: &Args,
    config: Config,
    place: &(Device, Precision),
) -> Result<impl FnMut() -> Result<()> + use<>> {
    let image = noise(&config, args.batch)?.at(&place.0)?;
    let Captioner { model, params, options } = Captioner::new(args, config, place)?;
    let identities: Vec<u32> = (0..args.batch as u32).collect();
    Ok(move || {
        let pass = Pass::inference(&params);
        let images = match identities.len() {
            1 => model.image_features_alone(&pass, &image)?,
            _ => model.image_features(&pass, &image)?,
        };
        model.generate(&params, &images, &options, &identities).map(drop)
    })
}

/// Random numbers; zeros where nothing is computed.
fn parameters(specs: Vec<Spec>, place: &(Device, Precision)) -> Result<Params> {
    match &place.0 {
        Device::Gpu(gpu) if !gpu.computes() => Params::zeros(specs, &place.0, place.1),
        _ => Params::random(specs, DType::F32, 1)?.to(&place.0, place.1),
    }
}

/// Runs `f` once for warmth and `steps` times for the clock.
fn measure(args: &Args, place: &(Device, Precision), mut f: impl FnMut() -> Result<()>) -> Result<Measured> {
    let gpu = if let Device::Gpu(gpu) = &place.0 { Some(gpu) } else { None };
    let rate = || {
        gpu.map_or_else(
            || Ok(meter::matmul_rate()),
            |gpu| crate::kernels::matmul_rate(gpu, place.1.rest, kernels::large(gpu)),
        )
    };
    let before = rate()?;
    f()?;
    if let Some(gpu) = gpu {
        gpu.synchronize()?;
        gpu.take_counts();
    }
    let (flops, processor) = (gemm::flops(), meter::processor_seconds()?);
    let mut times = Vec::with_capacity(args.steps);
    for _ in 0..args.steps {
        let start = Instant::now();
        f()?;
        gpu.map_or(Ok(()), crate::tensor::Gpu::synchronize)?;
        times.push(start.elapsed().as_secs_f64());
    }
    let runs = args.steps as f64;
    let counts = gpu.map(crate::tensor::Gpu::take_counts);
    let done = counts.as_ref().map_or_else(|| gemm::flops() - flops, |c| c.flops);
    let gflop = done as f64 / runs / 1e9;
    let processor_seconds = (meter::processor_seconds()? - processor) / runs;
    let limit = before.max(rate()?) / 1e9;
    times.sort_by(f64::total_cmp);
    let seconds = (times[(times.len() - 1) / 2] + times[times.len() / 2]) / 2.0;
    Ok(Measured {
        what: args.what.clone(),
        cached: args.cached,
        config: args.config.clone(),
        batch: args.batch,
        text: args.text,
        threads: rayon::current_num_threads(),
        steps: args.steps,
        seconds,
        processor_seconds,
        samples_per_s: args.batch as f64 / seconds,
        gflop,
        gflop_per_s: gflop / seconds,
        product_gflop_per_s: limit,
        share_of_limit: gflop / seconds / limit,
        peak_bytes: counts.as_ref().map_or_else(meter::peak_memory, |c| Ok(c.peak))?,
        device: gpu.map_or_else(|| "cpu".into(), crate::tensor::Gpu::name),
        dtype: place.1.name(),
        vit_gelu: place.1.vit_gelu.name(),
        gpu: counts.map(|c| per_run(&c, args.steps as u64)),
    })
}

fn per_run(c: &Counts, runs: u64) -> GpuCounts {
    GpuCounts {
        launches: c.launched() / runs,
        products: c.multiplied() / runs,
        copies: c.copies / runs,
        waits: c.waits / runs,
        allocations: c.allocations / runs,
        uploaded: c.uploaded / runs,
        downloaded: c.downloaded / runs,
    }
}

fn print(m: &Measured) -> Result<()> {
    say!(
        "{} {}, batch {}, {} tokens, {} threads, {} in {} (GELU of the image encoder: {}), median of {}",
        m.what,
        m.config,
        m.batch,
        m.text,
        m.threads,
        m.device,
        m.dtype,
        m.vit_gelu,
        m.steps
    )?;
    say!("  time        {:.3} s (processor {:.3} s)", m.seconds, m.processor_seconds)?;
    say!("  samples     {:.2} per second", m.samples_per_s)?;
    say!("  arithmetic  {:.1} GFLOP (2mnk of every matmul), {:.1} GFLOP/s", m.gflop, m.gflop_per_s)?;
    say!(
        "  limit       {:.1} GFLOP/s in a plain matmul, reached {:.0} %",
        m.product_gflop_per_s,
        100.0 * m.share_of_limit
    )?;
    say!("  memory      {:.2} GB at its peak", m.peak_bytes as f64 / 1e9)?;
    if let Some(g) = &m.gpu {
        say!(
            "  of a run    {} launches, {} matmuls, {} copies, {} waits, {} allocations, {} bytes up, {} down",
            g.launches,
            g.products,
            g.copies,
            g.waits,
            g.allocations,
            g.uploaded,
            g.downloaded
        )?;
    }
    Ok(())
}
