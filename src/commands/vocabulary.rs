//! `qformer vocabulary`: a WordPiece vocabulary of captions.

use super::output::say;
use crate::files::{RealDisk, write_atomic};
use crate::text::{Settings, Tokenizer, train_vocabulary};
use crate::{Error, Kind, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Train a WordPiece vocabulary from captions
///
/// For those who start from nothing: a model that begins with a BERT takes that BERT's vocab.txt instead. Captions are
/// cleaned and cut into words as in training; characters come first, then the pieces that stand in them most often.
/// The same captions give the same file. Special tokens come first: [PAD] [UNK] [CLS] [SEP] [MASK]; [DEC] is added
/// when the file is read.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  qformer vocabulary stair_captions_train.json --size 16000 --out model/vocab.txt\n  qformer vocabulary captions.txt more.csv --out vocab.txt"
)]
pub struct Args {
    /// Captions: annotation files (.json, .jsonl, .csv, .tsv; what they call caption) or text, one a line
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Tokens at the most
    #[arg(long, default_value_t = 8000)]
    size: usize,
    /// File to write
    #[arg(long, default_value = "vocab.txt", value_name = "FILE")]
    out: PathBuf,
    /// Overwrite the file if it is there
    #[arg(long)]
    force: bool,
}

const OPERATION: &str = "read captions";

pub fn run(args: &Args) -> Result<()> {
    if args.out.exists() && !args.force {
        let path = args.out.display().to_string();
        return Err(Error::argument("vocabulary", "--out", "a new file", path).fix(
            "a model lives with the vocabulary it was trained with: choose another name, or give --force",
        ));
    }
    let mut captions = Vec::new();
    for file in &args.files {
        let before = captions.len();
        read(file, &mut captions)?;
        if captions.len() == before {
            return Err(Error::file(OPERATION, file, "captions", "none"));
        }
    }
    let tokens = train_vocabulary(&captions, args.size)?;
    let mut text = tokens.join("\n");
    text.push('\n');
    write_atomic(&RealDisk, &args.out, text.len() as u64, |file| file.write_all(text.as_bytes()))?;

    let tokenizer = Tokenizer::new(tokens, Settings::default())?;
    let special = tokenizer.special();
    let (mut total, mut unknown, mut longest) = (0, 0, 0);
    for caption in &captions {
        let ids = tokenizer.caption(caption, usize::MAX);
        total += ids.len() - 2;
        longest = longest.max(ids.len());
        unknown += ids.iter().filter(|&&id| id == special.unk).count();
    }
    say!(
        "{}: {} tokens of {} captions; a caption has {:.1} on average and {longest} at the most with [CLS] and [SEP]; {unknown} are [UNK]",
        args.out.display(),
        tokenizer.len() - 1,
        captions.len(),
        total as f64 / captions.len().max(1) as f64,
    )?;
    Ok(())
}

/// Appends the captions of a file.
fn read(path: &Path, captions: &mut Vec<String>) -> Result<()> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(OPERATION, path, &e))?;
    let text = std::str::from_utf8(&bytes)
        .map_err(|e| Error::file(OPERATION, path, "UTF-8", e).fix("save it as UTF-8 again"))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let json = |text: &str, line: &str| -> Result<Value> {
        serde_json::from_str(text).map_err(|e| Error::file(OPERATION, path, format!("JSON{line}"), e))
    };
    match path.extension().map(|e| e.to_string_lossy().to_lowercase()).as_deref() {
        Some("json") => collect(&json(text, "")?, captions),
        Some("jsonl" | "ndjson") => {
            for (line, number) in text.lines().zip(1..).filter(|(l, _)| !l.trim().is_empty()) {
                collect(&json(line, &format!(" in line {number}"))?, captions);
            }
        }
        Some("csv") => table(path, text, b',', captions)?,
        Some("tsv") => table(path, text, b'\t', captions)?,
        _ => captions.extend(text.lines().filter(|l| !l.trim().is_empty()).map(String::from)),
    }
    Ok(())
}

/// Every text under a key "caption", at any depth: LAVIS lists, COCO objects and results alike.
fn collect(value: &Value, captions: &mut Vec<String>) {
    match value {
        Value::Array(values) => values.iter().for_each(|v| collect(v, captions)),
        Value::Object(entries) => {
            for (key, value) in entries {
                match value {
                    Value::String(text) if key == "caption" => captions.push(text.clone()),
                    Value::Array(texts) if key == "caption" => {
                        captions.extend(texts.iter().filter_map(Value::as_str).map(String::from));
                    }
                    other => collect(other, captions),
                }
            }
        }
        _ => {}
    }
}

fn table(path: &Path, text: &str, delimiter: u8, captions: &mut Vec<String>) -> Result<()> {
    let wrong = |e: csv::Error| Error::file(OPERATION, path, "a table with a line of names", e);
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).from_reader(text.as_bytes());
    let names = reader.headers().map_err(wrong)?;
    let Some(column) = names.iter().position(|n| n.trim().eq_ignore_ascii_case("caption")) else {
        let got = names.iter().collect::<Vec<_>>().join(", ");
        return Err(Error::new(Kind::File, OPERATION)
            .about(path.display().to_string())
            .expected("a column named caption")
            .got(got));
    };
    for record in reader.records() {
        captions.extend(record.map_err(wrong)?.get(column).map(String::from));
    }
    Ok(())
}
