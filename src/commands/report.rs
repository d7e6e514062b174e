//! `qformer report`: a run as one offline HTML page.

use super::output::Output;
use crate::files::{self, RealDisk};
use crate::report::{Group, Story, page, read_samples};
use crate::{Error, Result};
use std::path::PathBuf;

/// Write one HTML page about a training run, or about several laid over each other
///
/// Curves of the losses, accuracies, temperature, learning rate and speed; the settings; pictures that could not be used;
/// and, if a file of captions is given, captions beside small pictures. The page needs no network and no other file.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  qformer report run\n  qformer report run --captions out.json --images photos --html run.html\n  qformer report run baseline --html both.html"
)]
pub struct Args {
    /// Folders of runs, each the --out of qformer train; the page lies in the first
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// Captions to show, as qformer caption writes them (JSON or JSON lines)
    #[arg(long, value_name = "FILE")]
    captions: Option<PathBuf>,
    /// Folder that the pictures' names are relative to
    #[arg(long, value_name = "DIR", requires = "captions")]
    images: Option<PathBuf>,
    /// Pictures to show, at most
    #[arg(long, default_value_t = 48)]
    samples: usize,
    /// The page to write [RUN/report.html]
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

pub fn run(args: &Args) -> Result<()> {
    let stories = args.runs.iter().map(|run| Story::read(run)).collect::<Result<Vec<_>>>()?;
    if args.samples == 0 {
        return Err(Error::argument("report", "--samples", "at least 1", 0));
    }
    let samples = match &args.captions {
        Some(file) => read_samples(file, args.images.as_deref(), args.samples)?,
        None => Vec::new(),
    };
    let text = page(&stories.iter().collect::<Vec<_>>(), &[Group { title: "Captions".into(), samples }]);
    let path = match (&args.html, args.runs.first()) {
        (Some(path), _) => path.clone(),
        (None, first) => first.map(|run| run.join("report.html")).unwrap_or_default(),
    };
    files::write_atomic(&RealDisk, &path, text.len() as u64, |w| w.write_all(text.as_bytes()))?;
    let mut output = Output::new();
    output.line(path.display())?;
    output.flush().map(drop)
}
