//! The command line: one file per command, each with its clap arguments and a `run`.

mod answer;
mod bench;
mod caption;
mod completions;
mod convert;
mod demo;
mod dictionary;
mod doctor;
mod engine;
mod evaluate;
mod evaluation;
mod explain;
mod features;
mod generation;
mod group;
mod inputs;
mod inspect;
mod manual;
mod merge;
mod output;
mod outputs;
mod parity;
mod report;
mod search;
#[cfg(feature = "serve")]
mod serve;
mod shard;
mod tokens;
mod train;
mod vocabulary;

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
    Demo(demo::Args),
    Train(train::Args),
    Doctor(doctor::Args),
    Report(report::Args),
    Caption(caption::Args),
    Search(search::Args),
    Merge(merge::Args),
    #[cfg(feature = "serve")]
    Serve(serve::Args),
    Features(features::Args),
    Explain(explain::Args),
    Evaluate(evaluate::Args),
    Convert(convert::Args),
    Inspect(inspect::Args),
    Parity(parity::Args),
    Tokens(tokens::Args),
    Vocabulary(vocabulary::Args),
    Dictionary(dictionary::Args),
    Bench(bench::Args),
    Completions(completions::Args),
    Manual(manual::Args),
}

/// Runs the command that was parsed.
pub fn run(cli: Cli) -> Result<()> {
    match cli.command {
        Command::Demo(args) => demo::run(&args),
        Command::Train(args) => train::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Caption(args) => caption::run(&args),
        Command::Search(args) => search::run(&args),
        Command::Merge(args) => merge::run(&args),
        #[cfg(feature = "serve")]
        Command::Serve(args) => serve::run(&args),
        Command::Features(args) => features::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Evaluate(args) => evaluate::run(&args),
        Command::Convert(args) => convert::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Parity(args) => parity::run(&args),
        Command::Tokens(args) => tokens::run(&args),
        Command::Vocabulary(args) => vocabulary::run(&args),
        Command::Dictionary(args) => dictionary::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Completions(args) => completions::run(&args),
        Command::Manual(args) => manual::run(&args),
    }
}
