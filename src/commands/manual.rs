//! `qformer manual`: the manual pages, one per command, made of the same texts as `--help`.

use super::Cli;
use super::output::say;
use crate::files::{self, RealDisk};
use crate::{Error, Kind, Result};
use clap::CommandFactory;
use std::path::PathBuf;

/// Write the manual pages: qformer.1, qformer-train.1 and so on
#[derive(clap::Args)]
#[command(after_help = "Examples:
  qformer manual ~/.local/share/man/man1 && man qformer-train")]
pub struct Args {
    /// Folder for the pages, made if it is not there
    #[arg(value_name = "DIR")]
    out: PathBuf,
}

pub fn run(args: &Args) -> Result<()> {
    let mut pages = Vec::new();
    // Help is a flag of each command, and has no page of its own.
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    pages_of(&command, &mut pages)?;
    files::make_folders(&RealDisk, &args.out)?;
    for (name, page) in &pages {
        let path = args.out.join(name);
        files::write_atomic(&RealDisk, &path, page.len() as u64, |w| w.write_all(page))?;
    }
    say!("{} pages in {}", pages.len(), args.out.display())
}

/// The page of a command and those of its subcommands, each with its file's name.
fn pages_of(command: &clap::Command, pages: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
    let page = clap_mangen::Man::new(command.clone());
    let mut text = Vec::new();
    page.render(&mut text).map_err(|e| Error::new(Kind::Write, "manual").got(e))?;
    pages.push((page.get_filename(), text));
    command.get_subcommands().try_for_each(|sub| pages_of(sub, pages))
}
