//! `qformer doctor`: a data set looked through before it is trained on, a model's folder, or a GPU.

mod device;

use super::output::{Output, say};
use crate::data::{self, Checks, Dataset, Tokens};
use crate::model;
use crate::pretrained::llm::LlmFolder;
use crate::pretrained::parts;
use crate::text::llm::LlmTokenizer;
use crate::text::{Settings, Tokenizer, clean_caption, train_vocabulary};
use crate::vision::{Photo, Turn};
use crate::{Error, Kind, Result};
use std::path::{Path, PathBuf};

/// Check pictures and captions, a model's folder or a GPU before training
///
/// Reads and decodes every picture, tokenizes every caption, and lists what is missing, broken, double, empty, cut or
/// unknown to the vocabulary, and which batches of the first epoch repeat a picture. Exit code 0 if the data set is
/// healthy, 3 if anything was found.
///
/// --device alone checks a GPU instead: driver, libraries, memory, and that copies, a kernel and matmuls give the CPU's numbers;
/// exit code 6 if anything is wrong. --model alone checks that a folder is one whole model, --llm alone that one is a whole language
/// model that this program computes.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  qformer doctor --images photos --captions captions.json\n  qformer doctor --images coco \
                  --captions stair.json --model eva-bert --batch 100 --json\n  qformer doctor --device"
)]
pub struct Args {
    /// Folder of pictures, or files that hold them: tar shards ('shards/{00000..00099}.tar'), parquet
    #[arg(long, value_name = "DIR", required_unless_present_any = ["model", "device", "llm"])]
    images: Option<PathBuf>,
    /// Captions: LAVIS, COCO/STAIR or Karpathy JSON (FILE#train), JSON lines, a table with a heading, parquet; none: a .txt
    /// or .caption beside each picture, or those in the shards
    #[arg(long, value_name = "FILE", requires = "images")]
    captions: Option<PathBuf>,
    /// Check a GPU: cuda (if no name is given), cuda:1, .. or host
    #[arg(long, value_name = "NAME", num_args = 0..=1, default_missing_value = "cuda")]
    device: Option<String>,
    /// Model directory whose vocabulary and text length count; its numbers are compared with those that were written
    #[arg(long, value_name = "DIR", conflicts_with = "vocab")]
    model: Option<PathBuf>,
    /// Folder of a language model whose tokenizer counts: captions that --max-txt-len cuts, pieces it does not know. Alone: its
    /// files are checked against its config.json
    #[arg(long, value_name = "DIR", conflicts_with_all = ["model", "vocab"])]
    llm: Option<PathBuf>,
    /// Text that training will put before every caption; with --llm
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    prompt: String,
    /// Folder with vocab.txt; without it and without --model, one is trained from the captions as `train` does
    #[arg(long, value_name = "DIR")]
    vocab: Option<PathBuf>,
    /// Tokens of a caption that the model reads
    #[arg(long, default_value_t = 32)]
    max_txt_len: usize,
    /// Captions of a micro-batch of the training to come
    #[arg(long, default_value_t = 25)]
    batch: usize,
    /// Seed of the training to come
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// How the training will treat captions of one picture, as its --set profile=..; under lavis-image-id a batch may repeat
    /// pictures
    #[arg(long, default_value = "lavis-diagonal", value_parser = ["lavis-diagonal", "lavis-image-id"])]
    profile: String,
    /// Share of the pictures that may be missing before nothing else is looked at
    #[arg(long, default_value_t = 1.0)]
    missing_share: f64,
    /// One JSON object instead of lines
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    if let Some(name) = &args.device {
        device::run(name)?;
    }
    let Some(images) = &args.images else {
        args.llm.as_deref().map_or(Ok(()), language_model_alone)?;
        return args.model.as_deref().map_or(Ok(()), model_alone);
    };
    let captions = args.captions.as_ref().unwrap_or(images);
    let data = Dataset::read(captions, images, args.missing_share)?;
    if let Some(folder) = &args.llm {
        let llm = LlmTokenizer::open(folder)?;
        let row = |caption: &str| llm.row(&args.prompt, caption, args.max_txt_len);
        let around = row("")?.total;
        return look(args, &data, |caption| {
            let row = row(&clean_caption(caption))?;
            let total = row.total.saturating_sub(around);
            Ok(Tokens { total, unknown: row.unknown, cut: row.is_cut() })
        });
    }
    let (tokenizer, max_txt_len) = tokenizer(args, &data)?;
    let special = tokenizer.special();
    look(args, &data, |caption| {
        let ids = tokenizer.encode(&clean_caption(caption));
        let unknown = ids.iter().filter(|id| **id == special.unk).count();
        Ok(Tokens { total: ids.len().saturating_sub(2), unknown, cut: ids.len() > max_txt_len })
    })
}

