//! `qformer train`: from pictures and captions to a trained model directory.

use super::group::GroupArgs;
use super::output::Output;
use crate::console::Terminal;
use crate::train::config::{self, Config, Flag, FlagKind, yaml};
use crate::train::session::{Aim, CONFIG, Job};
use crate::train::{Ending, Outcome, Watch};
use crate::{Error, Result};
use serde_json::Value;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Train a Q-Former on pictures and captions
///
/// Starts from nothing (a small model, its vocabulary trained from the captions) or from a model directory (--start).
/// The configuration is YAML: LAVIS's own files are understood, and flat keys (--keys lists them); options on the command
/// line win. The run's folder gets checkpoints, log.jsonl, TensorBoard events and, at the end, the trained model in model/.
/// Ctrl-C and SIGTERM save and exit; --resume goes on from there, bit for bit as if nothing had happened.
///
/// Exit codes: 2 wrong settings, 3 unusable data or files, 4 writing failed, 7 a loss is not finite, 8 another process of a group does
/// not answer or has other settings, 130 / 143 stopped by SIGINT / SIGTERM after saving.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  qformer train --images photos --captions captions.json --out run\n  qformer train \
                  pretrain_stage1.yaml --start eva-bert --images coco --captions stair.json --set init_lr=5e-5\n  \
                  qformer train --start eva-bert --images coco --captions stair.json --out run --cache tokens --set cache_views=4\n  \
                  qformer train --resume --out run\n  \
                  mpirun -n 4 qformer train --images coco --captions stair.json --out run --set contrast=world --set accumulate=4"
)]
pub struct Args {
    /// YAML configuration, ours or LAVIS's (with --resume: the run's own if none is given)
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
    /// Step to stop after for now: --resume goes on to the end that epochs or steps of the configuration set; where they
    /// set none, it is the run's length. Behind the end of the epochs, --set steps=N goes on at min_lr
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..1 << 53))]
    steps: Option<u64>,
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
    #[command(flatten)]
    group: GroupArgs,
}

pub fn run(args: &Args) -> Result<()> {
    if args.keys {
        return print(&config::describe());
    }
    let config = args.read()?;
    let group = args.group.open()?;
    let mut terminal = if group.leads() { Terminal::new(args.quiet) } else { Terminal::silent() };
    let aim = match (args.export, args.resume) {
        (true, _) => Aim::Export,
        (false, true) => Aim::Resume,
        (false, false) => Aim::Begin,
    };
    let out = config.out.clone();
    if !group.leads() && (args.dry_run || aim == Aim::Export) {
        return group.end();
    }
    let job = Job::prepare_in(&group, config, aim, &terminal)?;
    let out = out.ok_or_else(no_folder)?;
    if args.dry_run {
        print(&job.dry_run(&out, &terminal)?)?;
        return group.end();
    }
    if aim == Aim::Export {
        let Outcome { step, model, .. } = job.export(&out, &terminal)?;
        terminal.say(&format!("the model of step {step} is in {}", model.display()));
        return group.end();
    }
    let outcome = job.train(&out, &mut terminal)?;
    group.end()?;
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
        entries.extend(self.settings.entries()?);
        // A run that is resumed has its settings in its folder.
        let out = self.settings.value("out").map(Path::new);
        let own = out.map(|out| out.join(CONFIG)).filter(|file| file.is_file());
        let file = self.config.clone().or(own.filter(|_| self.resume || self.export));
        let mut config = Config::read(file.as_deref(), &entries)?;
        self.steps.into_iter().for_each(|n| config.set_steps(n));
        Ok(config)
    }
}

/// The settings that have a flag, as the table of settings declares them, and what was given.
struct Settings(Vec<(Flag, OsString)>);

impl Settings {
    fn value(&self, name: &str) -> Option<&OsString> {
        self.0.iter().find(|(flag, _)| flag.name == name).map(|(_, value)| value)
    }

    fn entries(&self) -> Result<Vec<yaml::Entry>> {
        let entry = |(flag, value): &(Flag, OsString)| {
            let place = format!("--{}", flag.long);
            let text = value
                .to_str()
                .ok_or_else(|| Error::argument("train", &place, "a path in UTF-8", value.display()))?;
            let value = match flag.kind {
                FlagKind::Switch => true.into(),
                FlagKind::Number => text.parse::<u64>().map_or_else(|_| text.into(), Value::from),
                FlagKind::Path | FlagKind::Text => text.into(),
            };
            Ok(yaml::Entry { path: flag.name.into(), value, place })
        };
        self.0.iter().map(entry).collect()
    }
}

impl clap::Args for Settings {
    fn augment_args(command: clap::Command) -> clap::Command {
        config::flags().fold(command, |command, flag| {
            let arg = clap::Arg::new(flag.name).long(flag.long).help(flag.help);
            command.arg(match flag.kind {
                FlagKind::Switch => arg.action(clap::ArgAction::SetTrue),
                FlagKind::Number => arg.value_name(flag.value).value_parser(clap::value_parser!(u64)),
                FlagKind::Text => arg.value_name(flag.value).value_parser(clap::value_parser!(String)),
                FlagKind::Path => arg.value_name(flag.value).value_parser(clap::value_parser!(OsString)),
            })
        })
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Settings::augment_args(command)
    }
}

impl clap::FromArgMatches for Settings {
    fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Settings, clap::Error> {
        let given = config::flags().filter_map(|flag| {
            let value = match flag.kind {
                FlagKind::Switch => matches.get_flag(flag.name).then(OsString::new),
                _ => matches.get_raw(flag.name).and_then(|mut given| given.next_back()).map(OsString::from),
            };
            Some((flag, value?))
        });
        Ok(Settings(given.collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
        Settings::from_arg_matches(matches).map(|settings| *self = settings)
    }
}
