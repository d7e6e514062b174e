//! `qformer parity`: recorded LAVIS cases, number by number.

use super::group::GroupArgs;
use super::output::say;
use crate::group::Group;
use crate::nn::{Gelu, Precision};
use crate::parity::Place;
use crate::tensor::{DType, Device};
use crate::terminal::note;
use crate::text::Tokenizer;
use crate::text::llm::LlmTokenizer;
use crate::{Error, Kind, Result, parity};
use serde::Serialize;
use std::fmt::Display;
use std::path::PathBuf;

/// Run recorded LAVIS cases and compare every number
///
/// Prints a line per tensor (name, shape, largest absolute error, relative L2 error, tolerance, verdict) and names the
/// first tensor, in order of computation, that differs. Exit code 0 only if everything agrees, 5 if something differs, 3 if
/// nothing does but a file could not be read.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  qformer parity stage1-tiny.safetensors\n  qformer parity --dtype f64 --json cases/*.safetensors\n  qformer parity --vocab vocab.txt tokens.jsonl\n  qformer parity --tokenizer tokenizer.model lines.jsonl"
)]
pub struct Args {
    /// Case files, as tests/lavis/record.py writes them; with --vocab or --tokenizer, lines of text as
    /// tests/text/record_transformers.py and tests/text/record_llm.py write them
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Compare what the tokenizer of this vocab.txt makes of texts (a tokenizer_config.json beside it is followed)
    #[arg(long, value_name = "FILE")]
    vocab: Option<PathBuf>,
    /// Compare what a language model's tokenizer makes of texts: a model of sentencepiece, a tokenizer.json, or the folder
    /// of the language model
    #[arg(long, value_name = "FILE", conflicts_with = "vocab")]
    tokenizer: Option<PathBuf>,
    /// Precision to compute in: f32; f64 on the CPU; f16 or bf16 (dense layers and attention, as --help of train says) on a
    /// GPU. In 16 bits a case is held to twice what LAVIS itself is off by under autocast, CASE.autocast.json beside it, else to a
    /// bound derived from the case; the last line says which
    #[arg(long, default_value = "f32", value_parser = ["f32", "f64", "f16", "bf16", "bf16-vit"])]
    dtype: String,
    /// Where to compute: cpu, cuda (cuda:1, ..), or host (the kernels of the GPU, emulated on the CPU)
    #[arg(long, default_value = "cpu")]
    device: String,
    /// GELU of the image encoder on a GPU: exact, as it was recorded, or tanh, to see what it changes: the encoder is frozen
    /// then, so that its gradients are not compared
    #[arg(long, default_value = "exact", value_parser = ["exact", "tanh"])]
    vit_gelu: String,
    /// One JSON object per file instead of lines
    #[arg(long)]
    json: bool,
    /// Only the last line of each file
    #[arg(long)]
    quiet: bool,
    #[command(flatten)]
    group: GroupArgs,
}

pub fn run(args: &Args) -> Result<()> {
    let group = args.group.open()?;
    let mut place = place(&args.device, &args.dtype, &group)?;
    place.precision = place.precision.with_gelu(&place.device, Gelu::named(&args.vit_gelu)?)?;
    let tokenizer = args.vocab.as_deref().map(Tokenizer::open_vocabulary).transpose()?;
    let llm = args.tokenizer.as_deref().map(LlmTokenizer::open_any).transpose()?;
    let (mut failed, mut unread) = (0, 0);
    for file in &args.files {
        let texts = match (&tokenizer, &llm) {
            (Some(tokenizer), _) => Some(parity::text::run(file, tokenizer)),
            (None, Some(tokenizer)) => Some(parity::text::run_llm(file, tokenizer)),
            (None, None) => None,
        };
        let compared = match texts {
            Some(texts) => {
                texts.map(|report| (print(&report, &report.file, args, group.leads()), report.pass))
            }
            None => parity::run(file, &place)
                .map(|report| (print(&report, &report.file, args, group.leads()), report.pass)),
        };
        match compared {
            Ok((printed, pass)) => {
                printed?;
                failed += usize::from(!pass);
            }
            // A file that is no case does not keep the others from being compared.
            Err(e) if args.files.len() > 1 && matches!(e.kind(), Kind::File | Kind::Data) => {
                note!("not compared: {e}");
                unread += 1;
            }
            Err(e) => return Err(e),
        }
    }
    group.end()?;
    let all = args.files.len();
    if failed > 0 {
        let more = if unread > 0 { format!(", {unread} could not be read") } else { String::new() };
        let got = format!("{failed} of {all} differ{more}");
        return Err(Error::new(Kind::Parity, "parity").expected("all cases to agree").got(got));
    }
    if unread > 0 {
        let got = format!("{unread} of {all} that cannot be read, listed above; the others agree");
        return Err(Error::new(Kind::Data, "parity").expected("recorded cases").got(got));
    }
    Ok(())
}

fn place(device: &str, dtype: &str, group: &Group) -> Result<Place> {
    let say = |line| {
        if group.leads() {
            note!("{line}")
        }
    };
    let device = Device::announced(&group.device(device), say)?;
    device.check_computes("parity")?;
    match (&device, dtype) {
        (Device::Cpu, "f32") => Ok(Place { group: group.clone(), ..Place::cpu(DType::F32) }),
        (Device::Cpu, "f64") => Ok(Place { group: group.clone(), ..Place::cpu(DType::F64) }),
        (Device::Cpu, _) => Err(Error::argument("parity", "--dtype", "f32 or f64 on the CPU", dtype)
            .fix("16 bits run with --device cuda or --device host")),
        (Device::Gpu(_), "f64") => {
            Err(Error::argument("parity", "--dtype", "f32, f16 or bf16 on a GPU", "f64"))
        }
        (Device::Gpu(_), name) => {
            Ok(Place { dtype: DType::F32, precision: Precision::named(name)?, device, group: group.clone() })
        }
    }
}

fn print(report: &(impl Serialize + Display), file: &str, args: &Args, speaks: bool) -> Result<()> {
    if !speaks {
        // All processes have the same report.
    } else if args.json {
        let json = serde_json::to_string(report).map_err(|e| Error::new(Kind::Write, "parity").got(e))?;
        say!("{json}")?;
    } else if args.quiet {
        let text = report.to_string();
        say!("{file}: {}", text.lines().last().unwrap_or_default())?;
    } else {
        say!("{report}\n")?;
    }
    Ok(())
}
