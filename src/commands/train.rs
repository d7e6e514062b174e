//! `qformer train`: from pictures and captions to a trained model directory.

use super::output::Output;
use crate::console::Terminal;
use crate::train::config::{self, Config, yaml};
use crate::train::session::{Aim, CONFIG, Job};
use crate::train::{Ending, Outcome, Watch};
use crate::{Error, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};

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
    /// set none, it is the run's length. Behind the end of the epochs, --set steps=N goes on at min_lr
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..1 << 53))]
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

pub fn run(args: &Args) -> Result<()> {
    if args.keys {
        return print(&config::describe());
    }
    let config = args.read()?;
    let mut terminal = Terminal::new(args.quiet);
    let aim = match (args.export, args.resume) {
        (true, _) => Aim::Export,
        (false, true) => Aim::Resume,
        (false, false) => Aim::Begin,
    };
    let out = config.out.clone();
    let job = Job::prepare(config, aim, &terminal)?;
    let out = out.ok_or_else(no_folder)?;
    if args.dry_run {
        return print(&job.dry_run(&out, &terminal)?);
    }
    if aim == Aim::Export {
        let Outcome { step, model, .. } = job.export(&out, &terminal)?;
        terminal.say(&format!("the model of step {step} is in {}", model.display()));
        return Ok(());
    }
    let outcome = job.train(&out, &mut terminal)?;
    conclude("train", &out, &outcome, &terminal)
}

/// Trains as a configuration says, from the beginning, for another command.
pub(super) fn train(command: &str, config: Config, terminal: &mut Terminal) -> Result<()> {
    let out = config.out.clone().ok_or_else(no_folder)?;
    let outcome = Job::prepare(config, Aim::Begin, terminal)?.train(&out, terminal)?;
    conclude(command, &out, &outcome, terminal)
}

/// Says how a training ended; an error if a signal stopped it.
fn conclude(command: &str, out: &Path, outcome: &Outcome, terminal: &Terminal) -> Result<()> {
    let Outcome { ending, step, whole, model } = outcome;
    let resume = format!("resume with: qformer train --resume --out {}", out.display());
    let stopped = terminal.stopped(command);
    match (ending, stopped) {
        (Ending::StoppedInCache(kept), Some(stopped)) => {
            Err(stopped.fix(format!("run the same command again; {} keeps what is done", kept.display())))
        }
        (Ending::Stopped, Some(stopped)) => {
            let export = format!("its model so far: qformer train --export --out {}", out.display());
            Err(stopped.about(format!("saved at step {step} of {whole}")).fix(format!("{resume}; {export}")))
        }
        _ => {
            terminal.say(&if step < whole {
                format!("stopped after step {step} of {whole}; {resume}")
            } else {
                format!("trained all {step} steps")
            });
            terminal.say(&format!("the model is in {}", model.display()));
            Ok(())
        }
    }
}

fn no_folder() -> Error {
    Error::argument("train", "--out", "a folder for the run", "none").fix("give --out DIR")
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
        // A run that is resumed has its settings in its folder.
        let own = self.out.as_ref().map(|out| out.join(CONFIG)).filter(|file| file.is_file());
        let file = self.config.clone().or(own.filter(|_| self.resume || self.export));
        let mut config = Config::read(file.as_deref(), &entries)?;
        self.steps.into_iter().for_each(|n| config.set_steps(n));
        Ok(config)
    }
}
