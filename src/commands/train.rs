//! `qformer train`: from pictures and captions to a trained model directory.

use super::engine;
use super::output::Output;
use super::start::{self, Start};
use crate::files::{self, RealDisk};
use crate::nn::Precision;
use crate::tensor::Device;
use crate::text::Tokenizer;
use crate::train::cache::Cache;
use crate::train::config::{self, Config, Length, yaml};
use crate::train::corpus::{Corpus, Loading};
use crate::train::plan::Plan;
use crate::train::progress::Progress;
use crate::train::rehearsal;
use crate::train::run::{self, Run};
use crate::train::signals::Stop;
use crate::train::state::{self, Identity};
use crate::train::trainer::Trainer;
use crate::train::validate::Validation;
use crate::vision::Turn;
use crate::{Error, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Train a Q-Former on pictures and captions
///
/// Starts from nothing (a small model, its vocabulary trained from the captions) or from a model directory (--start).
/// The configuration is YAML: LAVIS's own files are understood, and flat keys (--keys lists them); options on the command
/// line win. The run's folder gets checkpoints, log.jsonl, TensorBoard events and, at the end, the trained model in model/.
/// Ctrl-C and SIGTERM save and exit; --resume goes on from there, bit for bit as if nothing had happened.
///
/// Exit codes: 2 wrong settings, 3 unusable data or files, 4 writing failed, 7 a loss is not finite, 130 / 143 stopped by
/// SIGINT / SIGTERM after saving.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  qformer train --images photos --captions captions.json --out run\n  qformer train \
                  pretrain_stage1.yaml --start eva-bert --images coco --captions stair.json --set init_lr=5e-5\n  \
                  qformer train --start eva-bert --images coco --captions stair.json --out run --cache tokens --set cache_views=4\n  \
                  qformer train --resume --out run"
)]
pub struct Args {
    /// YAML configuration, ours or LAVIS's (with --resume: the run's own if none is given)
    config: Option<PathBuf>,
    /// Folder of pictures, or files that hold them: tar shards ('shards/{00000..00099}.tar'), parquet
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// Captions: LAVIS, COCO/STAIR or Karpathy JSON (FILE#train), JSON lines, a table with a heading, parquet; none: a .txt
    /// or .caption beside each picture, or those in the shards
    #[arg(long, value_name = "FILE")]
    captions: Option<PathBuf>,
    /// Folder of the run
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Model directory to start from
    #[arg(long, value_name = "DIR")]
    start: Option<PathBuf>,
    /// Sizes of a model from nothing: small, tiny, heads, base or full
    #[arg(long)]
    size: Option<String>,
    /// Times over the data
    #[arg(long)]
    epochs: Option<u64>,
    /// Step to stop after for now: --resume goes on to the end that epochs or steps of the configuration set; where they
    /// set none, it is the run's length
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    steps: Option<u64>,
    /// Captions of a micro-batch
    #[arg(long)]
    batch: Option<u64>,
    /// Where to compute: auto (default: a GPU if one answers, else the CPU), cpu, cuda (cuda:1, ..), or host (the GPU's
    /// kernels emulated on the CPU, slowly)
    #[arg(long)]
    device: Option<String>,
    /// On a GPU, how dense layers and attention store what they work on: f32, f16 (with loss scaling), bf16
    /// (default; the image encoder in f16, as its weights were published) or bf16-vit (the image encoder, too)
    #[arg(long)]
    dtype: Option<String>,
    /// Keep image tokens of a frozen image encoder in this folder, computed once, and train on them instead of on pictures:
    /// several times as fast. Of each picture training then sees `cache_views` random crops (--set cache_views=4), not a
    /// new one each time as in LAVIS
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// GELU of a frozen image encoder on a GPU: exact (LAVIS's; default), or tanh: at the end of the product, with no kernel
    /// of its own, off by up to 5e-4 per activation
    #[arg(long)]
    vit_gelu: Option<String>,
    /// Turn pictures upright as their EXIF orientation says; kept in the model, so that every command does so with it. LAVIS
    /// takes pictures as they are stored
    #[arg(long)]
    exif_orientation: bool,
    /// Any setting: --set init_lr=5e-5 --set model.hidden=128
    #[arg(long = "set", value_name = "NAME=VALUE")]
    sets: Vec<String>,
    /// Go on from the newest whole checkpoint of the run
    #[arg(long)]
    resume: bool,
    /// Show what would be done (settings, data, steps, memory) and stop
    #[arg(long)]
    dry_run: bool,
    /// Only write the model directory of the newest checkpoint
    #[arg(long)]
    export: bool,
    /// Warnings and errors only
    #[arg(long)]
    quiet: bool,
    /// List all settings and stop
    #[arg(long)]
    keys: bool,
}

