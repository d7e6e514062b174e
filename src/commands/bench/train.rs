//! `qformer bench train`: steps as a training makes them, from picture files or from a cache of image tokens, with what the
//! thread that trains waits for and works at. The model's numbers are random, and a caption's tokens as many as it has
//! characters. With `--device plan` nothing is computed: what is left is the host's own work.

use super::{Args, trainer_of};
use crate::commands::output::say;
use crate::data::{self, Loader};
use crate::model::{CLS, Config as Sizes, Model, SEP};
use crate::nn::Precision;
use crate::tensor::Device;
use crate::train::cache::{Cache, Settings};
use crate::train::config::{Config, yaml};
use crate::train::corpus::Corpus;
use crate::train::loading::{Item, Loading, Tokenize};
use crate::train::trainer::{Micro, Trainer};
use crate::vision::Turn;
use crate::{Error, Result};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use std::sync::Arc;
use std::time::Instant;

/// Per step, in seconds.
#[derive(Serialize)]
struct Measured {
    what: &'static str,
    from: &'static str,
    config: String,
    batch: usize,
    steps: usize,
    workers: usize,
    device: String,
    dtype: &'static str,
    seconds: f64,
    samples_per_s: f64,
    /// Of it: waiting for pictures or records.
    waiting: f64,
    /// Processor time of the thread that trains: making batches of what was loaded, and the rest of a step.
    batch_processor_seconds: f64,
    step_processor_seconds: f64,
}

pub(super) fn run(args: &Args, sizes: Sizes, place: &(Device, Precision)) -> Result<()> {
    let config = configuration(args)?;
    let corpus = Arc::new(Corpus::read(&config.data, 1.0)?);
    let (trainer, loading) = ready(args, sizes, place, (&config, &corpus))?;
    let micro = (args.steps + 2) as u64;
    let options = data::Options { end: micro, ..config.loading() };
    let workers = options.workers;
    let source = Arc::clone(&loading);
    let mut loader = Loader::start(Arc::new(corpus.order(&config)?), options, move |index, micro| {
        source.load(index, micro)
    })?;
    let times = walk(args, trainer, &loading, &mut loader)?;
    let runs = args.steps as f64;
    let seconds = times.seconds / runs;
    let measured = Measured {
        what: "train",
        from: if config.cache.is_some() { "a cache of image tokens" } else { "picture files" },
        config: args.config.clone(),
        batch: args.batch,
        steps: args.steps,
        workers,
        device: if let Device::Gpu(gpu) = &place.0 { gpu.name() } else { "cpu".into() },
        dtype: place.1.name(),
        seconds,
        samples_per_s: args.batch as f64 / seconds,
        waiting: times.waiting / runs,
        batch_processor_seconds: times.batch / runs,
        step_processor_seconds: times.step / runs,
    };
    if args.json { super::json(&measured) } else { print(&measured) }
}

fn configuration(args: &Args) -> Result<Config> {
    let none =
        |flag: &str| Error::argument("bench train", flag, "captions, and where their pictures lie", "none");
    let captions = args.captions.as_ref().ok_or_else(|| none("--captions"))?;
    let images = args.images.as_ref().ok_or_else(|| none("--images"))?;
    let mut entries = Vec::new();
    let mut add = |key: &str, value: serde_json::Value| {
        entries.push(yaml::Entry { path: key.into(), value, place: format!("--{key}") });
    };
    for (key, path) in [("captions", captions), ("images", images)] {
        add(key, path.to_string_lossy().into());
    }
    add("batch", args.batch.into());
    let mut config = Config::read(None, &entries)?;
    // The image encoder is frozen, as one that training starts from.
    config.cache = args.cache.clone();
    Ok(config)
}

/// A trainer of random numbers, and what loads its samples: from a cache that is filled first where one is named.
fn ready(
    args: &Args,
    sizes: Sizes,
    place: &(Device, Precision),
    (config, corpus): (&Config, &Arc<Corpus>),
) -> Result<(Trainer, Arc<Loading>)> {
    let (model, specs) = Model::new(sizes.clone(), false)?;
    let trainer = trainer_of(model, super::parameters(specs, place)?)?;
    let loading = Loading {
        device: place.0.clone(),
        corpus: Arc::clone(corpus),
        tokenize: tokenize(&sizes),
        image_size: sizes.image_size,
        turn: Turn::upright(sizes.exif_orientation),
        seed: config.seed,
        augment: Some((config.augment, config.resize, None)),
        cache: None,
    };
    let Some(settings) = config.cache() else { return Ok((trainer, Arc::new(loading))) };
    let cache = filled(&settings, config, &trainer, &Arc::new(loading.clone()), args)?;
    Ok((trainer, Arc::new(Loading { cache: Some(Arc::new(cache)), ..loading })))
}

