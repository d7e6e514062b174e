//! `qformer demo`: draw, train, caption, search and report, with nothing to prepare.

mod exam;

use super::output::Output;
use super::train;
use crate::console::Terminal;
use crate::demo::{self, Places};
use crate::files::{self, RealDisk};
use crate::pretrained::Pretrained;
use crate::report::{Story, page};
use crate::train::config::{Config, yaml};
use crate::train::session::MODEL;
use crate::{Error, Kind, Result};
use exam::Exam;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Instant;

const OPERATION: &str = "demo";
/// How the demo trains: a configuration as `qformer train` reads it.
const SETTINGS: &str = include_str!("train.yaml");
const PAGE: &str = "report.html";
/// Pictures of each scene that training sees.
const VARIANTS: u32 = 16;

/// Train on drawn pictures, then caption and search others: the whole way, with nothing to prepare
///
/// Draws simple pictures with Japanese captions (a colour, a shape, a place, a count), trains a small image encoder and Q-Former
/// from scratch on four fifths of the combinations, then captions and searches pictures of the other fifth, which training never
/// saw. Takes about three minutes on two cores. The folder then holds the pictures and their captions, the run as `qformer train`
/// leaves it, the model for `qformer caption` and `qformer search`, and report.html with curves, captions and searches.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  qformer demo
  qformer demo --out demo2 --seed 2 --json
  qformer caption --model qformer-demo/model qformer-demo/pictures/held-out")]
pub struct Args {
    /// A new or empty folder for everything
    #[arg(long, value_name = "DIR", default_value = "qformer-demo")]
    out: PathBuf,
    /// Of the split, the pictures, the weights and the order
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Training steps
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    steps: Option<u64>,
    /// End with one line of JSON
    #[arg(long)]
    json: bool,
    /// Warnings and errors only
    #[arg(long)]
    quiet: bool,
}

/// What the last line says.
#[derive(Serialize)]
struct Summary {
    /// Share of the held-out pictures whose caption is right to the last character.
    caption_exact: f64,
    /// Share of the held-out captions for which a search finds their picture first.
    recall_at_1: f64,
    seconds: f64,
}

pub fn run(args: &Args) -> Result<()> {
    let begun = Instant::now();
    let mut terminal = Terminal::new(args.quiet);
    let config = settings(args)?;
    check_empty(&args.out)?;
    let tests = demo::draw(&args.out, config.seed, VARIANTS)?;
    train::train("demo", config, &mut terminal)?;
    let model = Pretrained::open(&args.out.join(MODEL))?;
    let exam = exam::take(&model, &tests)?;
    report(&args.out, &exam)?;
    let [caption_exact, recall_at_1] = [exam.captioned(), exam.found()];
    let summary = Summary { caption_exact, recall_at_1, seconds: begun.elapsed().as_secs_f64() };
    conclude(args, &summary)
}

/// The committed settings, the drawn set, and what the command line says.
fn settings(args: &Args) -> Result<Config> {
    let mut entries = yaml::entries(Path::new("the demo's settings"), SETTINGS)?;
    let path = |p: PathBuf| match p.to_str() {
        Some(text) => Ok(text.to_string()),
        None => Err(Error::argument(OPERATION, "--out", "a path in UTF-8", p.display())),
    };
    let Places { pictures, train, held_out } = Places::of(&args.out);
    let mut set = |name: &str, value: serde_json::Value| {
        entries.push(yaml::Entry { path: name.into(), value, place: format!("--{name}") });
    };
    set("images", path(pictures.clone())?.into());
    set("captions", path(train)?.into());
    set("validation.images", path(pictures)?.into());
    set("validation.captions", path(held_out)?.into());
    set("out", path(args.out.clone())?.into());
    args.seed.into_iter().for_each(|n| set("seed", n.into()));
    args.steps.into_iter().for_each(|n| set("steps", n.into()));
    Config::from_entries(&entries)
}

fn check_empty(out: &Path) -> Result<()> {
    let wrong = |got: String| {
        Err(Error::argument(OPERATION, "--out", "a new or empty folder", got).fix("choose another --out"))
    };
    match std::fs::read_dir(out).map(|mut entries| entries.next().is_some()) {
        Ok(true) => wrong(format!("{}, which holds files", out.display())),
        Ok(false) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => wrong(format!("{} ({e})", out.display())),
    }
}

fn report(out: &Path, exam: &Exam) -> Result<()> {
    let mut story = Story::read(out)?;
    story.name = format!(
        "qformer demo: of pictures that training never saw, {:.1} % captioned exactly; a search by the right caption finds {:.1} % of them first (itm + itc)",
        100.0 * exam.captioned(),
        100.0 * exam.found()
    );
    let text = page(&[&story], &exam.groups());
    files::write_atomic(&RealDisk, &out.join(PAGE), text.len() as u64, |w| w.write_all(text.as_bytes()))
}

fn conclude(args: &Args, summary: &Summary) -> Result<()> {
    let mut output = Output::new();
    if args.json {
        let line = serde_json::to_string(summary).map_err(|e| Error::new(Kind::Write, OPERATION).got(e))?;
        output.line(line)?;
    } else {
        let Summary { caption_exact, recall_at_1, seconds } = summary;
        output.line(format!(
            "captioned exactly: {:.1} %   found first: {:.1} %   {seconds:.0} seconds\nsee {}",
            100.0 * caption_exact,
            100.0 * recall_at_1,
            args.out.join(PAGE).display()
        ))?;
    }
    output.flush().map(drop)
}
