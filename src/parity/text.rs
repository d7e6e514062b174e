//! Lines of text that transformers' `BertJapaneseTokenizer` has cut, against ours.
//!
//! One JSON object a line: `text`, and what is to be equal: `pre` (the cleaned text; what follows is then of it), `words`,
//! `tokens`, `ids` ([CLS] ... [SEP]), `decoded`, `ids32` with `mask32` (`ids` cut and padded to 32). A line that has
//! something else, or nothing to compare, is an error.

use crate::text::{Tokenizer, clean_caption};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// Differences that are kept to be shown.
const SHOWN: usize = 5;
const OPERATION: &str = "parity";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    text: String,
    pre: Option<String>,
    words: Option<Vec<String>>,
    tokens: Option<Vec<String>>,
    ids: Option<Vec<u32>>,
    decoded: Option<String>,
    ids32: Option<Vec<u32>>,
    mask32: Option<Vec<u8>>,
}

/// The result of one file.
#[derive(Debug, Serialize)]
pub struct TextReport {
    pub file: String,
    pub lines: usize,
    pub lines_that_differ: usize,
    /// How many values were compared, by name.
    pub compared: BTreeMap<&'static str, usize>,
    /// The first of the values that differ.
    pub differences: Vec<Difference>,
    pub pass: bool,
}

#[derive(Debug, Serialize)]
pub struct Difference {
    pub line: usize,
    pub text: String,
    pub name: &'static str,
    pub expected: String,
    pub got: String,
}

/// Compares every line of a file.
pub fn run(path: &Path, tokenizer: &Tokenizer) -> Result<TextReport> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(OPERATION, path, &e))?;
    let wrong = |line: usize, why: String| {
        let expected = "a JSON object with text and what a tokenizer made of it";
        Error::file(OPERATION, path, expected, format!("in line {line}: {why}"))
    };
    let mut report = TextReport {
        file: path.display().to_string(),
        lines: 0,
        lines_that_differ: 0,
        compared: BTreeMap::new(),
        differences: Vec::new(),
        pass: false,
    };
    let body = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    if body.is_empty() {
        return Err(wrong(1, "nothing".into()));
    }
    for (json, number) in body.split(|&b| b == b'\n').zip(1..) {
        let line: Line = serde_json::from_slice(json).map_err(|e| wrong(number, e.to_string()))?;
        let found = compare(&line, tokenizer, &mut report.compared).map_err(|why| wrong(number, why))?;
        report.lines += 1;
        report.lines_that_differ += usize::from(!found.is_empty());
        let room = SHOWN.saturating_sub(report.differences.len());
        report.differences.extend(found.into_iter().take(room).map(|d| Difference { line: number, ..d }));
    }
    report.pass = report.lines_that_differ == 0;
    Ok(report)
}

/// Everything a line holds against what we make of its text.
fn compare(
    line: &Line,
    tokenizer: &Tokenizer,
    compared: &mut BTreeMap<&'static str, usize>,
) -> Result<Vec<Difference>, String> {
    let mut found = Vec::new();
    let mut any = false;
    let mut check = |name: &'static str, expected: String, got: String| {
        any = true;
        *compared.entry(name).or_default() += 1;
        if expected != got {
            found.push(Difference { line: 0, text: line.text.clone(), name, expected, got });
        }
    };
    let text = line.pre.as_deref().unwrap_or(&line.text);
    if let Some(pre) = &line.pre {
        check("pre", format!("{pre:?}"), format!("{:?}", clean_caption(&line.text)));
    }
    if let Some(words) = &line.words {
        check("words", format!("{words:?}"), format!("{:?}", tokenizer.words(text)));
    }
    if let Some(tokens) = &line.tokens {
        check("tokens", format!("{tokens:?}"), format!("{:?}", tokenizer.tokens(text)));
    }
    let ids = tokenizer.encode(text);
    if let Some(expected) = &line.ids {
        check("ids", format!("{expected:?}"), format!("{ids:?}"));
    }
    if let Some(decoded) = &line.decoded {
        check(
            "decoded",
            format!("{decoded:?}"),
            format!("{:?}", tokenizer.decode(line.ids.as_deref().unwrap_or(&ids))),
        );
    }
    let mut cut = tokenizer.cut(ids, 32);
    let mut mask = vec![1; cut.len()];
    cut.resize(32, tokenizer.special().pad);
    mask.resize(32, 0u8);
    if let Some(expected) = &line.ids32 {
        check("ids32", format!("{expected:?}"), format!("{cut:?}"));
    }
    if let Some(expected) = &line.mask32 {
        check("mask32", format!("{expected:?}"), format!("{mask:?}"));
    }
    if any { Ok(found) } else { Err("nothing to compare".into()) }
}

impl fmt::Display for TextReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.file)?;
        for d in &self.differences {
            writeln!(f, "line {}, {} of {:?}:", d.line, d.name, d.text)?;
            writeln!(f, "  expected {}\n  got      {}", d.expected, d.got)?;
        }
        let counts = self.compared.iter().map(|(name, n)| format!("{n} {name}"));
        let counts = counts.collect::<Vec<_>>().join(", ");
        let (lines, bad) = (self.lines, self.lines_that_differ);
        let verdict = if self.pass { "all equal".into() } else { format!("{bad} of them DIFFER") };
        write!(f, "text: {lines} lines ({counts}): {verdict}")
    }
}
