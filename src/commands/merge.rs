//! `qformer merge`: the results of all shards as one.

use crate::files::RealDisk;
use crate::results::{Merged, merge_captions};
use crate::search::index;
use crate::terminal::note;
use crate::{Error, Kind, Result};
use std::path::PathBuf;

const OPERATION: &str = "merge";

/// Make one file of captions, or one index, of those of all shards
///
/// The parts are what `caption --out` or `search index --out` made with --shard. All shards of one set must be there, each once, of
/// the same model and options, and every picture in one of them. The result is what one command over all pictures would have made,
/// in the same order. Nothing is computed.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  qformer merge --out captions.json captions-*.json
  qformer merge --out photos.index photos-*.index")]
pub struct Args {
    /// The files of captions, or the folders of indexes, of all shards
    #[arg(value_name = "PARTS", required = true)]
    parts: Vec<PathBuf>,
    /// What to write: a file of captions of the same form, or the folder of an index
    #[arg(long, short, value_name = "OUT")]
    out: PathBuf,
    /// Merge what there is, although pictures are missing
    #[arg(long)]
    partial: bool,
    /// Captions in JSON with \\uXXXX for all that is not ASCII, as `caption --ascii` writes them
    #[arg(long)]
    ascii: bool,
    /// Replace what is there
    #[arg(long)]
    force: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let indexes = args.parts.iter().filter(|p| p.is_dir()).count();
    if indexes != 0 && indexes != args.parts.len() {
        let got = format!("{indexes} indexes among {} parts", args.parts.len());
        return Err(Error::argument(OPERATION, "PARTS", "files of captions, or indexes", got)
            .fix("merge them by two commands"));
    }
    let old = args.out.canonicalize().ok();
    if old.is_some() && args.parts.iter().any(|p| p.canonicalize().ok() == old) {
        return Err(Error::argument(
            OPERATION,
            "--out",
            "another name than those of the parts",
            args.out.display(),
        ));
    }
    if old.is_some() && !args.force {
        return Err(Error::new(Kind::Argument, OPERATION)
            .about(args.out.display().to_string())
            .expected("a name that is free")
            .got("one that is taken")
            .fix("choose another --out, or replace it with --force"));
    }
    let Merged { pictures, missing } = if indexes > 0 {
        index::merge(&args.parts, &args.out, args.partial)?
    } else {
        merge_captions(&RealDisk, &args.parts, &args.out, (args.partial, args.ascii))?
    };
    let gaps = if missing > 0 { format!(", {missing} missing") } else { String::new() };
    note!("{}: {pictures} pictures of {} shards{gaps}", args.out.display(), args.parts.len());
    Ok(())
}