const CONFIG: &str = "config.yaml";
/// Where in a run's folder its trained model is.
pub(super) const MODEL: &str = "model";
const VOCABULARY: &str = "vocabulary";

pub fn run(args: &Args) -> Result<()> {
    if args.keys {
        return print(&config::describe());
    }
    let config = args.read()?;
    let mut progress = Progress::new(args.quiet);
    let job = Job::prepare("train", config, args.resume || args.export, &progress)?;
    if args.dry_run {
        return print(&job.describe()?);
    }
    let out = folder(&job.config)?;
    if args.export {
        return job.export_newest(&out, &progress);
    }
    job.train(&out, args.resume, &mut progress)
}

/// Trains as a configuration says, from the beginning, for another command.
pub(super) fn train(command: &'static str, config: Config, progress: &mut Progress) -> Result<()> {
    let out = folder(&config)?;
    Job::prepare(command, config, false, progress)?.train(&out, false, progress)
}

fn folder(config: &Config) -> Result<PathBuf> {
    config.out.clone().ok_or_else(|| {
        Error::argument("train", "--out", "a folder for the run", "none").fix("give --out DIR")
    })
}

fn print(text: &str) -> Result<()> {
    let mut output = Output::new();
    output.line(text)?;
    output.flush().map(drop)
}

impl Args {
    fn read(&self) -> Result<Config> {
        let mut entries = self.sets.iter().map(|text| yaml::assignment(text)).collect::<Result<Vec<_>>>()?;
        let mut add = |path: &str, value: Value| {
            entries.push(yaml::Entry {
                path: path.into(),
                value,
                place: format!("--{}", path.replace('_', "-")),
            });
        };
        for (name, path) in [
            ("images", &self.images),
            ("captions", &self.captions),
            ("out", &self.out),
            ("start", &self.start),
            ("cache", &self.cache),
        ] {
            if let Some(path) = path {
                let text = path.to_str().ok_or_else(|| {
                    Error::argument("train", format!("--{name}"), "a path in UTF-8", path.display())
                })?;
                add(name, text.into());
            }
        }
        for (name, n) in [("epochs", self.epochs), ("batch", self.batch)] {
            n.into_iter().for_each(|n| add(name, n.into()));
        }
        for (name, text) in [
            ("size", &self.size),
            ("device", &self.device),
            ("dtype", &self.dtype),
            ("vit_gelu", &self.vit_gelu),
        ] {
            text.iter().for_each(|s| add(name, s.as_str().into()));
        }
        if self.exif_orientation {
            add("exif_orientation", true.into());
        }
        // A run that goes on has its settings in its folder.
        let own = self.out.as_ref().map(|out| out.join(CONFIG)).filter(|file| file.is_file());
        let file = self.config.clone().or(own.filter(|_| self.resume || self.export));
        let mut config = Config::read(file.as_deref(), &entries)?;
        self.steps.into_iter().for_each(|n| config.set_steps(n));
        Ok(config)
    }
}

/// A run that is worked out, but has not begun.
struct Job {
    /// Whose errors these are.
    command: &'static str,
    config: Config,
    corpus: Arc<Corpus>,
    validation: Option<Arc<Corpus>>,
    start: Start,
    length: Length,
    plan: Plan,
    device: Device,
    precision: Precision,
    /// The longest caption in tokens.
    longest: usize,
}

impl Job {
    fn prepare(command: &'static str, mut config: Config, again: bool, progress: &Progress) -> Result<Job> {
        let say = |line: String| progress.say(line);
        let (device, precision) =
            engine::place(&config.device, config.dtype.as_deref(), config.vit_gelu, say)?;
        if config.device == "auto" {
            // A run that is resumed computes where it began.
            config.device = if matches!(device, Device::Cpu) { "cpu" } else { "cuda" }.into();
        }
        config.notes.iter().for_each(|note| progress.say(format!("note: {note}")));
        let read = |sources: &[config::DataSource]| {
            let corpus = Corpus::read(sources, config.missing_share)?;
            for report in corpus.sets.iter().map(|s| &s.report).filter(|r| r.has_warnings()) {
                progress.warn(format!("warning: {report}"));
            }
            Ok::<_, Error>(Arc::new(corpus))
        };
        let corpus = read(&config.data)?;
        let validation = config.validation.clone().map(|v| read(&[v])).transpose()?;
        let kept = config.out.as_ref().filter(|_| again).map(|out| out.join(VOCABULARY));
        let start = Start::new(&config, &corpus, kept.as_deref())?;
        let length = config.length(corpus.order(&config)?.steps_per_epoch());
        let tokenize = start.tokenize();
        let longest = corpus.captions().map(|c| tokenize(c).len()).max().unwrap_or(2);
        let plan = Plan::new(&config, &start.model.config, &start.specs, longest, length);
        Ok(Job { command, config, corpus, validation, start, length, plan, device, precision, longest })
    }

