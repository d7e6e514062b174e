//! How good captions and searches are: BLEU, ROUGE-L, CIDEr-D, recall@k; no Java, no tokenizer of their own.
//!
//! Captions come as lists of tokens, cut into words the same way on both sides (for Japanese: the tokenizer's
//! words). The numbers are those of pycocoevalcap 1.2 on the same tokens; its own PTB tokenizer is English and left out.
//! Sums run in a fixed order: the same captions give the same bits.

mod bleu;
mod cider;
mod recall;
mod rouge;

pub use bleu::{Bleu, bleu};
pub use cider::{cider, cider_d};
pub use recall::{Recall, recall};
pub use rouge::rouge_l;

use crate::{Error, Result};
use std::collections::BTreeMap;

/// One picture: the caption to judge and what people wrote.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Case {
    /// The words of what was written.
    pub hypothesis: Vec<String>,
    /// The words of each caption that people wrote.
    pub references: Vec<Vec<String>>,
}

/// A score over all cases (their mean), and that of each.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// Over all cases.
    pub mean: f64,
    /// Of every case.
    pub each: Vec<f64>,
}

impl Scored {
    fn of(each: Vec<f64>) -> Scored {
        Scored { mean: each.iter().sum::<f64>() / each.len() as f64, each }
    }
}

/// How often each run of 1 to 4 tokens occurs, by length.
type Counts<'a> = [BTreeMap<&'a [String], f64>; 4];

fn ngrams(tokens: &[String]) -> Counts<'_> {
    let mut counts = Counts::default();
    for (n, counts) in counts.iter_mut().enumerate() {
        for gram in tokens.windows(n + 1) {
            *counts.entry(gram).or_insert(0.0) += 1.0;
        }
    }
    counts
}

/// There is something to score, and something to score it against.
fn check(operation: &str, cases: &[Case]) -> Result<()> {
    if cases.is_empty() {
        return Err(Error::argument(operation, "cases", "at least one", 0));
    }
    match cases.iter().position(|c| c.references.is_empty()) {
        Some(i) => {
            Err(Error::argument(operation, format!("case {i}"), "at least one reference caption", "none"))
        }
        None => Ok(()),
    }
}
