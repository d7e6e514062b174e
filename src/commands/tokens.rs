//! `qformer tokens`: what the tokenizer makes of texts.

use super::output::Output;
use crate::text::{Tokenizer, clean_caption, ipadic_words};
use crate::{Error, Kind, Result};
use serde::Serialize;
use std::io::BufRead;
use std::path::PathBuf;

/// Show words, tokens and ids of texts
///
/// Texts are the arguments, or the lines of standard input if there are none. Words need no vocabulary; tokens and
/// ids do. What --json writes is what `qformer parity --vocab` reads.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  qformer tokens 二匹の犬が走っている\n  qformer tokens --model model/ --json < texts.txt\n  qformer tokens --vocab vocab.txt --clean \"A dog. 犬！\""
)]
pub struct Args {
    /// Texts, one an argument
    texts: Vec<String>,
    /// A vocab.txt; a tokenizer_config.json beside it is followed
    #[arg(long, value_name = "FILE", conflicts_with = "model")]
    vocab: Option<PathBuf>,
    /// A model's directory, with vocab.txt in it
    #[arg(long, value_name = "FOLDER")]
    model: Option<PathBuf>,
    /// Clean the texts first, as captions are cleaned for training
    #[arg(long)]
    clean: bool,
    /// One JSON object a text
    #[arg(long)]
    json: bool,
}

/// What is shown of a text; of the cleaned one if it was cleaned.
#[derive(Serialize)]
struct Shown<'a> {
    text: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pre: Option<String>,
    words: Vec<String>,
    #[serde(flatten)]
    tokens: Option<Tokens>,
}

#[derive(Serialize)]
struct Tokens {
    tokens: Vec<String>,
    ids: Vec<u32>,
    decoded: String,
}

pub fn run(args: &Args) -> Result<()> {
    let tokenizer = match (&args.vocab, &args.model) {
        (Some(file), _) => Some(Tokenizer::open_vocabulary(file)?),
        (_, Some(folder)) => Some(Tokenizer::open(folder)?),
        _ => None,
    };
    let mut out = Output::new();
    if !args.texts.is_empty() {
        for text in &args.texts {
            if !show(text, tokenizer.as_ref(), args, &mut out)? {
                return Ok(());
            }
        }
        return out.flush().map(drop);
    }
    let mut stdin = std::io::stdin().lock();
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let wrong = |got: String| {
            Error::new(Kind::File, "read texts").about(format!("standard input, line {number}")).got(got)
        };
        if stdin.read_until(b'\n', &mut line).map_err(|e| wrong(e.to_string()))? == 0 {
            break;
        }
        let text = str::from_utf8(&line).map_err(|e| wrong(e.to_string()).expected("UTF-8 text"))?;
        if !show(text.strip_suffix('\n').unwrap_or(text), tokenizer.as_ref(), args, &mut out)? {
            return Ok(());
        }
    }
    out.flush().map(drop)
}

fn show(text: &str, tokenizer: Option<&Tokenizer>, args: &Args, out: &mut Output) -> Result<bool> {
    let pre = args.clean.then(|| clean_caption(text));
    let input = pre.as_deref().unwrap_or(text);
    let words = match tokenizer {
        Some(tokenizer) => tokenizer.words(input),
        None => ipadic_words(input)?,
    };
    let tokens = tokenizer.map(|tokenizer| {
        let ids = tokenizer.encode(input);
        Tokens { tokens: tokenizer.tokens(input), decoded: tokenizer.decode(&ids), ids }
    });
    let shown = Shown { text, pre, words, tokens };
    if args.json {
        let json = serde_json::to_string(&shown).map_err(|e| Error::new(Kind::Write, "tokens").got(e))?;
        return out.line(json);
    }
    out.line(format_args!("text     {text}"))?;
    if let Some(pre) = &shown.pre {
        out.line(format_args!("cleaned  {pre}"))?;
    }
    out.line(format_args!("words    {}", shown.words.join(" ")))?;
    if let Some(Tokens { tokens, ids, decoded }) = &shown.tokens {
        let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
        out.line(format_args!("tokens   {}", tokens.join(" ")))?;
        out.line(format_args!("ids      {}", ids.join(" ")))?;
        out.line(format_args!("decoded  {decoded}"))?;
    }
    out.line("")
}