fn filled(
    settings: &Settings,
    config: &Config,
    trainer: &Trainer,
    loading: &Arc<Loading>,
    args: &Args,
) -> Result<Cache> {
    // Random numbers of one seed, which only these sizes tell apart.
    let encoder = format!("random numbers of bench, {:?}", trainer.model.config);
    let mut cache = Cache::open(settings, config, &loading.corpus, &trainer.model.config, &encoder)?;
    let encoder = (&trainer.model, &trainer.params);
    cache.fill(loading, encoder, (args.batch, config.loading()), &mut ())?;
    cache.attach(&loading.device, args.cache_on_gpu, |cache, record| {
        let view = loading.view(record / cache.views(), record % cache.views())?;
        cache.repair(record, &view, loading, encoder)
    })?;
    Ok(cache)
}

/// As many ids as a caption has characters, up to what the model takes.
fn tokenize(sizes: &Sizes) -> Tokenize {
    let (most, vocab) = (sizes.max_txt_len.max(3), sizes.vocab as u32);
    Arc::new(move |caption| {
        let words = caption.chars().take(most - 2).map(|c| (c as u32) % (vocab - 6) + 5);
        std::iter::once(CLS).chain(words).chain([SEP]).collect()
    })
}

#[derive(Default)]
struct Times {
    seconds: f64,
    waiting: f64,
    batch: f64,
    step: f64,
}

/// As `train::run` walks: one step for warmth, then those that are timed.
fn walk(args: &Args, mut trainer: Trainer, loading: &Loading, loader: &mut Loader<Item>) -> Result<Times> {
    let (mut times, mut coming) = (Times::default(), None);
    let device = trainer.params.device().clone();
    let mut begun = Instant::now();
    for step in 0..=args.steps {
        let micro = match coming.take() {
            Some(micro) => micro,
            None => next(&trainer, loading, loader, &mut times)?,
        };
        if let Some(cache) = &loading.cache {
            cache.settle()?;
        }
        if device.has_streams() {
            coming = Some(next(&trainer, loading, loader, &mut times)?);
        }
        let before = thread_seconds();
        trainer.step_ahead(&micro, coming.as_deref().unwrap_or_default())?;
        times.step += thread_seconds() - before;
        if step == 0 {
            (times, begun) = (Times::default(), Instant::now());
        }
    }
    times.seconds = begun.elapsed().as_secs_f64();
    Ok(times)
}

fn next(
    trainer: &Trainer,
    loading: &Loading,
    loader: &mut Loader<Item>,
    times: &mut Times,
) -> Result<Vec<Micro>> {
    let (begun, before) = (Instant::now(), thread_seconds());
    let none = || Error::argument("bench train", "--captions", "more captions than a batch", "fewer");
    let mut batch = loader.next_batch()?.ok_or_else(none)?;
    times.waiting += begun.elapsed().as_secs_f64() - (thread_seconds() - before);
    loading.repair(&mut batch, (&trainer.model, &trainer.params))?;
    let micro = loading.micro(batch)?;
    times.batch += thread_seconds() - before;
    Ok(vec![micro])
}

/// Processor time of this thread so far.
fn thread_seconds() -> f64 {
    let t = clock_gettime(ClockId::ThreadCPUTime);
    t.tv_sec as f64 + t.tv_nsec as f64 / 1e9
}

fn print(m: &Measured) -> Result<()> {
    let ms = |seconds: f64| 1e3 * seconds;
    say!(
        "train {} from {}, batch {}, {} loader threads, {} in {}, mean of {} steps",
        m.config,
        m.from,
        m.batch,
        m.workers,
        m.device,
        m.dtype,
        m.steps
    )?;
    say!("  time        {:.1} ms a step, {:.1} pictures per second", ms(m.seconds), m.samples_per_s)?;
    say!("  waiting     {:.1} ms of it for pictures or records", ms(m.waiting))?;
    say!(
        "  processor   of the thread that trains: {:.2} ms to make a batch of what was loaded, {:.1} ms for the rest of the step",
        ms(m.batch_processor_seconds),
        ms(m.step_processor_seconds)
    )
}
