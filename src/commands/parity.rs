//! `qformer parity`: recorded LAVIS cases, number by number.

use crate::tensor::DType;
use crate::{Error, Kind, Result, parity};
use std::path::PathBuf;

/// Run recorded LAVIS cases and compare every number
///
/// Prints a line per tensor (name, shape, largest absolute error, relative L2 error, tolerance, verdict) and names the
/// first tensor, in order of computation, that differs. Exit code 0 only if everything agrees, 5 if something differs.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  qformer parity stage1-tiny.safetensors\n  qformer parity --dtype f64 --json cases/*.safetensors"
)]
pub struct Args {
    /// Case files, as tests/lavis/record.py writes them
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Precision to compute in
    #[arg(long, default_value = "f32", value_parser = ["f32", "f64"])]
    dtype: String,
    /// Where to compute
    #[arg(long, default_value = "cpu", value_parser = ["cpu"])]
    device: String,
    /// One JSON object per file instead of lines
    #[arg(long)]
    json: bool,
    /// Only the last line of each file
    #[arg(long)]
    quiet: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let dtype = if args.dtype == "f64" { DType::F64 } else { DType::F32 };
    let mut failed = 0;
    for file in &args.files {
        let report = parity::run(file, dtype)?;
        failed += usize::from(!report.pass);
        if args.json {
            println!(
                "{}",
                serde_json::to_string(&report).map_err(|e| Error::new(Kind::Write, "parity").got(e))?
            );
        } else if args.quiet {
            let text = report.to_string();
            println!("{}: {}", report.file, text.lines().last().unwrap_or_default());
        } else {
            println!("{report}\n");
        }
    }
    if failed > 0 {
        let got = format!("{failed} of {} differ", args.files.len());
        return Err(Error::new(Kind::Parity, "parity").expected("all cases to agree").got(got));
    }
    Ok(())
}
