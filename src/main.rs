//! The command `qformer`: everything is in the library.

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = qformer::commands::Cli::parse();
    match qformer::commands::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("qformer: {e}");
            ExitCode::from(e.exit_code())
        }
    }
}