/// Says what was found, captions cut as `tokenize` says.
fn look(args: &Args, data: &Dataset, tokenize: impl Fn(&str) -> Result<Tokens> + Sync) -> Result<()> {
    let open = |path: &std::path::Path, bytes: &[u8]| Photo::new(bytes, path, Turn::AsStored)?.check();
    let checks = Checks { batch: args.batch, seed: args.seed, ..Checks::default() };
    let mut diagnosis = data::doctor(data, &checks, open, tokenize)?;
    if args.profile == "lavis-image-id" {
        diagnosis.findings.retain(|f| f.what != "batches that repeat a picture");
    }
    let text = if args.json {
        let failed = |e| Error::new(Kind::Write, "doctor").got(e);
        serde_json::to_string(&diagnosis).map_err(failed)?
    } else {
        diagnosis.to_string()
    };
    let mut output = Output::new();
    output.line(text.trim_end())?;
    output.flush()?;
    if diagnosis.is_healthy() {
        return Ok(());
    }
    let found = diagnosis.findings.iter().filter(|f| f.count > 0).map(|f| format!("{} {}", f.count, f.what));
    Err(Error::new(Kind::Data, "doctor")
        .about(diagnosis.report.source.clone())
        .expected("a healthy data set")
        .got(found.collect::<Vec<_>>().join(", ")))
}

/// Whether a folder is one whole model, without pictures.
fn model_alone(directory: &Path) -> Result<()> {
    parts::verify(directory)?;
    let (words, sizes) = (Tokenizer::open(directory)?.len(), sizes(directory)?);
    parts::check_vocabulary(directory, &sizes, words)?;
    say!("{}: one whole model with a vocabulary of {words} tokens", directory.display())
}

/// Whether a folder is a whole language model of a family that is computed, its numbers unread.
fn language_model_alone(directory: &Path) -> Result<()> {
    let LlmFolder { config: c, tokenizer, .. } = LlmFolder::open(directory)?;
    let folder = directory.display();
    say!(
        "{folder}: a whole language model, {:?}: {} layers, {} wide, a vocabulary of {} and a tokenizer of {} tokens, {} positions",
        c.family,
        c.layers,
        c.width,
        c.vocab,
        tokenizer.len(),
        c.positions
    )
}

fn sizes(directory: &Path) -> Result<model::Config> {
    let path = directory.join("config.json");
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io("doctor", &path, &e))?;
    model::Config::from_json(&text)
}

/// The tokenizer, and how many tokens of a caption the model reads.
fn tokenizer(args: &Args, data: &Dataset) -> Result<(Tokenizer, usize)> {
    if let Some(directory) = &args.model {
        parts::verify(directory)?;
        return Ok((Tokenizer::open(directory)?, sizes(directory)?.max_txt_len));
    }
    let tokenizer = match &args.vocab {
        Some(directory) => Tokenizer::open(directory)?,
        None => {
            let captions: Vec<&str> =
                data.samples.iter().flat_map(|s| s.captions.iter().map(String::as_str)).collect();
            Tokenizer::new(
                train_vocabulary(captions, crate::train::config::VOCABULARY_SIZE)?,
                Settings::default(),
            )?
        }
    };
    Ok((tokenizer, args.max_txt_len))
}
