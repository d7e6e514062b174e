//! `qformer completions`: what a shell needs to complete commands and flags with the Tab key.

use super::{Cli, output};
use crate::{Error, Kind, Result};
use clap::CommandFactory;
use clap_complete::Shell;

/// Print the completions of a shell
#[derive(clap::Args)]
#[command(after_help = "Examples:
  qformer completions bash > ~/.local/share/bash-completion/completions/qformer
  qformer completions zsh > ~/.zfunc/_qformer
  qformer completions fish > ~/.config/fish/completions/qformer.fish")]
pub struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

pub fn run(args: &Args) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "qformer", &mut script);
    let script = String::from_utf8(script).map_err(|e| Error::new(Kind::Write, "completions").got(e))?;
    output::print(&script).map(drop)
}
