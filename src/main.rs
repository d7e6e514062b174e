//! The command `qformer`: everything is in the library.

use clap::Parser;
use qformer::terminal::{printable, tell};
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match qformer::commands::Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // Arguments may be names of files: strangers' text. Styles are lost where they hold control characters.
            let text = e.render().to_string();
            if matches!(printable(&text), std::borrow::Cow::Borrowed(_)) {
                e.exit();
            }
            tell(text.trim_end());
            return ExitCode::from(2);
        }
    };
    match qformer::commands::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            tell(&format!("qformer: {e}"));
            ExitCode::from(e.exit_code())
        }
    }
}
