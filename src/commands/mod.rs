//! The command line: one file per command, each with its clap arguments and a `run`.

mod inputs;
mod parity;
mod progress;

use crate::Result;
use clap::{Parser, Subcommand};

/// Train BLIP-2's Q-Former, caption and search pictures in Japanese, and prove that the numbers are LAVIS's.
#[derive(Parser)]
#[command(name = "qformer", version, about, max_term_width = 110, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

// One line per command, in the order of `--help`.
#[derive(Subcommand)]
enum Command {
    Parity(parity::Args),
}

/// Runs the command that was parsed.
pub fn run(cli: Cli) -> Result<()> {
    match cli.command {
        Command::Parity(args) => parity::run(&args),
    }
}