    /// Settings, data and plan, as `--dry-run` prints them.
    fn describe(&self) -> Result<String> {
        let mut text = format!("# settings\n{}", config::resolved(&self.config));
        let sizes = serde_json::to_value(&self.start.model.config).unwrap_or_default();
        let sizes: Vec<String> =
            sizes.as_object().into_iter().flatten().map(|(name, n)| format!("{name} {n}")).collect();
        text += &format!("\n# model\n{}\n\n# data\n", sizes.join(", "));
        for (name, set) in self.corpus.names.iter().zip(&self.corpus.sets) {
            text += &format!("{name}: {}\n", set.report);
        }
        for set in self.validation.iter().flat_map(|v| &v.sets) {
            text += &format!("validation: {}\n", set.report);
        }
        text += &format!("\n# plan\n{}", self.plan);
        if let Some(cache) = self.config.cache() {
            let views = self.corpus.pictures() * cache.views;
            text += &format!(
                "\ncache          {} of tokens of {views} views in {}",
                crate::train::plan::bytes(views as u64 * cache.record(&self.start.model.config)),
                cache.folder.display()
            );
        }
        if let Device::Gpu(gpu) = &self.device {
            text += &format!("\n{}", self.steps().rehearse(gpu.memory().map(|m| m.usable), true)?);
        }
        Ok(text)
    }

    /// What is rehearsed of a run on a GPU.
    fn steps(&self) -> rehearsal::Run<'_> {
        let (config, sizes, length) = (&self.config, &self.start.model.config, self.length);
        rehearsal::Run { config, sizes, length, precision: self.precision, text: self.longest }
    }

    /// Asks a GPU for the memory of a step of the longest captions, so that none will ask for more; says so if that may not
    /// fit. What the second queue is to have.
    fn reserve(&self, progress: &Progress) -> Result<[usize; 2]> {
        let Device::Gpu(gpu) = &self.device else { return Ok([0; 2]) };
        let Some(memory) = gpu.memory().map(|m| m.usable) else { return Ok([0; 2]) };
        let step = self.steps().rehearse(Some(memory), false)?;
        let [held, ahead] = step.held;
        if step.peak > memory || !gpu.reserve(held)? {
            progress.warn(format!("warning: this may not fit:\n{step}"));
            return Ok([0; 2]);
        }
        Ok(ahead)
    }

    fn loading(&self, corpus: &Arc<Corpus>, train: bool) -> Loading {
        Loading {
            device: self.device.clone(),
            corpus: Arc::clone(corpus),
            tokenize: self.start.tokenize(),
            image_size: self.start.model.config.image_size,
            turn: Turn::upright(self.start.model.config.exif_orientation),
            seed: self.config.seed,
            augment: train.then_some((self.config.augment, self.config.resize, self.config.rand_augment)),
            cache: None,
        }
    }

    fn train(self, out: &Path, resume: bool, progress: &mut Progress) -> Result<()> {
        self.device.check_computes("train")?;
        let stop = Stop::listen()?;
        let ahead = self.reserve(progress)?;
        if let (Some(free), None) = (self.plan.available, self.plan.largest_batch) {
            progress.warn(format!(
                "warning: {} are free; this may not fit:\n{}",
                crate::train::plan::bytes(free),
                self.plan
            ));
        }
        files::make_folders(&RealDisk, out)?;
        let mut loading = Arc::new(self.loading(&self.corpus, true));
        let validation = self.validation.as_ref().map(|corpus| Validation {
            loading: self.loading(corpus, false),
            entries: corpus.first_captions(self.config.eval_pictures),
            batch: self.config.batch,
        });
        let Job { command, config, corpus, start, length, device, precision, .. } = self;
        let (model, params, tokenizer) = start.fill(&config)?;
        let vocabulary = keep(out, &config, &tokenizer, resume)?;
        let settings = state::settings(&config, &corpus, &model.config, length, &vocabulary, precision);
        let identity = Identity { settings, frozen: state::frozen_hash(&params)? };
        let params = params.to(&device, precision)?;
        let mut trainer = Trainer::new(model, params, config.options(length))?;
        if ahead != [0; 2] {
            trainer.open_ahead(ahead)?;
        }
        if let Some(settings) = config.cache() {
            let cache = Cache::open(&settings, &config, &corpus, &trainer.model.config, &identity.frozen)?;
            loading = cached(cache, &config, loading, &trainer, &stop, progress)?;
            if let Some(stopped) = stop.error(command) {
                let go_on =
                    format!("go on with the same command; {} keeps what is done", settings.folder.display());
                return Err(stopped.fix(go_on));
            }
        }
        let job = Run { config: &config, length, loading, validation, identity, out, resume };
        let outcome = run::run(&job, trainer, &stop, progress)?;
        let step = outcome.trainer.step;
        let go_on = format!("go on with: qformer train --resume --out {}", out.display());
        if let Some(stopped) = stop.error(command) {
            return Err(stopped.about(format!("saved at step {step} of {}", length.whole)).fix(go_on));
        }
        if resume {
            write_settings(out, &config)?; // they may ask for more steps than before
        }
        let directory = out.join(MODEL);
        start::export(&directory, &config, &outcome.trainer.model, &outcome.trainer.params, &tokenizer)?;
        if outcome.bad > 0 {
            progress.warn(format!(
                "warning: {} pictures could not be used; see {}",
                outcome.bad,
                out.join("bad.jsonl").display()
            ));
        }
        progress.say(if step < length.whole {
            format!("stopped after step {step} of {}; {go_on}", length.whole)
        } else {
            format!("trained all {step} steps")
        });
        progress.say(format!("the model is in {}", directory.display()));
        Ok(())
    }

    fn export_newest(self, out: &Path, progress: &Progress) -> Result<()> {
        let none = || {
            Error::argument("export", out.display().to_string(), "a run with a checkpoint", "none")
                .fix("train first")
        };
        let newest =
            run::newest(out, |e| progress.warn(format!("warning: passed over: {e}")))?.ok_or_else(none)?;
        let (model, params, tokenizer) = self.start.fill(&self.config)?;
        let vocabulary = fingerprint(&tokenizer);
        let (config, corpus, length) = (&self.config, &self.corpus, self.length);
        let settings = state::settings(config, corpus, &model.config, length, &vocabulary, self.precision);
        let identity = Identity { settings, frozen: state::frozen_hash(&params)? };
        let mut trainer = Trainer::new(model, params, self.config.options(self.length))?;
        newest.progress.check_same_run(&identity.progress(&trainer, state::State::default(), None)?)?;
        state::restore(&mut trainer, newest)?;
        let directory = out.join(MODEL);
        start::export(&directory, &self.config, &trainer.model, &trainer.params, &tokenizer)?;
        progress.say(format!("the model of step {} is in {}", trainer.step, directory.display()));
        Ok(())
    }
}

