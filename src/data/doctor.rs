//! Checks a data set before a long run: every picture is read, opened and hashed, every caption tokenized.
//!
//! How pictures are opened and captions tokenized is the caller's (closures), so the checks are those of
//! the real run. Two pictures are the same if their bytes are (BLAKE3). A batch that holds a picture twice hurts
//! the diagonal profile, where every other caption of the batch counts as wrong for it.

use super::files::quoted;
use super::{Dataset, Image, Order, Report};
use crate::Result;
use rayon::prelude::*;
use serde::Serialize;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::Path;

const EXAMPLES: usize = 5;

/// What to check with.
#[derive(Clone, Debug)]
pub struct Checks {
    /// The batch size and seed of the run to come.
    pub batch: usize,
    /// Of the order of training.
    pub seed: u64,
    /// Larger picture files count as broken.
    pub max_picture_bytes: u64,
}

impl Default for Checks {
    fn default() -> Self {
        Checks { batch: 25, seed: 42, max_picture_bytes: 32 << 20 }
    }
}

/// What a tokenizer made of a caption.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// All tokens.
    pub total: usize,
    /// Those that the vocabulary lacks.
    pub unknown: usize,
    /// The caption was longer than the model reads.
    pub cut: bool,
}

/// One kind of trouble: how often it was found, out of how many, and the first few places.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// What was found.
    pub what: &'static str,
    /// How often.
    pub count: usize,
    /// Of how many.
    pub of: usize,
    /// What to do about it.
    pub advice: &'static str,
    /// The first few.
    pub examples: Vec<String>,
}

/// What is wrong with a data set.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Diagnosis {
    /// What reading its captions met.
    pub report: Report,
    /// Tokens of all captions, and how many of them are `[UNK]`.
    pub tokens: usize,
    /// Tokens that the vocabulary lacks.
    pub unknown_tokens: usize,
    /// Always the same findings in the same order; a count of 0 means healthy.
    pub findings: Vec<Finding>,
}

impl Diagnosis {
    /// Whether nothing was found.
    pub fn is_healthy(&self) -> bool {
        self.findings.iter().all(|f| f.count == 0)
    }
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}: {} pictures, {} captions",
            self.report.source, self.report.pictures, self.report.captions
        )?;
        if self.report.renamed > 0 {
            writeln!(f, "  {} pictures are found under another COCO name", self.report.renamed)?;
            let examples = self.report.examples.iter().filter(|e| e.contains("is taken for"));
            examples.take(1).try_for_each(|example| writeln!(f, "     {example}"))?;
        }
        self.report.notes.iter().try_for_each(|note| writeln!(f, "  {note}"))?;
        let share = 100.0 * self.unknown_tokens as f64 / self.tokens.max(1) as f64;
        writeln!(f, "  tokens            {} ({share:.2} % [UNK])", self.tokens)?;
        for finding in &self.findings {
            let sign = if finding.count == 0 { "ok " } else { "!! " };
            writeln!(f, "{sign}{:<34} {:>8} of {}", finding.what, finding.count, finding.of)?;
            for example in &finding.examples {
                writeln!(f, "     {example}")?;
            }
            if finding.count > 0 {
                writeln!(f, "     -> {}", finding.advice)?;
            }
        }
        Ok(())
    }
}

/// Checks every picture and caption. `open` gets a picture's path and bytes; its error is the reason it is broken.
pub fn doctor(
    data: &Dataset,
    checks: &Checks,
    open: impl Fn(&Path, &[u8]) -> Result<()> + Sync,
    tokenize: impl Fn(&str) -> Result<Tokens> + Sync,
) -> Result<Diagnosis> {
    let report = data.report.clone();
    let hashes: Vec<Result<blake3::Hash>> =
        data.samples.par_iter().map(|s| hash_and_open(&s.image(), checks, &open)).collect();
    let (tokens, captions) = check_captions(data, tokenize)?;

    let listed = report.pictures + report.missing;
    let written = report.captions + report.empty;
    let known = |what, count, of, advice, word: &str| {
        let examples = report.examples.iter().filter(|e| e.starts_with(word)).cloned().collect();
        Finding { what, count, of, advice, examples }
    };
    let mut findings = vec![
        known("missing pictures", report.missing, listed, "check the folder of pictures", "missing picture"),
        known("empty captions", report.empty, written, "they are skipped", "empty caption"),
        known("captions cut to 64 KiB", report.cut, written, "look at the file", "caption of"),
    ];
    findings.push(Finding {
        what: "unreadable texts and folders",
        count: report.unreadable,
        of: listed + report.unreadable,
        advice: "save texts as UTF-8, or change the rights",
        examples: report.unread.clone(),
    });
    findings.push(broken(data, &hashes));
    findings.push(duplicates(data, &hashes));
    findings.extend(captions);
    findings.push(repeats(data, &hashes, checks)?);
    Ok(Diagnosis { report, tokens: tokens.total, unknown_tokens: tokens.unknown, findings })
}

