//! Lines of text that another tokenizer has cut, against ours.
//!
//! One JSON object a line: `text`, and what is to be equal. Of `BertJapaneseTokenizer` ([`run`]): `pre` (the cleaned text;
//! what follows is then of it), `words`, `tokens`, `ids` (`[CLS]` ... `[SEP]`), `decoded`, `ids32` with `mask32` (`ids` cut and
//! padded to 32). Of a language model's tokenizer ([`run_llm`]): `normalized`, `ids`, `decoded` (of these ids). A line that
//! has something else, or nothing to compare, is an error.

use crate::text::llm::LlmTokenizer;
use crate::text::{Tokenizer, clean_caption};
use crate::{Error, Result};
use serde::de::DeserializeOwned;
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LlmLine {
    text: String,
    normalized: Option<String>,
    ids: Option<Vec<u32>>,
    decoded: Option<String>,
}

/// Compares every line of a file with what `BertJapaneseTokenizer` made of it.
pub fn run(path: &Path, tokenizer: &Tokenizer) -> Result<TextReport> {
    every_line(path, |line: Line, values| compare(&line, tokenizer, values))
}

/// Compares every line of a file with what a language model's tokenizer made of it. The ids are those of the text alone,
/// or, if those of the first line are, with what the post-processor of `tokenizer.json` puts around it.
pub fn run_llm(path: &Path, tokenizer: &LlmTokenizer) -> Result<TextReport> {
    let mut special = None;
    every_line(path, |line: LlmLine, values| {
        let text = &line.text;
        if let Some(normalized) = &line.normalized {
            values.check("normalized", text, normalized, &tokenizer.normalize(text)?);
        }
        if let Some(expected) = &line.ids {
            let plain = tokenizer.encode(text)?;
            let with_special = match special {
                None => *expected != plain && *expected == tokenizer.encode_with_special(text)?,
                Some(known) => known,
            };
            special = Some(with_special);
            let ids = if with_special { tokenizer.encode_with_special(text)? } else { plain };
            values.check("ids", text, expected, &ids);
        }
        if let Some(decoded) = &line.decoded {
            let ids = line.ids.as_ref().map_or_else(|| tokenizer.encode(text), |ids| Ok(ids.clone()))?;
            values.check("decoded", text, decoded, &tokenizer.decode(&ids)?);
        }
        Ok(())
    })
}

/// What was compared so far.
#[derive(Default)]
struct Values {
    compared: BTreeMap<&'static str, usize>,
    /// Of the line at hand.
    compared_here: usize,
    differ: Vec<Difference>,
}

impl Values {
    fn check<T: PartialEq + fmt::Debug>(&mut self, name: &'static str, text: &str, expected: &T, got: &T) {
        self.compared_here += 1;
        *self.compared.entry(name).or_default() += 1;
        if expected != got {
            let (expected, got) = (format!("{expected:?}"), format!("{got:?}"));
            self.differ.push(Difference { line: 0, text: text.into(), name, expected, got });
        }
    }
}

fn every_line<L: DeserializeOwned>(
    path: &Path,
    mut compare: impl FnMut(L, &mut Values) -> Result<()>,
) -> Result<TextReport> {
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
    let mut values = Values::default();
    for (json, number) in body.split(|&b| b == b'\n').zip(1..) {
        let line: L = serde_json::from_slice(json).map_err(|e| wrong(number, e.to_string()))?;
        values.compared_here = 0;
        compare(line, &mut values).map_err(|e| wrong(number, e.to_string()))?;
        if values.compared_here == 0 {
            return Err(wrong(number, "nothing to compare".into()));
        }
        let found = std::mem::take(&mut values.differ);
        report.lines += 1;
        report.lines_that_differ += usize::from(!found.is_empty());
        let room = SHOWN.saturating_sub(report.differences.len());
        report.differences.extend(found.into_iter().take(room).map(|d| Difference { line: number, ..d }));
    }
    report.compared = values.compared;
    report.pass = report.lines_that_differ == 0;
    Ok(report)
}

/// Everything a line holds against what we make of its text.
fn compare(line: &Line, tokenizer: &Tokenizer, values: &mut Values) -> Result<()> {
    let about = line.text.as_str();
    let text = line.pre.as_deref().unwrap_or(&line.text);
    if let Some(pre) = &line.pre {
        values.check("pre", about, pre, &clean_caption(about));
    }
    if let Some(words) = &line.words {
        values.check("words", about, words, &tokenizer.words(text));
    }
    if let Some(tokens) = &line.tokens {
        values.check("tokens", about, tokens, &tokenizer.tokens(text));
    }
    let ids = tokenizer.encode(text);
    if let Some(expected) = &line.ids {
        values.check("ids", about, expected, &ids);
    }
    if let Some(decoded) = &line.decoded {
        values.check("decoded", about, decoded, &tokenizer.decode(line.ids.as_deref().unwrap_or(&ids)));
    }
    let mut cut = tokenizer.cut(ids, 32);
    let mut mask = vec![1; cut.len()];
    cut.resize(32, tokenizer.special().pad);
    mask.resize(32, 0u8);
    if let Some(expected) = &line.ids32 {
        values.check("ids32", about, expected, &cut);
    }
    if let Some(expected) = &line.mask32 {
        values.check("mask32", about, expected, &mask);
    }
    Ok(())
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