/// Fills a cache, from which training then loads.
fn cached(
    cache: Cache,
    config: &Config,
    loading: Arc<Loading>,
    trainer: &Trainer,
    stop: &Stop,
    progress: &mut Progress,
) -> Result<Arc<Loading>> {
    let views = format!("{} view{} of a picture", cache.views(), if cache.views() == 1 { "" } else { "s" });
    let (all, missing) = (cache.len(), cache.missing().len());
    let folder = cache.folder().display();
    let changed = match cache.changed() {
        0 => String::new(),
        n => format!("; {n} pictures have changed since and are computed again"),
    };
    progress
        .say(format!("training on {views}, kept in {folder}: {} of {all} are there{changed}", all - missing));
    let how = (config.batch, config.loading());
    cache.fill(&loading, (&trainer.model, &trainer.params), how, stop, progress)?;
    Ok(Arc::new(Loading { cache: Some(Arc::new(cache)), ..Loading::clone(&loading) }))
}

/// Puts the settings and the vocabulary of a run that begins into its folder; gives the vocabulary's fingerprint.
fn keep(out: &Path, config: &Config, tokenizer: &Tokenizer, resume: bool) -> Result<String> {
    let vocabulary = out.join(VOCABULARY);
    if !resume || !out.join(CONFIG).is_file() {
        write_settings(out, config)?;
    }
    if !resume || !vocabulary.is_dir() {
        files::make_folders(&RealDisk, &vocabulary)?;
        tokenizer.save(&vocabulary)?;
    }
    Ok(fingerprint(tokenizer))
}

fn write_settings(out: &Path, config: &Config) -> Result<()> {
    let text = config::resolved(config);
    files::write_atomic(&RealDisk, &out.join(CONFIG), text.len() as u64, |w| w.write_all(text.as_bytes()))
}

/// blake3 of the tokens and of how text is cut into them.
fn fingerprint(tokenizer: &Tokenizer) -> String {
    let mut hash = blake3::Hasher::new();
    let tokens = (0..tokenizer.len() as u32).filter_map(|id| tokenizer.token(id));
    for text in tokens.chain([tokenizer.settings().to_text().as_str()]) {
        hash.update(text.as_bytes());
        hash.update(b"\n");
    }
    hash.finalize().to_hex().to_string()
}
