//! BLEU-1 to BLEU-4 over a corpus (Papineni et al. 2002), as pycocoevalcap's `Bleu(4)` computes it.
//!
//!   p_n  = (sum of matches, each clipped to its largest count in one reference, + 1e-15) / (number of n-grams + 1e-9)
//!   BLEU = (p_1 * ... * p_n)^(1/n) * exp(min(0, 1 - r/c)),   r = sum of the closest reference lengths, c = sum of lengths
//!
//! "Closest" prefers the shorter of two equally distant references. The two small numbers are pycocoevalcap's
//! way not to divide by zero and part of the score of short captions.

use super::{Case, check, ngrams};
use crate::Result;
use std::collections::BTreeMap;

/// BLEU of n-grams up to 4, of a corpus and of each case.
#[derive(Clone, Debug, PartialEq)]
pub struct Bleu {
    /// BLEU-1 to BLEU-4 of all cases together.
    pub corpus: [f64; 4],
    /// BLEU of every case alone.
    pub each: Vec<[f64; 4]>,
}

/// What BLEU is made of; of a corpus, the sums.
#[derive(Clone, Copy, Default)]
struct Sums {
    matches: [f64; 4],
    guesses: [f64; 4],
    length: f64,
    reference: f64,
}

/// BLEU-1 to BLEU-4 as COCO's evaluation has them.
pub fn bleu(cases: &[Case]) -> Result<Bleu> {
    check("BLEU", cases)?;
    let mut total = Sums::default();
    let mut each = Vec::with_capacity(cases.len());
    for case in cases {
        let one = count(case);
        for n in 0..4 {
            total.matches[n] += one.matches[n];
            total.guesses[n] += one.guesses[n];
        }
        total.length += one.length;
        total.reference += one.reference;
        each.push(one.score());
    }
    Ok(Bleu { corpus: total.score(), each })
}

fn count(case: &Case) -> Sums {
    let length = case.hypothesis.len();
    let mut sums = Sums { length: length as f64, ..Sums::default() };
    let closest = case.references.iter().map(|r| (r.len().abs_diff(length), r.len())).min();
    sums.reference = closest.map_or(0.0, |(_, len)| len as f64);
    let references: Vec<_> = case.references.iter().map(|r| ngrams(r)).collect();
    for (n, counts) in ngrams(&case.hypothesis).iter().enumerate() {
        let mut most = BTreeMap::new();
        for (gram, &times) in references.iter().flat_map(|r| &r[n]) {
            let known = most.entry(*gram).or_insert(times);
            *known = known.max(times);
        }
        sums.guesses[n] = counts.values().sum();
        sums.matches[n] =
            counts.iter().map(|(g, &times)| times.min(most.get(g).copied().unwrap_or(0.0))).sum();
    }
    sums
}

impl Sums {
    fn score(&self) -> [f64; 4] {
        const SMALL: f64 = 1e-9;
        const TINY: f64 = 1e-15;
        let ratio = (self.length + TINY) / (self.reference + SMALL);
        let brevity = if ratio < 1.0 { (1.0 - 1.0 / ratio).exp() } else { 1.0 };
        let mut product = 1.0;
        std::array::from_fn(|n| {
            product *= (self.matches[n] + TINY) / (self.guesses[n] + SMALL);
            product.powf(1.0 / (n + 1) as f64) * brevity
        })
    }
}
