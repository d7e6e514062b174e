//! `qformer dictionary`: a MeCab dictionary as one file.

use super::output::say;
use crate::files::{RealDisk, write_atomic};
use crate::text::segment;
use crate::{Error, Result};
use std::path::PathBuf;

/// Make a dictionary file of a compiled MeCab dictionary
///
/// IPADIC is part of the program. A model that was trained with words of another dictionary (UniDic, unidic-lite)
/// needs that one: convert it once and put the file beside the model's vocab.txt, named as tokenizer_config.json
/// says it (mecab_kwargs: mecab_dic: unidic_lite is unidic_lite.zst; a path is taken as it is).
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  qformer dictionary --mecab \"$(python -c 'import unidic_lite; print(unidic_lite.DICDIR)')\" --out model/unidic_lite.zst"
)]
pub struct Args {
    /// Folder with sys.dic, matrix.bin, char.bin and unk.dic, in UTF-8
    #[arg(long, value_name = "FOLDER")]
    mecab: PathBuf,
    /// File to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Overwrite the file if it is there
    #[arg(long)]
    force: bool,
}

pub fn run(args: &Args) -> Result<()> {
    if args.out.exists() && !args.force {
        return Err(Error::argument("dictionary", "--out", "a new file", args.out.display())
            .fix("choose another name, or give --force"));
    }
    let (bytes, words) = segment::convert(&args.mecab)?;
    write_atomic(&RealDisk, &args.out, bytes.len() as u64, |file| file.write_all(&bytes))?;
    say!("{}: {words} words, {} bytes", args.out.display(), bytes.len())?;
    Ok(())
}