fn hash_and_open(
    image: &Image,
    checks: &Checks,
    open: &impl Fn(&Path, &[u8]) -> Result<()>,
) -> Result<blake3::Hash> {
    let bytes = image.read(checks.max_picture_bytes)?;
    open(&image.path(), &bytes)?;
    Ok(blake3::hash(&bytes))
}

fn broken(data: &Dataset, hashes: &[Result<blake3::Hash>]) -> Finding {
    let mut finding = Finding::new("broken pictures", data.samples.len(), "replace or remove them");
    for reason in hashes.iter().filter_map(|h| h.as_ref().err()) {
        finding.add(|| reason.to_string());
    }
    finding
}

fn duplicates(data: &Dataset, hashes: &[Result<blake3::Hash>]) -> Finding {
    let advice =
        "keep one of them, with all the captions: as two pictures they are each other's wrong answers";
    let mut finding = Finding::new("pictures with another's bytes", data.samples.len(), advice);
    let mut first: HashMap<&blake3::Hash, &str> = HashMap::new();
    let mut names = HashSet::new();
    for (sample, hash) in data.samples.iter().zip(hashes) {
        let Ok(hash) = hash else { continue };
        // One file listed under several image ids is no copy.
        if !names.insert(sample.image().path()) {
            continue;
        }
        match first.entry(hash) {
            Entry::Vacant(slot) => {
                slot.insert(&sample.name);
            }
            Entry::Occupied(earlier) => {
                finding.add(|| format!("{} = {}", quoted(&sample.name), quoted(earlier.get())));
            }
        }
    }
    finding
}

/// All tokens together, and the findings about captions.
fn check_captions(
    data: &Dataset,
    tokenize: impl Fn(&str) -> Result<Tokens> + Sync,
) -> Result<(Tokens, Vec<Finding>)> {
    let all: Vec<(&str, &str)> =
        data.samples.iter().flat_map(|s| s.captions.iter().map(|c| (s.name.as_str(), c.as_str()))).collect();
    let tokens: Vec<Tokens> = all.par_iter().map(|(_, c)| tokenize(c)).collect::<Result<_>>()?;
    let mut none =
        Finding::new("captions without any token", all.len(), "they hold only punctuation; remove them");
    let mut cut = Finding::new("captions longer than the model reads", all.len(), "the end is not learnt");
    let mut unknown = Finding::new("captions with [UNK]", all.len(), "the vocabulary lacks these characters");
    let mut sum = Tokens::default();
    for ((name, caption), t) in all.iter().zip(&tokens) {
        let example = || format!("{}: {}", quoted(name), quoted(caption));
        sum.total += t.total;
        sum.unknown += t.unknown;
        for (hit, finding) in [(t.total == 0, &mut none), (t.cut, &mut cut), (t.unknown > 0, &mut unknown)] {
            if hit {
                finding.add(example);
            }
        }
    }
    Ok((sum, vec![none, cut, unknown]))
}

/// Batches of the first epoch that hold a picture more than once.
fn repeats(data: &Dataset, hashes: &[Result<blake3::Hash>], checks: &Checks) -> Result<Finding> {
    let pairs = data.pairs();
    let advice = "train with --set profile=lavis-image-id or a smaller --batch: in lavis-diagonal a right caption counts as wrong";
    let order = Order::shuffled(checks.seed, checks.batch.min(pairs.len()).max(1), &[pairs.len()], None)?;
    let steps = order.steps_per_epoch();
    let mut finding = Finding::new("batches that repeat a picture", steps as usize, advice);
    for step in 0..steps {
        let batch = order.batch(step);
        let mut seen = HashMap::new();
        for pair in batch.iter().filter_map(|&i| pairs.get(i)) {
            if let Some(Ok(hash)) = hashes.get(pair.sample as usize) {
                *seen.entry(hash).or_insert(0usize) += 1;
            }
        }
        let distinct = seen.len();
        let captions: usize = seen.values().sum();
        if distinct < captions {
            finding.add(|| format!("step {step}: {captions} captions of {distinct} pictures"));
        }
    }
    Ok(finding)
}

impl Finding {
    fn new(what: &'static str, of: usize, advice: &'static str) -> Self {
        Finding { what, count: 0, of, advice, examples: Vec::new() }
    }

    fn add(&mut self, example: impl FnOnce() -> String) {
        self.count += 1;
        if self.examples.len() < EXAMPLES {
            self.examples.push(example());
        }
    }
}
